//! Hot reload: a changed file is in force within a second, nobody notices but by what it says, and a bad one changes nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::support::{
    Finished, Gateway, Key, Layout, Load, Scripted, Stand, cli, eventually, seconds, sized, statuses, wait_for,
};

/// The promise is a second, and what is measured a third of one; a machine that compiles beside stalls now and then.
const PROMISE: Duration = Duration::from_secs(2);
/// Where nothing is promised but that it happens.
const SOON: Duration = Duration::from_secs(10);

/// A route for keys, and one for everybody inside it: what the file does not open is a 401.
fn layout() -> Layout {
    Stand::new().route("* /echo/{*rest}", "scope: models:read").route("GET /echo/open/{*rest}", "access: public")
}

/// Replaces the file by one that differs in one text, as an editor that renames does.
fn edit(stand: &Stand, from: &str, to: &str) {
    let text = std::fs::read_to_string(stand.config()).unwrap();
    assert!(text.contains(from), "no {from} in {text}");
    let beside = stand.folder().join("edited");
    std::fs::write(&beside, text.replace(from, to)).unwrap();
    std::fs::rename(&beside, stand.config()).unwrap();
}

fn reloads(gateway: &Gateway, outcome: &str) -> f64 {
    gateway.metric("gateway_config_reloads_total", &format!("outcome=\"{outcome}\"")).unwrap()
}

fn is_stale(gateway: &Gateway) -> bool {
    gateway.metric("gateway_config_stale", "") == Some(1.0)
}

/// How long until a route that was added last answers, on connections of its own.
fn until_routed(stand: &Stand, path: &str, what: &str) -> Duration {
    let took = eventually(what, SOON, || stand.get(path).send().status() == 200);
    println!("{what}: after {took:?}");
    assert!(took <= PROMISE, "{what}: {took:?}");
    took
}

#[test]
fn a_new_route_a_new_scope_and_a_new_limit_are_in_force_within_a_second_on_connections_that_stay_open() {
    let stand = layout().section("scopes: { a:b: [c:d] }").start();
    let key = stand.key().scope("a:b").create();
    let mut connection = stand.connect();
    let ask = stand.get("/echo/x").bearer(&key);
    ask.on(&mut connection).expect_refusal(403, "insufficient_scope");

    edit(&stand, "a:b: [c:d]", "a:b: [models:read]");
    let took = eventually("the new scope", SOON, || ask.on(&mut connection).status() == 200);
    assert!(took <= PROMISE, "{took:?}");

    edit(&stand, "scopes: {", "limits: { body_bytes: 100 }\nscopes: {");
    let large = stand.post("/echo/x").bearer(&key).body([b'x'; 200]);
    let took = eventually("the new limit", SOON, || large.on(&mut connection).status() == 413);
    assert!(took <= PROMISE, "{took:?}");

    edit(
        &stand,
        "  - { match: \"GET /echo/open",
        "  - { match: GET /echo/new, access: public }\n  - { match: \"GET /echo/open",
    );
    until_routed(&stand, "/echo/new", "the new route");
    assert_eq!(reloads(&stand.gateway, "applied"), 3.0);
    stand.gateway.process.complains_of("routes: 1 added, 0 removed, 0 changed");
    stand.gateway.process.complains_of("routes: 0 added, 0 removed, 0 changed; also changed: scopes");
}

#[test]
fn a_cached_key_gets_the_plan_of_the_new_file_without_the_store_being_asked() {
    let plans = "plans: { roomy: { requests_per_minute: 1000, requests_per_day: 9000 } }\ndefault_plan: roomy";
    let stand = layout().section(plans).start();
    let key = stand.key().create();
    // The news that it was made empties what was cached of it.
    eventually("the news", SOON, || stand.gateway.process.stderr().contains("action=\"created\""));
    let limit =
        || stand.get("/echo/x").bearer(&key).send().expect_status(200).expect_header("x-ratelimit-limit").to_owned();
    assert_eq!(limit(), "1000");
    let found = || stand.gateway.metric("gateway_key_lookups_total", "outcome=\"found\"");
    let before = found();
    edit(&stand, "requests_per_minute: 1000", "requests_per_minute: 700");
    let took = eventually("the new plan", SOON, || limit() == "700");
    assert!(took <= PROMISE, "{took:?}");
    assert_eq!(found(), before);
}

