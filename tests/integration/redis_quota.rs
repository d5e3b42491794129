//! Limits over several processes on one Redis: not one more than the limit, not one less, and few calls for it.
//!
//! What was admitted is counted by the backend, for which no gateway can speak. `SEEME_TEST_LONG=1` makes of each test the
//! experiment that the promise names, and prints its figures.

use std::time::Duration;

use rustix::process::Signal;

use super::servers::RedisServer;
use super::support::{
    Gateway, Key, Load, PATIENCE, Stand, Tally, count, is_long, minute_with, seconds, sized, statuses, wait_for,
};

const LIMITS: [usize; 3] = [60, 300, 5000];
const DAY: usize = 10_000_000;

/// Three gateways on one server, before a backend that counts.
struct Three {
    tally: Tally,
    /// Before the folder in which they write goes.
    others: Vec<Gateway>,
    stand: Stand,
    redis: RedisServer,
}

impl Three {
    fn start() -> Self {
        let (redis, tally) = (RedisServer::start(), Tally::start());
        let stand = Stand::new().upstream(tally.address()).section("log: off");
        let stand = stand.shared_store(&format!("url: \"{}\"{}", redis.url(), PATIENCE)).start();
        let others = (0..2).map(|_| stand.another_gateway()).collect();
        let three = Self { tally, stand, others, redis };
        three.all().iter().for_each(|gateway| {
            wait_for("three gateways", Duration::from_secs(10), || {
                (gateway.metric("gateway_replicas", "") == Some(3.0)).then_some(())
            });
        });
        three
    }

    fn all(&self) -> Vec<&Gateway> {
        std::iter::once(&self.stand.gateway).chain(&self.others).collect()
    }

    /// By the clock that decides which window a request is in.
    fn minute(&self) -> u64 {
        let time = self.redis.cli(&["TIME"]);
        time.lines().next().unwrap().parse::<u64>().unwrap() / 60
    }

    fn sum(&self, metric: &str) -> f64 {
        self.all().iter().filter_map(|gateway| gateway.metric(metric, "")).sum()
    }

    /// Scripts that the server ran, and all its commands, those inside of scripts too.
    fn commands(&self) -> (u64, u64) {
        let calls = |command: &str| {
            let told = self.redis.info("commandstats", &format!("cmdstat_{command}")).unwrap_or_default();
            told.strip_prefix("calls=").and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
        };
        let all = self.redis.info("stats", "total_commands_processed").unwrap();
        (calls("evalsha") + calls("eval"), all.parse().unwrap())
    }
}

#[test]
fn three_processes_admit_the_limit_and_not_one_more_in_every_round() {
    let three = Three::start();
    for limit in LIMITS {
        let (mut whole, mut split) = (0, 0);
        for round in 0..sized(1, 20) {
            let key = three.stand.limited_key(limit, DAY);
            let before = three.minute();
            let requests = sized(limit + 1000, 10_000);
            let shots = Load::on(&three.all()).keys([&key]).connections(300).send(requests);
            let crossed = three.minute() != before;
            let told = format!("limit {limit}, round {round}: {:?}", statuses(&shots));
            assert_eq!(count(&shots, |status| status == 200 || status == 429), requests, "{told}");
            let (admitted, windows) = (count(&shots, |status| status == 200), three.tally.windows(&key.account));
            assert_eq!(windows.values().sum::<usize>(), admitted, "{told}");
            assert!(windows.values().all(|&in_one| in_one <= limit), "{told}: {windows:?}");
            if crossed {
                split += 1;
                assert!((limit..=2 * limit).contains(&admitted), "{told}: {windows:?}");
            } else {
                whole += 1;
                assert_eq!(admitted, limit, "{told}");
            }
        }
        println!(
            "limit {limit} a minute: admitted == limit in {whole} rounds; {split} rounds over the end of a minute, none above"
        );
    }
}

