//! Steps of programs.

use umbra_cases::random::Random;
use umbra_forms::generate::{self, Entry};
use umbra_forms::program::{FIRST_SELECTOR, PAGES, Target, page, selector, vector};
use umbra_forms::{Contents, DISPLACEMENT, Form, Registers, Role};

use super::setting::{APIC, CS, DS, ES, FS, GS, SIZE, SS, STACK, Start, flag, name, width};

/// A step: it runs wherever it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// In words.
    pub name: String,
    /// What its operand lies on.
    pub operand: String,
    pub code: Vec<u8>,
    /// Bits of RFLAGS that are defined behind it.
    pub defined: u32,
}

/// Numbers of registers in encodings.
mod register {
    pub const AX: u8 = 0;
    pub const CX: u8 = 1;
    pub const DX: u8 = 2;
    pub const BX: u8 = 3;
    pub const SP: u8 = 4;
    pub const SI: u8 = 6;
    pub const DI: u8 = 7;
    pub const BP: u8 = 5;
}

/// Prefixes that choose ES, CS, SS, DS, FS, GS.
const OVERRIDES: [u8; 6] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
/// CMP AL, 5AH: flags are defined behind it.
const DEFINE: [u8; 2] = [0x3c, 0x5a];
/// The offset of the APIC's task priority.
const PRIORITY: u64 = 0x80;

/// Makes steps for a start.
pub struct Maker<'a> {
    pub start: &'a Start,
    /// Forms of its width.
    pub forms: &'a [&'a Entry],
}

/// A place for an operand.
struct Place {
    linear: u64,
    label: String,
}

/// Makes a step: its name, and its code.
type Make<'a> = fn(&Maker<'a>, &mut Random) -> (String, Vec<u8>);

impl<'a> Maker<'a> {
    /// A random step.
    pub fn step(&self, random: &mut Random) -> Step {
        if random.below(100) < 55 { self.form(random) } else { self.special(random) }
    }

    /// A step whose last instruction exits and ends: what comes behind it is the hypervisor's to
    /// compute.
    pub fn exit(&self, random: &mut Random) -> Step {
        let (name, code): (_, &[u8]) = [
            ("cpuid of the name", &[0xb8_u8, 2, 0, 0, 0x80, 0x0f, 0xa2] as &[u8]),
            ("out 0x80", &[0xe6, 0x80]),
            ("rdmsr 0x1b", &[0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32]),
            ("mov cr0, itself", &[0x0f, 0x20, 0xc0, 0x0f, 0x22, 0xc0]),
        ][random.index(4)];
        let operand = "no operand".into();
        Step { name: name.into(), operand, code: code.to_vec(), defined: !0 }
    }

    fn bits(&self) -> u32 {
        self.start.mode.bits
    }

    /// MOV register, immediate, of all bits that addresses have.
    fn set(&self, code: &mut Vec<u8>, register: u8, value: u64) {
        if self.bits() == 64 && value > u32::MAX.into() {
            code.extend([0x48, 0xb8 | register]);
            code.extend(value.to_le_bytes());
            return;
        }
        if self.bits() == 16 {
            code.push(0x66);
        }
        code.push(0xb8 | register);
        code.extend((value as u32).to_le_bytes());
    }

    /// Takes the stack pointer back to where it was at the start.
    fn set_stack(&self, code: &mut Vec<u8>) {
        self.set(code, register::SP, self.start.stack());
    }

