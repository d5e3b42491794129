//! What the key cache must never do: bring back what was revoked, ask twice for one key, or trust a feed that fell silent.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::sleep;

use super::{Authenticator, Cached, Found, Front, StoreUnavailable};
use crate::clock::SimulatedClock;
use crate::config::{self, model::Config};
use crate::policy::credential::{KeyHash, Secret};
use crate::policy::key::{AccountId, Environment, KeyId, KeyRecord, Timestamp};
use crate::policy::scope::Scope;
use crate::store::faulty::{Fault, FaultyStore, Method};
use crate::store::health::Guard;
use crate::store::memory::MemoryStore;
use crate::store::{Action, Change, Event, FeedItem, Revision, SecretRow, Store};
use crate::telemetry::Metrics;

const FILE: &str = "
listen: { public: { address: 127.0.0.1:1 } }
store: { url: sqlite:unused.db }
upstreams: { s: { endpoints: ['http://127.0.0.1:2'] } }
routes: [{ match: GET /, access: authenticated }]
";

pub(super) struct Fixture {
    pub(super) store: Arc<FaultyStore>,
    pub(super) guard: Arc<Guard>,
    pub(super) auth: Arc<Authenticator>,
    pub(super) front: Arc<Front>,
    pub(super) hash: KeyHash,
    pub(super) config: Arc<Config>,
    pub(super) id: KeyId,
}

