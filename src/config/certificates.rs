//! Certificates and keys from PEM files, and what does not fit about them in an operator's words.
//!
//! Read when the file is checked, when the gateway starts and when a file has changed. Opens no connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::model::CertificateFiles;
use crate::policy::key::Timestamp;

/// Why a certificate cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// A file that is not there, or that we may not read.
    #[error("{} cannot be read: {}", .0.display(), .1)]
    Unreadable(PathBuf, String),
    /// A file without what it should hold.
    #[error("{} holds no {}", .0.display(), .1)]
    Holds(PathBuf, &'static str),
    /// Something in it that TLS cannot use.
    #[error("{} cannot be used: {}", .0.display(), .1)]
    Unusable(PathBuf, String),
    /// The key is of another certificate.
    #[error("{} and {} do not belong together", .0.display(), .1.display())]
    Mismatch(PathBuf, PathBuf),
}

/// The only cryptography there is.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A chain with its key, which belong together.
pub fn pair(files: &CertificateFiles) -> Result<CertifiedKey, CertificateError> {
    let (chain, key) = chain_and_key(files)?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            CertificateError::Mismatch(files.certificate.clone(), files.private_key.clone())
        }
        rustls::Error::InvalidCertificate(_) => unusable(&files.certificate, &error),
        _ => unusable(&files.private_key, &error),
    })
}

/// The same in parts, for whoever identifies itself to a server.
pub fn chain_and_key(
    files: &CertificateFiles,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CertificateError> {
    let chain = certificates(&files.certificate)?;
    let path = &files.private_key;
    let key = PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| match error {
        pem::Error::NoItemsFound => CertificateError::Holds(path.clone(), "private key in PEM"),
        error => unusable(path, &error),
    })?;
    Ok((chain, key))
}

/// Authorities that may have signed what the other side shows.
pub fn authorities(path: &Path) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| unusable(path, &error))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(chain) if chain.is_empty() => Err(CertificateError::Holds(path.to_owned(), "certificate in PEM")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(unusable(path, &error)),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    std::fs::read(path).map_err(|error| CertificateError::Unreadable(path.to_owned(), error.to_string()))
}

fn unusable(path: &Path, error: &impl ToString) -> CertificateError {
    CertificateError::Unusable(path.to_owned(), error.to_string())
}

/// From when until when a certificate is valid (RFC 5280 section 4.1); `None` when it is no certificate.
pub fn validity(certificate: &CertificateDer<'_>) -> Option<(Timestamp, Timestamp)> {
    let (_, certificate, _) = element(certificate)?;
    let (_, body, _) = element(certificate)?;
    let mut rest = body;
    // version (tagged 0, absent in the first), serial number, signature algorithm, issuer; then validity.
    let (tag, _, after) = element(rest)?;
    if tag == 0xa0 {
        rest = after;
    }
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (_, validity, _) = element(rest)?;
    let (first_tag, first, rest) = element(validity)?;
    let (last_tag, last, _) = element(rest)?;
    Some((instant(first_tag, first)?, instant(last_tag, last)?))
}

/// One element of DER: its tag, its contents, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

/// UTCTime (two digits of the year, 1950 to 2049) or GeneralizedTime, both in UTC to the second.
fn instant(tag: u8, text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let century = match tag {
        0x17 if text.get(..2)? < "50" => "20",
        0x17 => "19",
        0x18 => "",
        _ => return None,
    };
    let digits = format!("{century}{text}");
    let part = |from: usize, to: usize| digits.get(from..to);
    let rfc3339 = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4)?,
        part(4, 6)?,
        part(6, 8)?,
        part(8, 10)?,
        part(10, 12)?,
        part(12, 14)?
    );
    Timestamp::parse(&rfc3339).ok()
}
