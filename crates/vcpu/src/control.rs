//! The guest's control registers and EFER: what a write makes of them, or that it raises #GP.

use umbra_devices::GeneralProtection;
use umbra_paging::{Features, Paging, Pdptes, Tables, Unsupported, cr0, cr4, efer, loads_pdptes};

/// Bits of CR0 beside those that shape paging (SDM, "Control Registers").
pub mod cr0_more {
    /// Monitor coprocessor: WAIT heeds TS.
    pub const MP: u64 = 1 << 1;
    /// Emulation: there is no x87 FPU.
    pub const EM: u64 = 1 << 2;
    /// Task switched.
    pub const TS: u64 = 1 << 3;
    /// Extension type: always set.
    pub const ET: u64 = 1 << 4;
    /// Errors of the x87 FPU raise #MF.
    pub const NE: u64 = 1 << 5;
    /// Alignment checks, where RFLAGS.AC asks for them.
    pub const AM: u64 = 1 << 18;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Every bit that exists.
    pub const ALL: u64 = 0xe005_003f;
}

/// Bits of EFER beside those that shape paging.
pub mod efer_more {
    /// SYSCALL enable.
    pub const SCE: u64 = 1 << 0;
    /// Long mode enable.
    pub const LME: u64 = 1 << 8;
}

/// CR3, bit 63 of the operand: keep the PCID's translations.
const CR3_NO_FLUSH: u64 = crate::cr3_targets::NO_FLUSH;
const CR3_PCID: u64 = umbra_paging::Cr3Value::PCID;

/// What the CPU that the guest sees knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Bits of CR4.
    pub cr4: u64,
    /// Bits of EFER.
    pub efer: u64,
    /// MAXPHYADDR.
    pub maxphyaddr: u8,
}

/// Where the instruction stands that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// CS.L, which means 64-bit code only while IA-32e mode is active.
    pub cs_long: bool,
    /// TR holds a 16-bit TSS.
    pub tss_16: bool,
}

/// The registers as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// The PDPTE registers, as they were last loaded.
    pub pdptes: Pdptes,
}

impl Controls {
    /// What they make of paging.
    ///
    /// # Errors
    /// They select a mode that Umbra does not run.
    pub fn paging(&self) -> Result<Paging, Unsupported> {
        Paging::with_pdptes(self.cr0, self.cr3, self.cr4, self.efer, self.pdptes)
    }

    /// PAE paging is in use.
    pub fn pae_paging(&self) -> bool {
        self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && !self.long_mode()
    }

    /// Whether the table that CR3 names is a whole frame, or lies at the start of one: only then is
    /// it the frame that counts. PDPTEs can lie at any multiple of 32.
    pub fn root_starts_frame(&self) -> bool {
        !self.pae_paging() || self.cr3 & 0xfe0 == 0
    }

    /// `new`, which a write of CR0 or CR4 makes of `self`, with the PDPTE registers that it loads
    /// from the guest's memory, if it does.
    ///
    /// # Errors
    /// #GP is due.
    pub fn then_pdptes(
        &self,
        new: Controls,
        memory: &impl Tables,
        known: &Known,
    ) -> Result<Controls, GeneralProtection> {
        let loads = loads_pdptes((self.cr0, self.cr4), (new.cr0, new.cr4));
        if loads { new.load_pdptes(memory, known) } else { Ok(new) }
    }

    /// The registers after a load of the PDPTE registers, which takes place under PAE paging only:
    /// what MOV to CR3 does, and a task switch that changes CR3.
    ///
    /// # Errors
    /// #GP is due.
    pub fn load_pdptes(
        self,
        memory: &impl Tables,
        known: &Known,
    ) -> Result<Controls, GeneralProtection> {
        if !self.pae_paging() {
            return Ok(self);
        }
        let features = Features::new(known.maxphyaddr, false);
        let pdptes = Pdptes::load(memory, self.cr3, &features).map_err(|_| GeneralProtection)?;
        Ok(Controls { pdptes, ..self })
    }

