//! A compiled route; the table that finds it is [`super::table`].
//!
//! The table is pure and complete: what it does not find is not forwarded. Matching compares segments after percent-decoding
//! once ([`super::path`]); the octets received are what is forwarded.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Method;

use super::pattern::Pattern;
use super::resource::{Kind, Kinds, LimitedKeys, ValueSource};
use super::scope::Scope;

pub use super::table::{Conflict, Match, RouteTable};

/// Index of an upstream in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UpstreamId(pub usize);

/// Index of a route in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RouteId(pub usize);

/// Who may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Everybody, without a key.
    Public,
    /// Any valid key.
    Authenticated,
    /// A key that holds one of these.
    AnyScope(Vec<Scope>),
    /// A key that holds all of these.
    AllScopes(Vec<Scope>),
}

impl Access {
    /// The scopes it names.
    pub fn scopes(&self) -> &[Scope] {
        match self {
            Self::Public | Self::Authenticated => &[],
            Self::AnyScope(scopes) | Self::AllScopes(scopes) => scopes,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |joint: &str| self.scopes().iter().map(Scope::as_str).collect::<Vec<_>>().join(joint);
        match self {
            Self::Public => f.write_str("public"),
            Self::Authenticated => f.write_str("any key"),
            Self::AnyScope(_) => f.write_str(&joined(" or ")),
            Self::AllScopes(_) => f.write_str(&joined(" and ")),
        }
    }
}

/// Which methods a route takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Methods {
    /// `*`: all but CONNECT and TRACE.
    Any,
    /// These; GET also serves HEAD unless another route of the same shape names HEAD.
    Named(Vec<Method>),
}

impl Methods {
    /// The methods that `*` is counted under by name; any other is the bounded `*`.
    pub const KNOWN: [Method; 7] =
        [Method::DELETE, Method::GET, Method::HEAD, Method::OPTIONS, Method::PATCH, Method::POST, Method::PUT];

    /// Whether a request with `method` may be for such a route, when no other route of the same shape is closer.
    pub fn takes(&self, method: &Method) -> bool {
        match self {
            Self::Any => !matches!(*method, Method::CONNECT | Method::TRACE),
            Self::Named(named) => named.contains(method) || (*method == Method::HEAD && named.contains(&Method::GET)),
        }
    }

    /// `METHOD /template` for every method that it takes by a known name, and the bounded one for the rest.
    pub fn endpoints(&self, template: &str) -> (Vec<(Method, Arc<str>)>, Arc<str>) {
        let endpoint = |method: &Method| (method.clone(), format!("{method} {template}").into());
        let endpoints = match self {
            Self::Any => Self::KNOWN.iter().map(endpoint).collect(),
            Self::Named(named) => {
                let head = (named.contains(&Method::GET) && !named.contains(&Method::HEAD)).then_some(&Method::HEAD);
                named.iter().chain(head).map(endpoint).collect()
            }
        };
        (endpoints, format!("* {template}").into())
    }
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Named(named) => {
                let names: Vec<&str> = named.iter().map(Method::as_str).collect();
                f.write_str(&names.join("|"))
            }
        }
    }
}

/// Which values of the request name a resource.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bindings {
    /// `resources.model`
    pub model: Option<ValueSource>,
    /// `resources.dataset`
    pub dataset: Option<ValueSource>,
    /// `organization`
    pub organization: Option<ValueSource>,
}

impl Bindings {
    /// The source of a kind's value.
    pub fn of(&self, kind: Kind) -> Option<&ValueSource> {
        match kind {
            Kind::Model => self.model.as_ref(),
            Kind::Dataset => self.dataset.as_ref(),
        }
    }
}

/// One entry of `routes:`, groups resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its place in the table.
    pub id: RouteId,
    /// Methods.
    pub methods: Methods,
    /// Path.
    pub pattern: Pattern,
    /// Who may pass.
    pub access: Access,
    /// What it binds.
    pub bindings: Bindings,
    /// The kinds that it touches: bound, named by a scope, or listed in `touches`.
    pub touches: Kinds,
    /// What limited keys may do where it touches a kind and binds none.
    pub limited_keys: LimitedKeys,
    /// A fixed upstream; `None`: by environment.
    pub upstream: Option<UpstreamId>,
    /// Keep `Authorization` on the way to the upstream.
    pub forward_authorization: bool,
    /// Tokens that a request costs.
    pub cost: u32,
    /// To the response head, if other than the global.
    pub response_timeout: Option<Duration>,
    /// Between response bytes, if other than the global.
    pub idle_timeout: Option<Duration>,
    /// Bytes of a body, if other than the global.
    pub body_bytes: Option<u64>,
    /// `METHOD /template`, one for each method in [`Self::endpoint`]'s order; made once so that counting allocates nothing.
    pub endpoints: Vec<(Method, Arc<str>)>,
    /// The endpoint of a method that is not among the known ones.
    pub other_endpoint: Arc<str>,
    /// Line of gateway.yaml that defines it.
    pub line: usize,
}

impl Route {
    /// Method and route template, as usage and logs name it. Bounded: a method that a client made up is `*`.
    pub fn endpoint(&self, method: &Method) -> &Arc<str> {
        self.endpoints.iter().find(|(known, _)| known == method).map_or(&self.other_endpoint, |(_, endpoint)| endpoint)
    }

    /// As `match:` would say it, groups resolved: `GET|PUT /api/v1/models/{model_id}`.
    pub fn label(&self) -> String {
        format!("{} {}", self.methods, self.pattern.template())
    }
}

#[cfg(test)]
impl Route {
    /// A public route from `METHOD[|METHOD…] PATH`, for tests of everything that needs one.
    pub(crate) fn sample(text: &str) -> Self {
        let (methods, path) = text.split_once(' ').unwrap();
        let methods = match methods {
            "*" => Methods::Any,
            _ => Methods::Named(methods.split('|').map(|name| name.parse().unwrap()).collect()),
        };
        let pattern = Pattern::parse(path).unwrap();
        let (endpoints, other_endpoint) = methods.endpoints(pattern.template());
        Self {
            id: RouteId(0),
            methods,
            pattern,
            access: Access::Public,
            bindings: Bindings::default(),
            touches: Kinds::default(),
            limited_keys: LimitedKeys::Deny,
            upstream: None,
            forward_authorization: false,
            cost: 1,
            response_timeout: None,
            idle_timeout: None,
            body_bytes: None,
            endpoints,
            other_endpoint,
            line: 0,
        }
    }
}
