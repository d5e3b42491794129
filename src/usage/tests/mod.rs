//! Counting exactly once whatever the store, the disk and the process do, and never writing down a key.

mod lives;
mod model;
mod outage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::Usage;
use super::journal::Journal;
use super::ledger::Bounds;
use super::pending::Hit;
use crate::clock::Clock;
use crate::config;
use crate::policy::access::{KeyProfile, Values};
use crate::policy::credential::{KeyHash, Secret};
use crate::policy::instant::Mono;
use crate::policy::key::{Account, AccountId, Day, Environment, KeyId, KeyRecord, Timestamp};
use crate::policy::scope::Scope;
use crate::store::faulty::{Fault, FaultyStore, Method};
use crate::store::memory::MemoryStore;
use crate::store::{Counted, ReplicaId, StatusClass, Store};
use crate::telemetry::Metrics;

const FILE: &str = "
listen: { public: { address: 127.0.0.1:1 } }
store: { url: sqlite:unused.db }
upstreams: { s: { endpoints: ['http://127.0.0.1:2'] } }
routes: [{ match: 'GET /models/{model}', scope: models:read, resources: { model: path.model } }]
";
pub(super) const DAY: Day = Day(20_000);

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub(super) struct HandClock(AtomicI64);

impl HandClock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(DAY.start().unix_millis())))
    }

    pub(super) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as i64, Ordering::Relaxed);
    }
}

impl Clock for HandClock {
    fn mono(&self) -> Mono {
        Mono(self.0.load(Ordering::Relaxed) as u64 * 1000)
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_unix_millis(self.0.load(Ordering::Relaxed))
    }
}

/// A gateway's counters, over several lives.
struct Fixture {
    store: Arc<FaultyStore>,
    config: config::model::Config,
    keys: Vec<Arc<KeyProfile>>,
    clock: Arc<HandClock>,
    metrics: Arc<Metrics>,
    journal: Option<PathBuf>,
    _folder: tempfile::TempDir,
    bounds: Bounds,
    lives: usize,
    usage: Option<Usage>,
}

impl Fixture {
    /// One that lives, without a journal.
    fn new() -> Self {
        Self::with(false, Bounds::USUAL)
    }

    fn with(journal: bool, bounds: Bounds) -> Self {
        let store = FaultyStore::new(MemoryStore::new());
        let (config, _) = config::parse(Path::new("gateway.yaml"), FILE, &|_| None).unwrap();
        let keys = (0..5).map(|n| profile(&config, n)).collect();
        let folder = tempfile::tempdir().unwrap();
        let mut fixture = Self {
            store,
            config,
            keys,
            clock: HandClock::new(),
            metrics: Arc::new(Metrics::new()),
            journal: journal.then(|| folder.path().join("usage/usage.journal")),
            _folder: folder,
            bounds,
            lives: 0,
            usage: None,
        };
        fixture.start();
        fixture
    }

    /// The next life begins.
    fn start(&mut self) {
        self.lives += 1;
        let replica = ReplicaId(format!("r{}", self.lives).into());
        let journal = self.journal.as_ref().map(|path| Journal::open(path, self.clock.clone()).unwrap());
        let (store, metrics) = (self.store.clone(), self.metrics.clone());
        self.usage = Some(Usage::bounded(store, metrics, replica, journal, self.bounds));
    }

    /// SIGKILL: nothing gets to say goodbye. Then the next life.
    fn kill_and_start(&mut self) {
        self.usage = None;
        self.start();
    }

    fn usage(&self) -> &Usage {
        self.usage.as_ref().unwrap()
    }

    /// One admitted request for a model.
    fn request(&self, model: &str, at: Timestamp) {
        self.request_of(0, model, at);
    }

    fn request_of(&self, key: usize, model: &str, at: Timestamp) {
        let route = &self.config.routes.routes()[0];
        let values = Values { model: Some(model.to_owned()), ..Values::default() };
        self.usage().count(Hit {
            key: &self.keys[key],
            secret: Some(KeyHash([key as u8; 32])),
            at,
            endpoint: Some(route.endpoint(&http::Method::GET)),
            class: StatusClass::Success,
            admitted: Some((route, &values)),
        });
    }

    /// The key's record was read again: it lies elsewhere from now on.
    fn read_key_again(&mut self, key: usize) {
        self.keys[key] = profile(&self.config, key);
    }