#[test]
fn a_process_that_is_killed_in_the_middle_takes_tokens_with_it_and_makes_none() {
    let mut three = Three::start();
    for limit in LIMITS {
        let mut lost = Vec::new();
        for round in 0..sized(1, 20) {
            let key = three.stand.limited_key(limit, DAY);
            let requests = sized(limit + 1000, 10_000);
            let running = Load::on(&three.all()).keys([&key]).connections(300).start();
            let middle = (limit / 4).max(20 + round);
            wait_for("some of it", Duration::from_secs(20), || (running.begun() >= middle).then_some(()));
            three.others[0].process.signal(Signal::KILL);
            wait_for("the rest of it", Duration::from_secs(40), || (running.begun() >= requests).then_some(()));
            let shots = running.stop();
            let told = format!("limit {limit}, round {round}: {:?}", statuses(&shots));
            let (windows, answered) = (three.tally.windows(&key.account), count(&shots, |status| status == 200));
            assert!(windows.values().all(|&in_one| in_one <= limit), "{told}: {windows:?}");
            assert!(windows.values().sum::<usize>() >= answered, "{told}: {windows:?}");
            assert!(count(&shots, |status| status == 0) > 0, "nobody noticed the kill: {told}");
            assert_eq!(count(&shots, |status| !matches!(status, 0 | 200 | 429)), 0, "{told}");
            lost.push(limit.saturating_sub(windows.values().copied().max().unwrap_or(0)));
            three.others[0] = three.stand.another_gateway();
        }
        println!(
            "limit {limit} a minute, one of three killed in the middle: never above; tokens lost with it: {lost:?}"
        );
    }
}

#[test]
fn below_the_limit_nobody_is_refused_however_the_load_is_spread() {
    let three = Three::start();
    // Four fifths of the minute's quota: in a few seconds, or evenly over two minutes.
    let time = seconds(4, 120);
    let keys = LIMITS.map(|limit| three.stand.limited_key(limit, DAY));
    let loads: Vec<_> = {
        minute_with(sized(8, 1));
        let start = |(limit, key): (&usize, &Key)| {
            let a_second = *limit as f64 * 0.8 / sized(time.as_secs_f64(), 60.0);
            let load = Load::on(&three.all()).keys([key]).connections((limit / 20).clamp(3, 60)).rate(a_second);
            (*limit, load.start())
        };
        LIMITS.iter().zip(&keys).map(start).collect()
    };
    std::thread::sleep(time);
    for (limit, running) in loads {
        let shots = running.stop();
        println!("80 % of {limit} a minute for {time:?}: {:?}", statuses(&shots));
        assert_eq!(count(&shots, |status| status == 200), shots.len(), "limit {limit}: {:?}", statuses(&shots));
        assert!(
            shots.len() as f64 > sized(0.6, 1.5) * limit as f64,
            "limit {limit}: that was no load, {}",
            shots.len()
        );
    }
}

/// Sends at a rate and returns requests and calls for each.
fn calls_per_request(three: &Three, name: &str, key: &Key, rate: f64, time: Duration) -> f64 {
    let (calls, commands) = (three.sum("gateway_lease_calls_total"), three.commands());
    let shots = Load::on(&three.all()).keys([key]).connections(sized(30, 60)).rate(rate).send_for(time);
    let (calls, after) = (three.sum("gateway_lease_calls_total") - calls, three.commands());
    let each = |number: f64| number / shots.len() as f64;
    println!(
        "{name}: {} requests in {time:?}, {:?}; a request: {:.4} lease calls, {:.4} scripts, {:.4} commands with those in scripts",
        shots.len(),
        statuses(&shots),
        each(calls),
        each((after.0 - commands.0) as f64),
        each((after.1 - commands.1) as f64),
    );
    assert_eq!(count(&shots, |status| status == 200 || status == 429), shots.len(), "{:?}", statuses(&shots));
    assert!(shots.len() as f64 > rate * time.as_secs_f64() * 0.8, "the load was not sent: {}", shots.len());
    each(calls)
}

#[test]
fn a_busy_account_hardly_ever_asks_the_store() {
    let three = Three::start();
    let key = three.stand.limited_key(100_000, DAY);
    let (rate, most) = sized((300.0, 0.1), (1000.0, 0.05));
    let each = calls_per_request(&three, "100,000 a minute", &key, rate, seconds(4, 120));
    assert!(each <= most, "{each} calls a request");
}

#[test]
fn a_small_account_at_its_limit_asks_less_than_every_other_time() {
    let three = Three::start();
    let key = three.stand.limited_key(300, DAY);
    // Over the limit in a few seconds, or as the plan allows it: a little more than five a second.
    let (rate, time) = sized((90.0, Duration::from_secs(5)), (5.5, Duration::from_secs(120)));
    if !is_long() {
        minute_with(10);
    }
    let each = calls_per_request(&three, "300 a minute at the limit", &key, rate, time);
    assert!(each <= 0.5, "{each} calls a request");
}