impl Fixture {
    pub(super) async fn new() -> Self {
        let store = FaultyStore::new(MemoryStore::new());
        let (config, _) = config::parse(Path::new("gateway.yaml"), FILE, &|_| None).unwrap();
        let metrics = Arc::new(Metrics::new());
        let guard = Guard::new(store.clone(), SimulatedClock::shared(0), config.store.timeout, Handle::current());
        let guarded = guard.clone();
        let auth = Arc::new(Authenticator::new(guarded, config.cache.capacity, metrics));
        let secret = Secret::mint(Environment::Live, &[7; 64]).unwrap();
        let (hash, id) = (secret.hash(), KeyId::parse("k1").unwrap());
        let at = Timestamp::from_unix_millis(0);
        let record = KeyRecord {
            id: id.clone(),
            name: "k".into(),
            key_prefix: secret.prefix().into(),
            environment: Environment::Live,
            account_id: AccountId::parse("a1").unwrap(),
            organization_id: None,
            scopes: vec![Scope::parse("models:read").unwrap()],
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
        let row = SecretRow { hash, key_prefix: secret.prefix().into(), expires_at: None, last_used_at: None };
        store.create_key(record, row, event(Action::Created)).await.unwrap();
        Self { store, guard, auth, front: Arc::default(), config: Arc::new(config), hash, id }
    }

    /// The whole process stands still for so long.
    async fn pass(&self, time: Duration) {
        tokio::time::advance(time).await;
    }

    /// The feed says that nothing happened.
    pub(super) fn hear_nothing(&self) {
        self.auth.apply(&FeedItem::Changes(Revision(1), Vec::new()));
    }

    pub(super) async fn delete(&self) -> Change {
        let key = self.store.key(self.id.clone()).await.unwrap().unwrap();
        let record = KeyRecord { deleted_at: Some(Timestamp::from_unix_millis(1)), ..key.record };
        self.store.replace_key(record, key.version, Some(event(Action::Deleted))).await.unwrap();
        Change::Key(self.id.clone())
    }

    /// As the one worker of this test does.
    pub(super) async fn look_up(&self, hash: KeyHash) -> Result<Found, StoreUnavailable> {
        self.auth.look_up(hash, &self.front, &self.config).await
    }

    pub(super) fn look_ups(&self) -> u64 {
        self.store.calls(Method::KeyBySecret)
    }
}

fn event(action: Action) -> Event {
    Event { at: Timestamp::from_unix_millis(0), action, by: "test".into(), from: "test".into(), changed: Vec::new() }
}

#[tokio::test(start_paused = true)]
async fn a_known_key_is_read_once_and_an_unknown_one_too() {
    let f = Fixture::new().await;
    for _ in 0..10 {
        assert!(f.look_up(f.hash).await.unwrap().is_some());
        assert!(f.look_up(KeyHash([1; 32])).await.unwrap().is_none());
    }
    assert_eq!(f.look_ups(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_requests_with_one_cold_key_are_one_look_up() {
    let f = Fixture::new().await;
    f.store.inject(Method::KeyBySecret, Fault::Hold);
    let asking: Vec<_> = (0..1000)
        .map(|_| {
            let (auth, front, hash, config) = (f.auth.clone(), f.front.clone(), f.hash, f.config.clone());
            tokio::spawn(async move { auth.look_up(hash, &front, &config).await })
        })
        .collect();
    while f.look_ups() == 0 {
        tokio::task::yield_now().await;
    }
    f.store.release();
    for answer in asking {
        assert!(answer.await.unwrap().unwrap().is_some());
    }
    assert_eq!(f.look_ups(), 1);
}

/// The race that resurrects revoked keys elsewhere: read the record, get the revocation, insert what was read.
#[tokio::test(start_paused = true)]
async fn a_load_that_began_before_a_revocation_never_enters_the_cache() {
    let f = Fixture::new().await;
    f.store.inject_times(Method::KeyBySecret, Fault::DelayReply(Duration::from_millis(100)), 1);
    let (auth, front, hash, config) = (f.auth.clone(), f.front.clone(), f.hash, f.config.clone());
    let early = tokio::spawn(async move { auth.look_up(hash, &front, &config).await });
    while f.look_ups() == 0 {
        tokio::task::yield_now().await;
    }
    let change = f.delete().await;
    f.auth.apply(&FeedItem::Changes(Revision(2), vec![change]));
    // Whoever comes after the revocation does not join the load from before it.
    assert!(f.look_up(f.hash).await.unwrap().is_none());
    early.await.unwrap().unwrap();
    assert!(f.look_up(f.hash).await.unwrap().is_none(), "the old record came back");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_serves_a_key_all_the_time_stops_with_its_revocation() {
    let f = Fixture::new().await;
    for _ in 0..3 {
        assert!(f.look_up(f.hash).await.unwrap().is_some());
    }
    let change = f.delete().await;
    assert!(f.look_up(f.hash).await.unwrap().is_some(), "nobody has said so yet");
    f.auth.apply(&FeedItem::Changes(Revision(2), vec![change]));
    assert!(f.look_up(f.hash).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_heard_nothing_for_a_while_asks_before_it_trusts() {
    let f = Fixture::new().await;
    assert!(f.look_up(f.hash).await.unwrap().is_some());
    // Stopped for three seconds: neither this deletion nor anything else was heard.
    f.delete().await;
    f.pass(Duration::from_secs(3)).await;
    assert!(f.look_up(f.hash).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn while_the_feed_is_silent_a_key_is_asked_for_once_an_interval() {
    let f = Fixture::new().await;
    f.look_up(f.hash).await.unwrap();
    f.pass(Duration::from_secs(1)).await;
    for _ in 0..10 {
        f.look_up(f.hash).await.unwrap();
    }
    assert_eq!(f.look_ups(), 2);
    f.pass(Duration::from_secs(5)).await;
    f.look_up(f.hash).await.unwrap();
    assert_eq!(f.look_ups(), 3);
    f.hear_nothing();
    f.pass(Duration::from_millis(200)).await;
    f.look_up(f.hash).await.unwrap();
    assert_eq!(f.look_ups(), 3, "it is heard again");
}

#[tokio::test(start_paused = true)]
async fn without_a_store_known_keys_are_served_for_a_while_and_unknown_ones_are_no_401() {
    let f = Fixture::new().await;
    f.look_up(f.hash).await.unwrap();
    f.store.inject_everywhere(Fault::Unavailable);
    f.auth.apply(&FeedItem::Lost);
    f.pass(Duration::from_secs(30)).await;
    assert!(f.look_up(f.hash).await.unwrap().is_some());
    assert_eq!(f.look_up(KeyHash([2; 32])).await.unwrap_err(), StoreUnavailable);
    f.pass(Duration::from_secs(31)).await;
    assert_eq!(f.look_up(f.hash).await.unwrap_err(), StoreUnavailable, "store.outage.serve_cached_keys_for is over");
    f.store.heal();
    // Nobody has to ask for it to be noticed.
    sleep(Duration::from_millis(1_200)).await;
    assert!(f.look_up(f.hash).await.unwrap().is_some());
}

/// The same file with another plan, as a reload makes it.
fn reloaded(f: &Fixture) -> Arc<Config> {
    let text = format!("{FILE}plans: {{ free: {{ requests_per_minute: 7, requests_per_day: 8 }} }}\n");
    let (config, _) = config::parse(Path::new("gateway.yaml"), &text, &|_| None).unwrap();
    Arc::new(config::reload::plan(&f.config, config).config)
}

#[tokio::test(start_paused = true)]
async fn after_a_reload_a_cached_key_is_worked_out_anew_and_not_asked_for() {
    let f = Fixture::new().await;
    let new = reloaded(&f);
    for config in [&f.config, &new, &new, &f.config, &new] {
        let found = f.auth.look_up(f.hash, &f.front, config).await.unwrap().unwrap();
        let limit = if config.revision == 0 { 60 } else { 7 };
        assert_eq!((found.revision, found.limits.requests_per_minute), (config.revision, limit));
    }
    assert_eq!(f.look_ups(), 1);
    let change = f.delete().await;
    f.auth.apply(&FeedItem::Changes(Revision(2), vec![change]));
    assert!(f.auth.look_up(f.hash, &f.front, &new).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_revoked_while_it_is_worked_out_anew_does_not_come_back() {
    let f = Fixture::new().await;
    f.look_up(f.hash).await.unwrap().unwrap();
    let Some(Cached::Known(known)) = f.auth.cache.get(&f.hash) else { panic!("not cached") };
    let change = f.delete().await;
    f.auth.apply(&FeedItem::Changes(Revision(2), vec![change]));
    f.auth.under(&reloaded(&f), f.hash, known);
    assert!(f.look_up(f.hash).await.unwrap().is_none(), "the old record came back");
}
