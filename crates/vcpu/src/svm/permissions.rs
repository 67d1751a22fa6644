//! Which MSRs and ports the guest reaches without an exit (APM, "MSR Intercepts" and "IOIO
//! Intercepts").

/// Bytes of the MSR permission map.
pub const MSR_MAP: usize = 8 << 10;
/// Bytes of the I/O permission map: 64 Ki ports, and what an access at the last one reaches beyond.
pub const IO_MAP: usize = 12 << 10;

/// The MSRs of each 2 KiB of the map start here; it has two bits for each.
const RANGES: [u32; 3] = [0, 0xc000_0000, 0xc001_0000];
const RANGE: u32 = 0x2000;

/// The map that lets RDMSR and WRMSR of `pass` through, and nothing else.
///
/// # Panics
/// One of them is in none of the map's ranges.
pub fn msr_map(pass: &[u32], map: &mut [u8; MSR_MAP]) {
    map.fill(0xff);
    for &msr in pass {
        let (range, first) = (0..)
            .zip(RANGES)
            .find(|(_, first)| (*first..first + RANGE).contains(&msr))
            .expect("an MSR of the permission map");
        let bit = (range * RANGE + (msr - first)) as usize * 2;
        map[bit / 8] &= !(0b11 << (bit % 8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_passes() {
        let mut map = [0; MSR_MAP];
        let pass = [0x174, 0xc000_0081, 0xc000_0100, 0xc001_1fff];
        msr_map(&pass, &mut map);
        let passes = |range: usize, msr: usize, write: usize| {
            let bit = msr * 2 + write;
            map[range * 2048 + bit / 8] & 1 << (bit % 8) == 0
        };
        for write in [0, 1] {
            assert!(passes(0, 0x174, write) && passes(1, 0x81, write) && passes(1, 0x100, write));
            assert!(
                passes(2, 0x1fff, write) && !passes(0, 0x175, write) && !passes(1, 0x80, write)
            );
        }
        let clear: u32 = map.iter().map(|byte| byte.count_zeros()).sum();
        assert_eq!(clear, 2 * pass.len() as u32);
    }
}
