//! Several gateways on one Redis that is about to fail, and what must hold whatever fails: every request has an answer, nothing is
//! counted twice or not at all, and afterwards quota is exact again.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::{Gateway, Key, Shot, Stand, count, eventually, minute_with, statuses};

/// Reached only when something hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Within this a gateway has found its store again (a bound of the product): a probe is due each second, a tenth more or less, and
/// connections are tried three times a second.
pub(super) const RECOVERY: Duration = Duration::from_secs(2);
/// `store.timeout`, larger than usual: a busy machine keeps a healthy server from answering for 50 ms now and then, and that is an
/// outage, too. It also tells a wait for the store from the noise of such a machine.
pub(super) const TIMEOUT: Duration = Duration::from_millis(200);

/// The gateways.
#[derive(Debug)]
pub(super) struct Fleet {
    /// Before the stand, in whose folder they write.
    others: Vec<Gateway>,
    pub(super) stand: Stand,
}

impl Fleet {
    /// Returns when each gateway knows of all. `outage` is `store.outage.quota`.
    pub(super) fn start(url: &str, gateways: usize, outage: &str) -> Self {
        Self::start_with(url, gateways, outage, "")
    }

    /// With another section of gateway.yaml.
    pub(super) fn start_with(url: &str, gateways: usize, outage: &str, section: &str) -> Self {
        let store = format!("url: \"{url}\", timeout: {}ms, outage: {{ quota: {outage} }}", TIMEOUT.as_millis());
        let stand =
            Stand::new().section("usage: { flush: 200ms }\nlog: off").section(section).shared_store(&store).start();
        let others = (1..gateways).map(|_| stand.another_gateway()).collect();
        let fleet = Self { others, stand };
        for gateway in fleet.gateways() {
            let all = || gateway.metric("gateway_replicas", "") == Some(gateways as f64);
            eventually("each gateway knows of all", PATIENCE, all);
        }
        fleet
    }

    pub(super) fn gateways(&self) -> Vec<&Gateway> {
        std::iter::once(&self.stand.gateway).chain(&self.others).collect()
    }

    /// A key of an account of its own that may send so many requests a minute.
    pub(super) fn key(&self, per_minute: usize) -> Key {
        self.stand.limited_key(per_minute, 10_000_000)
    }

    /// One request at each gateway: all of them know the key and its quota now. Whatever tokens that left them are back.
    pub(super) fn introduce(&self, keys: &[&Key]) {
        for (key, gateway) in keys.iter().flat_map(|key| self.gateways().into_iter().map(move |gateway| (key, gateway)))
        {
            gateway.get("/echo/x?bytes=2").bearer(key).send().expect_status(200);
        }
    }

    /// A metric of each gateway.
    pub(super) fn metrics(&self, name: &str) -> Vec<f64> {
        self.gateways().iter().map(|gateway| gateway.metric(name, "").unwrap()).collect()
    }

    /// Waits until every gateway says that it misses the store (1), or does not (0). How long it took.
    pub(super) fn await_outage(&self, missing: f64, within: Duration) -> Duration {
        let what = if missing > 0.0 { "all miss the store" } else { "all have found the store again" };
        eventually(what, within, || self.metrics("gateway_store_outage").iter().all(|value| *value == missing))
    }

    /// `/readyz` says so, at each gateway, with 200.
    pub(super) fn assert_readyz_says(&self, text: &str) {
        for gateway in self.gateways() {
            let answer = gateway.admin("/readyz").expect_status(200).text();
            assert!(answer.starts_with(text), "{answer}");
        }
    }

    /// A key that no gateway has met is refused for want of the store, and told when to come back.
    pub(super) fn assert_is_unavailable(&self, unmet: &Key) {
        for gateway in self.gateways() {
            let answer = gateway.get("/echo/x").bearer(unmet).send().expect_refusal(503, "store_unavailable");
            assert!(answer.number("retry-after") >= 1);
        }
    }

    /// Of 90 requests over all gateways with a new key exactly 60 are admitted.
    pub(super) fn assert_quota_is_exact(&self) {
        let key = self.key(60);
        minute_with(5);
        let gateways = self.gateways();
        let mut connections: Vec<_> = gateways.iter().map(|gateway| gateway.connect()).collect();
        let mut statuses = Vec::new();
        for turn in 0..90 {
            let number = turn % gateways.len();
            let request = gateways[number].get("/echo/x?bytes=2").bearer(&key);
            statuses.push(request.on(&mut connections[number]).status());
        }
        let count = |wanted| statuses.iter().filter(|status| **status == wanted).count();
        assert_eq!((count(200), count(429)), (60, 30), "{statuses:?}");
    }

    /// The usage of a key, as soon as so many requests are counted or it has taken too long.
    pub(super) fn usage(&self, key: &Key, total: usize) -> Value {
        let begun = Instant::now();
        // The other gateways write what they have counted when it is time.
        loop {
            let usage = self.stand.usage(key);
            if usage["total_requests"].as_u64() >= Some(total as u64) || begun.elapsed() > PATIENCE {
                return usage;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the store has counted of a key is what its clients have seen: `others` successes and these.
    pub(super) fn assert_usage(&self, key: &Key, others: usize, shots: &[Shot]) {
        let of = |status| count(shots, |other| other == status);
        let expected = [("2xx", others + of(200)), ("429", of(429)), ("5xx", of(503))];
        let total = expected.iter().map(|(_, count)| count).sum::<usize>();
        assert_eq!(total, others + shots.len(), "{:?}", statuses(shots));
        let usage = self.usage(key, total);
        for (class, count) in expected {
            assert_eq!(usage["by_status"][class], count, "{class}, expected {expected:?}: {usage}");
        }
    }
}

/// Every request has an answer: yes, no, or "come back" with a time.
pub(super) fn assert_all_answered(shots: &[Shot]) {
    for shot in shots {
        let answer = shot.answer.as_ref().unwrap_or_else(|| panic!("{shot:?} of {:?}", statuses(shots)));
        match answer.status {
            200 => {}
            429 => assert_eq!(answer.code.as_deref(), Some("rate_limited"), "{shot:?}"),
            503 => assert_eq!(answer.code.as_deref(), Some("store_unavailable"), "{shot:?}"),
            _ => panic!("{shot:?} of {:?}", statuses(shots)),
        }
        assert!(answer.status == 200 || answer.retry_after >= Some(1), "{shot:?}");
    }
}

/// Those of one key.
pub(super) fn of_key(shots: &[Shot], key: usize) -> Vec<Shot> {
    shots.iter().filter(|shot| shot.key == key).cloned().collect()
}

/// Those sent from one time to another.
pub(super) fn between(shots: &[Shot], from: Instant, to: Instant) -> Vec<Shot> {
    shots.iter().filter(|shot| (from..to).contains(&shot.sent)).cloned().collect()
}

/// How many took longer.
pub(super) fn slower(shots: &[Shot], than: Duration) -> usize {
    shots.iter().filter(|shot| shot.answered - shot.sent > than).count()
}
