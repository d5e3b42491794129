//! The operations on keys, over a store in memory.

use serde_json::json;

use super::*;
use crate::management::object::object;
use crate::management::testing::{Stopped, StubStore, config, now, organization, profile, record, scope};
use crate::policy::key::ResourceId;
use crate::policy::network::Network;
use crate::store::Version;

struct Fixture {
    store: StubStore,
    config: Config,
}

impl Fixture {
    fn new(records: impl IntoIterator<Item = KeyRecord>) -> Self {
        let store = StubStore::default();
        records.into_iter().for_each(|record| store.put(record));
        Self { store, config: config() }
    }

    fn keys(&self) -> Keys<'_> {
        Keys { store: &self.store, config: &self.config, clock: &Stopped }
    }
}

fn caller(profile: &KeyProfile) -> Caller<'_> {
    Caller::key(profile, profile.record.account_id.clone(), "203.0.113.9")
}

fn new(body: serde_json::Value) -> NewKey {
    NewKey::from_members(object(body.to_string().as_bytes()).unwrap(), now(), false).unwrap()
}

fn id(text: &str) -> Option<KeyId> {
    KeyId::parse(text).ok()
}

fn renamed() -> Changes {
    Changes { name: Some("renamed".into()), disabled: None, ..Changes::switch(false) }
}

/// Another account's key, an organization's, another organization's, a deleted one and a plain one.
fn neighbours() -> Vec<KeyRecord> {
    let other = KeyRecord { account_id: AccountId::parse("u-2").unwrap(), ..record("other") };
    let in_org = KeyRecord { organization_id: organization("o-1"), ..record("in-org") };
    let elsewhere = KeyRecord { organization_id: organization("o-2"), ..record("elsewhere") };
    let deleted = KeyRecord { deleted_at: Some(now()), ..record("deleted") };
    vec![other, in_org, elsewhere, deleted, record("plain")]
}

fn ids(keys: &[KeyView]) -> Vec<&str> {
    keys.iter().map(|key| key.record.id.as_str()).collect()
}

#[tokio::test]
async fn what_is_not_named_is_inherited_from_the_caller() {
    let fixture = Fixture::new([]);
    let profile = profile(KeyRecord {
        scopes: vec![scope("models:read"), scope("api-keys:write")],
        model_ids: Some(vec![ResourceId::parse("m-1").unwrap()]),
        dataset_ids: Some(vec![ResourceId::parse("d-1").unwrap()]),
        allowed_addresses: Some(vec![Network::parse("10.0.0.0/8").unwrap()]),
        organization_id: organization("o-1"),
        expires_at: Some(now().plus_seconds(86_400)),
        environment: Environment::Test,
        ..record("caller")
    });
    let created = fixture.keys().create(&caller(&profile), new(json!({"name": "n"}))).await.unwrap();
    let KeyView { record: made, secrets, .. } = &created.key;
    let mine = &profile.record;
    assert_eq!((&made.scopes, &made.model_ids, &made.dataset_ids), (&mine.scopes, &mine.model_ids, &mine.dataset_ids));
    assert_eq!(made.allowed_addresses, mine.allowed_addresses);
    assert_eq!((&made.organization_id, made.expires_at), (&mine.organization_id, mine.expires_at));
    assert_eq!((made.environment, &made.account_id), (mine.environment, &mine.account_id));
    assert_eq!((made.created_at, made.updated_at, made.created_by.as_str()), (now(), now(), "caller"));
    assert_eq!(uuid::Uuid::parse_str(made.id.as_str()).unwrap().get_version_num(), 7);
    assert!(created.secret.reveal().starts_with("sm_test_"));
    assert_eq!((secrets[0].hash, made.key_prefix.as_str()), (created.secret.hash(), created.secret.prefix()));
    assert_eq!(fixture.store.record(made.id.as_str()), *made);
}

#[tokio::test]
async fn two_keys_never_share_an_id_or_a_secret() {
    let fixture = Fixture::new([]);
    let profile = profile(record("caller"));
    let one = fixture.keys().create(&caller(&profile), new(json!({"name": "n"}))).await.unwrap();
    let two = fixture.keys().create(&caller(&profile), new(json!({"name": "n"}))).await.unwrap();
    assert!(one.key.record.id < two.key.record.id);
    assert_ne!(one.secret, two.secret);
}

#[tokio::test]
async fn nothing_is_stored_when_the_grant_exceeds_the_callers_or_the_store_is_down() {
    let fixture = Fixture::new([]);
    let profile = profile(KeyRecord { scopes: vec![scope("models:read")], ..record("caller") });
    let beyond = new(json!({"name": "n", "scopes": ["models:write"]}));
    let refused = fixture.keys().create(&caller(&profile), beyond).await.unwrap_err();
    assert!(matches!(&refused, ManagementError::GrantExceedsCaller(excess) if excess[0].member == "scopes"));
    fixture.store.edit(|state| state.down = true);
    let refused = fixture.keys().create(&caller(&profile), new(json!({"name": "n"}))).await.unwrap_err();
    assert_eq!(refused.problem().code, "store_unavailable");
    assert!(fixture.store.edit(|state| state.keys.is_empty() && state.events.is_empty()));
}

