//! How often one key may call the management API: `management.rate`, counted in this process only.
//!
//! A fixed window is enough: this protects the store from a runaway script, it is no quota that somebody paid for. It must
//! not be asked on the data path; management calls are rare and a lock is fine.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::problem::problem;
use crate::policy::instant::Mono;
use crate::policy::key::{KeyId, Timestamp};
use crate::policy::quota::{Window, WindowState};
use crate::policy::rejection::Problem;

const WINDOW: Duration = Duration::from_secs(60);

/// Calls of each key in the current window.
#[derive(Debug, Default)]
pub struct CallRate {
    window: Mutex<Callers>,
}

#[derive(Debug, Default)]
struct Callers {
    number: u64,
    calls: HashMap<KeyId, u32>,
}

/// The rate is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyCalls {
    /// Calls in a minute.
    pub limit: u32,
    /// A call may succeed after so many seconds, at least one.
    pub retry_after: u64,
}

impl CallRate {
    /// Counts one of `per_minute` calls, or refuses it.
    pub fn charge(&self, key: &KeyId, per_minute: u32, now: Mono) -> Result<(), TooManyCalls> {
        let length = WINDOW.as_micros() as u64;
        // A panic elsewhere cannot leave a counter half-written, so a poisoned lock is as good as any.
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.number != now.0 / length {
            // Keys that stopped calling are forgotten here, so the map holds one window's callers at most.
            *window = Callers { number: now.0 / length, calls: HashMap::new() };
        }
        let calls = window.calls.entry(key.clone()).or_default();
        if *calls >= per_minute {
            let retry_after = (length - now.0 % length).div_ceil(1_000_000);
            return Err(TooManyCalls { limit: per_minute, retry_after });
        }
        *calls += 1;
        Ok(())
    }
}

impl TooManyCalls {
    /// The violated window as clients are told of it.
    pub fn window(self, now: Timestamp) -> WindowState {
        let reset = now.plus_seconds(self.retry_after as i64).unix_seconds().max(0) as u64;
        WindowState { window: Window::Minute, limit: self.limit, remaining: 0, reset, seconds_left: self.retry_after }
    }

    /// The refusal; its header fields are the transport's to set.
    pub fn problem(self) -> Problem {
        problem(
            429,
            "rate_limited",
            "Too many management calls",
            format!("This key called the management API too often; try again in {} s.", self.retry_after),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono(seconds * 1_000_000)
    }

    #[test]
    fn each_key_has_its_own_calls_and_the_next_minute_new_ones() {
        let rate = CallRate::default();
        let (one, other) = (KeyId::parse("one").unwrap(), KeyId::parse("other").unwrap());
        assert_eq!(rate.charge(&one, 2, at(60)), Ok(()));
        assert_eq!(rate.charge(&one, 2, at(61)), Ok(()));
        assert_eq!(rate.charge(&one, 2, at(90)), Err(TooManyCalls { limit: 2, retry_after: 30 }));
        assert_eq!(rate.charge(&one, 2, Mono(119_999_999)), Err(TooManyCalls { limit: 2, retry_after: 1 }));
        assert_eq!(rate.charge(&other, 2, at(90)), Ok(()));
        assert_eq!(rate.charge(&one, 2, at(120)), Ok(()));
    }

    #[test]
    fn callers_of_the_last_minute_are_forgotten() {
        let rate = CallRate::default();
        for n in 0..100 {
            rate.charge(&KeyId::parse(&format!("k{n}")).unwrap(), 1, at(1)).unwrap();
        }
        rate.charge(&KeyId::parse("k").unwrap(), 1, at(61)).unwrap();
        assert_eq!(rate.window.lock().unwrap().calls.len(), 1);
    }

    #[test]
    fn the_refusal_is_a_429_with_the_seconds_to_wait() {
        let problem = TooManyCalls { limit: 5, retry_after: 7 }.problem();
        assert_eq!((problem.status, problem.code), (429, "rate_limited"));
        assert!(problem.detail.contains("7 s"));
    }
}
