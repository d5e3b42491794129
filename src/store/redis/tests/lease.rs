//! The script of the ledger against the arithmetic in Rust: same calls, same answers, same 72 bytes.

use super::support::RedisServer;
use super::{at, open};
use crate::policy::key::QuotaLimits;
use crate::policy::quota::{LeaseRequest, Ledger, Minute, Seen};
use crate::store::contract::subject;
use crate::store::{Change, FeedItem, Store};

/// xorshift64*: the calls must be the same on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Mostly small, sometimes as large as can be.
    fn count(&mut self) -> u32 {
        match self.below(8) {
            0 => 0,
            1 => u32::MAX - self.below(3) as u32,
            2 => 1_000 + self.below(100_000) as u32,
            _ => self.below(12) as u32,
        }
    }

    /// A minute near `now`: before, at, after, and the same minute of the day before.
    fn minute(&mut self, now: Minute) -> Minute {
        match self.below(8) {
            0 => now - 1,
            1 => now + 1,
            2 => now - 1440,
            3 => now + 2,
            4 => 0,
            _ => now,
        }
    }

    fn request(&mut self, now: Minute) -> LeaseRequest {
        let want = self.count();
        LeaseRequest {
            target: (self.below(3) == 0).then(|| self.minute(now)),
            want,
            need: if want == 0 { 0 } else { self.pick(&[1, 1, 1, 3, want]).min(want) },
            limits: QuotaLimits {
                requests_per_minute: self.pick(&[0, 1, 3, 10, 60, 300, 100_000, u32::MAX]),
                requests_per_day: self.pick(&[1, 5, 100, 1_000, 1_000_000, u32::MAX]),
            },
            first: self.below(3) == 0,
            give_back: (self.below(3) == 0).then(|| (self.minute(now), self.count())),
            debit: (self.below(5) == 0).then(|| (self.minute(now), self.count())),
            seen: Seen {
                minute: self.minute(now),
                minute_granted: self.count(),
                day: self.minute(now) / 1440,
                day_granted: self.count(),
            },
        }
    }

    /// Any state that a store may hold: of now, of long ago, with a clock that once ran ahead.
    fn ledger(&mut self, now: Minute) -> [u8; Ledger::BYTES] {
        let mut bytes = Vec::new();
        for parity in 0..2 {
            let minute = self.minute(now);
            let minute = if minute % 2 == parity { minute } else { minute + 1 };
            let granted = self.count();
            // More is never returned than was granted.
            for number in [minute, granted, self.count().min(granted), self.count() % 50] {
                bytes.extend(number.to_le_bytes());
            }
            let recall = self.pick(&[0, 1, u64::from(now) * 60_000_000, u64::from(now + 1) * 60_000_000]);
            bytes.extend(recall.to_le_bytes());
        }
        for parity in 0..2 {
            let day = self.minute(now) / 1440;
            let day = if day % 2 == parity { day } else { day + 1 };
            let granted = self.count();
            for number in [day, granted, self.count().min(granted)] {
                bytes.extend(number.to_le_bytes());
            }
        }
        bytes.try_into().unwrap()
    }
}

#[tokio::test]
async fn the_script_and_the_rust_ledger_agree_on_random_calls_and_states() {
    let server = RedisServer::shared();
    let store = open(at(&server)).await;
    let mut dice = Dice(0x5EE_D0F1E);
    let (mut granted, mut recalls, mut unlike_zero) = (0, 0, 0);
    for round in 0..400 {
        let subject = subject(&format!("s{round}"));
        let name = store.names.ledger(&subject);
        let now = (store.server_time().await.unwrap().unix_millis() / 60_000) as Minute;
        let mut ledger = Ledger::default();
        if round % 2 == 0 {
            let bytes = dice.ledger(now);
            let mut set = redis::cmd("SET");
            set.arg(&name).arg(&bytes[..]);
            store.client.ask(store.registry_node().unwrap(), set).await.unwrap();
            ledger = Ledger::from_bytes(&bytes).unwrap();
        }
        for call in 0..12 {
            let request = dice.request(now);
            let reply = store.lease(subject.clone(), request).await.unwrap();
            // The Rust side is told the instant at which the server carried it out.
            let expected = ledger.lease(reply.now_micros, &request);
            assert_eq!(reply, expected, "round {round}, call {call}: {request:?} on {ledger:?}");
            let mut get = redis::cmd("GET");
            get.arg(&name);
            let stored = store.client.ask(store.registry_node().unwrap(), get).await.unwrap();
            let stored: Vec<u8> = redis::from_redis_value(stored).unwrap();
            assert_eq!(stored, ledger.to_bytes(), "round {round}, call {call}: {request:?}");
            granted += u32::from(reply.granted > 0);
            recalls += u32::from(reply.recall);
            unlike_zero += u32::from(reply.active > 0);
        }
    }
    assert!(granted > 500 && recalls > 20 && unlike_zero > 500, "{granted} {recalls} {unlike_zero}: too tame");
}

#[tokio::test]
async fn a_recall_is_pushed_to_another_process_within_milliseconds() {
    let server = RedisServer::shared();
    let config = at(&server);
    let (one, two) = (open(config.clone()).await, open(config).await);
    let mut feed = two.subscribe();
    let minute = loop {
        let reply = one.lease(subject("a1"), crate::store::contract::ask(5, 1_000_000, 60)).await.unwrap();
        if reply.recall {
            break reply.minute;
        }
    };
    loop {
        let item = tokio::time::timeout(std::time::Duration::from_secs(5), feed.recv()).await.unwrap().unwrap();
        match item {
            FeedItem::Changes(_, changes) if changes.is_empty() => {}
            FeedItem::Changes(_, changes) => {
                assert_eq!(changes, [Change::Recall(subject("a1"), minute)]);
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}
