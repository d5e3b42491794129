//! What one client address may do in a minute: `limits.per_address`, counted in this process only.
//!
//! No quota that somebody paid for, but a guard of the store and of public routes: a window begins with the first thing that an
//! address does, and lasts a minute. Memory is bounded: of very many addresses, the least busy are forgotten.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache;

use crate::policy::instant::Mono;
use crate::policy::key::Timestamp;
use crate::policy::network::subscriber;
use crate::policy::quota::{Window, WindowState};
use crate::policy::rejection::Problem;

const MINUTE: Duration = Duration::from_secs(60);
/// Addresses that are remembered; some 20 MB when all of them are.
const ADDRESSES: u64 = 100_000;

/// Events of each address.
pub struct AddressRate {
    windows: Cache<IpAddr, Arc<Mutex<Count>>>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    since: Mono,
    events: u32,
}

/// An address has used up its minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyFromAddress {
    /// Of these.
    pub what: AddressLimit,
    /// So many are allowed in a minute.
    pub limit: u32,
    /// Until the window ends; at least one second.
    pub retry_after: u64,
}

/// One of `limits.per_address`, by what it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressLimit {
    /// Keys that do not exist.
    FailedAuth,
    /// Requests on public routes.
    Public,
}

impl AddressRate {
    /// Nobody has done anything yet.
    pub fn new() -> Self {
        // Idle for longer than its window, a count is as good as none.
        Self { windows: Cache::builder().max_capacity(ADDRESSES).time_to_idle(2 * MINUTE).build() }
    }

    /// Whether this address has room for one more; counts nothing.
    pub fn check(&self, what: AddressLimit, address: IpAddr, limit: u32, now: Mono) -> Result<(), TooManyFromAddress> {
        match self.windows.get(&subscriber(address)) {
            Some(window) => room(&mut lock(&window), what, limit, now),
            None => Ok(()),
        }
    }

    /// Counts one more, or refuses it.
    pub fn charge(&self, what: AddressLimit, address: IpAddr, limit: u32, now: Mono) -> Result<(), TooManyFromAddress> {
        let first = || Arc::new(Mutex::new(Count { since: now, events: 0 }));
        let window = self.windows.get_with(subscriber(address), first);
        let mut count = lock(&window);
        room(&mut count, what, limit, now)?;
        count.events += 1;
        Ok(())
    }
}

fn room(count: &mut Count, what: AddressLimit, limit: u32, now: Mono) -> Result<(), TooManyFromAddress> {
    if now.since(count.since) >= MINUTE {
        *count = Count { since: now, events: 0 };
    }
    if count.events < limit {
        return Ok(());
    }
    let left = MINUTE.saturating_sub(now.since(count.since));
    Err(TooManyFromAddress { what, limit, retry_after: left.as_micros().div_ceil(1_000_000) as u64 })
}

fn lock(window: &Mutex<Count>) -> MutexGuard<'_, Count> {
    window.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for AddressRate {
    fn default() -> Self {
        Self::new()
    }
}

impl TooManyFromAddress {
    /// What the limit is called in `RateLimit-Policy`.
    pub const fn name(self) -> &'static str {
        match self.what {
            AddressLimit::FailedAuth => "failed-auth",
            AddressLimit::Public => "address",
        }
    }

    /// The violated window as clients are told of it.
    pub fn window(self, now: Timestamp) -> WindowState {
        let reset = now.plus_seconds(self.retry_after as i64).unix_seconds().max(0) as u64;
        WindowState { window: Window::Minute, limit: self.limit, remaining: 0, reset, seconds_left: self.retry_after }
    }

    /// The refusal; its header fields are the transport's to set.
    pub fn problem(self) -> Problem {
        let message = match self.what {
            AddressLimit::FailedAuth => "Too many invalid API keys from your address",
            AddressLimit::Public => "Too many requests from your address",
        };
        let detail = format!("At most {} in a minute; try again in {} s.", self.limit, self.retry_after);
        Problem { status: 429, code: "rate_limited", message: message.into(), detail: detail.into(), challenge: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHAT: AddressLimit = AddressLimit::Public;

    fn at(seconds: u64) -> Mono {
        Mono(seconds * 1_000_000)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_its_number_in_a_minute_that_begins_with_the_first() {
        let (rate, one) = (AddressRate::new(), address("192.0.2.1"));
        assert_eq!(rate.charge(WHAT, one, 2, at(50)), Ok(()));
        assert_eq!(rate.charge(WHAT, one, 2, at(65)), Ok(()));
        let refused = TooManyFromAddress { what: WHAT, limit: 2, retry_after: 40 };
        assert_eq!(rate.charge(WHAT, one, 2, at(70)), Err(refused));
        assert_eq!(rate.check(WHAT, one, 2, Mono(109_999_999)), Err(TooManyFromAddress { retry_after: 1, ..refused }));
        assert_eq!(rate.charge(WHAT, address("192.0.2.2"), 2, at(70)), Ok(()));
        assert_eq!(rate.check(WHAT, one, 3, at(70)), Ok(()), "a limit that was raised meanwhile");
        assert_eq!(rate.charge(WHAT, one, 2, at(110)), Ok(()));
    }

    #[test]
    fn a_check_counts_nothing() {
        let (rate, one) = (AddressRate::new(), address("192.0.2.1"));
        for _ in 0..10 {
            assert_eq!(rate.check(WHAT, one, 1, at(1)), Ok(()));
        }
        assert_eq!(rate.charge(WHAT, one, 1, at(1)), Ok(()));
        assert!(rate.check(WHAT, one, 1, at(1)).is_err());
    }

    #[test]
    fn whoever_has_a_whole_network_is_one_address_there() {
        let rate = AddressRate::new();
        assert_eq!(rate.charge(WHAT, address("2001:db8::1"), 1, at(1)), Ok(()));
        assert!(rate.charge(WHAT, address("2001:db8::2"), 1, at(1)).is_err());
        assert_eq!(rate.charge(WHAT, address("2001:db8:0:1::2"), 1, at(1)), Ok(()));
    }

    #[test]
    fn very_many_addresses_are_not_remembered_for_ever() {
        let rate = AddressRate::new();
        for n in 0..ADDRESSES as u32 * 2 {
            rate.charge(WHAT, IpAddr::from(n.to_be_bytes()), 1, at(1)).ok();
        }
        rate.windows.run_pending_tasks();
        assert!(rate.windows.entry_count() <= ADDRESSES);
    }
}
