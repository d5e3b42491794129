//! What compiles and probably means something else.

use super::reader::Value;
use crate::config::model::{CLIENT_MANAGEMENT_PATH, Management};
use crate::policy::pattern::{Pattern, Segment};
use crate::policy::route::{Access, RouteTable};

/// Warnings about the routes as a whole, at `routes`.
pub(super) fn routes(value: &Value<'_>, table: &RouteTable, management: &Management) {
    shadowed(value, table, management);
    unbound_organizations(value, table);
    if !table.routes().iter().any(|route| route.forward_authorization) {
        value.warning(
            "nothing proves to the backend that a request comes from the gateway",
            "let only the gateway reach the backend, or set forward_authorization on routes that it checks itself",
        );
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
