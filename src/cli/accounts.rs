//! `accounts …`: the operations of [`crate::management::accounts`] on the store of the file.

use std::sync::Arc;

use super::args::{AccountArgs, AccountsCommand};
use super::output::{Output, acknowledgement, block, table};
use super::{CliError, failed, refused};
use crate::config::model::{Config, Quota};
use crate::management::accounts::{Accounts, ChangedAccount, OwnLimits, to_json};
use crate::management::acknowledge;
use crate::management::problem::ManagementError;
use crate::policy::credential::holds_secret;
use crate::policy::key::{Account, AccountId};
use crate::store::Store;

/// Carries a command out and prints its outcome.
pub(super) async fn run(command: AccountsCommand, store: Arc<dyn Store>, config: Config) -> Result<(), CliError> {
    let accounts = Accounts { store: &*store, config: &config };
    let output = answer(command, accounts).await.map_err(refused)?;
    output.print().map_err(failed)
}

/// Carries a command out.
async fn answer(command: AccountsCommand, accounts: Accounts<'_>) -> Result<Output, ManagementError> {
    let quota = &accounts.config.quota;
    match command {
        AccountsCommand::Set { id, plan, requests_per_minute, requests_per_day, concurrent_requests, json } => {
            let own = OwnLimits { requests_per_minute, requests_per_day, concurrent_requests };
            let changed = accounts.set(&account_id(&id)?, &plan, own).await?;
            Ok(one(&changed.account, quota, json))
        }
        AccountsCommand::Show(AccountArgs { id, json }) => {
            let account = accounts.get(&account_id(&id)?).await?;
            Ok(Output { warnings: quota.note(&account).into_iter().collect(), ..one(&account, quota, json) })
        }
        AccountsCommand::List { json } => {
            let found = accounts.list().await?;
            let output = Output::either(
                json,
                || found.iter().map(|account| to_json(account, quota)).collect(),
                || listed(&found, quota),
            );
            Ok(Output { warnings: found.iter().filter_map(|account| quota.note(account)).collect(), ..output })
        }
        AccountsCommand::Suspend(args) => suspend(&args, accounts).await,
        AccountsCommand::Resume(AccountArgs { id, json }) => {
            let account = accounts.suspend(&account_id(&id)?, false).await?.account;
            Ok(Output::either(json, || to_json(&account, quota), || format!("Resumed {}.\n", account.id)))
        }
    }
}

async fn suspend(args: &AccountArgs, accounts: Accounts<'_>) -> Result<Output, ManagementError> {
    let id = account_id(&args.id)?;
    // It may be meant: an account is suspended before its first key. It may be a typing error, and then the keys still work.
    let known = accounts.is_known(&id).await?;
    let ChangedAccount { account, revision } = accounts.suspend(&id, true).await?;
    let lost_within = accounts.config.cached_keys_are_served_for();
    let revision = revision.unwrap_or_default();
    let acknowledged = acknowledge::wait(accounts.store, revision, lost_within, acknowledge::PATIENCE).await;
    let object = || {
        let mut object = to_json(&account, &accounts.config.quota);
        object["acknowledged"] = acknowledged.to_json();
        object
    };
    let text = || format!("Suspended {}: all its keys are refused.\n{}", account.id, acknowledgement(&acknowledged));
    let warning = (!known).then(|| format!("account {id} was not known; it is suspended from now on"));
    Ok(Output { warnings: warning.into_iter().collect(), ..Output::either(args.json, object, text) })
}

fn account_id(text: &str) -> Result<AccountId, ManagementError> {
    if holds_secret(text) {
        // It would be stored, logged and shown for ever.
        return Err(ManagementError::InvalidAccount("this is a key, not the id of an account".to_owned()));
    }
    AccountId::parse(text).map_err(|error| ManagementError::InvalidAccount(error.to_string()))
}

