//! Usage on a shared Redis: what is counted is what the clients saw, whatever happened to the servers and the gateways.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::servers::{FaultProxy, RedisServer, Sentinels};
use super::support::{Gateway, Key, Load, Shot, Stand, count, eventually, seconds, sized, statuses, wait_for};

const SOON: Duration = Duration::from_secs(15);
/// Longer than a flush takes to come round.
const FLUSH: Duration = Duration::from_millis(1300);

fn stand(store: &str, more: &str) -> Stand {
    let url = format!("url: \"{store}\", outage: {{ serve_cached_keys_for: 10m }}");
    Stand::new().section(&format!("log: off\n{more}")).shared_store(&url).start()
}

/// A key that each of the gateways has in hand, and one that may read its usage. The requests count.
struct Counted {
    key: Key,
    reader: Key,
    sent: usize,
}

impl Counted {
    fn new(stand: &Stand, gateways: &[&Gateway]) -> Self {
        let key = stand.key().scope("models:read").create();
        let reader = stand.key().account(&key.account).scope("api-keys:read").create();
        for gateway in gateways {
            gateway.get("/echo/x").bearer(&key).send().expect_status(200);
        }
        Self { key, reader, sent: gateways.len() }
    }

    fn load(&self, gateways: &[&Gateway]) -> Load {
        Load::on(gateways).keys([&self.key]).connections(20)
    }

    /// As the store has it, after each of the gateways has written what it has.
    fn usage(&self, gateways: &[&Gateway]) -> Value {
        for gateway in gateways {
            eventually("nothing is under way", SOON, || gateway.metric("gateway_requests_in_flight", "") == Some(0.0));
        }
        let path = format!("/api/v1/api-keys/{}/usage", self.key.id);
        let mut told = Value::Null;
        for gateway in gateways {
            let ask = || Some(gateway.get(&path).bearer(&self.reader).send()).filter(|answer| answer.status() == 200);
            told = wait_for("usage can be read", SOON, ask).0.json();
        }
        told
    }

    /// Exactly what the clients saw, by class. A 503 may be that of a key that could not be looked up: whose it is nobody knows.
    fn check(&self, gateways: &[&Gateway], shots: &[Shot]) -> usize {
        let usage = self.usage(gateways);
        let by_status = |class: &str| usage["by_status"][class].as_u64().unwrap() as usize;
        let told = format!("{usage}\n{:?}", statuses(shots));
        assert_eq!(by_status("2xx"), self.sent + count(shots, |status| (200..300).contains(&status)), "{told}");
        assert_eq!(by_status("429"), count(shots, |status| status == 429), "{told}");
        assert_eq!(count(shots, |status| status >= 400 && status != 429 && status != 503), 0, "{told}");
        // The key is in hand all the time; one in a hundred for a machine on which a server does not get to run.
        assert!(count(shots, |status| status == 503) * 100 <= shots.len(), "{told}");
        let unavailable = by_status("5xx");
        assert!(unavailable <= count(shots, |status| status == 503), "{told}");
        let total = self.sent + count(shots, |status| status != 0 && status != 503) + unavailable;
        assert_eq!(usage["total_requests"].as_u64().unwrap() as usize, total, "{told}");
        total
    }
}

/// Scripts of MONITOR's lines that write usage, by all that they say.
fn flushes(lines: &[String], seen: &mut BTreeMap<String, usize>) {
    for line in lines.iter().filter(|line| line.to_ascii_lowercase().contains("\"evalsha\"") && line.contains(":u:{u"))
    {
        let (_, said) = line.split_once("] ").unwrap();
        *seen.entry(said.to_owned()).or_insert(0) += 1;
    }
}

#[test]
fn a_flush_whose_answer_is_lost_is_sent_again_and_counts_once() {
    let redis = RedisServer::start();
    let proxy = FaultProxy::to(redis.port());
    let stand = stand(&format!("redis://127.0.0.1:{}", proxy.port()), "");
    let gateways = [&stand.gateway];
    let counted = Counted::new(&stand, &gateways);
    let mut monitor = redis.monitor();
    let mut seen = BTreeMap::new();
    let running = counted.load(&gateways).rate(sized(150.0, 500.0)).start();
    for _ in 0..sized(3, 30) {
        // Answers are under way for a while: time to break the line after the server has done what it was asked.
        proxy.latency(Duration::ZERO, Duration::from_millis(30));
        let before = seen.len();
        wait_for("a flush", SOON, || {
            flushes(&monitor.lines(), &mut seen);
            (seen.len() > before).then_some(())
        });
        proxy.reset();
        proxy.latency(Duration::ZERO, Duration::ZERO);
        let lost = seen.keys().cloned().collect::<Vec<_>>();
        eventually("it is sent again, or was answered after all", FLUSH * 2, || {
            flushes(&monitor.lines(), &mut seen);
            seen.len() > lost.len() || seen.values().any(|&times| times > 1)
        });
    }
    let shots = running.stop();
    flushes(&monitor.lines(), &mut seen);
    let again = seen.values().filter(|&&times| times > 1).count();
    let total = counted.check(&gateways, &shots);
    println!(
        "{total} requests counted exactly; {again} of {} flushes were sent more than once; {:?}",
        seen.len(),
        statuses(&shots)
    );
    assert!(again > 0, "no answer was lost");
}