#[tokio::test]
async fn the_operator_must_say_for_whom_and_may_give_reserved_scopes() {
    let fixture = Fixture::new([]);
    let operator = Caller::operator("cli");
    let scopes = json!(["accounts:write", "api-keys:admin", "*"]);
    let for_nobody = fixture.keys().create(&operator, new(json!({"name": "n", "scopes": scopes}))).await.unwrap_err();
    assert_eq!(for_nobody.to_string(), "account_id: required");
    let body = json!({"name": "n", "scopes": scopes, "account_id": "u-9"});
    let made = fixture.keys().create(&operator, new(body)).await.unwrap().key.record;
    assert_eq!((made.account_id.as_str(), made.scopes.len(), made.created_by.as_str()), ("u-9", 3, "cli"));
    assert_eq!(made.environment, Environment::Live);
}

#[tokio::test]
async fn a_caller_lists_its_accounts_keys_and_an_organization_its_own_newest_first() {
    let fixture = Fixture::new(neighbours());
    let whole = profile(record("caller"));
    let limited = profile(KeyRecord { organization_id: organization("o-1"), ..record("caller") });
    let list = async |caller: Caller<'_>, deleted| fixture.keys().list(&caller, deleted).await.unwrap();
    assert_eq!(ids(&list(caller(&whole), Deleted::Hidden).await), ["plain", "elsewhere", "in-org"]);
    assert_eq!(ids(&list(caller(&whole), Deleted::Shown).await), ["plain", "deleted", "elsewhere", "in-org"]);
    assert_eq!(ids(&list(caller(&limited), Deleted::Shown).await), ["in-org"]);
    assert_eq!(list(Caller::operator("cli"), Deleted::Shown).await.len(), 5);
}

#[tokio::test]
async fn what_a_caller_does_not_see_is_absent_from_every_operation() {
    let fixture = Fixture::new(neighbours());
    let whole = profile(record("caller"));
    let limited = profile(KeyRecord { organization_id: organization("o-1"), ..record("caller") });
    let today = now().day();
    for (profile, hidden) in [(&whole, "other"), (&whole, "absent"), (&limited, "plain"), (&limited, "elsewhere")] {
        let (keys, caller, id) = (fixture.keys(), caller(profile), id(hidden));
        let id = id.as_ref();
        let days = Days { from: today, to: today };
        let answers = [
            keys.get(&caller, id, Deleted::Shown).await.err(),
            keys.update(&caller, id, &renamed()).await.err(),
            keys.update(&caller, id, &Changes::switch(true)).await.err(),
            keys.delete(&caller, id).await.err(),
            keys.usage(&caller, id, days).await.err(),
            keys.events(&caller, id).await.err(),
        ];
        for (operation, answer) in answers.into_iter().enumerate() {
            assert!(matches!(answer, Some(ManagementError::KeyNotFound)), "{hidden}, {operation}: {answer:?}");
        }
    }
    assert!(fixture.store.edit(|state| state.events.is_empty()));
}

