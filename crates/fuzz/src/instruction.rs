//! The emulator of MMIO accesses and table writes: any bytes, any mode, any state.

use std::collections::BTreeMap;

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register,
    RflagsBits,
};
use umbra_emulator::{
    Cpu, DescriptorTable, Error, Exception, Feature, Gpr, Mode, Outcome, Privilege, Rights,
    Segment, SegmentRegister, Simple, SystemCpu, SystemSegment, TableRegister, emulate,
};

use crate::input::Input;

/// Accesses of one call at most: 256 iterations of INS or OUTS, and some room.
const MAX_ACCESSES: usize = 260;

const RF: u64 = 1 << 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Access {
    write: bool,
    gva: u64,
    length: usize,
}

/// A virtual processor, and memory that holds something different everywhere.
#[derive(Clone, Debug)]
struct Machine {
    mode: Mode,
    stack_mode: Mode,
    segments: [SegmentRegister; 6],
    cpl: u8,
    cr0: u64,
    cr4: u64,
    gprs: [u64; 16],
    rip: u64,
    rflags: u64,
    memory: BTreeMap<u64, u8>,
    /// The access of this number fails, counted from zero.
    failing: usize,
    accesses: Vec<Access>,
    /// What was checked: it does not fail any more.
    checked: Vec<Access>,
    /// Segment registers that were loaded, LDTR and TR among them.
    loaded: Vec<SegmentRegister>,
}

impl Machine {
    fn access(&mut self, write: bool, gva: u64, length: usize) -> Result<(), Access> {
        let access = Access { write, gva, length };
        assert!((1..=16).contains(&length), "{access:x?}");
        let last = gva.wrapping_add(length as u64 - 1);
        match self.mode {
            Mode::Bits64 => {
                assert!([gva, last].into_iter().all(is_canonical), "{access:x?} is not canonical");
            }
            Mode::Bits16 | Mode::Bits32 => {
                assert!(gva <= u32::MAX.into(), "{access:x?} is beyond 4 GiB")
            }
        }
        let may_fail = !self.checked.contains(&access);
        if may_fail && self.failing == self.accesses.len() { Err(access) } else { Ok(()) }
    }

    /// An access that is made: it counts, even if it fails.
    fn note(&mut self, write: bool, gva: u64, length: usize) -> Result<(), Access> {
        let verdict = self.access(write, gva, length);
        self.accesses.push(Access { write, gva, length });
        assert!(self.accesses.len() <= MAX_ACCESSES, "unbounded work");
        verdict
    }

    /// The addresses of an access. The one behind the last is 0.
    fn bytes(&self, gva: u64) -> impl Iterator<Item = u64> + use<> {
        let mask = if self.mode == Mode::Bits64 { u64::MAX } else { u32::MAX.into() };
        (0..).map(move |byte| gva.wrapping_add(byte) & mask)
    }

    fn load(&self, gva: u64, buf: &mut [u8]) {
        for (at, byte) in self.bytes(gva).zip(buf) {
            let untouched = (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
            *byte = *self.memory.get(&at).unwrap_or(&untouched);
        }
    }

    /// What an instruction can change, but RIP.
    fn state(&self) -> ([u64; 16], u64, &BTreeMap<u64, u8>) {
        (self.gprs, self.rflags, &self.memory)
    }
}

fn is_canonical(gva: u64) -> bool {
    (gva << 16).cast_signed() >> 16 == gva.cast_signed()
}

impl Cpu for Machine {
    type Fault = Access;

    fn mode(&self) -> Mode {
        self.mode
    }

    fn stack_mode(&self) -> Mode {
        self.stack_mode
    }

    fn gpr(&self, gpr: Gpr) -> u64 {
        self.gprs[gpr as usize]
    }

    fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.gprs[gpr as usize] = value;
    }

    fn rip(&self) -> u64 {
        self.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }

    fn rflags(&self) -> u64 {
        self.rflags
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.rflags = rflags;
    }

