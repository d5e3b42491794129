//! The plan's windows and the store's side of the lease protocol.
//!
//! Windows are the UTC minute and the UTC day of the **store's** clock, nested. A lease charges both at once or neither and
//! is valid inside one minute only, so the admissions of a window can never exceed its limit, whatever crashes or is late.
//! [`Ledger::lease`] is the arithmetic that SQLite runs in a transaction and Redis runs as a script; the replica's side is
//! [`super::lease`]. This file must not know where the ledger is kept.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::key::QuotaLimits;

/// Length of the short window.
pub const MINUTE_SECONDS: u64 = 60;
/// Length of the long window.
pub const DAY_SECONDS: u64 = 86_400;
/// Minutes of the long window.
pub(crate) const MINUTES_A_DAY: u32 = (DAY_SECONDS / MINUTE_SECONDS) as u32;
/// A recall younger than this makes a refusal soft: returned tokens may be under way.
const RECALL_ANSWER_MICROS: u64 = 15_000;
/// At most one recall in this time.
const RECALL_PAUSE_MICROS: u64 = 250_000;

/// Whose quota is charged: an account, a key or an organization, already told apart by a prefix.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// Worked out once: the limiter looks a subject up on every request.
    hash: u64,
    text: Arc<str>,
}

impl Subject {
    /// `kind` is `account`, `key` or `organization`; `environment` separates live from test counters.
    pub fn new(kind: &str, environment: super::key::Environment, id: &str) -> Self {
        Self::from_stored(&format!("{kind}:{}:{id}", environment.as_str()))
    }

    /// As kept in the store.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// From what the store keeps.
    pub fn from_stored(text: &str) -> Self {
        // FNV-1a: the same on every machine, and ids are given by the backend, not made up by a client.
        let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self { hash: text.bytes().fold(0xcbf2_9ce4_8422_2325, fold), text: text.into() }
    }

    /// A number that spreads subjects evenly.
    pub const fn spread(&self) -> u64 {
        self.hash
    }
}

impl Hash for Subject {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How many requests of an account may be in flight at once. Keys of one account share its places, whatever their windows are
/// charged to; test keys have places of their own, as they have windows of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlightLimit {
    /// The account, told apart by environment.
    pub account: Subject,
    /// 1 at least.
    pub most: u32,
}

/// A minute, counted from the Unix epoch.
pub type Minute = u32;

/// What a replica asks of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseRequest {
    /// The minute to lease from; `None` is the current one. A minute that is over, or further off than the next, gets nothing.
    pub target: Option<Minute>,
    /// Tokens wanted; 0 only returns and debits.
    pub want: u32,
    /// Fewer than this are of no use (the cost of the waiting request): grant at least so many or none.
    pub need: u32,
    /// The limits in force for the caller.
    pub limits: QuotaLimits,
    /// The replica's first call for this subject in this minute: it counts itself as active.
    pub first: bool,
    /// Unspent tokens given back: of which minute, how many. Credited once; never send the same return twice.
    pub give_back: Option<(Minute, u32)>,
    /// Spent under `store.outage` without a grant: in which minute, how many. Charged to that minute, if the ledger still has
    /// it, and to its day, even above the limits. Never send the same debit twice.
    pub debit: Option<(Minute, u32)>,
    /// The highest counters this replica was ever told, to repair a ledger that lost its memory.
    pub seen: Seen,
}

/// The highest counters a replica knows of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Seen {
    /// Minute of `minute_granted`.
    pub minute: Minute,
    /// Tokens ever granted in that minute.
    pub minute_granted: u32,
    /// Day (since the epoch) of `day_granted`.
    pub day: u32,
    /// Tokens ever granted on that day.
    pub day_granted: u32,
}

/// The ledger's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseReply {
    /// Tokens granted; they may be spent inside `minute` only.
    pub granted: u32,
    /// The minute the answer is about.
    pub minute: Minute,
    /// The store's clock when it answered, in microseconds of the Unix epoch.
    pub now_micros: u64,
    /// Left in the minute after this grant, for anybody.
    pub minute_left: u32,
    /// Left in the day after this grant, for anybody.
    pub day_left: u32,
    /// Little is left: ask for single tokens.
    pub scarce: bool,
    /// A recall is under way: a refusal may be undone by returned tokens within milliseconds.
    pub soft: bool,
    /// This call made the ledger recall outstanding tokens; the store must tell all replicas.
    pub recall: bool,
    /// Counters to remember and send back as `seen`.
    pub seen: Seen,
    /// Replicas active on the subject in this minute.
    pub active: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct MinuteSlot {
    minute: Minute,
    granted: u32,
    returned: u32,
    active: u32,
    /// 0: nothing outstanding worth a recall; 1: a multi-token grant is out; above: microseconds of the last recall.
    recall: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct DaySlot {
    day: u32,
    granted: u32,
    returned: u32,
}

/// The counters of one subject: two minutes and two days, by parity, so that a late return finds its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Ledger {
    minutes: [MinuteSlot; 2],
    days: [DaySlot; 2],
}

