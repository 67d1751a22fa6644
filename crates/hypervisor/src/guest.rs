//! Puts the guest into its memory: from where GRUB left the files to where the boot protocol wants
//! them.
//!
//! The kernel's file says which protocol that is, as for the host tool: Linux if it is a bzImage,
//! else multiboot.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::error::Error;
use core::ops::Range;

use umbra_bzimage::{HEADER_SPAN, is_bzimage};
use umbra_machine::linux;
use umbra_machine::memory::FRAME;
use umbra_machine::move_plan::{self, Move};
use umbra_multiboot as multiboot;
use umbra_paging::Gpa;
use umbra_vcpu::entry::{Entry, Gdt, Mode};

use crate::hw::phys::GuestRam;

/// The files that make a guest; all lie in guest memory, which is identity-mapped there.
pub struct Files {
    /// A bzImage or a multiboot kernel.
    pub kernel: Range<u64>,
    /// Linux's initrd, or an empty range.
    pub initrd: Range<u64>,
    /// A multiboot kernel's modules, each with its string.
    pub modules: Vec<(Range<u64>, String)>,
}

/// A file in guest memory.
struct File<'a> {
    ram: &'a GuestRam,
    place: Range<u64>,
}

impl multiboot::Image for File<'_> {
    fn size(&self) -> u64 {
        size(&self.place)
    }

    fn read(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = alloc::vec![0; size(&range) as usize];
        let mut at = self.place.start + range.start;
        let mut rest = bytes.as_mut_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(rest.len().min((FRAME - at % FRAME) as usize));
            self.ram.read(Gpa::new(at), now);
            at += now.len() as u64;
            rest = later;
        }
        bytes
    }
}

fn size(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// Loads a guest. Its ACPI root pointer is at `rsdp`.
///
/// # Errors
/// A sentence, if the kernel is none or memory is too small.
pub fn load(
    ram: &mut GuestRam,
    files: &Files,
    command_line: &str,
    rsdp: Gpa,
) -> Result<Entry, Box<dyn Error>> {
    let file = File { ram, place: files.kernel.clone() };
    let head = multiboot::Image::read(&file, 0..size(&file.place).min(HEADER_SPAN as u64));
    if is_bzimage(&head) {
        return load_linux(ram, files, &head, command_line, rsdp);
    }
    match multiboot::Kernel::parse(&file) {
        Ok(Some(kernel)) => load_multiboot(ram, files, &kernel, command_line),
        // Says what it takes.
        Ok(None) => load_linux(ram, files, &head, command_line, rsdp),
        Err(error) => Err(about_kernel(&error)),
    }
}

fn about_kernel(error: &multiboot::LoadError) -> Box<dyn Error> {
    alloc::format!("the kernel {error}").into()
}

fn load_linux(
    ram: &mut GuestRam,
    files: &Files,
    head: &[u8],
    command_line: &str,
    rsdp: Gpa,
) -> Result<Entry, Box<dyn Error>> {
    let plan = linux::plan(&linux::Guest {
        kernel_head: head,
        kernel_size: size(&files.kernel),
        initrd_size: size(&files.initrd),
        command_line,
        ram: ram.map().reported_ram(),
        above: ram.map().above(),
        rsdp,
    })?;
    let kernel = Move {
        from: files.kernel.start + plan.payload.start,
        to: plan.kernel.raw(),
        length: size(&plan.payload),
    };
    let initrd = Move {
        from: files.initrd.start,
        to: plan.initrd.map_or(files.initrd.start, Gpa::raw),
        length: size(&files.initrd),
    };
    shift(ram, &[kernel, initrd])?;
    zero(ram, &plan.padding);
    for (gpa, bytes) in &plan.writes {
        ram.load(*gpa, bytes);
    }
    Ok(plan.entry)
}

fn load_multiboot(
    ram: &mut GuestRam,
    files: &Files,
    kernel: &multiboot::Kernel,
    command_line: &str,
) -> Result<Entry, Box<dyn Error>> {
    let regions = ram.map().regions().into_iter();
    let regions: Vec<_> =
        regions.map(|(range, usable)| multiboot::Region { range, usable }).collect();
    let modules: Vec<_> = files
        .modules
        .iter()
        .map(|(place, command_line)| multiboot::Module { size: size(place), command_line })
        .collect();
    let guest = multiboot::Guest { kernel, command_line, modules: &modules, memory: &regions };
    let plan = multiboot::place(&guest).map_err(|error| about_kernel(&error))?;
    let segments = kernel.segments.iter().map(|segment| Move {
        from: files.kernel.start + segment.file.start,
        to: segment.memory.start,
        length: size(&segment.file),
    });
    let modules = files.modules.iter().zip(&plan.modules).map(|((place, _), to)| Move {
        from: place.start,
        to: to.raw(),
        length: size(place),
    });
    shift(ram, &segments.chain(modules).collect::<Vec<_>>())?;
    plan.zeros.iter().for_each(|range| zero(ram, range));
    for (gpa, bytes) in &plan.writes {
        ram.load(*gpa, bytes);
    }
    Ok(Entry {
        mode: Mode::Protected,
        rip: plan.entry.eip.into(),
        rsp: plan.entry.esp.into(),
        rax: multiboot::MAGIC.into(),
        rbx: plan.entry.ebx.into(),
        rsi: 0,
        gdt: Gdt {
            base: plan.entry.gdt,
            limit: multiboot::GDT_LIMIT,
            code: multiboot::CODE_SELECTOR,
            data: multiboot::DATA_SELECTOR,
        },
    })
}

fn shift(ram: &mut GuestRam, moves: &[Move]) -> Result<(), &'static str> {
    let [_, high] = ram.map().reported_ram();
    let moves = move_plan::order(moves, high).ok_or(
        "guest memory has no room to put the guest's files into order; give a larger --memory",
    )?;
    for step in moves {
        ram.shift(Gpa::new(step.from), Gpa::new(step.to), step.length);
    }
    Ok(())
}

fn zero(ram: &mut GuestRam, range: &Range<u64>) {
    let page = [0; FRAME as usize];
    let mut at = range.start;
    while at < range.end {
        let length = (FRAME - at % FRAME).min(range.end - at);
        ram.write(Gpa::new(at), &page[..length as usize]);
        at += length;
    }
}
