//! A multiboot kernel that checks what it was given and what it finds.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use object::Endianness;
use object::elf::{ELFOSABI_NONE, EM_386, EM_X86_64, ET_EXEC, PF_R, PF_W, PF_X, PT_LOAD};
use object::write::elf::{FileHeader, ProgramHeader, Writer};

/// Where the kernel's parts go. The text is linked to the upper half, as kernels often are.
const TEXT: u64 = 0x10_0000;
const TEXT_VIRTUAL: u64 = 0xc010_0000;
const DATA: u64 = 0x20_0000;
/// Zeros behind the data.
const ZEROS: u64 = 3 * 4096 + 5;
const STACK_TOP: u32 = 0x9_0000;

const HEADER_MAGIC: u32 = 0x1bad_b002;
/// Modules at page boundaries, memory information.
const HEADER_FLAGS: u32 = 0b11;
/// The header is three words, and code follows.
const MAGIC: u32 = 0x2bad_b002;

/// What the kernel prints if all is well.
pub const GREETING: &str = "all is well\n";

/// Which kernel to write.
pub struct SmallKernel<'a> {
    /// ELF64, for the same 32-bit code.
    pub elf64: bool,
    /// The command line that it expects.
    pub command_line: &'a str,
    /// The modules that it expects: contents and string.
    pub modules: &'a [(&'a [u8], &'a str)],
    /// Guest memory that it expects, in MiB.
    pub memory_mib: u32,
}

/// What follows the text: bytes that the kernel compares with.
#[derive(Default)]
struct Data(Vec<u8>);

impl Data {
    /// Adds bytes and says where they will be.
    fn put(&mut self, bytes: &[u8]) -> u32 {
        let at = DATA as u32 + self.0.len() as u32;
        self.0.extend_from_slice(bytes);
        at
    }
}

/// The kernel's code: checks, each of which leaves with its own number to the exit port.
struct Checks {
    a: CodeAssembler,
    fail: CodeLabel,
    number: u32,
}

impl SmallKernel<'_> {
    /// The kernel's file.
    pub fn file(&self) -> Vec<u8> {
        let mut data = Data::default();
        let (text, entry) = self.text(&mut data).expect("the kernel assembles");
        let (machine, entry_base) =
            if self.elf64 { (EM_X86_64, TEXT) } else { (EM_386, TEXT_VIRTUAL) };
        let mut elf = Vec::new();
        let mut writer = Writer::new(Endianness::Little, self.elf64, &mut elf);
        writer.reserve_file_header();
        writer.reserve_program_headers(2);
        let text_offset = writer.reserve(text.len() as u64, 16);
        let data_offset = writer.reserve(data.0.len() as u64, 16);
        let header = FileHeader {
            os_abi: ELFOSABI_NONE,
            abi_version: 0,
            e_type: ET_EXEC,
            e_machine: machine,
            e_entry: entry_base + entry,
            e_flags: Default::default(),
        };
        writer.write_file_header(&header).expect("the header is well-formed");
        for (flags, offset, virtual_address, physical_address, bytes, zeros) in [
            (PF_R | PF_X, text_offset, entry_base, TEXT, text.len(), 0),
            (PF_R | PF_W, data_offset, DATA, DATA, data.0.len(), ZEROS),
        ] {
            writer.write_program_header(&ProgramHeader {
                p_type: PT_LOAD,
                p_flags: flags,
                p_offset: offset,
                p_vaddr: virtual_address,
                p_paddr: physical_address,
                p_filesz: bytes as u64,
                p_memsz: bytes as u64 + zeros,
                p_align: 16,
            });
        }
        for part in [&text, &data.0] {
            writer.write_align(16);
            writer.write(part);
        }
        elf
    }

    /// Header and code, and the entry point's offset.
    fn text(&self, data: &mut Data) -> Result<(Vec<u8>, u64), IcedError> {
        let mut checks = Checks::new()?;
        checks.a.dd(&[
            HEADER_MAGIC,
            HEADER_FLAGS,
            0u32.wrapping_sub(HEADER_MAGIC + HEADER_FLAGS),
        ])?;
        let mut far_return = checks.a.create_label();
        checks.a.set_label(&mut far_return)?;
        checks.a.retf()?;
        let entry = 13;
        checks.machine_state(far_return)?;
        checks.memory_fields(self.memory_mib)?;
        let command_line = data.put(&terminated(self.command_line));
        checks.string(16, command_line, self.command_line.len())?;
        checks.modules(self.modules, data)?;
        checks.memory_map(self.memory_mib)?;
        checks.platform(self.memory_mib)?;
        let greeting = data.put(GREETING.as_bytes());
        // No data may be put behind this.
        checks.zeros(DATA as u32 + data.0.len() as u32)?;
        checks.print(greeting)?;
        let text = checks.finish()?;
        Ok((text, entry))
    }
}

fn terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

impl Checks {
    fn new() -> Result<Checks, IcedError> {
        let mut a = CodeAssembler::new(32)?;
        let fail = a.create_label();
        Ok(Checks { a, fail, number: 0 })
    }

