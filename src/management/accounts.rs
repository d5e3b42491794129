//! The operations on accounts: plan, limits and suspension. The command line's today; the REST calls will start here too.
//!
//! An account exists as soon as a key names it; a row is made only when something is set. Must not touch keys.

use serde_json::{Value, json};

use super::audit;
use super::problem::{ManagementError, quoted};
use crate::config::model::{Config, Plan, Quota};
use crate::policy::key::{Account, AccountId};
use crate::store::{KeyFilter, Revision, Store, StoreError};

/// See `keys::ATTEMPTS`.
const ATTEMPTS: usize = 16;

/// The operations.
#[derive(Clone, Copy)]
pub struct Accounts<'a> {
    /// Where accounts live.
    pub store: &'a dyn Store,
    /// Which plans there are.
    pub config: &'a Config,
}

/// Limits that an account is given beside a plan.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnLimits {
    /// See [`Account::requests_per_minute`].
    pub requests_per_minute: Option<u32>,
    /// See [`Account::requests_per_day`].
    pub requests_per_day: Option<u32>,
    /// See [`Account::concurrent_requests`].
    pub concurrent_requests: Option<u32>,
}

/// An account after a change.
#[derive(Debug)]
pub struct ChangedAccount {
    /// As it is now.
    pub account: Account,
    /// Where the change stands in the feed; `None`: it was like that already.
    pub revision: Option<Revision>,
}

impl Accounts<'_> {
    /// Puts an account on a plan; makes it when absent. A custom plan needs the limits of both windows, any other brings its own.
    pub async fn set(&self, id: &AccountId, plan: &str, own: OwnLimits) -> Result<ChangedAccount, ManagementError> {
        check_plan(&self.config.quota, plan, own)?;
        self.replace(id, |account| Account {
            plan: Some(plan.to_owned()),
            requests_per_minute: own.requests_per_minute,
            requests_per_day: own.requests_per_day,
            concurrent_requests: own.concurrent_requests,
            ..account
        })
        .await
    }

    /// Refuses all keys of the account, or no longer.
    pub async fn suspend(&self, id: &AccountId, suspended: bool) -> Result<ChangedAccount, ManagementError> {
        self.replace(id, |account| Account { suspended, ..account }).await
    }

    /// Whether anything was set for the account, or a key is its.
    pub async fn is_known(&self, id: &AccountId) -> Result<bool, ManagementError> {
        if self.store.account(id.clone()).await?.is_some() {
            return Ok(true);
        }
        let its = KeyFilter { account_id: Some(id.clone()), ..KeyFilter::default() };
        Ok(!self.store.keys(its).await?.is_empty())
    }

    /// One account; one that nobody has set anything for is on the default plan.
    pub async fn get(&self, id: &AccountId) -> Result<Account, ManagementError> {
        let found = self.store.account(id.clone()).await?;
        Ok(found.map_or_else(|| Account::unset(id.clone()), |(account, _)| account))
    }

    /// All accounts that were set.
    pub async fn list(&self) -> Result<Vec<Account>, ManagementError> {
        Ok(self.store.accounts().await?)
    }

    async fn replace(
        &self,
        id: &AccountId,
        change: impl Fn(Account) -> Account,
    ) -> Result<ChangedAccount, ManagementError> {
        for _ in 0..ATTEMPTS {
            let found = self.store.account(id.clone()).await?;
            let (old, version) = match found {
                Some((account, version)) => (account, Some(version)),
                None => (Account::unset(id.clone()), None),
            };
            let account = change(old.clone());
            // A repeated suspension gets a revision of its own, so that it can be asked again whether everybody obeys.
            if account == old && !account.suspended {
                return Ok(ChangedAccount { account, revision: None });
            }
            match self.store.replace_account(account.clone(), version).await {
                Ok(revision) => {
                    if account != old {
                        audit::account(&account, audit::OPERATOR);
                    }
                    return Ok(ChangedAccount { account, revision: Some(revision) });
                }
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict.into())
    }
}

/// How an account is shown: the plan and the limits in force.
pub fn to_json(account: &Account, quota: &Quota) -> Value {
    let (plan, limits) = quota.of(account);
    json!({
        "id": account.id,
        "plan": *plan,
        "requests_per_minute": limits.windows.requests_per_minute,
        "requests_per_day": limits.windows.requests_per_day,
        "concurrent_requests": limits.concurrent_requests,
        "suspended": account.suspended,
    })
}