    /// A form of the table, with its operand somewhere.
    fn form(&self, random: &mut Random) -> Step {
        let entry = loop {
            let entry = self.forms[random.index(self.forms.len())];
            if is_free(&entry.form) {
                break entry;
            }
        };
        let form = &entry.form;
        let mut name = entry.text();
        let mut code = Vec::new();
        let segment = match form.role {
            Role::Push | Role::Pop => SS,
            Role::Destination => ES,
            Role::Both => ES,
            _ => DS,
        };
        let overridable =
            !matches!(form.role, Role::Push | Role::Pop | Role::Destination | Role::Both);
        let prefix =
            (overridable && random.one_in(4)).then(|| [ES, CS, SS, FS, GS][random.index(5)]);
        let segment = match prefix {
            // Long mode knows FS and GS alone.
            Some(other) if self.bits() != 64 || other >= FS => other,
            _ => segment,
        };
        let size = u64::from(form.size);
        let one = size == 4 && matches!(form.role, Role::Base | Role::Absolute);
        let place = self.place(random, segment, size, one);
        let operand = self.start.offset(segment, place.linear);
        let mut set =
            |register, value: u64| self.set(&mut code, register, value & width(self.bits()));
        match form.registers {
            Registers::Small => {
                set(register::AX, random.below(0x4000));
                set(register::DX, random.below(0x40));
            }
            Registers::Port => set(register::DX, [0x150, 0x151, 0x1ff][random.index(3)]),
            _ => (),
        }
        if matches!(form.role, Role::Source | Role::Destination | Role::Both) {
            let one = form.registers == Registers::Port && self.start.shows_resume_flag();
            set(register::CX, random.below(if one { 2 } else { 5 }));
        }
        let scratch = self.start.arena + STACK * 4096 + 0x400;
        match form.role {
            Role::Base => set(register::BX, operand.wrapping_sub(DISPLACEMENT)),
            Role::Table => {
                set(register::AX, 0x40);
                set(register::BX, operand.wrapping_sub(0x40));
            }
            Role::Source => {
                set(register::SI, operand);
                set(register::DI, self.start.offset(ES, scratch));
            }
            Role::Destination => {
                set(register::DI, operand);
                set(register::SI, self.start.offset(DS, scratch));
            }
            Role::Both => {
                set(register::SI, self.start.offset(DS, place.linear));
                set(register::DI, operand.wrapping_add(size / 2));
            }
            Role::Pop => set(register::SP, operand),
            Role::Push => set(register::SP, operand.wrapping_add(size)),
            Role::Frame => set(register::BP, operand),
            Role::Absolute => (),
        }
        if random.one_in(40) {
            code.push(0xf0);
            name = format!("lock {name}");
        }
        if let Some(prefix) = prefix {
            code.push(OVERRIDES[prefix]);
            name = format!("{} {name}", ["es", "cs", "ss", "ds", "fs", "gs"][prefix]);
        }
        let at = code.len();
        code.extend(form.bytes());
        let (offset, length) = (usize::from(form.absolute.0), usize::from(form.absolute.1));
        code[at + offset..at + offset + length].copy_from_slice(&operand.to_le_bytes()[..length]);
        if form.flags != !0 {
            code.extend(DEFINE);
        }
        if place.label == "apic" && form.role == Role::Base {
            // POP to memory finds no device there.
            self.set(&mut code, register::BX, self.start.offset(DS, scratch));
        }
        if matches!(form.role, Role::Push | Role::Pop) && !random.one_in(4) {
            self.set_stack(&mut code);
        }
        Step { name, operand: place.label, code, defined: form.flags }
    }

    /// A place for an operand of `size` bytes.
    fn place(&self, random: &mut Random, segment: usize, size: u64, one: bool) -> Place {
        let start = self.start;
        let pages = &start.setting.pages;
        if self.bits() == 64 && random.one_in(30) {
            let before = random.below(size + 2);
            let edge = if random.one_in(2) { 1 << 47 } else { u64::MAX << 47 };
            return Place { linear: edge - before, label: "not canonical".into() };
        }
        let apic = pages[APIC].target == Target::Apic && pages[APIC].bits & page::PRESENT != 0;
        if apic && one && random.one_in(2) {
            let linear = start.arena + APIC as u64 * 4096 + PRIORITY;
            return Place { linear, label: self.label(linear, 4) };
        }
        loop {
            // Not the code.
            let code = if start.high { 2 } else { 0 };
            let page = 2 + random.below(PAGES as u64 - 2 - code);
            let border = (page + 1) * 4096;
            let limit = start.segments[segment].limit.map(|limit| limit.wrapping_sub(start.arena));
            let at = match random.below(16) {
                0..=6 if size > 1 => border - 1 - random.below((size - 1).min(4000)),
                7 | 8 => page * 4096 + random.below(4096),
                9..=11 if limit.is_some_and(|limit| (0x2000..SIZE).contains(&limit)) => {
                    (limit.unwrap_or(0) + random.below(4)).wrapping_sub(size)
                }
                _ => page * 4096 + random.below(500) * 8,
            };
            if at >= SIZE {
                continue;
            }
            let touched = at / 4096..=(at + size.max(1) + 64) / 4096;
            if apic && touched.contains(&(APIC as u64)) {
                continue;
            }
            let linear = start.arena + at;
            return Place { linear, label: self.label(linear, size) };
        }
    }

