//! An outage as requests meet it: authentication and the limiter over one guard, in simulated time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::auth::{Authenticator, Front};
use crate::clock::SimulatedClock;
use crate::config;
use crate::config::model::Config;
use crate::limit::Limiter;
use crate::policy::access::{Authenticated, Values};
use crate::policy::credential::{KeyHash, Secret};
use crate::policy::key::{AccountId, Environment, KeyId, KeyRecord, Timestamp};
use crate::policy::path::RequestPath;
use crate::store::faulty::{self, Fault, FaultyStore};
use crate::store::health::Guard;
use crate::store::memory::MemoryStore;
use crate::store::{Action, Event, FeedItem, ReplicaId, SecretRow, Store};
use crate::telemetry::Metrics;

const FILE: &str = "
listen: { public: { address: 127.0.0.1:1 } }
store: { url: sqlite:unused.db }
upstreams: { s: { endpoints: ['http://127.0.0.1:2'] } }
routes: [{ match: GET /, access: authenticated }]
";
/// `store.timeout`, and the time between two looks at a call that is out.
const SILENCE: Duration = Duration::from_millis(55);

/// A request's way through the store, as `gateway` walks it.
struct Way {
    config: Arc<Config>,
    auth: Arc<Authenticator>,
    limiter: Arc<Limiter>,
    front: Front,
}

impl Way {
    /// Whether it would be forwarded; `None`: 503.
    async fn walk(&self, hash: KeyHash) -> Option<bool> {
        let Some(profile) = self.auth.look_up(hash, &self.front, &self.config).await.ok()? else { return Some(false) };
        let found = self.config.routes.find(&Method::GET, &RequestPath::parse("/").unwrap()).unwrap();
        let key = Authenticated::check(profile, Timestamp::from_unix_millis(0), std::net::Ipv4Addr::LOCALHOST.into())
            .unwrap();
        let scoped = key.check_scope(&found.route.access).unwrap();
        let grant = scoped.check_resources(found, Values::default()).unwrap();
        match self.limiter.admit(grant).await {
            Ok(_) => Some(true),
            Err(crate::limit::LimitError::Rejected(_)) => Some(false),
            Err(crate::limit::LimitError::StoreUnavailable) => None,
        }
    }
}

struct Stand {
    store: Arc<FaultyStore>,
    guard: Arc<Guard>,
    way: Arc<Way>,
    keys: Vec<KeyHash>,
}

/// A gateway that knows the first half of its keys, each of an account of its own.
async fn stand(keys: u8) -> Stand {
    // A second into a minute, so that the test stays in it.
    let clock = SimulatedClock::shared(29_500_000 * 60_000_000 + 1_000_000);
    let stores_clock = clock.clone();
    let store = FaultyStore::new(MemoryStore::with_clock(Arc::new(move || stores_clock.wall_micros())));
    let config = Arc::new(config::parse(Path::new("gateway.yaml"), FILE, &|_| None).unwrap().0);
    let guard = Guard::new(store.clone(), clock, config.store.timeout, Handle::current());
    let metrics = Arc::new(Metrics::new());
    let auth = Arc::new(Authenticator::new(guard.clone(), config.cache.capacity, metrics));
    let limiter = Arc::new(Limiter::new(guard.clone(), config.store.outage_quota));
    let way = Arc::new(Way { config, auth, limiter, front: Front::default() });
    let mut hashes = Vec::new();
    for n in 0..keys {
        let hash = create_key(&*store, n).await;
        if n < keys / 2 {
            assert_eq!(way.walk(hash).await, Some(true));
        }
        hashes.push(hash);
    }
    Stand { store, guard, way, keys: hashes }
}

async fn create_key(store: &dyn Store, n: u8) -> KeyHash {
    let mut random = [7; 64];
    (random[0], random[1]) = (n % 50, n / 50);
    let secret = Secret::mint(Environment::Live, &random).unwrap();
    let at = Timestamp::from_unix_millis(0);
    let record = KeyRecord {
        id: KeyId::parse(&format!("k{n}")).unwrap(),
        name: "k".into(),
        key_prefix: secret.prefix().into(),
        environment: Environment::Live,
        account_id: AccountId::parse(&format!("a{n}")).unwrap(),
        organization_id: None,
        scopes: Vec::new(),
        model_ids: None,
        dataset_ids: None,
        allowed_addresses: None,
        expires_at: None,
        disabled: false,
        created_at: at,
        updated_at: at,
        created_by: "test".into(),
        deleted_at: None,
    };
    let hash = secret.hash();
    let row = SecretRow { hash, key_prefix: secret.prefix().into(), expires_at: None, last_used_at: None };
    let event = Event { at, action: Action::Created, by: "test".into(), from: "test".into(), changed: Vec::new() };
    store.create_key(record, row, event).await.unwrap();
    hash
}