#[tokio::test]
async fn only_named_members_change_and_the_event_says_which() {
    let fixture = Fixture::new([record("k")]);
    let profile = profile(record("caller"));
    let changes = Changes {
        scopes: Some(vec![scope("models:read")]),
        model_ids: Change::Set(vec![ResourceId::parse("m-1").unwrap()]),
        ..renamed()
    };
    let changed = fixture.keys().update(&caller(&profile), id("k").as_ref(), &changes).await.unwrap();
    let expected = KeyRecord {
        name: "renamed".into(),
        scopes: vec![scope("models:read")],
        model_ids: Some(vec![ResourceId::parse("m-1").unwrap()]),
        updated_at: now(),
        ..record("k")
    };
    assert_eq!(changed.key.record, expected);
    assert_eq!(fixture.store.record("k"), expected);
    let events = fixture.keys().events(&caller(&profile), id("k").as_ref()).await.unwrap();
    insta::assert_json_snapshot!(events, @r#"
    [
      {
        "at": "2026-06-01T12:00:00Z",
        "action": "updated",
        "by": "caller",
        "from": "203.0.113.9",
        "changed": [
          "name",
          "scopes",
          "model_ids"
        ]
      }
    ]
    "#);
}

#[tokio::test]
async fn a_change_to_what_is_already_so_writes_no_event_and_only_a_disable_gets_a_revision() {
    let fixture = Fixture::new([KeyRecord { disabled: true, ..record("k") }]);
    let profile = profile(record("caller"));
    let same = Changes { name: Some("key k".into()), ..renamed() };
    let update =
        async |changes: Changes| fixture.keys().update(&caller(&profile), id("k").as_ref(), &changes).await.unwrap();
    assert_eq!(update(same).await.revision, None);
    assert_eq!(update(Changes::switch(true)).await.revision, Some(Revision(1)));
    assert_eq!(update(Changes::switch(false)).await.revision, Some(Revision(2)));
    assert_eq!(update(Changes::switch(false)).await.revision, None);
    let actions: Vec<_> =
        fixture.store.edit(|state| state.events.iter().map(|(_, event)| event.action.clone()).collect());
    assert_eq!(actions, [Action::Enabled]);
}

#[tokio::test]
async fn a_stronger_key_can_be_switched_off_and_deleted_but_not_on_and_not_renamed() {
    let strong = KeyRecord { scopes: vec![scope("models:write")], ..record("strong") };
    let fixture = Fixture::new([strong]);
    let profile = profile(KeyRecord { scopes: vec![scope("api-keys:write")], ..record("caller") });
    let (keys, caller, id) = (fixture.keys(), caller(&profile), id("strong"));
    assert!(keys.update(&caller, id.as_ref(), &Changes::switch(true)).await.is_ok());
    for changes in [Changes::switch(false), renamed(), Changes { disabled: Some(true), ..renamed() }] {
        let refused = keys.update(&caller, id.as_ref(), &changes).await.unwrap_err();
        assert_eq!(refused.problem().code, "grant_exceeds_caller", "{changes:?}");
    }
    assert!(fixture.store.record("strong").disabled);
    assert!(keys.delete(&caller, id.as_ref()).await.is_ok());
}

#[tokio::test]
async fn taking_a_limit_away_needs_a_caller_without_it() {
    let m1 = || Some(vec![ResourceId::parse("m-1").unwrap()]);
    let fixture = Fixture::new([KeyRecord { model_ids: m1(), ..record("k") }]);
    let limited = profile(KeyRecord { model_ids: m1(), ..record("caller") });
    let clear = Changes { model_ids: Change::Clear, name: None, ..renamed() };
    let update = async |profile: KeyProfile| fixture.keys().update(&caller(&profile), id("k").as_ref(), &clear).await;
    assert_eq!(update(limited).await.unwrap_err().problem().code, "grant_exceeds_caller");
    assert_eq!(update(profile(record("caller"))).await.unwrap().key.record.model_ids, None);
}

#[tokio::test]
async fn a_change_that_was_overtaken_is_decided_again_and_not_for_ever() {
    let fixture = Fixture::new([record("k")]);
    fixture.store.edit(|state| state.conflicts = 5);
    let operator = Caller::operator("cli");
    let changed = fixture.keys().update(&operator, id("k").as_ref(), &renamed()).await.unwrap();
    assert_eq!(changed.key.record.name, "renamed");
    assert_eq!(fixture.store.edit(|state| state.keys[0].version), Version(7));
    fixture.store.edit(|state| state.conflicts = u32::MAX);
    let endless = fixture.keys().delete(&operator, id("k").as_ref()).await.unwrap_err();
    assert_eq!(endless.problem().status, 503);
}

#[tokio::test]
async fn a_deleted_key_is_gone_but_its_usage_and_events_stay() {
    let fixture = Fixture::new([record("k")]);
    let profile = profile(record("caller"));
    let (keys, caller, id) = (fixture.keys(), caller(&profile), id("k"));
    let id = id.as_ref();
    keys.delete(&caller, id).await.unwrap();
    assert_eq!(fixture.store.record("k").deleted_at, Some(now()));
    assert!(keys.get(&caller, id, Deleted::Hidden).await.is_err());
    assert!(keys.update(&caller, id, &renamed()).await.is_err());
    assert!(keys.delete(&caller, id).await.is_err());
    assert!(keys.get(&caller, id, Deleted::Shown).await.is_ok());
    let today = now().day();
    assert!(keys.usage(&caller, id, Days { from: today, to: today }).await.is_ok());
    assert_eq!(keys.events(&caller, id).await.unwrap()[0].action, Action::Deleted);
}

#[test]
fn a_scope_that_opens_nothing_is_told() {
    let fixture = Fixture::new([]);
    let scopes: Vec<_> =
        ["api-keys:*", "accounts:read", "no:such", "*", "nothing:*", "models:read", "things:*", "things:delete"]
            .iter()
            .map(|s| scope(s))
            .collect();
    let unknown = fixture.keys().unknown_scopes(&scopes);
    assert_eq!(unknown, [scope("no:such"), scope("nothing:*"), scope("things:delete")]);
}
