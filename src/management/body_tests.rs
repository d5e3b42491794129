//! The rules of the bodies, each with what is accepted and what is refused.

use serde_json::json;

use super::*;
use crate::management::object::object;
use crate::management::testing::record;

fn now() -> Timestamp {
    Timestamp::parse("2026-06-01T12:00:00Z").unwrap()
}

fn members(value: Value) -> Map<String, Value> {
    object(value.to_string().as_bytes()).unwrap()
}

fn create(value: Value) -> Result<NewKey, Vec<String>> {
    NewKey::from_members(members(value), now(), true).map_err(bad_members)
}

fn update(value: Value, nulls: Nulls) -> Result<Changes, Vec<String>> {
    Changes::from_members(members(value), now(), nulls, Some(&record("k"))).map_err(bad_members)
}

fn bad_members(error: ManagementError) -> Vec<String> {
    match error {
        ManagementError::InvalidBody(bad) => bad.into_iter().map(|bad| bad.member).collect(),
        other => panic!("{other:?}"),
    }
}

/// A valid creation with some members replaced.
fn with(changes: Value) -> Value {
    let mut body = members(json!({"name": "n", "scopes": ["models:read"]}));
    body.extend(members(changes));
    Value::Object(body)
}

#[test]
fn a_body_must_be_one_json_object_and_the_refusal_repeats_none_of_it() {
    for bad in ["", "null", "[]", "\"sm_live_0123456789abcdef\"", "{", "{\"a\":1}x", "\u{ff}", "{\"sm_live_x\" 1}"] {
        let error = object(bad.as_bytes()).unwrap_err().problem();
        assert_eq!((error.status, error.code), (400, "bad_request"), "{bad:?}");
        assert!(!format!("{error:?}").contains("sm_live"), "{error:?}");
    }
}

#[test]
fn every_bad_member_of_a_creation_is_named_at_once() {
    let bad = create(json!({
        "nmae": "typo", "scopes": ["models:read", 7, "Models:Read"], "model_ids": [], "dataset_ids": ["a b"],
        "organization_id": 5, "expires_in_days": "30", "environment": "prod", "disabled": "no", "foo": null
    }));
    let mut bad = bad.unwrap_err();
    bad.sort();
    let expected = [
        "dataset_ids[0]",
        "disabled",
        "environment",
        "expires_in_days",
        "foo",
        "model_ids",
        "name",
        "nmae",
        "organization_id",
        "scopes[1]",
        "scopes[2]",
    ];
    assert_eq!(bad, expected);
}

