//! `store copy`, from arguments to what is printed.

use clap::Parser;
use serde_json::Value;

use super::*;
use crate::cli::args::{Cli, Command};
use crate::management::testing::record;
use crate::policy::credential::KeyHash;
use crate::policy::key::{Account, KeyId, Timestamp};
use crate::store::faulty::{Fault, FaultyStore, Method};
use crate::store::memory::MemoryStore;
use crate::store::{Action, Counted, Event, ReplicaId, SecretRow, StatusClass, UsageBatch, UsageCount};

fn arguments(text: &str) -> CopyArgs {
    let words = ["seeme-gateway", "store", "copy"].into_iter().chain(text.split_whitespace());
    let Command::Store(StoreCommand::Copy(args)) = Cli::try_parse_from(words).unwrap().command else { panic!() };
    args
}

async fn create(store: &dyn Store, id: &str, seed: u8) {
    let record = record(id);
    let secret = SecretRow {
        hash: KeyHash([seed; 32]),
        key_prefix: record.key_prefix.clone(),
        expires_at: None,
        last_used_at: None,
    };
    let at = Timestamp::from_unix_millis(0);
    let event = Event { at, action: Action::Created, by: "cli".into(), from: "cli".into(), changed: Vec::new() };
    store.create_key(record, secret, event).await.unwrap();
}

/// Two keys, one of them used, and an account.
async fn source() -> Arc<dyn Store> {
    let store = MemoryStore::new();
    create(&*store, "k1", 1).await;
    create(&*store, "k2", 2).await;
    store.replace_account(Account::unset(record("k1").account_id), None).await.unwrap();
    let key_id = KeyId::parse("k1").unwrap();
    let counted = Counted::Endpoint("GET /a".into(), StatusClass::Success);
    let counts = vec![UsageCount { key_id, day: Timestamp::from_unix_millis(0).day(), counted, count: 7 }];
    let batch = UsageBatch { replica: ReplicaId("r".into()), sequence: 1, counts, last_used: Vec::new() };
    store.flush_usage(batch).await.unwrap();
    store
}

async fn answered(to: &Arc<dyn Store>, as_json: bool) -> Result<Output, CliError> {
    answer(as_json, &source().await, to, |_| {}).await
}

#[tokio::test]
async fn what_was_copied_is_told_in_text_and_in_json() {
    let target: Arc<dyn Store> = MemoryStore::new();
    let text = answered(&target, false).await.unwrap();
    assert_eq!(text.warnings, Vec::<String>::new());
    create(&*target, "k3", 3).await;
    let beside_others = answered(&target, false).await.unwrap().text;
    insta::assert_snapshot!(format!("{}\n{beside_others}", text.text));
    let object: Value = serde_json::from_str(&answered(&target, true).await.unwrap().text).unwrap();
    let expected = json!({"keys": 2, "deleted_keys": 0, "accounts": 1, "events": 2, "requests": 7, "other_keys": 1});
    assert_eq!(object, expected);
}

#[tokio::test]
async fn a_copy_that_fails_says_in_one_line_what_to_do() {
    let target = FaultyStore::new(MemoryStore::new());
    target.inject_times(Method::RestoreKey, Fault::Unavailable, 1);
    let target: Arc<dyn Store> = target;
    let down = answered(&target, true).await.unwrap_err();
    let target: Arc<dyn Store> = MemoryStore::new();
    create(&*target, "k9", 1).await;
    let taken = answered(&target, true).await.unwrap_err();
    assert!(matches!((&down, &taken), (CliError::Failed(_), CliError::Failed(_))));
    insta::assert_snapshot!(format!("{down}\n{taken}"));
}

#[test]
fn a_store_is_not_copied_onto_itself_by_whatever_name() {
    let folder = tempfile::tempdir().unwrap();
    let name = |file: &str| format!("sqlite:{}/{file}", folder.path().display());
    std::fs::write(folder.path().join("a.db"), "").unwrap();
    std::os::unix::fs::symlink("a.db", folder.path().join("link.db")).unwrap();
    for (from, to, same) in [
        ("a.db", "a.db", true),
        ("a.db", "./a.db", true),
        ("a.db", "link.db", true),
        ("absent.db", "absent.db", true),
        ("a.db", "b.db", false),
    ] {
        let outcome = urls(&arguments(&format!("--from {} --to {}", name(from), name(to))));
        assert_eq!(matches!(outcome, Err(CliError::Usage(_))), same, "{from} {to}: {outcome:?}");
    }
}

#[test]
fn urls_are_refused_with_the_option_and_a_source_must_exist() {
    let mut lines = String::new();
    for text in
        ["--from a.db --to sqlite:b.db", "--from sqlite:a.db --to sqlite:", "--from sqlite:a --to redis://p4ss@"]
    {
        let error = urls(&arguments(text)).unwrap_err();
        assert!(matches!(error, CliError::Usage(_)));
        lines += &format!("{error}\n");
    }
    insta::assert_snapshot!(lines);
    let folder = tempfile::tempdir().unwrap();
    let absent = StoreUrl::Sqlite(folder.path().join("absent.db"));
    let error = open("--from", &absent, &RedisAccess::default()).err().unwrap().to_string();
    assert!(error.starts_with("--from: there is no file") && error.ends_with("absent.db"), "{error}");
    open("--to", &absent, &RedisAccess::default()).unwrap();
    assert!(open("--from", &absent, &RedisAccess::default()).is_ok());
}

#[test]
fn what_an_operator_should_know_of_the_stores_is_a_warning() {
    let finding = |trouble: Option<&str>| Finding { check: "schema", trouble: trouble.map(str::to_owned) };
    let warnings: Vec<_> = troubles("the source", vec![finding(None), finding(Some("it is newer"))]).collect();
    assert_eq!(warnings, ["the source: it is newer"]);
}

#[test]
fn each_line_of_progress_covers_the_one_before() {
    let lines = [Progress::Copied(3, 250), Progress::Copied(250, 250), Progress::Checked(1, 250)].map(far);
    assert_eq!(lines, ["copied    3 of 250 keys", "copied  250 of 250 keys", "checked   1 of 250 keys"]);
    assert_eq!(far(Progress::Copied(1, 1)), "copied  1 of 1 key");
}