    /// The pages that an operand lies on.
    fn label(&self, linear: u64, size: u64) -> String {
        let at = linear - self.start.arena;
        let mode = &self.start.mode;
        let page = |at: u64| match self.start.setting.pages.get((at / 4096) as usize) {
            Some(&page) => name(mode.world(), page, mode.ring),
            None => "none",
        };
        let (first, last) = (page(at), page(at + size.max(1) - 1));
        let crosses = at / 4096 != (at + size.max(1) - 1) / 4096;
        if crosses { format!("{first}+{last}") } else { first.into() }
    }

    /// An instruction without an operand in the table, or one that goes with a state.
    fn special(&self, random: &mut Random) -> Step {
        let kinds: [Make<'a>; 22] = [
            Self::interrupt,
            Self::interrupt,
            Self::exception,
            Self::load_segment,
            Self::load_segment,
            Self::load_stack_segment,
            Self::descriptor_query,
            Self::flags,
            Self::flags,
            Self::interrupt_return,
            Self::far_return,
            Self::branch,
            Self::ports,
            Self::control,
            Self::control,
            Self::debug,
            Self::system,
            Self::system,
            Self::call_gate,
            Self::shadow,
            Self::fast_call,
            Self::odd,
        ];
        let index = random.index(kinds.len() + 6);
        match kinds.get(index) {
            Some(make) => {
                let (name, code) = make(self, random);
                Step { name, operand: "no operand".into(), code, defined: !0 }
            }
            None => self.string(random),
        }
    }

    /// A string instruction over a border, with a count, in either direction.
    fn string(&self, random: &mut Random) -> Step {
        let widths = if self.bits() == 64 { 4 } else { 3 };
        let log = random.below(widths) as u32;
        let (name, opcode) = [
            ("movs", 0xa4),
            ("stos", 0xaa),
            ("lods", 0xac),
            ("cmps", 0xa6),
            ("scas", 0xae),
            ("ins", 0x6c),
            ("outs", 0x6e),
        ][random.index(7)];
        let ports = matches!(opcode, 0x6c | 0x6e);
        let log = if ports { log.min(2) } else { log };
        let down = random.one_in(3);
        let count = match random.below(6) {
            0 => 0,
            1 => random.below(0x300),
            _ => random.below(12),
        };
        let count = if ports && self.start.shows_resume_flag() { count.min(1) } else { count };
        let bytes = count << log;
        let (mut code, mut words) = (Vec::new(), String::new());
        let mut source = None;
        if matches!(opcode, 0xa4 | 0xa6) {
            let other = self.place(random, DS, bytes + 8, false);
            let linear = if down { other.linear.wrapping_add(bytes) } else { other.linear };
            self.set(&mut code, register::SI, self.start.offset(DS, linear));
            source = Some(other.label);
        }
        let segment = if matches!(opcode, 0xac | 0x6e) { DS } else { ES };
        let place = self.place(random, segment, bytes + 8, false);
        let linear = if down { place.linear.wrapping_add(bytes) } else { place.linear };
        let pointer = if segment == DS { register::SI } else { register::DI };
        self.set(&mut code, pointer, self.start.offset(segment, linear));
        self.set(&mut code, register::CX, count);
        if ports {
            // What port 0x80 gives is the machine's own.
            let port = if opcode == 0x6e && random.one_in(2) { 0x80 } else { 0x150 };
            self.set(&mut code, register::DX, port);
        }
        code.push(if down { 0xfd } else { 0xfc });
        // 16-bit code with addresses of 32 bits, 64-bit code with such.
        if self.bits() != 32 && random.one_in(4) {
            code.push(0x67);
            words += "a32 ";
        }
        let repeat = if random.one_in(5) { 0 } else { 0xf2 + random.below(2) as u8 };
        if repeat != 0 {
            code.push(repeat);
            words += "rep ";
        }
        let operand = if self.bits() == 16 { 1 } else { 2 };
        match log {
            0 => (),
            3 => code.push(0x48),
            _ if log != operand => code.push(0x66),
            _ => (),
        }
        code.push(opcode | u8::from(log > 0));
        code.push(0xfc);
        words += &format!(
            "{name} of {} bytes, {count} times{}",
            1 << log,
            if down { ", down" } else { "" }
        );
        // Of two operands the one that is not plain memory has something to do with the hypervisor.
        let operand = match source {
            Some(source) if place.label == "ram" => source,
            _ => place.label,
        };
        Step { name: words, operand, code, defined: !0 }
    }