    fn segment(&self, segment: Segment) -> SegmentRegister {
        self.segments[segment as usize]
    }

    fn cpl(&self) -> u8 {
        self.cpl
    }

    fn cr0(&self) -> u64 {
        self.cr0
    }

    fn cr4(&self) -> u64 {
        self.cr4
    }

    fn has(&self, _: Feature) -> bool {
        true
    }

    fn check(&mut self, gva: u64, length: usize, write: bool) -> Result<(), Access> {
        self.access(write, gva, length)?;
        self.checked.push(Access { write, gva, length });
        Ok(())
    }

    fn port_read(&mut self, port: u16, size: u8) -> u32 {
        assert!(matches!(size, 1 | 2 | 4) && port == self.gpr(Gpr::Rdx) as u16);
        u32::from(port).wrapping_mul(0x9e37_79b9) >> (32 - 8 * size)
    }

    fn port_write(&mut self, port: u16, size: u8, value: u32) {
        assert!(matches!(size, 1 | 2 | 4) && port == self.gpr(Gpr::Rdx) as u16);
        assert_eq!(u64::from(value) >> (8 * size), 0);
    }

    fn read(&mut self, gva: u64, buf: &mut [u8]) -> Result<(), Access> {
        self.note(false, gva, buf.len())?;
        self.load(gva, buf);
        Ok(())
    }

    fn read_modify(&mut self, gva: u64, buf: &mut [u8]) -> Result<(), Access> {
        self.note(false, gva, buf.len())?;
        self.load(gva, buf);
        Ok(())
    }

    fn write(&mut self, gva: u64, buf: &[u8]) -> Result<(), Access> {
        self.note(true, gva, buf.len())?;
        self.memory.extend(self.bytes(gva).zip(buf.iter().copied()));
        Ok(())
    }
}

impl SystemCpu for Machine {
    fn set_segment(&mut self, _segment: Segment, value: SegmentRegister) {
        self.loaded.push(value);
    }

    fn system_segment(&self, _segment: SystemSegment) -> SegmentRegister {
        SegmentRegister { selector: 0x28, base: 0x5000, limit: 0x67, rights: Rights(0x8b) }
    }

    fn set_system_segment(&mut self, _segment: SystemSegment, value: SegmentRegister) {
        self.loaded.push(value);
    }

    fn descriptor_table(&self, _table: DescriptorTable) -> TableRegister {
        TableRegister { base: 0x1000, limit: 0xffff }
    }

    fn set_descriptor_table(&mut self, _table: DescriptorTable, _value: TableRegister) {}

    fn cr3(&self) -> u64 {
        0
    }

    fn efer(&self) -> u64 {
        if self.mode == Mode::Bits64 { 1 << 10 } else { 0 }
    }

    fn load_machine_status_word(&mut self, _value: u16) -> Result<(), Exception> {
        Ok(())
    }

    fn set_task_switched(&mut self, _set: bool) {}

    fn load_task_cr3(&mut self, _cr3: u32) -> Result<(), Exception> {
        Ok(())
    }

    fn clear_local_breakpoints(&mut self) {}

    fn trap_task_switch(&mut self) {}

    fn invalidate_page(&mut self, _gva: u64) {}

    fn invalidate_pcid(&mut self, _kind: u64, _descriptor: [u8; 16]) -> Result<(), Exception> {
        Ok(())
    }

    fn unblock_nmis(&mut self) {}

    fn block_interrupts(&mut self) {}

    fn read_as(&mut self, _privilege: Privilege, gva: u64, buf: &mut [u8]) -> Result<(), Access> {
        self.access(false, gva, buf.len())?;
        self.load(gva, buf);
        Ok(())
    }

    fn probe_write(
        &mut self,
        _privilege: Privilege,
        gva: u64,
        length: usize,
    ) -> Result<(), Access> {
        self.access(true, gva, length)
    }

    fn write_as(&mut self, _privilege: Privilege, gva: u64, bytes: &[u8]) -> Result<(), Access> {
        self.write(gva, bytes)
    }
}

