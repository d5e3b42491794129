//! The shared store goes away under load and comes back: killed, stopped, paused. See [`fleet`](super::fleet) for what always holds.

use std::time::{Duration, Instant};

use super::fleet::{Fleet, PATIENCE, RECOVERY, TIMEOUT, assert_all_answered, between, of_key, slower};
use super::servers::{FaultProxy, RedisServer};
use super::support::{Load, count, minute_with, seconds, statuses};

const SECOND: Duration = Duration::from_secs(1);
/// A limit of 60 over three gateways of which each has spent one token: each may admit a third of the rest on its own, which makes
/// L + G(R-1)/R at most in the window in which the outage begins (README.md).
const SIXTY_SHARED: usize = 62;

/// A server that loses nothing when it is killed: all is written before it is answered.
fn keeping() -> RedisServer {
    RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "no"])
}

#[test]
fn a_killed_store_costs_no_answer_and_each_gateway_admits_its_share_of_the_quota() {
    let redis = keeping();
    let proxy = FaultProxy::to(redis.port());
    let fleet = Fleet::start(&format!("redis://127.0.0.1:{}", proxy.port()), 3, "local_share");
    let (roomy, small, unmet) = (fleet.key(100_000), fleet.key(60), fleet.key(60));
    minute_with(12);
    fleet.introduce(&[&roomy, &small]);
    fleet.assert_readyz_says("ready\n");

    let of_roomy = Load::on(&fleet.gateways()).keys([&roomy]).connections(12).rate(120.0).start();
    std::thread::sleep(SECOND);
    let connections = proxy.connections();
    redis.kill();
    let killed = Instant::now();
    fleet.await_outage(1.0, SECOND);
    fleet.assert_readyz_says("ready (degraded");
    fleet.assert_is_unavailable(&unmet);
    let of_small = Load::on(&fleet.gateways()).keys([&small]).connections(6).rate(60.0).send_for(SECOND * 2);
    let (stated, admitted) =
        (fleet.metrics("gateway_outage_admission_bound"), fleet.metrics("gateway_outage_admissions_total"));
    let connections = (proxy.connections() - connections) as f64 / 3.0 / killed.elapsed().as_secs_f64();
    redis.restart();
    fleet.await_outage(0.0, RECOVERY);
    fleet.assert_readyz_says("ready\n");
    for gateway in fleet.gateways() {
        gateway.get("/echo/x").bearer(&unmet).send().expect_status(200);
    }
    std::thread::sleep(SECOND);
    let of_roomy = of_roomy.stop();

    assert_all_answered(&of_roomy);
    assert_all_answered(&of_small);
    assert_eq!(statuses(&of_roomy), [(200, of_roomy.len())], "a cached key is served all the time");
    assert_eq!(count(&of_small, |status| status == 503), 0);
    let of_small_admitted = count(&of_small, |status| status == 200);
    assert!((40..=SIXTY_SHARED - 3).contains(&of_small_admitted), "{:?}", statuses(&of_small));
    for (stated, admitted) in stated.iter().zip(&admitted) {
        assert!(*admitted > 0.0 && admitted <= stated, "{admitted:?} admitted, {stated:?} stated");
    }
    assert!(connections <= 20.0, "{connections} connections a second and gateway");
    fleet.stand.get("/echo/x").bearer(&small).send().expect_refusal(429, "rate_limited");
    fleet.assert_quota_is_exact();
    fleet.assert_usage(&roomy, 3, &of_roomy);
}

#[test]
fn a_gateway_that_rejects_in_an_outage_says_so_to_each_request_and_admits_nothing_else() {
    let redis = keeping();
    let fleet = Fleet::start(&redis.url(), 2, "reject");
    let (roomy, small, unmet) = (fleet.key(100_000), fleet.key(60), fleet.key(60));
    minute_with(12);
    fleet.introduce(&[&roomy, &small]);

    let load = Load::on(&fleet.gateways()).keys([&roomy, &small]).connections(12).rate(150.0).start();
    std::thread::sleep(SECOND / 2);
    redis.kill();
    let killed = Instant::now();
    fleet.await_outage(1.0, SECOND);
    fleet.assert_readyz_says("ready (degraded");
    fleet.assert_is_unavailable(&unmet);
    std::thread::sleep(SECOND * 2);
    redis.restart();
    let restarted = Instant::now();
    fleet.await_outage(0.0, RECOVERY);
    let back = Instant::now();
    std::thread::sleep(SECOND);
    let shots = load.stop();

    assert_all_answered(&shots);
    let (of_roomy, of_small) = (of_key(&shots, 0), of_key(&shots, 1));
    assert!(count(&of_small, |status| status == 200) <= 60 - 2, "{:?}", statuses(&of_small));
    // A second's tokens were in hand when it began, and are spent first.
    let out = between(&of_roomy, killed + SECOND * 3 / 2, restarted);
    assert!(out.len() > 10, "{}", out.len());
    assert_eq!(statuses(&out), [(503, out.len())]);
    // Nobody waits for a store that is known to be away; a busy machine is slow at times.
    assert!(slower(&out, TIMEOUT) <= out.len() / 4, "{} of {}", slower(&out, TIMEOUT), out.len());
    let after = between(&of_roomy, back, back + PATIENCE);
    assert_eq!(statuses(&after), [(200, after.len())]);
    assert_eq!(fleet.metrics("gateway_outage_admissions_total"), [0.0, 0.0]);
    fleet.assert_quota_is_exact();
    fleet.assert_usage(&roomy, 2, &of_roomy);
    fleet.assert_usage(&small, 2, &of_small);
}