#[test]
fn a_file_with_mistakes_is_refused_with_what_check_says_and_the_old_one_stays_in_force() {
    let stand = layout().start();
    let good = std::fs::read_to_string(stand.config()).unwrap();
    let taken_at = stand.gateway.metric("gateway_config_last_success_timestamp_seconds", "").unwrap();
    assert!(taken_at > 1.7e9 && !is_stale(&stand.gateway));
    edit(&stand, "access: public", "access: pubic, scope: x");
    eventually("the refusal", SOON, || reloads(&stand.gateway, "refused") == 1.0);
    assert!(is_stale(&stand.gateway));
    stand.get("/echo/open/x").send().expect_status(200);
    let Finished { stdout, .. } = cli(&["check", "-c", stand.config().to_str().unwrap()]).expect_code(78);
    let told: Vec<&str> = stdout.lines().filter(|line| line.contains("gateway.yaml:")).collect();
    assert!(!told.is_empty(), "{stdout}");
    for line in told {
        let text = line.trim_start_matches("error: ");
        stand.gateway.process.complains_of(text);
    }
    stand.gateway.process.complains_of("what was in force stays in force");

    // The same file is not complained about twice; SIGHUP asks for it.
    stand.gateway.process.signal(Signal::HUP);
    eventually("the second refusal", SOON, || reloads(&stand.gateway, "refused") == 2.0);

    std::fs::remove_file(stand.config()).unwrap();
    eventually("a missing file", SOON, || reloads(&stand.gateway, "refused") == 3.0);
    let stderr = stand.gateway.process.stderr();
    assert!(stderr.contains("cannot be read: No such file") && stderr.contains("; put it back"), "{stderr}");
    assert!(!stderr.contains("--config"), "which is of no use to a gateway that runs: {stderr}");
    std::fs::write(stand.config(), good).unwrap();
    eventually("the way back", SOON, || !is_stale(&stand.gateway));
    eventually("the line", SOON, || stand.gateway.process.stderr().contains("nothing is different"));
}

#[test]
fn sighup_takes_the_file_as_it_is() {
    let stand = layout().start();
    stand.gateway.process.signal(Signal::HUP);
    eventually("a reload", SOON, || reloads(&stand.gateway, "applied") == 1.0);
    edit(&stand, "/echo/open/", "/echo/new/");
    stand.gateway.process.signal(Signal::HUP);
    until_routed(&stand, "/echo/new/x", "a reload by SIGHUP");
    stand.get("/echo/open/x").send().expect_refusal(401, "missing_key");
}

