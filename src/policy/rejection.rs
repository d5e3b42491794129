//! Every refusal of the gateway as a value: status, stable code, reason phrase and advice.
//!
//! Only *what* is said lives here; `gateway::respond` turns it into HTTP. Codes are contract (section 4) and never change.

use std::borrow::Cow;
use std::net::IpAddr;

use super::key::Timestamp;
use super::quota::QuotaState;
use super::resource::Kind;
use super::scope::Scope;

/// A decision against a request. A refused request consumes no quota.
#[derive(Debug, Clone, PartialEq)]
pub enum Rejection {
    /// The message itself is not acceptable.
    BadRequest(Cow<'static, str>),
    /// The head is larger than `limits.header_bytes`, or has more than `limits.header_count` fields.
    HeadersTooLarge,
    /// The request target is longer than `limits.uri_bytes`.
    UriTooLong,
    /// A version of HTTP that is not spoken here.
    VersionNotSupported,
    /// An `Expect` other than `100-continue`.
    ExpectationFailed,
    /// No route has this path.
    RouteNotFound,
    /// Routes have this path, none this method; the list is the `Allow` field.
    MethodNotAllowed(String),
    /// The body is larger than the route accepts, or than may be inspected.
    BodyTooLarge(u64),
    /// A value must be read from a body that is compressed.
    UnsupportedEncoding,
    /// A WebSocket of a version other than 13 is asked for.
    WebSocketVersion,
    /// The route needs a key and none came.
    MissingKey,
    /// No key with this secret: unknown, mistyped or deleted.
    InvalidKey,
    /// The key's account is suspended.
    AccountSuspended,
    /// The key is disabled; it can be enabled again.
    DisabledKey,
    /// The key expired at this time.
    ExpiredKey(Timestamp),
    /// The key does not work from this address.
    AddressNotAllowed(IpAddr),
    /// The key lacks scopes.
    InsufficientScope(MissingScope),
    /// The key is limited to other models or datasets.
    ResourceNotAllowed(Kind),
    /// The key is limited to another organization.
    OrganizationNotAllowed,
    /// A window of the plan is used up.
    RateLimited(QuotaState),
    /// So many requests of the account are in flight already; both windows, as far as they are known.
    TooManyConcurrent(u32, Option<QuotaState>),
}

/// Which scopes would have opened the route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MissingScope {
    /// One of these would do.
    AnyOf(Vec<Scope>),
    /// All of these are missing.
    AllOf(Vec<Scope>),
}

/// What a refusal looks like from outside, whatever carries it.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// Stable machine-readable code.
    pub code: &'static str,
    /// Short, for people; also the HTTP/1.1 reason phrase. Visible ASCII only.
    pub message: Cow<'static, str>,
    /// One or two sentences with the way out.
    pub detail: Cow<'static, str>,
    /// `WWW-Authenticate`, where the status asks for one (RFC 6750 section 3).
    pub challenge: Option<String>,
}

const REALM: &str = "Bearer realm=\"seeme\"";

impl Rejection {
    /// A 400 in our own words.
    pub fn bad_request(what: impl Into<Cow<'static, str>>) -> Self {
        Self::BadRequest(what.into())
    }

    /// The message itself was not acceptable: nothing more is read from such a connection.
    pub const fn is_malformed(&self) -> bool {
        matches!(
            self,
            Self::BadRequest(_)
                | Self::HeadersTooLarge
                | Self::UriTooLong
                | Self::VersionNotSupported
                | Self::ExpectationFailed
        )
    }

