//! Which management call a request is: from method, path and query to a [`Call`], or why it is none.
//!
//! The key calls live at two addresses: `management.base_path`, and where the published client looks for them. Pure: nothing
//! here knows who calls; parameters are validated by the operation itself, after the caller's right to see the key was.

use std::borrow::Cow;
use std::sync::Arc;

use http::Method;
use percent_encoding::percent_decode_str;

use super::body::Nulls;
use super::problem::{BadMember, ManagementError};
use crate::config::model::CLIENT_MANAGEMENT_PATH;
use crate::policy::key::KeyId;
use crate::policy::path::RequestPath;
use crate::policy::rejection::Rejection;
use crate::policy::scope::Scope;

/// Which of the two addresses was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// `management.base_path`
    BasePath,
    /// [`CLIENT_MANAGEMENT_PATH`]: absent scopes are the caller's own.
    Published,
}

/// What is asked for. A key id is `None` when the path holds something that can be no id: then it is nobody's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// `GET`
    List,
    /// `POST`
    Create,
    /// `GET /current`
    Current,
    /// `GET /{id}`
    Get(Option<KeyId>),
    /// `PATCH` or `PUT /{id}`
    Update(Option<KeyId>, Nulls),
    /// `DELETE /{id}`
    Delete(Option<KeyId>),
    /// `GET /{id}/usage`
    Usage(Option<KeyId>),
    /// `GET /{id}/events`
    Events(Option<KeyId>),
}

/// A recognised management call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Where.
    pub address: Address,
    /// What.
    pub operation: Operation,
    /// With which parameters.
    pub query: Query,
    endpoint: Arc<str>,
}

/// The parameters of a call, decoded, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

/// A path below an address.
enum Place {
    Collection,
    Current,
    Key(Option<KeyId>),
    Usage(Option<KeyId>),
    Events(Option<KeyId>),
}

impl Call {
    /// `None`: not a management path. Management paths win over routes, so what is refused here is not looked for elsewhere.
    pub fn recognise(
        base_path: &str,
        method: &Method,
        path: &RequestPath<'_>,
        query: Option<&str>,
    ) -> Option<Result<Self, Rejection>> {
        let addresses = [(base_path, Address::BasePath), (CLIENT_MANAGEMENT_PATH, Address::Published)];
        let (root, address, rest) =
            addresses.iter().find_map(|&(root, address)| Some((root, address, below(root, path.segments())?)))?;
        let rest: Vec<&str> = rest.iter().map(AsRef::as_ref).collect();
        let Some((place, template)) = Place::of(&rest) else { return Some(Err(Rejection::RouteNotFound)) };
        let Some(operation) = place.operation(method) else {
            return Some(Err(Rejection::MethodNotAllowed(place.allow().to_owned())));
        };
        let endpoint = format!("{method} {root}{template}").into();
        Some(Ok(Self { address, operation, query: Query::parse(query.unwrap_or_default()), endpoint }))
    }

    /// The scope it needs; `None`: any key will do.
    pub fn scope(&self) -> Option<Scope> {
        let scope = match self.operation {
            Operation::Current => return None,
            Operation::List | Operation::Get(_) | Operation::Usage(_) | Operation::Events(_) => "api-keys:read",
            Operation::Create | Operation::Update(..) | Operation::Delete(_) => "api-keys:write",
        };
        Some(Scope::parse(scope).expect("a scope of ours is well-formed"))
    }

    /// Method and template, as usage and logs name it: `PATCH /api/v1/api-keys/{id}`.
    pub fn endpoint(&self) -> &Arc<str> {
        &self.endpoint
    }

    /// Whether it takes a body.
    pub const fn takes_body(&self) -> bool {
        matches!(self.operation, Operation::Create | Operation::Update(..))
    }
}

impl Place {
    fn of(rest: &[&str]) -> Option<(Self, &'static str)> {
        let id = |text: &str| KeyId::parse(text).ok();
        match *rest {
            [] => Some((Self::Collection, "")),
            ["current"] => Some((Self::Current, "/current")),
            // Reserved by the contract: never key ids. Whoever serves them takes them out before this.
            ["openapi.json" | "advice" | "", ..] => None,
            [key] => Some((Self::Key(id(key)), "/{id}")),
            [key, "usage"] => Some((Self::Usage(id(key)), "/{id}/usage")),
            [key, "events"] => Some((Self::Events(id(key)), "/{id}/events")),
            _ => None,
        }
    }

    fn operation(&self, method: &Method) -> Option<Operation> {
        // GET also serves HEAD, as on every route.
        let read = method == Method::GET || method == Method::HEAD;
        match self {
            Self::Collection if read => Some(Operation::List),
            Self::Collection if method == Method::POST => Some(Operation::Create),
            Self::Current if read => Some(Operation::Current),
            Self::Key(id) if read => Some(Operation::Get(id.clone())),
            Self::Key(id) if method == Method::PATCH => Some(Operation::Update(id.clone(), Nulls::Clear)),
            Self::Key(id) if method == Method::PUT => Some(Operation::Update(id.clone(), Nulls::Leave)),
            Self::Key(id) if method == Method::DELETE => Some(Operation::Delete(id.clone())),
            Self::Usage(id) if read => Some(Operation::Usage(id.clone())),
            Self::Events(id) if read => Some(Operation::Events(id.clone())),
            _ => None,
        }
    }

