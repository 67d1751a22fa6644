//! Phase marks: how a guest tells where its workload's phases begin and end.

/// What the guest said about its phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The guest is up: phase 0, `boot`, which started at guest entry, ends.
    BootEnd,
    /// Phase `id` starts.
    Start {
        /// The phase.
        id: u32,
    },
    /// Phase `id` ends.
    End {
        /// The phase.
        id: u32,
        /// How many operations it did, as the guest said; zero if it said nothing since the last
        /// end.
        ops: u32,
    },
}

/// The write to port 0x5f0 that ends phase 0. It is odd, so no phase has this number's half as its
/// id.
const BOOT_END: u32 = 0xb007;

/// The ports 0x5f0 and 0x5f4.
#[derive(Default)]
pub(crate) struct Marks {
    operations: u32,
}

impl Marks {
    /// A write to port 0x5f4.
    pub(crate) fn set_operations(&mut self, operations: u32) {
        self.operations = operations;
    }

    /// A write to port 0x5f0.
    pub(crate) fn mark(&mut self, value: u32) -> Mark {
        let id = value >> 1;
        match value {
            BOOT_END => Mark::BootEnd,
            _ if value & 1 == 1 => Mark::Start { id },
            _ => Mark::End { id, ops: core::mem::take(&mut self.operations) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_end_is_no_start() {
        let mut marks = Marks::default();
        assert_eq!(marks.mark(0xb007), Mark::BootEnd);
        assert_eq!(marks.mark(0xb009), Mark::Start { id: 0x5804 });
        assert_eq!(marks.mark(0xb006), Mark::End { id: 0x5803, ops: 0 });
    }

    #[test]
    fn operations_belong_to_one_end() {
        let mut marks = Marks::default();
        marks.set_operations(1024);
        assert_eq!(marks.mark(6 << 1 | 1), Mark::Start { id: 6 });
        assert_eq!(marks.mark(6 << 1), Mark::End { id: 6, ops: 1024 });
        assert_eq!(marks.mark(6 << 1), Mark::End { id: 6, ops: 0 });
    }
}