    /// IA-32e mode is active.
    pub fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// The PCID in use.
    pub fn pcid(&self) -> u64 {
        if self.cr4 & cr4::PCIDE != 0 { self.cr3 & CR3_PCID } else { 0 }
    }

    /// MOV to CR0 (SDM, "MOV - Move to/from Control Registers").
    ///
    /// # Errors
    /// #GP is due.
    pub fn write_cr0(&self, value: u64, context: Context) -> Result<Controls, GeneralProtection> {
        if value >> 32 != 0 {
            return Err(GeneralProtection);
        }
        let value = value & cr0_more::ALL | cr0_more::ET;
        let (was, is) = (self.cr0 & cr0::PG != 0, value & cr0::PG != 0);
        let contradiction = (is && value & cr0::PE == 0)
            || (value & cr0_more::NW != 0 && value & cr0_more::CD == 0)
            || (!is && self.cr4 & cr4::PCIDE != 0)
            || (was && !is && self.long_mode() && context.cs_long);
        if contradiction {
            return Err(GeneralProtection);
        }
        let mut new = Controls { cr0: value, ..*self };
        if is && !was && self.efer & efer_more::LME != 0 {
            // SDM, "Initializing IA-32e Mode" and "IA-32e Mode System Data Structures".
            if self.cr4 & cr4::PAE == 0 || context.cs_long || context.tss_16 {
                return Err(GeneralProtection);
            }
            new.efer |= efer::LMA;
        }
        if !is {
            new.efer &= !efer::LMA;
        }
        Ok(new)
    }

    /// CLTS.
    pub fn clear_task_switched(&self) -> Controls {
        Controls { cr0: self.cr0 & !cr0_more::TS, ..*self }
    }

    /// A task switch has taken place.
    pub fn set_task_switched(&self) -> Controls {
        Controls { cr0: self.cr0 | cr0_more::TS, ..*self }
    }

    /// LMSW: writes PE, MP, EM and TS, but cannot clear PE.
    ///
    /// # Errors
    /// #GP is due.
    pub fn load_machine_status_word(
        &self,
        value: u16,
        context: Context,
    ) -> Result<Controls, GeneralProtection> {
        const WRITTEN: u64 = 0xf;
        let value = u64::from(value) & WRITTEN | self.cr0 & cr0::PE;
        self.write_cr0(self.cr0 & !WRITTEN | value, context)
    }

    /// MOV to CR3. The second result says whether it flushes translations.
    ///
    /// # Errors
    /// #GP is due.
    pub fn write_cr3(
        &self,
        value: u64,
        known: &Known,
    ) -> Result<(Controls, bool), GeneralProtection> {
        let pcide = self.cr4 & cr4::PCIDE != 0;
        let keep = pcide && value & CR3_NO_FLUSH != 0;
        let value = if pcide { value & !CR3_NO_FLUSH } else { value };
        if self.long_mode() && value >> known.maxphyaddr != 0 {
            return Err(GeneralProtection);
        }
        // Bits below 12 other than PWT and PCD are ignored, but read back as written.
        let new = Controls { cr3: value, ..*self };
        Ok((new, !keep))
    }

    /// MOV to CR4.
    ///
    /// # Errors
    /// #GP is due.
    pub fn write_cr4(&self, value: u64, known: &Known) -> Result<Controls, GeneralProtection> {
        let turned_on = value & !self.cr4;
        let refused = value & !known.cr4 != 0
            || (self.long_mode() && value & cr4::PAE == 0)
            || (self.long_mode() && (value ^ self.cr4) & cr4::LA57 != 0)
            || (turned_on & cr4::PCIDE != 0 && (!self.long_mode() || self.cr3 & CR3_PCID != 0));
        if refused { Err(GeneralProtection) } else { Ok(Controls { cr4: value, ..*self }) }
    }

