//! The table, made from iced-x86's.

use iced_x86::{
    Code, ConstantOffsets, CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, Formatter,
    Instruction, InstructionInfoFactory, IntelFormatter, MemorySize, Mnemonic, OpAccess,
    OpCodeInfo, OpCodeOperandKind as Operand, OpKind, Register, RflagsBits,
};

use crate::{Contents, DISPLACEMENT, Form, LANDING, Mode, ORIGIN, Registers, Role};

/// A form, and which instruction it is.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The form.
    pub form: Form,
    /// The instruction in iced-x86's table.
    pub code: Code,
}

impl Entry {
    /// The instruction in words.
    pub fn text(&self) -> String {
        let bits = bits(self.form.mode);
        let mut decoder = Decoder::with_ip(bits, self.form.bytes(), ORIGIN, DecoderOptions::NONE);
        let mut text = String::new();
        IntelFormatter::new().format(&decoder.decode(), &mut text);
        match self.form.role {
            Role::Push | Role::Pop | Role::Frame => text + " (on the stack)",
            _ => text,
        }
    }

    /// The extensions that it belongs to.
    pub fn features(&self) -> &'static [CpuidFeature] {
        self.code.cpuid_features()
    }

    /// Whether it works on x87 or vector registers, or came with an extension that has its own bit
    /// in CPUID.
    pub fn is_extension(&self) -> bool {
        use CpuidFeature::*;
        let basic = [INTEL8086, INTEL186, INTEL286, INTEL386, INTEL486, X64];
        self.features().iter().all(|feature| !basic.contains(feature))
    }

    /// The instruction's name.
    pub fn mnemonic(&self) -> Mnemonic {
        self.code.mnemonic()
    }
}

/// Bits of a mode of code.
pub fn bits(mode: Mode) -> u32 {
    match mode {
        Mode::Bits16 => 16,
        Mode::Bits32 => 32,
        Mode::Bits64 => 64,
    }
}

/// Extensions that a CPU model here may show. Of others no form is made: what they do where they
/// are not shown is
/// #UD or nothing, and takes no operand.
const FEATURES: &[CpuidFeature] = {
    use CpuidFeature::*;
    &[
        INTEL8086,
        INTEL186,
        INTEL286,
        INTEL386,
        INTEL486,
        X64,
        ADX,
        AES,
        AVX,
        AVX2,
        BMI1,
        BMI2,
        CLFLUSHOPT,
        CLFSH,
        CLWB,
        CMOV,
        CMPXCHG16B,
        CX8,
        F16C,
        FMA,
        FPU,
        FPU287,
        FPU387,
        FXSR,
        INVEPT,
        INVPCID,
        INVVPID,
        LZCNT,
        MMX,
        MOVBE,
        MULTIBYTENOP,
        PCLMULQDQ,
        POPCNT,
        PREFETCHW,
        SSE,
        SSE2,
        SSE3,
        SSE4_1,
        SSE4_2,
        SSSE3,
        VMX,
        XSAVE,
        XSAVEC,
        XSAVEOPT,
        XSAVES,
    ]
};

/// All forms.
///
/// Left out are control transfers with operands of 16 bits outside 16-bit code: they lead to the
/// first page of memory.
pub fn table() -> Vec<Entry> {
    let mut entries = Vec::new();
    for mode in [Mode::Bits64, Mode::Bits32, Mode::Bits16] {
        for code in Code::values().filter(|&code| is_wanted(code, mode)) {
            for plan in plans(code.op_code()) {
                entries.extend(plan.entry(code, mode));
            }
        }
    }
    entries
}

fn is_wanted(code: Code, mode: Mode) -> bool {
    let info = code.op_code();
    let decoder = match mode {
        Mode::Bits16 => info.intel_decoder16(),
        Mode::Bits32 => info.intel_decoder32(),
        Mode::Bits64 => info.intel_decoder64(),
    };
    info.is_instruction()
        && decoder
        && info.is_available_in_mode(bits(mode))
        && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.cpuid_features().iter().all(|feature| FEATURES.contains(feature))
        && info.mnemonic() != Mnemonic::Lea
}

