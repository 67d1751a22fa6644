//! Counting over a time whose length is not known before.

/// How many bins there are at most.
const MOST: u64 = 1024;

/// Bins of time. When one more than [`MOST`] would be needed, pairs become one.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    width: u64,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock { width: 1 }
    }
}

impl Clock {
    /// The bin of a time, and how often pairs have to become one before it is counted there.
    pub fn place(&mut self, time: u64) -> (usize, u32) {
        let mut folds = 0;
        while time / self.width >= MOST {
            self.width *= 2;
            folds += 1;
        }
        // Below 1024.
        ((time / self.width) as usize, folds)
    }

    /// Ticks of a bin.
    pub fn width(&self) -> u64 {
        self.width
    }
}

/// Makes pairs of bins one, so often.
pub fn fold<T: Copy>(bins: &mut Vec<T>, times: u32, join: impl Fn(T, T) -> T) {
    for _ in 0..times {
        *bins = bins
            .chunks(2)
            .map(|pair| pair.iter().copied().reduce(&join).expect("no chunk is empty"))
            .collect();
    }
}

/// Joins bins to slices that a picture can show: at most `most`, of equal length in time. Returns
/// how many bins make one slice.
pub fn per_slice(bins: usize, most: usize) -> usize {
    bins.div_ceil(most).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_by_folding() {
        let (mut clock, mut bins) = (Clock::default(), Vec::<u64>::new());
        let times: Vec<u64> = (0..5000).map(|n| n * n).collect();
        for &time in &times {
            let (place, folds) = clock.place(time);
            fold(&mut bins, folds, |a, b| a + b);
            bins.resize(bins.len().max(place + 1), 0);
            bins[place] += 1;
        }
        assert!(bins.len() <= MOST as usize && bins.len() > MOST as usize / 2);
        for (n, &count) in bins.iter().enumerate() {
            let inside = times.iter().filter(|&&time| time / clock.width() == n as u64).count();
            assert_eq!(count, inside as u64, "bin {n}");
        }
    }

    #[test]
    fn slices() {
        assert_eq!(
            (per_slice(0, 64), per_slice(64, 64), per_slice(65, 64), per_slice(1024, 64)),
            (1, 1, 2, 16)
        );
    }
}
