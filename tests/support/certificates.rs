//! Certificates for TLS between the gateway and Redis: an authority of its own, a server, a client.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// Paths of PEM files. The server's certificate is for `localhost` and 127.0.0.1.
#[derive(Debug)]
pub(crate) struct Certificates {
    pub(crate) ca: PathBuf,
    pub(crate) server_certificate: PathBuf,
    pub(crate) server_key: PathBuf,
    pub(crate) client_certificate: PathBuf,
    pub(crate) client_key: PathBuf,
}

/// Whether a TLS server wants one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientCertificate {
    Required,
    NotAsked,
}

impl Certificates {
    /// Makes an authority that nobody else knows, and what it signs, in `folder`.
    pub(crate) fn issue(folder: &Path) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Redis test authority");
        let key = KeyPair::generate().unwrap();
        let ca = write(folder, "ca.pem", &params.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(params, key);
        let names = ["localhost", "127.0.0.1"];
        let (server_certificate, server_key) =
            signed(folder, &issuer, "server", &names, ExtendedKeyUsagePurpose::ServerAuth);
        let (client_certificate, client_key) =
            signed(folder, &issuer, "client", &["gateway"], ExtendedKeyUsagePurpose::ClientAuth);
        Self { ca, server_certificate, server_key, client_certificate, client_key }
    }
}

fn signed(
    folder: &Path,
    issuer: &Issuer<'_, KeyPair>,
    role: &str,
    names: &[&str],
    usage: ExtendedKeyUsagePurpose,
) -> (PathBuf, PathBuf) {
    let names = names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, role);
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    let written = write(folder, &format!("{role}.pem"), &certificate.pem());
    (written, write(folder, &format!("{role}.key"), &key.serialize_pem()))
}

fn write(folder: &Path, name: &str, pem: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, pem).unwrap();
    path
}
