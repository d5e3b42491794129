//! Calls from method, path and body to status and JSON.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::json;

use super::*;
use crate::config::model::CLIENT_MANAGEMENT_PATH;
use crate::management::testing::{Stopped, StubStore, config, now, profile, record, scope};
use crate::policy::key::{KeyRecord, Timestamp};
use crate::policy::path::RequestPath;
use crate::store::{Counted, Replica, ReplicaId, StatusClass, UsageCount};

const BASE: &str = "/api/v1/api-keys";

struct Fixture {
    store: StubStore,
    api: Management,
    flushes: Arc<AtomicU32>,
}

impl Fixture {
    /// Account `u-1` with the calling key `caller` and the key `k`, account `u-2` with `other`.
    fn new() -> Self {
        let store = StubStore::default();
        store.put(record("caller"));
        store.put(record("k"));
        store.put(KeyRecord { account_id: AccountId::parse("u-2").unwrap(), ..record("other") });
        let flushes = Arc::new(AtomicU32::new(0));
        let flush: FlushUsage = {
            let (flushes, store) = (flushes.clone(), store.clone());
            Arc::new(move || {
                flushes.fetch_add(1, Ordering::Relaxed);
                // What this process had not written yet.
                store.edit(|state| state.usage.push(one_request()));
                Box::pin(std::future::ready(()))
            })
        };
        let api = Management::new(Arc::new(store.clone()), Arc::new(Stopped), flush);
        Self { store, api, flushes }
    }

    async fn call(&self, caller: &KeyProfile, method: &str, target: &str, body: &str) -> ManagementResponse {
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let call = Call::recognise(BASE, &method, &RequestPath::parse(path).unwrap(), query).unwrap().unwrap();
        self.api.handle(&config(), &call, caller, None, body.as_bytes(), "203.0.113.9").await
    }

    async fn done(&self, method: &str, target: &str, body: &str) -> (u16, Value) {
        match self.call(&profile(record("caller")), method, target, body).await {
            ManagementResponse::Done { status, json } => (status, json),
            refused => panic!("{method} {target}: {refused:?}"),
        }
    }

    async fn refused(&self, method: &str, target: &str, body: &str) -> Problem {
        match self.call(&profile(record("caller")), method, target, body).await {
            ManagementResponse::Refused(problem) => problem,
            done => panic!("{method} {target}: {done:?}"),
        }
    }

    fn has_replicas(&self, acknowledged: &[u64]) {
        let replica = |(n, revision): (usize, &u64)| Replica {
            id: ReplicaId(format!("r{n}").into()),
            name: format!("host-{n} 127.0.0.1:8080"),
            heartbeat_age: Duration::ZERO,
            acknowledged: Revision(*revision),
        };
        self.store.edit(|state| state.replicas = acknowledged.iter().enumerate().map(replica).collect());
    }
}

fn one_request() -> UsageCount {
    let counted = Counted::Endpoint("GET /api/v1/models".into(), StatusClass::Success);
    UsageCount { key_id: KeyId::parse("k").unwrap(), day: now().day(), counted, count: 1 }
}

#[tokio::test]
async fn a_created_key_is_answered_whole_with_its_secret() {
    let fixture = Fixture::new();
    let body = r#"{"name": "n", "scopes": ["models:read"], "model_ids": ["m-1"], "expires_in_days": 30}"#;
    let (status, mut json) = fixture.done("POST", BASE, body).await;
    assert_eq!(status, 201);
    assert!(json["key"].as_str().unwrap().starts_with(json["key_prefix"].as_str().unwrap()));
    for random in ["id", "key", "key_prefix"] {
        json[random] = format!("[{random}]").into();
    }
    insta::assert_json_snapshot!(json);
}

#[tokio::test]
async fn the_published_client_creates_with_its_own_scopes_and_base_path_asks_for_them() {
    let fixture = Fixture::new();
    let body = r#"{"name":"n","scopes":[],"organization_id":null,"expires_in_days":null}"#;
    let (status, json) = fixture.done("POST", CLIENT_MANAGEMENT_PATH, body).await;
    assert_eq!((status, &json["scopes"]), (201, &json!(["*"])));
    let problem = fixture.refused("POST", BASE, body).await;
    assert_eq!((problem.status, &*problem.message), (400, "Invalid body: scopes"));
}

