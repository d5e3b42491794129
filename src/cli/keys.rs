//! `keys …`: the operations of [`crate::management::keys`] on the store of the file, by somebody without limits of their own.
//!
//! Arguments become the JSON body that the API would get, so there is one set of rules. Works while gateways run on the store.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::args::{CreateArgs, EnvironmentArg, KeyArgs, KeysCommand, UpdateArgs};
use super::output::{Output, acknowledgement, block, or_dash, table};
use super::{CliError, failed, refused};
use crate::clock::SystemClock;
use crate::config::model::Config;
use crate::management::acknowledge::{self, Acknowledged};
use crate::management::audit;
use crate::management::body::{Changes, NewKey, Nulls};
use crate::management::keys::{Caller, Changed, Created, Deleted, Keys};
use crate::management::problem::{BadMember, ManagementError};
use crate::management::usage::{Days, Tally, Usage};
use crate::management::view::{self, KeyView};
use crate::policy::credential::Secret;
use crate::policy::key::{AccountId, KeyId, Timestamp};
use crate::store::{Event, Revision, Store};

/// How events name whoever works here.
const OPERATOR: Caller<'static> = Caller::operator(audit::OPERATOR);

/// The options that stand for the members of the API, for errors.
const OPTIONS: [(&str, &str); 11] = [
    ("name", "--name"),
    ("account_id", "--account"),
    ("scopes", "--scope"),
    ("model_ids", "--model-id"),
    ("dataset_ids", "--dataset-id"),
    ("allowed_addresses", "--allowed-address"),
    ("organization_id", "--organization-id"),
    ("expires_in_days", "--expires-in-days"),
    ("expires_at", "--expires-at"),
    ("start_date", "--from"),
    ("end_date", "--to"),
];

/// Carries a command out and prints its outcome.
pub(super) async fn run(command: KeysCommand, store: Arc<dyn Store>, config: Config) -> Result<(), CliError> {
    let clock = SystemClock::shared();
    let keys = Keys { store: &*store, config: &config, clock: &*clock };
    let told = |error| refused(in_options(error));
    let KeysCommand::Create(args) = command else {
        return answer(command, keys).await.map_err(told)?.print().map_err(failed);
    };
    let (id, output) = create(args, keys).await.map_err(told)?;
    match output.print() {
        Ok(()) => Ok(()),
        Err(error) => Err(failed(format!("{error}. {}", take_back(&id, keys).await))),
    }
}

/// Deletes a key whose secret nobody saw, and says what became of it.
async fn take_back(id: &KeyId, keys: Keys<'_>) -> String {
    match keys.delete(&OPERATOR, Some(id)).await {
        Ok(_) => format!("The key {id} could not be handed out and was deleted again"),
        Err(error) => format!(
            "The key {id} could not be handed out and works all the same ({error}): seeme-gateway keys delete {id}"
        ),
    }
}