/// Any value, or one close to an end of something.
fn address(input: &mut Input<'_>) -> u64 {
    let choice = input.u8();
    let ends = [0, 1 << 16, 1 << 31, 1 << 32, 1 << 47, !0 << 47, 0x7000];
    match ends.get(usize::from(choice >> 5)) {
        Some(end) => u64::wrapping_add_signed(*end, i64::from(choice & 31) - 16),
        None => input.u64(),
    }
}

/// Every kind of segment, half of them flat.
fn segment(input: &mut Input<'_>, code: bool) -> SegmentRegister {
    let base = address(input);
    let choice = input.u8();
    if choice & 1 == 0 {
        let rights = Rights(if code { 0xc09b } else { 0xc093 });
        return SegmentRegister {
            selector: 8,
            base: if choice & 2 == 0 { 0 } else { base },
            limit: u32::MAX,
            rights,
        };
    }
    let limit = address(input) as u32;
    let kind = if code { 8 } else { 0 } | u32::from(choice >> 4) & if code { 7 } else { 15 };
    let unusable = if choice & 0b1110 == 0 && !code { Rights::UNUSABLE.0 } else { 0 };
    let rights = Rights(0x90 | kind | u32::from(choice & 8) << 11 | unusable);
    SegmentRegister { selector: 8, base, limit, rights }
}

/// Bytes are the state, then the instruction. It takes effect or not at all, within bounds; what it
/// touched is what iced-x86's tables say of it, and what the short way makes of it; and neither
/// bytes behind it nor a prefix without meaning make a difference.
///
/// # Panics
/// One of that is not so.
pub fn instruction(data: &[u8]) {
    let mut input = Input::new(data);
    let bits = input.u8();
    let mode =
        |bits: u8| [Mode::Bits64, Mode::Bits32, Mode::Bits16, Mode::Bits64][usize::from(bits & 3)];
    let (mode, stack_mode) = (mode(bits), mode(bits >> 2));
    let stack_mode = if mode == Mode::Bits64 { mode } else { stack_mode };
    let failing = if bits >> 7 != 0 { usize::from(bits >> 4 & 7) } else { usize::MAX };
    let code = {
        let length = input.below(18) as usize;
        input.take(length)
    };
    let before = Machine {
        mode,
        stack_mode,
        rflags: input.u64(),
        rip: input.u64() & if mode == Mode::Bits64 { u64::MAX } else { 0xffff_ffff },
        segments: Segment::ALL.map(|name| segment(&mut input, name == Segment::Cs)),
        cpl: bits >> 6 & 1 | bits >> 5 & 2,
        cr4: u64::from(bits & 1 << 6) >> 6,
        cr0: 0x8000_0001 | u64::from(bits & 1 << 5) << 13,
        gprs: std::array::from_fn(|_| address(&mut input)),
        memory: BTreeMap::new(),
        failing,
        accesses: Vec::new(),
        checked: Vec::new(),
        loaded: Vec::new(),
    };
    let mut after = before.clone();
    let verdict = emulate(&mut after, code);
    if is_system(code, &before) {
        // A fault behind the commit point of a task switch is the new task's.
        if verdict.is_err() && after.loaded.is_empty() {
            let registers = |machine: &Machine| (machine.gprs, machine.rip, machine.rflags);
            assert_eq!(registers(&after), registers(&before), "{code:02x?}");
        }
        return;
    }
    match verdict {
        Ok(Outcome::Transferred) => panic!("{code:02x?} is no system instruction"),
        Ok(Outcome::Done) => assert_eq!(after.rflags & RF, 0),
        Ok(Outcome::Continue) => {
            assert_eq!((after.rip, after.rflags & RF), (before.rip, RF));
        }
        Err(error) => {
            assert_eq!((after.rip, after.rflags), (before.rip, before.rflags));
            if after.state() != before.state() {
                // Iterations of a repeated string instruction are finished.
                assert!(matches!(error, Error::Fault(_) | Error::Exception(_)));
                assert!(code.iter().any(|byte| matches!(byte, 0xf2 | 0xf3)), "half an instruction");
            }
        }
    }
    if !matches!(verdict, Err(Error::Unsupported | Error::Truncated)) {
        judge_segments(code, &before, &after, verdict);
    }
    if verdict == Ok(Outcome::Done) {
        compare_with_tables(code, &before, &after);
        compare_with_short_way(code, &before, &after);
    }
    what_makes_no_difference(code, &before, verdict, &after);
}

