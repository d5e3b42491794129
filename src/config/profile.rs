//! A key with everything worked out that does not change from request to request: what the cache holds and the checks read.

use std::fmt::Display;

use http::{HeaderName, HeaderValue};

use super::model::{Config, QuotaSubject};
use crate::policy::access::KeyProfile;
use crate::policy::key::{Account, KeyRecord, Timestamp};
use crate::policy::quota::{InFlightLimit, Subject};

impl Config {
    /// Works out plan, limits, grants, quota subject and identity headers of a key.
    pub fn profile(&self, record: KeyRecord, account: Account, secret_expires_at: Option<Timestamp>) -> KeyProfile {
        let (plan, limits) = self.quota.of(&account);
        let grants = self.scopes.expand(&record.scopes);
        let subject = self.subject(&record);
        let in_flight = limits.concurrent_requests.map(|most| {
            let account = Subject::new("account", record.environment, record.account_id.as_str());
            InFlightLimit { account, most }
        });
        let identity = identity(&record, &plan);
        KeyProfile {
            revision: self.revision,
            record,
            account,
            plan,
            limits: limits.windows,
            in_flight,
            grants,
            subject,
            secret_expires_at,
            identity,
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::key::{AccountId, Environment, KeyId, OrganizationId, ResourceId};
    use crate::policy::scope::Scope;

    fn config(more: &str) -> Config {
        let text = format!(
            "listen: {{ public: {{ address: 127.0.0.1:1 }} }}\nstore: {{ url: \"sqlite:x\" }}\nupstreams: {{ a: {{ endpoints: \
             [\"http://h:1\"] }} }}\nroutes: [ {{ match: GET /a, access: public }} ]\nscopes: {{ a:b: [c:d] }}\n{more}"
        );
        crate::config::parse("gateway.yaml".as_ref(), &text, &|_| None).unwrap().0
    }

    fn record() -> KeyRecord {
        let at = Timestamp::from_unix_millis(0);
        KeyRecord {
            id: KeyId::parse("k-1").unwrap(),
            name: "n".to_owned(),
            key_prefix: "sm_test_abcd".to_owned(),
            environment: Environment::Test,
            account_id: AccountId::parse("u-1").unwrap(),
            organization_id: None,
            scopes: ["a:b", "x:*"].map(|text| Scope::parse(text).unwrap()).to_vec(),
            model_ids: None,
            dataset_ids: None,
            allowed_addresses: None,
            expires_at: None,
            disabled: false,
            created_at: at,
            updated_at: at,
            created_by: "cli".to_owned(),
            deleted_at: None,
        }
    }

    fn profile(config: &Config, record: KeyRecord, plan: Option<&str>) -> KeyProfile {
        let account = Account { plan: plan.map(str::to_owned), ..Account::unset(record.account_id.clone()) };
        config.profile(record, account, None)
    }

    #[test]
    fn only_the_identity_headers_that_apply_are_sent() {
        let shown = |record: KeyRecord| -> String {
            let profile = profile(&config(""), record, Some("pro"));
            profile.identity.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect()
        };
        insta::assert_snapshot!(shown(record()), @r"
        x-seeme-key-id: k-1
        x-seeme-account-id: u-1
        x-seeme-environment: test
        x-seeme-plan: pro
        x-seeme-scopes: a:b x:*
        ");
        let ids = |texts: &[&str]| Some(texts.iter().map(|text| ResourceId::parse(text).unwrap()).collect());
        let limited = KeyRecord {
            organization_id: Some(OrganizationId::parse("o-1").unwrap()),
            model_ids: ids(&["m-1", "m-2"]),
            dataset_ids: ids(&["d-1"]),
            ..record()
        };
        insta::assert_snapshot!(shown(limited), @r"
        x-seeme-key-id: k-1
        x-seeme-account-id: u-1
        x-seeme-organization-id: o-1
        x-seeme-environment: test
        x-seeme-plan: pro
        x-seeme-scopes: a:b x:*
        x-seeme-model-ids: m-1,m-2
        x-seeme-dataset-ids: d-1
        ");
    }

    #[test]
    fn the_subject_of_the_quota_is_the_one_that_the_file_names() {
        let of = |subject: &str, record: KeyRecord| {
            profile(&config(&format!("quota: {{ subject: {subject} }}\n")), record, None).subject.as_str().to_owned()
        };
        let mine = KeyRecord { organization_id: Some(OrganizationId::parse("o-1").unwrap()), ..record() };
        assert_eq!(of("account", mine.clone()), "account:test:u-1");
        assert_eq!(of("key", mine.clone()), "key:test:k-1");
        assert_eq!(of("organization", mine), "organization:test:o-1");
        assert_eq!(of("organization", record()), "account:test:u-1");
    }

    #[test]
    fn plan_limits_and_grants_are_worked_out_once() {
        let config = config("");
        let free = profile(&config, record(), None);
        assert_eq!((&*free.plan, free.limits.requests_per_day), ("free", 1000));
        assert_eq!(&*profile(&config, record(), Some("gone")).plan, "free");
        let custom = profile(&config, record(), Some("enterprise"));
        assert_eq!((&*custom.plan, custom.limits.requests_per_minute), ("enterprise", 60));
        assert!(
            free.grants.allows(&Scope::parse("c:d").unwrap()) && !free.grants.allows(&Scope::parse("c:e").unwrap())
        );
    }
}