/// Carries a command out.
async fn answer(command: KeysCommand, keys: Keys<'_>) -> Result<Output, ManagementError> {
    let quota = &keys.config.quota;
    match command {
        KeysCommand::Create(args) => create(args, keys).await.map(|(_, output)| output),
        KeysCommand::List { account, include_deleted, json } => {
            let account = account.map(|id| AccountId::parse(&id)).transpose();
            let account = account.map_err(|error| invalid("account_id", error.to_string()))?;
            let deleted = if include_deleted { Deleted::Shown } else { Deleted::Hidden };
            let found = keys.list(&OPERATOR.limited_to(account), deleted).await?;
            let now = keys.clock.wall();
            Ok(Output::either(json, || found.iter().map(|key| key.to_json(quota)).collect(), || listed(&found, now)))
        }
        KeysCommand::Show(KeyArgs { id, json }) => {
            let key = keys.get(&OPERATOR, key_id(&id).as_ref(), Deleted::Shown).await?;
            let now = keys.clock.wall();
            Ok(Output::either(json, || key.to_json(quota), || shown(&key, keys.config, now)))
        }
        KeysCommand::Update(args) => update(args, keys).await,
        KeysCommand::Disable(args) => switch(&args, true, keys).await,
        KeysCommand::Enable(args) => switch(&args, false, keys).await,
        KeysCommand::Delete(KeyArgs { id, json }) => {
            let Changed { key, revision } = keys.delete(&OPERATOR, key_id(&id).as_ref()).await?;
            let acknowledged = acknowledged(keys, revision).await;
            Ok(Output::either(
                json,
                || view::deleted(&key.record.id, &acknowledged),
                || format!("Deleted {} ({}).\n{}", key.record.id, key.record.name, acknowledgement(&acknowledged)),
            ))
        }
        KeysCommand::Usage { id, from, to, json } => {
            let today = keys.clock.wall().day();
            let days = Days::parse(from.as_deref(), to.as_deref(), today)?;
            let usage = keys.usage(&OPERATOR, key_id(&id).as_ref(), days).await?;
            Ok(Output::either(json, || usage.to_json(), || used(&usage, days)))
        }
        KeysCommand::Events(KeyArgs { id, json }) => {
            let events = keys.events(&OPERATOR, key_id(&id).as_ref()).await?;
            Ok(Output::either(json, || events.iter().map(view::event).collect(), || happened(&events)))
        }
    }
}

async fn create(args: CreateArgs, keys: Keys<'_>) -> Result<(KeyId, Output), ManagementError> {
    let environment = match args.environment {
        EnvironmentArg::Live => "live",
        EnvironmentArg::Test => "test",
    };
    let mut body = Map::new();
    body.insert("name".into(), args.name.into());
    body.insert("account_id".into(), args.account.into());
    body.insert("scopes".into(), args.scope.into());
    body.insert("environment".into(), environment.into());
    body.insert("organization_id".into(), args.organization_id.into());
    body.insert("expires_in_days".into(), args.expires_in_days.into());
    body.insert("expires_at".into(), args.expires_at.into());
    insert_list(&mut body, "model_ids", args.model_id);
    insert_list(&mut body, "dataset_ids", args.dataset_id);
    insert_list(&mut body, "allowed_addresses", args.allowed_address);
    let new = NewKey::from_members(body, keys.clock.wall(), true)?;
    let Created { key, secret } = keys.create(&OPERATOR, new).await?;
    let quota = &keys.config.quota;
    let now = keys.clock.wall();
    let output = Output::either(
        args.json,
        || key.to_json_with_secret(quota, &secret),
        || handed_out(&key, &secret, keys.config, now),
    );
    let warnings = scope_warnings(&key, keys);
    Ok((key.record.id, Output { warnings, ..output }))
}

async fn update(args: UpdateArgs, keys: Keys<'_>) -> Result<Output, ManagementError> {
    let mut body = Map::new();
    let texts = [("name", args.name), ("expires_at", args.expires_at)];
    body.extend(texts.into_iter().filter_map(|(member, text)| Some((member.to_owned(), text?.into()))));
    for (member, list, all) in [
        ("scopes", args.scope, false),
        ("model_ids", args.model_id, args.all_models),
        ("dataset_ids", args.dataset_id, args.all_datasets),
        ("allowed_addresses", args.allowed_address, args.all_addresses),
    ] {
        insert_list(&mut body, member, list);
        if all {
            body.insert(member.to_owned(), Value::Null);
        }
    }
    if body.is_empty() {
        let options = "--name, --scope, --model-id, --all-models, --dataset-id, --all-datasets, --allowed-address, --all-addresses, \
                       --expires-at";
        return Err(invalid("nothing to change", format!("give at least one of {options}")));
    }
    let changes = Changes::from_members(body, keys.clock.wall(), Nulls::Clear, None)?;
    let key = keys.update(&OPERATOR, key_id(&args.id).as_ref(), &changes).await?.key;
    let now = keys.clock.wall();
    let output = Output::either(args.json, || key.to_json(&keys.config.quota), || shown(&key, keys.config, now));
    let warnings = if changes.scopes.is_some() { scope_warnings(&key, keys) } else { Vec::new() };
    Ok(Output { warnings, ..output })
}