/// Whether the instruction works on segments, descriptor tables, events or tasks: what the tables
/// say of it depends on descriptors.
fn is_system(code: &[u8], machine: &Machine) -> bool {
    use Mnemonic as M;
    let instruction = decode(code, machine);
    let names_segment = (0..instruction.op_count())
        .any(|operand| instruction.op_register(operand).is_segment_register());
    names_segment
        || instruction.is_call_far()
        || instruction.is_call_far_indirect()
        || instruction.is_jmp_far()
        || instruction.is_jmp_far_indirect()
        || matches!(
            instruction.mnemonic(),
            M::Lds
                | M::Les
                | M::Lfs
                | M::Lgs
                | M::Lss
                | M::Sgdt
                | M::Sidt
                | M::Lgdt
                | M::Lidt
                | M::Sldt
                | M::Str
                | M::Lldt
                | M::Ltr
                | M::Smsw
                | M::Lmsw
                | M::Clts
                | M::Invlpg
                | M::Verr
                | M::Verw
                | M::Lar
                | M::Lsl
                | M::Arpl
                | M::Retf
                | M::Iret
                | M::Iretd
                | M::Iretq
                | M::Int
                | M::Int3
                | M::Int1
                | M::Into
        )
}

fn bitness(machine: &Machine) -> u32 {
    match machine.mode {
        Mode::Bits16 => 16,
        Mode::Bits32 => 32,
        Mode::Bits64 => 64,
    }
}

fn decode(code: &[u8], machine: &Machine) -> Instruction {
    let code = &code[..code.len().min(15)];
    Decoder::with_ip(bitness(machine), code, machine.rip, DecoderOptions::NONE).decode()
}

/// What iced-x86's tables say of the instruction.
fn compare_with_tables(code: &[u8], before: &Machine, after: &Machine) {
    let instruction = decode(code, before);
    let what = instruction.code();
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&instruction);
    if !matches!(instruction.mnemonic(), Mnemonic::Call | Mnemonic::Jmp | Mnemonic::Ret) {
        // Sequential IP has 32 bits in 16-bit code, too.
        let mask = if before.mode == Mode::Bits64 { u64::MAX } else { 0xffff_ffff };
        assert_eq!(after.rip, instruction.next_ip() & mask, "{what:?}");
    }
    for gpr in Gpr::ALL {
        let written = info.used_registers().iter().any(|used| {
            is_written(used.access())
                && used.register().is_gpr()
                && number(used.register()) == gpr as usize
        });
        assert!(
            written || after.gpr(gpr) == before.gpr(gpr),
            "{what:?} has changed {gpr:?} from {:#x} to {:#x}",
            before.gpr(gpr),
            after.gpr(gpr)
        );
    }
    let changed = (before.rflags ^ after.rflags) & !RF;
    // A rotation through CF by more than 1 leaves OF undefined (SDM, "RCL/RCR/ROL/ROR"), by 9 or
    // 17, too, which iced-x86 takes for none.
    let undefined =
        if matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr) { 1 << 11 } else { 0 };
    // POPF changes flags that iced-x86 does not name.
    let popped =
        matches!(instruction.mnemonic(), Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq);
    let changed = if popped { 0 } else { changed & !undefined };
    assert_eq!(
        changed & !rflags(instruction.rflags_modified()),
        0,
        "{what:?} has changed {changed:#x}"
    );

    if !tells_places(&instruction, before) {
        return;
    }
    for access in &after.accesses {
        let named = info.used_memory().iter().any(|used| {
            let gva = used.virtual_address(0, |register, _, _| value(register, before));
            let gva =
                gva.map(|gva| if before.mode == Mode::Bits64 { gva } else { gva & 0xffff_ffff });
            let right = if access.write { is_written(used.access()) } else { true };
            gva == Some(access.gva) && used.memory_size().size() == access.length && right
        });
        assert!(named, "{what:?} makes {access:x?}, and should {:x?}", info.used_memory());
    }
}

