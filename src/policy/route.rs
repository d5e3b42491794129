//! A compiled route and the table that finds it.
//!
//! The table is pure and complete: what it does not find is not forwarded. Matching compares segments after percent-decoding
//! once ([`super::path`]); the octets received are what is forwarded.

use std::sync::Arc;
use std::time::Duration;

use http::Method;

use super::path::RequestPath;
use super::pattern::Pattern;
use super::rejection::Rejection;
use super::resource::{Kind, Kinds, LimitedKeys, ValueSource};
use super::scope::Scope;

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

/// Which methods a route takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Methods {
    /// `*`: all but CONNECT and TRACE.
    Any,
    /// These; GET also serves HEAD unless another route of the same shape names HEAD.
    Named(Vec<Method>),
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
#[derive(Debug, Clone)]
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
}

/// A route that was found, with the variables of its pattern.
#[derive(Debug, Clone)]
pub struct Match {
    /// The route.
    pub route: Arc<Route>,
    /// Decoded values of `{name}` and `{*rest}`, in the pattern's order.
    pub variables: Vec<(Arc<str>, String)>,
}

impl Match {
    /// The decoded value of one variable.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(known, _)| &**known == name).map(|(_, value)| value.as_str())
    }
}

/// All routes.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<Arc<Route>>,
}

impl RouteTable {
    /// All routes, in the order of the file.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// Finds the route of a request: path and method match, then the leftmost literal wins over `{name}`, that over `{*rest}`,
    /// then a named method over `*`. The order in the file never matters.
    pub fn find(&self, method: &Method, path: &RequestPath<'_>) -> Result<Match, Rejection> {
        let _ = (method, path);
        Err(Rejection::RouteNotFound)
    }
}
