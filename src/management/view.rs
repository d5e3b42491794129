//! How a key and its events are shown (contract 3 and 6): members in a fixed order, times RFC 3339, null for absent.
//!
//! The secret is not part of a [`KeyView`]; it is put in by [`KeyView::to_json_with_secret`], for the one answer that has it.

use serde_json::{Value, json};

use super::acknowledge::Acknowledged;
use crate::config::model::Quota;
use crate::policy::credential::Secret;
use crate::policy::key::{Account, KeyId, KeyRecord, Timestamp};
use crate::policy::quota::{QuotaState, WindowState};
use crate::store::{Event, SecretRow, StoredKey};

/// A key as the management API and the command line show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyView {
    /// The record.
    pub record: KeyRecord,
    /// Its account, for the plan.
    pub account: Account,
    /// Its secrets, for last use and a rotation.
    pub secrets: Vec<SecretRow>,
    /// When a secret that it no longer has was last used.
    pub former_use: Option<Timestamp>,
}

impl From<StoredKey> for KeyView {
    fn from(stored: StoredKey) -> Self {
        Self { record: stored.record, account: stored.account, secrets: stored.secrets, former_use: stored.former_use }
    }
}

impl KeyView {
    /// When any secret that it has or had was last used.
    pub fn last_used_at(&self) -> Option<Timestamp> {
        self.secrets.iter().map(|secret| secret.last_used_at).max().flatten().max(self.former_use)
    }

    /// The key object of contract 6, without a secret.
    pub fn to_json(&self, quota: &Quota) -> Value {
        let record = &self.record;
        let previous = self.secrets.get(1).map(|previous| {
            json!({
                "key_prefix": previous.key_prefix,
                "expires_at": previous.expires_at,
                "last_used_at": previous.last_used_at,
            })
        });
        let mut object = json!({
            "id": record.id,
            "name": record.name,
            "key_prefix": record.key_prefix,
            "environment": record.environment,
            "account_id": record.account_id,
            "organization_id": record.organization_id,
            "plan": *quota.of(&self.account).0,
            "scopes": record.scopes,
            "model_ids": record.model_ids,
            "dataset_ids": record.dataset_ids,
            "allowed_addresses": record.allowed_addresses,
            "expires_at": record.expires_at,
            "disabled": record.disabled,
            "created_at": record.created_at,
            "updated_at": record.updated_at,
            "last_used_at": self.last_used_at(),
            "created_by": record.created_by,
            "previous": previous,
        });
        if let Some(at) = record.deleted_at {
            object["deleted_at"] = json!(at);
        }
        object
    }

    /// The answer to a creation: the only one with the secret.
    pub fn to_json_with_secret(&self, quota: &Quota, secret: &Secret) -> Value {
        let mut object = self.to_json(quota);
        object["key"] = secret.reveal().into();
        object
    }

    /// The answer to a disable.
    pub fn to_json_acknowledged(&self, quota: &Quota, acknowledged: &Acknowledged) -> Value {
        let mut object = self.to_json(quota);
        object["acknowledged"] = acknowledged.to_json();
        object
    }

    /// The answer to `GET /current`: with the limits and what is left of them, as far as it is known.
    pub fn to_json_with_limits(&self, quota: &Quota, state: Option<&QuotaState>) -> Value {
        let limits = quota.of(&self.account).1;
        let mut object = self.to_json(quota);
        object["limits"] = json!({
            "minute": window(limits.windows.requests_per_minute, state.map(|state| &state.minute)),
            "day": window(limits.windows.requests_per_day, state.map(|state| &state.day)),
            "concurrent_requests": limits.concurrent_requests,
        });
        object
    }
}

/// The answer to a deletion.
pub fn deleted(id: &KeyId, acknowledged: &Acknowledged) -> Value {
    json!({"id": id, "deleted": true, "acknowledged": acknowledged.to_json()})
}

fn window(limit: u32, state: Option<&WindowState>) -> Value {
    json!({
        "limit": state.map_or(limit, |state| state.limit),
        "remaining": state.map(|state| state.remaining),
        "reset": state.map(|state| state.reset),
    })
}

/// One line of the audit trail.
pub fn event(event: &Event) -> Value {
    json!({
        "at": event.at,
        "action": event.action,
        "by": event.by,
        "from": event.from,
        "changed": event.changed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::management::testing::{config, record};
    use crate::policy::credential::KeyHash;
    use crate::policy::key::{Environment, ResourceId};
    use crate::policy::network::Network;
    use crate::policy::quota::{Violated, Window};

    fn time(text: &str) -> Option<Timestamp> {
        Timestamp::parse(text).ok()
    }

    fn view() -> KeyView {
        let record = record("019a2b3c-0000-7000-8000-000000000001");
        let account = Account { plan: Some("pro".into()), ..Account::unset(record.account_id.clone()) };
        let secrets = vec![SecretRow {
            hash: KeyHash([0; 32]),
            key_prefix: record.key_prefix.clone(),
            expires_at: None,
            last_used_at: None,
        }];
        KeyView { record, account, secrets, former_use: None }
    }

    #[test]
    fn a_key_without_limits_shows_every_member() {
        insta::assert_json_snapshot!(view().to_json(&config().quota));
    }

    #[test]
    fn a_deleted_key_in_the_middle_of_a_rotation_with_all_limits_shows_them() {
        let mut view = view();
        let old = SecretRow {
            key_prefix: "sm_live_old0".into(),
            expires_at: time("2026-06-02T00:00:00Z"),
            last_used_at: time("2026-06-01T11:00:00Z"),
            ..view.secrets[0].clone()
        };
        view.secrets.push(old);
        view.record.model_ids = Some(vec![ResourceId::parse("m-1").unwrap()]);
        view.record.dataset_ids = Some(vec![ResourceId::parse("d-1").unwrap()]);
        view.record.allowed_addresses = Some(vec![Network::parse("192.0.2.7").unwrap()]);
        view.record.expires_at = time("2027-01-01T00:00:00Z");
        view.record.deleted_at = time("2026-06-01T12:30:00Z");
        insta::assert_json_snapshot!(view.to_json(&config().quota));
    }

    #[test]
    fn current_shows_the_limits_and_what_is_left() {
        let window = |window, limit, remaining, reset| WindowState { window, limit, remaining, reset, seconds_left: 1 };
        let state = QuotaState {
            minute: window(Window::Minute, 300, 295, 1_780_000_020),
            day: window(Window::Day, 50_000, 49_100, 1_780_012_800),
            violated: Violated::default(),
        };
        let shown = view().to_json_with_limits(&config().quota, Some(&state));
        insta::assert_json_snapshot!(shown["limits"]);
        let unknown = view().to_json_with_limits(&config().quota, None);
        assert_eq!(unknown["limits"]["day"], json!({"limit": 50_000, "remaining": null, "reset": null}));
    }

    #[test]
    fn the_secret_is_in_the_answer_to_a_creation_only() {
        let secret = Secret::mint(Environment::Live, &[7; 64]).unwrap();
        let created = view().to_json_with_secret(&config().quota, &secret);
        assert_eq!(created["key"], secret.reveal());
        assert!(view().to_json(&config().quota).get("key").is_none());
    }
}