/// Whether iced-x86 says where the accesses of the instruction are.
fn tells_places(instruction: &Instruction, machine: &Machine) -> bool {
    let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    // A bit's number moves the access, and iced-x86 does not follow it; it takes the stack to be as
    // wide as the code.
    let bit_test = matches!(
        instruction.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    );
    let foreign_stack = instruction.is_stack_instruction() && machine.mode != machine.stack_mode;
    // It takes the two bounds of BOUND for one operand, and does not know that of a pushed selector
    // nothing but 16 bits are written. Its places for ENTER are those of a stack without wrap.
    let by_parts = matches!(instruction.mnemonic(), Mnemonic::Bound | Mnemonic::Enter);
    let selector = instruction.mnemonic() == Mnemonic::Push
        && instruction.op0_register().is_segment_register();
    !(by_parts
        || selector
        || bit_test
        || foreign_stack
        || instruction.is_string_instruction() && repeated)
}

/// Segments let through what is done, and #SS is about one that does not; judged byte by byte, of
/// the operands as iced-x86's tables name them.
fn judge_segments(
    code: &[u8],
    before: &Machine,
    after: &Machine,
    verdict: Result<Outcome, Error<Access>>,
) {
    let instruction = decode(code, before);
    if before.mode == Mode::Bits64
        || instruction.is_invalid()
        || !tells_places(&instruction, before)
    {
        return;
    }
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&instruction);
    let refuses = |used: &&iced_x86::UsedMemory| {
        let offset = used.virtual_address(0, |register, _, _| {
            if register.is_segment_register() { Some(0) } else { value(register, before) }
        });
        let segment = before.segments[used.segment().number()];
        let size = used.memory_size().size() as u64;
        !matches!(used.access(), OpAccess::None | OpAccess::NoMemAccess)
            && !(0..size).all(|byte| {
                lets_through(segment, offset.unwrap() + byte, is_written(used.access()))
            })
            && size != 0
    };
    let mut refused = info.used_memory().iter().filter(refuses);
    match verdict {
        Ok(_) => assert_eq!(refused.next(), None, "{:?} {:x?}", instruction.code(), after.accesses),
        Err(Error::Exception(Exception::STACK_FAULT)) => {
            assert!(refused.any(|used| used.segment() == Register::SS), "{:?}", instruction.code());
        }
        Err(_) => (),
    }
}

/// Whether a segment lets a byte through (SDM volume 3, "Limit Checking" and "Type Checking").
fn lets_through(segment: SegmentRegister, offset: u64, write: bool) -> bool {
    let SegmentRegister { base, limit, rights: Rights(rights), .. } = segment;
    let limit = u64::from(limit);
    let flat = base == 0 && limit == 0xffff_ffff;
    let top = if rights & 1 << 14 != 0 { 0xffff_ffff } else { 0xffff };
    let by_type = match (rights & 0b1000 != 0, rights & 0b0010 != 0) {
        (true, readable) => readable && !write,
        (false, writable) => writable || !write,
    };
    let by_limit = match rights & 0b1100 {
        0b0100 => (limit + 1..=top).contains(&offset),
        _ => offset <= limit || flat,
    };
    by_type && by_limit && rights & 1 << 16 == 0
}

