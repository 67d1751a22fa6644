//! Several runs of the same as one.

use crate::report::{Phase, Spread, Statistics};

/// The run with the median of instructions, each of its phases replaced by that of the run where
/// the phase had the median of instructions: so every number was measured, and causes add up. Of
/// two in the middle the smaller one. What is lost by that, the spread of each phase tells.
///
/// # Panics
/// If there is no run.
pub fn median(mut runs: Vec<Statistics>) -> Statistics {
    let work = |run: &Statistics| {
        run.phases.iter().fold(0, |sum: u64, phase| sum.saturating_add(phase.tsc))
    };
    runs.sort_by_key(work);
    let middle = (runs.len() - 1) / 2;
    let phase = |id: u32| {
        let mut repeats: Vec<&Phase> =
            runs.iter().flat_map(|run| &run.phases).filter(|phase| phase.id == id).collect();
        repeats.sort_by_key(|phase| phase.tsc);
        Phase { spread: Spread::of(&repeats), ..repeats[(repeats.len() - 1) / 2].clone() }
    };
    let phases = runs[middle].phases.iter().map(|own| phase(own.id)).collect();
    Statistics { phases, ..runs.swap_remove(middle) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::statistics;

    #[test]
    fn each_phase_has_its_own_median() {
        let run = |ticks: [u64; 2]| {
            let mut run = statistics();
            run.phases.iter_mut().zip(ticks).for_each(|(phase, tsc)| phase.tsc = tsc);
            run.memory = (ticks[0] + ticks[1]) as u32;
            run
        };
        let result = median(vec![run([30, 1]), run([10, 2]), run([20, 900])]);
        assert_eq!(result.phases.iter().map(|phase| phase.tsc).collect::<Vec<_>>(), [20, 2]);
        assert_eq!(result.memory, 31);
        let spread = result.phases[1].spread.unwrap();
        assert_eq!(
            (spread.runs, spread.tsc.min, spread.tsc.median, spread.tsc.max),
            (3, 1, 2, 900)
        );
        assert_eq!(median(vec![run([5, 5]), run([7, 3])]).phases[0].tsc, 5);
        assert_eq!(median(vec![run([5, 5])]).phases[0].spread, None);
    }
}