    fn interrupt(&self, random: &mut Random) -> (String, Vec<u8>) {
        let vectors = [
            3,
            4,
            vector::USER,
            vector::USER,
            vector::KERNEL,
            vector::TRAP,
            vector::ABSENT,
            vector::NULL,
            vector::DATA,
            vector::BEYOND,
            vector::TASK,
            vector::LIMIT,
            0xff,
        ];
        let vector = vectors[random.index(vectors.len())];
        (format!("int {vector:#x}"), vec![0xcd, vector])
    }

    fn exception(&self, random: &mut Random) -> (String, Vec<u8>) {
        let (name, code): (_, &[u8]) = [
            ("int3", &[0xcc_u8] as &[u8]),
            ("int1", &[0xf1]),
            ("ud2", &[0x0f, 0x0b]),
            ("into", &[0xce]),
            ("mov al, 0x7f; add al, al; into", &[0xb0, 0x7f, 0x00, 0xc0, 0xce]),
            ("xor cl, cl; div cl", &[0x30, 0xc9, 0xf6, 0xf1]),
            ("aam 0", &[0xd4, 0]),
            (
                "hlt in ring 3, else ud2",
                if self.start.mode.ring == 3 { &[0xf4] } else { &[0x0f, 0x0b] },
            ),
            ("nop", &[0x90]),
            ("fwait", &[0x9b]),
            ("fninit", &[0xdb, 0xe3]),
            ("ud1", &[0x0f, 0xb9, 0xc0]),
        ][random.index(12)];
        (name.into(), code.to_vec())
    }

    fn selector(&self, random: &mut Random) -> u64 {
        let ring = u64::from(self.start.mode.ring);
        match random.below(8) {
            0 => random.below(4),
            1 => selector::USER_DATA.into(),
            2 => u64::from(selector::DATA) | ring,
            3 => [selector::TSS, selector::LDT, selector::GATE, selector::CODE_32, selector::TASK]
                [random.index(5)]
            .into(),
            4 => (random.below(16) << 3) | 4 | random.below(4),
            5 => 0x200 + random.below(0x100),
            _ => {
                u64::from(FIRST_SELECTOR)
                    + (random.below(16) << 3)
                    + if random.one_in(3) { random.below(4) } else { ring }
            }
        }
    }

    /// A selector for a far transfer. Code segments other than the program's own would lead
    /// anywhere.
    fn far_selector(&self, random: &mut Random) -> u64 {
        const CODE: [u16; 4] =
            [selector::CODE, selector::CODE_32, selector::USER_CODE, selector::USER_CODE_32];
        let own = FIRST_SELECTOR + 8 * CS as u16;
        let local = 8 * CS as u16;
        loop {
            let selector = self.selector(random);
            let index = selector as u16 & !3;
            if !CODE.iter().any(|code| code & !3 == index) && index != own && index != local | 4 {
                return selector;
            }
        }
    }

    fn load_segment(&self, random: &mut Random) -> (String, Vec<u8>) {
        let register = [ES, DS, FS, GS][random.index(4)] as u8;
        let selector = if self.start.mode.virtual_8086 { 0x2000 } else { self.selector(random) };
        let mut code = Vec::new();
        self.set(&mut code, register::AX, selector);
        code.extend([0x8e, 0xc0 | register << 3]);
        (
            format!(
                "mov {}, {selector:#x}",
                ["es", "cs", "ss", "ds", "fs", "gs"][usize::from(register)]
            ),
            code,
        )
    }

