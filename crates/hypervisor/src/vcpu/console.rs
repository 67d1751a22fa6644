//! What the user types to the guest and sees of it.

use alloc::collections::VecDeque;

use umbra_devices::Platform;
use umbra_machine::screen::Screen;
use umbra_machine::upkeep::Upkeep;
use umbra_telemetry::Message;
use umbra_vcpu::backend::Backend;

use super::Vcpu;
use crate::hw::console as line;
use crate::telemetry;

/// Console input that waits for the guest to read it. What comes beyond is lost, as on a real line:
/// the host's commands come the same way, and must not wait for a guest that never reads.
const MAX_TYPED: usize = 64 << 10;

/// What the host asks for inside the console input.
#[derive(Default)]
pub struct Requests {
    /// The guest's end.
    pub finish: bool,
    /// What was counted so far.
    pub counts: bool,
}

/// Input that waits for the guest, and the times at which its output and its screen are shown.
pub struct Console {
    /// Input that the guest has no room for yet.
    typed: VecDeque<u8>,
    upkeep: Upkeep,
}

impl Console {
    /// Nothing is typed yet.
    pub fn new(upkeep: Upkeep) -> Console {
        Console { typed: VecDeque::new(), upkeep }
    }

    /// Whether there is input to [hand over](Console::hand_over).
    pub fn has_input(&self) -> bool {
        line::has_input() || !self.typed.is_empty()
    }

    /// Takes what came on the line, and gives the guest as much as it has room for. Returns
    /// what the host asks for.
    pub fn hand_over(&mut self, platform: &mut Platform) -> Requests {
        let mut requests = Requests::default();
        if line::has_input() {
            let typed = &mut self.typed;
            line::poll(&mut |byte| {
                if typed.len() < MAX_TYPED {
                    typed.push_back(byte);
                }
            });
            requests =
                Requests { finish: line::finish_requested(), counts: line::take_count_request() };
        }
        while platform.console_input_room() > 0
            && let Some(byte) = self.typed.pop_front()
        {
            platform.console_input(&[byte]);
        }
        requests
    }

    /// When output or the screen is to be shown.
    pub fn next_deadline(&self) -> Option<u64> {
        self.upkeep.next()
    }

    /// The guest's screen, if the user wants to see it.
    pub fn screen(&mut self) -> Option<&mut Screen> {
        self.upkeep.screen.as_mut()
    }

    /// The screen has been looked at.
    pub fn screen_looked_at(&mut self) {
        self.upkeep.settle();
    }
}

impl<B: Backend> Vcpu<B> {
    /// Shows the user what is due.
    pub(super) fn show_what_is_due(&mut self, now: u64) {
        if self.console.upkeep.output_is_due(now) {
            self.flush_output();
        }
        if self.console.upkeep.screen_is_due(now) {
            self.look_at_screen(now);
        }
    }

    /// Sends what the guest printed.
    pub(super) fn flush_output(&mut self) {
        self.console.upkeep.output_sent();
        let console = self.platform.take_console_output();
        if !console.is_empty() {
            telemetry::send(&Message::Console(console));
        }
        let debug = self.platform.take_debug_output();
        if !debug.is_empty() {
            telemetry::send(&Message::DebugConsole(debug));
        }
    }

    /// Sends what the guest printed if it is worth a message; else it may wait a little for more.
    pub(super) fn flush_output_if_due(&mut self) {
        if self.platform.output_due() {
            self.flush_output();
        } else if self.platform.has_output() {
            self.console.upkeep.output_waits(self.time.now());
            self.time.ring_by(self.console.next_deadline());
        }
    }
}
