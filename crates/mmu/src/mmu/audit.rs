//! The auditor's calls.

use super::Mmu;
use crate::audit::Auditor;
use crate::{Env, Violation};

impl<P> Mmu<P> {
    /// Checks every entry of every shadow page, and the protection of every tracked frame. Takes
    /// time in proportion to the pool. The guest must not run meanwhile.
    ///
    /// # Errors
    /// The first violation found.
    pub fn audit(&mut self, env: &impl Env) -> Result<(), Violation> {
        Auditor::new(&self.shadow, env).everything()?;
        self.shadow.all_seen();
        Ok(())
    }

    /// Checks the entries that changed since the last audit of either kind; everything, if more
    /// changed than the log holds. Needs [`Config::log_changes`](crate::Config::log_changes). A
    /// change that should have been made and was not is seen only by [`Mmu::audit`].
    ///
    /// # Errors
    /// The first violation found.
    pub fn audit_changed(&mut self, env: &impl Env) -> Result<(), Violation> {
        if self.shadow.tables().log_has_overflowed() {
            return self.audit(env);
        }
        while let Some(slot) = self.shadow.take_changed() {
            Auditor::new(&self.shadow, env).changed(slot)?;
        }
        Auditor::new(&self.shadow, env).quarantine()
    }
}
