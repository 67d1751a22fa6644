//! The smallest program that exits: what is left of fork + exec when the program itself costs
//! nothing.

use anyhow::Result;
use iced_x86::code_asm::{CodeAssembler, eax, ebx, edi};
use object::Endianness;
use object::elf::{ELFOSABI_NONE, EM_386, EM_X86_64, ET_EXEC, PF_R, PF_X, PT_LOAD};
use object::write::elf::{FileHeader, ProgramHeader, Writer};
use umbra_build::GuestArch;

/// Where it is loaded: where the linker puts static programs.
const ADDRESS: u64 = 0x40_0000;

/// exit(2) among Linux's system calls of 64-bit and of 32-bit programs.
const SYS_EXIT_64: u32 = 60;
const SYS_EXIT_32: u32 = 1;

/// The interrupt of 32-bit system calls.
const SYSTEM_CALL: u32 = 0x80;

/// A static ELF of three instructions: `exit(0)`.
pub fn program(arch: GuestArch) -> Result<Vec<u8>> {
    let is_64 = arch == GuestArch::Amd64;
    let mut assembler = CodeAssembler::new(if is_64 { 64 } else { 32 })?;
    if is_64 {
        assembler.xor(edi, edi)?;
        assembler.mov(eax, SYS_EXIT_64)?;
        assembler.syscall()?;
    } else {
        assembler.xor(ebx, ebx)?;
        assembler.mov(eax, SYS_EXIT_32)?;
        assembler.int(SYSTEM_CALL)?;
    }

    let mut elf = Vec::new();
    let mut writer = Writer::new(Endianness::Little, is_64, &mut elf);
    writer.reserve_file_header();
    writer.reserve_program_headers(1);
    let code_offset = writer.reserved_len();
    let code = assembler.assemble(ADDRESS + code_offset)?;
    writer.reserve(code.len() as u64, 1);
    let length = writer.reserved_len();

    writer.write_file_header(&FileHeader {
        os_abi: ELFOSABI_NONE,
        abi_version: 0,
        e_type: ET_EXEC,
        e_machine: if is_64 { EM_X86_64 } else { EM_386 },
        e_entry: ADDRESS + code_offset,
        e_flags: Default::default(),
    })?;
    // One segment holds everything, the headers too: page offset zero needs no padding.
    writer.write_program_header(&ProgramHeader {
        p_type: PT_LOAD,
        p_flags: PF_R | PF_X,
        p_offset: 0,
        p_vaddr: ADDRESS,
        p_paddr: ADDRESS,
        p_filesz: length,
        p_memsz: length,
        p_align: 0x1000,
    });
    writer.write(&code);
    Ok(elf)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use umbra_build::GuestArch;

    #[test]
    fn linux_runs_it() {
        for arch in [GuestArch::Amd64, GuestArch::I386] {
            let path = std::env::temp_dir().join(format!("umbra-tiny-{}", std::process::id()));
            fs::write(&path, super::program(arch).unwrap()).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            let status = Command::new(&path).status();
            fs::remove_file(&path).unwrap();
            assert_eq!(status.unwrap().code(), Some(0), "{arch:?}");
        }
    }
}