    async fn stored(&self) -> BTreeMap<(KeyId, Day, Counted), u64> {
        let mut stored = BTreeMap::new();
        for key in &self.keys {
            let counts = self.store.usage(key.record.id.clone(), Day(0), Day(DAY.0 + 999)).await.unwrap();
            stored.extend(counts.into_iter().map(|c| ((c.key_id, c.day, c.counted), c.count)));
        }
        stored
    }

    async fn requests_stored(&self) -> u64 {
        let of_endpoint =
            |(name, count): ((_, _, Counted), u64)| matches!(name.2, Counted::Endpoint(..)).then_some(count);
        self.stored().await.into_iter().filter_map(of_endpoint).sum()
    }

    /// A line of the scrape.
    fn metric(&self, name: &str) -> f64 {
        let text = self.metrics.handle().render();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }
}

fn profile(config: &config::model::Config, n: usize) -> Arc<KeyProfile> {
    let account = AccountId::parse("a1").unwrap();
    let record = KeyRecord {
        id: KeyId::parse(&format!("k{n}")).unwrap(),
        name: "k".into(),
        key_prefix: "sm_live_abcd".into(),
        environment: Environment::Live,
        account_id: account.clone(),
        organization_id: None,
        scopes: vec![Scope::parse("models:read").unwrap()],
        model_ids: None,
        dataset_ids: None,
        allowed_addresses: None,
        expires_at: None,
        disabled: false,
        created_at: DAY.start(),
        updated_at: DAY.start(),
        created_by: "test".into(),
        deleted_at: None,
    };
    Arc::new(config.profile(record, Account::unset(account), None))
}

#[tokio::test]
async fn a_request_counts_for_its_endpoint_its_scope_and_its_resource_on_its_day() {
    let f = Fixture::new();
    f.request("m-1", DAY.start());
    f.request("m-1", DAY.start());
    f.request("m-2", DAY.start().plus_seconds(86_400));
    f.usage().flush().await.unwrap();
    let stored = f.stored().await;
    let count = |day: Day, counted: Counted| stored.get(&(KeyId::parse("k0").unwrap(), day, counted)).copied();
    let endpoint = || Counted::Endpoint("GET /models/{model}".into(), StatusClass::Success);
    let model = |id: &str| Counted::Resource(crate::policy::resource::Kind::Model, id.into());
    assert_eq!(count(DAY, endpoint()), Some(2));
    assert_eq!(count(Day(DAY.0 + 1), endpoint()), Some(1));
    assert_eq!(count(DAY, Counted::Scope(Scope::parse("models:read").unwrap())), Some(2));
    assert_eq!((count(DAY, model("m-1")), count(DAY, model("m-2"))), (Some(2), None));
}

#[tokio::test]
async fn a_batch_whose_answer_was_lost_counts_once_and_an_outage_loses_nothing() {
    let f = Fixture::new();
    f.store.inject_times(Method::FlushUsage, Fault::LoseReply, 3);
    for _ in 0..100 {
        f.request("m-1", DAY.start());
    }
    for _ in 0..3 {
        assert!(f.usage().flush().await.is_err());
        f.request("m-1", DAY.start());
    }
    f.store.inject_times(Method::FlushUsage, Fault::Unavailable, 2);
    assert!(f.usage().flush().await.is_err());
    assert!(f.usage().flush().await.is_err());
    f.usage().flush().await.unwrap();
    assert_eq!(f.requests_stored().await, 103);
    f.usage().flush().await.unwrap();
    assert_eq!(f.requests_stored().await, 103, "nothing is sent twice");
}

#[tokio::test]
async fn a_key_in_the_place_of_a_resource_is_never_written() {
    let f = Fixture::with(true, Bounds::USUAL);
    let secret = Secret::mint(Environment::Live, &[9; 64]).unwrap();
    for id in [secret.reveal().to_owned(), format!("x.{}:y", secret.reveal()), secret.reveal().to_uppercase()] {
        f.request(&id, DAY.start());
    }
    f.usage().write_down().await.unwrap();
    let journal = std::fs::read_to_string(f.journal.as_ref().unwrap()).unwrap().to_lowercase();
    assert!(journal.contains("k0") && !journal.contains(&secret.reveal().to_lowercase()), "{journal}");
    f.usage().flush().await.unwrap();
    assert_eq!(f.requests_stored().await, 3, "the requests count all the same");
    assert!(!f.stored().await.keys().any(|(_, _, counted)| matches!(counted, Counted::Resource(..))));
}