#[test]
fn a_link_that_breaks_in_the_middle_of_answers_costs_no_count() {
    let redis = RedisServer::start();
    let proxy = FaultProxy::to(redis.port());
    let stand = stand(&format!("redis://127.0.0.1:{}", proxy.port()), "");
    let gateways = [&stand.gateway];
    let counted = Counted::new(&stand, &gateways);
    let running = counted.load(&gateways).rate(sized(150.0, 500.0)).start();
    let before = proxy.connections();
    for round in 0..sized(6, 120) {
        // From nothing of an answer to several answers.
        proxy.cut_replies_after([1, 3, 60, 200, 1000][round % 5]);
        std::thread::sleep(Duration::from_millis(350));
        proxy.stop_cutting();
        std::thread::sleep(Duration::from_millis(150));
    }
    let shots = running.stop();
    let total = counted.check(&gateways, &shots);
    println!(
        "{total} requests counted exactly over {} connections that were cut; {:?}",
        proxy.connections() - before,
        statuses(&shots)
    );
    assert!(proxy.connections() > before + 5);
}

#[test]
fn a_gateway_that_is_told_to_stop_under_load_has_counted_all_that_it_answered() {
    let redis = RedisServer::start();
    let stand = stand(&redis.url(), "");
    for round in 0..sized(1, 10) {
        let leaving = stand.another_gateway();
        let gateways = [&stand.gateway, &leaving];
        let counted = Counted::new(&stand, &gateways);
        let running = counted.load(&gateways).start();
        wait_for("some load", SOON, || (running.begun() > sized(400, 4000)).then_some(()));
        let ended = leaving.process.stop();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let at = running.begun();
        wait_for("some more", SOON, || (running.begun() > at + 200).then_some(()));
        let shots = running.stop();
        let total = counted.check(&[&stand.gateway], &shots);
        println!("SIGTERM under load, round {round}: {total} requests counted exactly; {:?}", statuses(&shots));
        assert!(count(&shots, |status| status == 200) > 500);
    }
}

#[test]
fn an_outage_of_the_store_delays_counting_and_loses_none() {
    let redis = RedisServer::start();
    let stand = stand(&redis.url(), "");
    let other = stand.another_gateway();
    let gateways = [&stand.gateway, &other];
    let counted = Counted::new(&stand, &gateways);
    let outage = seconds(4, 60);
    let running = counted.load(&gateways).rate(sized(200.0, 500.0)).start();
    std::thread::sleep(FLUSH);
    redis.stop_signal();
    std::thread::sleep(outage);
    redis.cont();
    std::thread::sleep(FLUSH * 2);
    let shots = running.stop();
    let total = counted.check(&gateways, &shots);
    println!("Redis stopped for {outage:?}: {total} requests counted exactly; {:?}", statuses(&shots));
    assert!(shots.len() as f64 > sized(200.0, 500.0) * outage.as_secs_f64() * 0.8, "no load: {:?}", statuses(&shots));
}

#[test]
fn a_store_that_comes_and_goes_costs_no_count_and_no_key_that_is_in_hand() {
    let redis = RedisServer::start();
    let proxy = FaultProxy::to(redis.port());
    let stand = stand(&format!("redis://127.0.0.1:{}", proxy.port()), "");
    let gateways = [&stand.gateway];
    let counted = Counted::new(&stand, &gateways);
    let running = counted.load(&gateways).rate(sized(150.0, 500.0)).start();
    let well = || stand.gateway.metric("gateway_store_outage", "") == Some(0.0);
    // Each time it depends on chance who is back first: the feed of changes, or the rest of the store.
    for _ in 0..sized(5, 30) {
        proxy.down();
        proxy.reset();
        eventually("it is away", SOON, || !well());
        proxy.up();
        eventually("it is back", SOON, well);
        let hears = || stand.gateway.metric("gateway_change_feed_up", "") == Some(1.0);
        eventually("its changes, too", SOON, hears);
    }
    let shots = running.stop();
    let total = counted.check(&gateways, &shots);
    println!("a store that comes and goes: {total} requests counted exactly; {:?}", statuses(&shots));
}

/// What ended this long before a kill is in the journal: 100 ms are promised, as much again is for a busy machine.
const WRITTEN_DOWN: Duration = Duration::from_millis(200);

