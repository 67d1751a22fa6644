//! Numbers, one type per kind so that they cannot be mixed.

/// The number of a frame of the pool that holds shadow pages, from zero to below
/// [`ShadowFrames::count`](crate::ShadowFrames::count).
/// [`ShadowFrames::hpa`](crate::ShadowFrames::hpa) says where the frame lies in host memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct ShadowFrame(u32);

impl ShadowFrame {
    /// The frame of this number.
    #[inline]
    pub const fn new(number: u32) -> ShadowFrame {
        ShadowFrame(number)
    }

    /// Its number.
    #[inline]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Its number, as an index into what is kept for each frame.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The number of a virtual CPU of the guest, from zero to below [`Config::vcpus`](crate::Config).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct VcpuId(u16);

impl VcpuId {
    /// The vCPU of this number.
    ///
    /// # Panics
    /// If the number is above 65535. No pool of shadow frames is large enough for so many.
    #[inline]
    pub const fn new(number: usize) -> VcpuId {
        assert!(number <= u16::MAX as usize, "no guest has so many vCPUs");
        VcpuId(number as u16)
    }

    /// Its number, as an index into what is kept for each vCPU.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}
