//! The command line of keys, from arguments to what is printed.

use clap::Parser;

use super::*;
use crate::cli::args::{Cli, Command};
use crate::management::testing::{Stopped, StubStore, config, now, record};
use crate::policy::key::KeyRecord;
use crate::store::{Counted, Replica, ReplicaId, StatusClass, UsageCount};

async fn answer_to(store: &StubStore, arguments: &str) -> Result<Output, ManagementError> {
    let words = ["seeme-gateway", "keys"].into_iter().chain(arguments.split_whitespace());
    let Command::Keys(command) = Cli::try_parse_from(words).unwrap().command else { panic!() };
    answer(command, Keys { store, config: &config(), clock: &Stopped }).await
}

async fn printed(store: &StubStore, arguments: &str) -> String {
    answer_to(store, arguments).await.unwrap().text
}

async fn json_of(store: &StubStore, arguments: &str) -> Value {
    serde_json::from_str(&printed(store, &format!("{arguments} --json")).await).unwrap()
}

#[tokio::test]
async fn a_created_key_is_printed_once_with_a_curl_line() {
    let store = StubStore::default();
    let arguments = "create --name ci --account u-1 --scope models:read --model-id m-1 --expires-in-days 30";
    let output = answer_to(&store, arguments).await.unwrap();
    let secret = output.text.lines().map(str::trim).find(|line| line.starts_with("sm_live_")).unwrap().to_owned();
    assert_eq!(secret.len(), 46);
    let id = store.edit(|state| state.keys[0].record.id.to_string());
    let text = output.text.replace(&secret, "[secret]").replace(&secret[..12], "[prefix]").replace(&id, "[id]");
    insta::assert_snapshot!(text);
    assert_eq!(output.warnings, Vec::<String>::new());
    assert!(!printed(&store, &format!("show {id}")).await.contains(&secret));
    assert!(!printed(&store, &format!("show {id} --json")).await.contains(&secret));
}

#[tokio::test]
async fn json_is_the_key_object_and_warnings_are_apart() {
    let store = StubStore::default();
    let arguments = "create --name n --account u-1 --scope no:such --scope accounts:write --environment test --json";
    let output = answer_to(&store, arguments).await.unwrap();
    let object: Value = serde_json::from_str(&output.text).unwrap();
    assert_eq!((&object["scopes"], &object["environment"]), (&json!(["no:such", "accounts:write"]), &json!("test")));
    assert!(object["key"].as_str().unwrap().starts_with("sm_test_"));
    assert_eq!((&object["created_by"], &object["account_id"]), (&json!("cli"), &json!("u-1")));
    assert_eq!(output.warnings, ["no route asks for the scope no:such; the key holds it all the same"]);
}

#[tokio::test]
async fn the_rules_are_those_of_the_api() {
    let store = StubStore::default();
    store.put(record("k"));
    let mut lines = String::new();
    for arguments in [
        "create --name n --account a/b --scope models",
        "create --name n --account u-1 --scope models:read --expires-at 2020-01-01T00:00:00Z",
        "create --name n --account u-1 --scope models:read --expires-in-days 0",
        "update k",
        "update k --model-id a/b",
        "update absent --name n",
        "show a/b",
        "delete absent",
        "usage k --from yesterday",
        "list --account a/b",
    ] {
        let error = in_options(answer_to(&store, arguments).await.unwrap_err()).to_string();
        assert!(!error.contains('\n'));
        lines += &format!("$ keys {arguments}\n{error}\n");
    }
    insta::assert_snapshot!(lines);
    assert!(store.edit(|state| state.keys.len() == 1 && state.events.is_empty()));
}

