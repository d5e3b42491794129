//! Revocation over several processes on one Redis: what DELETE says is true of every request sent after its answer.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::servers::RedisServer;
use super::support::{
    Gateway, Key, Load, PATIENCE, Response, Running, Shot, Stand, count, eventually, is_long, percentile, seconds,
    sized, statuses, wait_for,
};

const BASE: &str = "/api/v1/api-keys";
const SOON: Duration = Duration::from_secs(10);

struct Three {
    /// Before the folder in which they write goes.
    others: Vec<Gateway>,
    stand: Stand,
    redis: RedisServer,
    /// May create and delete, and send.
    caller: Key,
}

impl Three {
    fn start() -> Self {
        let redis = RedisServer::start();
        let stand = on(&redis);
        let others: Vec<_> = (0..2).map(|_| stand.another_gateway()).collect();
        let caller = stand.key().scope("models:read").scope("api-keys:*").create();
        Self { stand, others, redis, caller }
    }

    fn all(&self) -> Vec<&Gateway> {
        std::iter::once(&self.stand.gateway).chain(&self.others).collect()
    }

    fn create(&self, number: usize) -> Vec<Key> {
        (0..number).map(|_| create(&self.stand.gateway, &self.caller)).collect()
    }
}

fn on(redis: &RedisServer) -> Stand {
    let store = format!("url: \"{}\", username: first, password: first{}", redis.url(), PATIENCE);
    redis.create_user("first", "first", &["~*", "&*", "+@all"]);
    Stand::new().section("log: off").shared_store(&store).start()
}

fn create(gateway: &Gateway, caller: &Key) -> Key {
    let wanted = json!({"name": "one of many", "scopes": ["models:read"]});
    Key::of(gateway.request("POST", BASE).bearer(caller).json(&wanted).send().expect_status(201).json())
}

/// The load aims at a key and every gateway serves it: the key is cached everywhere.
fn warm(running: &Running, number: usize, gateways: &[&Gateway], key: &Key) {
    running.aim(number);
    for gateway in gateways {
        gateway.get("/echo/x").bearer(key).send().expect_status(200);
    }
}

/// Waits until so many more requests have begun.
fn more(running: &Running, requests: usize) {
    let goal = running.begun() + requests;
    wait_for("more requests", SOON, || (running.begun() >= goal).then_some(()));
}

fn everybody_obeys(answer: &Response) -> bool {
    let acknowledged = &answer.json()["acknowledged"];
    assert_eq!(acknowledged["of"], 3, "{acknowledged}");
    assert_eq!(answer.status() == 200, acknowledged["replicas"] == 3, "{} {acknowledged}", answer.status());
    answer.status() == 200
}

/// Between these no key of a number may be served: from when the answer was there until it is allowed again, if ever.
struct Refused {
    key: usize,
    from: Instant,
    until: Option<Instant>,
}

/// Judges what was sent while keys were refused, and returns how many requests that were.
fn judge(shots: &[Shot], refused: &[Refused], code: &str) -> usize {
    let mut judged = 0;
    for Refused { key, from, until } in refused {
        let after = |shot: &&Shot| shot.key == *key && shot.sent > *from && until.is_none_or(|until| shot.sent < until);
        for shot in shots.iter().filter(after) {
            judged += 1;
            let late = shot.sent.duration_since(*from);
            assert_eq!(shot.status(), 401, "gateway {} served a revoked key {late:?} later: {shot:?}", shot.gateway);
            assert_eq!(shot.answer.as_ref().unwrap().code.as_deref(), Some(code), "{shot:?}");
        }
    }
    judged
}

