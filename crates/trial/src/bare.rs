//! A program as a kernel of its own, for a machine without a hypervisor.
//!
//! A multiboot image (version 1, with the addresses in its header): 32-bit code puts the program's
//! memory in its place and turns long mode on by tables of its own; a few instructions in the
//! stub's memory, which both roots map, load the program's root.

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, cr0, cr3, cr4, ds, dword_ptr, eax, ecx, edi, edx, es, esi, esp, ptr, rax, rdx,
    ss,
};

use crate::image::{A, D, Image, P, PS, W};
use crate::layout::{DIRECT_PDPT, GDT, IDT, PAGE, REGION, STUB, STUB_SLOT, direct};
use crate::program::Program;
use crate::stub::{GDT_LIMIT, IDT_LIMIT, KERNEL_CODE, KERNEL_DATA, TASK};

/// Where the image is loaded: above everything that programs use.
const BASE: u64 = 0x100_0000;
/// The tables of the way into long mode.
const TABLES: u64 = BASE + PAGE;
/// The words of the arena, then the pieces of the stub.
const DATA: u64 = TABLES + 3 * PAGE;
/// The last instructions before the stub, in its own memory.
const BOOT: u64 = STUB + 0x3800;
/// The operands of LGDT and LIDT, behind them.
const DESCRIPTORS: u64 = BOOT + 0x100;

/// Multiboot Specification 0.6.96, "Header magic fields" and "Header address fields".
const MAGIC: u32 = 0x1bad_b002;
const HAS_ADDRESSES: u32 = 1 << 16;
const HEADER: u64 = 32;

const EFER: u32 = 0xc000_0080;

/// The image.
///
/// # Panics
/// Never: the code is always the same.
pub fn multiboot(program: &Program) -> Vec<u8> {
    let mut image = Image::new(program, true);
    let boot = boot(&image).expect("the code is the same in every program");
    image.stub.push((BOOT, boot));
    let pseudo = |limit: u16, base: u64| {
        [&limit.to_le_bytes()[..], &direct(base).raw().to_le_bytes()].concat()
    };
    let mut descriptors = pseudo(GDT_LIMIT, GDT);
    descriptors.resize(16, 0);
    descriptors.extend(pseudo(IDT_LIMIT, IDT));
    image.stub.push((DESCRIPTORS, descriptors));

    let mut data = Vec::new();
    for &(gpa, value) in &image.arena {
        data.extend((gpa as u32).to_le_bytes());
        data.extend(value.to_le_bytes());
    }
    let pieces = DATA + data.len() as u64;
    for (gpa, bytes) in &image.stub {
        data.extend((*gpa as u32).to_le_bytes());
        data.extend((bytes.len() as u32).to_le_bytes());
        data.extend(bytes);
    }
    let entry = BASE + HEADER;
    let code = start(&image, pieces, entry).expect("the code is the same in every program");
    let end = DATA + data.len() as u64;

    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(HAS_ADDRESSES);
    let addresses = [BASE, BASE, end, end, entry].map(|at| at as u32);
    let header = [MAGIC, HAS_ADDRESSES, checksum].into_iter().chain(addresses);
    let mut file: Vec<u8> = header.flat_map(u32::to_le_bytes).collect();
    file.extend(code);
    file.resize((TABLES - BASE) as usize, 0);
    file.extend(tables());
    file.extend(data);
    file
}

/// Maps the image and the stub's descriptor tables where they are, and the direct map.
fn tables() -> Vec<u8> {
    let all = P | W | A | D;
    let mut words = vec![0u64; 3 * 512];
    words[0] = (TABLES + PAGE) | all;
    words[STUB_SLOT as usize] = DIRECT_PDPT | all;
    words[512] = (TABLES + 2 * PAGE) | all;
    for at in [BASE, STUB] {
        words[1024 + (at / REGION) as usize] = at | all | PS;
    }
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// From the boot loader to long mode: 32-bit code, and one jump in 64-bit code.
fn start(image: &Image, pieces: u64, at: u64) -> Result<Vec<u8>, IcedError> {
    let mut code = CodeAssembler::new(32)?;
    let [mut word, mut piece] = [(); 2].map(|()| code.create_label());
    code.cli()?;
    code.cld()?;
    code.mov(esp, (TABLES - 16) as u32)?;
    code.mov(esi, DATA as u32)?;
    code.mov(ecx, image.arena.len() as u32)?;
    code.set_label(&mut word)?;
    code.mov(edi, dword_ptr(esi))?;
    for half in [0, 4] {
        code.mov(eax, dword_ptr(esi + 4 + half))?;
        code.mov(dword_ptr(edi + half), eax)?;
    }
    code.add(esi, 12i32)?;
    code.dec(ecx)?;
    code.jne(word)?;
    code.mov(esi, pieces as u32)?;
    code.mov(edx, image.stub.len() as u32)?;
    code.set_label(&mut piece)?;
    code.mov(edi, dword_ptr(esi))?;
    code.mov(ecx, dword_ptr(esi + 4))?;
    code.add(esi, 8i32)?;
    code.rep().movsb()?;
    code.dec(edx)?;
    code.jne(piece)?;

    code.mov(eax, image.registers.cr4 as u32)?;
    code.mov(cr4, eax)?;
    code.mov(eax, TABLES as u32)?;
    code.mov(cr3, eax)?;
    code.mov(ecx, EFER)?;
    code.mov(eax, image.registers.efer as u32)?;
    code.xor(edx, edx)?;
    code.wrmsr()?;
    code.mov(eax, image.registers.cr0 as u32)?;
    code.mov(cr0, eax)?;
    // The stub's GDT, by its physical address: the limit, and the low half of its base.
    code.push(GDT as u32)?;
    code.push(u32::from(GDT_LIMIT) << 16)?;
    code.lgdt(ptr(esp + 2))?;
    // A far return goes on in the 64-bit code segment, where the call comes from.
    let mut into = CodeAssembler::new(64)?;
    into.mov(rax, direct(BOOT).raw())?;
    into.jmp(rax)?;
    let mut far = code.create_label();
    code.push(i32::from(KERNEL_CODE))?;
    code.call(far)?;
    code.db(&into.assemble(0)?)?;
    code.set_label(&mut far)?;
    code.retf()?;
    code.assemble(at)
}

/// In the direct map: the program's own registers, and the stub.
fn boot(image: &Image) -> Result<Vec<u8>, IcedError> {
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
    code.mov(eax, u32::from(TASK))?;
    code.ltr(eax)?;
    code.mov(rax, image.entry)?;
    code.jmp(rax)?;
    code.assemble(direct(BOOT).raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_a_multiboot_kernel() {
        let file = multiboot(&crate::generate::program(1, 100));
        let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        assert_eq!(word(0).wrapping_add(word(4)).wrapping_add(word(8)), 0);
        // From the load address to the end of the data.
        assert_eq!(u64::from(word(20) - word(16)), file.len() as u64);
        assert!(file.len() as u64 <= REGION, "one large page maps it");
    }
}
