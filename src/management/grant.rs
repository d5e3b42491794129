//! Whether a key gives more than its maker has. Pure.
//!
//! Checked against the **resulting** key, not against what a request names: taking a limit away, enabling again and renaming
//! a stronger key all end here. The command line has no limits of its own and does not come here.

use std::collections::BTreeSet;

use super::problem::{Excess, ManagementError};
use crate::policy::access::KeyProfile;
use crate::policy::key::{KeyRecord, ResourceId};
use crate::policy::network::Network;
use crate::policy::scope::{Scope, ScopeCatalog};

/// Whether a caller may work on the keys of other accounts.
pub fn is_admin(caller: &KeyProfile) -> bool {
    Scope::parse("api-keys:admin").is_ok_and(|admin| caller.grants.allows(&admin))
}

/// Checks that `result` lies within what `caller` has: account, scopes, models, datasets, addresses, organization,
/// environment, expiry.
/// Names everything that does not.
pub fn check(result: &KeyRecord, caller: &KeyProfile, catalog: &ScopeCatalog) -> Result<(), ManagementError> {
    let mine = &caller.record;
    let excess: Vec<Excess> = [
        account(result, caller).map(|what| Excess { member: "account_id", what }),
        scopes(result, caller, catalog).map(|what| Excess { member: "scopes", what }),
        ids(mine.model_ids.as_deref(), result.model_ids.as_deref()).map(|what| Excess { member: "model_ids", what }),
        ids(mine.dataset_ids.as_deref(), result.dataset_ids.as_deref())
            .map(|what| Excess { member: "dataset_ids", what }),
        addresses(mine.allowed_addresses.as_deref(), result.allowed_addresses.as_deref())
            .map(|what| Excess { member: "allowed_addresses", what }),
        organization(mine, result).map(|what| Excess { member: "organization_id", what }),
        environment(mine, result).map(|what| Excess { member: "environment", what }),
        expiry(mine, result).map(|what| Excess { member: "expires_at", what }),
    ]
    .into_iter()
    .flatten()
    .collect();
    if excess.is_empty() { Ok(()) } else { Err(ManagementError::GrantExceedsCaller(excess)) }
}

fn account(result: &KeyRecord, caller: &KeyProfile) -> Option<String> {
    let own = result.account_id == caller.record.account_id;
    if own || is_admin(caller) { None } else { Some("naming another account needs api-keys:admin".to_owned()) }
}

fn scopes(result: &KeyRecord, caller: &KeyProfile, catalog: &ScopeCatalog) -> Option<String> {
    // One by one, so that the ones to leave out can be named.
    let beyond = result.scopes.iter().filter(|&scope| !caller.grants.covers(&catalog.expand([scope])));
    let beyond: Vec<&str> = beyond.map(|scope| scope.as_str()).collect();
    if beyond.is_empty() { None } else { Some(format!("the caller does not hold {}", beyond.join(", "))) }
}

const NOT_ALL: &str = "the caller is limited itself, so this cannot be all";

fn ids(mine: Option<&[ResourceId]>, result: Option<&[ResourceId]>) -> Option<String> {
    let mine: BTreeSet<&ResourceId> = mine?.iter().collect();
    let Some(result) = result else { return Some(NOT_ALL.to_owned()) };
    let beyond: Vec<&str> = result.iter().filter(|id| !mine.contains(id)).map(ResourceId::as_str).collect();
    if beyond.is_empty() { None } else { Some(format!("the caller is not allowed {}", beyond.join(", "))) }
}

fn addresses(mine: Option<&[Network]>, result: Option<&[Network]>) -> Option<String> {
    let mine = mine?;
    let Some(result) = result else { return Some(NOT_ALL.to_owned()) };
    let beyond = result.iter().filter(|network| !Network::cover(mine, network));
    let beyond: Vec<String> = beyond.map(ToString::to_string).collect();
    if beyond.is_empty() { None } else { Some(format!("the caller does not work from {}", beyond.join(", "))) }
}

fn organization(mine: &KeyRecord, result: &KeyRecord) -> Option<String> {
    let mine = mine.organization_id.as_ref()?;
    if result.organization_id.as_ref() == Some(mine) { None } else { Some(format!("the caller is limited to {mine}")) }
}

fn environment(mine: &KeyRecord, result: &KeyRecord) -> Option<String> {
    let (mine, theirs) = (mine.environment, result.environment);
    if mine.covers(theirs) { None } else { Some(format!("a {} key gives no {} key", mine.as_str(), theirs.as_str())) }
}