#[test]
fn no_request_sent_after_the_answer_of_a_delete_is_served_anywhere() {
    let three = Three::start();
    let (number, gateways) = (sized(12, 200), three.all());
    let keys = three.create(number);
    let running = Load::on(&gateways).keys(&keys).connections(30).rate(sized(300.0, 500.0)).start();
    let (mut refused, mut took, mut late) = (Vec::new(), Vec::new(), 0);
    for (number, key) in keys.iter().enumerate() {
        warm(&running, number, &gateways, key);
        more(&running, 20);
        let via = gateways[number % 3].request("DELETE", &format!("{BASE}/{}", key.id)).bearer(&three.caller);
        let start = Instant::now();
        let answer = via.send();
        let from = Instant::now();
        took.push(from - start);
        if everybody_obeys(&answer) {
            refused.push(Refused { key: number, from, until: None });
        } else {
            late += 1;
        }
        more(&running, 20);
    }
    let shots = running.stop();
    let judged = judge(&shots, &refused, "invalid_key");
    println!(
        "{number} deletes under load: {judged} requests sent after an answer, none served; {late} answers of 202; \
         DELETE p50 {:?}, p99 {:?}, max {:?}; {:?}",
        percentile(took.clone(), 50),
        percentile(took.clone(), 99),
        percentile(took.clone(), 100),
        statuses(&shots),
    );
    assert!(judged >= 10 * refused.len() && refused.len() * 2 > number, "{judged} requests, {} deletes", refused.len());
    assert_eq!(count(&shots, |status| !matches!(status, 200 | 401)), 0, "{:?}", statuses(&shots));
    if is_long() {
        assert!(percentile(took.clone(), 99) <= Duration::from_millis(100), "{took:?}");
    }
}

#[test]
fn a_disabled_key_and_a_suspended_account_are_refused_after_the_answer_and_served_after_the_way_back() {
    let three = Three::start();
    let gateways = three.all();
    let mine = three.create(1).remove(0);
    let theirs = three.stand.key().create();
    let keys = [&mine, &theirs];
    let running = Load::on(&gateways).keys(keys).connections(30).rate(sized(300.0, 500.0)).start();
    let (mut disabled, mut suspended) = (Vec::new(), Vec::new());
    let patch = |body: Value| {
        let path = format!("{BASE}/{}", mine.id);
        gateways[1].request("PATCH", &path).bearer(&three.caller).json(&body).send()
    };
    for _ in 0..sized(4, 50) {
        warm(&running, 0, &gateways, &mine);
        more(&running, 20);
        let told = patch(json!({"disabled": true}));
        let from = Instant::now();
        let obeyed = everybody_obeys(&told);
        more(&running, 20);
        let until = Instant::now();
        patch(json!({"disabled": false})).expect_status(200);
        disabled.extend(obeyed.then_some(Refused { key: 0, from, until: Some(until) }));
        eventually("enabled everywhere", SOON, || {
            gateways.iter().all(|gateway| gateway.get("/echo/x").bearer(&mine).send().status() == 200)
        });
    }
    for _ in 0..sized(2, 20) {
        warm(&running, 1, &gateways, &theirs);
        more(&running, 20);
        let told = three.stand.cli(&["accounts", "suspend", &theirs.account, "--json"]).expect_success().json();
        let from = Instant::now();
        more(&running, 20);
        let until = Instant::now();
        three.stand.cli(&["accounts", "resume", &theirs.account]).expect_success();
        let obeyed = told["acknowledged"]["replicas"] == 3;
        suspended.extend(obeyed.then_some(Refused { key: 1, from, until: Some(until) }));
        eventually("resumed everywhere", SOON, || {
            gateways.iter().all(|gateway| gateway.get("/echo/x").bearer(&theirs).send().status() == 200)
        });
    }
    let shots = running.stop();
    let judged = (judge(&shots, &disabled, "disabled_key"), judge(&shots, &suspended, "account_suspended"));
    println!(
        "{} times disabled, {} suspended: {judged:?} requests sent after it, none served",
        disabled.len(),
        suspended.len()
    );
    assert!(judged.0 >= 10 && judged.1 >= 10, "{judged:?}");
}

/// A gateway whose store works and whose news do not arrive.
struct Deaf {
    gateway: Gateway,
    recheck: Duration,
}

impl Deaf {
    /// Logs in as somebody from whom tracking and channels can be taken.
    fn start(three: &Three, recheck: Duration) -> Self {
        three.redis.create_user("second", "second", &["~*", "&*", "+@all"]);
        let first = "username: first, password: first";
        let gateway = three.stand.gateway_with(first, "username: second, password: second");
        Self { gateway, recheck }
    }

