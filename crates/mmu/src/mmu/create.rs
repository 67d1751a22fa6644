//! Creation.

use alloc::vec::Vec;

use umbra_paging::{Gfn, Hfn, Mode, Paging};

use super::{Mmu, Vcpu};
use crate::advice::{Predictor, Regret};
use crate::lifecycle::Shadow;
use crate::policy::WritePolicy;
use crate::{Backing, Config, ConfigError, Env, MIN_FRAMES_PER_VCPU, ShadowFrame};

impl Mmu {
    /// An MMU that predicts bursts of writes to tables: see [`Mmu::with_policy`].
    ///
    /// # Errors
    /// As [`Mmu::with_policy`].
    pub fn new(config: Config, env: &mut impl Env) -> Result<Mmu, ConfigError> {
        Mmu::with_policy(config, env, Predictor::default())
    }
}

impl<P: WritePolicy> Mmu<P> {
    /// An MMU whose vCPUs all have paging off. What the smallest pool needs is allocated here.
    /// Later calls allocate 4 KiB for a shadow page that is built, if none are left of one that is
    /// gone. If the heap is exhausted then, the MMU reclaims other pages for it, as in a smaller
    /// pool. Only the auditor and [`Mmu::check_backing`] allocate otherwise.
    ///
    /// # Errors
    /// The configuration and what `env` offers do not fit together.
    pub fn with_policy(
        config: Config,
        env: &mut impl Env,
        policy: P,
    ) -> Result<Mmu<P>, ConfigError> {
        let (frames, end) = (env.count(), env.end());
        let needed =
            MIN_FRAMES_PER_VCPU.saturating_mul(config.vcpus.try_into().unwrap_or(u32::MAX));
        if frames < needed {
            return Err(ConfigError::TooFewFrames { frames, needed });
        }
        if frames > 1 << 20 {
            return Err(ConfigError::TooManyFrames { frames });
        }
        if end.raw() > 1 << 30 {
            return Err(ConfigError::TooMuchMemory { end });
        }
        let (guest, host) = (config.features.maxphyaddr, config.encodings.maxphyaddr());
        if guest > host {
            return Err(ConfigError::WiderThanHost { guest, host });
        }
        if let Some(hpa) =
            (0..frames).map(|n| env.hpa(ShadowFrame::new(n))).find(|hpa| hpa.raw() >= 1 << 32)
        {
            return Err(ConfigError::FrameAbove4G { hpa });
        }
        shared_frame(env)?;
        // Pinned roots are not there to be reclaimed: what one instruction needs comes first.
        let loadable =
            ((frames - needed) as usize / config.vcpus.max(1)).min(config.loadable_roots);
        let mut mmu = Mmu {
            shadow: Shadow::new(config, frames, end, loadable),
            policy,
            regret: Regret::default(),
            vcpus: (0..config.vcpus).map(|_| Vcpu::default()).collect(),
            flushes: 0,
        };
        let off = Paging {
            mode: Mode::Off,
            root: Gfn::new(0),
            wp: false,
            smep: false,
            smap: false,
            pge: false,
            nxe: false,
        };
        for _ in 0..config.vcpus {
            mmu.shadow.with(env).add_vcpu(&mut mmu.policy, off);
        }
        Ok(mmu)
    }
}

impl<P> Mmu<P> {
    /// Checks that no two guest frames have the same host frame, as [`Mmu::with_policy`] does: for
    /// an embedder that has changed the gpa->hpa map. Asks for the backing of every frame.
    ///
    /// # Errors
    /// Two that have: [`ConfigError::SharedFrame`].
    pub fn check_backing(&self, env: &impl Env) -> Result<(), ConfigError> {
        shared_frame(env)
    }
}

/// Writes are seen by guest frame: two with the same host frame would hide one another's.
fn shared_frame(env: &impl Env) -> Result<(), ConfigError> {
    let frames = || {
        (0..env.end().raw()).map(Gfn::new).filter_map(|gfn| match env.backing(gfn) {
            Backing::Ram { hfn, .. } => Some((hfn.raw(), gfn)),
            Backing::None => None,
        })
    };
    // Mostly they lie in order.
    if frames().is_sorted_by(|(before, _), (after, _)| before < after) {
        return Ok(());
    }
    let mut all: Vec<(u64, Gfn)> = frames().collect();
    all.sort_unstable();
    match all.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(&[(hfn, gfn), (_, other)]) => {
            Err(ConfigError::SharedFrame { gfn, other, hfn: Hfn::new(hfn) })
        }
        _ => Ok(()),
    }
}
