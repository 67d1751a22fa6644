//! What a guest shows is seen in time, whatever it does meanwhile.

mod run_of_umbra;

use std::io::{Read, Write};
use std::process::Stdio;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use run_of_umbra::{Run, kernel, signal};
use rustix::process::Signal;

const COM1: u32 = 0x3f8;
const LINE_STATUS: u32 = COM1 + 5;
const DATA_READY: i32 = 1;
const EXIT_PORT: u32 = 0xf4;

const PROMPT: &str = "login: ";

/// Writes text to COM1.
fn print(a: &mut CodeAssembler, text: &str) -> Result<(), IcedError> {
    a.mov(edx, COM1)?;
    for byte in text.bytes() {
        a.mov(al, i32::from(byte))?;
        a.out(dx, al)?;
    }
    Ok(())
}

/// Ends the guest: with success if a key has come.
fn end_by_key(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, LINE_STATUS)?;
    a.in_(al, dx)?;
    a.and(eax, DATA_READY)?;
    a.xor(eax, DATA_READY)?;
    a.mov(edx, EXIT_PORT)?;
    a.out(dx, eax)
}

/// Jumps to `again` until so many ticks have passed since the time in ESI.
fn until(a: &mut CodeAssembler, ticks: u32, again: CodeLabel) -> Result<(), IcedError> {
    a.rdtsc()?;
    a.sub(eax, esi)?;
    a.cmp(eax, ticks)?;
    a.jb(again)
}

/// A prompt, then a wait for a key that exits all the time, as boot loaders do.
fn polls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.sti()?;
    print(a, PROMPT)?;
    a.rdtsc()?;
    a.mov(esi, eax)?;
    let (mut again, mut key) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.mov(edx, LINE_STATUS)?;
    a.in_(al, dx)?;
    a.test(al, DATA_READY)?;
    a.jnz(key)?;
    until(a, 2_000_000_000, again)?;
    a.set_label(&mut key)?;
    end_by_key(a)
}

/// A prompt, then half a second without any exit of its own, and with interrupts on.
fn computes(a: &mut CodeAssembler) -> Result<(), IcedError> {
    print(a, PROMPT)?;
    a.sti()?;
    a.rdtsc()?;
    a.mov(esi, eax)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    until(a, 500_000_000, again)?;
    end_by_key(a)
}

