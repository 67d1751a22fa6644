//! Programs as a kernel of its own: for a machine without a hypervisor, and for a hypervisor that
//! only boots kernels.
//!
//! A multiboot image (version 1, with the addresses in its header). 32-bit code turns long mode on
//! by tables of its own. 64-bit code then goes through the programs: it puts the memory of one in
//! its place, lets it run, writes its results to port 0xe9, and looks for words of the arena that
//! the stub does not watch and that have changed. A machine starts once for many programs, as its
//! start takes as long as some thousand steps.
//!
//! For programs of two CPUs the first one starts the second (SDM, "Multiple-Processor (MP)
//! Initialization"). It goes from real mode to long mode at once, and waits for each program.

use std::collections::BTreeSet;
use std::ops::Range;

use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, ax, cr0, cr3, cr4, ds, dword_ptr, dx, eax, ecx, edi, edx, es, esi,
    esp, ptr, qword_ptr, r8, r12, r12d, r13d, rax, rbx, rcx, rdi, rdx, rsi, rsp, sp, ss,
};
use iced_x86::{Code, IcedError, Instruction, MemoryOperand};

use crate::image::{A, CR4_PGE, ControlRegisters, D, Image, P, PS, U, W};
use crate::layout::{
    ARENA, CPUS, GDT, IDT, PAGE, REGION, REGIONS, RESULTS, RESULTS_SIZE, STATE, STUB, STUB_SLOT,
    State, USER, WATCH_LIST, direct, watched,
};
use crate::program::Program;
use crate::record::{End, Record};
use crate::stub::{GDT_LIMIT, IDT_LIMIT, KERNEL_CODE, KERNEL_DATA, TASK, gdt};

/// Where the image is loaded: above everything that programs use.
const BASE: u64 = 0x100_0000;
/// The tables of the kernel itself: a root, and PDPT and PD of the image and of the direct map.
const TABLES: u64 = BASE + PAGE;
/// What the kernel remembers while a program runs, and its descriptor table.
const OWN: u64 = TABLES + 5 * PAGE;
/// The programs.
const DATA: u64 = OWN + PAGE;
/// The end of what the kernel's tables map.
const END: u64 = 0x400_0000;
/// The 64-bit code that begins the next program.
const NEXT: u64 = BASE + 0x200;
/// The 64-bit code that ends a program.
const BACK: u64 = BASE + 0x400;
/// The 64-bit code of the second CPU, between two programs.
const HOME: u64 = BASE + 0x800;
/// The first instructions of the second CPU, as they are loaded.
const REAL: u64 = BASE + 0xa00;
/// Where they run, in real mode: a page of the arena, which is cleared afterwards.
const REAL_PAGE: u64 = 0x8000;
/// Their room.
const REAL_SIZE: u64 = 0x100;
/// The first instructions of a program before the stub, in the stub's memory, by CPU.
const BOOT: [u64; CPUS] = [STUB + 0x3800, STUB + 0x3a00];
/// The operands of LGDT and LIDT, behind them.
const DESCRIPTORS: u64 = STUB + 0x3900;
/// From the stub back to the kernel, behind them.
const LEAVE: u64 = STUB + 0x3980;

/// The memory of a PC's screen and ROMs.
const NO_RAM: Range<u64> = 0xa_0000..0x10_0000;

/// Offsets in the kernel's own page.
struct Own;

impl Own {
    /// The quiet words of the program that runs.
    const QUIET: u64 = 0;
    /// The next program.
    const NEXT: u64 = 8;
    /// How many programs are left.
    const LEFT: u64 = 16;
    /// A word on its way to the port.
    const WORD: u64 = 24;
    /// The text by which Bochs and QEMU end, see [`SHUTDOWN`].
    const TEXT: u64 = 32;
    /// The operand of LGDT.
    const POINTER: u64 = 48;
    /// The descriptor table.
    const GDT: u64 = 64;
    /// Not 0: the second CPU is at a program, or is to be.
    const BUSY: u64 = 0x1f8;
    /// Words that have changed: address and value.
    const STRAYS: u64 = 0x200;
    /// The end of the stack.
    const STACK: u64 = PAGE;
}