    /// The last comparison must have found equality. EBP is for this.
    fn equal(&mut self) -> Result<(), IcedError> {
        self.number += 1;
        self.a.mov(ebp, self.number)?;
        self.a.jne(self.fail)
    }

    /// Compares the information's word at `offset`.
    fn field(&mut self, offset: i32, value: u32) -> Result<(), IcedError> {
        self.a.cmp(dword_ptr(ebx + offset), value)?;
        self.equal()
    }

    /// Compares memory at ESI.
    fn bytes(&mut self, expected: u32, length: usize) -> Result<(), IcedError> {
        self.a.mov(edi, expected)?;
        self.a.mov(ecx, length as u32)?;
        self.a.cmp(eax, eax)?;
        self.a.repe().cmpsb()?;
        self.equal()
    }

    /// Compares the string whose address is in the information at `offset`, its zero included.
    fn string(&mut self, offset: i32, expected: u32, length: usize) -> Result<(), IcedError> {
        self.a.mov(esi, dword_ptr(ebx + offset))?;
        self.bytes(expected, length + 1)
    }

    /// Specification, "Machine state"; and the descriptor table can be used.
    fn machine_state(&mut self, far_return: CodeLabel) -> Result<(), IcedError> {
        self.a.mov(esp, STACK_TOP)?;
        self.a.cmp(eax, MAGIC)?;
        self.equal()?;
        self.a.mov(eax, cr0)?;
        self.a.and(eax, 0x8000_0001u32 as i32)?;
        self.a.cmp(eax, 1)?;
        self.equal()?;
        self.a.pushfd()?;
        self.a.pop(eax)?;
        // Neither interrupts nor virtual-8086 mode.
        self.a.test(eax, 0x2_0200)?;
        self.equal()?;
        for segment in [ds, es, fs, gs, ss] {
            self.a.mov(eax, segment)?;
            self.a.mov(segment, eax)?;
        }
        self.a.push(cs)?;
        self.a.call(far_return)?;
        self.a.mov(eax, dword_ptr(ebx))?;
        // Memory, command line, modules, memory map.
        self.a.and(eax, 0x4d)?;
        self.a.cmp(eax, 0x4d)?;
        self.equal()
    }

    fn memory_fields(&mut self, memory_mib: u32) -> Result<(), IcedError> {
        self.field(4, 639)?;
        self.field(8, (memory_mib - 1) * 1024)
    }

    fn modules(&mut self, modules: &[(&[u8], &str)], data: &mut Data) -> Result<(), IcedError> {
        self.field(20, modules.len() as u32)?;
        for (index, (contents, string)) in modules.iter().enumerate() {
            let entry = index as i32 * 16;
            let (expected, text) = (data.put(contents), data.put(&terminated(string)));
            self.a.mov(edx, dword_ptr(ebx + 24))?;
            self.a.mov(esi, dword_ptr(edx + entry))?;
            // At a page boundary.
            self.a.test(esi, 0xfff)?;
            self.equal()?;
            self.a.mov(eax, dword_ptr(edx + (entry + 4)))?;
            self.a.sub(eax, esi)?;
            self.a.cmp(eax, contents.len() as u32)?;
            self.equal()?;
            self.bytes(expected, contents.len())?;
            self.a.mov(esi, dword_ptr(edx + (entry + 8)))?;
            self.bytes(text, string.len() + 1)?;
        }
        Ok(())
    }

    /// The map has RAM from 1 MiB to the end of memory.
    fn memory_map(&mut self, memory_mib: u32) -> Result<(), IcedError> {
        let mut next = self.a.create_label();
        let mut found = self.a.create_label();
        self.a.mov(esi, dword_ptr(ebx + 48))?;
        self.a.mov(edx, dword_ptr(ebx + 44))?;
        self.a.add(edx, esi)?;
        self.a.set_label(&mut next)?;
        self.a.cmp(dword_ptr(esi + 4), TEXT as u32)?;
        self.a.je(found)?;
        self.a.add(esi, dword_ptr(esi))?;
        self.a.add(esi, 4)?;
        self.a.cmp(esi, edx)?;
        self.a.jb(next)?;
        self.a.set_label(&mut found)?;
        self.a.cmp(dword_ptr(esi + 12), (memory_mib - 1) << 20)?;
        self.equal()?;
        self.a.cmp(dword_ptr(esi + 20), 1)?;
        self.equal()
    }

