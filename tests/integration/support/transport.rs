//! A socket to the gateway: plain, or with TLS on it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, RootCertStore, SignatureScheme, StreamOwned,
    SupportedProtocolVersion,
};

/// Longer than anything a test waits for: reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Either.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// What a TLS client knows and shows.
#[derive(Debug, Clone)]
pub(crate) struct TlsClient {
    config: ClientConfig,
    name: String,
}

fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

impl Transport {
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self::Plain(dial(address))
    }

    pub(crate) fn alpn(&self) -> Option<Vec<u8>> {
        self.session()?.alpn_protocol().map(<[u8]>::to_vec)
    }

    fn session(&self) -> Option<&ClientConnection> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => Some(&stream.conn),
        }
    }

    pub(crate) fn is_resumed(&self) -> bool {
        self.session().unwrap().handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

impl TlsClient {
    /// Trusts this authority alone and asks for `localhost`.
    pub(crate) fn new(ca: &Path) -> Self {
        Self::with(ca, None, rustls::ALL_VERSIONS)
    }

    /// The same, with one version of TLS.
    pub(crate) fn of_version(ca: &Path, version: &'static SupportedProtocolVersion) -> Self {
        Self::with(ca, None, &[version])
    }

    /// The same, with a certificate of its own.
    pub(crate) fn identified(ca: &Path, certificate: &Path, key: &Path) -> Self {
        Self::with(ca, Some((certificate, key)), rustls::ALL_VERSIONS)
    }

    fn with(ca: &Path, own: Option<(&Path, &Path)>, versions: &[&'static SupportedProtocolVersion]) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap()
            }
        };
        config.resumption = Resumption::in_memory_sessions(32);
        Self { config, name: "localhost".to_owned() }
    }

    /// Asks for another name.
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// Shakes hands, offering these protocols.
    pub(crate) fn connect(&self, address: SocketAddr, alpn: &[&str]) -> io::Result<Transport> {
        let mut config = self.config.clone();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(self.name.clone()).unwrap();
        let session = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(session, dial(address));
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Transport::Tls(Box::new(stream)))
    }

    /// The certificate that the server shows, whether or not it is for the name that was asked for.
    pub(crate) fn shown(&self, address: SocketAddr) -> CertificateDer<'static> {
        let shown = Arc::new(Mutex::new(None));
        let mut config = self.config.clone();
        config.dangerous().set_certificate_verifier(Arc::new(Looker(shown.clone())));
        Self { config, name: self.name.clone() }.connect(address, &["h2"]).unwrap();
        let shown = shown.lock().unwrap().take();
        shown.unwrap()
    }

    /// One request of HTTP/1.1 on a connection of its own: the head of the answer and what follows.
    pub(crate) fn ask(&self, address: SocketAddr, request: &str) -> io::Result<String> {
        let mut transport = self.connect(address, &["http/1.1"])?;
        transport.write_all(request.as_bytes())?;
        let mut text = String::new();
        match transport.read_to_string(&mut text) {
            Ok(_) => Ok(text),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !text.is_empty() => Ok(text),
            Err(error) => Err(error),
        }
    }
}

/// Believes everybody and keeps what it was shown.
#[derive(Debug)]
struct Looker(Arc<Mutex<Option<CertificateDer<'static>>>>);

impl ServerCertVerifier for Looker {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap() = Some(certificate.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(octets),
            Self::Tls(stream) => stream.write(octets),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