/// At most so many words are told that have changed.
const STRAYS: u64 = 8;

/// Multiboot Specification 0.6.96, "Header magic fields" and "Header address fields".
const MAGIC: u32 = 0x1bad_b002;
const HAS_ADDRESSES: u32 = 1 << 16;
const HEADER: u64 = 32;

const EFER: u32 = 0xc000_0080;

/// The low half of the local APIC's interrupt command register (SDM, "Local APIC Register Address
/// Map").
const COMMAND: u32 = 0xfee0_0300;
/// INIT, and a start at [`REAL_PAGE`], to all CPUs but this one ("Interrupt Command Register
/// (ICR)").
const INIT: u32 = 0xc_4500;
const START_UP: u32 = 0xc_4600 | (REAL_PAGE / PAGE) as u32;
/// How often the first CPU looks for the second before it sends another start.
const PATIENCE: u32 = 1 << 20;

/// The port of the results.
const OUTPUT: u32 = 0xe9;
/// Bochs' port that ends the machine when this text comes (`umbra run` knows it, too), and QEMU's
/// isa-debug-exit.
const SHUTDOWN: (u32, &[u8; 8]) = (0x8900, b"Shutdown");
const DEBUG_EXIT: u32 = 0xf4;

/// The words that stand before a program begins, before its results, and at the end.
const BEGINS: u64 = u64::from_le_bytes(*b"\nbegins ");
const RESULT: u64 = u64::from_le_bytes(*b"\nresult ");
const ENDS: u64 = u64::from_le_bytes(*b"\nends   ");

/// The most that [`multiboot`] has room for.
pub const ROOM: u64 = END - DATA;

/// The image. All programs are of one kind of CPU, and of one number of them.
///
/// # Panics
/// There is no program, or there are more than [`ROOM`] takes.
pub fn multiboot(programs: &[Program]) -> Vec<u8> {
    let images: Vec<Image> = programs.iter().map(image).collect();
    let mut data = Vec::new();
    for image in &images {
        append(image, &mut data);
    }
    let registers = images.first().expect("there is a program").registers;
    let end = DATA + 8 * data.len() as u64;
    assert!(end <= END, "there is room for all programs");

    let entry = BASE + HEADER;
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(HAS_ADDRESSES);
    let addresses = [BASE, BASE, end, end, entry].map(|at| at as u32);
    let header = [MAGIC, HAS_ADDRESSES, checksum].into_iter().chain(addresses);
    let mut file: Vec<u8> = header.flat_map(u32::to_le_bytes).collect();
    let mut put = |at: u64, code: Result<Vec<u8>, IcedError>| {
        assert!(file.len() as u64 <= at - BASE, "each part has its room");
        file.resize((at - BASE) as usize, 0);
        file.extend(code.expect("the code is the same for all programs"));
    };
    let cpus = programs[0].cpus();
    put(entry, start(&registers, cpus));
    put(NEXT, next());
    put(BACK, back(&registers, cpus));
    put(HOME, home(&registers));
    put(REAL, real(&registers));
    put(TABLES, Ok(tables()));
    put(OWN, Ok(own(programs.len() as u64)));
    put(DATA, Ok(data.into_iter().flat_map(u64::to_le_bytes).collect()));
    file
}

/// The image of one program, with the way from the kernel to its stub and back.
fn image(program: &Program) -> Image {
    let mut image = Image::new(program, Some(direct(LEAVE)));
    let boots = [0, 1]
        .map(|cpu| (BOOT[cpu], boot(&image, cpu).expect("the code is the same in every program")));
    let leave = leave().expect("the code is the same in every program");
    let pseudo = |limit: u16, base: u64| {
        [&limit.to_le_bytes()[..], &direct(base).raw().to_le_bytes()].concat()
    };
    let mut descriptors = pseudo(GDT_LIMIT, GDT);
    descriptors.resize(16, 0);
    descriptors.extend(pseudo(IDT_LIMIT, IDT));
    image.stub.extend(boots);
    image.stub.extend([(DESCRIPTORS, descriptors), (LEAVE, leave)]);
    image
}

