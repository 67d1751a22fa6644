//! The guest walk against the reference machine's paging unit, on tables of any shape.

use std::cell::RefCell;
use std::collections::BTreeMap;

use umbra_paging::{
    Access, AccessKind, Features, Gfn, Gpa, Gva, Mode, Paging, Pdptes, Tables, cr0, cr4, efer,
};
use umbra_reference::hardware::{self, End, PagingUnit, Temper};
use umbra_reference::memory::{PhysAddr, PhysicalMemory};
use umbra_reference::registers::{Cpu, Registers};

use crate::input::Input;

/// Memory whose words come out of the input when they are first read: so the fuzzer chose every
/// table, wherever it lies. One that is met twice (a table that maps itself) is the same.
#[derive(Clone)]
struct Lazy<'a> {
    words: RefCell<BTreeMap<u64, u64>>,
    fresh: RefCell<Input<'a>>,
}

impl Lazy<'_> {
    fn word(&self, at: u64) -> u64 {
        *self.words.borrow_mut().entry(at).or_insert_with(|| self.fresh.borrow_mut().u64())
    }
}

impl Tables for Lazy<'_> {
    fn read_entry(&self, gpa: Gpa) -> u64 {
        assert_eq!(gpa.raw() % 8, 0);
        self.word(gpa.raw())
    }
}

impl PhysicalMemory for Lazy<'_> {
    fn read(&self, at: PhysAddr) -> u64 {
        self.word(at.raw())
    }

    fn set_bits(&mut self, at: PhysAddr, bits: u64) {
        let new = self.word(at.raw()) | bits;
        self.words.borrow_mut().insert(at.raw(), new);
    }
}

/// One access: outcome, rights, steps, accessed and dirty bits are those of the reference machine,
/// and so is what was read.
///
/// # Panics
/// The two differ.
pub fn walk(data: &[u8]) {
    let mut input = Input::new(data);
    let choices = input.u16();
    let bit = |n: u32| choices >> n & 1 != 0;
    let (cr0, cr3, cr4, efer) = (input.u64(), input.u64(), input.u64(), input.u64());
    // Half of the inputs have paging on, in any format, whatever their registers say.
    let (cr0, cr4, efer) = if bit(0) {
        let (pae, lma) = [(cr4::PAE, efer::LMA), (cr4::PAE, efer::LMA), (cr4::PAE, 0), (0, 0)]
            [usize::from(choices >> 6 & 3)];
        let cr4 = cr4 & !(cr4::LA57 | cr4::PAE) | pae;
        (cr0 | cr0::PE | cr0::PG, cr4, efer & !efer::LMA | lma)
    } else {
        (cr0, cr4, efer)
    };
    let kind = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch, AccessKind::Write]
        [usize::from(choices >> 1 & 3)];
    let access = Access { kind, user: bit(3), smap_override: bit(4) };
    let features = Features::new(32 + (input.u8() % 21), bit(5));
    let gva = Gva::new((input.u64() << 16).cast_signed().wrapping_shr(16).cast_unsigned());
    // Loads of others are refused (SDM, "PDPTE Registers"). Bits 9 to 11 are ignored.
    let unreserved = 0xe19 | !0xfff & ((1 << features.maxphyaddr) - 1);
    let pdptes = [(); 4].map(|()| input.u64() & unreserved);
    let loaded = Pdptes::checked(pdptes, &features).expect("no reserved bit is set");
    let Ok(paging) = Paging::with_pdptes(cr0, cr3, cr4, efer, loaded) else {
        return refused(cr0, cr4, efer);
    };
    let gva = match paging.mode {
        Mode::Off | Mode::Long4 => gva,
        Mode::Legacy32 { .. } | Mode::Pae { .. } => Gva::new(gva.raw() & 0xffff_ffff),
    };
    let mut memory = Lazy { words: RefCell::default(), fresh: RefCell::new(input) };
    let mut reference = memory.clone();

    let pae = cr4 >> 5 & 1 != 0;
    let long = pae && efer >> 10 & 1 != 0;
    let root = cr3 >> 12 & if long { 0xff_ffff_ffff } else { 0xf_ffff };
    let registers = Registers {
        paging: cr0 >> 31 & 1 != 0,
        long,
        pae,
        pse: cr4 >> 4 & 1 != 0,
        pdptes,
        wp: cr0 >> 16 & 1 != 0,
        smep: cr4 >> 20 & 1 != 0,
        smap: cr4 >> 21 & 1 != 0,
        pge: cr4 >> 7 & 1 != 0,
        nxe: efer >> 11 & 1 != 0,
        ..Registers::long_mode(Gfn::new(root))
    };
    let control =
        registers.control(&Cpu { maxphyaddr: features.maxphyaddr, gib_pages: features.gib_pages });
    let mut unit = PagingUnit::new(0, Temper { mark: 0, ..Temper::STICKY });
    let found = umbra_paging::walk(&memory, &paging, &features, gva, access);
    let read_only_once = memory.words.borrow().clone();
    match (found, unit.translate(&mut reference, &control, gva, access)) {
        (Ok(found), Ok(reached)) => {
            assert_eq!(found.gpa().raw(), reached.at.raw());
            compare_steps(&memory, &control, gva, &found);
            for step in found.steps() {
                if let Some(new) = step.update(access) {
                    // A 4-byte entry is one half of a word.
                    let (word, half) = (step.at.raw() & !7, step.at.raw() & 4);
                    memory.set_bits(PhysAddr::new(word), new << (8 * half));
                }
            }
        }
        (Err(found), Err(fault)) => assert_eq!((found.pfec, found.gva), (fault.code, fault.gva)),
        (found, expected) => panic!("{found:x?} against {expected:x?}"),
    }
    assert!(read_only_once.len() <= 4, "a walk reads an entry for each level");
    assert_eq!(memory.words, reference.words, "what was read, and accessed and dirty bits");
}

fn compare_steps(
    memory: &Lazy<'_>,
    control: &hardware::Control,
    gva: Gva,
    found: &umbra_paging::Walk,
) {
    if control.mode == hardware::PagingMode::Off {
        assert!(found.steps().is_empty());
        return;
    }
    let expected = hardware::walk(memory, control, gva);
    let End::Page(page) = expected.end else { panic!("{found:x?} against {expected:x?}") };
    assert_eq!(found.steps().len(), expected.visits.len());
    for (step, visit) in found.steps().iter().zip(&expected.visits) {
        assert_eq!((step.at.raw(), step.entry.raw()), (visit.at.raw(), visit.entry));
    }
    let rights = found.rights();
    assert_eq!((rights.write, rights.user), (page.rights.writable, page.rights.user));
    assert_eq!(rights.execute, !(control.nxe && page.rights.no_execute));
}

/// Registers are refused only if they are those of real mode or of 5-level paging.
fn refused(cr0: u64, cr4: u64, efer: u64) {
    let (pe, pg) = (cr0 & 1 != 0, cr0 >> 31 & 1 != 0);
    let long5 = cr4 >> 5 & 1 != 0 && cr4 >> 12 & 1 != 0 && efer >> 10 & 1 != 0;
    assert!(!pe || (pg && long5), "CR0 {cr0:#x}, CR4 {cr4:#x}, EFER {efer:#x} are refused");
}
