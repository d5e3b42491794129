//! `explain`: each check of one request and its outcome, by the code of the data path itself.

use std::io::{self, Write};
use std::sync::Arc;

use http::{HeaderMap, Method};

use super::args::ExplainArgs;
use super::trial::{Outcome, Step, Trial};
use super::{CliError, block_on, failed};
use crate::clock::SystemClock;
use crate::config::model::Config;
use crate::policy::access::{Grant, KeyProfile};
use crate::policy::key::{Account, AccountId, Environment, KeyId, KeyRecord, OrganizationId, ResourceId, Timestamp};
use crate::policy::lease::quota_state;
use crate::policy::quota::{LeaseReply, LeaseRequest, MINUTE_SECONDS, Minute, Seen, Violated};
use crate::policy::rejection::Rejection;
use crate::policy::scope::Scope;
use crate::store::{Store, StoreError, StoredKey};
use crate::telemetry::redact;

/// Explains one request on stdout. The store is opened only for `--key-id`.
pub(super) fn run(
    config: &Config,
    args: &ExplainArgs,
    open: impl FnOnce() -> Result<Arc<dyn Store>, CliError>,
) -> Result<(), CliError> {
    let now = SystemClock::shared().wall();
    let body = match &args.body {
        Some(file) => Some(std::fs::read(file).map_err(|error| failed(format!("{}: {error}", file.display())))?),
        None => None,
    };
    let out = &mut io::stdout().lock();
    match &args.key_id {
        Some(id) => {
            let (id, store) = (KeyId::parse(id).map_err(failed)?, open()?);
            let stored = block_on(store.key(id.clone()))?.map_err(failed)?;
            let stored = stored.ok_or_else(|| failed(format!("there is no key {id}")))?;
            if let Some(note) = config.quota.note(&stored.account) {
                let _ = writeln!(io::stderr(), "warning: {note}");
            }
            let windows = |profile: &KeyProfile| Ok(Some(block_on(peek(&*store, profile))?.map_err(failed)?));
            explain(config, args, Some(stored_key(config, stored)), body.as_deref(), now, &windows, out)
        }
        None => {
            let key = imagined_key(config, args, now)?.map(|profile| Ok(Arc::new(profile)));
            explain(config, args, key, body.as_deref(), now, &|_| Ok(None), out)
        }
    }
}

/// What is left of a key's windows, as the store has it; nothing is charged.
async fn peek(store: &dyn Store, profile: &KeyProfile) -> Result<LeaseReply, StoreError> {
    let request = LeaseRequest {
        target: None,
        want: 0,
        need: 0,
        limits: profile.limits,
        first: false,
        give_back: None,
        debit: None,
        seen: Seen::default(),
    };
    store.lease(profile.subject.clone(), request).await
}

/// What authentication makes of a stored key; a deleted one is unknown to it.
fn stored_key(config: &Config, key: StoredKey) -> Result<Arc<KeyProfile>, Rejection> {
    if key.record.deleted_at.is_some() {
        return Err(Rejection::InvalidKey);
    }
    let secret_expires_at = key.secrets.first().and_then(|secret| secret.expires_at);
    Ok(Arc::new(config.profile(key.record, key.account, secret_expires_at)))
}