#[tokio::test]
async fn lists_replace_and_all_takes_a_limit_away() {
    let store = StubStore::default();
    store.put(record("k"));
    let arguments = "update k --name new --scope models:read --scope things:create --model-id m-1 --model-id m-2";
    let object = json_of(&store, arguments).await;
    assert_eq!((&object["name"], &object["scopes"]), (&json!("new"), &json!(["models:read", "things:create"])));
    assert_eq!(object["model_ids"], json!(["m-1", "m-2"]));
    let limited = json_of(&store, "update k --allowed-address 10.1.2.3/8 --allowed-address 192.0.2.7").await;
    assert_eq!(limited["allowed_addresses"], json!(["10.0.0.0/8", "192.0.2.7/32"]));
    assert_eq!(json_of(&store, "update k --all-addresses").await["allowed_addresses"], Value::Null);
    let object = json_of(&store, "update k --all-models --dataset-id d-1 --expires-at 2030-01-01T00:00:00Z").await;
    assert_eq!((&object["model_ids"], &object["dataset_ids"]), (&Value::Null, &json!(["d-1"])));
    assert_eq!((&object["name"], &object["expires_at"]), (&json!("new"), &json!("2030-01-01T00:00:00Z")));
}

#[tokio::test]
async fn keys_are_listed_in_a_table_with_their_state() {
    let store = StubStore::default();
    assert_eq!(printed(&store, "list").await, "No keys.\n");
    store.put(KeyRecord { expires_at: Some(now()), ..record("k-expired") });
    store.put(KeyRecord { disabled: true, name: "a longer name".into(), ..record("k-disabled") });
    store.put(KeyRecord { account_id: AccountId::parse("u-2").unwrap(), ..record("k-of-another") });
    store.put(KeyRecord { deleted_at: Some(now()), ..record("k-deleted") });
    insta::assert_snapshot!(printed(&store, "list --include-deleted").await);
    let listed = json_of(&store, "list --account u-2").await;
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["id"]), (1, &json!("k-of-another")));
}

#[tokio::test]
async fn a_disable_and_a_delete_say_who_obeys() {
    let store = StubStore::default();
    store.put(record("k"));
    let replica = |name: &str, acknowledged| Replica {
        id: ReplicaId(name.into()),
        name: name.to_owned(),
        heartbeat_age: std::time::Duration::ZERO,
        acknowledged: Revision(acknowledged),
    };
    store.edit(|state| state.replicas = vec![replica("one:8080", 9), replica("two:8080", 1)]);
    assert_eq!(printed(&store, "disable k").await, "Disabled k (key k).\n2 of 2 gateways obey.\n");
    assert_eq!(printed(&store, "enable k").await, "Enabled k (key k).\n");
    let object = json_of(&store, "delete k").await;
    let expected = json!({"replicas": 1, "of": 2, "unreachable": ["two:8080"]});
    assert_eq!(object, json!({"id": "k", "deleted": true, "acknowledged": expected}));
    insta::assert_snapshot!(printed(&store, "events k").await);
}

#[tokio::test]
async fn enabling_a_key_that_has_expired_says_so() {
    let store = StubStore::default();
    store.put(KeyRecord { expires_at: Some(now()), disabled: true, ..record("k") });
    let output = answer_to(&store, "enable k --json").await.unwrap();
    assert_eq!(output.warnings.len(), 1);
    assert!(output.warnings[0].contains("expired at 2026-06-01T12:00:00Z"), "{:?}", output.warnings);
    store.put(KeyRecord { disabled: true, ..record("k2") });
    assert_eq!(answer_to(&store, "enable k2").await.unwrap().warnings, Vec::<String>::new());
}

#[tokio::test]
async fn usage_is_shown_by_endpoint_day_and_status() {
    let store = StubStore::default();
    store.put(record("k"));
    let count = |endpoint: &str, class, count| UsageCount {
        key_id: KeyId::parse("k").unwrap(),
        day: now().day(),
        counted: Counted::Endpoint(endpoint.into(), class),
        count,
    };
    store.edit(|state| {
        state.usage.push(count("POST /api/v1/inferences/{model_id}", StatusClass::Success, 12));
        state.usage.push(count("GET /api/v1/models", StatusClass::RateLimited, 3));
    });
    insta::assert_snapshot!(printed(&store, "usage k").await);
    assert_eq!(json_of(&store, "usage k --to 2026-05-31").await["total_requests"], 0);
}
