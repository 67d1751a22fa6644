//! The list of CR3 targets against a CPU with PCIDs: by whatever loads, no PCID ever holds
//! translations of two roots.
//!
//! The CPU here knows nothing of the list but the values: loads of these do not exit. It keeps what
//! it has cached for each PCID as long as the manual lets it.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use umbra_vcpu::cr3_targets::{NO_FLUSH, Targets, root};

const PCID: u64 = 0xfff;

/// What the CPU may have cached: by PCID, the roots.
#[derive(Default)]
struct Cache(BTreeMap<u64, BTreeSet<u64>>);

impl Cache {
    /// MOV to CR3 takes effect.
    fn load(&mut self, value: u64) {
        let cached = self.0.entry(value & PCID).or_default();
        if value & NO_FLUSH == 0 {
            cached.clear();
        }
        cached.insert(root(value));
    }

    fn assert_clean(&self, what: &str) {
        for (pcid, roots) in &self.0 {
            assert!(roots.len() <= 1, "{what}: PCID {pcid} holds translations of {roots:x?}");
        }
    }
}

/// The hypervisor around the list, as far as it concerns it.
struct Machine {
    targets: Targets,
    cache: Cache,
    cr3: u64,
    /// Loads without an exit.
    native: u32,
}

impl Machine {
    fn load(&mut self, value: u64) {
        if self.targets.contains(value) {
            self.native += 1;
            self.cache.load(value);
            self.cr3 = value & !NO_FLUSH;
            return;
        }
        let flushes = self.targets.mixes(value) || value & NO_FLUSH == 0;
        self.targets.follows(self.cr3, value);
        self.cr3 = value & !NO_FLUSH;
        self.make_room(None);
        self.targets.insert(value);
        if let Some(sibling) = self.targets.pti_sibling(self.cr3) {
            self.targets.mixes(sibling);
            self.make_room(Some(self.cr3));
            self.targets.expect(sibling);
        }
        if flushes {
            self.cache = Cache::default();
        }
        self.cache.load(value);
    }

    fn make_room(&mut self, kept: Option<u64>) {
        self.targets.make_room(kept);
        while self.targets.take_unlisted_root().is_some() {}
    }
}

/// A guest of a few processes with two roots each, some of which never use PCIDs.
fn value(rng: &mut Rng) -> u64 {
    let process = rng.u64(1..4);
    let user = rng.u64(0..2);
    let pcid = if rng.bool() { 0 } else { rng.u64(0..4) };
    let keeps = if rng.bool() { NO_FLUSH } else { 0 };
    process << 13 | user << 12 | pcid | keeps
}

#[test]
fn no_pcid_holds_translations_of_two_roots() {
    let mut native = 0;
    for seed in 0..2000 {
        let mut rng = Rng::with_seed(seed);
        let targets = Targets::new(rng.usize(0..5));
        let mut machine = Machine { targets, cache: Cache::default(), cr3: 1 << 13, native: 0 };
        for step in 0..200 {
            match rng.u32(0..8) {
                // The MMU has withdrawn a root.
                0 => {
                    let gone = root(value(&mut rng));
                    machine.targets.retain(|root| root != gone);
                }
                // Any other exit.
                1 => machine.targets.seen(machine.cr3),
                _ => machine.load(value(&mut rng)),
            }
            machine.cache.assert_clean(&format!("seed {seed}, step {step}"));
        }
        native += machine.native;
    }
    assert!(native > 10_000, "only {native} loads did not exit");
}