/// One way to make a form of an instruction.
#[derive(Clone, Copy)]
struct Plan {
    role: Role,
    prefix: Prefix,
    /// What stands for any segment register.
    segment: Register,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Prefix {
    None,
    Lock,
    Rep,
    Repne,
}

/// How many elements a repeated string instruction takes.
const REPEATS: u16 = 3;

fn plans(info: &OpCodeInfo) -> Vec<Plan> {
    let kinds = info.op_kinds();
    let has = |kind| kinds.contains(&kind);
    let mut roles = Vec::new();
    if has(Operand::seg_rSI) && has(Operand::es_rDI) {
        roles.extend([Role::Source, Role::Destination, Role::Both]);
    } else if has(Operand::seg_rSI) {
        roles.push(Role::Source);
    } else if has(Operand::es_rDI) || has(Operand::seg_rDI) {
        roles.push(Role::Destination);
    } else if has(Operand::seg_rBX_al) {
        roles.push(Role::Table);
    } else if has(Operand::mem_offs) {
        roles.push(Role::Absolute);
    } else if kinds.iter().any(|&kind| is_memory(kind)) {
        roles.push(Role::Base);
    }
    use Mnemonic::*;
    match info.mnemonic() {
        Push | Pusha | Pushad | Pushf | Pushfd | Pushfq | Call => roles.push(Role::Push),
        Enter => roles.extend([Role::Push, Role::Frame]),
        Leave => roles.push(Role::Frame),
        Pop | Popa | Popad | Popf | Popfd | Popfq | Ret | Retf | Iret | Iretd | Iretq => {
            roles.push(Role::Pop)
        }
        _ => (),
    }
    let mut prefixes = vec![Prefix::None];
    let is_string = has(Operand::seg_rSI) || has(Operand::es_rDI);
    if info.can_use_lock_prefix() {
        prefixes.push(Prefix::Lock);
    }
    if is_string && info.can_use_rep_prefix() {
        prefixes.push(Prefix::Rep);
    }
    if is_string
        && matches!(info.mnemonic(), Cmpsb | Cmpsw | Cmpsd | Cmpsq | Scasb | Scasw | Scasd | Scasq)
    {
        prefixes.push(Prefix::Repne);
    }
    let segments: &[Register] = if has(Operand::seg_reg) {
        &[Register::ES, Register::SS, Register::DS, Register::FS, Register::GS]
    } else {
        &[Register::ES]
    };
    let mut plans = Vec::new();
    for &role in &roles {
        for &prefix in &prefixes {
            plans.extend(segments.iter().map(|&segment| Plan { role, prefix, segment }));
        }
    }
    plans
}

fn is_memory(kind: Operand) -> bool {
    use Operand::*;
    matches!(
        kind,
        mem | mem_vsib32x
            | mem_vsib64x
            | mem_vsib32y
            | mem_vsib64y
            | r8_or_mem
            | r16_or_mem
            | r32_or_mem
            | r64_or_mem
            | mm_or_mem
            | xmm_or_mem
            | ymm_or_mem
    )
}

impl Plan {
    /// The form; nothing if it cannot be made of this instruction in this mode.
    fn entry(self, code: Code, mode: Mode) -> Option<Entry> {
        let instruction = self.instruction(code, mode)?;
        let (bytes, offsets) = encode(&instruction, mode)?;
        // Some encodings mean another instruction in another mode.
        let decoded = Decoder::with_ip(bits(mode), &bytes, ORIGIN, DecoderOptions::NONE).decode();
        if decoded.code() != code || decoded.len() != bytes.len() {
            return None;
        }
        let mut form = Form::new(&bytes, mode);
        form.role = self.role;
        form.word = word(code, mode);
        (form.contents, form.registers) = needs(code, self.role);
        let leaves = matches!(form.contents, Contents::Near | Contents::Far | Contents::Iret);
        if leaves && form.word == 2 && mode != Mode::Bits16 {
            return None;
        }
        form.flags = defined_flags(&decoded);
        let (size, writes) = self.operand(&decoded, form.word);
        (form.size, form.writes) = (size, writes);
        if self.role == Role::Absolute {
            form.absolute =
                (offsets.displacement_offset() as u8, offsets.displacement_size() as u8);
        }
        match code.mnemonic() {
            Mnemonic::Lgdt => form.set_tail(tail(mode, 0, 2).as_slice()),
            Mnemonic::Lidt => form.set_tail(tail(mode, 1, 3).as_slice()),
            _ => (),
        }
        Some(Entry { form, code })
    }

