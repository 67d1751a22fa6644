//! Why an emulator has ended.

use umbra_telemetry::GuestExit;

/// Lines of the log that are shown.
const SHOWN: usize = 5;

/// How a guest on the bare machine has ended by itself, by the emulator's last words.
pub fn bare_end(log: &str) -> Option<GuestExit> {
    let panic = log.lines().rev().find(|line| is_panic(line))?;
    if panic.contains("shutdown requested") {
        Some(GuestExit::Shutdown)
    } else if panic.contains("exception with no resolution") {
        Some(GuestExit::TripleFault)
    } else {
        None
    }
}

/// A log line is ticks, a letter for its class, and the device: `00523i[BIOS  ] ...`, `p` or
/// `>>PANIC<<` for a panic.
fn is_panic(line: &str) -> bool {
    line.contains(">>PANIC<<")
        || line.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with("p[")
}

/// Says in a sentence why Bochs ended: from the signal that killed it, from its log, or else from
/// what it and the hypervisor printed.
pub fn explain(killed_by: Option<i32>, log: &str, printed: &str) -> String {
    if let Some(signal) = killed_by {
        return format!(
            "the emulator was killed by signal {signal}; 9 without somebody's doing means that the host ran out of \
             memory: give a smaller --memory"
        );
    }
    let panic = log.lines().rev().find(|line| is_panic(line));
    let mut sentence = match panic {
        Some(line) => format!("the emulator stopped: {}", message(line)),
        None => String::from("the emulator ended without a report of the hypervisor"),
    };
    let printed: Vec<&str> = printed.lines().filter(|line| is_telling(line)).collect();
    if !printed.is_empty() {
        sentence += "; before that the machine said:";
        for line in &printed[printed.len().saturating_sub(SHOWN)..] {
            sentence += "\n  ";
            sentence += line.trim();
        }
    }
    if panic.is_none() {
        let lines: Vec<&str> = log.lines().collect();
        if !lines.is_empty() {
            sentence += "\nthe last lines of the emulator's log:";
        }
        for line in &lines[lines.len().saturating_sub(SHOWN)..] {
            sentence += "\n  ";
            sentence += line;
        }
    }
    sentence
}

/// The text after ticks and device.
fn message(line: &str) -> &str {
    line.split_once(']')
        .map_or(line, |(_, text)| text)
        .trim()
        .trim_start_matches(">>PANIC<<")
        .trim()
}

/// Not Bochs's banner, nor its debugger's prompts.
fn is_telling(line: &str) -> bool {
    let line = line.trim();
    let noise = line.is_empty()
        || line.starts_with("====")
        || line.starts_with("Bochs x86 Emulator")
        || line.starts_with("Built from")
        || line.starts_with("Timestamp:")
        || line.starts_with("Next at t=")
        || line.starts_with("(0)")
        || line.starts_with("<bochs:")
        || line.contains("i[      ]");
    !noise
        && line.chars().filter(|c| c.is_alphanumeric() || *c == ' ').count() * 2
            > line.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_emulator_is_quoted() {
        let log = "00011i[BIOS  ] Booting\n00012p[CPU0  ] >>PANIC<< exception(): 3rd (14) exception with no \
                   resolution\n00012i[SIM   ] quit_sim called with exit code 1\n";
        let sentence = explain(None, log, "");
        assert_eq!(
            sentence,
            "the emulator stopped: exception(): 3rd (14) exception with no resolution"
        );
    }

    #[test]
    fn a_bare_guests_end_is_told_from_a_failure() {
        let log = |words: &str| {
            format!(
                "00011i[BIOS  ] Booting\n00012p[UNMAP ] >>PANIC<< {words}\n00013i[SIM   ] quit\n"
            )
        };
        assert_eq!(bare_end(&log("Shutdown port: shutdown requested")), Some(GuestExit::Shutdown));
        let fault = "exception(): 3rd (14) exception with no resolution";
        assert_eq!(bare_end(&log(fault)), Some(GuestExit::TripleFault));
        assert_eq!(bare_end(&log("APIC write with len=8 (should be 4)")), None);
        assert_eq!(bare_end("00011i[BIOS  ] Shutdown port: shutdown requested\n"), None);
    }

    #[test]
    fn a_signal_says_more_than_the_log() {
        let sentence = explain(Some(9), "00011i[BIOS  ] Booting\n", "");
        assert!(sentence.contains("signal 9") && !sentence.contains("Booting"), "{sentence}");
    }

    #[test]
    fn what_the_hypervisor_printed_is_shown_and_the_banner_is_not() {
        let printed = "=====\n  Bochs x86 Emulator 2.7\n(0) [0x00] ...\npanicked at src/main.rs\n";
        let sentence = explain(None, "00011i[BIOS  ] Booting\n", printed);
        assert!(sentence.contains("\n  panicked at src/main.rs"), "{sentence}");
        assert!(sentence.contains("Booting"), "{sentence}");
        assert!(!sentence.contains("Emulator 2.7"), "{sentence}");
    }
}