#[test]
fn the_symbolic_links_of_a_config_map_are_followed() {
    let stand = layout().start();
    let text = std::fs::read_to_string(stand.config()).unwrap();
    let mount = stand.folder().join("mount");
    let version = |name: &str, text: &str| {
        std::fs::create_dir_all(mount.join(name)).unwrap();
        std::fs::write(mount.join(name).join("gateway.yaml"), text).unwrap();
    };
    // As the kubelet does it: the link is made beside and renamed over the old one.
    let point_to = |name: &str| {
        std::os::unix::fs::symlink(name, mount.join("..data_tmp")).unwrap();
        std::fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    };
    version("..2026_1", &text);
    point_to("..2026_1");
    std::os::unix::fs::symlink(Path::new("..data").join("gateway.yaml"), mount.join("gateway.yaml")).unwrap();
    let gateway = Gateway::start("mounted", stand.folder(), &mount.join("gateway.yaml"));
    gateway.get("/echo/new/x").send().expect_refusal(401, "missing_key");

    version("..2026_2", &text.replace("/echo/open/", "/echo/new/"));
    point_to("..2026_2");
    std::fs::remove_dir_all(mount.join("..2026_1")).unwrap();
    let took = eventually("the new version", SOON, || gateway.get("/echo/new/x").send().status() == 200);
    println!("a swapped link: after {took:?}");
    assert!(took <= PROMISE, "{took:?}");
    assert_eq!((reloads(&gateway, "applied"), reloads(&gateway, "refused")), (1.0, 0.0));
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_is_taken_up() {
    let stand = layout().section("log: json").start();
    edit(&stand, "log: json", "log: text\ncache: { capacity: 5 }");
    edit(&stand, "workers: 2", "workers: 3");
    edit(&stand, "/echo/open/", "/echo/new/");
    until_routed(&stand, "/echo/new/x", "a route beside them");
    eventually("all three", SOON, || {
        let stderr = stand.gateway.process.stderr();
        stderr.contains("not taken up before a restart, their old values stay in force: workers, cache.capacity, log")
    });
    assert_eq!(stand.gateway.metric("gateway_config_restart_needed", ""), Some(1.0));
    let last = |stand: &Stand| stand.gateway.process.stdout().lines().last().map(str::to_owned);
    let (line, _) = wait_for("a line of the request log", SOON, || last(&stand));
    assert!(line.starts_with('{'), "{line}");
    // Alone, it is not said to be nothing.
    edit(&stand, "workers: 3", "workers: 4");
    let told = |text: &str| stand.gateway.process.stderr().contains(text);
    eventually("the line", SOON, || told("configuration reloaded; nothing of what is different is taken up"));
    assert!(!told("nothing is different"));
}

#[test]
fn a_request_in_flight_ends_under_the_configuration_it_began_with() {
    let upstream = Scripted::start(|wire| {
        while let Some(request) = wire.request() {
            let slow = request.head.contains("/slow");
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
            if slow {
                // Until the test says so, by a second request on a connection of its own.
                wire.wait_without_reading(Duration::from_secs(3));
            }
            wire.send("world");
        }
    });
    let stand = layout().upstream(upstream.address).start();
    let mut connection = stand.get("/echo/open/slow").start();
    assert_eq!(connection.head().status, 200);
    edit(&stand, "/echo/open/", "/echo/new/");
    until_routed(&stand, "/echo/new/x", "the new route");
    // The rest of the answer, and the connection lives on under the new rules.
    assert_eq!(connection.take(10).unwrap(), b"helloworld");
    stand.get("/echo/open/slow").on(&mut connection).expect_refusal(401, "missing_key");
    stand.get("/echo/new/x").on(&mut connection).expect_status(200);
    eventually("both are counted under their routes", SOON, || {
        let count =
            |route: &str| stand.gateway.metric("gateway_requests_total", &format!("route=\"{route}\",class=\"2xx\""));
        count("GET /echo/open/{*rest}") == Some(1.0) && count("GET /echo/new/{*rest}").is_some_and(|count| count >= 2.0)
    });
}

/// Kilobytes of memory and number of descriptors.
fn weight(gateway: &Gateway) -> (u64, usize) {
    (gateway.process.resident(), gateway.process.files())
}

/// Experiment 16. The file is written in place, in two steps, as the worst of editors do.
#[test]
fn twenty_reloads_a_quarter_of_them_bad_cost_no_request_and_no_memory() {
    let stand = layout().start();
    let keys: Vec<Key> = (0..10).map(|_| stand.key().create()).collect();
    let text = std::fs::read_to_string(stand.config()).unwrap();
    let kept = Load::on(&[&stand.gateway]).keys(&keys).connections(40).rate(sized(200.0, 450.0)).start();
    let fresh = Load::on(&[&stand.gateway]).keys(&keys).connections(10).rate(50.0).fresh().start();
    let pause = seconds(0, 1);
    let (mut applied, mut refused, mut weights, mut slowest) = (0.0, 0.0, Vec::new(), Duration::ZERO);
    for round in 0..20 {
        let began = Instant::now();
        if round % 4 == 3 {
            std::fs::write(stand.config(), text.replace("routes:", "rutes:")).unwrap();
            refused += 1.0;
            eventually("the refusal", SOON, || reloads(&stand.gateway, "refused") == refused);
            stand.get(&format!("/echo/open-{}/x", round - 1)).send().expect_status(200);
        } else {
            let new = text.replace("/echo/open/", &format!("/echo/open-{round}/"));
            let (first, second) = new.split_at(new.len() / 2);
            std::fs::write(stand.config(), first).unwrap();
            std::fs::write(stand.config(), [first, second].concat()).unwrap();
            applied += 1.0;
            slowest = slowest.max(until_routed(&stand, &format!("/echo/open-{round}/x"), "the new route"));
            assert_eq!(reloads(&stand.gateway, "applied"), applied);
        }
        weights.push(weight(&stand.gateway));
        std::thread::sleep(pause.saturating_sub(began.elapsed()));
    }
    let (turned_away, opened) = (kept.refused() + fresh.refused(), kept.opened());
    let (kept, fresh) = (kept.stop(), fresh.stop());
    println!(
        "kept connections {:?}, fresh ones {:?}, {turned_away} refused; slowest {slowest:?}",
        statuses(&kept),
        statuses(&fresh)
    );
    println!("RSS in KiB and descriptors after each reload: {weights:?}");
    assert_eq!(
        (turned_away, opened),
        (0, 40),
        "no connection is refused, and none of those kept had to be opened again"
    );
    assert!(statuses(&kept).iter().chain(&statuses(&fresh)).all(|(status, _)| *status == 200));
    // Flat from the fifth on, but for what an allocator does, and for requests that met at a slow moment: each opened a connection to
    // the upstream, which is kept.
    let (settled, last) = (weights[5], weights[19]);
    assert!(last.0 < settled.0 + 4 * 1024, "memory grows: {weights:?}");
    assert!(last.1 < settled.1 + 60, "descriptors grow: {weights:?}");

    // Without a load there is nothing to allow for.
    std::fs::write(stand.config(), &text).unwrap();
    applied += 1.0;
    eventually("the first file again", SOON, || reloads(&stand.gateway, "applied") == applied);
    let before = weight(&stand.gateway);
    for _ in 0..20 {
        stand.gateway.process.signal(Signal::HUP);
        applied += 1.0;
        eventually("a reload", SOON, || reloads(&stand.gateway, "applied") == applied);
    }
    let after = weight(&stand.gateway);
    println!("after twenty more without a load: {before:?}, {after:?}");
    assert!(after.0 < before.0 + 1024 && after.1 <= before.1 + 2, "it grows: {before:?}, {after:?}");
}

/// A client that trickles over a reload which shortens what it may take is judged by the new rules between its requests.
#[test]
fn timeouts_of_open_connections_follow_the_new_file() {
    let stand = layout().section("timeouts: { keepalive: 5m }").start();
    let mut connection = stand.connect();
    stand.get("/echo/open/x").on(&mut connection).expect_status(200);
    edit(&stand, "keepalive: 5m", "keepalive: 200ms");
    assert!(connection.is_closed_by_server());
}

#[test]
fn a_warning_is_told_again_only_when_it_is_new() {
    let proxies = "trusted_proxies: [10.0.0.0/8, 0.0.0.0/0]";
    let stand = layout().listener(proxies).start();
    let told = |text: &str| stand.gateway.process.stderr().matches(text).count();
    let (trusts, plain) = ("trusts everybody to say who the client is", "not bind the organization");
    let reloaded = |text: &str| eventually(text, SOON, || told(text) == 1);
    assert_eq!((told(trusts), told("nothing proves to the backend")), (1, 1));
    // All of it moves down.
    edit(&stand, "listen:", "# a comment\nlisten:");
    reloaded("nothing is different; 3 warnings remain");
    assert_eq!(told(trusts), 1);
    edit(&stand, "[10.0.0.0/8, 0.0.0.0/0]", "[10.0.0.0/8]");
    reloaded("; 2 warnings remain");
    // A file that is refused has no say in it.
    edit(&stand, "access: public", "access: pubic");
    eventually("the refusal", SOON, || is_stale(&stand.gateway));
    edit(&stand, "access: pubic", "access: public");
    eventually("the way back", SOON, || told("2 warnings remain") == 2);
    edit(&stand, "[10.0.0.0/8]", "[10.0.0.0/8, 0.0.0.0/0]");
    eventually("one that is new", SOON, || told(trusts) == 2 && told("2 warnings remain") == 3);
    assert_eq!((told("nothing proves to the backend"), told(plain)), (1, 1));
}

#[test]
fn what_can_be_read_only_once_is_told_at_the_start_and_is_no_trouble_later() {
    let stand = layout().start();
    let text = std::fs::read_to_string(stand.config()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("gateway.yaml");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let written = std::thread::spawn({
        let (pipe, text) = (pipe.clone(), text.clone());
        move || std::fs::write(pipe, text).unwrap()
    });
    let gateway = Gateway::start("piped", stand.folder(), &pipe);
    written.join().unwrap();
    let told = || gateway.process.stderr().matches("cannot be read again: hot reload is off").count();
    eventually("it is told", SOON, || told() == 1);
    gateway.get("/echo/open/x").send().expect_status(200);
    gateway.process.signal(Signal::HUP);
    eventually("it is told to who asks", SOON, || told() == 2);
    // Several looks later.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((told(), reloads(&gateway, "refused"), is_stale(&gateway)), (2, 0.0, false));
    assert!(!gateway.process.stderr().contains("ERROR"), "{}", gateway.process.stderr());
    // A file in its place is one like any other.
    let beside = folder.path().join("beside");
    std::fs::write(&beside, text.replace("/echo/open/", "/echo/new/")).unwrap();
    std::fs::rename(&beside, &pipe).unwrap();
    eventually("the file is in force", SOON, || gateway.get("/echo/new/x").send().status() == 200);
    std::fs::remove_file(&pipe).unwrap();
    eventually("and missed when it is gone", SOON, || is_stale(&gateway));
}

#[test]
fn what_is_no_regular_file_is_refused_and_does_not_end_the_looking() {
    let stand = layout().start();
    let text = std::fs::read_to_string(stand.config()).unwrap();
    std::fs::remove_file(stand.config()).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(stand.config()).status().unwrap().success());
    eventually("it is refused", SOON, || is_stale(&stand.gateway));
    std::fs::remove_file(stand.config()).unwrap();
    std::fs::write(stand.config(), text).unwrap();
    eventually("the file is in force", SOON, || !is_stale(&stand.gateway));
}