impl Ledger {
    /// Size of [`Self::to_bytes`].
    pub const BYTES: usize = 72;

    /// Carries out one call. `now_micros` is the store's clock.
    pub fn lease(&mut self, now_micros: u64, request: &LeaseRequest) -> LeaseReply {
        let current = self.current_minute(now_micros);
        let minute = request.target.map_or(current, |target| target.clamp(current, current + 1));
        let reachable = request.target.is_none_or(|target| target == minute);
        self.open(minute);
        self.repair(minute, request.seen);
        if let Some((of, tokens)) = request.give_back {
            self.give_back(of, tokens);
        }
        if let Some((of, tokens)) = request.debit {
            self.debit(of, tokens);
        }
        let (m, d) = (slot(minute), slot(minute / MINUTES_A_DAY));

        let mut reply = LeaseReply {
            granted: 0,
            minute,
            now_micros,
            minute_left: 0,
            day_left: 0,
            scarce: false,
            soft: false,
            recall: false,
            seen: Seen::default(),
            active: 0,
        };
        if request.want > 0 && reachable {
            self.grant(now_micros, minute > current, request, &mut reply);
        }
        reply.minute_left = left(request.limits.requests_per_minute, self.minutes[m].granted, self.minutes[m].returned);
        reply.day_left = left(request.limits.requests_per_day, self.days[d].granted, self.days[d].returned);
        reply.seen = Seen {
            minute,
            minute_granted: self.minutes[m].granted,
            day: minute / MINUTES_A_DAY,
            day_granted: self.days[d].granted,
        };
        reply
    }

    /// The minute of the store's clock, or, after the clock went backwards, the one before the newest that was leased from.
    fn current_minute(&self, now_micros: u64) -> Minute {
        let minute = (now_micros / 1_000_000 / MINUTE_SECONDS) as Minute;
        let newest = self.minutes[0].minute.max(self.minutes[1].minute);
        if newest > minute + 1 { newest - 1 } else { minute }
    }

    fn open(&mut self, minute: Minute) {
        let slot_of_minute = &mut self.minutes[slot(minute)];
        if slot_of_minute.minute != minute {
            *slot_of_minute = MinuteSlot { minute, ..MinuteSlot::default() };
        }
        let day = minute / MINUTES_A_DAY;
        let slot_of_day = &mut self.days[slot(day)];
        if slot_of_day.day != day {
            *slot_of_day = DaySlot { day, ..DaySlot::default() };
        }
    }

    /// A ledger that lost its memory (a restart without persistence, a failover) is lifted to what any replica remembers.
    fn repair(&mut self, minute: Minute, seen: Seen) {
        let m = &mut self.minutes[slot(minute)];
        if seen.minute == minute {
            m.granted = m.granted.max(seen.minute_granted);
        }
        let day = minute / MINUTES_A_DAY;
        let d = &mut self.days[slot(day)];
        if seen.day == day {
            d.granted = d.granted.max(seen.day_granted);
        }
    }

    fn give_back(&mut self, minute: Minute, tokens: u32) {
        let m = &mut self.minutes[slot(minute)];
        if m.minute == minute {
            m.returned = m.returned.saturating_add(tokens).min(m.granted);
        }
        let day = minute / MINUTES_A_DAY;
        let d = &mut self.days[slot(day)];
        if d.day == day {
            d.returned = d.returned.saturating_add(tokens).min(d.granted);
        }
    }

    fn debit(&mut self, minute: Minute, tokens: u32) {
        let m = &mut self.minutes[slot(minute)];
        if m.minute == minute {
            m.granted = m.granted.saturating_add(tokens);
        }
        let day = minute / MINUTES_A_DAY;
        let d = &mut self.days[slot(day)];
        if d.day == day {
            d.granted = d.granted.saturating_add(tokens);
        }
    }