async fn switch(args: &KeyArgs, disabled: bool, keys: Keys<'_>) -> Result<Output, ManagementError> {
    let changes = Changes::switch(disabled);
    let changed = keys.update(&OPERATOR, key_id(&args.id).as_ref(), &changes).await?;
    let (key, quota) = (changed.key, &keys.config.quota);
    let what = format!("{} ({})", key.record.id, key.record.name);
    if !disabled {
        let expired = key.record.expires_at.filter(|at| *at <= keys.clock.wall());
        let warning = expired.map(|at| format!("the key expired at {at} and stays refused; keys update --expires-at"));
        let output = Output::either(args.json, || key.to_json(quota), || format!("Enabled {what}.\n"));
        return Ok(Output { warnings: warning.into_iter().collect(), ..output });
    }
    let acknowledged = acknowledged(keys, changed.revision).await;
    Ok(Output::either(
        args.json,
        || key.to_json_acknowledged(quota, &acknowledged),
        || format!("Disabled {what}.\n{}", acknowledgement(&acknowledged)),
    ))
}

async fn acknowledged(keys: Keys<'_>, revision: Option<Revision>) -> Acknowledged {
    let lost_within = keys.config.cached_keys_are_served_for();
    acknowledge::wait(keys.store, revision.unwrap_or_default(), lost_within, acknowledge::PATIENCE).await
}

fn insert_list(body: &mut Map<String, Value>, member: &str, list: Vec<String>) {
    if !list.is_empty() {
        body.insert(member.to_owned(), json!(list));
    }
}

/// What cannot be an id is nobody's.
fn key_id(text: &str) -> Option<KeyId> {
    KeyId::parse(text).ok()
}

fn invalid(what: &str, why: String) -> ManagementError {
    ManagementError::InvalidBody(vec![BadMember::new(what, why)])
}

/// An error in the words of whoever typed options: `scopes[1]` is `--scope (number 2)`.
fn in_options(error: ManagementError) -> ManagementError {
    let option = |bad: BadMember| {
        let (member, index) = bad.member.split_once('[').unwrap_or((&bad.member, ""));
        let option = OPTIONS.iter().find(|(known, _)| *known == member).map_or(member, |(_, option)| option);
        let number = index.trim_end_matches(']').parse::<usize>();
        let name = number.map_or_else(|_| option.to_owned(), |index| format!("{option} (number {})", index + 1));
        BadMember { member: name, ..bad }
    };
    match error {
        ManagementError::InvalidBody(bad) => ManagementError::InvalidBody(bad.into_iter().map(option).collect()),
        ManagementError::InvalidQuery(bad) => ManagementError::InvalidQuery(bad.into_iter().map(option).collect()),
        other => other,
    }
}

fn scope_warnings(key: &KeyView, keys: Keys<'_>) -> Vec<String> {
    let unknown = keys.unknown_scopes(&key.record.scopes);
    unknown.iter().map(|scope| format!("no route asks for the scope {scope}; the key holds it all the same")).collect()
}

fn handed_out(key: &KeyView, secret: &Secret, config: &Config, now: Timestamp) -> String {
    let secret = secret.reveal();
    let url = format!("{}{}/current", base_url(config), config.management.base_path);
    format!(
        "{}\nThe key, shown this once:\n\n  {secret}\n\nTry it:\n\n  curl -H 'Authorization: Bearer {secret}' {url}\n",
        shown(key, config, now)
    )
}

/// Where the gateway can be reached from this machine.
fn base_url(config: &Config) -> String {
    let mut address = config.listen.public;
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => [127, 0, 0, 1].into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{address}")
}

fn state(key: &KeyView, now: Timestamp) -> &'static str {
    let record = &key.record;
    if record.deleted_at.is_some() {
        "deleted"
    } else if key.account.suspended {
        "suspended"
    } else if record.disabled {
        "disabled"
    } else if record.expires_at.is_some_and(|at| at <= now) {
        "expired"
    } else {
        "enabled"
    }
}

