//! The smallest program that exits: what is left of fork + exec when the program itself costs
//! nothing.

use anyhow::Result;
use iced_x86::code_asm::{CodeAssembler, eax, edi};
use object::Endianness;
use object::elf::{ELFOSABI_NONE, EM_X86_64, ET_EXEC, PF_R, PF_X, PT_LOAD};
use object::write::elf::{FileHeader, ProgramHeader, Writer};

/// Where it is loaded: where the linker puts static programs.
const ADDRESS: u64 = 0x40_0000;

/// exit(2) among Linux's system calls.
const SYS_EXIT: u32 = 60;

/// A static ELF of three instructions: `exit(0)`.
pub fn program() -> Result<Vec<u8>> {
    let mut assembler = CodeAssembler::new(64)?;
    assembler.xor(edi, edi)?;
    assembler.mov(eax, SYS_EXIT)?;
    assembler.syscall()?;

    let mut elf = Vec::new();
    let mut writer = Writer::new(Endianness::Little, true, &mut elf);
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
        e_machine: EM_X86_64,
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

    #[test]
    fn linux_runs_it() {
        let path = std::env::temp_dir().join(format!("umbra-tiny-{}", std::process::id()));
        fs::write(&path, super::program().unwrap()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let status = Command::new(&path).status();
        fs::remove_file(&path).unwrap();
        assert_eq!(status.unwrap().code(), Some(0));
    }
}
