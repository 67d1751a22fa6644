//! Steps of a set-up that may take minutes: what is waited for, and how long it took.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// What takes less is not mentioned: mostly everything is there.
const QUIET: Duration = Duration::from_secs(2);

/// How often it is said that it still goes on.
const AGAIN: Duration = Duration::from_secs(30);

/// Does one step. If that takes a while, the user is told what is done, that it still goes on, and
/// how long it took.
pub fn step<T>(what: &str, body: impl FnOnce() -> T) -> T {
    timed(what, [QUIET, AGAIN], |text| eprintln!("xtask: {text}"), body)
}

fn timed<T>(
    what: &str,
    [quiet, again]: [Duration; 2],
    say: impl Fn(String) + Sync,
    body: impl FnOnce() -> T,
) -> T {
    let start = Instant::now();
    let (done, ended) = channel::<()>();
    let say = &say;
    thread::scope(|scope| {
        let told = scope.spawn(move || {
            let (mut wait, mut told) = (quiet, false);
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                match told {
                    false => say(format!("{what} ...")),
                    true => say(format!("{what}: {} s so far", start.elapsed().as_secs())),
                }
                (wait, told) = (again, true);
            }
            told
        });
        let outcome = body();
        // The other side is gone only if it has panicked.
        drop(done);
        if told.join().unwrap_or(false) {
            say(format!("{what} took {:.0} s", start.elapsed().as_secs_f32()));
        }
        outcome
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn said(times: [u64; 2], body: Duration) -> Vec<String> {
        let said = Mutex::new(Vec::new());
        let say = |text| said.lock().unwrap().push(text);
        assert_eq!(
            timed("building", times.map(Duration::from_millis), say, || {
                thread::sleep(body);
                7
            }),
            7
        );
        said.into_inner().unwrap()
    }

    #[test]
    fn what_is_short_is_not_mentioned() {
        assert_eq!(said([60_000, 60_000], Duration::ZERO), [] as [&str; 0]);
    }

    #[test]
    fn what_takes_long_is_named_at_once_in_between_and_at_its_end() {
        let said = said([1, 20], Duration::from_millis(200));
        assert_eq!(said[0], "building ...");
        assert!(
            said[1].ends_with(" s so far") && said.last().unwrap().starts_with("building took "),
            "{said:?}"
        );
    }
}