    const fn allow(&self) -> &'static str {
        match self {
            Self::Collection => "GET, HEAD, POST",
            Self::Key(_) => "DELETE, GET, HEAD, PATCH, PUT",
            Self::Current | Self::Usage(_) | Self::Events(_) => "GET, HEAD",
        }
    }
}

impl Query {
    fn parse(query: &str) -> Self {
        let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(n, v)| (decoded(n), decoded(v)))
                .collect(),
        )
    }

    /// A parameter that may be given once. Parameters that nobody asks for are ignored.
    pub fn one(&self, name: &str) -> Result<Option<&str>, ManagementError> {
        let mut values = self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err(ManagementError::InvalidQuery(vec![BadMember::new(name, "given more than once")])),
        }
    }
}

/// The segments below `root`, if the path is `root` or below it.
fn below<'a, 'b>(root: &str, segments: &'a [Cow<'b, str>]) -> Option<&'a [Cow<'b, str>]> {
    let (mut root, mut rest) = (root, segments);
    while !root.is_empty() {
        let (first, others) = rest.split_first()?;
        // Compared where it stands: on every request's path.
        let after = root.strip_prefix('/')?.strip_prefix(&**first)?;
        if !after.is_empty() && !after.starts_with('/') {
            return None;
        }
        (root, rest) = (after, others);
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recognise(method: &str, target: &str) -> Option<Result<Call, Rejection>> {
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        Call::recognise("/api/v1/api-keys", &method, &RequestPath::parse(path).unwrap(), query)
    }

    fn call(method: &str, target: &str) -> Call {
        recognise(method, target).expect(target).expect(target)
    }

    #[test]
    fn each_call_of_the_contract_is_recognised_at_both_addresses() {
        let id = || KeyId::parse("k-1").ok();
        let cases = [
            ("POST", "", Operation::Create, "", Some("api-keys:write")),
            ("GET", "", Operation::List, "", Some("api-keys:read")),
            ("HEAD", "", Operation::List, "", Some("api-keys:read")),
            ("GET", "/current", Operation::Current, "/current", None),
            ("GET", "/k-1", Operation::Get(id()), "/{id}", Some("api-keys:read")),
            ("PATCH", "/k-1", Operation::Update(id(), Nulls::Clear), "/{id}", Some("api-keys:write")),
            ("PUT", "/k-1", Operation::Update(id(), Nulls::Leave), "/{id}", Some("api-keys:write")),
            ("DELETE", "/k-1", Operation::Delete(id()), "/{id}", Some("api-keys:write")),
            ("GET", "/k-1/usage", Operation::Usage(id()), "/{id}/usage", Some("api-keys:read")),
            ("GET", "/k-1/events", Operation::Events(id()), "/{id}/events", Some("api-keys:read")),
            ("GET", "/a%20b", Operation::Get(None), "/{id}", Some("api-keys:read")),
        ];
        for (root, address) in [("/api/v1/api-keys", Address::BasePath), (CLIENT_MANAGEMENT_PATH, Address::Published)] {
            for (method, below, operation, template, scope) in cases.clone() {
                let call = call(method, &format!("{root}{below}"));
                assert_eq!((call.address, &call.operation), (address, &operation), "{method} {root}{below}");
                assert_eq!(**call.endpoint(), *format!("{method} {root}{template}"));
                assert_eq!(call.scope().as_ref().map(Scope::as_str), scope);
            }
        }
    }

    #[test]
    fn other_paths_are_left_to_the_routes() {
        for path in [
            "/",
            "/api/v1",
            "/api/v1/api-key",
            "/api/v1/api-keys2",
            "/api/v1/me",
            "/api/v1/me/context",
            "/x/api/v1/api-keys",
        ] {
            assert!(recognise("GET", path).is_none(), "{path}");
        }
    }

    #[test]
    fn what_lies_below_and_is_no_call_is_not_found() {
        for path in ["/", "/openapi.json", "/advice", "/k/usage/x", "/k/rotate2", "/k/", "/current/usage/x"] {
            let found = recognise("GET", &format!("/api/v1/api-keys{path}"));
            assert_eq!(found, Some(Err(Rejection::RouteNotFound)), "{path}");
        }
    }

    #[test]
    fn another_method_is_told_which_ones_there_are() {
        for (method, path, allow) in [
            ("DELETE", "", "GET, HEAD, POST"),
            ("POST", "/k-1", "DELETE, GET, HEAD, PATCH, PUT"),
            ("DELETE", "/current", "GET, HEAD"),
            ("POST", "/k-1/usage", "GET, HEAD"),
            ("OPTIONS", "/k-1/events", "GET, HEAD"),
        ] {
            let found = recognise(method, &format!("/api/v1/api-keys{path}"));
            assert_eq!(found, Some(Err(Rejection::MethodNotAllowed(allow.to_owned()))), "{method} {path}");
        }
    }

    #[test]
    fn parameters_are_decoded_and_given_once() {
        let query = call("GET", "/api/v1/api-keys?include=deleted&a=%41+b&twice=1&twice=2&&flag").query;
        assert_eq!(query.one("include").unwrap(), Some("deleted"));
        assert_eq!(query.one("a").unwrap(), Some("A b"));
        assert_eq!(query.one("flag").unwrap(), Some(""));
        assert_eq!(query.one("absent").unwrap(), None);
        assert!(matches!(query.one("twice"), Err(ManagementError::InvalidQuery(bad)) if bad[0].member == "twice"));
    }
}
