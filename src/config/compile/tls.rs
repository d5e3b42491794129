//! `tls` of the listener and of upstreams: which files, and whether what they hold fits together.
//!
//! The files are read here too, so that `check` tells what a start would stumble over. What they hold is read again when it
//! is used: it may have changed since.

use std::path::{Path, PathBuf};

use rustls::pki_types::{DnsName, ServerName};

use super::reader::{Map, Value, shorten};
use super::store::{given, path};
use crate::clock::SystemClock;
use crate::config::certificates::{self, CertificateError};
use crate::config::model::{CertificateFiles, ListenTls, ServerCertificate, UpstreamTls};

const MEND: &str = "name PEM files, relative to this one; certificate and private_key of one pair";

/// `listen.public.tls`: one certificate, or several by name.
pub(super) fn listen(value: &Value<'_>, file: &Path) -> Option<ListenTls> {
    let base = file.parent().unwrap_or(Path::new(""));
    let items = if value.is_sequence() { value.items()? } else { vec![value.clone()] };
    if items.is_empty() {
        return value.mistake("there is no certificate", "add { certificate: tls.crt, private_key: tls.key }");
    }
    let read: Vec<_> = items.iter().enumerate().map(|(index, item)| entry(item, base, index)).collect();
    let mut read = read.into_iter().collect::<Option<Vec<_>>>()?;
    let client_ca = read.first_mut().and_then(|(_, ca)| ca.take());
    for (item, (_, ca)) in items.iter().zip(&read).skip(1) {
        if *ca != client_ca {
            // A client could show no certificate under one name and then ask for the other: the connection is the same.
            return item.mistake(
                "client_ca differs from the first entry's, and holds for the listener",
                "write the same client_ca in every entry, or in none",
            );
        }
    }
    Some(ListenTls { certificates: read.into_iter().map(|(certificate, _)| certificate).collect(), client_ca })
}

fn entry(value: &Value<'_>, base: &Path, index: usize) -> Option<(ServerCertificate, Option<PathBuf>)> {
    let tls = value.mapping(&["certificate", "private_key", "client_ca", "sni"])?;
    let names = match tls.get("sni") {
        Some(sni) => names(&sni),
        None if index > 0 => value.mistake("`sni` is missing, so this certificate is never shown", "add sni: [NAME]"),
        None => Some(Vec::new()),
    };
    let client_ca = given(tls.get("client_ca").map(|value| authorities(&value, base)));
    let files = files(&tls, base).and_then(|files| {
        files.or_else(|| value.mistake("there is no certificate", "add certificate and private_key"))
    });
    Some((ServerCertificate { names: names?, files: files? }, client_ca?))
}

fn names(value: &Value<'_>) -> Option<Vec<String>> {
    let name = |value: &Value<'_>| {
        value.parse("a host name", "write a name such as api.example.com or *.example.com", |text| {
            let name = text.strip_prefix("*.").unwrap_or(text);
            DnsName::try_from(name).ok().map(|_| text.to_ascii_lowercase())
        })
    };
    // All of them before the first that is none: every mistake at once.
    let names: Vec<_> = value.items()?.iter().map(name).collect();
    names.into_iter().collect()
}

/// `upstreams.X.tls`
pub(super) fn upstream(value: &Value<'_>, file: &Path, encrypted: bool) -> Option<UpstreamTls> {
    let base = file.parent().unwrap_or(Path::new(""));
    let tls = value.mapping(&["ca", "server_name", "certificate", "private_key"])?;
    if !encrypted {
        return value.mistake("no endpoint is https", "write https:// endpoints, or remove it");
    }
    let ca = given(tls.get("ca").map(|value| authorities(&value, base)));
    let server_name = given(tls.get("server_name").map(|value| {
        let text = value.text()?;
        let name = ServerName::try_from(text.to_owned()).ok();
        name.or_else(|| value.mistake(format!("`{}` is not a host name", shorten(text)), "write a name or an address"))
    }));
    let client = files(&tls, base);
    Some(UpstreamTls { ca: ca?, server_name: server_name?, client: client? })
}

/// A certificate with its key, or neither.
fn files(tls: &Map<'_>, base: &Path) -> Option<Option<CertificateFiles>> {
    let read = |name: &str| given(tls.get(name).map(|value| path(&value, base)));
    let (certificate, private_key) = (read("certificate"), read("private_key"));
    match (certificate?, private_key?) {
        (None, None) => Some(None),
        (Some(certificate), Some(private_key)) => {
            fitting(&tls.value, CertificateFiles { certificate, private_key }).map(Some)
        }
        _ => tls.value.mistake("certificate and private_key belong together", "give both, or neither"),
    }
}

/// Refused when the two do not belong together; warned about when they are of no use today.
fn fitting(value: &Value<'_>, files: CertificateFiles) -> Option<CertificateFiles> {
    let pair = match certificates::pair(&files) {
        Ok(pair) => pair,
        Err(error) => return refused(value, &error),
    };
    if let Some((first, last)) = pair.end_entity_cert().ok().and_then(certificates::validity) {
        let (now, name) = (SystemClock::shared().wall(), files.certificate.display());
        if last < now {
            value.warning(format!("{name} expired on {last}"), "replace it; the gateway takes a new one up by itself");
        } else if first > now {
            value.warning(format!("{name} is not valid before {first}"), "look at its dates and at the clock");
        }
    }
    Some(files)
}

fn authorities(value: &Value<'_>, base: &Path) -> Option<PathBuf> {
    let path = path(value, base)?;
    match certificates::authorities(&path) {
        Ok(_) => Some(path),
        Err(error) => refused(value, &error),
    }
}

fn refused<T>(value: &Value<'_>, error: &CertificateError) -> Option<T> {
    value.mistake(error.to_string(), MEND)
}