    fn instruction(self, code: Code, mode: Mode) -> Option<Instruction> {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        match self.prefix {
            Prefix::None => (),
            Prefix::Lock => instruction.set_has_lock_prefix(true),
            Prefix::Rep => instruction.set_has_rep_prefix(true),
            Prefix::Repne => instruction.set_has_repne_prefix(true),
        }
        let info = code.op_code();
        for (index, &kind) in info.op_kinds().iter().enumerate() {
            self.set_operand(&mut instruction, index as u32, kind, mode)?;
        }
        Some(instruction)
    }

    fn set_operand(
        self,
        instruction: &mut Instruction,
        index: u32,
        kind: Operand,
        mode: Mode,
    ) -> Option<()> {
        use Operand::*;
        if is_memory(kind) {
            let vsib = matches!(kind, mem_vsib32x | mem_vsib64x | mem_vsib32y | mem_vsib64y);
            let base = if vsib && mode == Mode::Bits16 {
                Register::EBX
            } else {
                in_mode(mode, Register::BX, Register::EBX, Register::RBX)
            };
            instruction.set_op_kind(index, OpKind::Memory);
            instruction.set_memory_base(base);
            instruction.set_memory_displ_size(1);
            instruction.set_memory_displacement64(DISPLACEMENT);
            match kind {
                mem_vsib32x | mem_vsib64x => instruction.set_memory_index(Register::XMM4),
                mem_vsib32y | mem_vsib64y => instruction.set_memory_index(Register::YMM4),
                _ => (),
            }
            return Some(());
        }
        let register = match kind {
            r8_reg | r8_opcode => Register::DL,
            r16_reg | r16_rm | r16_opcode => Register::DX,
            r32_reg | r32_rm | r32_opcode => Register::EDX,
            r64_reg | r64_rm | r64_opcode => Register::RDX,
            r32_vvvv => Register::ECX,
            r64_vvvv => Register::RCX,
            seg_reg => self.segment,
            mm_reg => Register::MM1,
            mm_rm => Register::MM2,
            xmm_reg => Register::XMM1,
            xmm_vvvv | xmm_rm => Register::XMM2,
            xmm_is4 => Register::XMM3,
            ymm_reg => Register::YMM1,
            ymm_vvvv => Register::YMM2,
            ymm_is4 => Register::YMM3,
            es => Register::ES,
            cs => Register::CS,
            ss => Register::SS,
            ds => Register::DS,
            fs => Register::FS,
            gs => Register::GS,
            al => Register::AL,
            cl => Register::CL,
            ax => Register::AX,
            dx => Register::DX,
            eax => Register::EAX,
            rax => Register::RAX,
            st0 => Register::ST0,
            sti_opcode => Register::ST1,
            _ => Register::None,
        };
        if register != Register::None {
            instruction.set_op_kind(index, OpKind::Register);
            instruction.set_op_register(index, register);
            return Some(());
        }
        let (kind, value) = match kind {
            mem_offs => {
                instruction.set_op_kind(index, OpKind::Memory);
                instruction.set_memory_displ_size(in_mode(mode, 2, 4, 8));
                instruction.set_memory_displacement64(0);
                return Some(());
            }
            seg_rBX_al => {
                instruction.set_op_kind(index, OpKind::Memory);
                instruction.set_memory_base(in_mode(
                    mode,
                    Register::BX,
                    Register::EBX,
                    Register::RBX,
                ));
                instruction.set_memory_index(Register::AL);
                return Some(());
            }
            seg_rSI => {
                (in_mode(mode, OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI), 0)
            }
            es_rDI => {
                (in_mode(mode, OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI), 0)
            }
            seg_rDI => {
                (in_mode(mode, OpKind::MemorySegDI, OpKind::MemorySegEDI, OpKind::MemorySegRDI), 0)
            }
            imm8 if instruction.code().mnemonic() == Mnemonic::Enter => (OpKind::Immediate8_2nd, 2),
            imm8 => (OpKind::Immediate8, 5),
            imm8_const_1 => (OpKind::Immediate8, 1),
            imm8sex16 => (OpKind::Immediate8to16, 5),
            imm8sex32 => (OpKind::Immediate8to32, 5),
            imm8sex64 => (OpKind::Immediate8to64, 5),
            imm16 => (OpKind::Immediate16, 0x20),
            imm32 => (OpKind::Immediate32, 0x1234_5678),
            imm32sex64 => (OpKind::Immediate32to64, 0x1234_5678),
            br16_2 => (OpKind::NearBranch16, LANDING),
            br32_4 => (OpKind::NearBranch32, LANDING),
            br64_4 => (OpKind::NearBranch64, LANDING),
            // Far branches have a selector of one ring; the rest belongs to extensions that are
            // left out.
            _ => return Option::None,
        };
        instruction.set_op_kind(index, kind);
        match kind {
            OpKind::Immediate8 => instruction.set_immediate8(value as u8),
            OpKind::Immediate8_2nd => instruction.set_immediate8_2nd(value as u8),
            OpKind::Immediate8to16 => instruction.set_immediate8to16(value as i16),
            OpKind::Immediate8to32 => instruction.set_immediate8to32(value as i32),
            OpKind::Immediate8to64 => instruction.set_immediate8to64(value as i64),
            OpKind::Immediate16 => instruction.set_immediate16(value as u16),
            OpKind::Immediate32 => instruction.set_immediate32(value as u32),
            OpKind::Immediate32to64 => instruction.set_immediate32to64(value as i64),
            OpKind::NearBranch16 => instruction.set_near_branch16(value as u16),
            OpKind::NearBranch32 => instruction.set_near_branch32(value as u32),
            OpKind::NearBranch64 => instruction.set_near_branch64(value),
            _ => (),
        }
        Some(())
    }

