//! The guest's only code: it carries out one step after the other, and writes down what it saw.
//!
//! Each access starts by an IRETQ into two instructions, the access and `int 0x40`; it ends by that
//! interrupt, or by the exception that the access raises. Every vector leads to one handler. It
//! writes the vector, error code, RAX, CR2 and RIP, then the watched words that have changed, and
//! takes the next command.
//!
//! Two virtual CPUs take turns: each command names one. The other one spins until a command is its
//! own. It reads the stub's memory alone meanwhile, so of the arena it needs only the tables of the
//! direct map. R13 holds the number of the CPU and R14 its stack, as no access changes them.

use std::fmt;

use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, al, ax, byte_ptr, cr0, cr2, cr3, cr4, dword_ptr, dx, eax, ecx, edx,
    qword_ptr, r13d, r14, r15, rax, rbp, rbx, rcx, rdi, rsi, rsp, word_ptr,
};

use crate::layout::{
    CODE, CPUS, EVENT_STACK, GDT, IDT, STACK, STATE, State, TSS, USER, WATCH_COPY, WATCH_LIST,
    direct, watched,
};

/// The interrupt by which an access that took place ends.
pub const DONE: u8 = 0x40;
/// The breakpoint exception: executed code ends by it.
pub const BREAKPOINT: u8 = 3;
/// The invalid-opcode exception.
pub const INVALID_OPCODE: u8 = 6;
/// The page fault.
pub const PAGE_FAULT: u8 = 14;
/// What stands for the vector after a step that is no access.
pub const NO_VECTOR: u8 = 0xff;

/// The port by which the stub calls the host: a step of the host's is due, or the program has
/// ended ([`PORT_END`] stands in EAX).
pub const PORT: u16 = 0x4d0;
/// See [`PORT`].
pub const PORT_END: u32 = u32::MAX;

/// Selector of the ring-0 code segment.
pub const KERNEL_CODE: u16 = 0x08;
/// Selector of the ring-0 data segment.
pub const KERNEL_DATA: u16 = 0x10;
const USER_DATA: u16 = 0x18 | 3;
const USER_CODE: u16 = 0x20 | 3;
/// Selector of the task-state segment, by virtual CPU.
pub const TASK: [u16; CPUS] = [0x28, 0x38];
/// The last byte of the global descriptor table.
pub const GDT_LIMIT: u16 = 0x47;
/// The last byte of the interrupt descriptor table.
pub const IDT_LIMIT: u16 = (DONE as u16 + 1) * 16 - 1;
/// The last byte of the task-state segment.
pub const TSS_LIMIT: u16 = 0x67;

/// RFLAGS: the bit that is always set, and AC.
const RFLAGS: u64 = 1 << 1;
const RFLAGS_AC: u64 = 1 << 18;

/// Words of a command.
const WORDS: usize = 6;

/// One command of the stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command(pub [u64; WORDS]);

#[derive(Clone, Copy)]
enum Op {
    End,
    Access,
    Invlpg,
    Cr0,
    Cr3,
    Cr4,
    Efer,
    Host,
}

impl Command {
    /// The program has ended.
    pub const END: Command = Command::plain(Op::End, 0, 0);
    /// The host has something to do.
    pub const HOST: Command = Command::plain(Op::Host, 0, 0);

    /// The same, for this virtual CPU.
    pub const fn on(mut self, cpu: usize) -> Command {
        self.0[0] |= (cpu as u64) << 32;
        self
    }

    const fn plain(op: Op, first: u64, second: u64) -> Command {
        Command([op as u64, 0, first, second, 0, 0])
    }

    /// INVLPG.
    pub const fn invlpg(gva: u64) -> Command {
        Command::plain(Op::Invlpg, gva, 0)
    }

    /// CR0 becomes this.
    pub const fn cr0(value: u64) -> Command {
        Command::plain(Op::Cr0, value, 0)
    }

    /// CR3 becomes this.
    pub const fn cr3(value: u64) -> Command {
        Command::plain(Op::Cr3, value, 0)
    }

    /// CR4 becomes the first value, then the second.
    pub const fn cr4(first: u64, second: u64) -> Command {
        Command::plain(Op::Cr4, first, second)
    }

    /// EFER becomes this.
    pub const fn efer(value: u64) -> Command {
        Command::plain(Op::Efer, value, 0)
    }
}

