//! Which code of KVM a campaign has run.
//!
//! QEMU logs a block of code when it translates it, which it does just before it runs it the first
//! time (`-d in_asm`). So nothing of the kernel is needed: Debian's have no function profiler.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use iced_x86::{Decoder, DecoderOptions};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

use super::finding::put;
use super::kernel::Kernel;

/// The module whose code is looked at.
const MODULE: &str = "kvm.ko";
const TEXT: &str = ".text";

/// Where the MMU's objects begin and end in the module: arch/x86/kvm/Makefile links mmu.o,
/// page_track.o and spte.o one after the other. mmu.o begins with its tracepoints, and the MMU for
/// nested paging follows.
const FIRST: &str = "__traceiter_kvm_mmu_";
const BEHIND: &str = "tdp_iter_";

/// What the compiler and the macros of tracepoints make: none of it is the MMU's.
const TRACING: [&str; 6] = [
    "__traceiter_",
    "__probestub_",
    "__bpf_trace_",
    "perf_trace_",
    "trace_event_raw_event_",
    "trace_raw_output_",
];

/// The room before a function that a kernel may patch has a name of its own since 6.3.
const ROOM: &str = "__pfx_";

/// Part of the module's text.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    /// Offsets of its instructions in the text.
    instructions: Vec<u64>,
}

/// The code of a module, and what has run of it.
pub struct Coverage {
    functions: Vec<Function>,
    /// Which of them are the shadow MMU's: none if the module is laid out otherwise.
    mmu: Range<usize>,
    size: u64,
    /// Offsets of the instructions that have run.
    seen: BTreeSet<u64>,
}

