//! Random programs whose seeds are always the same: what judges mutants must not depend on luck.

use umbra_reference::recipe::Recipe;

/// So many on request: `cargo xtask mutants` takes minutes for each mutant that survives so far.
fn programs() -> u64 {
    let number = std::env::var("UMBRA_FIXED_PROGRAMS").ok();
    number.map_or(24, |number| number.parse().expect("UMBRA_FIXED_PROGRAMS is a number"))
}

#[test]
fn programs_of_fixed_seeds_are_as_on_bare_hardware() {
    for seed in 0..programs() {
        if let Err(divergence) = Recipe::random(seed, 300).run() {
            panic!("seed {seed}: {divergence}");
        }
    }
}