/// The prompt of a guest that polls stayed invisible until the guest wrote a line end.
#[test]
fn a_prompt_without_a_line_end_is_seen_before_it_is_answered() {
    for code in [polls, computes] {
        let run = Run::new(&kernel(code));
        let mut child = run.command(&["--timeout", "100"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut prompt = [0; PROMPT.len()];
        let seen = child.stdout.as_mut().unwrap().read_exact(&mut prompt);
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        seen.unwrap_or_else(|error| panic!("{error}: {stderr}"));
        assert_eq!((&prompt[..], output.status.code()), (PROMPT.as_bytes(), Some(0)), "{stderr}");
    }
}

/// Where the kernel keeps its interrupt table, and the operand of LIDT.
const IDT: u32 = 0x20_0000;
const IDT_POINTER: u32 = IDT + 0x1000;

/// Lets the PIT interrupt as firmware has left it: 18.2 times a second, vector 8.
fn start_timer(a: &mut CodeAssembler) -> Result<(), IcedError> {
    const GATE: u32 = IDT + 8 * 8;
    const CODE: i32 = 0x08;
    let mut behind = a.create_label();
    a.call(behind)?;
    a.push(eax)?;
    a.mov(al, 0x20)?;
    a.out(0x20, al)?;
    a.pop(eax)?;
    a.iretd()?;
    a.set_label(&mut behind)?;
    a.pop(eax)?;
    a.mov(word_ptr(GATE), ax)?;
    a.mov(word_ptr(GATE + 2), CODE)?;
    a.mov(word_ptr(GATE + 4), 0x8e00)?;
    a.shr(eax, 16)?;
    a.mov(word_ptr(GATE + 6), ax)?;
    a.mov(word_ptr(IDT_POINTER), 0x7ff)?;
    a.mov(dword_ptr(IDT_POINTER + 2), IDT)?;
    a.lidt(ptr(IDT_POINTER))?;
    a.mov(al, 0xfe)?;
    a.out(0x21, al)?;
    a.sti()
}

/// Sleeps for so many ticks of the timer.
fn sleep(a: &mut CodeAssembler, ticks: u32) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(ecx, ticks)?;
    a.set_label(&mut again)?;
    a.hlt()?;
    a.dec(ecx)?;
    a.jnz(again)
}

/// Writes text to a cell of the screen's memory and those behind it.
fn write(a: &mut CodeAssembler, cell: u32, text: &[u8]) -> Result<(), IcedError> {
    for (at, byte) in (0xb_8000 + 2 * cell..).step_by(2).zip(text) {
        a.mov(word_ptr(at), 0x0700 | i32::from(*byte))?;
    }
    Ok(())
}

/// Three screens, of which the second does not rest; the third is on another page of the text
/// memory.
fn draws(a: &mut CodeAssembler) -> Result<(), IcedError> {
    const CRTC: u32 = 0x3d4;
    start_timer(a)?;
    write(a, 0, b"hello\xdb")?;
    write(a, 2 * 80 + 3, b"world")?;
    sleep(a, 30)?;
    write(a, 0, b"short")?;
    sleep(a, 3)?;
    write(a, 0, b"     \x00")?;
    write(a, 2 * 80 + 3, b"     ")?;
    write(a, 2048, b"page 1")?;
    a.mov(edx, CRTC)?;
    // The start address is 0x0800: index and data in one access.
    for word in [0x080c, 0x000d] {
        a.mov(eax, word)?;
        a.out(dx, ax)?;
    }
    // Scrolls all the rest of the memory, as a kernel does: to itself.
    a.cld()?;
    a.mov(esi, 0xb_9200)?;
    a.mov(edi, 0xb_9200)?;
    a.mov(ecx, 0x6e00 / 4)?;
    a.rep().movsd()?;
    sleep(a, 2)?;
    a.mov(edx, EXIT_PORT)?;
    a.xor(eax, eax)?;
    a.out(dx, eax)
}

#[test]
fn a_screen_is_shown_when_it_rests_and_at_the_end_and_costs_no_exit() {
    let run = Run::new(&kernel(draws));
    let output = run.command(&["--screen", "--timeout", "100"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let screens = "--- screen ---\nhello█\n\n   world\n--------------\n\
                   --- screen ---\npage 1\n--------------\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), screens, "{stderr}");
    assert_eq!(run.statistics()["exits"]["host_fault_mmio"], 0, "{stderr}");

    let output = run.command(&["--timeout", "100"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "it was not asked for");
}

/// It has an exit, computes a while, and so on for ever.
#[test]
fn exits_are_seen_while_the_guest_runs() {
    let run = Run::new(&kernel(|a| {
        let (mut again, mut compute) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.mov(ecx, 20_000)?;
        a.set_label(&mut compute)?;
        a.dec(ecx)?;
        a.jnz(compute)?;
        a.cpuid()?;
        a.jmp(again)
    }));
    let (output, said) = run.when(&["--watch"], "exits now", |child| signal(child, Signal::TERM));
    assert_eq!(output.status.code(), Some(143), "{said}");
    let (_, view) = said.split_once("exits now").unwrap();
    let row = |name: &str| {
        let line =
            view.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{said}"));
        line.split_whitespace().skip(1).map(|number| number.parse().unwrap()).collect::<Vec<f64>>()
    };
    let (cpuid, total) = (row("cpuid "), row("total "));
    assert!(cpuid[0] > 0.0 && cpuid[1] > 50.0 && cpuid[3] <= total[3], "{view}");
    // The counts are those of the run.
    assert!(run.statistics()["exits"]["cpuid"].as_f64().unwrap() >= cpuid[3]);
}