impl Coverage {
    /// Of this module's file, nothing of which has run.
    ///
    /// # Errors
    /// It is no module.
    fn new(module: &[u8]) -> Result<Coverage> {
        let file = object::File::parse(module).context(MODULE)?;
        let text = file.section_by_name(TEXT).with_context(|| format!("{MODULE} has no text"))?;
        let code = text.data().context(MODULE)?;
        let mut places: Vec<(u64, u64, &str)> = file
            .symbols()
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0)
            .filter(|symbol| symbol.section_index() == Some(text.index()))
            .map(|symbol| Ok((symbol.address(), symbol.size(), symbol.name()?)))
            .collect::<Result<_, object::Error>>()
            .context(MODULE)?;
        places.retain(|(.., name)| !name.starts_with(ROOM));
        places.sort_unstable();
        // Two names of one function.
        places.dedup_by_key(|place| place.0);
        let function = |&(start, size, name): &(u64, u64, &str)| {
            let code = code.get(start as usize..(start + size) as usize)?;
            let decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
            let instructions = decoder.into_iter().map(|instruction| instruction.ip()).collect();
            Some(Function { name: name.into(), instructions })
        };
        let functions: Vec<Function> =
            places.iter().map(function).collect::<Option<_>>().context("a function of no code")?;
        let at =
            |start: &str| functions.iter().position(|function| function.name.starts_with(start));
        let mmu = match (at(FIRST), at(BEHIND)) {
            (Some(first), Some(behind)) if first < behind => first..behind,
            _ => 0..0,
        };
        Ok(Coverage { functions, mmu, size: text.size(), seen: BTreeSet::new() })
    }

    /// QEMU's options: its log names what it translates of the module, whose text is at `base`.
    pub fn options(&self, base: u64, log: &Path) -> [String; 6] {
        let filter = format!("{base:#x}+{:#x}", self.size);
        let log = log.display().to_string();
        ["-d".into(), "in_asm".into(), "-dfilter".into(), filter, "-D".into(), log]
    }

    /// Adds what QEMU's log names.
    pub fn add(&mut self, base: u64, log: &str) {
        let address = |line: &str| {
            let digits = line.strip_prefix("0x")?.split(':').next()?;
            u64::from_str_radix(digits, 16).ok()
        };
        let offsets = log.lines().filter_map(address).filter_map(|gva| gva.checked_sub(base));
        self.seen.extend(offsets.filter(|offset| *offset < self.size));
    }

    /// Of a kernel's KVM, with what earlier runs of this campaign have left in its folder.
    ///
    /// # Errors
    /// The kernel has no such module, or what was left cannot be read.
    pub fn of(kernel: &Kernel, folder: &Path) -> Result<Coverage> {
        let module = kernel.modules.iter().find(|(name, ..)| name == MODULE);
        let (.., contents) = module.with_context(|| format!("this kernel has no {MODULE}"))?;
        let mut coverage = Coverage::new(contents)?;
        coverage.load(folder)?;
        Ok(coverage)
    }

    fn load(&mut self, folder: &Path) -> Result<()> {
        let file = folder.join("coverage.json");
        if file.exists() {
            let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            self.seen = serde_json::from_str(&text).with_context(|| {
                format!("{} names no code; remove it to begin anew", file.display())
            })?;
        }
        Ok(())
    }

    /// Leaves it in the folder, with a list for people.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        put(&folder.join("coverage.json"), &serde_json::to_string(&self.seen)?)?;
        put(&folder.join("coverage.txt"), &self.report())
    }

    /// The functions of the shadow MMU.
    fn mmu(&self) -> Vec<&Function> {
        let is_its = |function: &&Function| {
            !TRACING.iter().any(|tracing| function.name.starts_with(tracing))
        };
        self.functions[self.mmu.clone()].iter().filter(is_its).collect()
    }

    fn ran(&self, function: &Function) -> usize {
        function.instructions.iter().filter(|offset| self.seen.contains(offset)).count()
    }

    /// How much of some functions has run.
    fn share(&self, functions: &[&Function]) -> String {
        let reached = functions.iter().filter(|function| self.ran(function) > 0).count();
        let ran: usize = functions.iter().map(|function| self.ran(function)).sum();
        let all: usize = functions.iter().map(|function| function.instructions.len()).sum();
        let percent = 100.0 * ran as f64 / all.max(1) as f64;
        format!(
            "{reached} of {} functions, {ran} of {all} instructions ({percent:.1} %)",
            functions.len()
        )
    }

    /// The result in a line.
    pub fn line(&self) -> String {
        let all: Vec<&Function> = self.functions.iter().collect();
        let module = self.share(&all);
        match self.mmu().as_slice() {
            [] => format!("coverage of {MODULE}: {module}"),
            mmu => format!("coverage of {MODULE}: {module}; its MMU: {}", self.share(mmu)),
        }
    }

    fn report(&self) -> String {
        let mut text =
            format!("{}\n\nThe MMU's functions: instructions that ran, and all\n", self.line());
        for function in self.mmu() {
            let (ran, all) = (self.ran(function), function.instructions.len());
            let _ = writeln!(text, "{ran:6} {all:6}  {}", function.name);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use object::write::{Object as File, Symbol, SymbolSection};
    use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolScope};

    use super::*;

    /// A module with functions of these names. Each is a PUSH, an INT3 of one byte and a RET.
    fn module(names: &[&str]) -> Vec<u8> {
        let mut file = File::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        let text = file.add_section(Vec::new(), TEXT.into(), SectionKind::Text);
        for name in names {
            let value = file.append_section_data(text, &[0x41, 0x54, 0xcc, 0xc3], 16);
            file.add_symbol(Symbol {
                name: name.as_bytes().into(),
                value,
                size: 4,
                kind: SymbolKind::Text,
                scope: SymbolScope::Compilation,
                weak: false,
                section: SymbolSection::Section(text),
                flags: SymbolFlags::None,
            });
        }
        file.write().unwrap()
    }

    const NAMES: [&str; 6] = [
        "x86",
        "__traceiter_kvm_mmu_x",
        "mmu_page_fault",
        "__pfx_rmap_add",
        "rmap_add",
        "tdp_iter_start",
    ];

    const LOG: &str = "\
----------------
IN: 
0xffffffffc0100020:  41 54                    pushq    %r12
0xffffffffc0100022:  cc                       int3     

----------------
IN: 
0xffffffffc0100000:  41 54                    pushq    %r12
0xffffffffc0200000:  c3                       retq     
";
    const BASE: u64 = 0xffff_ffff_c010_0000;

    #[test]
    fn what_was_translated_has_run() {
        let mut coverage = Coverage::new(&module(&NAMES)).unwrap();
        let none = "coverage of kvm.ko: 0 of 5 functions, 0 of 15 instructions (0.0 %); its MMU: 0 of 2 \
                    functions, 0 of 6 instructions (0.0 %)";
        assert_eq!(coverage.line(), none);
        coverage.add(BASE, LOG);
        let some = "coverage of kvm.ko: 2 of 5 functions, 3 of 15 instructions (20.0 %); its MMU: 1 of 2 \
                    functions, 2 of 6 instructions (33.3 %)";
        assert_eq!(coverage.line(), some);
        let report = coverage.report();
        assert!(
            report.contains("     2      3  mmu_page_fault\n     0      3  rmap_add\n"),
            "{report}"
        );
    }

    #[test]
    fn a_campaign_goes_on_with_what_has_run() {
        let folder = tempfile::tempdir().unwrap();
        let mut coverage = Coverage::new(&module(&NAMES)).unwrap();
        coverage.load(folder.path()).unwrap();
        coverage.add(BASE, LOG);
        coverage.save(folder.path()).unwrap();
        let mut again = Coverage::new(&module(&NAMES)).unwrap();
        again.load(folder.path()).unwrap();
        assert_eq!(again.line(), coverage.line());
    }

    #[test]
    fn a_module_laid_out_otherwise_has_a_total() {
        let coverage = Coverage::new(&module(&["b", "a"])).unwrap();
        assert_eq!(
            coverage.line(),
            "coverage of kvm.ko: 0 of 2 functions, 0 of 6 instructions (0.0 %)"
        );
        assert!(Coverage::new(b"text").is_err());
    }
}