    fn grant(&mut self, now_micros: u64, early: bool, request: &LeaseRequest, reply: &mut LeaseReply) {
        let other = self.minutes[slot(reply.minute + 1)];
        let m = &mut self.minutes[slot(reply.minute)];
        let d = &mut self.days[slot(reply.minute / MINUTES_A_DAY)];
        if request.first {
            m.active = m.active.saturating_add(1);
        }
        let before = if other.minute + 1 == reply.minute { other.active } else { 0 };
        reply.active = m.active.max(before).max(1);

        let minute_left = left(request.limits.requests_per_minute, m.granted, m.returned);
        let day_left = left(request.limits.requests_per_day, d.granted, d.returned);
        let (rest, limit) = if day_left < minute_left {
            (day_left, request.limits.requests_per_day)
        } else {
            (minute_left, request.limits.requests_per_minute)
        };
        // Half of an equal share: everybody can come back for more before the last tokens are handed out.
        let mut share = rest / (2 * reply.active);
        if early {
            share = share.min(request.limits.requests_per_minute / (4 * reply.active));
        }
        reply.scarce = share <= 1;
        let granted = request.want.min(share.max(request.need).max(1)).min(rest);
        reply.granted = if granted < request.need { 0 } else { granted };
        m.granted = m.granted.saturating_add(reply.granted);
        d.granted = d.granted.saturating_add(reply.granted);
        if reply.granted > request.need && m.recall == 0 {
            m.recall = 1;
        }
        let little = rest <= (2 * reply.active).min((limit / 16).max(2)) || reply.granted == 0;
        if !early && little {
            if m.recall == 1 {
                m.recall = now_micros;
                reply.recall = true;
            }
            if m.recall > 1 {
                let age = now_micros.saturating_sub(m.recall);
                if age < RECALL_ANSWER_MICROS {
                    reply.soft = true;
                } else if age > RECALL_PAUSE_MICROS {
                    m.recall = u64::from(reply.granted > request.need);
                }
            }
        }
    }

    /// Granted and returned in a minute that the ledger still has.
    #[cfg(test)]
    pub(super) fn of_minute(&self, minute: Minute) -> Option<(u32, u32)> {
        let m = &self.minutes[slot(minute)];
        (m.minute == minute).then_some((m.granted, m.returned))
    }

    /// Granted and returned on a day that the ledger still has.
    #[cfg(test)]
    pub(super) fn of_day(&self, day: u32) -> Option<(u32, u32)> {
        let d = &self.days[slot(day)];
        (d.day == day).then_some((d.granted, d.returned))
    }

    /// Little-endian, 72 bytes: the layout that the Redis script packs too.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut out = Vec::with_capacity(Self::BYTES);
        for m in &self.minutes {
            for n in [m.minute, m.granted, m.returned, m.active] {
                out.extend_from_slice(&n.to_le_bytes());
            }
            out.extend_from_slice(&m.recall.to_le_bytes());
        }
        for d in &self.days {
            for n in [d.day, d.granted, d.returned] {
                out.extend_from_slice(&n.to_le_bytes());
            }
        }
        let mut bytes = [0; Self::BYTES];
        bytes.copy_from_slice(&out);
        bytes
    }

    /// The reverse of [`Self::to_bytes`]; `None` when the length is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::BYTES {
            return None;
        }
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let minute = |at: usize| MinuteSlot {
            minute: u32_at(at),
            granted: u32_at(at + 4),
            returned: u32_at(at + 8),
            active: u32_at(at + 12),
            recall: u64_at(at + 16),
        };
        let day = |at: usize| DaySlot { day: u32_at(at), granted: u32_at(at + 4), returned: u32_at(at + 8) };
        Some(Self { minutes: [minute(0), minute(24)], days: [day(48), day(60)] })
    }
}

fn slot(index: u32) -> usize {
    (index % 2) as usize
}

fn left(limit: u32, granted: u32, returned: u32) -> u32 {
    limit.saturating_sub(granted.saturating_sub(returned))
}

/// Which window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Window {
    /// The UTC minute.
    Minute,
    /// The UTC day.
    Day,
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minute => "minute",
            Self::Day => "day",
        })
    }
}

/// One window as the headers show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowState {
    /// Which.
    pub window: Window,
    /// The plan's limit.
    pub limit: u32,
    /// What the client may still send in it, as far as this replica knows.
    pub remaining: u32,
    /// Epoch second at which it ends.
    pub reset: u64,
    /// Seconds until it ends, at least 1.
    pub seconds_left: u64,
}

/// Both windows after a decision, for headers, problem bodies and `GET /current`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaState {
    /// The minute.
    pub minute: WindowState,
    /// The day.
    pub day: WindowState,
    /// The windows that refused; empty on an admitted request.
    pub violated: Violated,
}

/// Which windows a request would have exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Violated {
    /// The minute.
    pub minute: bool,
    /// The day.
    pub day: bool,
}

impl QuotaState {
    /// The window of the `X-RateLimit-*` headers: the violated one, else the smaller Remaining, else the later Reset.
    pub fn shown(&self) -> WindowState {
        let day = match (self.violated.minute, self.violated.day) {
            (_, true) => true,
            (true, false) => false,
            (false, false) => self.day.remaining <= self.minute.remaining,
        };
        if day { self.day } else { self.minute }
    }

    /// Seconds after which the violated windows are over.
    pub fn retry_after(&self) -> u64 {
        self.shown().seconds_left
    }
}

#[cfg(test)]
mod tests;