/// The short way, which only some instructions of 64-bit mode have.
fn compare_with_short_way(code: &[u8], before: &Machine, after: &Machine) {
    let Some(simple) = Simple::decode(code, before.rip).filter(|_| before.mode == Mode::Bits64)
    else {
        return;
    };
    let gpr = |gpr| before.gpr(gpr);
    let gva = simple.address(gpr);
    assert!(
        after.accesses.iter().all(|access| (access.gva, access.length) == (gva, simple.width()))
    );
    assert_eq!(after.accesses.iter().any(|access| access.write), simple.writes());
    let mut old = [0; 8];
    before.load(gva, &mut old[..simple.width()]);
    let effect = simple.effect(u64::from_le_bytes(old), before.rflags, gpr);
    let mut short = Machine { rip: simple.next_rip(), rflags: effect.rflags, ..before.clone() };
    if let Some((gpr, value)) = effect.register {
        short.set_gpr(gpr, value);
    }
    if simple.writes() {
        short.memory.extend(short.bytes(gva).zip(effect.memory.to_le_bytes()).take(simple.width()));
    }
    assert_eq!((short.rip, short.state()), (after.rip, after.state()), "{code:02x?}");
}

fn is_written(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

fn number(register: Register) -> usize {
    register.full_register().number()
}

/// The value of a register for an address.
fn value(register: Register, machine: &Machine) -> Option<u64> {
    let segments =
        [Register::ES, Register::CS, Register::SS, Register::DS, Register::FS, Register::GS];
    if let Some(segment) = segments.iter().position(|&segment| segment == register) {
        let flat = machine.mode == Mode::Bits64 && segment < 4;
        return Some(if flat { 0 } else { machine.segments[segment].base });
    }
    if !register.is_gpr() {
        return None;
    }
    let value = machine.gprs[number(register)];
    Some(match register.size() {
        8 => value,
        4 => value & 0xffff_ffff,
        2 => value & 0xffff,
        // AL, the index of XLAT.
        _ => value & 0xff,
    })
}

/// The bits of RFLAGS that iced-x86 means.
fn rflags(bits: u32) -> u64 {
    let pairs = [
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::AF, 4),
        (RflagsBits::ZF, 6),
        (RflagsBits::SF, 7),
        (RflagsBits::OF, 11),
    ];
    pairs.iter().filter(|(flag, _)| bits & flag != 0).map(|(_, place)| 1 << place).sum()
}

fn what_makes_no_difference(
    code: &[u8],
    before: &Machine,
    verdict: Result<Outcome, Error<Access>>,
    after: &Machine,
) {
    let again = |code: &[u8], rip: u64| {
        let mut machine = Machine { rip, ..before.clone() };
        (emulate(&mut machine, code), machine)
    };
    if verdict == Ok(Outcome::Done) {
        let bare = &code[..decode(code, before).len()];
        let padded: Vec<u8> = bare.iter().copied().chain([0xf2; 15]).collect();
        for code in [bare, &padded] {
            let (other, machine) = again(code, before.rip);
            assert_eq!((other, machine.state()), (verdict, after.state()), "{code:02x?}");
        }
    }
    // A DS prefix means nothing in 64-bit mode. RIP is moved, so that the instruction ends where it
    // did.
    let plain = !matches!(verdict, Err(Error::Exception(_) | Error::Truncated));
    if before.mode == Mode::Bits64 && plain && code.len() < 15 {
        let prefixed: Vec<u8> = [0x3e].iter().chain(code).copied().collect();
        let (other, machine) = again(&prefixed, before.rip.wrapping_sub(1));
        // One that is not decoded to its end (as vector instructions are not) may have become too
        // long.
        let too_long = prefixed.len() == 15 && verdict == Err(Error::Unsupported);
        let expected = if too_long && other == Err(Error::Exception(Exception::GENERAL_PROTECTION))
        {
            other
        } else {
            verdict
        };
        assert_eq!((other, machine.state()), (expected, after.state()), "{prefixed:02x?}");
        if verdict == Ok(Outcome::Done) {
            assert_eq!(machine.rip, after.rip, "{prefixed:02x?}");
        }
    }
}
