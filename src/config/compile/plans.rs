//! `plans`, `default_plan`, `quota` and `scopes`: what keys may do and how often.

use std::sync::Arc;

use super::reader::{Map, Value, did_you_mean, shorten};
use crate::config::model::{Plan, Quota, QuotaSubject};
use crate::policy::key::{PlanLimits, QuotaLimits};
use crate::policy::scope::{Scope, ScopeCatalog};

pub(super) fn quota(root: &Map<'_>) -> Option<Quota> {
    let plans = match root.get("plans") {
        Some(value) => plans(&value),
        None if root.has("plans") => None,
        None => Some(default_plans()),
    };
    let subject = root.get("quota").and_then(|value| value.mapping(&["subject"])?.get("subject")).and_then(|value| {
        value.choice(&[
            ("account", QuotaSubject::Account),
            ("key", QuotaSubject::Key),
            ("organization", QuotaSubject::Organization),
        ])
    });
    let plans = plans?;
    let default_plan = default_plan(root, &plans)?;
    Some(Quota { plans, default_plan, subject: subject.unwrap_or(QuotaSubject::Account) })
}

/// The plans of the contract, for a file that has none.
fn default_plans() -> Vec<(Arc<str>, Plan)> {
    let fixed = |requests_per_minute, requests_per_day| {
        let windows = QuotaLimits { requests_per_minute, requests_per_day };
        Plan::Fixed(PlanLimits { windows, concurrent_requests: None })
    };
    vec![("free".into(), fixed(60, 1000)), ("pro".into(), fixed(300, 50_000)), ("enterprise".into(), Plan::Custom)]
}

fn plans(value: &Value<'_>) -> Option<Vec<(Arc<str>, Plan)>> {
    let members = value.members()?;
    if members.is_empty() {
        return value.mistake("there is no plan", "add free: { requests_per_minute: 60, requests_per_day: 1000 }");
    }
    let mut plans = Vec::with_capacity(members.len());
    let mut complete = true;
    for (name, _, value) in &members {
        // The name goes out in the X-SeeMe-Plan header.
        if name.is_empty() || name.len() > 64 || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            value
                .mistake::<()>(format!("`{}` is not a name for a plan", shorten(name)), "use letters, digits, _ and -");
        }
        match plan(value) {
            Some(plan) => plans.push((Arc::from(*name), plan)),
            None => complete = false,
        }
    }
    complete.then_some(plans)
}

fn plan(value: &Value<'_>) -> Option<Plan> {
    if value.peek() == Some("custom") {
        return Some(Plan::Custom);
    }
    if !value.is_mapping() {
        return value
            .mistake("a plan is `custom` or has limits", "write { requests_per_minute: 60, requests_per_day: 1000 }");
    }
    let map = value.mapping(&["requests_per_minute", "requests_per_day", "concurrent_requests"])?;
    let count = |value: &Value<'_>| value.count(1, u64::from(u32::MAX)).and_then(|number| u32::try_from(number).ok());
    let window =
        |name: &str| count(&map.require(name, "write a number, or `custom` for limits that come with the account")?);
    let concurrent_requests = map.read("concurrent_requests", None, |value| count(value).map(Some));
    let (minute, day) = (window("requests_per_minute"), window("requests_per_day"));
    let windows = QuotaLimits { requests_per_minute: minute?, requests_per_day: day? };
    Some(Plan::Fixed(PlanLimits { windows, concurrent_requests }))
}

fn default_plan(root: &Map<'_>, plans: &[(Arc<str>, Plan)]) -> Option<(Arc<str>, PlanLimits)> {
    let value = root.get("default_plan");
    if value.is_none() && root.has("default_plan") {
        return None;
    }
    let name = value.as_ref().map_or(Some("free"), Value::text)?;
    let blame = value.clone().or_else(|| root.get("plans")).unwrap_or_else(|| root.value.clone());
    match plans.iter().find(|(plan, _)| **plan == *name) {
        Some((name, Plan::Fixed(limits))) => Some((name.clone(), *limits)),
        Some((_, Plan::Custom)) => blame.mistake(
            format!(
                "the default plan `{}` is custom: an account without limits of its own would have none",
                shorten(name)
            ),
            "name a plan with limits",
        ),
        None if value.is_none() => blame.mistake(
            "there is no plan `free`, the default",
            "add `default_plan:` with the plan of accounts that have none",
        ),
        None => blame.mistake(
            format!("there is no plan `{}`", shorten(name)),
            &match did_you_mean(name, plans.iter().map(|(plan, _)| &**plan)) {
                near if near.is_empty() => {
                    format!("known plans: {}", plans.iter().map(|(plan, _)| &**plan).collect::<Vec<_>>().join(", "))
                }
                near => near,
            },
        ),
    }
}

pub(super) fn scopes(value: Option<&Value<'_>>) -> ScopeCatalog {
    let members = value.and_then(Value::members).unwrap_or_default();
    let mut catalog = Vec::with_capacity(members.len());
    for (name, _, value) in &members {
        let alias = match Scope::parse(name) {
            Ok(alias) => Some(alias),
            Err(error) => value.misread(&error, ""),
        };
        let stands_for = scope_list(value);
        for item in value.items().unwrap_or_default() {
            if item.peek().and_then(|text| Scope::parse(text).ok()).is_some_and(|scope| scope.is_reserved()) {
                item.mistake::<()>("this scope can stand behind no other", "remove it: keys name it in full");
            }
        }
        if let (Some(alias), Some(stands_for)) = (alias, stands_for) {
            catalog.push((alias, stands_for));
        }
    }
    ScopeCatalog::new(catalog)
}

/// A list of scopes that is not empty.
pub(super) fn scope_list(value: &Value<'_>) -> Option<Vec<Scope>> {
    let items = value.items()?;
    if items.is_empty() {
        return value.mistake("the list is empty", "name at least one scope");
    }
    let scopes: Vec<_> = items.iter().map(scope).collect();
    scopes.into_iter().collect()
}

pub(super) fn scope(value: &Value<'_>) -> Option<Scope> {
    match Scope::parse(value.text()?) {
        Ok(scope) => Some(scope),
        Err(error) => value.misread(&error, ""),
    }
}