#[test]
fn a_kill_loses_no_more_than_a_moment_with_a_journal() {
    let redis = RedisServer::start();
    let mut stand = stand(&redis.url(), "usage: { journal: data/usage.journal }");
    let counted = Counted::new(&stand, &[&stand.gateway]);
    let mut before = counted.usage(&[&stand.gateway])["total_requests"].as_u64().unwrap() as usize;
    for round in 0..sized(2, 20) {
        let running = counted.load(&[&stand.gateway]).rate(sized(300.0, 500.0)).start();
        // Any moment between two flushes.
        std::thread::sleep(Duration::from_millis(1500 + 137 * (round % 8)));
        let killed = Instant::now();
        stand.gateway.process.signal(Signal::KILL);
        let shots = running.stop();
        stand.gateway.process.wait();
        stand.gateway = stand.another_gateway();
        let usage = counted.usage(&[&stand.gateway])["total_requests"].as_u64().unwrap() as usize;
        let answered = count(&shots, |status| status == 200);
        let moment = |time: Duration| shots.iter().filter(|s| s.is_admitted() && s.answered + time > killed).count();
        let added = usage - before;
        println!(
            "SIGKILL, round {round}: {answered} answered, {added} counted; {} answered in the last 100 ms; {:?}",
            moment(Duration::from_millis(100)),
            statuses(&shots)
        );
        assert!(answered > 200, "that was no load");
        assert!(added + moment(WRITTEN_DOWN) >= answered, "more than a moment is lost");
        assert!(added <= shots.len(), "something counts twice");
        before = usage;
    }
}

#[test]
fn a_failover_loses_nothing_that_was_replicated_and_takes_five_seconds_at_most() {
    let sentinels = Sentinels::start();
    let stand = stand(&sentinels.url(), "");
    let other = stand.another_gateway();
    let gateways = [&stand.gateway, &other];
    let writer = stand.key().scope("models:read").scope("api-keys:*").create();
    let flushed = |gateway: &Gateway| gateway.metric("gateway_usage_flushes_total", "written").unwrap_or(0.0);
    for round in 0..sized(1, 5) {
        let counted = Counted::new(&stand, &gateways);
        let running = counted.load(&gateways).rate(sized(150.0, 500.0)).start();
        std::thread::sleep(FLUSH);
        // Right after a flush of each, so that none is under way, and when both replicas have everything.
        for gateway in gateways {
            let before = flushed(gateway);
            wait_for("a flush", SOON, || (flushed(gateway) > before).then_some(()));
        }
        let mut master = sentinels.master().connect().unwrap();
        master.command(&["SET", "mark", &round.to_string()]).unwrap();
        assert_eq!(master.command(&["WAIT", "2", "1000"]).unwrap().number(), Some(2));
        let old = sentinels.kill_master();
        let killed = Instant::now();
        // A write of the registry that each gateway carries out, by whoever is the master.
        let body = serde_json::json!({"name": "after", "scopes": ["models:read"]});
        let mut back = Vec::new();
        for gateway in gateways {
            let write =
                || gateway.request("POST", "/api/v1/api-keys").bearer(&writer).json(&body).send().status() == 201;
            eventually("writes succeed again", SOON, write);
            back.push(killed.elapsed());
        }
        std::thread::sleep(FLUSH * 2);
        let shots = running.stop();
        let lost: f64 = gateways.iter().filter_map(|g| g.metric("gateway_usage_batches_lost_total", "")).sum();
        let usage = counted.usage(&gateways)["total_requests"].clone();
        let seen = counted.sent + count(&shots, |status| status != 0);
        println!(
            "failover, round {round}: writes again after {back:?}; {seen} answered, {usage} counted, {lost} batches lost; {:?}",
            statuses(&shots)
        );
        assert_eq!(lost, 0.0);
        counted.check(&gateways, &shots);
        assert!(back.iter().all(|took| *took <= Duration::from_secs(5)), "{back:?}");
        // The old master comes back as somebody's replica: nobody talks to it any more.
        sentinels.heal();
        std::thread::sleep(seconds(1, 10));
        for gateway in gateways {
            assert_eq!(connections(gateway, old), 0, "{} still talks to the old master", gateway.process.pid());
            assert!(connections(gateway, sentinels.master_port()) > 0);
        }
    }
}

/// Open connections of a gateway to a port of this machine.
fn connections(gateway: &Gateway, port: u16) -> usize {
    let folder = format!("/proc/{}", gateway.process.pid());
    let mut sockets = Vec::new();
    for entry in std::fs::read_dir(format!("{folder}/fd")).unwrap().flatten() {
        if let Ok(link) = std::fs::read_link(entry.path()) {
            let link = link.display().to_string();
            sockets.extend(link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).map(str::to_owned));
        }
    }
    let table = std::fs::read_to_string(format!("{folder}/net/tcp")).unwrap();
    let wanted = format!(":{port:04X}");
    let fields = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let to_it = |fields: &Vec<String>| {
        fields.len() > 9 && fields[2].ends_with(&wanted) && fields[3] == "01" && sockets.contains(&fields[9])
    };
    table.lines().skip(1).map(fields).filter(to_it).count()
}
