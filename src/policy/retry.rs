//! Whether a request may be tried again after an upstream failed it, and how much of that is healthy (contract 2).
//!
//! Only what cannot do a thing twice: nothing was sent, or nothing was answered and the method promises that a repetition
//! changes nothing (RFC 9110 section 9.2.2). The budget keeps retries a small share of the traffic, so that an upstream in
//! trouble does not get twice its load. Time comes as calls of [`Budget::tick`]; nothing is sent from here.

use std::collections::VecDeque;

use http::Method;

/// How far a try came before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nothing was sent: no connection, or one that was lost before the first octet went out.
    Unsent,
    /// Sent, and the connection was lost before any octet of the answer.
    Unanswered,
    /// Anything else: a timeout, a malformed answer, the client's own body.
    Final,
}

/// Whether the method promises that a request received twice does what it does once. TRACE is never forwarded.
pub fn is_repeatable(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}

/// Whether a try may follow. `has_request`: the request is still there as it was, its body included.
pub fn may_follow(failure: Failure, method: &Method, has_request: bool) -> bool {
    has_request
        && match failure {
            Failure::Unsent => true,
            Failure::Unanswered => is_repeatable(method),
            Failure::Final => false,
        }
}

/// How many ticks a request counts.
pub const WINDOW: usize = 20;

/// Retries as a share of the requests of the last [`WINDOW`] ticks.
///
/// Requests are counted elsewhere, as a running total: counting one must not take a lock.
#[derive(Debug)]
pub struct Budget {
    percent: u64,
    floor: u64,
    retries: u64,
    /// Totals of requests and retries at the last ticks, the oldest first; never empty.
    marks: VecDeque<(u64, u64)>,
}

impl Budget {
    /// `percent` of the requests, and `floor` retries a window whatever the traffic is.
    pub fn new(percent: u8, floor: u64) -> Self {
        Self { percent: percent.into(), floor, retries: 0, marks: VecDeque::from([(0, 0)]) }
    }

    /// Takes a retry out of the budget, if there is one. `requests`: the running total.
    pub fn take(&mut self, requests: u64) -> bool {
        let (requests_then, retries_then) = self.marks.front().copied().unwrap_or_default();
        let allowed = requests.saturating_sub(requests_then) * self.percent / 100 + self.floor;
        let is_left = self.retries - retries_then < allowed;
        self.retries += u64::from(is_left);
        is_left
    }

    /// Time passes: what is older than the window no longer counts.
    pub fn tick(&mut self, requests: u64) {
        self.marks.push_back((requests, self.retries));
        if self.marks.len() > WINDOW {
            self.marks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const METHODS: [&str; 9] = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH", "TRACE", "BREW"];

    fn any_failure() -> impl Strategy<Value = Failure> {
        prop_oneof![Just(Failure::Unsent), Just(Failure::Unanswered), Just(Failure::Final)]
    }

    #[test]
    fn an_unsent_request_may_go_elsewhere_whatever_its_method_and_a_sent_one_only_if_it_may_be_repeated() {
        let allowed = |failure| -> Vec<&str> {
            METHODS.into_iter().filter(|m| may_follow(failure, &m.parse().unwrap(), true)).collect()
        };
        assert_eq!(allowed(Failure::Unsent), METHODS);
        assert_eq!(allowed(Failure::Unanswered), ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"]);
        assert_eq!(allowed(Failure::Final), [""; 0]);
    }

    proptest! {
        #[test]
        fn what_is_gone_or_may_have_had_its_effect_is_never_sent_again(
            failure in any_failure(), method in 0..METHODS.len(), has_request: bool,
        ) {
            let method: Method = METHODS[method].parse().unwrap();
            if may_follow(failure, &method, has_request) {
                prop_assert!(has_request && failure != Failure::Final);
                prop_assert!(failure == Failure::Unsent || ![Method::POST, Method::PATCH].contains(&method));
            }
        }

        #[test]
        fn over_a_window_that_ends_with_a_retry_they_stay_within_their_share_and_the_floor(
            percent in 0u8..=100, floor in 0u64..20, steps in prop::collection::vec((0u64..50, 0u64..50), 1..80),
        ) {
            let mut budget = Budget::new(percent, floor);
            let (mut requests, mut history) = (0, Vec::new());
            for (sent, wanted) in steps {
                requests += sent;
                let taken = (0..wanted).filter(|_| budget.take(requests)).count() as u64;
                history.push((sent, taken));
                let window = &history[history.len().saturating_sub(WINDOW)..];
                let (sent, taken) = window.iter().fold((0, 0), |(s, t), (sent, taken)| (s + sent, t + taken));
                let ends_with_a_retry = window.last().is_some_and(|(_, taken)| *taken > 0);
                prop_assert!(!ends_with_a_retry || taken <= sent * u64::from(percent) / 100 + floor, "{taken} of {sent}");
                budget.tick(requests);
            }
        }

        #[test]
        fn traffic_that_fails_less_than_its_share_is_never_denied_a_retry(rounds in 1usize..60, per_tick in 5u64..100) {
            let mut budget = Budget::new(20, 0);
            let mut requests = 0;
            for _ in 0..rounds {
                requests += per_tick;
                for _ in 0..per_tick / 5 {
                    prop_assert!(budget.take(requests));
                }
                budget.tick(requests);
            }
        }
    }

    #[test]
    fn little_traffic_has_the_floor_and_gets_it_again_when_the_window_has_passed() {
        let mut budget = Budget::new(20, 3);
        assert_eq!((0..10).filter(|_| budget.take(1)).count(), 3);
        (0..WINDOW - 1).for_each(|_| budget.tick(1));
        assert!(!budget.take(1));
        budget.tick(1);
        assert!(budget.take(1));
    }
}