    /// Whether MOV to CR4 from `self` to `new` flushes translations (SDM, "Operations that
    /// Invalidate TLBs and Paging-Structure Caches").
    pub fn cr4_write_flushes(&self, new: &Controls) -> bool {
        let changed = self.cr4 ^ new.cr4;
        changed & (cr4::PGE | cr4::PAE | cr4_more::PSE | cr4::SMEP | cr4::SMAP) != 0
            || changed & self.cr4 & cr4::PCIDE != 0
    }

    /// WRMSR of EFER (SDM, "IA32_EFER MSR").
    ///
    /// # Errors
    /// #GP is due.
    pub fn write_efer(&self, value: u64, known: &Known) -> Result<Controls, GeneralProtection> {
        // LMA is read-only: writes of it are ignored.
        let value = value & !efer::LMA | self.efer & efer::LMA;
        let lme_while_paging = (value ^ self.efer) & efer_more::LME != 0 && self.cr0 & cr0::PG != 0;
        if value & !(known.efer | efer::LMA) != 0 || lme_while_paging {
            return Err(GeneralProtection);
        }
        Ok(Controls { efer: value, ..*self })
    }
}

/// Bits of CR4 beside those that shape paging.
pub mod cr4_more {
    /// RDTSC only in ring 0.
    pub const TSD: u64 = 1 << 2;
    /// Debugging extensions: breakpoints on ports.
    pub const DE: u64 = 1 << 3;
    /// Page-size extensions.
    pub const PSE: u64 = 1 << 4;
    /// FXSAVE and SSE.
    pub const OSFXSR: u64 = 1 << 9;
    /// SIMD floating-point errors raise #XM.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// XSAVE and extended states.
    pub const OSXSAVE: u64 = 1 << 18;
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Known = Known { cr4: 0x3706ff, efer: 0xd01, maxphyaddr: 40 };
    const FLAT_64: Context = Context { cs_long: true, tss_16: false };
    const FLAT_32: Context = Context { cs_long: false, tss_16: false };

    fn long() -> Controls {
        Controls {
            cr0: 0x8005_0033,
            cr3: 0x1000,
            cr4: cr4::PAE,
            efer: efer::LMA | efer_more::LME,
            pdptes: Pdptes::NONE,
        }
    }

    fn off() -> Controls {
        Controls { cr0: 0x33, efer: efer_more::LME, ..long() }
    }

    #[test]
    fn paging_on_and_off() {
        let on = off().write_cr0(0x8005_0033, FLAT_32).unwrap();
        assert_eq!(on, long());
        assert_eq!(off().write_cr0(0x8005_0033, FLAT_64), Err(GeneralProtection));
        assert_eq!(off().write_cr0(0x8000_0000, FLAT_32), Err(GeneralProtection));
        assert_eq!(
            Controls { cr4: 0, ..off() }.write_cr0(0x8005_0033, FLAT_32),
            Err(GeneralProtection)
        );
        assert_eq!(long().write_cr0(0x33, FLAT_64), Err(GeneralProtection));
        assert_eq!(long().write_cr0(0x33, FLAT_32).unwrap(), off());
    }

    /// PDPTEs at 0x1020, and nothing else.
    struct Memory([u64; 4]);

    impl Tables for Memory {
        fn read_entry(&self, gpa: umbra_paging::Gpa) -> u64 {
            self.0[(gpa.raw() - 0x1020) as usize / 8]
        }
    }

