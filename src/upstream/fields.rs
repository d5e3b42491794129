//! `set_headers`: fields that an upstream gets with every request, some of them secrets in files that may change.

use std::path::PathBuf;
use std::sync::Weak;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use tokio::time::sleep;

use super::cluster::Cluster;
use crate::config::model::{Secret, Upstream};

/// How often files are looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// The fields of one upstream, as they are now.
pub type Fields = Vec<(HeaderName, HeaderValue)>;

/// A file of `set_headers` that is no value.
#[derive(Debug, thiserror::Error)]
pub enum FieldError {
    /// It cannot be read.
    #[error("upstreams.{0}.set_headers.{1}: cannot read {path}: {2}", path = .3.display())]
    Unreadable(String, HeaderName, std::io::Error, PathBuf),
    /// It has something in it that cannot be sent.
    #[error("upstreams.{0}.set_headers.{1}: {path} is not the value of a field: write visible characters, on one line", path = .2.display())]
    NoValue(String, HeaderName, PathBuf),
}

/// The fields of all upstreams. Read before anything is done about a configuration: it may fail.
pub fn read_fields(upstreams: &[Upstream]) -> Result<Vec<Fields>, FieldError> {
    upstreams.iter().map(read).collect()
}

/// All fields of an upstream, files read anew.
pub(super) fn read(upstream: &Upstream) -> Result<Fields, FieldError> {
    let field = |(name, secret): &(HeaderName, Secret)| Ok((name.clone(), value(upstream, name, secret)?));
    upstream.set_headers.iter().map(field).collect()
}

/// The same once more: a value that cannot be read any more is what it was `before`.
fn read_again(upstream: &Upstream, before: &Fields) -> (Fields, Vec<FieldError>) {
    let mut troubles = Vec::new();
    let field = |((name, secret), (_, before)): (&(HeaderName, Secret), &(HeaderName, HeaderValue))| {
        let read = value(upstream, name, secret).unwrap_or_else(|error| {
            troubles.push(error);
            before.clone()
        });
        (name.clone(), read)
    };
    let fields = upstream.set_headers.iter().zip(before).map(field).collect();
    (fields, troubles)
}

fn value(upstream: &Upstream, name: &HeaderName, secret: &Secret) -> Result<HeaderValue, FieldError> {
    let (text, path) = match secret {
        Secret::Text(text) => (text.clone().into_bytes(), PathBuf::new()),
        Secret::File(path) => {
            let unreadable =
                |error| FieldError::Unreadable(upstream.name.to_string(), name.clone(), error, path.clone());
            (std::fs::read(path).map_err(unreadable)?, path.clone())
        }
    };
    let mut value = HeaderValue::from_bytes(text.trim_ascii())
        .ok()
        .filter(|value| !value.is_empty())
        .ok_or_else(|| FieldError::NoValue(upstream.name.to_string(), name.clone(), path))?;
    // Shown by no `Debug`.
    value.set_sensitive(true);
    Ok(value)
}

/// Reads files again as long as the upstream is there. One that cannot be read changes nothing, and is told once.
pub(super) async fn keep_read(cluster: Weak<Cluster>) {
    let mut told = Vec::new();
    loop {
        sleep(PERIOD).await;
        let Some(cluster) = cluster.upgrade() else { return };
        let (config, before) = (cluster.config.clone(), cluster.fields.load_full());
        let Ok((fields, troubles)) = tokio::task::spawn_blocking(move || read_again(&config, &before)).await else {
            continue;
        };
        cluster.set_fields(fields);
        let troubles: Vec<String> = troubles.iter().map(ToString::to_string).collect();
        for error in troubles.iter().filter(|trouble| !told.contains(*trouble)) {
            tracing::warn!(%error, "the value read before stays");
        }
        told = troubles;
    }
}