#[test]
fn each_rule_of_a_creation_accepts_its_limit_and_refuses_what_is_beyond() {
    let ids = |count: usize| (0..count).map(|n| format!("m-{n}")).collect::<Vec<_>>();
    let scopes = |count: usize| (0..count).map(|n| format!("a:b{n}")).collect::<Vec<_>>();
    let cases = [
        (json!({"name": "x".repeat(200)}), None),
        (json!({"name": "\u{e4}".repeat(200)}), None),
        (json!({"name": "x".repeat(201)}), Some("name")),
        (json!({"name": " "}), Some("name")),
        (json!({"name": "a\nb"}), Some("name")),
        (json!({"name": null}), Some("name")),
        (json!({"name": "replaces sm_live_3xK9"}), None),
        (json!({"name": ["n"]}), Some("name")),
        (json!({"scopes": scopes(100)}), None),
        (json!({"scopes": scopes(101)}), Some("scopes")),
        (json!({"scopes": []}), Some("scopes")),
        (json!({"scopes": null}), Some("scopes")),
        (json!({"scopes": "models:read"}), Some("scopes")),
        (json!({"model_ids": ids(100), "dataset_ids": ids(100)}), None),
        (json!({"model_ids": ids(101)}), Some("model_ids")),
        (json!({"dataset_ids": []}), Some("dataset_ids")),
        (json!({"model_ids": {"0": "m"}}), Some("model_ids")),
        (json!({"allowed_addresses": ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"]}), None),
        (json!({"allowed_addresses": networks(100)}), None),
        (json!({"allowed_addresses": networks(101)}), Some("allowed_addresses")),
        (json!({"allowed_addresses": []}), Some("allowed_addresses")),
        (json!({"allowed_addresses": "10.0.0.0/8"}), Some("allowed_addresses")),
        (json!({"allowed_addresses": ["10.0.0.0/8", "10.0.0.0/33"]}), Some("allowed_addresses[1]")),
        (json!({"allowed_addresses": ["localhost"]}), Some("allowed_addresses[0]")),
        (json!({"organization_id": "org-1"}), None),
        (json!({"organization_id": ""}), Some("organization_id")),
        (json!({"expires_in_days": 1}), None),
        (json!({"expires_in_days": 36_500}), None),
        (json!({"expires_in_days": 0}), Some("expires_in_days")),
        (json!({"expires_in_days": -1}), Some("expires_in_days")),
        (json!({"expires_in_days": 1.5}), Some("expires_in_days")),
        (json!({"expires_in_days": 36_501}), Some("expires_in_days")),
        (json!({"expires_at": "2026-06-01T12:00:00.001Z"}), None),
        (json!({"expires_at": "2026-06-01T12:00:00Z"}), Some("expires_at")),
        (json!({"expires_at": "2026-06-01T13:00:00+02:00"}), Some("expires_at")),
        (json!({"expires_at": "tomorrow"}), Some("expires_at")),
        (json!({"expires_at": "9999-12-31T23:59:59-10:00"}), Some("expires_at")),
        (json!({"environment": "test"}), None),
        (json!({"environment": "TEST"}), Some("environment")),
        (json!({"disabled": false}), None),
        (json!({"disabled": true}), Some("disabled")),
    ];
    for (changes, bad) in cases {
        let found = create(with(changes.clone())).err();
        assert_eq!(found, bad.map(|bad| vec![bad.to_owned()]), "{changes}");
    }
}

fn networks(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("10.0.{n}.0/24")).collect()
}

#[test]
fn networks_are_kept_in_one_form_and_once() {
    let given = json!({"allowed_addresses": ["10.1.2.3/8", "::ffff:10.0.0.0/104", "192.0.2.7", "2001:DB8::1"]});
    let kept = create(with(given)).unwrap().allowed_addresses.unwrap();
    let texts: Vec<String> = kept.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::1/128"]);
}

#[test]
fn both_expiries_are_refused_and_both_are_named() {
    let bad = create(with(json!({"expires_in_days": 1, "expires_at": "2027-01-01T00:00:00Z"})));
    assert_eq!(bad.unwrap_err(), ["expires_in_days", "expires_at"]);
    let one = create(with(json!({"expires_in_days": 30, "expires_at": null}))).unwrap();
    assert_eq!(one.expires_at.unwrap().to_string(), "2026-07-01T12:00:00Z");
}

#[test]
fn null_on_create_is_absent_and_read_only_members_are_ignored() {
    let plain = create(with(json!({}))).unwrap();
    let nulls = json!({
        "model_ids": null, "dataset_ids": null, "allowed_addresses": null, "organization_id": null, "expires_in_days": null, "expires_at": null,
        "environment": null, "disabled": null
    });
    assert_eq!(create(with(nulls)).unwrap(), plain);
    let read_only = json!({
        "id": 7, "key": "sm_live_0123456789abcdef", "key_prefix": [], "plan": {}, "created_at": 0,
        "updated_at": 0, "last_used_at": 0, "created_by": 0, "previous": 0, "limits": 0, "acknowledged": 0
    });
    assert_eq!(create(with(read_only)).unwrap(), plain);
}

#[test]
fn the_published_client_may_leave_scopes_empty() {
    // Byte for byte what seeme 0.43.2 sends.
    let body = br#"{"name":"n","scopes":[],"organization_id":null,"expires_in_days":null}"#;
    let new = NewKey::from_members(object(body).unwrap(), now(), false).unwrap();
    assert_eq!((new.scopes, new.expires_at), (None, None));
}

#[test]
fn what_is_named_twice_is_kept_once() {
    let new = create(with(json!({"scopes": ["b:c", "a:b", "b:c"], "model_ids": ["m", "m"]}))).unwrap();
    assert_eq!(new.scopes.unwrap().iter().map(Scope::as_str).collect::<Vec<_>>(), ["b:c", "a:b"]);
    assert_eq!(new.model_ids.unwrap().len(), 1);
}

#[test]
fn a_secret_is_accepted_nowhere_and_not_repeated() {
    let secret = "sm_live_0123456789abcdefghijklmnopqrstuvABCDEF";
    for changes in [
        json!({"name": format!("my {secret}")}),
        json!({"model_ids": [secret]}),
        json!({"organization_id": secret}),
        json!({"scopes": [secret]}),
        json!({"expires_at": secret}),
        json!({secret: 1}),
    ] {
        let error = NewKey::from_members(members(with(changes.clone())), now(), true).unwrap_err();
        let told = format!("{error} {:?} {error:?}", error.problem());
        assert!(!told.contains(&secret[..13]), "{changes}: {told}");
    }
}

#[test]
fn an_account_that_is_named_is_heeded() {
    let account = |body| create(with(body)).map(|new| new.account_id);
    assert_eq!(account(json!({"account_id": "u-2"})).unwrap(), AccountId::parse("u-2").ok());
    assert_eq!(account(json!({"account_id": null})).unwrap(), None);
    assert_eq!(account(json!({"account_id": "a b"})).unwrap_err(), ["account_id"]);
}

#[test]
fn a_member_that_is_there_twice_is_refused_by_name_however_it_is_written() {
    for (body, names) in [
        (r#"{"scopes":["models:read"],"scopes":["*"]}"#, "scopes"),
        (r#"{"name":"n","scopes":["a:b"],"sc\u006fpes":["a:b"],"name":"n","name":"m"}"#, "scopes, name"),
        (r#"{"sm_live_0123456789abcdef":1,"sm_live_0123456789abcdef":2}"#, "(a key)"),
    ] {
        let refused = object(body.as_bytes()).unwrap_err().to_string();
        assert_eq!(refused, format!("{names}: given more than once"), "{body}");
    }
    assert!(object(br#"{"a":{"b":1,"c":2},"b":1}"#).is_ok());
}

#[test]
fn null_clears_with_patch_and_leaves_with_put() {
    let body = json!({"model_ids": null, "dataset_ids": null, "allowed_addresses": null, "expires_at": null});
    let cleared = update(body.clone(), Nulls::Clear).unwrap();
    assert_eq!((cleared.model_ids, cleared.expires_at), (Change::Clear, Change::Clear));
    assert_eq!(cleared.allowed_addresses, Change::Clear);
    let left = update(body, Nulls::Leave).unwrap();
    assert_eq!((left.model_ids, left.expires_at), (Change::Leave, Change::Leave));
    assert_eq!(left.allowed_addresses, Change::Leave);

    let kept = json!({"name": null, "scopes": null, "disabled": null});
    assert_eq!(update(kept.clone(), Nulls::Clear).unwrap_err(), ["name", "scopes", "disabled"]);
    assert!(update(kept, Nulls::Leave).is_ok());
}

#[test]
fn an_update_names_every_bad_member_and_ignores_what_cannot_change() {
    let bad = json!({
        "name": 5, "scopes": [], "model_ids": [], "expires_at": "2020-01-01T00:00:00Z", "disabled": "yes",
        "expires_in_days": 3, "colour": "red"
    });
    let mut bad = update(bad, Nulls::Clear).unwrap_err();
    bad.sort();
    assert_eq!(bad, ["colour", "disabled", "expires_at", "expires_in_days", "model_ids", "name", "scopes"]);

    let fixed = json!({"id": "x", "plan": "pro", "disabled": true});
    assert!(update(fixed, Nulls::Clear).unwrap().only_disables());
}

#[test]
fn what_a_key_has_for_life_is_accepted_as_it_is_and_refused_when_it_differs() {
    let present = json!({"organization_id": null, "environment": "live", "account_id": "u-1", "disabled": true});
    for nulls in [Nulls::Clear, Nulls::Leave] {
        assert!(update(present.clone(), nulls).unwrap().only_disables());
        let bad = json!({"organization_id": "o-1", "environment": "test", "account_id": "u-2", "colour": 1});
        assert_eq!(update(bad, nulls).unwrap_err(), ["organization_id", "environment", "account_id", "colour"]);
        let nonsense = json!({"organization_id": [], "environment": 1, "account_id": {}});
        assert_eq!(update(nonsense, nulls).unwrap_err(), ["organization_id", "environment", "account_id"]);
    }
    let nulls = json!({"environment": null, "account_id": null});
    assert_eq!(update(nulls.clone(), Nulls::Clear).unwrap_err(), ["environment", "account_id"]);
    assert!(update(nulls, Nulls::Leave).is_ok());
}

#[test]
fn a_disable_with_anything_else_is_more_than_a_disable() {
    assert!(!update(json!({"disabled": true, "name": "n"}), Nulls::Clear).unwrap().only_disables());
    assert!(!update(json!({"disabled": false}), Nulls::Clear).unwrap().only_disables());
    assert!(!update(json!({}), Nulls::Clear).unwrap().only_disables());
}
