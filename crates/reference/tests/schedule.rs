//! Two CPUs, one of them in the hypervisor: orders with one preemption. `cargo xtask schedule` has
//! all with two.

use umbra_reference::machine::Protocol;
use umbra_reference::schedule::Small;

/// Points that are tried in each program.
const POINTS: u32 = 60;

#[test]
fn orders_with_one_preemption_are_as_on_bare_hardware() {
    for program in Small::all() {
        let orders = program
            .explore(Protocol::PublishFirst, 1, 1, POINTS)
            .unwrap_or_else(|wrong| panic!("{wrong}"));
        println!("{orders:6} orders: {}", program.name);
        assert!(orders > 2, "{}: the step never enters the MMU", program.name);
    }
}

#[test]
fn a_cpu_that_enters_with_what_is_out_of_date_is_noticed() {
    for protocol in [Protocol::CheckFirst, Protocol::NoCheck] {
        let noticed = |program: &Small| program.explore(protocol, 1, 1, POINTS).is_err();
        let by: Vec<&str> =
            Small::all().iter().filter(|small| noticed(small)).map(|small| small.name).collect();
        println!("{protocol:?}: {by:?}");
        assert!(!by.is_empty(), "{protocol:?} goes unnoticed");
    }
}
