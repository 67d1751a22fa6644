//! The control-register state that shapes paging.

use core::fmt;

use crate::{Format, Gfn, Pdptes, bits};

/// Bits of CR0 (SDM, "Control Registers").
pub mod cr0 {
    /// Protection enable.
    pub const PE: u64 = 1 << 0;
    /// Write protect.
    pub const WP: u64 = 1 << 16;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// Bits of CR4 (SDM, "Control Registers").
pub mod cr4 {
    /// Page-size extensions: 4 MiB pages in 32-bit paging.
    pub const PSE: u64 = 1 << 4;
    /// Physical-address extension.
    pub const PAE: u64 = 1 << 5;
    /// Page-global enable.
    pub const PGE: u64 = 1 << 7;
    /// 57-bit linear addresses.
    pub const LA57: u64 = 1 << 12;
    /// Process-context identifiers.
    pub const PCIDE: u64 = 1 << 17;
    /// Supervisor-mode execution prevention.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor-mode access prevention.
    pub const SMAP: u64 = 1 << 21;
}

/// Bits of IA32_EFER (SDM, "IA32_EFER MSR").
pub mod efer {
    /// Long mode active.
    pub const LMA: u64 = 1 << 10;
    /// No-execute enable.
    pub const NXE: u64 = 1 << 11;
}

/// What the CPU that the guest sees can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Features {
    /// MAXPHYADDR: width of a physical address in bits, 32 to 52.
    pub maxphyaddr: u8,
    /// 1 GiB pages (CPUID.80000001H:EDX.Page1GB).
    pub gib_pages: bool,
}

impl Features {
    /// # Panics
    /// If `maxphyaddr` is not within 32..=52, the range that CPUID can state.
    pub const fn new(maxphyaddr: u8, gib_pages: bool) -> Features {
        assert!(maxphyaddr >= 32 && maxphyaddr <= 52, "MAXPHYADDR is 32 to 52");
        Features { maxphyaddr, gib_pages }
    }

    /// The address bits that are reserved in every entry: MAXPHYADDR..51.
    pub const fn address_reserved(&self) -> u64 {
        bits::ADDRESS & !((1 << self.maxphyaddr) - 1)
    }
}

/// A paging mode (SDM, "Paging Modes and Control Bits").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Paging off: linear addresses are guest-physical.
    Off,
    /// 32-bit paging.
    Legacy32 {
        /// CR4.PSE.
        pse: bool,
    },
    /// PAE paging outside IA-32e mode.
    Pae {
        /// The PDPTE registers.
        pdptes: Pdptes,
    },
    /// 4-level paging of IA-32e mode.
    Long4,
}

impl Mode {
    /// The format of the paging structures in memory; `None` if paging is off.
    pub const fn format(self) -> Option<Format> {
        match self {
            Mode::Off => None,
            Mode::Legacy32 { pse } => Some(Format::Legacy32 { pse }),
            Mode::Pae { .. } => Some(Format::Pae),
            Mode::Long4 => Some(Format::Long4),
        }
    }
}

/// A paging mode that the guest turned on and that is not supported (yet), or not read by
/// [`Paging::from_registers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unsupported {
    /// CR0.PE clear.
    RealMode,
    /// 32-bit paging.
    Legacy32,
    /// PAE paging outside IA-32e mode.
    Pae,
    /// 5-level paging.
    Long5,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unsupported::RealMode => "the guest switched to real mode (CR0.PE = 0), which Umbra does not run yet",
            Unsupported::Legacy32 => {
                "the guest turned on 32-bit paging, which Paging::from_registers does not read: use Paging::with_pdptes"
            }
            Unsupported::Pae => {
                "the guest turned on PAE paging outside long mode, which takes its PDPTE registers, too: use Paging::with_pdptes"
            }
            Unsupported::Long5 => {
                "the guest turned on 5-level paging, which Umbra does not shadow yet: run it with 4-level paging (Linux: no5lvl)"
            }
        })
    }
}

impl core::error::Error for Unsupported {}

/// The register state that a walk depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Paging {
    /// The paging mode.
    pub mode: Mode,
    /// The frame of the root structure, from CR3. Under PAE paging that structure lies somewhere in
    /// this frame, and is not read: see [`Pdptes`].
    pub root: Gfn,
    /// CR0.WP.
    pub wp: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// CR4.PGE.
    pub pge: bool,
    /// EFER.NXE. Without CR4.PAE it means nothing: 32-bit paging has no NX.
    pub nxe: bool,
}

impl Paging {
    /// Reads the state out of the guest's control registers, for 4-level paging and none. EFER.LMA
    /// must be what the CPU would have made of LME and PG.
    ///
    /// # Errors
    /// The registers select another mode.
    pub const fn from_registers(
        cr0: u64,
        cr3: u64,
        cr4: u64,
        efer: u64,
    ) -> Result<Paging, Unsupported> {
        match Paging::with_pdptes(cr0, cr3, cr4, efer, Pdptes::NONE) {
            Ok(Paging { mode: Mode::Legacy32 { .. }, .. }) => Err(Unsupported::Legacy32),
            Ok(Paging { mode: Mode::Pae { .. }, .. }) => Err(Unsupported::Pae),
            other => other,
        }
    }

