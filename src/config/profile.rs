//! A key with everything worked out that does not change from request to request: what the cache holds and the checks read.

use std::fmt::Display;

use http::{HeaderName, HeaderValue};

use super::model::{Config, QuotaSubject};
use crate::policy::access::KeyProfile;
use crate::policy::key::{Account, KeyRecord, Timestamp};
use crate::policy::quota::Subject;

impl Config {
    /// Works out plan, limits, grants, quota subject and identity headers of a key.
    pub fn profile(&self, record: KeyRecord, account: Account, secret_expires_at: Option<Timestamp>) -> KeyProfile {
        let (plan, limits) = self.quota.of(&account);
        let grants = self.scopes.expand(&record.scopes);
        let subject = self.subject(&record);
        let identity = identity(&record, &plan);
        KeyProfile { record, account, plan, limits, grants, subject, secret_expires_at, identity }
    }

    fn subject(&self, record: &KeyRecord) -> Subject {
        let (kind, id) = match (self.quota.subject, &record.organization_id) {
            (QuotaSubject::Key, _) => ("key", record.id.as_str()),
            (QuotaSubject::Organization, Some(organization)) => ("organization", organization.as_str()),
            (QuotaSubject::Organization, None) | (QuotaSubject::Account, _) => ("account", record.account_id.as_str()),
        };
        Subject::new(kind, record.environment, id)
    }
}

/// The identity headers of contract 5, those that apply.
fn identity(record: &KeyRecord, plan: &str) -> Vec<(HeaderName, HeaderValue)> {
    let headers = [
        ("x-seeme-key-id", Some(record.id.to_string())),
        ("x-seeme-account-id", Some(record.account_id.to_string())),
        ("x-seeme-organization-id", record.organization_id.as_ref().map(ToString::to_string)),
        ("x-seeme-environment", Some(record.environment.as_str().to_owned())),
        ("x-seeme-plan", Some(plan.to_owned())),
        ("x-seeme-scopes", Some(join(&record.scopes, " "))),
        ("x-seeme-model-ids", record.model_ids.as_ref().map(|ids| join(ids, ","))),
        ("x-seeme-dataset-ids", record.dataset_ids.as_ref().map(|ids| join(ids, ","))),
    ];
    let header = |(name, value): (&'static str, Option<String>)| {
        // Ids, scopes and plan names have alphabets that no header can refuse.
        let value = HeaderValue::from_str(&value?).ok()?;
        Some((HeaderName::from_static(name), value))
    };
    headers.into_iter().filter_map(header).collect()
}

fn join(items: &[impl Display], separator: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}
