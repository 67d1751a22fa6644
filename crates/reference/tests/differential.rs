//! Random guest programs, bare and through the shadow MMU. `UMBRA_STEPS` sets how many steps each
//! takes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{
    Config as Settings, FileFailurePersistence, TestCaseError, TestRunner,
};
use umbra_reference::conformance::MET_BY_GUESTS;
use umbra_reference::coverage::Coverage;
use umbra_reference::minimize::minimize_plain;
use umbra_reference::program::Program;
use umbra_reference::{Config, run_program};

const STEPS_PER_PROGRAM: u64 = 300;

fn budget(default: u64) -> u64 {
    std::env::var("UMBRA_STEPS")
        .map_or(default, |steps| steps.parse().expect("UMBRA_STEPS is a number"))
}

fn explore(name: &str, steps: u64, shadow: bool) -> Coverage {
    let settings = Settings {
        cases: steps.div_ceil(STEPS_PER_PROGRAM).max(1) as u32,
        // Its own way to shrink does not know that steps can go: `minimize` does.
        max_shrink_iters: 0,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        source_file: Some(file!()),
        ..Settings::default()
    };
    let words = vec(any::<u64>(), STEPS_PER_PROGRAM as usize);
    let strategy = (any::<u64>(), any::<u64>(), any::<u64>(), words);
    let mut coverage = std::cell::RefCell::new(Coverage::default());
    let verdict = TestRunner::new(settings).run(&strategy, |(config, setup, seed, words)| {
        let program = Program::new(setup, seed, &words);
        match run_program(&program, &Config::from_word(config, shadow)) {
            Ok(met) => {
                coverage.borrow_mut().merge(&met);
                Ok(())
            }
            Err(divergence) => Err(TestCaseError::fail(divergence.to_string())),
        }
    });
    if let Err(proptest::test_runner::TestError::Fail(why, (config, setup, seed, words))) = verdict
    {
        let program = Program::new(setup, seed, &words);
        match minimize_plain(&program, &Config::from_word(config, shadow)) {
            Some(failure) => panic!("{name}: {failure}"),
            None => panic!("{name}: {why}"),
        }
    }
    println!("{name}\n{}", coverage.get_mut());
    coverage.into_inner()
}

/// A green run means little if it has not met these.
fn assert_met(coverage: &Coverage, names: &[&str]) {
    for name in names {
        assert_ne!(coverage.get(name), 0, "the programs never met {name:?}");
    }
}

#[test]
fn bare_hardware_stays_within_the_oracle() {
    let coverage = explore("bare", budget(100_000), false);
    assert_met(&coverage, MET_BY_GUESTS);
    assert_met(&coverage, &["bare: stale outcomes", "bare: walks from a structure cache"]);
}

#[test]
fn the_shadow_mmu_does_what_bare_hardware_may_do() {
    let coverage = explore("shadow", budget(300_000), true);
    assert_met(&coverage, MET_BY_GUESTS);
    assert_met(
        &coverage,
        &[
            "guest: clears CR0.PG",
            "guest: CR0.WP changes",
            "guest: CR3 changes its root",
            "guest: CR4.PCIDE changes",
            "guest: CR4.PGE changes",
            "guest: CR4.SMAP changes",
            "guest: CR4.SMEP changes",
            "guest: EFER.NXE changes",
            "host: moves a frame",
            "host: moves frames",
            "host: offers the roots in use",
            "host: releases a table",
            "host: revokes",
            "host: swaps a frame out",
            "host: swaps frames out",
            "host: throws all shadows away",
            "host: withdraws a root",
            "host: write-protects a frame",
            "host: write-protects frames",
            "mmu: compares a table with its copy",
            "mmu: links tables ahead",
            "mmu: sets accessed bits ahead",
            "mmu: reclaims in load_paging",
            "mmu: reclaims in page_fault",
            "mmu: splits a large page",
            "mmu: tracks unsync tables again",
            "host: frames given back",
            "mmu: shadow pages reclaimed",
            "shadow: exits, Accessed",
            "shadow: exits, Dirty",
            "shadow: exits, Install",
            "shadow: exits, Link",
            "shadow: exits, MMIO",
            "shadow: exits, Override",
            "shadow: exits, TableWrite",
            "shadow: exits, injected",
            "shadow: faults delivered natively",
            "shadow: role changes",
            "shadow: stale outcomes",
            "shadow: table writes released",
            "guest: PDPTE registers change",
            "guest: turns to 4-level paging",
            "state: 32-bit paging with CR4.PSE",
            "state: 32-bit paging without CR4.PSE",
            "state: PAE paging",
            "state: CPUs in different formats",
            "state: CR0.PG clear",
            "state: CR0.WP clear",
            "state: guest faults bypassed",
            "state: guest faults trapped",
            "state: more guest faults exit while a table is unsync",
        ],
    );
    let nothing_built = "mmu: reclaims in a call that builds nothing";
    assert_eq!(coverage.get(nothing_built), 0, "only page_fault and load_paging may reclaim");
}