    /// Reads the state out of the guest's control registers (SDM, "Paging Modes and Control Bits").
    /// Under PAE paging, and in no other mode, it looks at the PDPTE registers, too. EFER.LMA must
    /// be what the CPU would have made of LME and PG.
    ///
    /// # Errors
    /// The registers select a mode that is not supported.
    pub const fn with_pdptes(
        cr0: u64,
        cr3: u64,
        cr4: u64,
        efer: u64,
        pdptes: Pdptes,
    ) -> Result<Paging, Unsupported> {
        let mode = if cr0 & cr0::PE == 0 {
            return Err(Unsupported::RealMode);
        } else if cr0 & cr0::PG == 0 {
            Mode::Off
        } else if cr4 & cr4::PAE == 0 {
            Mode::Legacy32 { pse: cr4 & cr4::PSE != 0 }
        } else if efer & efer::LMA == 0 {
            Mode::Pae { pdptes }
        } else if cr4 & cr4::LA57 != 0 {
            return Err(Unsupported::Long5);
        } else {
            Mode::Long4
        };
        // CR3 has 32 bits outside IA-32e mode.
        let address = match mode {
            Mode::Legacy32 { .. } | Mode::Pae { .. } => cr3 & 0xffff_f000,
            Mode::Off | Mode::Long4 => cr3 & bits::ADDRESS,
        };
        Ok(Paging {
            mode,
            root: Gfn::new(address >> 12),
            wp: cr0 & cr0::WP != 0,
            smep: cr4 & cr4::SMEP != 0,
            smap: cr4 & cr4::SMAP != 0,
            pge: cr4 & cr4::PGE != 0,
            // Without PAE paging NX does not exist, whatever EFER says.
            nxe: efer & efer::NXE != 0 && !matches!(mode, Mode::Legacy32 { .. }),
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::*;

    #[test]
    fn what_is_not_supported_is_said_with_what_to_do() {
        for (mode, named, advice) in [
            (Unsupported::RealMode, "CR0.PE = 0", "yet"),
            (Unsupported::Legacy32, "32-bit paging", "with_pdptes"),
            (Unsupported::Pae, "PAE paging outside long mode", "with_pdptes"),
            (Unsupported::Long5, "5-level paging", "no5lvl"),
        ] {
            let sentence = mode.to_string();
            assert!(sentence.contains(named) && sentence.contains(advice), "{sentence}");
        }
    }

    #[test]
    fn modes() {
        let mode = |cr0, cr4, efer| Paging::from_registers(cr0, 0, cr4, efer).map(|p| p.mode);
        assert_eq!(mode(0, 0, 0), Err(Unsupported::RealMode));
        assert_eq!(mode(cr0::PE, cr4::PAE, 0x100), Ok(Mode::Off));
        assert_eq!(mode(cr0::PE | cr0::PG, 0, 0), Err(Unsupported::Legacy32));
        assert_eq!(mode(cr0::PE | cr0::PG, cr4::PAE, 0), Err(Unsupported::Pae));
        assert_eq!(
            mode(cr0::PE | cr0::PG, cr4::PAE | cr4::LA57, efer::LMA),
            Err(Unsupported::Long5)
        );
        assert_eq!(mode(cr0::PE | cr0::PG, cr4::PAE, efer::LMA), Ok(Mode::Long4));
    }

    #[test]
    fn modes_of_all_formats() {
        let paging = |cr4, efer| {
            let all = Paging::with_pdptes(cr0::PE | cr0::PG, u64::MAX, cr4, efer, Pdptes::NONE);
            all.map(|paging| (paging.mode, paging.root.raw(), paging.nxe))
        };
        let pae = Mode::Pae { pdptes: Pdptes::NONE };
        assert_eq!(paging(0, efer::NXE), Ok((Mode::Legacy32 { pse: false }, 0xf_ffff, false)));
        assert_eq!(paging(cr4::PSE, 0), Ok((Mode::Legacy32 { pse: true }, 0xf_ffff, false)));
        assert_eq!(paging(cr4::PAE | cr4::PSE | cr4::LA57, efer::NXE), Ok((pae, 0xf_ffff, true)));
        assert_eq!(paging(cr4::PAE, efer::LMA), Ok((Mode::Long4, 0xff_ffff_ffff, false)));
        assert_eq!(paging(cr4::PAE | cr4::LA57, efer::LMA), Err(Unsupported::Long5));
        assert_eq!(pae.format(), Some(Format::Pae));
        assert_eq!((Mode::Off.format(), Mode::Long4.format()), (None, Some(Format::Long4)));
        assert_eq!(Mode::Legacy32 { pse: true }.format(), Some(Format::Legacy32 { pse: true }));
    }

    #[test]
    fn root_ignores_pcid_and_the_no_flush_bit() {
        let paging = Paging::from_registers(cr0::PE, 1 << 63 | 0x1234_5fff, 0, 0).unwrap();
        assert_eq!(paging.root, Gfn::new(0x12345));
    }
}
