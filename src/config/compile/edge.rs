//! `listen`, `cache` and `management`: where the gateway is found and what it stands on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::reader::Value;
use super::store::given;
use super::{tls, unbuilt};
use crate::config::model::{CacheConfig, Listen, Management};
use crate::policy::network::{Network, Networks};
use crate::policy::pattern::{Pattern, Segment};

const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);
const DEFAULT_BASE_PATH: &str = "/api/v1/api-keys";
const DEFAULT_CONSOLE_PATH: &str = "/settings/api-keys";

pub(super) fn listen(value: &Value<'_>, file: &Path) -> Option<Listen> {
    let listen = value.mapping(&["public", "admin", "authz"])?;
    if let Some(authz) = listen.get("authz") {
        unbuilt::refuse::<()>(&authz, &unbuilt::AUTHZ);
    }
    let admin = listen.get("admin").and_then(|value| value.mapping(&["address"]));
    let admin = admin.and_then(|admin| admin.require("address", "write address: 127.0.0.1:9901"));
    let public = listen.require("public", "add public: { address: 127.0.0.1:8080 }")?;
    let public = public.mapping(&["address", "tls", "proxy_protocol", "trusted_proxies"])?;
    let tls = given(public.get("tls").map(|value| tls::listen(&value, file)));
    let trusted_proxies = public.get("trusted_proxies").and_then(|value| networks(&value)).unwrap_or_default();
    let proxy_protocol = public.get("proxy_protocol").and_then(|value| value.flag()).unwrap_or(false);
    let address = public.require("address", "write address: 127.0.0.1:8080");
    let admin_address = admin.as_ref().map_or(Some(DEFAULT_ADMIN), Value::address);
    let listen = Listen {
        admin: admin_address?,
        public: address?.address()?,
        tls: tls?,
        proxy_protocol,
        trusted_proxies: Arc::new(trusted_proxies),
    };
    if listen.public == listen.admin && listen.public.port() != 0 {
        return admin
            .as_ref()
            .unwrap_or(value)
            .mistake("admin and public have the same address", "give admin its own port");
    }
    Some(listen)
}

/// A list of networks, each mistake reported.
fn networks(value: &Value<'_>) -> Option<Networks> {
    let network = |item: &Value<'_>| {
        let network =
            item.parse("a network", "write ADDRESS/BITS, such as 10.0.0.0/8", |text| Network::parse(text).ok())?;
        if network.is_everything() {
            item.warning("trusts everybody to say who the client is", "name the networks of the proxies");
        }
        Some(network)
    };
    Some(value.items()?.iter().filter_map(network).collect())
}

pub(super) fn cache(value: Option<&Value<'_>>) -> CacheConfig {
    let cache = value.and_then(|value| value.mapping(&["capacity", "ttl", "negative_ttl", "recheck_without_push"]));
    let duration = |name: &str, seconds: u64| {
        let default = Duration::from_secs(seconds);
        cache.as_ref().map_or(default, |cache| cache.duration(name, default))
    };
    CacheConfig {
        capacity: cache.as_ref().map_or(CAPACITY, |cache| cache.read("capacity", CAPACITY, |v| v.count(1, 1 << 32))),
        ttl: duration("ttl", 60),
        negative_ttl: duration("negative_ttl", 2),
        recheck_without_push: duration("recheck_without_push", 5),
    }
}

const CAPACITY: u64 = 1_000_000;

pub(super) fn management(value: Option<&Value<'_>>) -> Management {
    let management = value.and_then(|value| value.mapping(&["base_path", "console_path", "rate"]));
    let member = |name: &str| management.as_ref().and_then(|management| management.get(name));
    if let Some(console) = member("console_path")
        && console.text().is_some_and(|text| text != "false" && text != DEFAULT_CONSOLE_PATH)
    {
        console.not_yet::<()>("remove it, or write console_path: false");
    }
    Management {
        base_path: member("base_path").and_then(|v| base_path(&v)).unwrap_or_else(|| DEFAULT_BASE_PATH.to_owned()),
        per_minute: member("rate").and_then(|value| value.rate()).unwrap_or(60),
    }
}

fn base_path(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    let pattern = match Pattern::parse(text) {
        Ok(pattern) => pattern,
        Err(error) => return value.misread(&error, "write a path such as /api/v1/api-keys"),
    };
    let literal = |segment: &Segment| matches!(segment, Segment::Literal(text) if !text.is_empty());
    if pattern.segments().iter().all(literal) && !text.contains('%') {
        return Some(text.to_owned());
    }
    value.mistake(
        "a base path has no variables, no percent-encoding and no slash at its end",
        "write a path such as /api/v1/api-keys",
    )
}
