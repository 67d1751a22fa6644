//! What a host's kernel prints when something is wrong with it.

/// Beginnings of lines by which Linux tells that it is in trouble, the gravest first.
const SIGNS: &[&str] = &[
    "kernel BUG at",
    "BUG: unable to handle",
    "BUG: KASAN",
    "BUG: Bad page",
    "BUG: Bad rss",
    "BUG: soft lockup",
    "BUG:",
    "general protection fault",
    "Kernel panic",
    "watchdog: BUG",
    "INFO: task",
    "INFO: rcu",
    "rcu: INFO",
    "WARNING: possible circular locking",
    "WARNING:",
    "Oops:",
];

/// What a console tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The first line that says so, without its time.
    pub line: String,
    /// The same, but without what differs from run to run: the symptom.
    pub symptom: String,
}

/// The first sign of trouble in a console's text.
pub fn trouble(console: &str) -> Option<Trouble> {
    let lines = console.lines().map(untimed);
    let line = lines.into_iter().find(|line| SIGNS.iter().any(|sign| line.starts_with(sign)))?;
    Some(Trouble { line: String::from(line), symptom: symptom(line) })
}

/// A line without the time that the kernel puts before it.
fn untimed(line: &str) -> &str {
    let line = line.trim_end();
    match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((time, rest)) if time.trim().chars().all(|c| c.is_ascii_digit() || c == '.') => rest,
        _ => line,
    }
}

/// What stays the same from run to run and from build to build: no CPU and process numbers, no
/// addresses, no folder of a module's source.
fn symptom(line: &str) -> String {
    let mut words = Vec::new();
    let mut skip = false;
    for word in line.split_whitespace() {
        let bare = word.trim_end_matches(':');
        if std::mem::take(&mut skip) || bare.starts_with("CPU#") {
            continue;
        }
        let is = |digit: fn(&char) -> bool| bare.chars().all(|c| digit(&c));
        let address = bare.len() >= 12 && is(char::is_ascii_hexdigit);
        let number = bare.starts_with("0x") || is(char::is_ascii_digit);
        match bare {
            "CPU" | "PID" => skip = true,
            _ if !address && !number => {
                let word = word.split("+0x").next().unwrap_or(word);
                words.push(word.find("/arch/").map_or(word, |at| &word[at + 1..]));
            }
            _ => (),
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symptoms_do_not_depend_on_the_run() {
        let of = |line: &str| trouble(line).map(|trouble| trouble.symptom);
        let bug = |time: &str| of(&format!("[{time}] kernel BUG at arch/x86/kvm/mmu/mmu.c:876!"));
        assert_eq!(bug("   12.5"), Some("kernel BUG at arch/x86/kvm/mmu/mmu.c:876!".into()));
        assert_eq!(bug("    1.0"), bug("99.100000"));
        let warn = |cpu| {
            of(&format!("[ 1.0] WARNING: CPU: {cpu} PID: {cpu}7 at a/b.c:12 f+0x12/0x30 [kvm]"))
        };
        assert_eq!(warn(0), Some("WARNING: at a/b.c:12 f [kvm]".into()));
        assert_eq!(warn(0), warn(1));
        let built = of("WARNING: CPU: 0 PID: 7 at /b/W/arch/x86/kvm/mmu/mmu.c:472 f+0x1/0x2 [kvm]");
        assert_eq!(built, Some("WARNING: at arch/x86/kvm/mmu/mmu.c:472 f [kvm]".into()));
        let oops = |at| of(&format!("BUG: unable to handle page fault for address: {at}"));
        assert_eq!(oops("ffff888000000123"), oops("ffffc90000000010"));
    }

    #[test]
    fn a_quiet_console_is_no_trouble() {
        assert_eq!(trouble("[ 0.1] Linux version 6.1 (gcc) #1 SMP\n[ 0.2] DEBUG: nothing\n"), None);
    }
}