    fn listens(&self, redis: &RedisServer, listens: bool) {
        let rules = if listens { ["+client", "+subscribe"] } else { ["-client|tracking", "-subscribe"] };
        redis.cli(&["ACL", "SETUSER", "second", rules[0], rules[1]]);
        if !listens {
            let clients = redis.cli(&["CLIENT", "LIST"]);
            let of = |line: &&str| line.contains(" user=second ") && flags(line).contains('t');
            for line in clients.lines().filter(of) {
                redis.cli(&["CLIENT", "KILL", "ID", line.strip_prefix("id=").unwrap().split(' ').next().unwrap()]);
            }
        }
        let expected = if listens { 1.0 } else { 0.0 };
        eventually("the feed", SOON, || self.gateway.metric("gateway_change_feed_up", "") == Some(expected));
    }
}

fn flags(client: &str) -> &str {
    client.split(' ').find_map(|field| field.strip_prefix("flags=")).unwrap_or_default()
}

#[test]
fn a_gateway_that_hears_nothing_refuses_within_the_recheck_and_delete_says_that_it_may_not_obey_yet() {
    let redis = RedisServer::start();
    let recheck = seconds(1, 5);
    redis.create_user("first", "first", &["~*", "&*", "+@all"]);
    let store = format!("url: \"{}\", username: first, password: first{}", redis.url(), PATIENCE);
    let cache = format!("log: off\ncache: {{ recheck_without_push: {}s }}", recheck.as_secs());
    let stand = Stand::new().section(&cache).shared_store(&store).start();
    let others = vec![stand.another_gateway()];
    let caller = stand.key().scope("models:read").scope("api-keys:*").create();
    let three = Three { stand, others, redis, caller };
    let deaf = Deaf::start(&three, recheck);
    let mut slowest = Duration::ZERO;
    for key in three.create(sized(2, 10)) {
        let gateways = [&three.stand.gateway, &three.others[0], &deaf.gateway];
        let running = Load::on(&gateways).keys([&key]).connections(12).rate(200.0).start();
        warm(&running, 0, &gateways, &key);
        deaf.listens(&three.redis, false);
        more(&running, 40);
        let answer = three.stand.request("DELETE", &format!("{BASE}/{}", key.id)).bearer(&three.caller).send();
        let from = Instant::now();
        let told = answer.expect_status(202).json();
        let unreachable = told["acknowledged"]["unreachable"].as_array().unwrap();
        assert_eq!((unreachable.len(), &told["acknowledged"]["replicas"]), (1, &json!(2)), "{told}");
        let name = unreachable[0].as_str().unwrap();
        assert!(name.ends_with(&deaf.gateway.public.to_string()), "{name}");
        // It hears nothing, and yet it comes to know.
        std::thread::sleep(deaf.recheck + Duration::from_millis(1300));
        let shots = running.stop();
        for shot in shots.iter().filter(|shot| shot.sent > from) {
            let late = shot.sent - from;
            if shot.gateway != 2 {
                assert_eq!(shot.status(), 401, "a gateway that hears served it {late:?} later: {shot:?}");
            } else if shot.is_admitted() {
                slowest = slowest.max(late);
            }
        }
        assert!(slowest <= deaf.recheck + Duration::from_secs(1), "served {slowest:?} after it was revoked");
        assert!(shots.iter().any(|shot| shot.gateway == 2 && shot.status() == 401), "{:?}", statuses(&shots));
        assert_eq!(count(&shots, |status| !matches!(status, 200 | 401)), 0, "{:?}", statuses(&shots));
        deaf.listens(&three.redis, true);
        // And now it obeys again.
        let another = three.create(1).remove(0);
        let gone = three.stand.request("DELETE", &format!("{BASE}/{}", another.id)).bearer(&three.caller).send();
        assert!(everybody_obeys(&gone), "{}", gone.text());
    }
    println!(
        "push channel cut, recheck {recheck:?}: the last request with the revoked key was served {slowest:?} after the answer"
    );
}

