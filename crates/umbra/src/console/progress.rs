//! Lines on a terminal that stay where they are: what is being waited for, or how it goes.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::message::message;

/// Lines on standard error that the next ones take the place of. Without a terminal there are none.
#[derive(Debug)]
struct InPlace {
    bar: ProgressBar,
    animated: bool,
}

impl InPlace {
    /// Nothing yet. The template is indicatif's.
    fn new(template: &str) -> InPlace {
        let bar = ProgressBar::new_spinner();
        // It is this program's own, and the tests use each.
        bar.set_style(ProgressStyle::with_template(template).expect("the template is well-formed"));
        InPlace { bar, animated: io::stderr().is_terminal() }
    }

    fn show(&self, text: String) {
        if self.animated {
            if self.bar.is_finished() {
                self.bar.reset();
            }
            self.bar.set_message(text);
            self.bar.tick();
        }
    }

    fn clear(&self) {
        if self.animated && !self.bar.is_finished() {
            self.bar.finish_and_clear();
        }
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Says that something takes a while. Without a terminal it is said once.
#[derive(Debug)]
pub struct Progress {
    line: InPlace,
    text: String,
}

impl Progress {
    /// Says what is being waited for.
    pub fn start(text: String) -> Progress {
        let line = InPlace::new("{spinner} {msg}");
        if !line.animated {
            message(format_args!("umbra: {text}\n"));
        }
        Progress { line, text }
    }

    /// Shows that it still goes on.
    pub fn tick(&mut self, elapsed: Duration) {
        self.line.show(format!("{} ({} s)", self.text, elapsed.as_secs()));
    }

    /// Takes the line away, so that something else can be printed.
    pub fn clear(&mut self) {
        self.line.clear();
    }
}

/// Shows how it goes, again and again. Without a terminal each time is printed below the last.
#[derive(Debug)]
pub struct Live(InPlace);

impl Live {
    /// Nothing yet.
    pub fn start() -> Live {
        Live(InPlace::new("{msg}"))
    }

    /// Shows it as it is now.
    pub fn show(&mut self, text: &str) {
        match self.0.animated {
            true => self.0.show(text.trim_end().into()),
            false => message(format_args!("{text}\n")),
        }
    }

    /// Takes it away, so that something else can be printed.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cleared_is_shown_again() {
        let (mut progress, mut live) = (Progress::start("loading".into()), Live::start());
        // A terminal only in name, so that the bar is really driven.
        for in_place in [&mut progress.line, &mut live.0] {
            in_place.bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
            in_place.animated = true;
        }
        for _ in 0..2 {
            progress.tick(Duration::from_secs(3));
            live.show("a\nb\n");
            assert_eq!(
                (progress.line.bar.message(), live.0.bar.message()),
                ("loading (3 s)".into(), "a\nb".into())
            );
            assert!(!progress.line.bar.is_finished() && !live.0.bar.is_finished());
            progress.clear();
            live.clear();
            assert!(progress.line.bar.is_finished() && live.0.bar.is_finished());
        }
    }
}