/// The snippets of one kind: for 1, 2, 4 and 8 bytes.
type Snippets = [u64; 4];

/// The assembled stub.
pub struct Stub {
    /// Bytes by guest-physical address.
    pub pieces: Vec<(u64, Vec<u8>)>,
    /// Its first instruction, by virtual CPU.
    pub entries: [u64; CPUS],
    /// Reads in ring 0 and in ring 3.
    reads: [Snippets; 2],
    /// Writes likewise.
    writes: [Snippets; 2],
}

impl fmt::Debug for Stub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stub")
            .field("entries", &format_args!("{:#x?}", self.entries))
            .finish_non_exhaustive()
    }
}

impl Stub {
    /// Assembles it.
    ///
    /// # Panics
    /// Never: the code is always the same.
    pub fn assemble() -> Stub {
        Stub::try_assemble().expect("the stub is the same in every program")
    }

    fn try_assemble() -> Result<Stub, iced_x86::IcedError> {
        let kernel = kernel()?;
        let (user, user_bytes) = snippets(direct(USER).raw())?;
        let pieces = vec![
            (CODE, kernel.bytes),
            (USER, user_bytes),
            (GDT, gdt()),
            (TSS[0], tss(0)),
            (TSS[1], tss(1)),
            (IDT, idt(&kernel.vectors)),
        ];
        Ok(Stub {
            pieces,
            entries: kernel.entries,
            reads: [kernel.snippets[0], user[0]],
            writes: [kernel.snippets[1], user[1]],
        })
    }

    fn access(rip: u64, gva: u64, value: u64, user: bool, ac: bool) -> Command {
        let rflags = RFLAGS | if ac { RFLAGS_AC } else { 0 };
        Command([Op::Access as u64, rip, gva, value, rflags, u64::from(user)])
    }

    /// A read of `size` bytes.
    pub fn read(&self, gva: u64, size: u8, user: bool, ac: bool) -> Command {
        Stub::access(self.read_rip(size, user), gva, 0, user, ac)
    }

    /// A write of `size` bytes.
    pub fn write(&self, gva: u64, size: u8, user: bool, ac: bool, value: u64) -> Command {
        Stub::access(self.write_rip(size, user), gva, value, user, ac)
    }

    /// A jump.
    pub fn fetch(&self, gva: u64, user: bool) -> Command {
        Stub::access(gva, 0, 0, user, false)
    }

    /// Where the instruction stands that reads.
    pub fn read_rip(&self, size: u8, user: bool) -> u64 {
        self.reads[usize::from(user)][size.trailing_zeros() as usize % 4]
    }

    /// Where the instruction stands that writes.
    pub fn write_rip(&self, size: u8, user: bool) -> u64 {
        self.writes[usize::from(user)][size.trailing_zeros() as usize % 4]
    }
}

