//! VM entry's requirements on segments, RIP and RFLAGS of a guest without the control "unrestricted
//! guest" (SDM volume 3, "Checks on the Guest State Area").

use umbra_emulator::{Rights, Segment, SegmentRegister};

use crate::machine::{Machine, VM};

const LMA: u64 = 1 << 10;

fn require(good: bool, what: &str) -> Result<(), String> {
    if good { Ok(()) } else { Err(what.into()) }
}

fn is_canonical(gva: u64) -> bool {
    ((gva << 16) as i64) >> 16 == gva as i64
}

/// The first check that the state fails.
pub fn check(machine: &Machine) -> Result<(), String> {
    let long = machine.efer & LMA != 0;
    let virtual_8086 = machine.rflags & VM != 0;
    let code = machine.segments[Segment::Cs as usize];
    let stack = machine.segments[Segment::Ss as usize];
    if virtual_8086 {
        require(!long, "RFLAGS.VM in IA-32e mode")?;
        for (name, segment) in Segment::ALL.iter().zip(machine.segments) {
            let good = segment.base == u64::from(segment.selector) << 4
                && segment.limit == 0xffff
                && segment.rights == Rights(0xf3);
            require(good, &format!("{name:?} in virtual-8086 mode"))?;
        }
    } else {
        code_segment(&code, &stack, long)?;
        stack_segment(&code, &stack)?;
        for name in [Segment::Ds, Segment::Es, Segment::Fs, Segment::Gs] {
            data_segment(name, &machine.segments[name as usize])?;
        }
    }
    system_segments(machine, long)?;
    require(is_canonical(machine.gdtr.base) && is_canonical(machine.idtr.base), "GDTR or IDTR")?;
    let rip = machine.rip;
    if long && code.rights.is_long() {
        require(rip >> 48 == 0 || rip >> 48 == 0xffff, "RIP in 64-bit mode")?;
    } else {
        require(rip >> 32 == 0, "RIP beyond 4 GiB")?;
    }
    require(machine.rflags & (!0x3f_ffff | 0x8028) == 0 && machine.rflags & 2 != 0, "RFLAGS")
}

fn code_segment(code: &SegmentRegister, stack: &SegmentRegister, long: bool) -> Result<(), String> {
    let rights = code.rights;
    require(!rights.is_unusable() && rights.is_code() && rights.kind() & 1 != 0, "CS: type")?;
    let fits = if rights.is_conforming() {
        rights.dpl() <= stack.rights.dpl()
    } else {
        rights.dpl() == stack.rights.dpl()
    };
    require(fits, "CS: DPL")?;
    require(!(long && rights.is_long() && rights.is_32()), "CS: L and D")?;
    require(code.base >> 32 == 0, "CS: base")?;
    present(code, "CS")
}

fn stack_segment(code: &SegmentRegister, stack: &SegmentRegister) -> Result<(), String> {
    require(stack.selector & 3 == code.selector & 3, "SS: RPL")?;
    require(u16::from(stack.rights.dpl()) == stack.selector & 3, "SS: DPL")?;
    if stack.rights.is_unusable() {
        return Ok(());
    }
    require(stack.rights.is_writable() && stack.rights.kind() & 1 != 0, "SS: type")?;
    require(stack.base >> 32 == 0, "SS: base")?;
    present(stack, "SS")
}

fn data_segment(name: Segment, segment: &SegmentRegister) -> Result<(), String> {
    let rights = segment.rights;
    let has_64_bit_base = matches!(name, Segment::Fs | Segment::Gs);
    require(!has_64_bit_base || is_canonical(segment.base), "FS or GS: base")?;
    if rights.is_unusable() {
        return Ok(());
    }
    require(rights.is_readable() && rights.kind() & 1 != 0, &format!("{name:?}: type"))?;
    let private = !rights.is_conforming();
    require(
        !private || u16::from(rights.dpl()) >= segment.selector & 3,
        &format!("{name:?}: DPL"),
    )?;
    require(has_64_bit_base || segment.base >> 32 == 0, &format!("{name:?}: base"))?;
    present(segment, &format!("{name:?}"))
}

fn system_segments(machine: &Machine, long: bool) -> Result<(), String> {
    const LOCAL: u16 = 4;
    let tr = machine.tr;
    let busy = tr.rights.kind() == 11 || !long && tr.rights.kind() == 3;
    require(busy && !tr.rights.is_code_or_data() && !tr.rights.is_unusable(), "TR: type")?;
    require(tr.selector & LOCAL == 0 && is_canonical(tr.base), "TR: TI and base")?;
    present(&tr, "TR")?;
    let ldtr = machine.ldtr;
    if ldtr.rights.is_unusable() {
        return Ok(());
    }
    require(ldtr.rights.kind() == 2 && !ldtr.rights.is_code_or_data(), "LDTR: type")?;
    require(ldtr.selector & LOCAL == 0 && is_canonical(ldtr.base), "LDTR: TI and base")?;
    present(&ldtr, "LDTR")
}

/// P, reserved bits, and G with the limit.
fn present(segment: &SegmentRegister, name: &str) -> Result<(), String> {
    const GRANULARITY: u32 = 1 << 15;
    let SegmentRegister { limit, rights: Rights(rights), .. } = *segment;
    require(
        segment.rights.is_present() && rights & 0xfffe_0f00 == 0,
        &format!("{name}: P or reserved bits"),
    )?;
    let granular = rights & GRANULARITY != 0;
    let good = if granular { limit & 0xfff == 0xfff } else { limit >> 20 == 0 };
    require(good, &format!("{name}: limit and G"))
}
