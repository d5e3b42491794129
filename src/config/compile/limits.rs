//! `limits`, `timeouts`, `drain`, `usage`, `keys`, `log` and `workers`: numbers and switches.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::reader::{Map, Value};
use super::unbuilt;
use crate::config::model::{Drain, Limits, LogFormat, PerAddress, StoreConfig, StoreUrl, Timeouts, UsageConfig};
use crate::policy::credential::KeyShape;

const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn limits(value: Option<&Value<'_>>) -> Limits {
    let limits = value.and_then(|value| {
        value.mapping(&[
            "connections",
            "connections_per_address",
            "header_bytes",
            "header_count",
            "uri_bytes",
            "body_bytes",
            "inspect_bytes",
            "inspect_total",
            "per_address",
        ])
    });
    let member = |name: &str| limits.as_ref().and_then(|limits| limits.get(name));
    let count = |name: &str, most: u64| member(name).and_then(|value| value.count(1, most)).and_then(to_usize);
    let size = |name: &str, least: u64, default: usize| {
        let value = member(name);
        let read = value.as_ref().and_then(|value| at_least(value, least)).and_then(to_usize);
        read.unwrap_or(default)
    };
    let limits = Limits {
        connections: count("connections", 10_000_000).unwrap_or(20_000),
        connections_per_address: count("connections_per_address", 10_000_000),
        // hyper's own buffer is never smaller than 8 KiB, so a lower limit would not be kept.
        header_bytes: size("header_bytes", 8 << 10, 64 << 10),
        header_count: count("header_count", 10_000).unwrap_or(100),
        uri_bytes: size("uri_bytes", 1, 16 << 10),
        body_bytes: member("body_bytes").and_then(|value| value.size()),
        inspect_bytes: size("inspect_bytes", 1, 1 << 20),
        inspect_total: size("inspect_total", 1, 64 << 20),
        per_address: member("per_address").map(|value| per_address(&value)).unwrap_or_default(),
    };
    if limits.inspect_total < limits.inspect_bytes
        && let Some(value) = member("inspect_total").or_else(|| member("inspect_bytes"))
    {
        value.mistake::<()>("inspect_total is less than inspect_bytes", "one body at least must fit");
    }
    limits
}

fn per_address(value: &Value<'_>) -> PerAddress {
    let members = value.mapping(&["failed_auth", "public"]);
    let rate = |name: &str| members.as_ref().and_then(|members| members.get(name)).and_then(|value| value.rate());
    PerAddress { failed_auth: rate("failed_auth"), public: rate("public") }
}

fn to_usize(number: u64) -> Option<usize> {
    usize::try_from(number).ok()
}

fn at_least(value: &Value<'_>, least: u64) -> Option<u64> {
    let size = value.size()?;
    if size >= least {
        Some(size)
    } else {
        let what =
            if least == 1 { "must be more than nothing".to_owned() } else { format!("must be at least {least} bytes") };
        value.mistake(what, "write a larger size")
    }
}

pub(super) fn timeouts(value: Option<&Value<'_>>) -> Timeouts {
    let known = ["header", "body_idle", "response", "idle", "handshake", "keepalive"];
    let timeouts = value.and_then(|value| value.mapping(&known));
    let duration = |name: &str, seconds: u64| {
        let default = Duration::from_secs(seconds);
        timeouts.as_ref().map_or(default, |timeouts| timeouts.duration(name, default))
    };
    Timeouts {
        header: duration("header", 10),
        body_idle: duration("body_idle", 30),
        response: duration("response", 60),
        idle: duration("idle", 300),
        handshake: duration("handshake", 10),
        keepalive: duration("keepalive", 75),
    }
}

pub(super) fn drain(value: Option<&Value<'_>>) -> Drain {
    let drain = value.and_then(|value| value.mapping(&["delay", "timeout"]));
    let duration = |name: &str, seconds: u64| {
        let default = Duration::from_secs(seconds);
        drain.as_ref().map_or(default, |drain| drain.read(name, default, Value::duration))
    };
    Drain { delay: duration("delay", 0), timeout: duration("timeout", 10) }
}

pub(super) fn usage(value: Option<&Value<'_>>, file: &Path, store: Option<&StoreConfig>) -> UsageConfig {
    let usage = value.and_then(|value| value.mapping(&["flush", "journal", "retention"]));
    let journal = usage.as_ref().and_then(|usage| usage.get_unless_null("journal"));
    let duration =
        |name: &str, default: Duration| usage.as_ref().map_or(default, |usage| usage.duration(name, default));
    UsageConfig {
        flush: duration("flush", Duration::from_secs(1)),
        journal: journal.and_then(|value| journal_path(&value, file, store)),
        retention: duration("retention", DAY * 400),
    }
}

fn journal_path(value: &Value<'_>, file: &Path, store: Option<&StoreConfig>) -> Option<PathBuf> {
    let mend = "write a path such as data/usage.journal, or none";
    let text = value.text().filter(|text| *text != "none")?;
    if text.is_empty() || text.ends_with('/') || text.contains('\0') {
        return value.mistake("a journal is a file", mend);
    }
    // Beside the file, wherever the process was started.
    let path = file.parent().unwrap_or(Path::new("")).join(text);
    if let Some(StoreConfig { url: StoreUrl::Sqlite(database), .. }) = store
        && *database == path
    {
        return value.mistake("the journal and the store are the same file", mend);
    }
    Some(path)
}

pub(super) fn keys(value: Option<&Value<'_>>) -> KeyShape {
    let keys = value.and_then(|value| value.mapping(&["require_checksum", "import_hashes", "adopt"]));
    let member = |name: &str| keys.as_ref().and_then(|keys| keys.get(name));
    if let Some(value) = member("adopt")
        && value.flag() == Some(true)
    {
        value.not_yet::<()>("write adopt: false, the default");
    }
    if let Some(value) = member("import_hashes") {
        let only_default = value.is_sequence()
            && value.items().is_some_and(|items| matches!(items.as_slice(), [one] if one.peek() == Some("blake3")));
        if !only_default {
            unbuilt::refuse::<()>(&value, &unbuilt::HASHES);
        }
    }
    KeyShape { require_checksum: member("require_checksum").and_then(|value| value.flag()).unwrap_or(true) }
}

pub(super) fn log(root: &Map<'_>) -> LogFormat {
    let formats =
        [("json", LogFormat::Json), ("text", LogFormat::Text), ("off", LogFormat::Off), ("false", LogFormat::Off)];
    root.read("log", LogFormat::Json, |value| value.choice(&formats))
}

pub(super) fn workers(root: &Map<'_>) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    root.read("workers", cpus, |value| value.count(1, 1024).and_then(to_usize))
}
