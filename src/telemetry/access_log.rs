//! One line a request on stdout, written by a thread of its own.
//!
//! A request hands over a [`Line`] and goes on: when the log cannot keep up, lines are dropped and counted, never awaited.
//! Nothing that a line holds can contain a key: the path goes through [`super::redact`], everything else is bounded.

use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::json;

use super::outlet::Outlet;
use super::trace::Id;
use crate::config::model::LogFormat;
use crate::policy::access::{KeyProfile, Values};
use crate::policy::key::Timestamp;

/// What is known of a request when it has ended.
#[derive(Debug)]
pub struct Line {
    /// When it began.
    pub time: Timestamp,
    /// Its id, also in `X-Request-Id`.
    pub request_id: Id,
    /// The trace it belongs to.
    pub trace_id: Id,
    /// Who sent it.
    pub client: IpAddr,
    /// Method.
    pub method: Method,
    /// Route template, if one matched.
    pub route: Option<Arc<str>>,
    /// Path without query, as received.
    pub path: String,
    /// Status sent; 499 when the client left before.
    pub status: u16,
    /// Code of a refusal.
    pub code: Option<&'static str>,
    /// To the end of the response.
    pub duration_ms: f64,
    /// From forwarding to the upstream's head.
    pub upstream_ms: Option<f64>,
    /// Which upstream.
    pub upstream: Option<Arc<str>>,
    /// Body bytes received.
    pub bytes_in: u64,
    /// Body bytes sent.
    pub bytes_out: u64,
    /// The key.
    pub key: Option<Arc<KeyProfile>>,
    /// What the request named.
    pub values: Values,
}

/// The sending side.
#[derive(Debug, Clone)]
pub struct AccessLog(Option<Outlet<Box<Line>>>);

impl AccessLog {
    /// Starts the writing thread. `Off` starts nothing and costs nothing.
    pub fn start(format: LogFormat) -> io::Result<Self> {
        if format == LogFormat::Off {
            return Ok(Self(None));
        }
        let write = move |out: &mut _, line: Box<Line>| write_line(out, &line, format);
        Outlet::start("access-log", io::stdout(), write).map(|outlet| Self(Some(outlet)))
    }

    /// Whether lines are wanted at all: who builds none saves the work.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Hands a line over; false when it was dropped.
    pub fn write(&self, line: Line) -> bool {
        self.0.as_ref().is_none_or(|outlet| outlet.write(Box::new(line)))
    }

    /// Waits until everything handed over so far is written, but no longer than `patience`. False: some lines were not written.
    pub fn flush(&self, patience: Duration) -> bool {
        self.0.as_ref().is_none_or(|outlet| outlet.flush(patience))
    }
}

fn write_line(out: &mut impl Write, line: &Line, format: LogFormat) -> io::Result<()> {
    match format {
        LogFormat::Json => {
            serde_json::to_writer(&mut *out, &as_json(line))?;
            out.write_all(b"\n")
        }
        LogFormat::Text => {
            let key = line.key.as_ref().map_or("-", |key| key.record.key_prefix.as_str());
            let time = line.time.to_string();
            let code = line.code.map(|code| format!(" {code}")).unwrap_or_default();
            writeln!(
                out,
                "{} {:>3} {:<6} {}  {:.1} ms  {key}…{code}",
                time.get(11..19).unwrap_or(&time),
                line.status,
                line.method,
                super::redact::keys(&line.path),
                line.duration_ms,
            )
        }
        LogFormat::Off => Ok(()),
    }
}

fn as_json(line: &Line) -> serde_json::Value {
    let record = line.key.as_ref().map(|key| &key.record);
    json!({
        "time": line.time,
        "request_id": line.request_id.as_str(),
        "trace_id": line.trace_id.as_str(),
        "client": line.client,
        "method": super::redact::keys(line.method.as_str()),
        "route": line.route.as_deref(),
        "path": super::redact::keys(&line.path),
        "status": line.status,
        "code": line.code,
        "would_be": null,
        "duration_ms": round(line.duration_ms),
        "upstream_ms": line.upstream_ms.map(round),
        "upstream": line.upstream.as_deref(),
        "bytes_in": line.bytes_in,
        "bytes_out": line.bytes_out,
        "key_id": record.map(|r| r.id.as_str()),
        "key_prefix": record.map(|r| r.key_prefix.as_str()),
        "account_id": record.map(|r| r.account_id.as_str()),
        "model": line.values.model.as_deref().map(super::redact::keys),
        "dataset": line.values.dataset.as_deref().map(super::redact::keys),
        "organization": line.values.organization.as_deref().map(super::redact::keys),
    })
}

fn round(millis: f64) -> f64 {
    (millis * 1000.0).round() / 1000.0
}
