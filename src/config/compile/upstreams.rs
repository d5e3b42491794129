//! `upstreams` and `environments`: the backends and which of them serves which kind of key.

use std::path::Path;
use std::time::Duration;

use super::reader::{Map, Value, did_you_mean, shorten};
use super::tls;
use super::unbuilt::{self, Shape};
use crate::config::model::{Endpoint, Environments, Upstream, UpstreamTls};
use crate::policy::route::UpstreamId;

const MEMBERS: &[&str] = &[
    "endpoints",
    "connect_timeout",
    "http2",
    "tls",
    "host",
    "strip_prefix",
    "add_prefix",
    "set_headers",
    "identity",
    "health_check",
    "outlier",
    "retries",
    "max_requests",
    "weights",
    "dns_refresh",
];

const UNBUILT: &[(&str, Shape)] = &[
    ("strip_prefix", unbuilt::TEXT),
    ("add_prefix", unbuilt::TEXT),
    ("set_headers", unbuilt::SET_HEADERS),
    ("identity", unbuilt::IDENTITY),
    ("health_check", unbuilt::HEALTH_CHECK),
    ("outlier", unbuilt::OUTLIER),
    ("retries", unbuilt::RETRIES),
    ("max_requests", unbuilt::COUNT),
    ("weights", unbuilt::WEIGHTS),
    ("dns_refresh", unbuilt::DURATION),
];

pub(super) fn upstreams(value: &Value<'_>, file: &Path) -> Option<Vec<Upstream>> {
    let members = value.members()?;
    if members.is_empty() {
        return value.mistake("there is no upstream", "add seeme: { endpoints: [\"http://127.0.0.1:9000\"] }");
    }
    let mut upstreams = Vec::with_capacity(members.len());
    for (name, _, value) in &members {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(word) {
            value.mistake::<()>(format!("`{}` is not a name", shorten(name)), "use letters, digits, _ and -");
        }
        // Also after a mistake inside, so that the name is known to the routes.
        upstreams.push(upstream(name, value, file));
    }
    Some(upstreams)
}

fn upstream(name: &str, value: &Value<'_>, file: &Path) -> Upstream {
    let mut upstream = Upstream {
        name: name.into(),
        endpoints: Vec::new(),
        connect_timeout: Duration::from_secs(1),
        http2: false,
        tls: UpstreamTls::default(),
    };
    let Some(map) = value.mapping(MEMBERS) else { return upstream };
    for (name, shape) in UNBUILT {
        if let Some(value) = map.get(name) {
            unbuilt::refuse::<()>(&value, shape);
        }
    }
    if let Some(value) = map.get("host")
        && value.text().is_some_and(|host| host != "preserve")
    {
        value.not_yet::<()>("write host: preserve, the default");
    }
    upstream.connect_timeout = map.duration("connect_timeout", upstream.connect_timeout);
    upstream.http2 = map.read("http2", false, |value| value.flag());
    upstream.endpoints = endpoints(&map).unwrap_or_default();
    let encrypted = upstream.endpoints.iter().any(|endpoint| endpoint.encrypted);
    upstream.tls =
        map.read("tls", UpstreamTls::default(), |value| tls::upstream(value, file, encrypted || !map.has("endpoints")));
    upstream
}

fn endpoints(map: &Map<'_>) -> Option<Vec<Endpoint>> {
    let value = map.require("endpoints", "add endpoints: [\"http://HOST:PORT\"]")?;
    let endpoints: Vec<_> = value.items()?.iter().map(endpoint).collect();
    if endpoints.len() > 1 {
        return value.mistake("more than one endpoint is not enforced by this build yet", "keep one");
    }
    if endpoints.is_empty() {
        return value.mistake("there is no endpoint", "add \"http://HOST:PORT\"");
    }
    endpoints.into_iter().collect()
}

/// `http://host:port`, or https.
fn endpoint(value: &Value<'_>) -> Option<Endpoint> {
    const LIKE: &str = "write http://HOST:PORT";
    let text = value.text()?;
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (scheme, rest.strip_suffix('/').unwrap_or(rest)),
        None => return value.mistake(format!("`{}` is not a URL", shorten(text)), LIKE),
    };
    let (encrypted, usual_port) = match scheme {
        "http" => (false, 80),
        "https" => (true, 443),
        _ => {
            let near = did_you_mean(scheme, ["http", "https"]);
            let mend = if near.is_empty() { LIKE } else { &near };
            return value.mistake(format!("`{}` is not http or https", shorten(scheme)), mend);
        }
    };
    if rest.contains('@') {
        return value.mistake("an endpoint has no user and password", LIKE);
    }
    if rest.contains(['/', '?', '#']) {
        return value.mistake(format!("`{}` has a path: an endpoint is host and port only", shorten(text)), LIKE);
    }
    match rest.parse::<http::uri::Authority>() {
        Ok(authority) if !authority.host().is_empty() && authority.port_u16() != Some(0) => {
            match authority.port_u16() {
                Some(_) => Some(Endpoint { authority: rest.into(), encrypted }),
                None if authority.port().is_none() && !rest.ends_with(':') => {
                    Some(Endpoint { authority: format!("{rest}:{usual_port}").into(), encrypted })
                }
                None => value.mistake(format!("`{}` has no valid port", shorten(text)), LIKE),
            }
        }
        _ => value.mistake(format!("`{}` is not a host and port", shorten(text)), LIKE),
    }
}

/// Which upstream serves which environment; the only one serves both. `None`: every route names its own.
pub(super) fn environments(root: &Map<'_>, upstreams: &[Upstream]) -> Option<Environments> {
    let only = (upstreams.len() == 1).then_some(UpstreamId(0));
    let by_default = only.map(|only| Environments { live: only, test: only });
    let Some(value) = root.get("environments") else { return by_default };
    let map = value.mapping(&["live", "test"]);
    let side = |name: &str| {
        let map = map.as_ref()?;
        match (map.has(name), only) {
            (false, Some(only)) => Some(only),
            _ => by_name(&map.require(name, "name the upstream of each environment")?, upstreams),
        }
    };
    let (live, test) = (side("live"), side("test"));
    // After a mistake the default keeps the routes from being blamed for it; the file does not compile anyway.
    Some(Environments { live: live.unwrap_or(UpstreamId(0)), test: test.unwrap_or(UpstreamId(0)) })
}

/// The upstream that a member names.
pub(super) fn by_name(value: &Value<'_>, upstreams: &[Upstream]) -> Option<UpstreamId> {
    let name = value.text()?;
    if let Some(index) = upstreams.iter().position(|upstream| &*upstream.name == name) {
        return Some(UpstreamId(index));
    }
    let known: Vec<&str> = upstreams.iter().map(|upstream| &*upstream.name).collect();
    let mend = match did_you_mean(name, known.iter().copied()) {
        near if near.is_empty() => format!("known upstreams: {}", known.join(", ")),
        near => near,
    };
    value.mistake(format!("there is no upstream `{}`", shorten(name)), &mend)
}