fn expiry(mine: &KeyRecord, result: &KeyRecord) -> Option<String> {
    let mine = mine.expires_at?;
    match result.expires_at {
        Some(at) if at <= mine => None,
        _ => Some(format!("the caller itself expires at {mine}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::management::testing::{catalog, profile, record};
    use crate::policy::key::{Environment, OrganizationId, Timestamp};

    fn beyond(caller: impl FnOnce(&mut KeyRecord), result: impl FnOnce(&mut KeyRecord)) -> Vec<&'static str> {
        let (mut mine, mut theirs) = (record("caller"), record("new"));
        caller(&mut mine);
        result(&mut theirs);
        match check(&theirs, &profile(mine), &catalog()) {
            Ok(()) => Vec::new(),
            Err(ManagementError::GrantExceedsCaller(excess)) => excess.iter().map(|excess| excess.member).collect(),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn scopes(texts: &[&str]) -> Vec<Scope> {
        texts.iter().map(|text| Scope::parse(text).unwrap()).collect()
    }

    fn some_ids(texts: &[&str]) -> Option<Vec<ResourceId>> {
        Some(texts.iter().map(|text| ResourceId::parse(text).unwrap()).collect())
    }

    fn at(text: &str) -> Option<Timestamp> {
        Timestamp::parse(text).ok()
    }

    #[test]
    fn a_copy_of_the_caller_is_within_the_caller() {
        assert!(beyond(|_| {}, |_| {}).is_empty());
    }

    #[test]
    fn scopes_are_compared_by_what_they_open() {
        let cases: &[(&[&str], &[&str], bool)] = &[
            (&["models:*"], &["models:read", "inferences:create"], true),
            (&["models:read"], &["models:list"], true),
            (&["models:list"], &["models:read"], false),
            (&["models:read"], &["models:*"], false),
            (&["*"], &["models:*", "anything:at-all"], true),
            (&["*"], &["accounts:write"], false),
            (&["*:*"], &["api-keys:admin"], false),
            (&["accounts:*"], &["accounts:read"], false),
            (&["accounts:read"], &["accounts:read"], true),
            (&["api-keys:admin"], &["api-keys:admin"], true),
        ];
        for (mine, theirs, within) in cases {
            let found = beyond(|key| key.scopes = scopes(mine), |key| key.scopes = scopes(theirs));
            assert_eq!(found, if *within { vec![] } else { vec!["scopes"] }, "{mine:?} gives {theirs:?}");
        }
    }

    #[test]
    fn a_limited_caller_gives_only_of_its_own_and_never_all() {
        let limited = |key: &mut KeyRecord| key.model_ids = some_ids(&["m-1", "m-2"]);
        assert!(beyond(limited, |key| key.model_ids = some_ids(&["m-2"])).is_empty());
        assert_eq!(beyond(limited, |key| key.model_ids = some_ids(&["m-2", "m-3"])), ["model_ids"]);
        assert_eq!(beyond(limited, |key| key.model_ids = some_ids(&["M-1"])), ["model_ids"]);
        assert_eq!(beyond(limited, |key| key.model_ids = None), ["model_ids"]);
        let limited = |key: &mut KeyRecord| key.dataset_ids = some_ids(&["d-1"]);
        assert_eq!(beyond(limited, |key| key.dataset_ids = None), ["dataset_ids"]);
        assert!(beyond(|_| {}, |key| key.model_ids = some_ids(&["m-9"])).is_empty());
    }

    #[test]
    fn a_caller_that_works_from_some_addresses_gives_no_key_that_works_from_others() {
        let some = |texts: &[&str]| Some(texts.iter().map(|text| Network::parse(text).unwrap()).collect());
        let limited =
            |key: &mut KeyRecord| key.allowed_addresses = some(&["10.0.0.0/9", "10.128.0.0/9", "2001:db8::1"]);
        for (theirs, within) in [
            (some(&["10.1.0.0/16", "10.200.0.1"]), true),
            (some(&["10.0.0.0/8"]), true),
            (some(&["10.0.0.0/9", "192.0.2.1"]), false),
            (some(&["0.0.0.0/0"]), false),
            (None, false),
        ] {
            let found = beyond(limited, |key| key.allowed_addresses = theirs.clone());
            assert_eq!(found, if within { vec![] } else { vec!["allowed_addresses"] }, "{theirs:?}");
        }
        assert!(beyond(|_| {}, |key| key.allowed_addresses = some(&["10.0.0.0/8"])).is_empty());
    }

    #[test]
    fn another_account_is_for_those_who_hold_its_scope_by_name() {
        let other = |key: &mut KeyRecord| key.account_id = crate::policy::key::AccountId::parse("u-2").unwrap();
        assert_eq!(beyond(|_| {}, other), ["account_id"]);
        assert!(beyond(|key| key.scopes = scopes(&["*", "api-keys:admin"]), other).is_empty());
    }

    #[test]
    fn live_covers_test_and_not_the_reverse() {
        let (live, test) = (
            |key: &mut KeyRecord| key.environment = Environment::Live,
            |key: &mut KeyRecord| key.environment = Environment::Test,
        );
        assert!(beyond(live, test).is_empty());
        assert_eq!(beyond(test, live), ["environment"]);
    }

    #[test]
    fn an_expiry_is_at_most_the_callers() {
        let caller = |key: &mut KeyRecord| key.expires_at = at("2027-01-01T00:00:00Z");
        assert!(beyond(caller, |key| key.expires_at = at("2027-01-01T00:00:00Z")).is_empty());
        assert_eq!(beyond(caller, |key| key.expires_at = at("2027-01-01T00:00:00.001Z")), ["expires_at"]);
        assert_eq!(beyond(caller, |key| key.expires_at = None), ["expires_at"]);
        assert!(beyond(|_| {}, |key| key.expires_at = at("2027-01-01T00:00:00Z")).is_empty());
    }

    #[test]
    fn an_organization_stays_and_everything_beyond_is_named_at_once() {
        let org = |text: &str| OrganizationId::parse(text).ok();
        assert!(beyond(|_| {}, |key| key.organization_id = org("o-1")).is_empty());
        let found = beyond(
            |key| {
                key.organization_id = org("o-1");
                key.scopes = scopes(&["models:read"]);
                key.environment = Environment::Test;
            },
            |key| {
                key.organization_id = org("o-2");
                key.scopes = scopes(&["models:read", "models:write", "x:y"]);
                key.environment = Environment::Live;
            },
        );
        assert_eq!(found, ["scopes", "organization_id", "environment"]);
    }
}