    fn platform(&mut self, memory_mib: u32) -> Result<(), IcedError> {
        // Page 0 is memory.
        self.a.mov(dword_ptr(0), 0x1234_5678u32 as i32)?;
        self.a.cmp(dword_ptr(0), 0x1234_5678u32 as i32)?;
        self.equal()?;
        self.fw_cfg(0, u32::from_le_bytes(*b"QEMU"))?;
        self.fw_cfg(3, memory_mib << 20)?;
        self.fw_cfg(5, 1)?;
        // Both interrupt controllers' masks.
        for port in [0x21, 0xa1] {
            self.a.mov(al, 0xa5)?;
            self.a.out(port, al)?;
            self.a.in_(al, port)?;
            self.a.cmp(al, 0xa5)?;
            self.equal()?;
        }
        // PCI configuration is there, with a host bridge alone on the bus.
        for (address, data) in [(0x8000_0008u32, 0x0600_0000), (0x8000_0800, -1)] {
            self.a.mov(dx, 0xcf8)?;
            self.a.mov(eax, address)?;
            self.a.out(dx, eax)?;
            self.a.in_(eax, dx)?;
            self.a.cmp(eax, address as i32)?;
            self.equal()?;
            self.a.mov(dx, 0xcfc)?;
            self.a.in_(eax, dx)?;
            self.a.cmp(eax, data)?;
            self.equal()?;
        }
        self.apic()?;
        // The time-stamp counter advances. EDI:ESI is the earlier one.
        self.a.push(ebx)?;
        self.a.rdtsc()?;
        self.a.mov(esi, eax)?;
        self.a.mov(edi, edx)?;
        self.a.rdtsc()?;
        self.a.sub(eax, esi)?;
        self.a.sbb(edx, edi)?;
        self.a.sbb(eax, eax)?;
        self.a.test(eax, eax)?;
        self.equal()?;
        // No x2APIC; no protection keys and no LA57; no performance monitoring.
        self.no_cpuid(1, ecx, 1 << 21)?;
        self.no_cpuid(7, ecx, 1 << 3 | 1 << 16)?;
        self.no_cpuid(10, eax, 0xff)?;
        self.a.pop(ebx)
    }

    /// A number in QEMU's firmware configuration.
    fn fw_cfg(&mut self, key: u32, value: u32) -> Result<(), IcedError> {
        self.a.mov(dx, 0x510)?;
        self.a.mov(eax, key)?;
        self.a.out(dx, ax)?;
        self.a.inc(edx)?;
        for _ in 0..4 {
            self.a.in_(al, dx)?;
            self.a.ror(eax, 8)?;
        }
        self.a.cmp(eax, value)?;
        self.equal()
    }

    fn apic(&mut self) -> Result<(), IcedError> {
        const IA32_APIC_BASE: u32 = 0x1b;
        const PAGE: u32 = 0xfee0_0000;
        let register = |offset: u32| dword_ptr((PAGE + offset) as i32);
        // Off and on again: firmware is not expected to have left it in any state.
        for enable in [0, 1 << 11] {
            self.a.mov(ecx, IA32_APIC_BASE)?;
            self.a.rdmsr()?;
            self.a.and(eax, !(1 << 11))?;
            self.a.or(eax, enable)?;
            self.a.wrmsr()?;
        }
        self.a.rdmsr()?;
        self.a.cmp(eax, (PAGE | 0x900) as i32)?;
        self.equal()?;
        self.a.mov(register(0xf0), 0x1ff)?;
        self.a.mov(register(0x80), 0x20)?;
        self.a.cmp(register(0x80), 0x20)?;
        self.equal()?;
        // To itself, at the priority that TPR holds back: it waits. An INIT to all others reaches
        // nobody.
        self.a.mov(register(0x80), 0xf0)?;
        self.a.mov(register(0x300), 0x4_4031)?;
        self.a.mov(register(0x300), 0xc_4500)?;
        self.a.test(register(0x210), 1 << 17)?;
        self.a.setz(al)?;
        self.a.test(al, al)?;
        self.equal()
    }

    /// Bits that a leaf of CPUID must not show.
    fn no_cpuid(&mut self, leaf: u32, register: AsmRegister32, bits: u32) -> Result<(), IcedError> {
        self.a.mov(eax, leaf)?;
        self.a.xor(ecx, ecx)?;
        self.a.cpuid()?;
        self.a.test(register, bits)?;
        self.equal()
    }

    /// The zeros behind the data.
    fn zeros(&mut self, end_of_data: u32) -> Result<(), IcedError> {
        self.a.mov(edi, end_of_data)?;
        self.a.mov(ecx, ZEROS as u32)?;
        self.a.xor(eax, eax)?;
        self.a.repe().scasb()?;
        self.equal()
    }

    fn print(&mut self, greeting: u32) -> Result<(), IcedError> {
        let mut wait = self.a.create_label();
        self.a.mov(esi, greeting)?;
        self.a.mov(ecx, GREETING.len() as u32)?;
        self.a.set_label(&mut wait)?;
        self.a.mov(dx, 0x3fd)?;
        self.a.in_(al, dx)?;
        self.a.test(al, 0x20)?;
        self.a.je(wait)?;
        self.a.mov(dx, 0x3f8)?;
        self.a.lodsb()?;
        self.a.out(dx, al)?;
        self.a.dec(ecx)?;
        self.a.jnz(wait)
    }

    /// Ends with success; a failed check ends with its number.
    fn finish(mut self) -> Result<Vec<u8>, IcedError> {
        self.a.xor(ebp, ebp)?;
        self.a.set_label(&mut self.fail)?;
        self.a.mov(eax, ebp)?;
        self.a.out(0xf4, eax)?;
        self.a.hlt()?;
        self.a.assemble(TEXT)
    }
}
