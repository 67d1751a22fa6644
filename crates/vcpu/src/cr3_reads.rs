//! Where loads of CR3 exit in any case: which roots are worth a place where reads of CR3 do not.
//!
//! To bring a root there costs as much as several exits. So each has to cost some first: with
//! page-table isolation Linux reads CR3 at every way into the kernel and back, and hardly ever
//! without.

/// Roots of which the reads are counted: direct-mapped.
const KNOWN: usize = 16;
/// After so many reads that exited the root is worth it.
const ENOUGH: u8 = 8;

/// The reads of one vCPU that exited.
#[derive(Debug, Default)]
pub struct Reads([Count; KNOWN]);

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    root: u64,
    reads: u8,
}

impl Reads {
    /// The guest has read CR3 by an exit while it ran on this root. Whether it is worth it.
    pub fn exited(&mut self, root: u64) -> bool {
        let count = &mut self.0[(root >> 12) as usize % KNOWN];
        if count.root != root {
            *count = Count { root, reads: 0 };
        }
        count.reads += 1;
        let enough = count.reads == ENOUGH;
        if enough {
            // Should it not come to stay there, the next time costs as much again.
            count.reads = 0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_worth_it_once_its_reads_have_cost_some_exits() {
        let mut reads = Reads::default();
        let worth = |reads: &mut Reads, root| (0..100).position(|_| reads.exited(root));
        assert_eq!(worth(&mut reads, 0x5000), Some(7));
        assert_eq!(worth(&mut reads, 0x5000), Some(7), "anew, if it did not stay there");
        assert_eq!(worth(&mut reads, 0x6000), Some(7), "its sibling is counted by itself");
        assert_eq!(worth(&mut reads, 0x1_5000), Some(7));
        assert_eq!(worth(&mut reads, 0x5000), Some(7), "another root had its place");
    }
}