    /// How this refusal is told to the client.
    pub fn problem(&self) -> Problem {
        match self {
            Self::BadRequest(what) => {
                problem(400, "bad_request", what.clone(), "The request is malformed; it was not forwarded.")
            }
            Self::HeadersTooLarge => {
                problem(431, "headers_too_large", "Request head too large", "Send fewer or shorter header fields.")
            }
            Self::UriTooLong => {
                problem(414, "uri_too_long", "Request target too long", "Shorten the path or the query.")
            }
            Self::VersionNotSupported => problem(
                505,
                "version_not_supported",
                "HTTP version not supported",
                "Speak HTTP/1.1, HTTP/1.0 or HTTP/2; the last over TLS by ALPN (h2).",
            ),
            Self::ExpectationFailed => problem(
                417,
                "expectation_failed",
                "Expectation not met",
                "The only expectation that is met is 100-continue.",
            ),
            Self::RouteNotFound => problem(
                404,
                "route_not_found",
                "No such route",
                "The gateway forwards only the paths that its configuration names.",
            ),
            Self::MethodNotAllowed(allow) => {
                problem(405, "method_not_allowed", "Method not allowed", format!("This path takes {allow}."))
            }
            Self::BodyTooLarge(limit) => problem(
                413,
                "body_too_large",
                "Request body too large",
                format!("At most {limit} bytes are accepted here."),
            ),
            Self::UnsupportedEncoding => problem(
                415,
                "unsupported_encoding",
                "Content-Encoding not supported here",
                "This key is limited to certain resources and the body names one: send it uncompressed.",
            ),
            Self::WebSocketVersion => problem(
                426,
                "websocket_version",
                "WebSocket version not supported",
                "Only version 13 of the WebSocket protocol (RFC 6455) is spoken here.",
            ),
            Self::MissingKey => Problem {
                challenge: Some(REALM.to_owned()),
                ..problem(
                    401,
                    "missing_key",
                    "API key required",
                    "Send `Authorization: Bearer sm_live_...` (the word Bearer, a space, the key) with a key from Settings > API Keys.",
                )
            },
            Self::InvalidKey => invalid_token(
                "invalid_key",
                "Invalid API key",
                "The key is unknown or was deleted; check it for typing mistakes.",
            ),
            Self::AccountSuspended => invalid_token(
                "account_suspended",
                "Account suspended",
                "All keys of this account are refused until it is resumed.",
            ),
            Self::DisabledKey => invalid_token(
                "disabled_key",
                "API key disabled",
                "The key is disabled: re-enable it in Settings > API Keys.",
            ),
            Self::ExpiredKey(at) => invalid_token(
                "expired_key",
                format!("API key expired on {at}"),
                format!("The key expired on {at}; create or rotate one in Settings > API Keys."),
            ),
            Self::AddressNotAllowed(client) => address_not_allowed(*client),
            Self::InsufficientScope(missing) => missing.problem(),
            Self::ResourceNotAllowed(kind) => problem(
                403,
                "resource_not_allowed",
                format!("Key not allowed for this {kind}"),
                format!("The key is limited to certain {kind}s and this request is not for one of them."),
            ),
            Self::OrganizationNotAllowed => problem(
                403,
                "organization_not_allowed",
                "Key not allowed for this organization",
                "The key is limited to another organization.",
            ),
            Self::RateLimited(state) => problem(
                429,
                "rate_limited",
                format!("Rate limit of {} requests per {} reached", state.shown().limit, state.shown().window),
                format!("Try again in {} s, or ask for a larger plan.", state.retry_after()),
            ),
            Self::TooManyConcurrent(most, _) => too_many_concurrent(*most),
        }
    }
}

impl MissingScope {
    fn problem(&self) -> Problem {
        let (scopes, joint) = match self {
            Self::AnyOf(scopes) => (scopes, " or "),
            Self::AllOf(scopes) => (scopes, " and "),
        };
        let names: Vec<&str> = scopes.iter().map(Scope::as_str).collect();
        Problem {
            challenge: Some(format!("{REALM}, error=\"insufficient_scope\", scope=\"{}\"", names.join(" "))),
            ..problem(
                403,
                "insufficient_scope",
                format!("Missing scope {}", names.join(joint)),
                format!("The key does not hold {}. Add the scope to the key, or use another key.", names.join(joint)),
            )
        }
    }
}

fn address_not_allowed(client: IpAddr) -> Problem {
    problem(
        403,
        "address_not_allowed",
        "Key not allowed from this address",
        format!("The key is limited to certain addresses and the request came from {client}."),
    )
}

fn too_many_concurrent(most: u32) -> Problem {
    problem(
        429,
        "too_many_concurrent",
        format!("Limit of {most} concurrent requests reached"),
        "Wait until one of the requests of this account has ended, or ask for a larger plan.",
    )
}

fn problem(
    status: u16,
    code: &'static str,
    message: impl Into<Cow<'static, str>>,
    detail: impl Into<Cow<'static, str>>,
) -> Problem {
    Problem { status, code, message: message.into(), detail: detail.into(), challenge: None }
}

fn invalid_token(
    code: &'static str,
    message: impl Into<Cow<'static, str>>,
    detail: impl Into<Cow<'static, str>>,
) -> Problem {
    Problem { challenge: Some(format!("{REALM}, error=\"invalid_token\"")), ..problem(401, code, message, detail) }
}