    /// Behind MOV SS or POP SS comes an instruction that raises something.
    fn load_stack_segment(&self, random: &mut Random) -> (String, Vec<u8>) {
        let good = u64::from(self.start.setting.selectors[SS]);
        let selector = if random.one_in(4) && !self.start.mode.virtual_8086 {
            self.selector(random)
        } else {
            good
        };
        let mut code = Vec::new();
        self.set(&mut code, register::AX, selector);
        code.extend([0x8e, 0xd0]);
        let (words, behind) = self.exception(random);
        code.extend(behind);
        (format!("mov ss, {selector:#x}; {words}"), code)
    }

    fn descriptor_query(&self, random: &mut Random) -> (String, Vec<u8>) {
        let selector = self.selector(random);
        let mut code = Vec::new();
        self.set(&mut code, register::AX, selector);
        let (name, bytes): (_, &[u8]) = [
            ("lar", &[0x0f_u8, 0x02, 0xd0] as &[u8]),
            ("lsl", &[0x0f, 0x03, 0xd0]),
            ("verr", &[0x0f, 0x00, 0xe0]),
            ("verw", &[0x0f, 0x00, 0xe8]),
            ("arpl", if self.bits() == 64 { &[0x90] } else { &[0x63, 0xc2] }),
        ][random.index(5)];
        code.extend(bytes);
        (format!("{name} {selector:#x}"), code)
    }

    /// POPF of flags that are the program's.
    fn flags(&self, random: &mut Random) -> (String, Vec<u8>) {
        if random.one_in(6) {
            let one = [0xfa, 0xfb, 0xfc, 0xfd, 0xf8, 0xf9][random.index(6)];
            return (format!("flag instruction {one:#x}"), vec![one]);
        }
        let flags = self.random_flags(random);
        let mut code = Vec::new();
        self.set(&mut code, register::AX, flags);
        code.push(0x50);
        code.push(0x9d);
        (format!("popf of {flags:#x}"), code)
    }

    fn random_flags(&self, random: &mut Random) -> u64 {
        let mut flags = self.start.setting.flags & !flag::TF & !flag::VM;
        let trap = if self.start.quiet { 0 } else { flag::TF };
        for (bit, n) in
            [(trap, 3), (flag::AC, 4), (flag::NT, 12), (flag::IF, 3), (0x400, 8), (0x3000, 3)]
        {
            if random.one_in(n) {
                flags ^= bit;
            }
        }
        flags
    }

    /// The address of the instruction behind `code` and `more` bytes, in AX.
    fn here(&self, code: &mut Vec<u8>, more: u8) {
        // CALL, POP, ADD.
        match self.bits() {
            16 => {
                code.extend([0xe8, 0, 0, 0x58, 0x83, 0xc0, 4 + more]);
            }
            32 => code.extend([0xe8, 0, 0, 0, 0, 0x58, 0x83, 0xc0, 4 + more]),
            _ => code.extend([0xe8, 0, 0, 0, 0, 0x58, 0x48, 0x83, 0xc0, 5 + more]),
        }
    }

    /// IRET to the next instruction, with other flags.
    fn interrupt_return(&self, random: &mut Random) -> (String, Vec<u8>) {
        let flags = self.random_flags(random);
        let good = u64::from(self.start.setting.selectors[CS]);
        let virtual_8086 = self.start.mode.virtual_8086;
        let code_segment =
            if random.one_in(6) && !virtual_8086 { self.far_selector(random) } else { good };
        let mut code = Vec::new();
        self.set_stack(&mut code);
        let push = |code: &mut Vec<u8>, value| {
            self.set(code, register::AX, value);
            code.push(0x50);
        };
        if self.bits() == 64 {
            push(&mut code, self.start.setting.selectors[SS].into());
            push(&mut code, self.start.stack() & !0xf);
        }
        push(&mut code, flags);
        push(&mut code, code_segment);
        let iret: &[u8] = if self.bits() == 64 { &[0x50, 0x48, 0xcf] } else { &[0x50, 0xcf] };
        self.here(&mut code, iret.len() as u8);
        code.extend(iret);
        (format!("iret to {code_segment:#x} with flags {flags:#x}"), code)
    }