impl Stand {
    /// 2,000 requests a second with all keys in turn. How long those took that had to wait, and how many were forwarded, refused
    /// by quota, and told 503.
    async fn load(&self, time: Duration) -> (Vec<Duration>, [usize; 3]) {
        let (started, mut requests) = (Instant::now(), JoinSet::new());
        let mut all = self.keys.iter().cycle();
        while started.elapsed() < time {
            for hash in all.by_ref().take(20) {
                let (way, hash) = (self.way.clone(), *hash);
                requests.spawn(async move {
                    let asked = Instant::now();
                    (way.walk(hash).await, asked.elapsed())
                });
            }
            sleep(Duration::from_millis(10)).await;
        }
        let (mut waited, mut outcomes) = (Vec::new(), [0; 3]);
        for (outcome, took) in requests.join_all().await {
            outcomes[match outcome {
                Some(true) => 0,
                Some(false) => 1,
                None => 2,
            }] += 1;
            waited.extend(Some(took).filter(|took| !took.is_zero()));
        }
        (waited, outcomes)
    }
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_each_request_is_answered_at_once_but_those_that_found_out() {
    let s = stand(100).await;
    s.store.inject_everywhere(Fault::Hold);
    s.way.auth.apply(&FeedItem::Lost);

    let (waited, _) = s.load(Duration::from_millis(100)).await;
    assert!(!waited.is_empty() && waited.iter().all(|took| *took <= SILENCE), "{waited:?}");
    assert_eq!(s.guard.opened(), 1, "one breaker for both");

    let calls = |s: &Stand| s.store.calls(faulty::Method::KeyBySecret) + s.store.calls(faulty::Method::Lease);
    let (before, probes) = (calls(&s), s.guard.probes());
    let (waited, [forwarded, refused, unavailable]) = s.load(Duration::from_secs(10)).await;
    let probes = s.guard.probes() - probes;
    assert_eq!(waited, [Duration::ZERO; 0], "nobody waits while it is away");
    assert!((8..=12).contains(&probes), "{probes} probes in 10 s");
    assert_eq!(calls(&s), before, "only pings are sent");
    // Uncached keys are 503; the others are known, and each account has its share of 60, which is all of it.
    assert_eq!(unavailable, 10_000);
    assert!(forwarded + refused == 10_000 && forwarded > 2_000 && refused > 5_000, "{forwarded} and {refused}");

    s.store.heal();
    sleep(Duration::from_millis(1_200)).await;
    let (waited, [_, _, unavailable]) = s.load(Duration::from_secs(2)).await;
    assert!(s.guard.is_well() && unavailable == 0 && waited.is_empty(), "{unavailable} and {waited:?}");
}

#[tokio::test(start_paused = true)]
async fn slow_answers_are_waited_for_and_are_no_outage() {
    let s = stand(100).await;
    for slow in [faulty::Method::KeyBySecret, faulty::Method::Lease] {
        s.store.inject(slow, Fault::DelayReply(Duration::from_millis(200)));
    }
    let (waited, [_, _, unavailable]) = s.load(Duration::from_secs(5)).await;
    assert!(s.guard.is_well() && s.way.limiter.stats().outage_admissions.get() == 0);
    assert!(waited.iter().all(|took| *took <= Duration::from_millis(200 + 250)), "{:?}", waited.iter().max());
    assert!(unavailable < 2_000, "those whose lease took a second call: {unavailable} of 10,000");
}

#[tokio::test(start_paused = true)]
async fn a_full_store_is_read_on_while_quota_is_decided_locally() {
    let s = stand(100).await;
    s.store.inject(faulty::Method::Lease, Fault::Unavailable);
    let (waited, [forwarded, refused, unavailable]) = s.load(Duration::from_secs(10)).await;
    assert_eq!((waited, unavailable), (Vec::new(), 0), "keys that nobody had asked for are looked up");
    assert!(forwarded > 4_000 && refused > 5_000, "{forwarded} and {refused}");
    let charges = s.guard.probes();
    assert!((8..=12).contains(&charges), "{charges}");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_tell_operators_of_an_outage_that_no_request_meets() {
    let s = stand(2).await;
    let store = s.guard.guarded();
    let id = ReplicaId("r".into());
    store.register(id.clone(), "r".into()).await.unwrap();
    tokio::spawn(super::every(super::presence::HEARTBEAT, move || {
        let (store, id) = (store.clone(), id.clone());
        async move { drop(store.heartbeat(id).await) }
    }));
    sleep(Duration::from_secs(2)).await;
    s.store.inject_everywhere(Fault::Hold);
    sleep(Duration::from_millis(600)).await;
    assert!(!s.guard.is_well());
    s.store.heal();
    sleep(Duration::from_millis(1_200)).await;
    assert!(s.guard.is_well());
}
