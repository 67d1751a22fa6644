//! What the page-fault filter saved in a run, in words.

use umbra_telemetry::ExitCause;

use super::Statistics;

/// Says how many of the guest's own page faults exited, and how many exits there would have been if
/// all had. `faults` are those that the guest has counted itself. Empty where it cannot be said.
pub fn saved(statistics: &Statistics, faults: Option<u64>) -> String {
    let (Some(exits), Some(faults), "umbra") =
        (&statistics.exits, faults, statistics.hypervisor.as_str())
    else {
        return String::new();
    };
    let of = |cause| exits.get(cause).unwrap_or(0);
    let exited = exits.group(|cause| cause.name().starts_with("guest_fault_")).unwrap_or(0);
    if statistics.guest_faults == "trap" {
        return format!(
            "page faults: the guest counted {faults} of its own\n  \
             all of them exited (--guest-faults trap); by default most go straight to the guest"
        );
    }
    let Some(straight) = faults.checked_sub(exited) else { return String::new() };
    let of_kernel = of(ExitCause::GuestFaultNotPresentKernel);
    let of_kernel = match of_kernel {
        0 => String::new(),
        count => format!(" ({count} not-present faults of its kernel, under the filter `user`)"),
    };
    let (total, trapped) = (exits.total(), exits.total().saturating_add(straight));
    format!(
        "page faults: the guest counted {faults} of its own\n  \
         {exited} exited to the hypervisor{of_kernel}\n  \
         {straight} went straight to the guest\n  \
         with --guest-faults trap all would exit: about {trapped} exits in all, instead of {total}"
    )
}

#[cfg(test)]
mod tests {
    use umbra_telemetry::ExitCounts;

    use super::*;
    use crate::report::Exits;
    use crate::report::tests::statistics;

    fn run(counts: &[(ExitCause, u64)]) -> Statistics {
        let counts: ExitCounts = counts.iter().copied().collect();
        Statistics { exits: Some(Exits::from(&counts)), ..statistics() }
    }

    #[test]
    fn what_exited_and_what_would_have() {
        use ExitCause::{GuestFaultNotPresentKernel, GuestFaultProtectionKernel, Io};
        let counts =
            [(GuestFaultNotPresentKernel, 352), (GuestFaultProtectionKernel, 48), (Io, 5000)];
        let text = saved(&run(&counts), Some(20_400));
        for expected in [
            "the guest counted 20400 of its own\n  400 exited to the hypervisor (",
            "(352 not-present faults of its kernel, under the filter `user`)",
            "\n  20000 went straight to the guest\n",
            "about 25400 exits in all, instead of 5400",
        ] {
            assert!(text.contains(expected), "{text}");
        }
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        let text = saved(&run(&counts[1..]), Some(20_400));
        assert!(text.contains("\n  48 exited to the hypervisor\n"), "{text}");
    }

    #[test]
    fn trap_mode_says_that_it_is_not_the_default() {
        let trap = Statistics { guest_faults: "trap".into(), ..run(&[]) };
        assert!(saved(&trap, Some(7)).contains("all of them exited (--guest-faults trap)"));
    }

    #[test]
    fn where_nobody_counted_nothing_is_said() {
        let peer = Statistics { hypervisor: "none".into(), exits: None, ..statistics() };
        for (run, faults) in [
            (run(&[]), None),
            (peer, Some(7)),
            (run(&[(ExitCause::GuestFaultReserved, 9)]), Some(7)),
        ] {
            assert_eq!(saved(&run, faults), "");
        }
    }
}