/// The reads and the writes, assembled for an address.
fn snippets(at: u64) -> Result<([Snippets; 2], Vec<u8>), iced_x86::IcedError> {
    let mut code = CodeAssembler::new(64)?;
    let labels = emit_snippets(&mut code)?;
    let result = code.assemble_options(at, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let mut ips = [[0; 4]; 2];
    for (ips, labels) in ips.iter_mut().zip(&labels) {
        for (ip, label) in ips.iter_mut().zip(labels) {
            *ip = result.label_ip(label)?;
        }
    }
    Ok((ips, result.inner.code_buffer))
}

fn emit_snippets(code: &mut CodeAssembler) -> Result<[Vec<CodeLabel>; 2], iced_x86::IcedError> {
    let mut labels = [Vec::new(), Vec::new()];
    for (kind, labels) in labels.iter_mut().enumerate() {
        for size in 0..4 {
            let mut label = code.create_label();
            code.set_label(&mut label)?;
            match (kind, size) {
                (0, 0) => code.movzx(eax, byte_ptr(rdi))?,
                (0, 1) => code.movzx(eax, word_ptr(rdi))?,
                (0, 2) => code.mov(eax, dword_ptr(rdi))?,
                (0, _) => code.mov(rax, qword_ptr(rdi))?,
                (_, 0) => code.mov(byte_ptr(rdi), al)?,
                (_, 1) => code.mov(word_ptr(rdi), ax)?,
                (_, 2) => code.mov(dword_ptr(rdi), eax)?,
                (_, _) => code.mov(qword_ptr(rdi), rax)?,
            }
            code.int(i32::from(DONE))?;
            labels.push(label);
        }
    }
    Ok(labels)
}

struct Kernel {
    bytes: Vec<u8>,
    entries: [u64; CPUS],
    vectors: Vec<u64>,
    snippets: [Snippets; 2],
}

/// Exceptions that push an error code (SDM, "Protected-Mode Exceptions and Interrupts").
fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

fn kernel() -> Result<Kernel, iced_x86::IcedError> {
    let mut code = CodeAssembler::new(64)?;
    let snippet_labels = emit_snippets(&mut code)?;
    let mut handler = code.create_label();
    let mut vector_labels = Vec::new();
    for vector in 0..=DONE {
        let mut label = code.create_label();
        code.set_label(&mut label)?;
        if !has_error_code(vector) {
            code.push(0i32)?;
        }
        code.push(i32::from(vector))?;
        code.jmp(handler)?;
        vector_labels.push(label);
    }
    let [mut record, mut plain, mut next] = [(); 3].map(|()| code.create_label());

    // An access has ended. On the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
    code.set_label(&mut handler)?;
    code.push(rax)?;
    code.mov(r15, direct(STATE).raw())?;
    code.mov(rsi, qword_ptr(r15 + State::RESULT))?;
    code.mov(rax, qword_ptr(rsp + 8))?;
    code.mov(rcx, qword_ptr(rsp + 16))?;
    code.shl(rcx, 32u32)?;
    code.shl(rax, 16u32)?;
    code.or(rax, rcx)?;
    code.or(rax, qword_ptr(r15 + State::STEP))?;
    code.mov(qword_ptr(rsi), rax)?;
    code.pop(rax)?;
    code.mov(qword_ptr(rsi + 8), rax)?;
    code.mov(rax, cr2)?;
    code.mov(qword_ptr(rsi + 16), rax)?;
    code.mov(rax, qword_ptr(rsp + 16))?;
    code.mov(qword_ptr(rsi + 24), rax)?;
    code.jmp(record)?;

    // A step that is no access has ended.
    code.set_label(&mut plain)?;
    code.mov(r15, direct(STATE).raw())?;
    code.mov(rsi, qword_ptr(r15 + State::RESULT))?;
    code.mov(rax, u64::from(NO_VECTOR) << 16)?;
    code.or(rax, qword_ptr(r15 + State::STEP))?;
    code.mov(qword_ptr(rsi), rax)?;

    emit_record(&mut code, &mut record)?;
    emit_commands(&mut code, &mut next, plain)?;
    let mut entry_labels = Vec::new();
    for (cpu, stack) in (0u32..).zip(STACK) {
        let mut label = code.create_label();
        code.set_label(&mut label)?;
        code.mov(r13d, cpu)?;
        code.mov(r14, direct(stack).raw())?;
        code.jmp(next)?;
        entry_labels.push(label);
    }

    let result = code.assemble_options(
        direct(CODE).raw(),
        BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS,
    )?;
    let mut snippets = [[0; 4]; 2];
    for (ips, labels) in snippets.iter_mut().zip(&snippet_labels) {
        for (ip, label) in ips.iter_mut().zip(labels) {
            *ip = result.label_ip(label)?;
        }
    }
    let vectors =
        vector_labels.iter().map(|label| result.label_ip(label)).collect::<Result<_, _>>()?;
    let mut entries = [0; CPUS];
    for (entry, label) in entries.iter_mut().zip(&entry_labels) {
        *entry = result.label_ip(label)?;
    }
    Ok(Kernel { entries, vectors, snippets, bytes: result.inner.code_buffer })
}

/// Writes down which watched words have changed; RSI is the result. Then falls into the commands.
fn emit_record(
    code: &mut CodeAssembler,
    record: &mut CodeLabel,
) -> Result<(), iced_x86::IcedError> {
    let [mut word, mut same] = [(); 2].map(|()| code.create_label());
    code.set_label(record)?;
    code.lea(rdi, qword_ptr(rsi + 32))?;
    code.mov(rbx, direct(WATCH_LIST).raw())?;
    code.mov(rbp, direct(WATCH_COPY).raw())?;
    code.xor(ecx, ecx)?;
    code.set_label(&mut word)?;
    code.mov(rax, qword_ptr(rbx + rcx * 8))?;
    code.mov(rax, qword_ptr(rax))?;
    code.cmp(rax, qword_ptr(rbp + rcx * 8))?;
    code.je(same)?;
    code.mov(qword_ptr(rbp + rcx * 8), rax)?;
    code.mov(qword_ptr(rdi), rcx)?;
    code.mov(qword_ptr(rdi + 8), rax)?;
    code.add(rdi, 16i32)?;
    code.set_label(&mut same)?;
    code.inc(ecx)?;
    code.cmp(ecx, watched().count() as i32)?;
    code.jne(word)?;
    code.mov(rax, rdi)?;
    code.sub(rax, rsi)?;
    code.sub(rax, 32i32)?;
    code.shr(rax, 4u32)?;
    code.mov(byte_ptr(rsi + 3), al)?;
    code.mov(qword_ptr(r15 + State::RESULT), rdi)?;
    code.inc(qword_ptr(r15 + State::STEP))?;
    // The other CPU may go on from here, so it comes last (SDM, "Memory Ordering").
    code.add(qword_ptr(r15 + State::COMMAND), WORDS as i32 * 8)
}

/// Takes the next command and carries it out.
fn emit_commands(
    code: &mut CodeAssembler,
    next: &mut CodeLabel,
    plain: CodeLabel,
) -> Result<(), iced_x86::IcedError> {
    let mut labels: Vec<CodeLabel> = (0..8).map(|_| code.create_label()).collect();
    let [mut look, mut own] = [(); 2].map(|()| code.create_label());
    code.set_label(next)?;
    code.mov(r15, direct(STATE).raw())?;
    code.mov(rsp, r14)?;
    code.set_label(&mut look)?;
    code.mov(rbx, qword_ptr(r15 + State::COMMAND))?;
    code.cmp(dword_ptr(rbx + 4), r13d)?;
    code.je(own)?;
    code.pause()?;
    code.jmp(look)?;
    code.set_label(&mut own)?;
    code.mov(ecx, dword_ptr(rbx))?;
    code.mov(rdi, qword_ptr(rbx + 16))?;
    code.mov(rax, qword_ptr(rbx + 24))?;
    for (op, label) in labels.iter().enumerate() {
        code.cmp(ecx, op as i32)?;
        code.je(*label)?;
    }
    code.ud2()?;

    code.set_label(&mut labels[Op::Access as usize])?;
    // The frame of IRETQ: SS, RSP, RFLAGS, CS, RIP.
    let [mut user, mut framed] = [(); 2].map(|()| code.create_label());
    code.cmp(qword_ptr(rbx + 40), 0i32)?;
    code.jne(user)?;
    for (ss, cs) in [(KERNEL_DATA, KERNEL_CODE), (USER_DATA, USER_CODE)] {
        code.push(i32::from(ss))?;
        code.push(rsp)?;
        code.push(qword_ptr(rbx + 32))?;
        code.push(i32::from(cs))?;
        code.jmp(framed)?;
        if ss == KERNEL_DATA {
            code.set_label(&mut user)?;
        }
    }
    code.set_label(&mut framed)?;
    code.push(qword_ptr(rbx + 8))?;
    code.iretq()?;

    code.set_label(&mut labels[Op::Invlpg as usize])?;
    code.invlpg(byte_ptr(rdi))?;
    code.jmp(plain)?;
    code.set_label(&mut labels[Op::Cr0 as usize])?;
    code.mov(cr0, rdi)?;
    code.jmp(plain)?;
    code.set_label(&mut labels[Op::Cr3 as usize])?;
    code.mov(cr3, rdi)?;
    code.jmp(plain)?;
    code.set_label(&mut labels[Op::Cr4 as usize])?;
    code.mov(cr4, rdi)?;
    code.mov(cr4, rax)?;
    code.jmp(plain)?;
    code.set_label(&mut labels[Op::Efer as usize])?;
    code.mov(ecx, 0xc000_0080u32)?;
    code.mov(eax, iced_x86::code_asm::edi)?;
    code.xor(edx, edx)?;
    code.wrmsr()?;
    code.jmp(plain)?;

    code.set_label(&mut labels[Op::Host as usize])?;
    code.mov(eax, dword_ptr(r15 + State::STEP))?;
    code.mov(dx, u32::from(PORT))?;
    code.out(dx, eax)?;
    code.jmp(plain)?;

    code.set_label(&mut labels[Op::End as usize])?;
    let [mut leave, mut end] = [(); 2].map(|()| code.create_label());
    code.cmp(qword_ptr(r15 + State::LEAVE), 0i32)?;
    code.jne(leave)?;
    code.set_label(&mut end)?;
    code.mov(eax, PORT_END)?;
    code.mov(dx, u32::from(PORT))?;
    code.out(dx, eax)?;
    code.jmp(end)?;
    code.set_label(&mut leave)?;
    code.add(qword_ptr(r15 + State::COMMAND), WORDS as i32 * 8)?;
    code.jmp(qword_ptr(r15 + State::LEAVE))
}

/// Flat segments, and the task-state segments.
pub(crate) fn gdt() -> Vec<u8> {
    let flat = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
    ];
    let tasks = TSS.map(|tss| {
        let tss = direct(tss).raw();
        let low = (tss & 0xff_ffff) << 16 | (tss >> 24 & 0xff) << 56;
        [u64::from(TSS_LIMIT) | 0x89 << 40 | low, tss >> 32]
    });
    flat.into_iter().chain(tasks.into_iter().flatten()).flat_map(u64::to_le_bytes).collect()
}