#[tokio::test]
async fn a_list_shows_no_secret_and_deleted_keys_only_on_request() {
    let fixture = Fixture::new();
    fixture.store.put(KeyRecord { deleted_at: Some(now()), ..record("deleted") });
    let ids = |json: &Value| json.as_array().unwrap().iter().map(|key| key["id"].clone()).collect::<Vec<_>>();
    let (_, json) = fixture.done("GET", BASE, "").await;
    assert_eq!(ids(&json), ["k", "caller"]);
    assert!(json[0].get("key").is_none());
    let (_, json) = fixture.done("GET", &format!("{BASE}?include=deleted"), "").await;
    assert_eq!(ids(&json), ["deleted", "k", "caller"]);
    assert_eq!(fixture.refused("GET", &format!("{BASE}?include=all"), "").await.status, 400);
    assert_eq!(fixture.refused("GET", &format!("{BASE}/deleted"), "").await.status, 404);
    let (_, json) = fixture.done("GET", &format!("{BASE}/deleted?include=deleted"), "").await;
    assert_eq!(json["deleted_at"], "2026-06-01T12:00:00Z");
}

#[tokio::test]
async fn anothers_key_is_answered_like_an_absent_one_whatever_else_is_wrong() {
    let fixture = Fixture::new();
    for (method, suffix, body) in [
        ("GET", "", ""),
        ("GET", "?include=rubbish", ""),
        ("GET", "?account_id=u-2", ""),
        ("PATCH", "", "{\"disabled\": true}"),
        ("PATCH", "", "not json"),
        ("PUT", "", "{\"foo\": 1}"),
        ("DELETE", "", ""),
        ("GET", "/usage", ""),
        ("GET", "/usage?start_date=rubbish", ""),
        ("GET", "/events", ""),
    ] {
        let others = fixture.refused(method, &format!("{BASE}/other{suffix}"), body).await;
        let absent = fixture.refused(method, &format!("{BASE}/absent{suffix}"), body).await;
        let impossible = fixture.refused(method, &format!("{BASE}/a%20b{suffix}"), body).await;
        assert_eq!((others.status, others.code), (404, "key_not_found"), "{method} {suffix}");
        assert_eq!((&others, &others), (&absent, &impossible), "{method} {suffix}");
    }
}

#[tokio::test]
async fn current_is_the_calling_key_with_its_limits() {
    let (_, json) = Fixture::new().done("GET", &format!("{BASE}/current"), "").await;
    assert_eq!((&json["id"], &json["limits"]["minute"]["limit"]), (&json!("caller"), &json!(60)));
}