    fn far_return(&self, random: &mut Random) -> (String, Vec<u8>) {
        let good = u64::from(self.start.setting.selectors[CS]);
        let virtual_8086 = self.start.mode.virtual_8086;
        let code_segment =
            if random.one_in(3) && !virtual_8086 { self.far_selector(random) } else { good };
        let mut code = Vec::new();
        self.set(&mut code, register::AX, code_segment);
        code.push(0x50);
        let retf: &[u8] = if self.bits() == 64 { &[0x50, 0x48, 0xcb] } else { &[0x50, 0xcb] };
        self.here(&mut code, retf.len() as u8);
        code.extend(retf);
        (format!("retf to {code_segment:#x}"), code)
    }

    /// Jumps and calls to the next instruction, or to where there is none.
    fn branch(&self, random: &mut Random) -> (String, Vec<u8>) {
        let wild = [0x7fff_ffff_fff0, 1 << 47, self.start.setting.base + 0x1_fff0];
        let wild = if self.bits() == 64 { wild[random.index(wild.len())] } else { wild[2] };
        // 16-bit code reaches all that it has.
        let reaches = self.bits() == 16 && self.start.setting.base != 0x1_0000;
        match random.below(if reaches { 4 } else { 5 }) {
            0 => ("jmp".into(), vec![0xeb, 0]),
            1 => ("loop".into(), vec![0xe2, 0]),
            2 => {
                let mut code = Vec::new();
                self.here(&mut code, 2);
                code.extend([0xff, 0xe0]);
                ("jmp ax".into(), code)
            }
            3 => {
                let mut code = Vec::new();
                self.here(&mut code, 2);
                code.extend([0x50, 0xc3]);
                ("push; ret".into(), code)
            }
            _ => {
                let mut code = Vec::new();
                self.set(&mut code, register::AX, wild & width(self.bits().max(32)));
                code.extend(if random.one_in(2) { [0xff, 0xe0] } else { [0xff, 0xd0] });
                (format!("jump or call to {wild:#x}"), code)
            }
        }
    }

    fn ports(&self, random: &mut Random) -> (String, Vec<u8>) {
        let port = [0x80, 0x150, 0x151, 0x14f, 0x1ff, 0x208][random.index(6)];
        let mut code = Vec::new();
        self.set(&mut code, register::DX, port);
        let input = port != 0x80 && random.one_in(2);
        let opcode = (if input { 0xec } else { 0xee }) | random.below(2) as u8;
        if random.one_in(3) {
            code.push(0x66);
        }
        code.push(opcode);
        (format!("{} {port:#x}", if input { "in" } else { "out" }), code)
    }

    /// Reads and writes of control registers.
    fn control(&self, random: &mut Random) -> (String, Vec<u8>) {
        let move_to =
            |code: &mut Vec<u8>, number: u8| code.extend([0x0f, 0x22, 0xc0 | number << 3]);
        let move_from =
            |code: &mut Vec<u8>, number: u8| code.extend([0x0f, 0x20, 0xc0 | number << 3]);
        let mut code = Vec::new();
        let mut invert = |number: u8, bit: u32| {
            move_from(&mut code, number);
            // BTC EAX, imm8.
            if self.bits() == 16 {
                code.push(0x66);
            }
            code.extend([0x0f, 0xba, 0xf8, bit as u8]);
            move_to(&mut code, number);
            format!("invert bit {bit} of CR{number}")
        };
        let name = match random.below(9) {
            // Not NE, as in `Start::random`.
            0 | 1 => invert(0, [1, 2, 3, 16, 18, 29, 30][random.index(7)]),
            // Not VMXE and SMXE: Umbra shows its guest neither extension.
            2 | 3 => invert(4, [0, 1, 2, 3, 7, 8, 9, 10, 11, 15, 22, 31][random.index(12)]),
            4 => {
                move_from(&mut code, 3);
                move_to(&mut code, 3);
                "reload CR3".into()
            }
            5 => {
                let number = [0, 1, 2, 3, 4, 5, 7][random.index(7)];
                move_from(&mut code, number);
                // CR3 is where the kernel's own tables lie: the same on both.
                format!("read CR{number}")
            }
            6 => {
                move_to(&mut code, 2);
                "write CR2".into()
            }
            7 if self.bits() == 64 => {
                self.set(&mut code, register::AX, random.below(18));
                code.extend([0x44, 0x0f, 0x22, 0xc0, 0x44, 0x0f, 0x20, 0xc1]);
                "write CR8, read it".into()
            }
            _ => {
                let value = 1 | random.below(16);
                self.set(&mut code, register::AX, value);
                code.extend([0x0f, 0x01, 0xf0]);
                format!("lmsw {value:#x}")
            }
        };
        (name, code)
    }