/// The stack of interrupts from ring 3, and the first of the interrupt stack table.
fn tss(cpu: usize) -> Vec<u8> {
    let mut tss = vec![0; usize::from(TSS_LIMIT) + 1];
    for at in [4, 0x24] {
        tss[at..at + 8].copy_from_slice(&direct(EVENT_STACK[cpu]).raw().to_le_bytes());
    }
    tss
}

/// Interrupt gates on the first stack of the interrupt stack table, those of the two interrupts
/// open to ring 3.
fn idt(vectors: &[u64]) -> Vec<u8> {
    let gate = |(vector, &at): (usize, &u64)| {
        let open = [BREAKPOINT, DONE].map(usize::from).contains(&vector);
        let dpl = if open { 3 } else { 0 };
        let low = at & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | 1 << 32
            | (0x8e | dpl << 5) << 40
            | (at >> 16 & 0xffff) << 48;
        [low, at >> 32]
    };
    vectors.iter().enumerate().flat_map(gate).flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_room() {
        let stub = Stub::assemble();
        for (n, (at, bytes)) in stub.pieces.iter().enumerate() {
            let end = at + bytes.len() as u64;
            for (other, _) in stub.pieces.iter().skip(n + 1) {
                assert!(end <= *other || at > other, "{at:#x} to {end:#x} reaches {other:#x}");
            }
        }
        assert_eq!(gdt().len(), usize::from(GDT_LIMIT) + 1);
    }

    #[test]
    fn a_snippet_is_an_access_and_the_interrupt() {
        let stub = Stub::assemble();
        let (_, code) = &stub.pieces[0];
        for size in [1, 2, 4, 8] {
            for rip in [stub.read_rip(size, false), stub.write_rip(size, false)] {
                let at = (rip - direct(CODE).raw()) as usize;
                let mut decoder = iced_decoder(&code[at..], rip);
                assert!(decoder().contains("[rdi]"));
                assert!(decoder().starts_with("int"));
            }
        }
    }

    /// The next bytes in words, as far as this test needs them.
    fn iced_decoder(bytes: &[u8], _: u64) -> impl FnMut() -> &'static str {
        let mut rest = bytes;
        move || {
            // Prefix 0x66 or REX.W, escape 0x0f; then the opcode.
            let prefixes =
                rest.iter().take_while(|byte| matches!(byte, 0x66 | 0x48 | 0x0f)).count();
            let opcode = rest[prefixes];
            let (length, text) = match opcode {
                0xcd => (2, "int 0x40"),
                _ => {
                    // ModRM: no displacement, RDI.
                    assert_eq!(rest[prefixes + 1] & 0xc7, 7);
                    (prefixes + 2, "mov [rdi]")
                }
            };
            rest = &rest[length..];
            text
        }
    }
}
