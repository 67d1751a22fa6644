//! Wrong input ends at once, with one sentence and exit status 2.

mod run_of_umbra;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use run_of_umbra::{Run, signal, wait_until};
use rustix::process::Signal;
use tempfile::TempDir;

struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Files {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kernel"), kernel()).unwrap();
        Files { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The kernel with one byte changed.
    fn changed(&self, name: &str, at: usize, byte: u8) -> PathBuf {
        let mut file = kernel();
        file[at] = byte;
        self.write(name, &file)
    }

    fn write(&self, name: &str, contents: &[u8]) -> PathBuf {
        fs::write(self.path(name), contents).unwrap();
        self.path(name)
    }

    /// Expects a refusal of the kernel `kernel` with these options, and returns the sentence.
    fn refused(&self, kernel: &Path, options: &[&str]) -> String {
        refused(&mut self.command(kernel, options))
    }

    fn command(&self, kernel: &Path, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
        command.arg("run").arg("--kernel").arg(kernel).args(options).stdin(Stdio::null());
        command
    }
}

fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty());
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("umbra: "), "{stderr}");
    stderr
}

/// A header that promises 64 KiB of kernel, which wants 32 MiB at 16 MiB, and so many zeros
/// (boot.rst, "The Real-Mode Kernel Header").
fn kernel() -> Vec<u8> {
    let mut file = vec![0; 1024 + 0x10000];
    for (at, bytes) in [
        (0x1f1, &[1][..]),
        (0x1f4, &[0, 0x10, 0, 0]),
        (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),
        (0x202, b"HdrS\x0f\x02"),
        (0x236, &[1, 0]),
        (0x238, &[0xff, 7, 0, 0]),
        (0x258, &[0, 0, 0, 1, 0, 0, 0, 0]),
        (0x260, &[0, 0, 0, 2]),
    ] {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    file
}

#[test]
fn a_kernel_that_does_not_boot_here() {
    let files = Files::new();
    let elf = files.write("vmlinux", b"\x7fELF\x02\x01\x01");
    let fifo = files.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for (kernel, expected) in [
        (files.path("none"), "No such file"),
        (files.folder.path().to_path_buf(), "not a regular file"),
        (PathBuf::from("/dev/zero"), "not a regular file"),
        (fifo, "not a regular file"),
        // A file that opens, and cannot be read, not even by root.
        (PathBuf::from("/proc/self/mem"), "cannot read the kernel"),
        (elf, "an ELF file"),
        (files.write("empty", b""), "an empty file"),
        (files.write("text", b"what is this?\n"), "neither a Linux bzImage nor a multiboot kernel"),
        (files.changed("old", 0x206, 0x0b), "boot protocol 2.11"),
        (files.changed("far", 0x25c, 1), "between 1 MiB and 4 GiB"),
        (files.changed("damaged", 0x201, 0x20), "damaged setup header"),
    ] {
        let sentence = files.refused(&kernel, &[]);
        assert!(sentence.contains(expected), "{sentence}");
        assert!(sentence.contains(kernel.to_str().unwrap()), "{sentence}");
    }
}

/// Before and behind the ends of the boot sector, the signature, the header and the setup code, and
/// before that of the kernel, whose last paragraph may be short.
#[test]
fn a_kernel_that_is_cut_off_anywhere() {
    let files = Files::new();
    let whole = kernel();
    for length in [
        1,
        0x1fe,
        0x200,
        0x202,
        0x205,
        0x206,
        0x208,
        0x263,
        0x264,
        1023,
        1024,
        5000,
        whole.len() - 16,
    ] {
        let sentence = files.refused(&files.write("short", &whole[..length]), &[]);
        let expected = if length < 0x206 { "neither a Linux bzImage" } else { "truncated bzImage" };
        assert!(sentence.contains(expected), "{length}: {sentence}");
    }
}

#[test]
fn memory_that_does_not_suffice_or_exist() {
    let files = Files::new();
    let initrd = files.path("initrd");
    File::create(&initrd).unwrap().set_len(100 << 20).unwrap();
    let initrd = initrd.to_str().unwrap();
    for (options, expected) in [
        (&["--memory", "40"][..], "give --memory 56 or more"),
        (&["--memory", "1T"], "1048576 MiB of guest memory"),
        (&["--memory", "64", "--initrd", initrd], "give --memory 156 or more"),
        (&["--memory", "0"], "give --memory 56 or more"),
        (&["--memory", "1M"], "give --memory 56 or more"),
        (&["--memory", "4294967295"], "at most 65536 MiB"),
        (&["--shadow-frames", "4000000000"], "--shadow-frames"),
        (&["--initrd", "/dev/null"], "not a regular file"),
        (&["--initrd", "/nonexistent/initrd"], "No such file"),
    ] {
        let sentence = files.refused(&files.path("kernel"), options);
        assert!(sentence.contains(expected), "{sentence}");
    }
}

#[test]
fn a_command_line_that_the_kernel_cannot_take() {
    let files = Files::new();
    let sentence = files.refused(&files.path("kernel"), &["--append", &"x".repeat(2048)]);
    assert!(sentence.contains("2047"), "{sentence}");
}

#[test]
fn results_that_cannot_be_written() {
    let files = Files::new();
    let nowhere = files.path("no-folder/stats.json");
    for path in [
        nowhere.as_path(),
        files.folder.path(),
        Path::new("/dev/full"),
        Path::new("/proc/stats.json"),
    ] {
        for (option, what) in
            [("--stats", "the statistics"), ("--emulator-log", "the emulator's log")]
        {
            let sentence = files.refused(&files.path("kernel"), &[option, path.to_str().unwrap()]);
            assert!(sentence.contains(&format!("cannot write {what}")), "{sentence}");
            assert!(sentence.contains("give a file in a folder"), "{sentence}");
        }
    }
    let kernel = files.path("kernel").display().to_string();
    let trace = refused_command(&["trace", &kernel, "--output", nowhere.to_str().unwrap()]);
    assert!(trace.contains("cannot write what the trace shows"), "{trace}");
}

#[test]
fn results_that_would_replace_something() {
    let files = Files::new();
    let text = |name: &str| files.path(name).display().to_string();
    let (kernel, result, link) = (text("kernel"), text("result"), text("link"));
    symlink(&kernel, &link).unwrap();
    for (options, expected) in [
        (&["--stats", &kernel][..], "the statistics would replace its own input"),
        (&["--emulator-log", &link], "the emulator's log would replace its own input"),
        (&["--stats", &result, "--trace", &result], "the statistics and the trace cannot both be"),
    ] {
        let sentence = files.refused(&files.path("kernel"), options);
        assert!(sentence.contains(expected) && sentence.contains("give"), "{sentence}");
    }
    let image = refused_command(&["image", "--kernel", &kernel, "--output", &kernel]);
    assert!(image.contains("the boot image would replace"), "{image}");
    let bench =
        refused_command(&["bench", "--kernel", &kernel, "--initrd", &result, "--stats", &link]);
    assert!(bench.contains("the result would replace"), "{bench}");
    let trace = refused_command(&["trace", &kernel, "--output", &link]);
    assert!(trace.contains("what the trace shows would replace"), "{trace}");
    assert_eq!(fs::read(&kernel).unwrap(), self::kernel());
}

#[test]
fn a_module_that_is_not_there() {
    let files = Files::new();
    let sentence = files.refused(&files.path("kernel"), &["--module", "/nonexistent/module text"]);
    assert!(sentence.contains("cannot read the module /nonexistent/module:"), "{sentence}");
}

#[test]
fn programs_that_are_missing_are_named_with_their_packages() {
    let files = Files::new();
    let mut command = files.command(&files.path("kernel"), &[]);
    let sentence = refused(command.env("PATH", files.folder.path()).env("BXSHARE", "/nonexistent"));
    for expected in [
        "bochs",
        "grub-mkrescue",
        "xorriso",
        "mformat",
        "apt-get install",
        "mtools",
        "bochsbios",
        "vgabios",
    ] {
        assert!(sentence.contains(expected), "{expected}: {sentence}");
    }
}

/// Each of them alone.
#[test]
fn a_program_that_is_missing_is_named_with_its_package() {
    let files = Files::new();
    let folder = files.path("bin");
    fs::create_dir(&folder).unwrap();
    let programs = [
        ("bochs", "bochs"),
        ("grub-mkrescue", "grub-common"),
        ("xorriso", "xorriso"),
        ("mformat", "mtools"),
    ];
    for (program, _) in programs {
        symlink("/bin/true", folder.join(program)).unwrap();
    }
    for (program, package) in programs {
        fs::remove_file(folder.join(program)).unwrap();
        let sentence = refused(files.command(&files.path("kernel"), &[]).env("PATH", &folder));
        assert!(sentence.contains(&format!("umbra: {program} is missing;")), "{sentence}");
        assert!(sentence.contains(&format!("`apt-get install {package}`")), "{sentence}");
        symlink("/bin/true", folder.join(program)).unwrap();
    }
    let mut command = files.command(&files.path("kernel"), &[]);
    let sentence = refused(command.env("PATH", &folder).env("LTDL_LIBRARY_PATH", &folder));
    assert!(
        sentence.contains("display library sdl2") && sentence.contains("bochs-sdl"),
        "{sentence}"
    );
}

#[test]
fn a_cpu_model_that_bochs_does_not_have() {
    let files = Files::new();
    let sentence = files.refused(&files.path("kernel"), &["--machine", "bochs:core3"]);
    assert!(sentence.contains("core3") && sentence.contains("bochs --help cpu"), "{sentence}");
}

/// There is no room for the hypervisor, or none for the image with it.
#[test]
fn a_temporary_folder_that_is_absent_or_too_small() {
    let run = Run::new(&kernel());
    let output = run.command(&[]).env("TMPDIR", "/nonexistent").output().unwrap();
    failed(&output, "TMPDIR can name another");
    let initrd = run.path("initrd");
    fs::write(&initrd, vec![7; 8 << 20]).unwrap();
    for (size, expected) in [("64k", "No space left"), ("12m", "exceeds free space")] {
        let script = format!(
            "mount -t tmpfs -o size={size} none \"$TMPDIR\" && {{ \"$@\"; status=$?; ls -A \"$TMPDIR\"; exit $status; }}"
        );
        let mut shell = Command::new("unshare");
        shell.args([
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            &script,
            "sh",
            env!("CARGO_BIN_EXE_umbra"),
        ]);
        let output =
            run.command_by(shell, &["--initrd", initrd.to_str().unwrap()]).output().unwrap();
        let sentence = failed(&output, "TMPDIR can name another folder");
        assert!(sentence.contains(expected), "{sentence}");
        run.nothing_is_left();
    }
}

/// Expects status 3, one sentence and no output.
fn failed(output: &Output, expected: &str) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains(expected), "{stderr}");
    assert!(output.stdout.is_empty());
    stderr
}

