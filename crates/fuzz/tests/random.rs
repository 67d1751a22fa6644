//! Every target on random bytes: what a fuzzer would do in its first second.

use umbra_fuzz::TARGETS;

#[test]
fn random_bytes_are_judged_without_a_finding() {
    for (name, target) in TARGETS {
        let mut random = fastrand::Rng::with_seed(name.len() as u64);
        // Programs of the MMU take a thousand times as long as anything else.
        let inputs = if *name == "mmu" { 30 } else { 3000 };
        for _ in 0..inputs {
            let length = random.usize(..1500);
            let data: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
            if std::panic::catch_unwind(|| target(&data)).is_err() {
                panic!("{name} has a finding: {data:?}");
            }
        }
    }
}