    /// Debug registers.
    fn debug(&self, random: &mut Random) -> (String, Vec<u8>) {
        let number = [0, 1, 2, 3, 4, 5, 6, 7][random.index(8)];
        let mut code = Vec::new();
        if random.one_in(3) {
            code.extend([0x0f, 0x21, 0xc0 | number << 3]);
            return (format!("read DR{number}"), code);
        }
        let value = match number {
            0..=3 => self.start.arena + random.below(SIZE) / 4 * 4,
            4 | 6 => 0xffff_0ff0 | random.below(16),
            _ if self.start.quiet => 0x400,
            _ => control(random),
        };
        self.set(&mut code, register::AX, value);
        code.extend([0x0f, 0x23, 0xc0 | number << 3]);
        (format!("mov dr{number}, {value:#x}"), code)
    }

    fn system(&self, random: &mut Random) -> (String, Vec<u8>) {
        let mut code = Vec::new();
        let msr = |code: &mut Vec<u8>, random: &mut Random| {
            let number = [
                0x174,
                0x175,
                0x176,
                0xc000_0081,
                0xc000_0082,
                0xc000_0102,
                0xc000_0100,
                0x1b,
                0xffff,
                0x277,
            ][random.index(10)];
            self.set(code, register::CX, number);
            number
        };
        let (name, bytes): (String, &[u8]) = match random.below(14) {
            0 => ("clts".into(), &[0x0f, 0x06]),
            1 => ("smsw".into(), &[0x0f, 0x01, 0xe0]),
            2 => ("sldt".into(), &[0x0f, 0x00, 0xc0]),
            3 => ("str".into(), &[0x0f, 0x00, 0xc8]),
            4 => {
                let linear = self.start.arena + random.below(SIZE);
                self.set(&mut code, register::BX, self.start.offset(DS, linear));
                (format!("invlpg {linear:#x}"), &[0x0f, 0x01, 0x3f])
            }
            5 => ("wbinvd".into(), &[0x0f, 0x09]),
            6 => (format!("rdmsr {:#x}", msr(&mut code, random)), &[0x0f, 0x32]),
            7 => {
                let number = [0x175, 0x176, 0xc000_0102, 0xffff][random.index(4)];
                self.set(&mut code, register::CX, number);
                let high = [0, 0, 0x7fff, 0x8000, 0xffff_ffff][random.index(5)];
                self.set(&mut code, register::DX, high);
                (format!("wrmsr {number:#x}, high half {high:#x}"), &[0x0f, 0x30])
            }
            8 => {
                self.set(&mut code, register::AX, 0x8000_0002 + random.below(3));
                ("cpuid of the name".into(), &[0x0f, 0xa2])
            }
            9 if self.bits() == 64 => ("swapgs".into(), &[0x0f, 0x01, 0xf8]),
            10 => ("vmcall".into(), &[0x0f, 0x01, 0xc1]),
            11 => ("xgetbv".into(), &[0x31, 0xc9, 0x0f, 0x01, 0xd0]),
            12 => {
                self.set(&mut code, register::AX, self.selector(random));
                (
                    "ltr".into(),
                    if self.start.mode.ring == 3 {
                        &[0x0f, 0x00, 0xd8]
                    } else {
                        &[0x0f, 0x00, 0xe0]
                    },
                )
            }
            _ => ("mov cr2, eax".into(), &[0x0f, 0x22, 0xd0]),
        };
        code.extend(bytes);
        (name, code)
    }