fn check_plan(quota: &Quota, name: &str, own: OwnLimits) -> Result<(), ManagementError> {
    let invalid = |why: String| Err(ManagementError::InvalidAccount(why));
    let plan = quota.plans.iter().find(|(known, _)| **known == *name).map(|(_, plan)| plan);
    let OwnLimits { requests_per_minute, requests_per_day, concurrent_requests } = own;
    let given = [requests_per_minute, requests_per_day, concurrent_requests];
    match plan {
        None => {
            let known: Vec<&str> = quota.plans.iter().map(|(name, _)| &**name).collect();
            invalid(format!("there is no plan `{}`; plans are {}", quoted(name), known.join(", ")))
        }
        Some(Plan::Custom) if given.contains(&Some(0)) => {
            invalid("limits are from 1 to 4294967295; to refuse everything, suspend the account".to_owned())
        }
        Some(Plan::Custom) if requests_per_minute.is_some() && requests_per_day.is_some() => Ok(()),
        Some(Plan::Custom) => invalid(format!(
            "plan `{name}` has no limits of its own: give both --requests-per-minute and --requests-per-day"
        )),
        Some(Plan::Fixed(_)) if given == [None; 3] => Ok(()),
        Some(Plan::Fixed(limits)) => invalid(format!(
            "plan `{name}` has fixed limits ({} a minute, {} a day{}): leave out --requests-per-minute, --requests-per-day and \
             --concurrent-requests",
            limits.windows.requests_per_minute,
            limits.windows.requests_per_day,
            limits.concurrent_requests.map_or_else(String::new, |most| format!(", {most} at once"))
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::management::testing::{StubStore, config};

    fn id() -> AccountId {
        AccountId::parse("u-1").unwrap()
    }

    #[tokio::test]
    async fn a_plan_is_set_on_an_account_that_did_not_exist_and_its_suspension_survives() {
        let (store, config) = (StubStore::default(), config());
        let accounts = Accounts { store: &store, config: &config };
        assert_eq!(accounts.get(&id()).await.unwrap(), Account::unset(id()));
        accounts.suspend(&id(), true).await.unwrap();
        let own = OwnLimits {
            requests_per_minute: Some(5000),
            requests_per_day: Some(1_000_000),
            concurrent_requests: Some(20),
        };
        let account = accounts.set(&id(), "enterprise", own).await.unwrap().account;
        assert_eq!(config.quota.of(&account).1.concurrent_requests, Some(20));
        let account = accounts.set(&id(), "pro", OwnLimits::default()).await.unwrap().account;
        assert_eq!(account.concurrent_requests, None);
        insta::assert_json_snapshot!(to_json(&account, &config.quota), @r#"
        {
          "id": "u-1",
          "plan": "pro",
          "requests_per_minute": 300,
          "requests_per_day": 50000,
          "concurrent_requests": null,
          "suspended": true
        }
        "#);
        assert_eq!((account.requests_per_minute, account.requests_per_day), (None, None));
        assert_eq!(accounts.list().await.unwrap(), [account]);
    }

    #[tokio::test]
    async fn a_change_that_was_overtaken_is_made_again_on_what_is_there() {
        let (store, config) = (StubStore::default(), config());
        let accounts = Accounts { store: &store, config: &config };
        accounts.set(&id(), "pro", OwnLimits::default()).await.unwrap();
        store.edit(|state| state.conflicts = 3);
        let account = accounts.suspend(&id(), true).await.unwrap().account;
        assert_eq!((account.plan.as_deref(), account.suspended), (Some("pro"), true));
    }

    #[tokio::test]
    async fn resuming_what_is_not_suspended_writes_nothing() {
        let (store, config) = (StubStore::default(), config());
        let accounts = Accounts { store: &store, config: &config };
        assert!(accounts.suspend(&id(), false).await.unwrap().revision.is_none());
        assert!(accounts.list().await.unwrap().is_empty());
    }

    #[test]
    fn limits_belong_to_custom_plans_and_to_no_other() {
        let quota = config().quota;
        let all = |plan, requests_per_minute, requests_per_day, concurrent_requests| {
            let own = OwnLimits { requests_per_minute, requests_per_day, concurrent_requests };
            check_plan(&quota, plan, own).map_err(|error| error.to_string())
        };
        let said = |plan, minute, day| all(plan, minute, day, None);
        assert_eq!(all("enterprise", Some(1), Some(1), Some(1)), Ok(()));
        assert!(all("enterprise", None, None, Some(1)).unwrap_err().contains("give both"));
        assert!(all("enterprise", Some(1), Some(1), Some(0)).unwrap_err().contains("from 1 to"));
        assert!(all("pro", None, None, Some(1)).unwrap_err().contains("leave out"));
        assert_eq!(said("pro", None, None), Ok(()));
        assert_eq!(said("enterprise", Some(1), Some(u32::MAX)), Ok(()));
        for (plan, minute, day, hint) in [
            ("gold", None, None, "plans are free, pro, enterprise"),
            ("enterprise", None, None, "give both"),
            ("enterprise", Some(5), None, "give both"),
            ("enterprise", Some(0), Some(5), "from 1 to"),
            ("pro", Some(5), None, "300 a minute, 50000 a day"),
            ("free", Some(5), Some(5), "leave out"),
        ] {
            let refusal = said(plan, minute, day).unwrap_err();
            assert!(refusal.contains(hint), "{plan}: {refusal}");
        }
    }
}