    #[test]
    fn pdptes_are_loaded_and_checked_by_the_writes_that_the_sdm_lists() {
        let pae = Controls { cr3: 0x1020, efer: 0, ..long() };
        let (good, bad) = (Memory([0x2001, 0, 0, 0x3019]), Memory([0, 0, 0x2003, 0]));
        let loaded = pae.load_pdptes(&good, &KNOWN).unwrap();
        assert_eq!(loaded.pdptes.raw(), good.0);
        assert_eq!(loaded.load_pdptes(&bad, &KNOWN), Err(GeneralProtection));
        for (new, loads) in [
            (Controls { cr4: pae.cr4 | cr4::PGE, ..pae }, true),
            (Controls { cr4: pae.cr4 | cr4::SMEP, ..pae }, true),
            (Controls { cr4: pae.cr4 | cr4_more::DE, ..pae }, false),
            (Controls { cr0: pae.cr0 | cr0_more::CD, ..pae }, true),
            (Controls { cr0: pae.cr0 | cr0_more::TS, ..pae }, false),
            (Controls { cr0: pae.cr0 & !cr0::PG, ..pae }, false),
            (Controls { cr4: 0, ..pae }, false),
        ] {
            assert_eq!(pae.then_pdptes(new, &bad, &KNOWN).is_err(), loads, "{new:x?}");
            let after = pae.then_pdptes(new, &good, &KNOWN).unwrap();
            assert_eq!(after.pdptes.raw(), if loads { good.0 } else { [0; 4] });
        }
        let on = Controls { cr0: pae.cr0 & !cr0::PG, ..pae };
        assert!(on.then_pdptes(pae, &bad, &KNOWN).is_err(), "paging is turned on");
        assert_eq!(long().load_pdptes(&bad, &KNOWN), Ok(long()));
    }

    #[test]
    fn cr0_combinations() {
        assert_eq!(long().write_cr0(0xa005_0033, FLAT_64), Err(GeneralProtection), "NW without CD");
        assert_eq!(long().write_cr0(1 << 32 | 0x8005_0033, FLAT_64), Err(GeneralProtection));
        assert_eq!(long().write_cr0(0x8005_0023 | 0xff00, FLAT_64).unwrap().cr0, 0x8005_0033);
        assert_eq!(long().load_machine_status_word(0x8, FLAT_64).unwrap().cr0, 0x8005_0039);
        assert_eq!(
            long().load_machine_status_word(0x8, FLAT_64).unwrap().clear_task_switched().cr0,
            0x8005_0031
        );
    }

    #[test]
    fn cr3_reserved_bits_and_pcid() {
        assert_eq!(long().write_cr3(1 << 40, &KNOWN), Err(GeneralProtection));
        assert_eq!(long().write_cr3(1 << 63, &KNOWN), Err(GeneralProtection));
        let pcid = long().write_cr4(cr4::PAE | cr4::PCIDE, &KNOWN).unwrap();
        let (new, flushes) = pcid.write_cr3(1 << 63 | 0x2001, &KNOWN).unwrap();
        assert_eq!((new.cr3, new.pcid(), flushes), (0x2001, 1, false));
        assert!(pcid.write_cr3(0x2001, &KNOWN).unwrap().1);
        assert_eq!(pcid.write_cr3(1 << 62, &KNOWN), Err(GeneralProtection));
        assert_eq!(pcid.write_cr0(0x33, FLAT_32), Err(GeneralProtection));
    }

    #[test]
    fn cr4_rules() {
        assert_eq!(long().write_cr4(0, &KNOWN), Err(GeneralProtection));
        assert_eq!(long().write_cr4(cr4::PAE | cr4::LA57, &KNOWN), Err(GeneralProtection));
        assert_eq!(off().write_cr4(cr4::PAE | cr4::PCIDE, &KNOWN), Err(GeneralProtection));
        let with_low_bits = Controls { cr3: 0x1008, ..long() };
        assert_eq!(with_low_bits.write_cr4(cr4::PAE | cr4::PCIDE, &KNOWN), Err(GeneralProtection));
        let global = long().write_cr4(cr4::PAE | cr4::PGE, &KNOWN).unwrap();
        assert!(long().cr4_write_flushes(&global));
        assert!(!long().cr4_write_flushes(&long()));
    }

    #[test]
    fn efer_rules() {
        assert_eq!(long().write_efer(0, &KNOWN), Err(GeneralProtection), "LME while paging");
        assert_eq!(long().write_efer(efer_more::LME | 1 << 15, &KNOWN), Err(GeneralProtection));
        assert_eq!(long().write_efer(efer_more::LME | efer_more::SCE, &KNOWN).unwrap().efer, 0x501);
        assert_eq!(off().write_efer(efer::LMA, &KNOWN).unwrap().efer, 0);
    }
}
