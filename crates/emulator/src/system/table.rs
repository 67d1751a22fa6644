//! Descriptor tables and the TSS: the processor's own accesses to memory.

use crate::segmentation::is_canonical;
use crate::step::Result;
use crate::system::descriptor::{Descriptor, Selector};
use crate::system::{Privilege, SystemCpu};
use crate::{DescriptorTable, Error, Exception, SystemSegment};

const LMA: u64 = 1 << 10;
const FOUR_GIB: u64 = 1 << 32;

/// IA-32e mode is active.
pub(crate) fn is_long<C: SystemCpu>(cpu: &C) -> bool {
    cpu.efer() & LMA != 0
}

/// Reads where the processor keeps its tables. `bad` is raised for an address that is not
/// canonical.
pub(crate) fn read<C: SystemCpu>(
    cpu: &mut C,
    gva: u64,
    buf: &mut [u8],
    bad: Exception,
) -> Result<(), C> {
    for (gva, part) in parts(cpu, gva, buf.len(), bad)? {
        if !part.is_empty() {
            cpu.read_as(Privilege::Implicit, gva, &mut buf[part]).map_err(Error::Fault)?;
        }
    }
    Ok(())
}

/// Checks that a later [`write()`] will succeed.
pub(crate) fn probe<C: SystemCpu>(
    cpu: &mut C,
    gva: u64,
    length: usize,
    bad: Exception,
) -> Result<(), C> {
    for (gva, part) in parts(cpu, gva, length, bad)? {
        if !part.is_empty() {
            cpu.probe_write(Privilege::Implicit, gva, part.len()).map_err(Error::Fault)?;
        }
    }
    Ok(())
}

/// Writes there.
pub(crate) fn write<C: SystemCpu>(
    cpu: &mut C,
    gva: u64,
    bytes: &[u8],
    bad: Exception,
) -> Result<(), C> {
    for (gva, part) in parts(cpu, gva, bytes.len(), bad)? {
        if !part.is_empty() {
            cpu.write_as(Privilege::Implicit, gva, &bytes[part]).map_err(Error::Fault)?;
        }
    }
    Ok(())
}

type Part = (u64, core::ops::Range<usize>);

/// Outside IA-32e mode addresses have 32 bits, and what reaches beyond goes on at zero.
fn parts<C: SystemCpu>(cpu: &C, gva: u64, length: usize, bad: Exception) -> Result<[Part; 2], C> {
    if is_long(cpu) {
        let last = gva.wrapping_add(length as u64 - 1);
        if !is_canonical(gva) || !is_canonical(last) || last < gva {
            return Err(bad.into());
        }
        return Ok([(gva, 0..length), (0, 0..0)]);
    }
    let gva = gva % FOUR_GIB;
    let first = length.min((FOUR_GIB - gva) as usize);
    Ok([(gva, 0..first), (0, first..length)])
}

pub(crate) fn read_u16<C: SystemCpu>(cpu: &mut C, gva: u64, bad: Exception) -> Result<u16, C> {
    let mut bytes = [0; 2];
    read(cpu, gva, &mut bytes, bad)?;
    Ok(u16::from_le_bytes(bytes))
}

pub(crate) fn read_u32<C: SystemCpu>(cpu: &mut C, gva: u64, bad: Exception) -> Result<u32, C> {
    let mut bytes = [0; 4];
    read(cpu, gva, &mut bytes, bad)?;
    Ok(u32::from_le_bytes(bytes))
}

pub(crate) fn read_u64<C: SystemCpu>(cpu: &mut C, gva: u64, bad: Exception) -> Result<u64, C> {
    let mut bytes = [0; 8];
    read(cpu, gva, &mut bytes, bad)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The descriptor that a selector names, without the upper half of a 16-byte one. Beyond the limit
/// of its table, `fault` is raised with the selector.
pub(crate) fn descriptor<C: SystemCpu>(
    cpu: &mut C,
    selector: Selector,
    fault: Exception,
) -> Result<Descriptor, C> {
    let bad = fault.with(selector.error_code());
    let gva = locate(cpu, selector, 8).ok_or(bad)?;
    Ok(Descriptor { low: read_u64(cpu, gva, bad)?, high: 0, gva })
}

/// Reads the upper half of a 16-byte descriptor, whose type must be zero (SDM volume 3, "Segment
/// Descriptor Tables in IA-32e Mode").
pub(crate) fn read_upper_half<C: SystemCpu>(
    cpu: &mut C,
    selector: Selector,
    descriptor: &mut Descriptor,
    fault: Exception,
) -> Result<(), C> {
    const TYPE: u64 = 0x1f << 40;
    let bad = fault.with(selector.error_code());
    let gva = locate(cpu, selector, 16).ok_or(bad)?;
    descriptor.high = read_u64(cpu, gva.wrapping_add(8), bad)?;
    if descriptor.high & TYPE != 0 {
        return Err(bad.into());
    }
    descriptor.high &= u64::from(u32::MAX);
    Ok(())
}

fn locate<C: SystemCpu>(cpu: &C, selector: Selector, size: u64) -> Option<u64> {
    let (base, limit) = if selector.is_local() {
        let ldtr = cpu.system_segment(SystemSegment::Ldtr);
        if ldtr.rights.is_unusable() {
            return None;
        }
        (ldtr.base, u64::from(ldtr.limit))
    } else {
        let gdtr = cpu.descriptor_table(DescriptorTable::Gdt);
        (gdtr.base, u64::from(gdtr.limit))
    };
    let last = selector.offset() + size - 1;
    (last <= limit).then(|| base.wrapping_add(selector.offset()))
}

/// Checks that [`mark_accessed`] will succeed.
pub(crate) fn probe_accessed<C: SystemCpu>(cpu: &mut C, descriptor: &Descriptor) -> Result<(), C> {
    if descriptor.rights().kind() & Descriptor::ACCESSED != 0 {
        return Ok(());
    }
    let gva = descriptor.gva.wrapping_add(Descriptor::TYPE_BYTE);
    probe(cpu, gva, 1, Exception::GENERAL_PROTECTION)
}

/// Sets the accessed bit of a code or data segment that is about to be loaded.
pub(crate) fn mark_accessed<C: SystemCpu>(cpu: &mut C, descriptor: &Descriptor) -> Result<(), C> {
    if descriptor.rights().kind() & Descriptor::ACCESSED != 0 {
        return Ok(());
    }
    update(cpu, descriptor.gva, Descriptor::ACCESSED, 0)
}

/// Marks the TSS whose descriptor lies at `gva` as busy or available.
pub(crate) fn mark_busy<C: SystemCpu>(cpu: &mut C, gva: u64, busy: bool) -> Result<(), C> {
    let (set, clear) = if busy { (Descriptor::BUSY, 0) } else { (0, Descriptor::BUSY) };
    update(cpu, gva, set, clear)
}

fn update<C: SystemCpu>(cpu: &mut C, descriptor: u64, set: u8, clear: u8) -> Result<(), C> {
    let gva = descriptor.wrapping_add(Descriptor::TYPE_BYTE);
    let gva = if is_long(cpu) { gva } else { gva % FOUR_GIB };
    cpu.update_descriptor(gva, set, clear).map_err(Error::Fault)
}
