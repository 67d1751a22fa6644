//! The toy conforms, and no hypervisor that makes a mistake does.

use toy_hypervisor::{Mistake, Toy};
use umbra_reference::conformance::{Case, Kit};

#[test]
fn the_toy_conforms() {
    let passed = Kit::default().run(|case: &Case| Toy::new(case.start(), true, None));
    let passed = passed.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(passed.unmet().is_empty(), "the programs never met {:?}", passed.unmet());
    println!("{} steps\n{}", passed.steps, passed.coverage);
}

#[test]
fn no_mistake_passes() {
    for mistake in [
        Mistake::ForgetsFlush,
        Mistake::FlushesOneCpu,
        Mistake::LetsTablesBeWritten,
        Mistake::StoresPastTheMmu,
        Mistake::IgnoresFlushesExit,
        Mistake::IgnoresTrap,
    ] {
        // Without the auditor: what the guest sees is enough.
        let make = |case: &Case| Toy::new(case.start(), false, Some(mistake));
        let failed = Kit::default().run(make).expect_err("bare hardware does nothing of the kind");
        println!("{mistake:?}: {failed}");
        assert!(failed.shortest.program.ops.len() < 20, "{failed}");

        let again =
            Kit::default().replay(failed.seed, make).expect_err("the seed is all that it takes");
        assert_eq!(again, failed);
        let spared = Kit::default().replay(failed.seed, |case| Toy::new(case.start(), true, None));
        assert!(spared.is_ok(), "{spared:?}");
    }
}