    /// A far call through the call gate, or to any selector.
    fn call_gate(&self, random: &mut Random) -> (String, Vec<u8>) {
        if self.bits() == 64 {
            return ("far call in 64-bit code".into(), vec![0x9a, 0, 0, 0, 0, 0, 0]);
        }
        let virtual_8086 = self.start.mode.virtual_8086;
        let any = if virtual_8086 { 0x0f00 } else { self.far_selector(random) };
        let gate = u64::from(selector::GATE) | 3;
        let selector = if random.one_in(2) && !virtual_8086 { gate } else { any };
        let mut code = vec![if random.one_in(2) { 0x9a } else { 0xea }];
        let offset = self.start.setting.base + 0x1800;
        let length = if self.bits() == 16 { 2 } else { 4 };
        code.extend(&offset.to_le_bytes()[..length]);
        code.extend((selector as u16).to_le_bytes());
        (format!("far call or jump to {selector:#x}"), code)
    }

    /// STI, and an instruction in its shadow.
    fn shadow(&self, random: &mut Random) -> (String, Vec<u8>) {
        let (words, behind) = self.exception(random);
        let mut code = vec![0xfa, 0xfb];
        code.extend(behind);
        (format!("cli; sti; {words}"), code)
    }

    fn fast_call(&self, random: &mut Random) -> (String, Vec<u8>) {
        let (name, code): (_, &[u8]) = [
            ("syscall", &[0x0f_u8, 0x05] as &[u8]),
            ("sysenter", &[0x0f, 0x34]),
            (
                "sysexit in ring 3, else nop",
                if self.start.mode.ring == 3 { &[0x0f, 0x35] } else { &[0x90] },
            ),
            (
                "sysret in ring 3, else nop",
                if self.start.mode.ring == 3 { &[0x0f, 0x07] } else { &[0x90] },
            ),
        ][random.index(4)];
        (name.into(), code.to_vec())
    }

    /// Encodings that are none, and far too long.
    fn odd(&self, random: &mut Random) -> (String, Vec<u8>) {
        let (name, code): (_, &[u8]) = [
            ("lock nop", &[0xf0_u8, 0x90] as &[u8]),
            (
                "15 prefixes",
                &[
                    0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
                    0x66, 0x66, 0x90,
                ],
            ),
            (
                "14 prefixes",
                &[
                    0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
                    0x66, 0x90,
                ],
            ),
            ("mov cs, ax", &[0x8e, 0xc8]),
            ("push es, pop ss", &[0x06, 0x17]),
            ("enter 8, 3; leave", &[0xc8, 8, 0, 3, 0xc9]),
        ][random.index(6)];
        let mut bytes = code.to_vec();
        if name.starts_with("enter") {
            bytes.splice(
                0..0,
                if self.bits() == 64 { vec![0x48, 0x89, 0xe5] } else { vec![0x89, 0xe5] },
            );
            self.set_stack(&mut bytes);
        }
        (name.into(), bytes)
    }
}

/// A value for DR7.
pub fn control(random: &mut Random) -> u64 {
    let mut control = 0x400;
    for number in 0..4 {
        if random.one_in(2) {
            let (kind, length) =
                [(0, 0), (1, 0), (1, 1), (1, 3), (3, 0), (3, 1), (3, 3)][random.index(7)];
            control |= 1 << (2 * number) | (kind | length << 2) << (16 + 4 * number);
        }
    }
    if random.one_in(6) { control | 1 << 13 } else { control }
}

/// Whether a form needs nothing but an operand and registers.
fn is_free(form: &Form) -> bool {
    matches!(form.contents, Contents::Pattern | Contents::Match)
        && matches!(
            form.registers,
            Registers::Plain | Registers::Index32 | Registers::Small | Registers::Port
        )
        && form.role != Role::Frame
}

/// The forms of the table for each width of code.
pub fn by_width(table: &[Entry], bits: u32) -> Vec<&Entry> {
    table
        .iter()
        .filter(|entry| generate::bits(entry.form.mode) == bits && is_free(&entry.form))
        .collect()
}
