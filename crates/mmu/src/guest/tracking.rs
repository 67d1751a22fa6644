//! Whether the guest's writes to a frame are seen, and the first of its shadows.

use crate::ShadowFrame;

/// Whether the guest's writes to a frame are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tracking {
    /// They need not be: the frame has no shadows.
    Untracked,
    /// They are.
    Tracked,
    /// They are not, and nothing leads to its shadows.
    Detached,
    /// They are not, and its shadows have no NotPresent entries. The frame may have no shadows,
    /// too: the write that it was given up for is yet to come.
    Unsync,
}

/// [`Tracking`] and the first shadow page of a frame, in one word.
#[derive(Clone, Copy)]
pub(super) struct Shadows(u32);

impl Shadows {
    /// Numbers of shadow frames stay below.
    const NONE: u32 = (1 << 30) - 1;
    pub(super) const UNTRACKED: Shadows = Shadows(Self::NONE);

    pub(super) fn first(self) -> Option<ShadowFrame> {
        let first = self.0 & Self::NONE;
        (first != Self::NONE).then_some(ShadowFrame::new(first))
    }

    pub(super) fn tracking(self) -> Tracking {
        match self.0 >> 30 {
            0 => Tracking::Untracked,
            1 => Tracking::Tracked,
            2 => Tracking::Detached,
            _ => Tracking::Unsync,
        }
    }

    pub(super) fn with_tracking(self, tracking: Tracking) -> Shadows {
        let bits = match tracking {
            Tracking::Untracked => 0,
            Tracking::Tracked => 1,
            Tracking::Detached => 2,
            Tracking::Unsync => 3,
        };
        Shadows(self.0 & Self::NONE | bits << 30)
    }

    pub(super) fn with_first(self, first: Option<ShadowFrame>) -> Shadows {
        debug_assert!(first.is_none_or(|first| first.raw() < Self::NONE));
        Shadows(self.0 & !Self::NONE | first.map_or(Self::NONE, ShadowFrame::raw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_first_shadow_do_not_touch_each_other() {
        let all = [Tracking::Untracked, Tracking::Tracked, Tracking::Detached, Tracking::Unsync];
        let some = |number| Some(ShadowFrame::new(number));
        for first in [None, some(0), some(1), some((1 << 20) - 1)] {
            for tracking in all {
                let one = Shadows::UNTRACKED.with_first(first).with_tracking(tracking);
                let other = Shadows::UNTRACKED.with_tracking(tracking).with_first(first);
                for word in [one, other, one.with_first(some(7)).with_first(first)] {
                    assert_eq!((word.first(), word.tracking()), (first, tracking));
                }
            }
        }
    }
}