/// The key that the arguments imagine; `None` when they name none: the request comes without a key.
fn imagined_key(config: &Config, args: &ExplainArgs, now: Timestamp) -> Result<Option<KeyProfile>, CliError> {
    let ids = |texts: &[String]| {
        texts.iter().map(|text| ResourceId::parse(text)).collect::<Result<Vec<_>, _>>().map_err(failed)
    };
    let limit = |ids: Vec<ResourceId>| if ids.is_empty() { None } else { Some(ids) };
    let scopes = args.scope.iter().map(|text| Scope::parse(text)).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let organization_id = args.organization_id.as_deref().map(OrganizationId::parse).transpose().map_err(failed)?;
    let (model_ids, dataset_ids) = (limit(ids(&args.model_id)?), limit(ids(&args.dataset_id)?));
    if scopes.is_empty() && organization_id.is_none() && model_ids.is_none() && dataset_ids.is_none() {
        return Ok(None);
    }
    let account_id = AccountId::parse("imagined").map_err(failed)?;
    let record = KeyRecord {
        id: KeyId::parse("imagined").map_err(failed)?,
        name: "imagined".to_owned(),
        key_prefix: "sm_live_".to_owned(),
        environment: Environment::Live,
        account_id: account_id.clone(),
        organization_id,
        scopes,
        model_ids,
        dataset_ids,
        allowed_addresses: None,
        expires_at: None,
        disabled: false,
        created_at: now,
        updated_at: now,
        created_by: "cli".to_owned(),
        deleted_at: None,
    };
    Ok(Some(config.profile(record, Account::unset(account_id), None)))
}

/// Prints one line per check, then the final status and code.
fn explain(
    config: &Config,
    args: &ExplainArgs,
    key: Option<Result<Arc<KeyProfile>, Rejection>>,
    body: Option<&[u8]>,
    now: Timestamp,
    windows: Windows<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let method =
        Method::from_bytes(args.method.as_bytes()).map_err(|_| failed(format!("`{}` is not a method", args.method)))?;
    let trial = Trial { method, target: &args.path, headers: HeaderMap::new(), body, key, client: args.client, now };
    let (mut steps, mut outcome) = trial.decide(config);
    if let Outcome::Forwarded(grant) = &outcome
        && let Some(profile) = grant.profile()
    {
        let (step, refused) = quota(profile, grant.route().cost, windows(profile)?, now);
        steps.push(step);
        outcome = refused.map_or(outcome, Outcome::Refused);
    }
    print(config, &steps, &outcome, out).map_err(failed)
}

/// The last check before the upstream. Without a reply of the store, for an imagined key, the windows are unused.
fn quota(profile: &KeyProfile, cost: u32, reply: Option<LeaseReply>, now: Timestamp) -> (Step, Option<Rejection>) {
    let limits = profile.limits;
    let (per_minute, per_day) = (limits.requests_per_minute, limits.requests_per_day);
    let left = reply.map_or((per_minute, per_day), |reply| (reply.minute_left, reply.day_left));
    let violated = Violated { minute: left.0 < cost, day: left.1 < cost };
    let refused = violated.minute || violated.day;
    let why = if cost > per_minute.min(per_day) {
        format!("costs {cost}, more than a whole window of {per_minute}/minute and {per_day}/day: never admitted")
    } else {
        let (minute, day) = left;
        let left = match reply {
            Some(_) => format!("costs {cost}; left: {minute} of {per_minute} this minute, {day} of {per_day} today"),
            None => format!("costs {cost} of {per_minute}/minute and {per_day}/day"),
        };
        // The store cannot tell spent tokens from those that a gateway took in advance and may still give back.
        let at_once =
            profile.in_flight.as_ref().map_or_else(String::new, |limit| format!("; at most {} at once", limit.most));
        format!(
            "{left}{at_once}; {}",
            if refused { "what gateways hold in reserve counts as used" } else { "not charged here" }
        )
    };
    let micros = reply.map_or(u64::try_from(now.unix_millis()).unwrap_or(0) * 1000, |reply| reply.now_micros);
    let minute = reply.map_or((micros / 1_000_000 / MINUTE_SECONDS) as Minute, |reply| reply.minute);
    let rejection = refused.then(|| Rejection::RateLimited(quota_state(limits, minute, micros, left, violated)));
    (Step { name: "quota", passed: !refused, why }, rejection)
}

/// What the store says of a key's windows; `None`: nothing, the key is imagined.
type Windows<'a> = &'a dyn Fn(&KeyProfile) -> Result<Option<LeaseReply>, CliError>;