#[tokio::test]
async fn null_clears_with_patch_and_leaves_with_put() {
    let fixture = Fixture::new();
    fixture.store.put(KeyRecord { expires_at: Timestamp::parse("2030-01-01T00:00:00Z").ok(), ..record("e") });
    let target = format!("{BASE}/e");
    let (_, json) = fixture.done("PUT", &target, r#"{"expires_at": null, "name": "put"}"#).await;
    assert_eq!((&json["expires_at"], &json["name"]), (&json!("2030-01-01T00:00:00Z"), &json!("put")));
    let (_, json) = fixture.done("PATCH", &target, r#"{"expires_at": null}"#).await;
    assert_eq!((&json["expires_at"], &json["name"]), (&Value::Null, &json!("put")));
    assert!(json.get("acknowledged").is_none());
}

#[tokio::test]
async fn a_delete_that_everybody_obeys_is_200_and_one_that_is_not_is_202() {
    let fixture = Fixture::new();
    fixture.has_replicas(&[1, 1]);
    let (status, json) = fixture.done("DELETE", &format!("{BASE}/k"), "").await;
    assert_eq!(status, 200);
    insta::assert_json_snapshot!(json, @r#"
    {
      "id": "k",
      "deleted": true,
      "acknowledged": {
        "replicas": 2,
        "of": 2,
        "unreachable": []
      }
    }
    "#);
    let fixture = Fixture::new();
    fixture.has_replicas(&[1, 0]);
    let (status, json) = fixture.done("DELETE", &format!("{BASE}/k"), "").await;
    let expected = json!({"replicas": 1, "of": 2, "unreachable": ["host-1 127.0.0.1:8080"]});
    assert_eq!((status, &json["acknowledged"]), (202, &expected));
}

#[tokio::test]
async fn a_disable_carries_the_acknowledgement_too() {
    let fixture = Fixture::new();
    fixture.has_replicas(&[1]);
    let (status, json) = fixture.done("PATCH", &format!("{BASE}/k"), r#"{"disabled": true}"#).await;
    assert_eq!((status, &json["disabled"]), (200, &json!(true)));
    assert_eq!(json["acknowledged"], json!({"replicas": 1, "of": 1, "unreachable": []}));
}

#[tokio::test]
async fn usage_is_read_after_this_process_has_written_its_counters() {
    let fixture = Fixture::new();
    let (status, json) = fixture.done("GET", &format!("{BASE}/k/usage"), "").await;
    assert_eq!((status, &json["total_requests"]), (200, &json!(1)));
    let (_, json) = fixture.done("GET", &format!("{BASE}/k/usage?end_date=2026-05-31"), "").await;
    assert_eq!(json["total_requests"], 0);
    let problem = fixture.refused("GET", &format!("{BASE}/k/usage?start_date=x&end_date=y"), "").await;
    assert_eq!((problem.status, &*problem.message), (400, "Invalid query: start_date, end_date"));
    assert_eq!(fixture.flushes.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn events_tell_who_did_what_from_where() {
    let fixture = Fixture::new();
    fixture.done("PATCH", &format!("{BASE}/k"), r#"{"disabled": true}"#).await;
    fixture.done("PATCH", &format!("{BASE}/k"), r#"{"disabled": false, "name": "n"}"#).await;
    let (_, json) = fixture.done("GET", &format!("{BASE}/k/events"), "").await;
    insta::assert_json_snapshot!(json);
}

#[tokio::test]
async fn an_administrator_names_the_account_and_others_cannot() {
    let fixture = Fixture::new();
    let mut admin = record("caller");
    admin.scopes = vec![scope("*"), scope("api-keys:admin")];
    let admin = profile(admin);
    let of_u2 = format!("{BASE}?account_id=u-2");
    let ManagementResponse::Done { json, .. } = fixture.call(&admin, "GET", &of_u2, "").await else { panic!() };
    assert_eq!((json.as_array().unwrap().len(), &json[0]["id"]), (1, &json!("other")));
    let body = r#"{"name": "n", "scopes": ["models:read"], "account_id": "u-3"}"#;
    let ManagementResponse::Done { json, .. } = fixture.call(&admin, "POST", BASE, body).await else { panic!() };
    assert_eq!(json["account_id"], "u-3");

    let (_, json) = fixture.done("GET", &of_u2, "").await;
    assert!(json.as_array().unwrap().iter().all(|key| key["account_id"] == "u-1"));
    let refused = fixture.refused("POST", BASE, body).await;
    assert_eq!((refused.status, refused.code), (403, "grant_exceeds_caller"));
    assert!(refused.message.contains("account_id"), "{}", refused.message);
    let (_, json) = fixture.done("POST", BASE, &body.replace("u-3", "u-1")).await;
    assert_eq!(json["account_id"], "u-1");
}

#[tokio::test]
async fn a_store_that_is_down_is_503_and_a_large_body_413() {
    let fixture = Fixture::new();
    let large = fixture.refused("POST", BASE, &" ".repeat(BODY_LIMIT + 1)).await;
    assert_eq!((large.status, large.code), (413, "body_too_large"));
    fixture.store.edit(|state| state.down = true);
    for (method, suffix) in [("GET", ""), ("GET", "/k"), ("GET", "/current"), ("DELETE", "/k"), ("GET", "/k/usage")] {
        let problem = fixture.refused(method, &format!("{BASE}{suffix}"), "").await;
        assert_eq!((problem.status, problem.code), (503, "store_unavailable"), "{method} {suffix}");
    }
}

#[tokio::test]
async fn bodies_are_refused_with_every_bad_member_named() {
    let problem =
        Fixture::new().refused("PATCH", &format!("{BASE}/k"), r#"{"nmae": 1, "model_ids": [], "x": 2}"#).await;
    insta::assert_json_snapshot!(json!({
        "status": problem.status, "code": problem.code, "message": problem.message, "detail": problem.detail
    }));
}
