//! However a run ends, it says so in a sentence and by its status, and leaves nothing behind.

mod run_of_umbra;

use std::io::Read;
use std::process::{Child, Command};
use std::{fs, thread};

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, al, cr0, cr3, cr4, dword_ptr, eax, ecx, esp, ss, word_ptr,
};
use run_of_umbra::{MEMORY_MIB, Run, ZEROS, kernel, signal};
use rustix::process::Signal;
use umbra::trace::Reader;

/// What the hypervisor says last before the guest's first instruction.
const GUEST_RUNS: &str = "VMX without EPT";

fn power_off(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(eax, eax)?;
    a.out(0xf4, eax)
}

fn spin(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut here = a.create_label();
    a.set_label(&mut here)?;
    a.jmp(here)
}

/// Prints a character: so the guest has been entered.
fn print_one(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(al, 0x0a)?;
    a.out(0xe9, al)
}

/// Never ends, with interrupts off and one exit before.
fn spin_after_an_exit(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.cli()?;
    print_one(a)?;
    spin(a)
}

/// Holds interrupts back by MOV SS, without end.
fn spin_by_mov_ss(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut here = a.create_label();
    a.cli()?;
    print_one(a)?;
    a.mov(eax, ss)?;
    a.set_label(&mut here)?;
    for _ in 0..8 {
        a.mov(ss, eax)?;
    }
    a.jmp(here)
}

/// Prints without end.
fn chatter(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut here = a.create_label();
    a.mov(al, 0x0a)?;
    a.set_label(&mut here)?;
    a.out(0xe9, al)?;
    a.jmp(here)
}

/// No interrupt descriptor table, and then an exception.
fn triple_fault(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.lidt(dword_ptr(ZEROS))?;
    a.ud2()
}

fn halt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.cli()?;
    a.hlt()
}

/// Activates IA-32e mode in a code segment with L=1 and D=1: #GP (SDM, "Initializing IA-32e Mode"),
/// which has no handler here. VM entry would refuse the state that it asks for.
fn long_mode_in_long_code(a: &mut CodeAssembler) -> Result<(), IcedError> {
    const TABLES: i32 = 0x8000;
    const GDT: i32 = 0x7000;
    const CODE: i32 = 8;
    const EFER: i32 = 0xc000_0080_u32 as i32;
    // A PML4 and a PDPT, a directory with a large page; and a descriptor.
    for (at, value) in [(0, TABLES + 0x1007), (0x1000, TABLES + 0x2007), (0x2000, 0x87)] {
        a.mov(dword_ptr(TABLES + at), value)?;
        a.mov(dword_ptr(TABLES + at + 4), 0)?;
    }
    a.mov(dword_ptr(GDT + CODE), 0xffff)?;
    a.mov(dword_ptr(GDT + CODE + 4), 0xef_9b00)?;
    a.mov(word_ptr(GDT + 0x20), 0xf)?;
    a.mov(dword_ptr(GDT + 0x22), GDT)?;
    a.lgdt(dword_ptr(GDT + 0x20))?;
    a.mov(eax, cr4)?;
    a.or(eax, 1 << 5)?;
    a.mov(cr4, eax)?;
    a.mov(eax, TABLES)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, EFER)?;
    a.rdmsr()?;
    a.or(eax, 1 << 8)?;
    a.wrmsr()?;
    let mut long = a.create_label();
    a.mov(esp, GDT)?;
    a.push(CODE)?;
    a.call(long)?;
    a.set_label(&mut long)?;
    // To behind RETF.
    a.add(dword_ptr(esp), 5)?;
    a.retf()?;
    a.mov(eax, cr0)?;
    a.or(eax, i32::MIN)?;
    a.mov(cr0, eax)?;
    power_off(a)
}

#[test]
fn a_guest_that_fails() {
    let guests = [
        (kernel(triple_fault), "triple_fault"),
        (kernel(long_mode_in_long_code), "triple_fault"),
        (kernel(halt), "halted"),
    ];
    for (guest, key) in guests {
        let run = Run::new(&guest);
        let output = run.command(&[]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(run.guest_exit(), key);
        assert!(stderr.contains("are unchanged"), "{stderr}");
        run.nothing_is_left();
    }
}

#[test]
fn a_guest_that_never_ends() {
    let run = Run::new(&kernel(spin));
    let (output, said) = run.when(&[], GUEST_RUNS, |tool| signal(tool, Signal::TERM));
    assert_eq!(output.status.code(), Some(143), "{said}");
    assert!(said.contains("ended by the user"), "{said}");
    assert_eq!(run.guest_exit(), "stopped");

    for guest in [spin_after_an_exit, spin_by_mov_ss] {
        let run = Run::new(&kernel(guest));
        let (output, said) = run.when(&[], GUEST_RUNS, |tool| {
            // Before the guest is entered nobody is asked for a report.
            tool.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            signal(tool, Signal::TERM);
        });
        assert_eq!(output.status.code(), Some(143), "{said}");
        assert!(said.contains("ended by the user") && run.guest_exit() == "stopped", "{said}");
        assert!(said.contains("are unchanged"), "the hypervisor has reported: {said}");
    }

    // The machine has not even started by then.
    let output = run.command(&["--timeout", "1"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(124), "{stderr}");
    assert!(stderr.contains("time-out"), "{stderr}");
    assert_eq!(run.guest_exit(), "timeout");
    run.nothing_is_left();
}

#[test]
fn an_emulator_that_is_killed_or_stopped() {
    let run = Run::new(&kernel(spin));
    let (output, said) = run.when(&[], GUEST_RUNS, |_| run.signal_emulator(Signal::KILL));
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("killed by signal 9"), "{said}");
    assert_eq!(run.guest_exit(), "emulator_died");

    let (output, said) = run.when(&[], "loading", |tool| {
        run.signal_emulator(Signal::STOP);
        signal(tool, Signal::HUP);
    });
    assert_eq!(output.status.code(), Some(129), "{said}");
    assert_eq!(run.guest_exit(), "stopped");
}

#[test]
fn a_console_that_is_closed_or_not_read() {
    let run = Run::new(&kernel(chatter));
    let (output, said) = run.when(&[], GUEST_RUNS, |tool| drop(tool.stdout.take()));
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("cannot write the guest's output"), "{said}");
    assert!(!run.path("stats.json").exists());

    // Nobody reads until the tool has ended, which the second signal brings about.
    let (output, said) = run.when(&[], GUEST_RUNS, interrupt_until_it_ends);
    assert_eq!(output.status.code(), Some(130), "{said}");
    // Unless the tool had come to its results first, which are whole then.
    if run.path("stats.json").exists() {
        assert_eq!(run.guest_exit(), "stopped");
    }
}

