//! `--hypervisor none` boots a multiboot kernel, which finds there what it finds under Umbra.

use std::fs;
use std::process::{Command, Stdio};

use iced_x86::IcedError;
use iced_x86::code_asm::*;

const START: u32 = 1 << 20;
/// Memory information, and addresses in the header.
const FLAGS: u32 = 1 << 1 | 1 << 16;
const HEADER_WORDS: u32 = 8;

/// Offsets in the boot information (Multiboot specification, "Boot information format").
const CMDLINE: u32 = 16;
const MODS_ADDR: u32 = 24;
/// Offset of a module's string.
const STRING: u32 = 8;

/// Prints the string at ESI to port 0xe9, and an end of line.
fn print(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut next, mut end) = (a.create_label(), a.create_label());
    a.mov(edx, 0xe9)?;
    a.set_label(&mut next)?;
    a.lodsb()?;
    a.test(al, al)?;
    a.je(end)?;
    a.out(dx, al)?;
    a.jmp(next)?;
    a.set_label(&mut end)?;
    a.mov(al, i32::from(b'\n'))?;
    a.out(dx, al)
}

/// A kernel that prints its command line and the string of its first module, and shuts down.
fn kernel() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    a.mov(esi, dword_ptr(ebx + CMDLINE))?;
    print(&mut a)?;
    a.mov(ecx, dword_ptr(ebx + MODS_ADDR))?;
    a.mov(esi, dword_ptr(ecx + STRING))?;
    print(&mut a)?;
    a.mov(edx, 0x8900)?;
    for byte in *b"Shutdown" {
        a.mov(al, i32::from(byte))?;
        a.out(dx, al)?;
    }
    let mut forever = a.create_label();
    a.set_label(&mut forever)?;
    a.jmp(forever)?;
    let entry = START + 4 * HEADER_WORDS;
    let checksum = 0u32.wrapping_sub(0x1bad_b002 + FLAGS);
    let header = [0x1bad_b002, FLAGS, checksum, START, START, 0, 0, entry];
    let mut file: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    file.extend(a.assemble(entry.into())?);
    Ok(file)
}

#[test]
fn the_bare_machine_gives_what_umbra_gives() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("kernel"), kernel().unwrap()).unwrap();
    fs::write(path("module"), "contents").unwrap();
    let module = path("module") + " x=1 $y";
    let run = |hypervisor: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_umbra"))
            .args([
                "run",
                "--kernel",
                &path("kernel"),
                "--module",
                &module,
                "--append",
                "one two=$2",
            ])
            .args(["--hypervisor", hypervisor, "--memory", "32", "--timeout", "60"])
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{hypervisor}: {stderr}");
        assert!(stderr.contains("the guest shut down (port 0x8900)"), "{stderr}");
        String::from_utf8(output.stdout).unwrap()
    };
    let expected = format!("{} one two=$2\n{module}\n", path("kernel"));
    assert_eq!((run("none"), run("umbra")), (expected.clone(), expected));
}