    /// How many bytes the operand has, and whether it is written.
    fn operand(self, instruction: &Instruction, word: u8) -> (u16, bool) {
        use Mnemonic::*;
        let word = u16::from(word);
        let increment = instruction.stack_pointer_increment().unsigned_abs() as u16;
        match (self.role, instruction.mnemonic()) {
            // The frame pointer, another one, and the new one; or what is read of the old frame.
            (Role::Push, Enter) => return (3 * word, true),
            (Role::Frame, Enter) => return (2 * word, false),
            (Role::Frame, _) => return (word, false),
            (Role::Push, _) => return (increment, true),
            (Role::Pop, Ret) => return (word, false),
            (Role::Pop, Retf) => return (2 * word, false),
            (Role::Pop, Iret | Iretd | Iretq) => return (5 * word, false),
            (Role::Pop, _) => return (increment, false),
            _ => (),
        }
        let mut factory = InstructionInfoFactory::new();
        let writes = factory.info(instruction).used_memory().iter().any(|used| {
            matches!(
                used.access(),
                OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite
            )
        });
        let size = match instruction.mnemonic() {
            Xsave | Xsave64 | Xsavec | Xsavec64 | Xsaveopt | Xsaveopt64 | Xsaves | Xsaves64
            | Xrstor | Xrstor64 | Xrstors | Xrstors64 => 832,
            Bt | Bts | Btr | Btc if instruction.op1_kind() == OpKind::Register => 8,
            Pop => increment,
            _ if instruction.is_vsib() => 48,
            _ if instruction.memory_size() == MemorySize::Unknown => 1,
            _ => (instruction.memory_size().size() as u16).max(1),
        };
        let elements = if matches!(self.prefix, Prefix::Rep | Prefix::Repne) { REPEATS } else { 1 };
        let operands = if self.role == Role::Both { 2 } else { 1 };
        // Two operands lie one behind the other.
        let writes = writes && self.role != Role::Source;
        (size * elements * operands, writes)
    }
}

/// One of three, by the mode of code.
fn in_mode<T>(mode: Mode, bits16: T, bits32: T, bits64: T) -> T {
    match mode {
        Mode::Bits16 => bits16,
        Mode::Bits32 => bits32,
        Mode::Bits64 => bits64,
    }
}

fn encode(instruction: &Instruction, mode: Mode) -> Option<(Vec<u8>, ConstantOffsets)> {
    let mut encoder = Encoder::new(bits(mode));
    encoder.encode(instruction, ORIGIN).ok()?;
    let offsets = encoder.get_constant_offsets();
    Some((encoder.take_buffer(), offsets))
}

/// What a form needs in memory and registers.
fn needs(code: Code, role: Role) -> (Contents, Registers) {
    use Mnemonic::*;
    let plain = |contents| (contents, Registers::Plain);
    match code.mnemonic() {
        Ret => plain(Contents::Near),
        Retf => plain(Contents::Far),
        Iret | Iretd | Iretq => plain(Contents::Iret),
        Jmp | Call if is_far(code) => plain(Contents::Far),
        Jmp | Call => plain(Contents::Near),
        Lds | Les | Lfs | Lgs | Lss => plain(Contents::FarData),
        Mov if code.op_code().op0_kind() == Operand::seg_reg => plain(Contents::Selector),
        Pop if matches!(
            code.op_code().op0_kind(),
            Operand::es | Operand::ss | Operand::ds | Operand::fs | Operand::gs
        ) =>
        {
            plain(Contents::Selector)
        }
        Cmpxchg | Cmpxchg8b | Cmpxchg16b => plain(Contents::Match),
        Verr | Verw | Lar | Lsl | Ltr => plain(Contents::Selector),
        Lldt | Invpcid => plain(Contents::Zeros),
        Lgdt => plain(Contents::Gdt),
        Lidt => plain(Contents::Idt),
        Lmsw | Popf | Popfd | Popfq => plain(Contents::StatusWord),
        Fxrstor | Fxrstor64 => plain(Contents::Image),
        Xrstor | Xrstor64 | Xrstors | Xrstors64 => (Contents::Image, Registers::Components),
        Xsave | Xsave64 | Xsavec | Xsavec64 | Xsaveopt | Xsaveopt64 | Xsaves | Xsaves64 => {
            (Contents::Zeros, Registers::Components)
        }
        Div | Idiv | Bt | Bts | Btr | Btc => (Contents::Pattern, Registers::Small),
        Insb | Insw | Insd | Outsb | Outsw | Outsd => (Contents::Pattern, Registers::Port),
        _ if role == Role::Base => {
            let kinds = code.op_code().op_kinds();
            let has = |x, y| kinds.contains(&x) || kinds.contains(&y);
            if has(Operand::mem_vsib32x, Operand::mem_vsib32y) {
                (Contents::Pattern, Registers::Index32)
            } else if has(Operand::mem_vsib64x, Operand::mem_vsib64y) {
                (Contents::Pattern, Registers::Index64)
            } else {
                plain(Contents::Pattern)
            }
        }
        _ => plain(Contents::Pattern),
    }
}

fn is_far(code: Code) -> bool {
    use Code::*;
    matches!(code, Jmp_m1616 | Jmp_m1632 | Jmp_m1664 | Call_m1616 | Call_m1632 | Call_m1664)
}

/// The width of addresses and frame words that an instruction works with, in bytes.
fn word(code: Code, mode: Mode) -> u8 {
    use Code::*;
    match code {
        Jmp_m1616 | Call_m1616 => return 2,
        Jmp_m1632 | Call_m1632 => return 4,
        Jmp_m1664 | Call_m1664 => return 8,
        _ => (),
    }
    let info = code.op_code();
    let selector = matches!(
        info.op0_kind(),
        Operand::es | Operand::cs | Operand::ss | Operand::ds | Operand::fs | Operand::gs
    );
    // SDM vol. 2, "PUSH": of a selector, recent CPUs write 16 bits, however far they move the stack
    // pointer.
    if selector && info.mnemonic() == Mnemonic::Push && mode != Mode::Bits64 {
        return 2;
    }
    let bits = info.operand_size();
    if bits != 0 {
        return (bits / 8) as u8;
    }
    match mode {
        Mode::Bits16 => 2,
        Mode::Bits32 => 4,
        Mode::Bits64 => 8,
    }
}

/// Store the register that a load has changed at RSI, and load it from RDI: `0F 01 /store` and `0F
/// 01 /load`.
fn tail(mode: Mode, store: u8, load: u8) -> Vec<u8> {
    let (source, destination) = if mode == Mode::Bits16 { (4, 5) } else { (6, 7) };
    vec![0x0f, 0x01, store << 3 | source, 0x0f, 0x01, load << 3 | destination]
}

/// The bits of RFLAGS that the manual defines.
fn defined_flags(instruction: &Instruction) -> u32 {
    const FLAGS: [(u32, u32); 6] = [
        (RflagsBits::OF, 1 << 11),
        (RflagsBits::SF, 1 << 7),
        (RflagsBits::ZF, 1 << 6),
        (RflagsBits::AF, 1 << 4),
        (RflagsBits::CF, 1 << 0),
        (RflagsBits::PF, 1 << 2),
    ];
    let undefined = instruction.rflags_undefined();
    let bits =
        FLAGS.iter().filter(|(flag, _)| undefined & flag != 0).fold(0, |bits, (_, bit)| bits | bit);
    !bits
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::Kind;

    #[test]
    fn the_table_has_what_it_must_have() {
        let table = table();
        let has = |bits: u32, text: &str| {
            table.iter().any(|entry| super::bits(entry.form.mode) == bits && entry.text() == text)
        };
        // With another package of the workspace in the same build, iced-x86 may be built without
        // VEX.
        let vex = table.iter().any(|entry| entry.code.op_code().encoding() == EncodingKind::VEX);
        assert_eq!(has(64, "vpgatherdd xmm1,[rbx+xmm4+10h],xmm2"), vex);
        for (bits, text) in [
            (64, "movups xmm1,[rbx+10h]"),
            (64, "lock cmpxchg16b [rbx+10h]"),
            (64, "rep movsb [rdi],[rsi]"),
            (64, "maskmovdqu xmm1,xmm2"),
            (32, "frstor [ebx+10h]"),
            (64, "fxsave [rbx+10h]"),
            (64, "push rdx (on the stack)"),
            (32, "bound edx,qword ptr [ebx+10h]"),
            (32, "pushad (on the stack)"),
            (32, "lds edx,[ebx+10h]"),
            (16, "mov es,[bx+10h]"),
            (16, "iret (on the stack)"),
            (16, "lgdt [bx+10h]"),
        ] {
            assert!(has(bits, text), "{bits} {text}");
        }
        let mnemonics: BTreeSet<_> =
            table.iter().map(|entry| format!("{:?}", entry.mnemonic())).collect();
        assert!(mnemonics.len() > if vex { 800 } else { 450 }, "{}", mnemonics.len());
    }

    #[test]
    fn each_form_is_sound() {
        for entry in table() {
            let form = &entry.form;
            assert_eq!(Form::from_record(&form.to_record()), Some(*form), "{}", entry.text());
            assert!(form.size > 0, "{}", entry.text());
            assert!(form.before_border() < form.size.max(2).into(), "{}", entry.text());
            assert!(Kind::ALL[0].fits(form, crate::Ring::User));
        }
    }
}
