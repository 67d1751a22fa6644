//! The toy on trial, by the programs that judge whole hypervisors: it is clean, and a faulty one is
//! convicted by what its guest observes.

use toy_hypervisor::{Mistake, Toy};
use umbra_reference::hardware::Temper;
use umbra_trial::judge::{Tally, judge};
use umbra_trial::program::Program;
use umbra_trial::{generate, simulated};

/// How many programs are tried at most.
const PROGRAMS: u64 = 60;

/// Random programs, by number and length.
type Programs = fn(u64, usize) -> Program;

/// The first program that convicts the toy, and in which step; or what was judged.
fn on_trial(programs: Programs, mistake: Option<Mistake>) -> Result<Tally, (u64, usize)> {
    let mut total = Tally::default();
    for seed in generate::FIRST_SEED..generate::FIRST_SEED + PROGRAMS {
        let program = programs(seed, generate::STEPS);
        let toy = Toy::new(simulated::start(&program, Temper::STICKY), false, mistake);
        let record = simulated::run(toy, &program);
        total.add(&judge(&program, &record).map_err(|conviction| {
            println!("{mistake:?}, program {seed}: {conviction}");
            (seed, conviction.step)
        })?);
    }
    Ok(total)
}

#[test]
fn the_toy_is_clean() {
    for programs in [generate::program as Programs, generate::program_of_two] {
        let tally = on_trial(programs, None).expect("the toy does what bare hardware does");
        assert!(tally.judged > 5000, "{tally:?}");
    }
}

#[test]
fn faulty_toys_are_convicted() {
    for mistake in [Mistake::ForgetsFlush, Mistake::LetsTablesBeWritten] {
        assert!(on_trial(generate::program, Some(mistake)).is_err(), "{mistake:?} passes");
    }
}

#[test]
fn a_flush_of_one_cpu_shows_with_two() {
    let mistake = Some(Mistake::FlushesOneCpu);
    assert!(on_trial(generate::program, mistake).is_ok());
    assert!(on_trial(generate::program_of_two, mistake).is_err());
}