fn one(account: &Account, quota: &Quota, as_json: bool) -> Output {
    let text = || {
        let (plan, limits) = quota.of(account);
        let concurrent = limits.concurrent_requests.map_or_else(|| "any number".to_owned(), |most| most.to_string());
        block(&[
            ("id", account.id.to_string()),
            ("plan", plan.to_string()),
            ("requests per minute", limits.windows.requests_per_minute.to_string()),
            ("requests per day", limits.windows.requests_per_day.to_string()),
            ("requests at once", concurrent),
            ("suspended", yes_or_no(account.suspended).to_owned()),
        ])
    };
    Output::either(as_json, || to_json(account, quota), text)
}

fn listed(accounts: &[Account], quota: &Quota) -> String {
    if accounts.is_empty() {
        return format!("No accounts are set: all are on the plan {}.\n", quota.default_plan.0);
    }
    let mut rows = vec![["ID", "PLAN", "PER MINUTE", "PER DAY", "AT ONCE", "SUSPENDED"].map(str::to_owned).to_vec()];
    rows.extend(accounts.iter().map(|account| {
        let (plan, limits) = quota.of(account);
        vec![
            account.id.to_string(),
            plan.to_string(),
            limits.windows.requests_per_minute.to_string(),
            limits.windows.requests_per_day.to_string(),
            limits.concurrent_requests.map_or_else(|| "any".to_owned(), |most| most.to_string()),
            yes_or_no(account.suspended).to_owned(),
        ]
    }));
    table(&rows)
}

const fn yes_or_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};
    use crate::management::testing::{StubStore, config};

    async fn answer_to(store: &StubStore, arguments: &str) -> Result<Output, ManagementError> {
        let words = ["seeme-gateway", "accounts"].into_iter().chain(arguments.split_whitespace());
        let Command::Accounts(command) = Cli::try_parse_from(words).unwrap().command else { panic!() };
        answer(command, Accounts { store, config: &config() }).await
    }

    #[tokio::test]
    async fn accounts_are_set_shown_listed_suspended_and_resumed() {
        let store = StubStore::default();
        let mut transcript = String::new();
        for arguments in [
            "list",
            "show u-1",
            "set u-1 --plan enterprise --requests-per-minute 5000 --requests-per-day 1000000",
            "set u-2 --plan pro --json",
            "set u-3 --plan enterprise --requests-per-minute 5000 --requests-per-day 1000000 --concurrent-requests 20",
            "suspend u-2",
            "suspend u-2 --json",
            "list",
            "list --json",
            "resume u-2",
            "show u-2 --json",
        ] {
            let output = answer_to(&store, arguments).await.unwrap();
            assert!(output.warnings.is_empty());
            transcript += &format!("$ accounts {arguments}\n{}\n", output.text);
        }
        insta::assert_snapshot!(transcript);
    }

    #[tokio::test]
    async fn suspending_an_account_that_nobody_knows_is_done_with_a_warning() {
        let store = StubStore::default();
        store.put(crate::management::testing::record("k"));
        let warnings = async |arguments| answer_to(&store, arguments).await.unwrap().warnings;
        assert_eq!(warnings("suspend u-1").await, Vec::<String>::new(), "it has a key");
        assert_eq!(warnings("suspend u-l").await, ["account u-l was not known; it is suspended from now on"]);
        assert_eq!(warnings("suspend u-l --json").await, Vec::<String>::new(), "now it is known");
    }

    #[tokio::test]
    async fn what_cannot_be_is_refused_in_one_line() {
        let store = StubStore::default();
        let mut lines = String::new();
        for arguments in [
            "set u-1 --plan gold",
            "set u-1 --plan enterprise",
            "set u-1 --plan enterprise --requests-per-day 5",
            "set u-1 --plan pro --requests-per-minute 5",
            "set u-1 --plan pro --concurrent-requests 5",
            "set a/b --plan pro",
            "suspend a/b",
            "suspend sm_live_0123456789abcdef",
        ] {
            let error = answer_to(&store, arguments).await.unwrap_err().to_string();
            assert!(!error.contains('\n'));
            lines += &format!("$ accounts {arguments}\n{error}\n");
        }
        insta::assert_snapshot!(lines);
        assert!(store.edit(|state| state.accounts.is_empty()));
    }
}