#[test]
fn programs_that_fail_at_once() {
    for (name, expected) in [
        ("grub-mkrescue", "cannot build the boot image in"),
        ("bochs", "Bochs did not start: it ended at once"),
    ] {
        let run = Run::new(&kernel());
        let mut command = run.command(&[]);
        run.replace(&mut command, name, "exit 7");
        failed(&command.output().unwrap(), expected);
        run.nothing_is_left();
    }
}

/// A measurement has a time of its own, and no emulator may fill the disk.
#[test]
fn a_bench_whose_guest_hangs() {
    let connect = "port=$(sed -n 's/.*dev=127.0.0.1://p' bochsrc); \
                   exec bash -c \"exec 3<>/dev/tcp/127.0.0.1/$port; exec sleep 1000\"";
    for (before, options, status, expected) in [
        (":", &["--timeout", "2"][..], 124, "the guest did not end within 2 s"),
        ("truncate -s 257M bochs.log", &[], 3, "the emulator's log grows beyond 256 MiB"),
    ] {
        let run = Run::new(&kernel());
        fs::write(run.path("initrd"), "x").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
        command.arg("bench").arg("--kernel").arg(run.path("kernel")).arg("--initrd");
        command.arg(run.path("initrd")).args(options).env("TMPDIR", run.path("tmp"));
        run.replace(&mut command, "bochs", &format!("{before}; {connect}"));
        let output = command.stdin(Stdio::null()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
        run.nothing_is_left();
    }
}

/// Both programs hang, with a child, until a signal comes.
#[test]
fn a_signal_while_another_program_is_waited_for() {
    for name in ["grub-mkrescue", "bochs"] {
        for (sent, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
            let run = Run::new(&kernel());
            let mut command = run.command(&[]);
            let started = run.path("started");
            let script = format!("cd \"$TMPDIR\"; sleep 1000 & echo >{}; wait", started.display());
            run.replace(&mut command, name, &script);
            let mut tool = command.spawn().unwrap();
            wait_until(&mut tool, || started.exists());
            assert!(!run.processes().is_empty());
            signal(&tool, sent);
            let output = tool.wait_with_output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(status), "{stderr}");
            assert_eq!(stderr, "umbra: ended by the user\n");
            assert!(!run.path("stats.json").exists());
            run.nothing_is_left();
        }
    }
}

