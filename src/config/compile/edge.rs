//! `listen`, `store`, `cache` and `management`: where the gateway is found and what it stands on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::reader::Value;
use super::unbuilt;
use crate::config::model::{CacheConfig, Listen, Management, OutageQuota, StoreConfig, StoreUrl};
use crate::config::store_url::UrlError;
use crate::policy::pattern::{Pattern, Segment};

const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);
const DEFAULT_BASE_PATH: &str = "/api/v1/api-keys";
const DEFAULT_CONSOLE_PATH: &str = "/settings/api-keys";

pub(super) fn listen(value: &Value<'_>) -> Option<Listen> {
    let listen = value.mapping(&["public", "admin", "authz"])?;
    if let Some(authz) = listen.get("authz") {
        unbuilt::refuse::<()>(&authz, &unbuilt::AUTHZ);
    }
    let admin = listen.get("admin").and_then(|value| value.mapping(&["address"]));
    let admin = admin.and_then(|admin| admin.require("address", "write address: 127.0.0.1:9901"));
    let public = listen.require("public", "add public: { address: 127.0.0.1:8080 }")?;
    let public = public.mapping(&["address", "tls", "proxy_protocol", "trusted_proxies"])?;
    if let Some(tls) = public.get("tls") {
        unbuilt::refuse::<()>(&tls, &unbuilt::LISTEN_TLS);
    }
    if let Some(networks) = public.get("trusted_proxies") {
        unbuilt::refuse::<()>(&networks, &unbuilt::NETWORKS);
    }
    if let Some(value) = public.get("proxy_protocol")
        && value.flag() == Some(true)
    {
        value.not_yet::<()>("write proxy_protocol: false, the default");
    }
    let address = public.require("address", "write address: 127.0.0.1:8080");
    let listen =
        Listen { admin: admin.as_ref().map_or(Some(DEFAULT_ADMIN), Value::address)?, public: address?.address()? };
    if listen.public == listen.admin && listen.public.port() != 0 {
        return admin
            .as_ref()
            .unwrap_or(value)
            .mistake("admin and public have the same address", "give admin its own port");
    }
    Some(listen)
}

pub(super) fn store(value: &Value<'_>, file: &Path) -> Option<StoreConfig> {
    let store = value.mapping(&["url", "username", "password", "tls", "prefix", "timeout", "outage"])?;
    for (name, shape) in [("username", unbuilt::SECRET), ("password", unbuilt::SECRET), ("tls", unbuilt::STORE_TLS)] {
        if let Some(value) = store.get(name) {
            unbuilt::refuse::<()>(&value, &shape);
        }
    }
    if let Some(prefix) = store.get("prefix")
        && prefix.text().is_some_and(|prefix| prefix != "sm:")
    {
        prefix.not_yet::<()>("write prefix: \"sm:\", the default");
    }
    let outage = store.get("outage").and_then(|value| value.mapping(&["quota", "serve_cached_keys_for"]));
    let outage_quota = outage.as_ref().and_then(|outage| outage.get("quota")).and_then(|value| {
        value.choice(&[
            ("local_share", OutageQuota::LocalShare),
            ("reject", OutageQuota::Reject),
            ("allow", OutageQuota::Allow),
        ])
    });
    let serve_cached_keys_for = outage.map(|outage| outage.read("serve_cached_keys_for", MINUTE, Value::duration));
    let timeout = store.duration("timeout", Duration::from_millis(50));
    let url = store.require("url", "write url: \"sqlite:data/gateway.db\"").and_then(|value| store_url(&value, file));
    Some(StoreConfig {
        url: url?,
        timeout,
        outage_quota: outage_quota.unwrap_or(OutageQuota::LocalShare),
        serve_cached_keys_for: serve_cached_keys_for.unwrap_or(MINUTE),
    })
}

const MINUTE: Duration = Duration::from_secs(60);

fn store_url(value: &Value<'_>, file: &Path) -> Option<StoreUrl> {
    // Beside the file, wherever the process was started.
    match StoreUrl::parse(value.text()?, file.parent().unwrap_or(Path::new(""))) {
        Ok(url) => Some(url),
        Err(UrlError { what, mend }) => value.mistake(what, &mend),
    }
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