#[test]
fn a_stopped_store_is_waited_for_once_and_then_by_one_probe_a_second() {
    let redis = RedisServer::start();
    let time = seconds(3, 20);
    hung(&redis.url(), time, Silence::Whole, || redis.stop_signal(), || redis.cont());
}

#[test]
fn a_paused_store_is_waited_for_once_and_then_by_one_probe_a_second() {
    let redis = RedisServer::start();
    hung(&redis.url(), SECOND * 3, Silence::Whole, || drop(redis.cli(&["CLIENT", "PAUSE", "3000", "ALL"])), || ());
}

#[test]
fn a_store_that_answers_pings_but_no_script_is_an_outage_too_and_pings_do_not_end_it_for_long() {
    let redis = RedisServer::start();
    // A connection that sent a script is not heard at all. A new one answers its first ping, and a script ends that.
    hung(
        &redis.url(),
        SECOND * 3,
        Silence::OfScripts,
        || drop(redis.cli(&["CLIENT", "PAUSE", "3000", "WRITE"])),
        || (),
    );
}

/// What a store that hangs does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// Anything: one outage.
    Whole,
    /// Scripts, but pings now and then: one outage a second at most, and in between a slow answer among others, which is waited for
    /// up to 250 ms and then a 503 (contract 4), once a connection.
    OfScripts,
}

/// The store stays connected and is silent for `time`.
pub(super) fn hung(url: &str, time: Duration, silence: Silence, hang: impl FnOnce(), heal: impl FnOnce()) {
    let fleet = Fleet::start(url, 3, "local_share");
    let (large, small, unmet) = (fleet.key(20_000), fleet.key(60), fleet.key(60));
    minute_with(time.as_secs() + 8);
    fleet.introduce(&[&large, &small]);
    let of_large = Load::on(&fleet.gateways()).keys([&large]).connections(12).rate(120.0).start();
    std::thread::sleep(SECOND);
    let (opened, probes) =
        (fleet.metrics("gateway_store_breaker_opened_total"), fleet.metrics("gateway_store_probes_total"));

    let begun = Instant::now();
    hang();
    fleet.await_outage(1.0, SECOND * 2);
    fleet.assert_readyz_says("ready (degraded");
    fleet.assert_is_unavailable(&unmet);
    let of_small = Load::on(&fleet.gateways()).keys([&small]).connections(6).rate(60.0).start();
    std::thread::sleep((begun + time).saturating_duration_since(Instant::now()));
    let of_small = of_small.stop();
    let probed = fleet.metrics("gateway_store_probes_total");
    let lasted = begun.elapsed().as_secs_f64();
    let bound = fleet.metrics("gateway_outage_admission_bound");
    let healed = Instant::now();
    heal();
    fleet.await_outage(0.0, RECOVERY.saturating_sub(healed.elapsed()));
    fleet.stand.get("/echo/x").bearer(&unmet).send().expect_status(200);
    std::thread::sleep(SECOND);
    let opened_at_last = fleet.metrics("gateway_store_breaker_opened_total");
    let of_large = of_large.stop();

    assert_all_answered(&of_large);
    assert_all_answered(&of_small);
    let (outages, refused) = if silence == Silence::Whole { (1.0, 0) } else { (time.as_secs_f64(), 12) };
    for shots in [&of_large, &of_small] {
        assert!(count(shots, |status| status == 503) <= refused, "{:?}", statuses(shots));
    }
    assert_eq!(count(&of_large, |status| status == 429), 0, "a cached key is served all the time");
    let admitted = count(&of_small, |status| status == 200);
    assert!((40..=SIXTY_SHARED - 3).contains(&admitted), "{:?}", statuses(&of_small));
    // One that takes the store for answering at this moment states no bound.
    let least = if silence == Silence::Whole { 1.0 } else { 0.0 };
    assert!(bound.iter().all(|bound| (least..=20_060.0 / 3.0).contains(bound)), "{bound:?}");
    for ((before, after), (opened, at_last)) in probes.iter().zip(&probed).zip(opened.iter().zip(&opened_at_last)) {
        assert!(after - before <= lasted * 1.2 + 1.0, "{} probes in {lasted} s", after - before);
        assert!((1.0..=outages).contains(&(at_last - opened)), "{} outages", at_last - opened);
    }
    // Each connection meets the silence once an outage; otherwise at most one request a second and gateway waits. If all did, these
    // would be hundreds; a busy machine is slow at times without any reason.
    let waited = slower(&between(&of_large, begun - TIMEOUT, healed), TIMEOUT * 3 / 4) as f64;
    let most = 12.0 * outages + 3.0 * lasted + of_large.len() as f64 / 20.0;
    assert!(waited <= most, "{waited} waited of {}", of_large.len());
    assert_eq!(slower(&of_large, SECOND * 2), 0, "none waits twice, with a wide margin");
    fleet.assert_quota_is_exact();
    fleet.assert_usage(&large, 3, &of_large);
    fleet.assert_usage(&small, 3, &of_small);
}
