//! `upstreams` and `environments`: the backends and which of them serves which kind of key.

use std::path::Path;
use std::time::Duration;

use super::reader::{Map, Value, did_you_mean, shorten};
use super::{rewriting, tls, unbuilt};
use crate::config::model::{Endpoint, Environments, HealthCheck, Host, Outlier, Retries, Upstream, UpstreamTls};
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
    let base = file.parent().unwrap_or(Path::new(""));
    let mut upstream = absent(name);
    let Some(map) = value.mapping(MEMBERS) else { return upstream };
    if let Some(value) = map.get("identity") {
        unbuilt::refuse::<()>(&value, &unbuilt::IDENTITY);
    }
    upstream.endpoints = endpoints(&map).unwrap_or_default();
    let encrypted = upstream.endpoints.iter().any(|endpoint| endpoint.encrypted);
    upstream.http2 = map.read("http2", false, |value| value.flag());
    upstream.tls =
        map.read("tls", UpstreamTls::default(), |value| tls::upstream(value, file, encrypted || !map.has("endpoints")));
    upstream.connect_timeout = map.duration("connect_timeout", upstream.connect_timeout);
    upstream.dns_refresh = map.duration("dns_refresh", upstream.dns_refresh);
    upstream.host = map.read("host", upstream.host, rewriting::host);
    upstream.strip_prefix = map.read("strip_prefix", Vec::new(), rewriting::strip_prefix);
    upstream.add_prefix = map.read("add_prefix", String::new(), rewriting::add_prefix);
    upstream.set_headers = map.read("set_headers", Vec::new(), |value| rewriting::set_headers(value, base));
    upstream.health_check = map.get("health_check").and_then(|value| health_check(&value));
    upstream.outlier = map.read("outlier", upstream.outlier, outlier);
    upstream.retries = map.read("retries", upstream.retries, retries);
    upstream.max_requests = map.get("max_requests").and_then(|value| count(&value, 1, u32::MAX));
    upstream
}

/// An upstream that says nothing of itself.
fn absent(name: &str) -> Upstream {
    Upstream {
        name: name.into(),
        endpoints: Vec::new(),
        connect_timeout: Duration::from_secs(1),
        http2: false,
        tls: UpstreamTls::default(),
        dns_refresh: Duration::from_secs(30),
        host: Host::Preserve,
        strip_prefix: Vec::new(),
        add_prefix: String::new(),
        set_headers: Vec::new(),
        health_check: None,
        outlier: Some(Outlier { failures: 5, eject_for: Duration::from_secs(10) }),
        retries: Retries { attempts: 2, budget: 20 },
        max_requests: None,
    }
}

fn count(value: &Value<'_>, least: u32, most: u32) -> Option<u32> {
    value.count(least.into(), most.into()).and_then(|count| u32::try_from(count).ok())
}

fn health_check(value: &Value<'_>) -> Option<HealthCheck> {
    let map = value.mapping(&["path", "interval"])?;
    let interval = map.duration("interval", Duration::from_secs(5));
    let path = map.require("path", "add path: /healthz, or what the backend answers with 2xx")?;
    let path = path.parse("a path", "write a path that begins with /, such as /healthz", |text| {
        text.starts_with('/').then(|| text.parse().ok())?
    })?;
    Some(HealthCheck { path, interval })
}

/// `failures: 0` turns it off.
fn outlier(value: &Value<'_>) -> Option<Option<Outlier>> {
    let map = value.mapping(&["failures", "eject_for"])?;
    let failures = map.read("failures", 5, |value| count(value, 0, 1000));
    let eject_for = map.duration("eject_for", Duration::from_secs(10));
    Some((failures > 0).then_some(Outlier { failures, eject_for }))
}

fn retries(value: &Value<'_>) -> Option<Retries> {
    let map = value.mapping(&["attempts", "budget"])?;
    let attempts = map.read("attempts", 2, |value| count(value, 0, 10));
    let budget = map.read("budget", 20, |value| {
        value.parse("a share", "write a percentage such as 20%", |text| {
            text.strip_suffix('%')?.trim_end().parse().ok().filter(|share| *share <= 100)
        })
    });
    Some(Retries { attempts, budget })
}

fn endpoints(map: &Map<'_>) -> Option<Vec<Endpoint>> {
    let value = map.require("endpoints", "add endpoints: [\"http://HOST:PORT\"]")?;
    let endpoints: Vec<_> = value.items()?.iter().map(endpoint).collect();
    if endpoints.is_empty() {
        return value.mistake("there is no endpoint", "add \"http://HOST:PORT\"");
    }
    let weights = map.get("weights").map(|value| weights(&value, endpoints.len()));
    let mut endpoints: Vec<Endpoint> = endpoints.into_iter().collect::<Option<_>>()?;
    for (at, endpoint) in endpoints.iter().enumerate() {
        if endpoints[..at].contains(endpoint) {
            return value.mistake(format!("`{}` is there twice", endpoint.authority), "keep one, with a higher weight");
        }
    }
    if let Some(weights) = weights {
        endpoints.iter_mut().zip(weights?).for_each(|(endpoint, weight)| endpoint.weight = weight);
    }
    Some(endpoints)
}

fn weights(value: &Value<'_>, endpoints: usize) -> Option<Vec<u32>> {
    let weights: Vec<_> = value.items()?.iter().map(|item| count(item, 0, 1000)).collect();
    if weights.len() != endpoints {
        let what = format!("{} for {endpoints} endpoints", weights.len());
        return value.mistake(what, "give each endpoint one weight, in the same order");
    }
    let weights: Vec<u32> = weights.into_iter().collect::<Option<_>>()?;
    if weights.iter().all(|weight| *weight == 0) {
        return value.mistake("no endpoint has a weight", "leave one at least that is not 0");
    }
    Some(weights)
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
                Some(_) => Some(Endpoint { authority: rest.into(), encrypted, weight: 1 }),
                None if authority.port().is_none() && !rest.ends_with(':') => {
                    Some(Endpoint { authority: format!("{rest}:{usual_port}").into(), encrypted, weight: 1 })
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