/// A program for the kernel: the quiet words, the watched words, and the pieces of the stub. Each
/// list has its length before it.
fn append(image: &Image, data: &mut Vec<u64>) {
    let watched: BTreeSet<u64> = watched().collect();
    let (watched, quiet): (Vec<_>, Vec<_>) =
        image.arena.iter().partition(|(gpa, _)| watched.contains(gpa));
    for words in [quiet, watched] {
        data.push(words.len() as u64);
        data.extend(words.into_iter().flat_map(|(gpa, value)| [gpa, value]));
    }
    data.push(image.stub.len() as u64);
    for (gpa, bytes) in &image.stub {
        data.extend([*gpa, bytes.len().div_ceil(8) as u64]);
        data.extend(bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        }));
    }
}

/// Maps everything up to [`END`] where it is, and what the programs' direct map shows.
fn tables() -> Vec<u8> {
    let all = P | W | A | D;
    let mut words = vec![0u64; 5 * 512];
    words[0] = (TABLES + PAGE) | all;
    words[512] = (TABLES + 2 * PAGE) | all;
    for at in (0..END).step_by(REGION as usize) {
        words[1024 + (at / REGION) as usize] = at | all | PS;
    }
    words[STUB_SLOT as usize] = (TABLES + 3 * PAGE) | all | U;
    words[1536] = (TABLES + 4 * PAGE) | all | U;
    for region in (0..REGIONS).chain([STUB / REGION]) {
        words[2048 + region as usize] = (region * REGION) | all | PS;
    }
    words[2048 + (USER / REGION) as usize] = USER | all | U | PS;
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// The kernel's own page.
fn own(programs: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    let mut put = |at: u64, bytes: &[u8]| {
        page[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    };
    put(Own::NEXT, &DATA.to_le_bytes());
    put(Own::LEFT, &programs.to_le_bytes());
    put(Own::TEXT, SHUTDOWN.1);
    put(Own::POINTER, &GDT_LIMIT.to_le_bytes());
    put(Own::POINTER + 2, &(OWN + Own::GDT).to_le_bytes());
    put(Own::GDT, &gdt());
    put(Own::BUSY, &1u64.to_le_bytes());
    page
}

/// From the boot loader to long mode: 32-bit code.
fn start(registers: &ControlRegisters, cpus: usize) -> Result<Vec<u8>, IcedError> {
    let mut code = CodeAssembler::new(32)?;
    code.cli()?;
    code.cld()?;
    code.mov(esp, (OWN + Own::STACK) as u32)?;
    if cpus > 1 {
        emit_start_of_second(&mut code)?;
    }
    code.xor(eax, eax)?;
    for range in [0..NO_RAM.start, NO_RAM.end..ARENA] {
        code.mov(edi, range.start as u32)?;
        code.mov(ecx, ((range.end - range.start) / 4) as u32)?;
        code.rep().stosd()?;
    }
    emit_long_mode(&mut code, registers)?;
    code.lgdt(ptr((OWN + Own::POINTER) as u32))?;
    code.push(i32::from(KERNEL_CODE))?;
    code.push(NEXT as i32)?;
    code.retf()?;
    code.assemble(BASE + HEADER)
}

/// On the kernel's tables with paging and long mode, from 32-bit or 16-bit code.
fn emit_long_mode(code: &mut CodeAssembler, registers: &ControlRegisters) -> Result<(), IcedError> {
    code.mov(eax, registers.cr4 as u32)?;
    code.mov(cr4, eax)?;
    code.mov(eax, TABLES as u32)?;
    code.mov(cr3, eax)?;
    code.mov(ecx, EFER)?;
    code.mov(eax, registers.efer as u32)?;
    code.xor(edx, edx)?;
    code.wrmsr()?;
    code.mov(eax, registers.cr0 as u32)?;
    code.mov(cr0, eax)
}

/// Starts the second CPU, and waits until it is in [`home`].
fn emit_start_of_second(code: &mut CodeAssembler) -> Result<(), IcedError> {
    let [mut wait, mut again, mut look, mut there] = [(); 4].map(|()| code.create_label());
    code.mov(esi, REAL as u32)?;
    code.mov(edi, REAL_PAGE as u32)?;
    code.mov(ecx, REAL_SIZE as u32)?;
    code.rep().movsb()?;
    code.mov(dword_ptr(COMMAND), INIT)?;
    code.mov(ecx, PATIENCE)?;
    code.set_label(&mut wait)?;
    code.pause()?;
    code.dec(ecx)?;
    code.jne(wait)?;
    code.set_label(&mut again)?;
    code.mov(dword_ptr(COMMAND), START_UP)?;
    code.mov(ecx, PATIENCE)?;
    code.set_label(&mut look)?;
    code.cmp(dword_ptr((OWN + Own::BUSY) as u32), 0)?;
    code.je(there)?;
    code.pause()?;
    code.dec(ecx)?;
    code.jne(look)?;
    code.jmp(again)?;
    code.set_label(&mut there)
}

/// The second CPU's way to long mode: 16-bit code. CR0.PE and CR0.PG are set at once.
fn real(registers: &ControlRegisters) -> Result<Vec<u8>, IcedError> {
    let mut code = CodeAssembler::new(16)?;
    code.cli()?;
    code.xor(ax, ax)?;
    code.mov(ds, eax)?;
    code.mov(ss, eax)?;
    code.mov(sp, (REAL_PAGE + PAGE) as u32)?;
    // The form with a base of 32 bits: 16-bit code takes 24 otherwise.
    let pointer = MemoryOperand::with_displ(REAL_PAGE + REAL_SIZE - 8, 2);
    code.add_instruction(Instruction::with1(Code::Lgdt_m1632, pointer)?)?;
    emit_long_mode(&mut code, registers)?;
    code.add_instruction(Instruction::with1(Code::Pushd_imm32, i32::from(KERNEL_CODE))?)?;
    code.add_instruction(Instruction::with1(Code::Pushd_imm32, HOME as i32)?)?;
    code.add_instruction(Instruction::with(Code::Retfd))?;
    let mut bytes = code.assemble(REAL_PAGE)?;
    assert!(bytes.len() as u64 <= REAL_SIZE - 8, "there is room");
    bytes.resize(REAL_SIZE as usize - 8, 0);
    bytes.extend(GDT_LIMIT.to_le_bytes());
    bytes.extend(((OWN + Own::GDT) as u32).to_le_bytes());
    Ok(bytes)
}

/// The second CPU between two programs: it waits for the next one.
fn home(registers: &ControlRegisters) -> Result<Vec<u8>, IcedError> {
    let mut code = CodeAssembler::new(64)?;
    let [mut wait, mut go] = [(); 2].map(|()| code.create_label());
    emit_clean_state(&mut code, registers)?;
    code.mov(rbx, OWN)?;
    code.mov(qword_ptr(rbx + Own::BUSY), 0)?;
    code.set_label(&mut wait)?;
    code.cmp(qword_ptr(rbx + Own::BUSY), 0)?;
    code.jne(go)?;
    code.pause()?;
    code.jmp(wait)?;
    code.set_label(&mut go)?;
    code.mov(rax, direct(BOOT[1]).raw())?;
    code.jmp(rax)?;
    code.assemble(HOME)
}

/// The next program finds nothing of the last one in the TLB, nor in the control registers.
fn emit_clean_state(
    code: &mut CodeAssembler,
    registers: &ControlRegisters,
) -> Result<(), IcedError> {
    for cr4_value in [registers.cr4 ^ CR4_PGE, registers.cr4] {
        code.mov(rax, cr4_value)?;
        code.mov(cr4, rax)?;
    }
    code.mov(ecx, EFER)?;
    code.mov(eax, registers.efer as u32)?;
    code.xor(edx, edx)?;
    code.wrmsr()?;
    code.mov(rax, registers.cr0)?;
    code.mov(cr0, rax)
}

/// The word in RAX goes to the port. RBX is the kernel's own page.
fn emit_output(code: &mut CodeAssembler, output: &mut CodeLabel) -> Result<(), IcedError> {
    code.set_label(output)?;
    code.mov(qword_ptr(rbx + Own::WORD), rax)?;
    code.push(rcx)?;
    code.lea(rsi, qword_ptr(rbx + Own::WORD))?;
    code.mov(ecx, 8)?;
    code.mov(edx, OUTPUT)?;
    code.rep().outsb()?;
    code.pop(rcx)?;
    code.ret()
}

/// Puts the next program in its place and begins it, or ends the machine.
fn next() -> Result<Vec<u8>, IcedError> {
    let mut code = CodeAssembler::new(64)?;
    let [mut output, mut done, mut words, mut word, mut piece, mut halt] =
        [(); 6].map(|()| code.create_label());
    code.mov(rbx, OWN)?;
    code.mov(rsp, OWN + Own::STACK)?;
    code.cmp(qword_ptr(rbx + Own::LEFT), 0)?;
    code.je(done)?;
    code.dec(qword_ptr(rbx + Own::LEFT))?;
    code.mov(rax, BEGINS)?;
    code.call(output)?;
    code.mov(rsi, qword_ptr(rbx + Own::NEXT))?;
    code.mov(qword_ptr(rbx + Own::QUIET), rsi)?;
    // The quiet words and the watched ones.
    code.mov(edx, 2)?;
    code.set_label(&mut words)?;
    code.lodsq()?;
    code.mov(rcx, rax)?;
    code.set_label(&mut word)?;
    code.lodsq()?;
    code.mov(rdi, rax)?;
    code.movsq()?;
    code.dec(rcx)?;
    code.jne(word)?;
    code.dec(edx)?;
    code.jne(words)?;
    code.lodsq()?;
    code.mov(rdx, rax)?;
    code.set_label(&mut piece)?;
    code.lodsq()?;
    code.mov(rdi, rax)?;
    code.lodsq()?;
    code.mov(rcx, rax)?;
    code.rep().movsq()?;
    code.dec(rdx)?;
    code.jne(piece)?;
    code.mov(qword_ptr(rbx + Own::NEXT), rsi)?;
    code.mov(qword_ptr(rbx + Own::BUSY), 1)?;
    code.mov(rax, direct(BOOT[0]).raw())?;
    code.jmp(rax)?;

    code.set_label(&mut done)?;
    code.mov(rax, ENDS)?;
    code.call(output)?;
    code.lea(rsi, qword_ptr(rbx + Own::TEXT))?;
    code.mov(ecx, SHUTDOWN.1.len() as u32)?;
    code.mov(edx, SHUTDOWN.0)?;
    code.rep().outsb()?;
    code.mov(eax, 0x10)?;
    code.mov(edx, DEBUG_EXIT)?;
    code.out(dx, eax)?;
    code.set_label(&mut halt)?;
    code.hlt()?;
    code.jmp(halt)?;

    emit_output(&mut code, &mut output)?;
    code.assemble(NEXT)
}

/// A program has ended: its results go to the port, and the words that nobody may have changed. The
/// arena is zero afterwards.
fn back(registers: &ControlRegisters, cpus: usize) -> Result<Vec<u8>, IcedError> {
    let mut code = CodeAssembler::new(64)?;
    let [mut output, mut stray, mut full] = [(); 3].map(|()| code.create_label());
    if cpus > 1 {
        let [mut first, mut wait, mut alone] = [(); 3].map(|()| code.create_label());
        // The number of the CPU, from the stub.
        code.test(r13d, r13d)?;
        code.je(first)?;
        code.mov(rax, HOME)?;
        code.jmp(rax)?;
        code.set_label(&mut first)?;
        code.mov(rbx, OWN)?;
        code.set_label(&mut wait)?;
        code.cmp(qword_ptr(rbx + Own::BUSY), 0)?;
        code.je(alone)?;
        code.pause()?;
        code.jmp(wait)?;
        code.set_label(&mut alone)?;
    }
    code.mov(rbx, OWN)?;
    code.mov(rsp, OWN + Own::STACK)?;
    emit_clean_state(&mut code, registers)?;

    code.mov(rax, RESULT)?;
    code.call(output)?;
    code.mov(rax, STATE + State::RESULT)?;
    code.mov(rcx, qword_ptr(rax))?;
    code.mov(rax, direct(RESULTS).raw())?;
    code.sub(rcx, rax)?;
    // A guest that went astray may have left anything there.
    code.mov(eax, RESULTS_SIZE as u32)?;
    code.cmp(rcx, rax)?;
    code.cmova(rcx, rax)?;
    code.mov(rax, rcx)?;
    code.call(output)?;
    code.mov(rsi, RESULTS)?;
    code.rep().outsb()?;

    code.xor(r12d, r12d)?;
    clear_words(&mut code, stray)?;
    for range in [0..NO_RAM.start, NO_RAM.end..ARENA] {
        clear_range(&mut code, &range, stray)?;
    }
    code.mov(rax, r12)?;
    code.call(output)?;
    code.lea(rsi, qword_ptr(rbx + Own::STRAYS))?;
    code.mov(rcx, r12)?;
    code.shl(rcx, 4)?;
    code.rep().outsb()?;
    code.mov(rax, NEXT)?;
    code.jmp(rax)?;

    // The word at RDI is RAX, and should not be. R12 of them are known.
    code.set_label(&mut stray)?;
    code.cmp(r12, STRAYS as i32)?;
    code.jae(full)?;
    code.mov(r8, r12)?;
    code.shl(r8, 4)?;
    code.mov(qword_ptr(rbx + r8 + Own::STRAYS), rdi)?;
    code.mov(qword_ptr(rbx + r8 + (Own::STRAYS + 8)), rax)?;
    code.inc(r12)?;
    code.set_label(&mut full)?;
    code.ret()?;
    emit_output(&mut code, &mut output)?;
    code.assemble(BACK)
}

/// Compares the program's quiet words with what they were, and clears them and the watched words.
fn clear_words(code: &mut CodeAssembler, stray: CodeLabel) -> Result<(), IcedError> {
    let [mut word, mut same, mut one] = [(); 3].map(|()| code.create_label());
    code.mov(rsi, qword_ptr(rbx + Own::QUIET))?;
    code.lodsq()?;
    code.mov(rcx, rax)?;
    code.set_label(&mut word)?;
    code.lodsq()?;
    code.mov(rdi, rax)?;
    code.lodsq()?;
    code.cmp(rax, qword_ptr(rdi))?;
    code.je(same)?;
    code.mov(rax, qword_ptr(rdi))?;
    code.call(stray)?;
    code.set_label(&mut same)?;
    code.mov(qword_ptr(rdi), 0)?;
    code.dec(rcx)?;
    code.jne(word)?;
    code.mov(rsi, WATCH_LIST)?;
    code.mov(ecx, watched().count() as u32)?;
    code.set_label(&mut one)?;
    code.lodsq()?;
    code.mov(qword_ptr(rax), 0)?;
    code.dec(ecx)?;
    code.jne(one)
}

/// Looks for words of a range that are not zero, and clears them.
fn clear_range(
    code: &mut CodeAssembler,
    range: &Range<u64>,
    stray: CodeLabel,
) -> Result<(), IcedError> {
    let [mut again, mut clear] = [(); 2].map(|()| code.create_label());
    code.mov(rdi, range.start)?;
    code.mov(rcx, (range.end - range.start) / 8)?;
    code.set_label(&mut again)?;
    code.xor(eax, eax)?;
    code.repe().scasq()?;
    code.je(clear)?;
    code.sub(rdi, 8)?;
    code.mov(rax, qword_ptr(rdi))?;
    code.call(stray)?;
    code.mov(qword_ptr(rdi), 0)?;
    code.add(rdi, 8)?;
    code.test(rcx, rcx)?;
    code.jne(again)?;
    code.set_label(&mut clear)
}

/// In the direct map: the program's own registers, and the stub.
fn boot(image: &Image, cpu: usize) -> Result<Vec<u8>, IcedError> {
    let mut code = CodeAssembler::new(64)?;
    code.mov(rax, image.registers.cr3)?;
    code.mov(cr3, rax)?;
    code.mov(rdx, direct(DESCRIPTORS).raw())?;
    code.lgdt(ptr(rdx))?;
    code.lidt(ptr(rdx + 16))?;
    code.mov(eax, u32::from(KERNEL_DATA))?;
    code.mov(ds, eax)?;
    code.mov(es, eax)?;
    code.mov(ss, eax)?;
    code.mov(eax, u32::from(TASK[cpu]))?;
    code.ltr(eax)?;
    code.mov(rax, image.entries[cpu])?;
    code.jmp(rax)?;
    code.assemble(direct(BOOT[cpu]).raw())
}

/// In the direct map, which is the kernel's, too: from the stub to the kernel.
fn leave() -> Result<Vec<u8>, IcedError> {
    let mut code = CodeAssembler::new(64)?;
    code.mov(rax, TABLES)?;
    code.mov(cr3, rax)?;
    code.mov(rax, BACK)?;
    code.jmp(rax)?;
    code.assemble(direct(LEAVE).raw())
}

/// What the kernel has written to the port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// The runs of the first programs. The last one may have ended early.
    pub records: Vec<Record>,
    /// The kernel has gone through all of them.
    pub complete: bool,
}

impl Output {
    /// Reads it. `end` is how the run of a program ended that did not come back.
    pub fn parse(bytes: &[u8], end: &End) -> Output {
        let mut output = Output::default();
        // Before the kernel, the firmware may have had the word.
        let start = bytes.windows(8).position(|window| window == BEGINS.to_le_bytes());
        let mut rest = &bytes[start.unwrap_or(bytes.len())..];
        while let Some((BEGINS, after)) = word(rest) {
            let run = run(after);
            let (record, after) = run.unwrap_or_else(|| {
                let (results, end) = (Vec::new(), end.clone());
                (Record { results, end, harvests: Vec::new(), strays: Vec::new() }, &[])
            });
            output.records.push(record);
            rest = after;
        }
        output.complete = word(rest).is_some_and(|(word, _)| word == ENDS);
        output
    }
}

/// One program's part of the output, and the rest.
fn run(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let (RESULT, rest) = word(bytes)? else { return None };
    let (length, rest) = word(rest)?;
    let (results, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    let (count, mut rest) = word(rest)?;
    let mut strays = Vec::new();
    for _ in 0..count {
        let (gpa, after) = word(rest)?;
        let (value, after) = word(after)?;
        strays.push((gpa, value));
        rest = after;
    }
    let (results, harvests) = (results.to_vec(), Vec::new());
    Some((Record { results, end: End::Complete, harvests, strays }, rest))
}

fn word(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> Vec<Program> {
        (1..3).map(|seed| crate::generate::program(seed, 100)).collect()
    }

    #[test]
    fn the_image_is_a_multiboot_kernel() {
        let file = multiboot(&programs());
        let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        assert_eq!(word(0).wrapping_add(word(4)).wrapping_add(word(8)), 0);
        // From the load address to the end of the data.
        assert_eq!(u64::from(word(20) - word(16)), file.len() as u64);
    }

    #[test]
    fn the_way_to_the_stub_and_back_has_room() {
        let image = image(&programs()[0]);
        for (n, (at, bytes)) in image.stub.iter().enumerate() {
            let end = at + bytes.len().next_multiple_of(8) as u64;
            for (other, _) in image.stub.iter().skip(n + 1) {
                assert!(end <= *other || at > other, "{at:#x} to {end:#x} reaches {other:#x}");
            }
        }
    }

    #[test]
    fn output_is_read_as_far_as_it_goes() {
        let words = |words: &[u64]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        let first = words(&[BEGINS, RESULT, 16, 1, 2, 1, 0x5000, 7]);
        let second = words(&[BEGINS, RESULT, 8, 3, 0]);
        let whole = [&b"SeaBIOS\n"[..], &first, &second, &words(&[ENDS])].concat();
        let record = |results: &[u64], end, strays| Record {
            results: words(results),
            end,
            harvests: Vec::new(),
            strays,
        };
        let records = vec![
            record(&[1, 2], End::Complete, vec![(0x5000, 7)]),
            record(&[3], End::Complete, vec![]),
        ];
        let output = Output::parse(&whole, &End::TripleFault);
        assert_eq!(output, Output { records: records.clone(), complete: true });
        // Within the second program.
        let cut = Output::parse(&whole[..whole.len() - 12], &End::TripleFault);
        assert!(!cut.complete);
        assert_eq!(cut.records, [records[0].clone(), record(&[], End::TripleFault, vec![])]);
        assert_eq!(Output::parse(b"SeaBIOS", &End::Hung), Output::default());
    }
}
