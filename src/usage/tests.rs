//! Counting exactly once whatever the store does, and never writing down a key.

use std::path::Path;
use std::sync::Arc;

use super::{Hit, Usage};
use crate::config;
use crate::policy::access::{KeyProfile, Values};
use crate::policy::credential::Secret;
use crate::policy::key::{Account, AccountId, Day, Environment, KeyId, KeyRecord, Timestamp};
use crate::policy::scope::Scope;
use crate::store::faulty::{Fault, FaultyStore, Method};
use crate::store::memory::MemoryStore;
use crate::store::{Counted, ReplicaId, StatusClass, Store, UsageCount};
use crate::telemetry::Metrics;

const FILE: &str = "
listen: { public: { address: 127.0.0.1:1 } }
store: { url: sqlite:unused.db }
upstreams: { s: { endpoints: ['http://127.0.0.1:2'] } }
routes: [{ match: 'GET /models/{model}', scope: models:read, resources: { model: path.model } }]
";
const DAY: Day = Day(20_000);

struct Fixture {
    store: Arc<FaultyStore>,
    usage: Usage,
    config: config::model::Config,
    key: Arc<KeyProfile>,
}

impl Fixture {
    fn new() -> Self {
        let store = FaultyStore::new(MemoryStore::new());
        let (config, _) = config::parse(Path::new("gateway.yaml"), FILE, &|_| None).unwrap();
        let usage = Usage::new(store.clone(), Arc::new(Metrics::new(Vec::new(), &[])), ReplicaId("r1".into()));
        let account = AccountId::parse("a1").unwrap();
        let record = KeyRecord {
            id: KeyId::parse("k1").unwrap(),
            name: "k".into(),
            key_prefix: "sm_live_abcd".into(),
            environment: Environment::Live,
            account_id: account.clone(),
            organization_id: None,
            scopes: vec![Scope::parse("models:read").unwrap()],
            model_ids: None,
            dataset_ids: None,
            expires_at: None,
            disabled: false,
            created_at: DAY.start(),
            updated_at: DAY.start(),
            created_by: "test".into(),
            deleted_at: None,
        };
        let key = Arc::new(config.profile(record, Account::unset(account), None));
        Self { store, usage, config, key }
    }

    /// One admitted request for a model.
    fn request(&self, model: &str, at: Timestamp) {
        let route = &self.config.routes.routes()[0];
        let values = Values { model: Some(model.to_owned()), ..Values::default() };
        self.usage.count(Hit {
            key: &self.key,
            secret: None,
            at,
            endpoint: Some(route.endpoint(&http::Method::GET)),
            class: StatusClass::Success,
            admitted: Some((route, &values)),
        });
    }

    async fn stored(&self) -> Vec<UsageCount> {
        self.store.usage(self.key.record.id.clone(), DAY, Day(DAY.0 + 1)).await.unwrap()
    }

    async fn requests_stored(&self) -> u64 {
        let is_request = |count: &&UsageCount| matches!(count.counted, Counted::Endpoint(..));
        self.stored().await.iter().filter(is_request).map(|count| count.count).sum()
    }
}

#[tokio::test]
async fn a_request_counts_for_its_endpoint_its_scope_and_its_resource_on_its_day() {
    let f = Fixture::new();
    f.request("m-1", DAY.start());
    f.request("m-1", DAY.start());
    f.request("m-2", DAY.start().plus_seconds(86_400));
    f.usage.flush().await.unwrap();
    let stored = f.stored().await;
    let count = |day: Day, counted: Counted| {
        stored.iter().filter(|c| c.day == day && c.counted == counted).map(|c| c.count).sum::<u64>()
    };
    let endpoint = || Counted::Endpoint("GET /models/{model}".into(), StatusClass::Success);
    let model = |id: &str| Counted::Resource(crate::policy::resource::Kind::Model, id.into());
    assert_eq!(count(DAY, endpoint()), 2);
    assert_eq!(count(Day(DAY.0 + 1), endpoint()), 1);
    assert_eq!(count(DAY, Counted::Scope(Scope::parse("models:read").unwrap())), 2);
    assert_eq!((count(DAY, model("m-1")), count(DAY, model("m-2"))), (2, 0));
}

#[tokio::test]
async fn a_batch_whose_answer_was_lost_counts_once_and_an_outage_loses_nothing() {
    let f = Fixture::new();
    f.store.inject_times(Method::FlushUsage, Fault::LoseReply, 3);
    for _ in 0..100 {
        f.request("m-1", DAY.start());
    }
    for _ in 0..3 {
        assert!(f.usage.flush().await.is_err());
        f.request("m-1", DAY.start());
    }
    f.store.inject_times(Method::FlushUsage, Fault::Unavailable, 2);
    assert!(f.usage.flush().await.is_err());
    assert!(f.usage.flush().await.is_err());
    f.usage.flush().await.unwrap();
    assert_eq!(f.requests_stored().await, 103);
    f.usage.flush().await.unwrap();
    assert_eq!(f.requests_stored().await, 103, "nothing is sent twice");
}

#[tokio::test]
async fn a_key_in_the_place_of_a_resource_is_never_written() {
    let f = Fixture::new();
    let secret = Secret::mint(Environment::Live, &[9; 64]).unwrap();
    for id in [secret.reveal().to_owned(), format!("x.{}:y", secret.reveal()), secret.reveal().to_uppercase()] {
        f.request(&id, DAY.start());
    }
    f.usage.flush().await.unwrap();
    assert_eq!(f.requests_stored().await, 3, "the requests count all the same");
    assert!(!f.stored().await.iter().any(|count| matches!(count.counted, Counted::Resource(..))));
}
