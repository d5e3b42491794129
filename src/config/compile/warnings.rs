//! What compiles and probably means something else.

use std::sync::Arc;

use super::reader::Value;
use crate::config::model::{CLIENT_MANAGEMENT_PATH, Environments, Management, Plan, Quota, Upstream};
use crate::policy::pattern::{Pattern, Segment};
use crate::policy::route::{Access, Route, RouteTable, UpstreamId};

/// Where requests of a route may go.
pub(super) struct Backends<'a> {
    pub(super) upstreams: &'a [Upstream],
    pub(super) environments: Option<Environments>,
}

impl Backends<'_> {
    fn of(&self, route: &Route) -> impl Iterator<Item = &Upstream> {
        let both = || self.environments.map_or([None, None], |both| [Some(both.live), Some(both.test)]);
        let ids = route.upstream.map_or_else(both, |own| [Some(own), None]);
        ids.into_iter().flatten().filter_map(|UpstreamId(index)| self.upstreams.get(index))
    }
}

/// Warnings about the routes as a whole, at `routes`.
pub(super) fn routes(
    value: &Value<'_>,
    table: &RouteTable,
    backends: &Backends<'_>,
    management: &Management,
    quota: Option<&Quota>,
) {
    shadowed(value, table, management);
    unbound_organizations(value, table);
    unproven(value, table, backends);
    unstripped(value, table, backends);
    quota.inspect(|quota| unaffordable(value, table, quota));
}

/// Routes where the backend cannot tell the gateway's identity headers from anybody's. A public route carries none.
fn unproven(value: &Value<'_>, table: &RouteTable, backends: &Backends<'_>) {
    let with_key = || table.routes().iter().filter(|route| route.access != Access::Public);
    let is_unproven = |route: &&Arc<Route>| {
        let is_open = |upstream: &Upstream| upstream.set_headers.is_empty() && upstream.tls.client.is_none();
        !route.forward_authorization && backends.of(route).any(is_open)
    };
    let (all, unproven) = (with_key().count(), with_key().filter(is_unproven).count());
    let on = match (unproven, all) {
        (0, _) => return,
        (1, 1) => String::new(),
        (some, all) if some < all => format!(" on {some} of {all} routes"),
        (_, all) => format!(" on any of {all} routes"),
    };
    value.warning(
        format!("nothing proves to the backend that a request comes from the gateway{on}"),
        "give the upstream set_headers: { X-Proof: { file: PATH } } and check that there, let only the gateway reach it, or set \
         forward_authorization on routes that it checks itself",
    );
}

/// Upstreams whose `strip_prefix` no path that gets there can have.
fn unstripped(value: &Value<'_>, table: &RouteTable, backends: &Backends<'_>) {
    for upstream in backends.upstreams.iter().filter(|upstream| !upstream.strip_prefix.is_empty()) {
        let goes_there = |route: &&Arc<Route>| backends.of(route).any(|other| other.name == upstream.name);
        if !table.routes().iter().filter(goes_there).any(|route| may_begin_with(&route.pattern, &upstream.strip_prefix))
        {
            value.warning(
                format!("no route to `{}` has paths below its strip_prefix: nothing is stripped", upstream.name),
                "write the prefix as clients send it, or remove it",
            );
        }
    }
}

fn may_begin_with(pattern: &Pattern, prefix: &[String]) -> bool {
    let mut segments = pattern.segments().iter();
    for expected in prefix {
        match segments.next() {
            Some(Segment::Tail(_)) => return true,
            Some(Segment::Variable(_)) => {}
            Some(Segment::Literal(literal)) if **literal == **expected => {}
            _ => return false,
        }
    }
    true
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
