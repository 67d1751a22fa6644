//! A part of the exhaustive set: `cargo xtask exhaustive` runs the whole.

use umbra_mmu::FilterPolicy;
use umbra_paging::Level;
use umbra_reference::exhaustive::{Counts, Mode, Part};

#[test]
fn every_nth_case_is_as_on_bare_hardware() {
    let mut sum = Counts::default();
    // A prime, so that all accesses and settings have their turn.
    for part in Part::all(64, 1009, 0) {
        let counts = part.run().unwrap_or_else(|why| panic!("{why}"));
        assert!(counts.cases > 0 && counts.injected > 0 && counts.unflushed > 0, "{part:?}");
        assert_eq!(counts.native > 0, matches!(part.mode, Mode::Bypass(_)), "{part:?}");
        let protection = counts.coverage.get("shadow: protection faults delivered natively") > 0;
        let unsync = counts.coverage.get("mmu: tables become unsync") > 0;
        assert_eq!(unsync, part.mode == Mode::Unsync && part.upper == Level::L2, "{part:?}");
        let may = matches!(part.mode, Mode::Bypass(FilterPolicy::User | FilterPolicy::Auto));
        assert_eq!(protection, may, "{part:?}");
        sum.add(&counts);
    }
    for name in [
        "guest: #PF, not present, user",
        "guest: #PF, protection, supervisor fetch",
        "guest: #PF, reserved bit",
        "shadow: exits, Accessed",
        "shadow: exits, Dirty",
        "shadow: exits, Override",
        "shadow: exits, TableWrite",
    ] {
        assert_ne!(sum.coverage.get(name), 0, "no case met {name:?}");
    }
}
