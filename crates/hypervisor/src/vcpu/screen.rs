//! Shows the user the guest's screen.

use alloc::vec::Vec;

use umbra_machine::memory::{FRAME, TEXT};
use umbra_machine::screen::characters;
use umbra_paging::Gpa;
use umbra_telemetry::Message;
use umbra_vcpu::backend::Backend;

use super::Vcpu;
use crate::telemetry;

impl<B: Backend> Vcpu<B> {
    /// Looks at the screen, and shows it if it is time to.
    pub(super) fn look_at_screen(&mut self, now: u64) {
        let text = self.read_screen();
        if let Some(screen) = self.console.screen() {
            // While the guest shows graphics, there is nothing new to read.
            let text = text.unwrap_or_else(|| screen.seen().into());
            if let Some(text) = screen.look(now, text) {
                telemetry::send(&Message::Screen(text));
            }
        }
        self.console.screen_looked_at();
    }

    /// Shows what the user has not seen of the screen when the guest has ended.
    pub(super) fn show_last_screen(&mut self) {
        let text = self.read_screen();
        if let (Some(screen), Some(text)) = (self.console.screen(), text)
            && let Some(text) = screen.last_look(text)
        {
            telemetry::send(&Message::Screen(text));
        }
    }

    /// The characters on the screen; `None` if it shows graphics, or nobody wants to see it.
    fn read_screen(&mut self) -> Option<Vec<u8>> {
        self.console.screen()?;
        let shown = self.platform.text_screen()?;
        let mut memory = alloc::vec![0; (TEXT.end - TEXT.start) as usize];
        for (page, at) in memory.chunks_exact_mut(FRAME as usize).zip(TEXT.step_by(FRAME as usize))
        {
            self.env.ram.read(Gpa::new(at), page);
        }
        Some(characters(&memory, shown))
    }
}
