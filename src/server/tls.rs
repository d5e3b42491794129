//! TLS towards clients: certificates chosen by name, sessions resumed, files that change taken up.
//!
//! Connections keep what they began with; only handshakes that come later see a new certificate. A pair that does not fit is
//! refused with a line in the log and the old one stays.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring::Ticketer;
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use crate::config::certificates::{self, CertificateError};
use crate::config::model::ListenTls;

/// Protocols on offer, the better first (RFC 7301).
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// What the files hold, all together.
    #[error("{0}")]
    Setting(String),
}

/// What a look at the files has brought.
#[derive(Debug)]
pub enum Refreshed {
    /// They are what they were.
    Unchanged,
    /// New ones are in force.
    Loaded,
    /// They changed, and cannot be used; what was in force stays.
    Refused(TlsError),
}

/// The listener's TLS, shared by all workers.
pub struct FrontTls {
    config: ArcSwap<ServerConfig>,
    source: Mutex<Source>,
}

/// Where it comes from.
struct Source {
    settings: ListenTls,
    /// Of all files, as last looked at.
    seen: blake3::Hash,
    /// Of the authorities whose clients hold tickets.
    authorities: blake3::Hash,
    tickets: Arc<dyn ProducesTickets>,
}

impl FrontTls {
    /// From the files.
    pub fn load(settings: &ListenTls) -> Result<Self, TlsError> {
        let (seen, authorities) = (digest(settings), digest_of(settings.client_ca.as_deref()));
        let tickets = tickets()?;
        let config = ArcSwap::from(configure(settings, tickets.clone())?);
        Ok(Self { config, source: Mutex::new(Source { settings: settings.clone(), seen, authorities, tickets }) })
    }

    /// For one handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }

    /// Looks at the files again. Blocks for as long as reading them takes.
    pub fn refresh(&self) -> Refreshed {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = digest(&source.settings);
        if seen == source.seen {
            return Refreshed::Unchanged;
        }
        // Also when it is refused: told once, not every second.
        source.seen = seen;
        match self.replace(&mut source) {
            Ok(()) => Refreshed::Loaded,
            Err(error) => Refreshed::Refused(error),
        }
    }

    /// Takes up other settings, as a new gateway.yaml has them; in an error the old ones stay.
    pub fn reconfigure(&self, settings: &ListenTls) -> Result<(), TlsError> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut source.settings, settings.clone());
        source.seen = digest(settings);
        self.replace(&mut source).inspect_err(|_| source.settings = before)
    }

    fn replace(&self, source: &mut Source) -> Result<(), TlsError> {
        let authorities = digest_of(source.settings.client_ca.as_deref());
        // A ticket stands for a certificate that was checked: by other authorities it may be worth nothing.
        let tickets = if authorities == source.authorities { source.tickets.clone() } else { tickets()? };
        self.config.store(configure(&source.settings, tickets.clone())?);
        (source.authorities, source.tickets) = (authorities, tickets);
        Ok(())
    }
}

impl std::fmt::Debug for FrontTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FrontTls")
    }
}

fn setting(error: impl ToString) -> TlsError {
    TlsError::Setting(error.to_string())
}

fn tickets() -> Result<Arc<dyn ProducesTickets>, TlsError> {
    Ticketer::new().map_err(setting)
}

fn configure(settings: &ListenTls, tickets: Arc<dyn ProducesTickets>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = certificates::provider();
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(setting)?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(certificates::authorities(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build().map_err(setting)?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName::load(settings)?));
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    config.ticketer = tickets;
    config.ignore_client_order = true;
    Ok(Arc::new(config))
}

/// Certificates by the name that a client asks for (RFC 6066 section 3).
#[derive(Debug)]
struct ByName {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows the one label that the star stands for.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    default: Arc<CertifiedKey>,
}

impl ByName {
    fn load(settings: &ListenTls) -> Result<Self, TlsError> {
        let (mut exact, mut wildcard, mut default) = (HashMap::new(), HashMap::new(), None);
        for certificate in &settings.certificates {
            let pair = Arc::new(certificates::pair(&certificate.files)?);
            for name in &certificate.names {
                let (of, name) = name.strip_prefix("*.").map_or((&mut exact, &**name), |rest| (&mut wildcard, rest));
                // The first one that names it, as everywhere in the list.
                of.entry(name.to_owned()).or_insert_with(|| pair.clone());
            }
            default.get_or_insert(pair);
        }
        let default = default.ok_or_else(|| setting("there is no certificate"))?;
        Ok(Self { exact, wildcard, default })
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        self.exact.get(name).or_else(|| self.wildcard.get(name.split_once('.')?.1))
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        Some(name.and_then(|name| self.find(&name)).unwrap_or(&self.default).clone())
    }
}

/// Of the contents of all files, so that no time stamp and no link can hide a change. A file that cannot be read counts as empty.
fn digest(settings: &ListenTls) -> blake3::Hash {
    let files = settings.certificates.iter().flat_map(|c| [&c.files.certificate, &c.files.private_key]);
    let mut hasher = blake3::Hasher::new();
    for path in files.chain(&settings.client_ca) {
        hasher.update(digest_of(Some(path)).as_bytes());
    }
    hasher.finalize()
}

fn digest_of(path: Option<&Path>) -> blake3::Hash {
    blake3::hash(&path.and_then(|path| std::fs::read(path).ok()).unwrap_or_default())
}
