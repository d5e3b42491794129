//! `store`: where keys, quota and usage are kept, and what to do without it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::reader::{Map, Value};
use crate::config::model::{OutageQuota, RedisAccess, Secret, StoreConfig, StoreUrl};
use crate::config::redis_url::{RedisServers, RedisUrl};
use crate::config::store_url::UrlError;

const MINUTE: Duration = Duration::from_secs(60);

pub(super) fn store(value: &Value<'_>, file: &Path) -> Option<StoreConfig> {
    let store = value.mapping(&["url", "username", "password", "tls", "prefix", "timeout", "outage"])?;
    // Beside the file, wherever the process was started.
    let base = file.parent().unwrap_or(Path::new(""));
    let access = access(&store, base);
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
    let url = store.require("url", "write url: \"sqlite:data/gateway.db\"").and_then(|value| url(&value, base))?;
    match &url {
        StoreUrl::Sqlite(_) => only_for_redis(&store),
        StoreUrl::Redis(redis) => agrees(redis, &store),
    }
    Some(StoreConfig {
        url,
        access: access?,
        timeout,
        outage_quota: outage_quota.unwrap_or(OutageQuota::LocalShare),
        serve_cached_keys_for: serve_cached_keys_for.unwrap_or(MINUTE),
    })
}

fn url(value: &Value<'_>, base: &Path) -> Option<StoreUrl> {
    match StoreUrl::parse(value.text()?, base) {
        Ok(url) => Some(url),
        Err(UrlError { what, mend }) => value.mistake(what, &mend),
    }
}

/// What only a Redis store uses. A mistake in any of it is reported whatever the store is.
fn access(store: &Map<'_>, base: &Path) -> Option<RedisAccess> {
    let username = store.get("username").map(|value| value.text().map(str::to_owned));
    let password = store.get("password").map(|value| secret(&value, base));
    let prefix = store.read("prefix", Some(RedisAccess::default().prefix), |value| Some(prefix(value)));
    let tls = store.get("tls").map(|value| tls(&value, base));
    let mut access = RedisAccess {
        username: given(username)?,
        password: given(password)?,
        prefix: prefix?,
        ..RedisAccess::default()
    };
    if let Some(Tls { encrypted, ca, client }) = given(tls)? {
        (access.encrypted, access.ca, access.client) = (encrypted, ca, client);
    }
    Some(access)
}

/// A member that is absent is fine; one that was a mistake is not.
pub(super) fn given<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        Some(None) => None,
        Some(value) => Some(value),
        None => Some(None),
    }
}

pub(super) fn secret(value: &Value<'_>, base: &Path) -> Option<Secret> {
    if value.is_mapping() {
        return path(value, base).map(Secret::File);
    }
    value.text().map(|text| Secret::Text(text.to_owned()))
}

/// A path, or `{ file: PATH }`.
pub(super) fn path(value: &Value<'_>, base: &Path) -> Option<PathBuf> {
    if !value.is_mapping() {
        return value.text().map(|text| base.join(text));
    }
    let file = value.mapping(&["file"])?.require("file", "write { file: PATH }")?;
    file.text().map(|text| base.join(text))
}

fn prefix(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '{' | '}' | '*' | '?' | '[' | ']' | '\\');
    if text.len() <= 64 && text.chars().all(fits) {
        return Some(text.to_owned());
    }
    value.mistake(
        "a prefix has up to 64 visible ASCII characters, and none of { } * ? [ ] \\",
        "write a prefix such as \"sm:\"",
    )
}

struct Tls {
    encrypted: bool,
    ca: Option<PathBuf>,
    client: Option<(PathBuf, PathBuf)>,
}

fn tls(value: &Value<'_>, base: &Path) -> Option<Tls> {
    let tls = value.mapping(&["ca", "certificate", "private_key", "enabled"])?;
    let read = |name: &str| given(tls.get(name).map(|value| path(&value, base)));
    let (ca, certificate, key) = (read("ca"), read("certificate"), read("private_key"));
    let encrypted = tls.read("enabled", true, |value| value.flag());
    let client = match (certificate?, key?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return value.mistake("certificate and private_key belong together", "give both, or neither"),
    };
    Some(Tls { encrypted, ca: ca?, client })
}

fn only_for_redis(store: &Map<'_>) {
    for name in ["username", "password", "tls", "prefix"] {
        if let Some(value) = store.get(name)
            && value.peek() != Some("sm:")
        {
            value.warning(
                format!("`{name}` is for a Redis store; this one is SQLite"),
                "remove it, or name a Redis store",
            );
        }
    }
}

/// Whether URL and members say the same about encryption and credentials.
fn agrees(url: &RedisUrl, store: &Map<'_>) {
    let member = |name: &str| store.get(name);
    if matches!(url.servers, RedisServers::Standalone(..))
        && let Some(tls) = member("tls")
    {
        let enabled = tls.mapping(&["ca", "certificate", "private_key", "enabled"]);
        let enabled = enabled.is_some_and(|tls| tls.read("enabled", true, |value| value.flag()));
        if enabled != url.encrypted {
            let mend = if enabled { "write rediss:// in store.url" } else { "write redis:// in store.url" };
            tls.mistake::<()>("store.url says otherwise about encryption", mend);
        }
    }
    for (name, in_url) in [("username", &url.username), ("password", &url.password)] {
        if let Some(value) = member(name).filter(|_| in_url.is_some()) {
            value.mistake::<()>(format!("store.url has a {name} too"), "keep one of the two");
        }
    }
    if url.password.is_some()
        && let Some(value) = member("url")
    {
        value.warning("a password in a URL is shown wherever the file is", "write password: { file: PATH }");
    }
}
