//! The control: a judge that convicts bare hardware is wrong.

use umbra_reference::hardware::Temper;
use umbra_reference::machine::Bare;
use umbra_trial::generate::{STEPS, for_bare, program, program_of_two};
use umbra_trial::judge::{Tally, judge};
use umbra_trial::program::Program;
use umbra_trial::simulated;

#[test]
fn bare_hardware_is_not_convicted() {
    clean(program);
}

#[test]
fn bare_hardware_of_two_cpus_is_not_convicted() {
    clean(program_of_two);
}

fn clean(program: impl Fn(u64, usize) -> Program) {
    let mut total = Tally::default();
    for seed in 0..400 {
        let mut program = program(seed, STEPS);
        if seed % 4 == 3 {
            program = for_bare(program, true);
        }
        let temper = [Temper::STICKY, Temper::ERRATIC, Temper::FORGETFUL][seed as usize % 3];
        let record = simulated::run(Bare::new(simulated::start(&program, temper)), &program);
        match judge(&program, &record) {
            Ok(tally) => total.add(&tally),
            Err(conviction) => panic!("seed {seed}: {conviction}"),
        }
    }
    println!("{total:?}");
    assert!(total.faults * 4 > total.judged && total.judged * 5 > total.steps * 2, "{total:?}");
}