/// As `nohup` wants it.
#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let run = Run::new(&kernel());
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_umbra")]);
    let mut command = run.command_by(shell, &[]);
    let started = run.path("started");
    let script =
        format!("echo >{}; while [ -e {0} ]; do sleep 0.01; done; exit 7", started.display());
    run.replace(&mut command, "grub-mkrescue", &script);
    let mut tool = command.spawn().unwrap();
    wait_until(&mut tool, || started.exists());
    signal(&tool, Signal::HUP);
    fs::remove_file(started).unwrap();
    failed(&tool.wait_with_output().unwrap(), "cannot build the boot image in");
    run.nothing_is_left();
}

/// What a run leaves that is killed goes when the next one starts.
#[test]
fn what_a_killed_run_has_left() {
    let run = Run::new(&kernel());
    let mut command = run.command(&["--trace", run.path("trace").to_str().unwrap()]);
    let started = run.path("started");
    run.replace(&mut command, "bochs", &format!("echo >{}; exec sleep 1000", started.display()));
    let mut tool = command.spawn().unwrap();
    wait_until(&mut tool, || started.exists());
    signal(&tool, Signal::KILL);
    tool.wait().unwrap();
    let unfinished = || {
        let entries = fs::read_dir(run.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
        entries.filter(|name| name.to_str().unwrap().starts_with(".umbra-")).count()
    };
    assert_eq!((unfinished(), fs::read_dir(run.path("tmp")).unwrap().count()), (1, 1));
    // Any command removes the folder; the next one that writes there removes the file.
    refused(&mut run.command(&["--hypervisor", "kvm"]));
    assert_eq!((unfinished(), fs::read_dir(run.path("tmp")).unwrap().count()), (1, 0));
    let mut command = run.command(&[]);
    run.replace(&mut command, "grub-mkrescue", "exit 7");
    failed(&command.output().unwrap(), "cannot build the boot image in");
    run.nothing_is_left();
}

#[test]
fn options_that_do_not_exist() {
    let files = Files::new();
    for options in [
        &["--machine", "i386"][..],
        &["--machine", "bochs:a,b"],
        &["--guest-faults", "off"],
        &["--audit=0"],
        &["--timeout", "soon"],
        &["--timeout", "0"],
        &["--timeout", "-1"],
        &["--timeout", "18446744073709551615"],
        &["--memory", "-1"],
        &["--memory", "abc"],
        &["--memory", "1T"],
        &["--memory", "4294967296"],
        &["--memory", "99999999999999999999G"],
        &["--shadow-frames", "0"],
        &["--shadow-frames", "47"],
        &["--shadow-frames", "4294967296"],
        &["--no-such-option"],
    ] {
        let sentence = files.refused(&files.path("kernel"), options);
        assert!(sentence.contains(options[0].split('=').next().unwrap()), "{sentence}");
        // In words, and not as a type of the program's has it.
        assert!(
            !sentence.contains("..=")
                && !sentence.contains("non-zero")
                && !sentence.contains("digit")
        );
    }
}

/// Runs another command than `run`, which must be refused.
fn refused_command(arguments: &[&str]) -> String {
    refused(Command::new(env!("CARGO_BIN_EXE_umbra")).args(arguments).stdin(Stdio::null()))
}

#[test]
fn results_that_are_none() {
    let files = Files::new();
    let path = |name: &str, contents: &[u8]| files.write(name, contents).display().to_string();
    let cut = path("cut.json", br#"{"schema": 1, "version": "#);
    let other = path("other.json", br#"{"schema": 999}"#);
    let kernel = files.path("kernel").display().to_string();
    assert!(refused_command(&["compare", &cut, &cut]).contains("ends in the middle"));
    assert!(refused_command(&["compare", &other, &cut]).contains("has schema 999"));
    assert!(refused_command(&["compare", &kernel, &cut]).contains("is not JSON"));
    assert!(refused_command(&["compare", &cut]).contains("two results"));
    let many = [&["report", "-o", "page"][..], &[cut.as_str(); 9]].concat();
    assert!(refused_command(&many).contains("9 results do not fit beside each other"));
    assert!(refused_command(&["compare", "/nonexistent.json", &cut]).contains("cannot be read"));
}

/// A published result. Cargo starts tests in their package's folder.
fn published(name: &str) -> String {
    format!("../../docs/results/{name}")
}

#[test]
fn a_standard_output_that_takes_nothing() {
    let result = published("penryn-bypass.json");
    let result = result.as_str();
    for arguments in
        [&["compare", result, result][..], &["doctor"], &["--help"], &["run", "-h"], &["--version"]]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
        command.args(arguments).stdin(Stdio::null()).stderr(Stdio::piped());
        let full = File::create("/dev/full").unwrap();
        let output = command.stdout(full).spawn().unwrap().wait_with_output().unwrap();
        failed(&output, "cannot write to standard output: No space left");
        // Nobody reads.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command.stdout(writer).spawn().unwrap().wait_with_output().unwrap();
        assert_ne!(output.status.code(), Some(101));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn phases_that_do_not_exist() {
    let files = Files::new();
    let kernel = files.path("kernel").display().to_string();
    let sentence =
        refused_command(&["bench", "--kernel", &kernel, "--initrd", &kernel, "--phase", "nap"]);
    assert!(sentence.contains("phase nap is unknown"), "{sentence}");
    let result = published("penryn-bypass.json");
    let sentence = refused_command(&["compare", &result, &result, "--phase", "nap"]);
    assert!(sentence.contains("has a phase nap; they have boot, getppid, demand"), "{sentence}");
}

/// Before the first run, which takes minutes.
#[test]
fn a_peer_that_lacks_something_is_refused_before_the_first_run() {
    let files = Files::new();
    let kernel = files.path("kernel").display().to_string();
    let bench = |more: &[&str]| {
        refused_command(&[&["bench", "--kernel", &kernel, "--initrd", &kernel][..], more].concat())
    };
    assert!(bench(&["--against", "kvm"]).contains("--host-initrd"));
    assert!(
        bench(&["--against", "kvm", "--host-initrd", "/nonexistent"])
            .contains("cannot read the initrd")
    );
    assert!(bench(&["--against", "trap", "--memory", "40"]).contains("give --memory 57 or more"));
    assert!(
        bench(&["--hypervisor", "none", "--guest-faults", "trap"])
            .contains("--guest-faults is for Umbra")
    );
    // Nor does a folder stay that was made for results.
    let nested = files.path("a/b").display().to_string();
    assert!(bench(&["--ablation", &nested]).contains("give one in a folder that exists"));
    let folder = files.path("ablation").display().to_string();
    assert!(bench(&["--ablation", &folder, "--memory", "40"]).contains("give --memory 57 or more"));
    assert!(!files.path("a").exists() && !files.path("ablation").exists());
}

#[test]
fn a_dash_is_standard_input_where_one_file_is_read_and_nothing_else() {
    let files = Files::new();
    let kernel = files.path("kernel");
    let text = kernel.display().to_string();
    assert!(files.refused(&kernel, &["--initrd", "-"]).contains("./- is a file of that name"));
    assert!(
        files.refused(&kernel, &["--stats", "-"]).contains("the statistics to standard output")
    );
    assert!(
        refused_command(&["image", "--kernel", &text, "-o", "-"])
            .contains("the boot image to standard output")
    );
    for folder in [&["man", "-"][..], &["report", &published("penryn-bypass.json"), "--svg", "-"]] {
        assert!(refused_command(folder).contains("results go into a folder, and - is none"));
    }
    assert!(refused_command(&["compare", "-", "-"]).contains("once only"));
    assert!(refused_command(&["report", "-", "--trace", "-", "-o", "page"]).contains("once only"));
    assert!(refused_command(&["compare", &text, "-"]).contains("is not JSON"));
    let result = published("penryn-bypass.json");
    let mut compare = Command::new(env!("CARGO_BIN_EXE_umbra"));
    compare.args(["compare", &result, "-"]).stdin(File::open(&result).unwrap());
    let output = compare.output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && table.contains("[1]: standard input (umbra"), "{table}");
    assert!(refused_command(&["trace", "-"]).contains("standard input is not a trace"));
    assert!(refused_command(&["trace", "."]).contains(". is a folder; give a file"));
}

#[test]
fn options_of_a_trace_that_mean_nothing() {
    assert!(
        refused_command(&["trace", ".", "--top", "3"]).contains("--top is for --format summary")
    );
    assert!(refused_command(&["trace", ".", "--cr3", "-1"]).contains("give a number such as 4096"));
}

/// Whatever a result says, nothing of it is for the terminal, and nothing is endless.
#[test]
fn results_with_control_characters_and_endless_names() {
    let files = Files::new();
    let result = fs::read_to_string(published("penryn-bypass.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&result).unwrap();
    json["machine"] = "\u{1b}[2J\u{1b}]0;title\u{7}".into();
    json["kernel"] = "k".repeat(5000).into();
    let strange = files.write("a\u{1b}[31m.json", json.to_string().as_bytes());
    let mut compare = Command::new(env!("CARGO_BIN_EXE_umbra"));
    let output =
        compare.args(["compare", &published("penryn-bypass.json")]).arg(&strange).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(!table.contains(|c: char| c.is_control() && c != '\n'), "{table:?}");
    assert!(table.contains("\\u{1b}[2J") && table.contains("a\\u{1b}[31m.json"), "{table}");
    assert!(table.contains("the kernel is kkk") && !table.contains(&"k".repeat(300)), "{table}");
    // Names of causes and phases stand in refusals.
    for (place, name) in [("exits", "exits"), ("name", "phases")] {
        let mut json: serde_json::Value = serde_json::from_str(&result).unwrap();
        if place == "exits" {
            json["exits"]["\u{1b}[31m".repeat(2000)] = 3.into();
        } else {
            json[name][0]["name"] = "\u{1b}[31m".repeat(2000).into();
        }
        let path = files.write("damaged.json", json.to_string().as_bytes()).display().to_string();
        let sentence = refused_command(&["compare", &path, &path]);
        assert!(!sentence.contains('\u{1b}') && sentence.len() < 2000, "{sentence:?}");
    }
}

#[test]
fn peers_that_cannot_run() {
    let files = Files::new();
    let kernel = files.path("kernel");
    let refused = |options: &[&str]| files.refused(&kernel, options);
    assert!(refused(&["--hypervisor", "kvm"]).contains("--host-initrd"));
    let ryzen = ["--hypervisor", "kvm", "--host-initrd", "x", "--machine", "ryzen"];
    assert!(refused(&ryzen).contains("give --machine qemu-svm"));
    assert!(refused(&["--host-initrd", "x"]).contains("--hypervisor kvm"));
    assert!(refused(&["--hypervisor", "none", "--audit"]).contains("--audit"));
    assert!(
        refused(&["--hypervisor", "none", "--trace", "t"])
            .contains("--trace records the exits to Umbra")
    );
    assert!(
        refused(&["--hypervisor", "none", "--guest-faults", "trap"])
            .contains("--guest-faults is for Umbra")
    );
    assert!(
        refused(&["--hypervisor", "none", "--watch"]).contains("--watch shows the exits to Umbra")
    );
    assert!(
        refused(&["--machine", "kvm", "--fixed-time"])
            .contains("--fixed-time is for emulated machines")
    );
    assert!(refused(&["--hypervisor", "none", "--append", "a=\"b c\""]).contains("quotes"));
}