fn joined<T: ToString>(list: &[T]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn listed(keys: &[KeyView], now: Timestamp) -> String {
    if keys.is_empty() {
        return "No keys.\n".to_owned();
    }
    let heading = ["ID", "NAME", "PREFIX", "ACCOUNT", "STATE", "EXPIRES", "LAST USED", "SCOPES"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(keys.iter().map(|key| {
        let record = &key.record;
        vec![
            record.id.to_string(),
            record.name.clone(),
            record.key_prefix.clone(),
            record.account_id.to_string(),
            state(key, now).to_owned(),
            or_dash(record.expires_at),
            or_dash(key.last_used_at()),
            joined(&record.scopes),
        ]
    }));
    table(&rows)
}

fn shown(key: &KeyView, config: &Config, now: Timestamp) -> String {
    let record = &key.record;
    let limited = |ids: Option<String>| ids.unwrap_or_else(|| "all".to_owned());
    let mut rows = vec![
        ("id", record.id.to_string()),
        ("name", record.name.clone()),
        ("prefix", record.key_prefix.clone()),
        ("state", state(key, now).to_owned()),
        ("environment", record.environment.as_str().to_owned()),
        ("account", record.account_id.to_string()),
        ("plan", config.quota.of(&key.account).0.to_string()),
        ("organization", or_dash(record.organization_id.as_ref())),
        ("scopes", joined(&record.scopes)),
        ("models", limited(record.model_ids.as_deref().map(joined))),
        ("datasets", limited(record.dataset_ids.as_deref().map(joined))),
        ("addresses", limited(record.allowed_addresses.as_deref().map(joined))),
        ("expires", or_dash(record.expires_at)),
        ("last used", or_dash(key.last_used_at())),
        ("created", format!("{} by {}", record.created_at, record.created_by)),
        ("updated", record.updated_at.to_string()),
    ];
    if let Some(at) = record.deleted_at {
        rows.push(("deleted", at.to_string()));
    }
    block(&rows)
}

fn used(usage: &Usage, days: Days) -> String {
    let mut text = block(&[
        ("from", days.from.to_string()),
        ("to", days.to.to_string()),
        ("requests", usage.all.total.to_string()),
        ("successful", usage.all.successful.to_string()),
        ("failed", usage.all.failed.to_string()),
        ("last used", or_dash(usage.last_used_at)),
    ]);
    let tally = |name: &str, Tally { total, successful, failed }: &Tally| {
        vec![name.to_owned(), total.to_string(), successful.to_string(), failed.to_string()]
    };
    let heading = |what: &str| [what, "TOTAL", "SUCCESSFUL", "FAILED"].map(str::to_owned).to_vec();
    let endpoints: Vec<_> = usage.by_endpoint.iter().map(|(name, count)| tally(name, count)).collect();
    let by_day: Vec<_> = usage.by_day.iter().map(|(day, count)| tally(&day.to_string(), count)).collect();
    let statuses: Vec<_> =
        usage.by_status.iter().map(|(class, count)| vec![class.as_str().to_owned(), count.to_string()]).collect();
    let status_heading = ["STATUS", "TOTAL"].map(str::to_owned).to_vec();
    for (heading, rows) in [(heading("ENDPOINT"), endpoints), (heading("DAY"), by_day), (status_heading, statuses)] {
        if !rows.is_empty() {
            let _infallible = write!(text, "\n{}", table(&[vec![heading], rows].concat()));
        }
    }
    text
}

fn happened(events: &[Event]) -> String {
    let mut rows = vec![["WHEN", "WHAT", "BY", "FROM", "CHANGED"].map(str::to_owned).to_vec()];
    rows.extend(events.iter().map(|event| {
        vec![
            event.at.to_string(),
            event.action.as_str().to_owned(),
            event.by.clone(),
            event.from.clone(),
            event.changed.join(", "),
        ]
    }));
    table(&rows)
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
