//! TLS towards an upstream: its certificate is always verified, ours is shown where it is asked for.
//!
//! Files are looked at again before each handshake, so that a certificate that was renewed is in force with the next
//! connection. What cannot be read leaves what was there.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::UpstreamError;
use crate::config::certificates::{self, CertificateError};
use crate::config::model::{Endpoint, Upstream, UpstreamTls};

/// The TLS of one upstream, as one worker speaks it.
pub(super) struct UpstreamConnector {
    settings: UpstreamTls,
    alpn: &'static [u8],
    current: Mutex<Option<(Stamps, Arc<ClientConfig>)>>,
}

/// When each file was last written, and how long it is: a link that points elsewhere shows here too.
type Stamps = [Option<(SystemTime, u64)>; 3];

impl UpstreamConnector {
    pub(super) fn new(upstream: &Upstream) -> Self {
        let alpn: &[u8] = if upstream.http2 { b"h2" } else { b"http/1.1" };
        Self { settings: upstream.tls.clone(), alpn, current: Mutex::default() }
    }

    /// Shakes hands. The peer must have the name that is expected of it, and speak the protocol.
    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        endpoint: &Endpoint,
    ) -> Result<TlsStream<TcpStream>, UpstreamError> {
        let Some(name) = self.settings.server_name.clone().or_else(|| name_of(endpoint)) else {
            return Err(UpstreamError::Unreachable);
        };
        let config = self.config().map_err(|error| {
            tracing::warn!(%error, endpoint = %endpoint.authority, "no TLS to the upstream");
            UpstreamError::Unreachable
        })?;
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| {
            tracing::warn!(%error, endpoint = %endpoint.authority, "no TLS to the upstream");
            UpstreamError::Unreachable
        })?;
        if self.alpn == b"h2" && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            tracing::warn!(endpoint = %endpoint.authority, "the upstream does not speak HTTP/2");
            return Err(UpstreamError::Unreachable);
        }
        Ok(stream)
    }

    fn config(&self) -> Result<Arc<ClientConfig>, CertificateError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.settings);
        if let Some((seen, config)) = &*current
            && *seen == stamps
        {
            return Ok(config.clone());
        }
        match (configure(&self.settings, self.alpn), &mut *current) {
            (Ok(config), current) => {
                *current = Some((stamps, config.clone()));
                Ok(config)
            }
            (Err(error), Some((seen, config))) => {
                tracing::warn!(%error, "changed certificates do not fit; the old ones stay");
                *seen = stamps;
                Ok(config.clone())
            }
            (Err(error), None) => Err(error),
        }
    }
}

fn configure(settings: &UpstreamTls, alpn: &[u8]) -> Result<Arc<ClientConfig>, CertificateError> {
    let roots =
        settings.ca.as_deref().map_or_else(|| Ok(native()), |ca| certificates::authorities(ca).map(Arc::new))?;
    let unusable = |path: &Path, error: rustls::Error| CertificateError::Unusable(path.to_owned(), error.to_string());
    let builder = ClientConfig::builder_with_provider(certificates::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(Path::new("tls"), error))?
        .with_root_certificates(roots);
    let mut config = match &settings.client {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let (chain, key) = certificates::chain_and_key(files)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| unusable(&files.certificate, error))?
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

/// The system's authorities: read once, as the system's own programs do.
fn native() -> Arc<RootCertStore> {
    static NATIVE: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let load = || {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (_, ignored) = roots.add_parsable_certificates(found.certs);
        if roots.is_empty() || ignored > 0 {
            tracing::warn!(usable = roots.len(), ignored, errors = ?found.errors, "the system's certificate authorities");
        }
        Arc::new(roots)
    };
    NATIVE.get_or_init(load).clone()
}

fn stamps(settings: &UpstreamTls) -> Stamps {
    let client = settings.client.as_ref();
    [settings.ca.as_ref(), client.map(|files| &files.certificate), client.map(|files| &files.private_key)].map(|path| {
        let metadata = std::fs::metadata(path?).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}

fn name_of(endpoint: &Endpoint) -> Option<ServerName<'static>> {
    let (host, _) = endpoint.authority.rsplit_once(':')?;
    ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).ok()
}