/// Lets a guest that prints without end fill all that is between it and whoever does not read, and
/// then sends signals.
fn interrupt_until_it_ends(tool: &mut Child) {
    tool.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    signal(tool, Signal::INT);
    while tool.try_wait().unwrap().is_none() {
        signal(tool, Signal::INT);
        thread::yield_now();
    }
}

/// A trace is written all the time, under another name until it is whole.
#[test]
fn a_second_signal_takes_the_unfinished_trace_away() {
    let run = Run::new(&kernel(chatter));
    let trace = run.path("trace");
    let unfinished = || {
        let names = fs::read_dir(run.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with(".umbra-")).count()
    };
    let (output, said) = run.when(&["--trace", trace.to_str().unwrap()], GUEST_RUNS, |tool| {
        assert_eq!(unfinished(), 1, "the trace that is being written");
        interrupt_until_it_ends(tool);
    });
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert_eq!(unfinished(), 0);
    if trace.exists() {
        assert_eq!(
            Reader::open(&trace).unwrap().1.filter(Result::is_err).count(),
            0,
            "it is whole"
        );
    }
}

#[test]
fn a_standard_error_that_is_closed_does_not_change_the_end() {
    let run = Run::new(&kernel(power_off));
    let mut tool = run.command(&[]).spawn().unwrap();
    drop(tool.stderr.take());
    assert_eq!(tool.wait().unwrap().code(), Some(0));
    assert_eq!(run.guest_exit(), "exit_port:0xf4=0");
    run.nothing_is_left();
}

#[test]
fn a_cpu_that_cannot() {
    for (model, expected) in [("pentium", "no 64-bit mode"), ("p4_prescott_celeron_336", "no VMX")]
    {
        let run = Run::new(&kernel(power_off));
        let output = run.command(&["--machine", &format!("bochs:{model}")]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains(expected) && stderr.contains("choose"), "{stderr}");
        assert!(run.guest_exit().starts_with("hypervisor_failed: "));
        run.nothing_is_left();
    }
}

/// Results go to a file system without a free byte.
#[test]
fn a_disk_that_is_full_at_the_end() {
    let run = Run::new(&kernel(power_off));
    let full = run.path("bin");
    fs::create_dir(&full).unwrap();
    let mut shell = Command::new("unshare");
    let script = "mount -t tmpfs -o size=4k none \"$0\" && head -c 4096 /dev/zero >\"$0/filler\" && \
                  { \"$@\"; status=$?; ls -A \"$0\"; exit $status; }";
    shell
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .arg(&full)
        .arg(env!("CARGO_BIN_EXE_umbra"));
    let stats = full.join("stats.json").display().to_string();
    let output = run.command_by(shell, &["--stats", &stats]).output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(
        stderr.contains("cannot write the statistics to") && stderr.contains("make room"),
        "{stderr}"
    );
    assert_eq!(stdout, "filler\n");
    run.nothing_is_left();
}

/// Bochs's debugger changes memory that is nobody's while the guest runs: when it writes to its
/// last megabyte.
#[test]
fn memory_that_nobody_may_write_is_watched() {
    const TRIGGER: u32 = (MEMORY_MIB - 1) << 20;
    /// Just behind the guest's memory.
    const VICTIM: u32 = (MEMORY_MIB << 20) + 0x1238;
    let run = Run::new(&kernel(|a| {
        a.mov(dword_ptr(TRIGGER), 1)?;
        power_off(a)
    }));
    let commands = format!("watch w {TRIGGER:#x}\\nc\\nsetpmem {VICTIM:#x} 1 0\\nc\\n");
    let mut command = run.command(&[]);
    run.replace(&mut command, "bochs", &format!("printf '{commands}' >rc; exec $real \"$@\""));
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains(&format!("canary at host-physical {VICTIM:#x} is broken")), "{stderr}");
    assert_eq!(run.guest_exit(), format!("canary_broken: {VICTIM:#x}"));
    run.nothing_is_left();
}