#[test]
fn many_cold_keys_at_once_are_looked_up_once_each() {
    let three = Three::start();
    let keys = three.create(sized(200, 2000));
    let cold = three.stand.another_gateway();
    // Every key four times, by as many connections as there are keys: several at a time ask for the same one.
    let load = Load::on(&[&cold]).keys(&keys).connections(keys.len());
    let fourfold: Vec<&Key> = keys.iter().flat_map(|key| [key; 4]).collect();
    let shots = load.keys(fourfold).send(4 * keys.len());
    let looked_up = cold.metric("gateway_key_lookups_total", "outcome=\"found\"").unwrap_or(0.0);
    let p99 = percentile(shots.iter().map(|shot| shot.answered - shot.sent).collect(), 99);
    println!("{} cold keys at once: {looked_up} look-ups, {:?}, p99 {p99:?}", keys.len(), statuses(&shots));
    assert_eq!(statuses(&shots), [(200, 4 * keys.len())]);
    assert_eq!(looked_up, keys.len() as f64);
}

#[test]
fn a_flood_of_unknown_keys_takes_no_memory_to_speak_of() {
    let three = Three::start();
    let gateway = &three.stand.gateway;
    let secrets = |number: usize, salt: u8| -> Vec<String> { (0..number).map(|n| unknown(n, salt)).collect() };
    // What the connections and the allocator take comes with the first of them.
    let flood = |secrets: Vec<String>| {
        let number = secrets.len();
        let shots = Load::on(&[gateway]).secrets(secrets).connections(50).send(number);
        assert_eq!(statuses(&shots), [(401, number)]);
    };
    flood(secrets(2000, 1));
    let before = gateway.process.resident();
    let number = sized(15_000, 1_000_000);
    for part in 0..sized(3, 100) {
        flood(secrets(number / sized(3, 100), 2 + part));
    }
    let grown = gateway.process.resident().saturating_sub(before);
    println!("{number} unknown keys: resident memory grew by {grown} KiB");
    assert!(grown <= 50_000, "{grown} KiB");
    // One that was asked for a moment ago is not asked for again.
    let asked = || gateway.metric("gateway_key_lookups_total", "outcome=\"unknown\"").unwrap_or(0.0);
    let last = secrets(1, 255);
    flood(last.clone());
    let before = asked();
    flood(last);
    assert_eq!(asked(), before, "the negative cache does not work");
}

/// Well-formed, and nobody's.
fn unknown(number: usize, salt: u8) -> String {
    let mut random = [salt; 32];
    random[..8].copy_from_slice(&number.to_le_bytes());
    let random = blake3::hash(&random);
    let more: Vec<u8> = random.as_bytes().iter().chain(blake3::hash(random.as_bytes()).as_bytes()).copied().collect();
    let secret = seeme_gateway::policy::credential::Secret::mint(seeme_gateway::policy::key::Environment::Live, &more);
    secret.unwrap().reveal().to_owned()
}

#[test]
fn a_gateway_that_was_stopped_serves_nothing_that_was_revoked_meanwhile() {
    let redis = RedisServer::start();
    redis.create_user("first", "first", &["~*", "&*", "+@all"]);
    let store = format!("url: \"{}\", username: first, password: first{PATIENCE}", redis.url());
    let store = format!("{store}, outage: {{ serve_cached_keys_for: 1s }}");
    // As short as can be: it is soon waited for no more, and must then serve nothing either.
    let short = "log: off\ncache: { recheck_without_push: 1s }";
    let stand = Stand::new().section(short).shared_store(&store).start();
    let stopped = stand.another_gateway();
    let caller = stand.key().scope("models:read").scope("api-keys:*").create();
    for pause in [2600, 4000] {
        let key = create(&stand.gateway, &caller);
        let request = stopped.get("/echo/x").bearer(&key);
        let mut connections: Vec<_> = (0..20).map(|_| stopped.connect()).collect();
        connections.iter_mut().for_each(|open| drop(request.on(open).expect_status(200)));
        stopped.process.signal(Signal::STOP);
        std::thread::sleep(Duration::from_millis(pause));
        let gone = stand.request("DELETE", &format!("{BASE}/{}", key.id)).bearer(&caller).send();
        assert!(matches!(gone.status(), 200 | 202), "{}", gone.text());
        // Sent after the answer; they lie there when it wakes.
        connections.iter_mut().for_each(|open| open.send(request.bytes()));
        stopped.process.signal(Signal::CONT);
        for open in &mut connections {
            assert_eq!(open.response("GET").status(), 401, "after {pause} ms: {}", gone.text());
        }
    }
}
