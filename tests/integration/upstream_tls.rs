//! TLS to the upstream: whom the gateway believes, by what it identifies itself, and what it speaks there.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::servers::Certificates;
use super::support::{Key, Stand};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// What a TLS server has seen of a handshake: the name it was asked for, the protocols on offer, whether a certificate came.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shaken {
    name: Option<String>,
    alpn: Option<Vec<u8>>,
    identified: bool,
}

struct TlsServer {
    address: SocketAddr,
    shaken: Arc<Mutex<Vec<Shaken>>>,
}

/// Answers one request after the other with `OK`; asks for a certificate when told to.
fn serve(certificates: &Certificates, client_ca: Option<&Path>) -> TlsServer {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = vec![CertificateDer::from_pem_file(&certificates.server_certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&certificates.server_key).unwrap();
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
    let (address, shaken) = (listener.local_addr().unwrap(), Arc::new(Mutex::default()));
    let seen: Arc<Mutex<Vec<Shaken>>> = Arc::clone(&shaken);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (config, seen) = (config.clone(), seen.clone());
            std::thread::spawn(move || {
                let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
                let mut octets = [0; 16 * 1024];
                while let Ok(1..) = stream.read(&mut octets) {
                    let conn = &stream.conn;
                    seen.lock().unwrap().push(Shaken {
                        name: conn.server_name().map(str::to_owned),
                        alpn: conn.alpn_protocol().map(<[u8]>::to_vec),
                        identified: conn.peer_certificates().is_some(),
                    });
                    if stream.write_all(OK).is_err() {
                        return;
                    }
                }
            });
        }
    });
    TlsServer { address, shaken }
}

fn before(endpoint: &str, members: &str) -> (Stand, Key) {
    let stand =
        Stand::new().section(&format!("upstreams: {{ main: {{ endpoints: [\"{endpoint}\"]{members} }} }}")).start();
    let key = stand.key().create();
    (stand, key)
}

#[test]
fn an_upstream_with_a_certificate_of_the_named_authority_is_believed() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::issue(folder.path());
    let server = serve(&certificates, None);
    let endpoint = format!("https://localhost:{}", server.address.port());
    let (stand, key) = before(&endpoint, &format!(", tls: {{ ca: \"{}\" }}", certificates.ca.display()));
    for _ in 0..3 {
        assert_eq!(stand.get("/echo/x").bearer(&key).send().expect_status(200).text(), "ok");
    }
    let first = server.shaken.lock().unwrap()[0].clone();
    let expected = Shaken { name: Some("localhost".to_owned()), alpn: Some(b"http/1.1".to_vec()), identified: false };
    assert_eq!(first, expected);
}

#[test]
fn another_authority_the_systems_and_another_name_are_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let (certificates, other) = (issue(folder.path(), "own"), issue(folder.path(), "other"));
    let server = serve(&certificates, None);
    let (own, other) = (certificates.ca.display(), other.ca.display());
    for members in [
        format!(", tls: {{ ca: \"{other}\" }}"),
        String::new(),
        format!(", tls: {{ ca: \"{own}\", server_name: backend.example }}"),
    ] {
        let (stand, key) = before(&format!("https://{}", server.address), &members);
        stand.get("/echo/x").bearer(&key).send().expect_refusal(502, "upstream_unreachable");
        stand.gateway.process.complains_of("no TLS to the upstream");
    }
    assert!(server.shaken.lock().unwrap().is_empty(), "a request went to somebody who was not believed");
}

#[test]
fn the_name_is_the_one_that_is_told_or_the_endpoints_and_a_certificate_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::issue(folder.path());
    let server = serve(&certificates, Some(&certificates.ca));
    let tls = format!(
        "ca: \"{}\", certificate: \"{}\", private_key: {{ file: \"{}\" }}",
        certificates.ca.display(),
        certificates.client_certificate.display(),
        certificates.client_key.display()
    );
    // By address the certificate is checked for the address, and no name is asked for.
    for (name, expected) in [("", None), (", server_name: localhost", Some("localhost".to_owned()))] {
        let (stand, key) = before(&format!("https://{}", server.address), &format!(", tls: {{ {tls}{name} }}"));
        stand.get("/echo/x").bearer(&key).send().expect_status(200);
        let last = server.shaken.lock().unwrap().last().unwrap().clone();
        assert_eq!((last.name, last.identified), (expected, true));
    }
    let (stand, key) =
        before(&format!("https://{}", server.address), &format!(", tls: {{ ca: \"{}\" }}", certificates.ca.display()));
    stand.get("/echo/x").bearer(&key).send().expect_status(502);
}

fn issue(folder: &Path, name: &str) -> Certificates {
    let folder = folder.join(name);
    std::fs::create_dir(&folder).unwrap();
    Certificates::issue(&folder)
}

#[test]
fn two_gateways_speak_http2_with_tls_to_each_other_and_one_that_does_not_is_a_502() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::issue(folder.path());
    let behind = Stand::new()
        .listener(&format!(
            "tls: {{ certificate: \"{}\", private_key: \"{}\" }}",
            certificates.server_certificate.display(),
            certificates.server_key.display()
        ))
        .start();
    let tls = format!(", http2: true, tls: {{ ca: \"{}\" }}", certificates.ca.display());
    let (front, key) = before(&format!("https://{}", behind.gateway.public), &tls);
    let response = front.post("/public/x").bearer(&key).body("abc").send();
    // A public route, behind which there is nothing: what counts is who answered.
    assert_eq!(response.status(), 404, "{response:?}");
    assert!(behind.gateway.metric("gateway_requests_total", "/public").is_some());
    let server = serve(&certificates, None);
    let (stand, key) = before(&format!("https://{}", server.address), &tls);
    stand.get("/echo/x").bearer(&key).send().expect_refusal(502, "upstream_unreachable");
}

#[test]
fn a_handshake_that_takes_too_long_is_a_504_within_the_connect_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let (stand, key) = before(&endpoint, ", connect_timeout: 300ms");
    let start = std::time::Instant::now();
    stand.get("/echo/x").bearer(&key).send().expect_refusal(504, "upstream_timeout");
    assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
}
