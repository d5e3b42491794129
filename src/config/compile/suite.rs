//! `tests`: requests with the outcome that the file's author expects. `check` runs them, `run` ignores them.

use super::access::method;
use super::plans::scope_list;
use super::reader::{Map, Value, did_you_mean, shorten};
use crate::config::model::RouteTest;
use crate::policy::key::{AccountId, Environment, KeyId, KeyRecord, OrganizationId, ResourceId, Timestamp};

/// Outcomes that do not depend on a store, an upstream or a clock.
const OUTCOMES: &[&str] = &[
    "allowed",
    "bad_request",
    "uri_too_long",
    "route_not_found",
    "method_not_allowed",
    "body_too_large",
    "missing_key",
    "insufficient_scope",
    "resource_not_allowed",
    "organization_not_allowed",
];

pub(super) fn tests(value: &Value<'_>) -> Vec<RouteTest> {
    let tests = value.items().unwrap_or_default();
    tests.iter().filter_map(test).collect()
}

fn test(value: &Value<'_>) -> Option<RouteTest> {
    let map = value.mapping(&[
        "request",
        "scopes",
        "model_ids",
        "dataset_ids",
        "organization_id",
        "environment",
        "key",
        "body",
        "expect",
    ])?;
    let request = map.require("request", "write request: METHOD PATH").and_then(|value| request(&value));
    let expect = map.require("expect", "write expect: allowed, or the code of a refusal").and_then(|v| expect(&v));
    let body = map.get("body").map(|value| value.text().map(str::to_owned));
    let before = value.report().errors();
    let key = key(&map);
    if value.report().errors() != before {
        return None;
    }
    let (method, target) = request?;
    let body = body.map_or(Some(None), |body| body.map(Some))?;
    Some(RouteTest {
        line: value.at().line,
        column: value.at().column,
        place: value.place().to_owned(),
        method,
        target,
        key,
        body,
        expect: expect?,
    })
}

fn request(value: &Value<'_>) -> Option<(http::Method, String)> {
    let text = value.text()?;
    match text.split_once(' ') {
        Some((name, target)) if target.trim_start().starts_with('/') => {
            Some((method(value, name)?, target.trim().to_owned()))
        }
        _ => value
            .mistake(format!("`{}` is not a request", shorten(text)), "write METHOD PATH, such as GET /api/v1/models"),
    }
}

fn expect(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    if OUTCOMES.contains(&text) {
        return Some(text.to_owned());
    }
    let mend = match did_you_mean(text, OUTCOMES.iter().copied()) {
        near if near.is_empty() => format!("write one of {}", OUTCOMES.join(", ")),
        near => near,
    };
    value.mistake(format!("`{}` is not an outcome that a test can expect", shorten(text)), &mend)
}

/// The imagined key. Without `scopes` the request comes without a key.
fn key(map: &Map<'_>) -> Option<KeyRecord> {
    let scopes = map.get("scopes");
    if let Some(value) = map.get("key") {
        if value.text().is_some_and(|text| text != "none") {
            value.mistake::<()>("a test has no stored key", "write key: none, or describe one with scopes");
        } else if scopes.is_some() {
            value.mistake::<()>("`key: none` and `scopes` are both given", "keep one");
        }
    }
    let Some(scopes) = scopes else {
        for name in ["model_ids", "dataset_ids", "organization_id", "environment"] {
            if let Some(value) = map.get(name) {
                value.mistake::<()>(format!("`{name}` describes a key, and there is none"), "add scopes");
            }
        }
        return None;
    };
    let scopes = if scopes.is_sequence() && scopes.items().is_some_and(|items| items.is_empty()) {
        Vec::new()
    } else {
        scope_list(&scopes)?
    };
    let environment = map.read("environment", Environment::Live, |value| {
        value.choice(&[("live", Environment::Live), ("test", Environment::Test)])
    });
    let organization_id = map.get("organization_id").and_then(|value| match OrganizationId::parse(value.text()?) {
        Ok(id) => Some(id),
        Err(error) => value.misread(&error, "write the id as the key has it"),
    });
    let at = Timestamp::from_unix_millis(0);
    Some(KeyRecord {
        id: KeyId::parse("test").ok()?,
        name: "test".to_owned(),
        key_prefix: format!("sm_{}_test", environment.as_str()),
        environment,
        account_id: AccountId::parse("test").ok()?,
        organization_id,
        scopes,
        model_ids: map.get("model_ids").and_then(|value| ids(&value)),
        dataset_ids: map.get("dataset_ids").and_then(|value| ids(&value)),
        allowed_addresses: None,
        expires_at: None,
        disabled: false,
        created_at: at,
        updated_at: at,
        created_by: "check".to_owned(),
        deleted_at: None,
    })
}

fn ids(value: &Value<'_>) -> Option<Vec<ResourceId>> {
    let items = value.items()?;
    if items.is_empty() {
        return value.mistake("the list is empty", "name at least one id, or remove the member for all");
    }
    let ids: Vec<_> = items
        .iter()
        .map(|item| match ResourceId::parse(item.text()?) {
            Ok(id) => Some(id),
            Err(error) => item.misread(&error, "write the id as the key has it"),
        })
        .collect();
    ids.into_iter().collect()
}
