//! What compiles and probably means something else.

use super::reader::Value;
use crate::config::model::{CLIENT_MANAGEMENT_PATH, Management, Plan, Quota};
use crate::policy::pattern::{Pattern, Segment};
use crate::policy::route::{Access, RouteTable};

/// Warnings about the routes as a whole, at `routes`.
pub(super) fn routes(value: &Value<'_>, table: &RouteTable, management: &Management, quota: Option<&Quota>) {
    shadowed(value, table, management);
    unbound_organizations(value, table);
    unproven(value, table);
    quota.inspect(|quota| unaffordable(value, table, quota));
}

/// Routes where the backend cannot tell the gateway's identity headers from anybody's. A public route carries none.
fn unproven(value: &Value<'_>, table: &RouteTable) {
    let with_key = || table.routes().iter().filter(|route| route.access != Access::Public);
    let (all, unproven) = (with_key().count(), with_key().filter(|route| !route.forward_authorization).count());
    let on = match (unproven, all) {
        (0, _) => return,
        (1, 1) => String::new(),
        (some, all) if some < all => format!(" on {some} of {all} routes"),
        (_, all) => format!(" on any of {all} routes"),
    };
    value.warning(
        format!("nothing proves to the backend that a request comes from the gateway{on}"),
        "let only the gateway reach the backend, or set forward_authorization on routes that it checks itself",
    );
}

/// Routes that cost more than a whole window of some plan: its accounts are refused there for ever.
fn unaffordable(value: &Value<'_>, table: &RouteTable, quota: &Quota) {
    for route in table.routes() {
        let too_small = quota.plans.iter().filter_map(|(name, plan)| match plan {
            Plan::Fixed(limits) => {
                let smaller = limits.windows.requests_per_minute.min(limits.windows.requests_per_day);
                (route.cost > smaller).then_some((name, smaller))
            }
            Plan::Custom => None,
        });
        if let Some((name, limit)) = too_small.min_by_key(|(_, limit)| *limit) {
            value.warning(
                format!(
                    "`{}` in line {} costs {}, more than the {limit} of the plan `{name}`: its accounts always get 429 there",
                    route.label(),
                    route.line,
                    route.cost
                ),
                "lower the cost, or raise the plan's limit",
            );
        }
    }
}

fn shadowed(value: &Value<'_>, table: &RouteTable, management: &Management) {
    for base in [management.base_path.as_str(), CLIENT_MANAGEMENT_PATH] {
        let Ok(base_path) = Pattern::parse(base) else { continue };
        for route in table.routes().iter().filter(|route| below(&route.pattern, &base_path)) {
            value.warning(
                format!("`{}` in line {} is never used: {base} is the management API", route.label(), route.line),
                "remove the route, or set management.base_path",
            );
        }
    }
}

fn below(pattern: &Pattern, base: &Pattern) -> bool {
    pattern.segments().len() >= base.segments().len()
        && pattern
            .segments()
            .iter()
            .zip(base.segments())
            .all(|pair| matches!(pair, (Segment::Literal(a), Segment::Literal(b)) if a == b))
}

fn unbound_organizations(value: &Value<'_>, table: &RouteTable) {
    let unbound: Vec<String> = table
        .routes()
        .iter()
        .filter(|route| route.access != Access::Public && route.bindings.organization.is_none())
        .map(|route| format!("`{}`", route.label()))
        .collect();
    if unbound.is_empty() {
        return;
    }
    let named = unbound.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    let more = if unbound.len() > 3 { ", …" } else { "" };
    let count = unbound.len();
    let routes = if count == 1 { "1 route does".to_owned() } else { format!("{count} routes do") };
    value.warning(
        format!("{routes} not bind the organization: {named}{more}"),
        "the backend must honour X-SeeMe-Organization-Id there, or bind it with organization: path.NAME",
    );
}
