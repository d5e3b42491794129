//! `host`, `strip_prefix`, `add_prefix` and `set_headers` of an upstream: how a request is changed on its way there.

use std::path::Path;

use http::uri::Authority;
use http::{HeaderName, HeaderValue};

use super::reader::{Value, shorten};
use super::store::secret;
use crate::config::model::{Host, Secret};
use crate::policy::headers;
use crate::policy::path::RequestPath;

pub(super) fn host(value: &Value<'_>) -> Option<Host> {
    value.parse("a host", "write preserve, upstream, or a name such as api.example.com", |text| match text {
        "preserve" => Some(Host::Preserve),
        "upstream" => Some(Host::Upstream),
        name => {
            let authority: Authority = name.parse().ok()?;
            let is_name = !authority.host().is_empty() && !name.contains('@') && !name.ends_with(':');
            HeaderValue::from_str(name).ok().filter(|_| is_name).map(Host::Name)
        }
    })
}

/// Compared segment by segment, decoded, as routes are.
pub(super) fn strip_prefix(value: &Value<'_>) -> Option<Vec<String>> {
    let path = RequestPath::parse(prefix(value)?).ok()?;
    Some(path.segments().iter().map(|segment| segment.to_string()).collect())
}

/// Goes over the wire as it is written.
pub(super) fn add_prefix(value: &Value<'_>) -> Option<String> {
    prefix(value).map(str::to_owned)
}

/// Whole segments: `/api` and `/api/` are the same.
fn prefix<'v>(value: &Value<'v>) -> Option<&'v str> {
    const LIKE: &str = "write whole segments, such as /api/v1";
    let text = value.text()?;
    let prefix = text.strip_suffix('/').unwrap_or(text);
    if prefix.is_empty() {
        return value.mistake("an empty prefix changes nothing", "remove it");
    }
    match RequestPath::parse(prefix) {
        // What is no URI could not be sent.
        Ok(_) if prefix.parse::<http::uri::PathAndQuery>().is_ok() => Some(prefix),
        _ => value.mistake(format!("`{}` is not the beginning of a path", shorten(text)), LIKE),
    }
}

pub(super) fn set_headers(value: &Value<'_>, base: &Path) -> Option<Vec<(HeaderName, Secret)>> {
    let mut fields: Vec<(HeaderName, Secret)> = Vec::new();
    for (name, _, member) in value.members()? {
        let Ok(known) = HeaderName::from_bytes(name.as_bytes()) else {
            member.mistake::<()>(format!("`{}` is not a field name", shorten(name)), "write a name such as X-Proof");
            continue;
        };
        if !headers::is_settable(&known) {
            let what = format!("the gateway sets or frames with `{}` itself", shorten(name));
            member.mistake::<()>(what, "use a name of your own, such as X-Proof");
            continue;
        }
        if fields.iter().any(|(other, _)| headers::is_twin(other, &known)) {
            let what = format!("`{}` is given twice: case and _ for - make no other name", shorten(name));
            member.mistake::<()>(what, "keep one of the two");
            continue;
        }
        let Some(secret) = secret(&member, base) else { continue };
        if matches!(&secret, Secret::Text(text) if text.trim().is_empty() || HeaderValue::from_str(text).is_err()) {
            // Not shown: it may be a secret.
            member.mistake::<()>("not the value of a field", "write visible characters, on one line");
            continue;
        }
        fields.push((known, secret));
    }
    Some(fields)
}