/// What a client made of its request may hold a key, in the path too: it stands in the steps only, the final words are ours.
fn print(config: &Config, steps: &[Step], outcome: &Outcome, out: &mut dyn Write) -> io::Result<()> {
    for step in steps {
        writeln!(out, "{} {:<12} {}", if step.passed { '✓' } else { '✗' }, step.name, redact::keys(&step.why))?;
    }
    match outcome {
        Outcome::Forwarded(grant) => forwarded(config, grant, out),
        Outcome::Management => writeln!(
            out,
            "allowed: answered by the management API, which checks what is asked for against the key's own grant"
        ),
        Outcome::Refused(rejection) => {
            let problem = rejection.problem();
            writeln!(out, "{} {}: {}", problem.status, problem.code, problem.detail)
        }
    }
}

fn forwarded(config: &Config, grant: &Grant, out: &mut dyn Write) -> io::Result<()> {
    if grant.profile().is_none() {
        writeln!(out, "· {:<12} none: no key, nothing is charged", "quota")?;
    }
    let by_environment = config.environments.map(|environments| environments.of(grant.environment()));
    match grant.route().upstream.or(by_environment).and_then(|id| config.upstreams.get(id.0)) {
        Some(upstream) => {
            let at: Vec<&str> = upstream.endpoints.iter().map(|endpoint| &*endpoint.authority).collect();
            writeln!(out, "allowed: forwarded to {} at {}", upstream.name, at.join(", "))
        }
        None => writeln!(out, "allowed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Version;

    const FILE: &str = "listen: { public: { address: 127.0.0.1:8080 } }
store: { url: \"sqlite:x\" }
upstreams: { seeme: { endpoints: [\"http://127.0.0.1:9000\"] } }
scopes: { models:predict: [inferences:create] }
limits: { body_bytes: 1KiB, inspect_bytes: 64, inspect_total: 64 }
routes:
  - { match: \"POST /api/v1/inferences/{model_id}\", scope: inferences:create, resources: { model: path.model_id } }
  - { match: POST /v1/chat/completions, scope: models:predict, resources: { model: body./model } }
  - { match: GET /api/v1/models, scope: models:read }
  - { match: GET /o, access: authenticated, organization: query.o }
  - { match: GET /login, access: public }
  - { match: GET /dear, access: authenticated, cost: 61 }
  - { match: \"GET /m/{id}\", scope: models:read, resources: { model: path.id } }
";

    fn explain(command: &str, body: Option<&[u8]>) -> String {
        use clap::Parser;
        let (config, _) = crate::config::parse("gateway.yaml".as_ref(), FILE, &|_| None).unwrap();
        let words = ["seeme-gateway", "explain"].into_iter().chain(command.split(' '));
        let super::super::args::Command::Explain(args) =
            super::super::args::Cli::try_parse_from(words).unwrap().command
        else {
            panic!("not explain")
        };
        let now = Timestamp::from_unix_millis(0);
        let key = imagined_key(&config, &args, now).unwrap().map(|profile| Ok(Arc::new(profile)));
        let mut out = Vec::new();
        super::explain(&config, &args, key, body, now, &|_| Ok(None), &mut out).unwrap();
        format!("> {command}\n{}\n", String::from_utf8(out).unwrap())
    }

    #[test]
    fn each_check_is_told_in_the_order_of_the_decision() {
        let limited = "--scope models:predict --model-id m-1";
        let commands: &[(&str, Option<&[u8]>)] = &[
            ("POST /api/v1/inferences/m-1 --scope models:predict --model-id m-1", None),
            ("POST /api/v1/inferences/m-2 --scope models:predict --model-id m-1", None),
            ("POST /api/v1/inferences/m-2 --scope models:read", None),
            ("POST /api/v1/inferences/m-2", None),
            ("GET /api/v1/inferences/m-2", None),
            ("GET /nowhere?x=1", None),
            ("GET /a/%2e%2e/b", None),
            ("GET /login --scope a:b", None),
            ("GET /api/v1/models --scope models:read --model-id m-1", None),
            ("GET /o?o=o-2 --organization-id o-1", None),
            ("GET /o?o=o-1&o=o-1 --organization-id o-1", None),
            ("GET /api/v1/api-keys/current --scope a:b", None),
            ("POST /api/v1/me/apikeys --scope api-keys:read", None),
            ("GET /api/v1/api-keys", None),
            ("DELETE /api/v1/api-keys --scope api-keys:write", None),
            (&format!("POST /v1/chat/completions {limited}"), Some(b"{\"model\":\"m-1\"}")),
            (&format!("POST /v1/chat/completions {limited}"), Some(b"{\"model\":\"m-1\",\"Model\":\"m-2\"}")),
            (&format!("POST /v1/chat/completions {limited}"), Some(&[b' '; 100])),
            ("POST /v1/chat/completions --scope models:predict", Some(&[b' '; 2000])),
            ("POST /v1/chat/completions --scope models:predict", Some(b"not JSON")),
            ("GET /dear --scope a:b", None),
        ];
        insta::assert_snapshot!(commands.iter().map(|(command, body)| explain(command, *body)).collect::<String>());
    }

    #[test]
    fn a_key_that_a_client_put_into_the_path_is_not_shown() {
        let told = explain("GET /m/sm_live_0123456789abcdef --scope models:read", None);
        let told = told.lines().skip(1).collect::<Vec<_>>().join("\n");
        assert!(told.contains("model [redacted-key]") && !told.contains("sm_live_0"), "{told}");
    }

    #[test]
    fn a_stored_key_is_explained_with_its_state() {
        let (config, _) = crate::config::parse("gateway.yaml".as_ref(), FILE, &|_| None).unwrap();
        let args = ExplainArgs {
            method: "GET".to_owned(),
            path: "/o".to_owned(),
            key_id: None,
            scope: vec!["a:b".to_owned()],
            model_id: vec![],
            dataset_id: vec![],
            organization_id: None,
            client: None,
            body: None,
        };
        let now = Timestamp::from_unix_millis(0);
        let mut record = imagined_key(&config, &args, now).unwrap().unwrap().record;
        let mut told = |change: &dyn Fn(&mut KeyRecord)| {
            change(&mut record);
            let account = Account::unset(record.account_id.clone());
            let stored =
                StoredKey { record: record.clone(), account, secrets: vec![], former_use: None, version: Version(1) };
            let mut out = Vec::new();
            super::explain(&config, &args, Some(stored_key(&config, stored)), None, now, &|_| Ok(None), &mut out)
                .unwrap();
            String::from_utf8(out).unwrap()
        };
        assert!(told(&|_| ()).contains("allowed: forwarded"));
        assert!(told(&|record| record.disabled = true).contains("401 disabled_key"));
        assert!(told(&|record| record.deleted_at = Some(now)).contains("401 invalid_key"));
    }

    #[test]
    fn a_key_that_works_from_some_addresses_is_explained_from_where_the_request_comes() {
        use clap::Parser;
        let (config, _) = crate::config::parse("gateway.yaml".as_ref(), FILE, &|_| None).unwrap();
        let now = Timestamp::from_unix_millis(0);
        let told = |more: &str| {
            let command = format!("seeme-gateway explain GET /o --scope a:b {more}");
            let cli = super::super::args::Cli::try_parse_from(command.split_whitespace()).unwrap();
            let super::super::args::Command::Explain(args) = cli.command else { panic!("not explain") };
            let mut profile = imagined_key(&config, &args, now).unwrap().unwrap();
            profile.record.allowed_addresses =
                Some(vec![crate::policy::network::Network::parse("10.0.0.0/8").unwrap()]);
            let mut out = Vec::new();
            super::explain(&config, &args, Some(Ok(Arc::new(profile))), None, now, &|_| Ok(None), &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert!(told("").contains("in force, from 10.0.0.0"), "{}", told(""));
        assert!(told("--client ::ffff:10.9.9.9").contains("in force, from 10.9.9.9"));
        assert!(told("--client 192.0.2.1").contains("403 address_not_allowed"));
    }
}
