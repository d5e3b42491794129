//! TLS in front: which certificate is shown to whom, who is let in, and what happens when a file changes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::servers::Certificates;
use super::support::http2::Http2;
use super::support::{Stand, TlsClient, eventually};

const SOON: Duration = Duration::from_secs(10);
const REQUEST: &str = "GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fn entry(certificates: &Certificates, more: &str) -> String {
    format!(
        "{{ certificate: \"{}\", private_key: {{ file: \"{}\" }}{more} }}",
        certificates.server_certificate.display(),
        certificates.server_key.display()
    )
}

fn issue(folder: &Path, name: &str) -> Certificates {
    let folder = folder.join(name);
    std::fs::create_dir(&folder).unwrap();
    Certificates::issue(&folder)
}

fn of_file(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

#[test]
fn both_versions_of_tls_and_both_of_http_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::issue(folder.path());
    let stand = Stand::new().listener(&format!("tls: {}", entry(&certificates, ""))).start();
    let key = stand.key().create();
    for version in rustls::ALL_VERSIONS {
        let client = TlsClient::of_version(&certificates.ca, version);
        let answer = Http2::open_tls(stand.gateway.public, &client).get("/echo/x", &key).expect(200);
        assert_eq!(answer.echoed("x-forwarded-proto"), ["https"]);
        assert!(answer.echoed("forwarded")[0].contains("proto=https"));
        let request = format!(
            "GET /echo/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
            key.secret
        );
        let answer = client.ask(stand.gateway.public, &request).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"x-forwarded-proto\":[\"https\"]"),
            "{answer}"
        );
    }
    // Either scheme, in the absolute form: what it asks to have secured is.
    for scheme in ["https", "http"] {
        let target = format!("{scheme}://localhost/nowhere");
        let answer = TlsClient::new(&certificates.ca).ask(stand.gateway.public, &REQUEST.replace("/nowhere", &target));
        assert!(answer.unwrap().starts_with("HTTP/1.1 404"), "{target}");
    }
    // A client that knows no ALPN speaks HTTP/1; one that wants something else alone is told so.
    let client = TlsClient::new(&certificates.ca);
    assert_eq!(client.connect(stand.gateway.public, &[]).unwrap().alpn(), None);
    assert!(client.connect(stand.gateway.public, &["spdy/3"]).is_err());
    assert_eq!(stand.gateway.metric("gateway_tls_handshakes_failed_total", ""), Some(1.0));
}

#[test]
fn the_certificate_is_chosen_by_name_and_the_first_is_shown_to_everybody_else() {
    let folder = tempfile::tempdir().unwrap();
    let [first, exact, wild] = ["first", "exact", "wild"].map(|name| issue(folder.path(), name));
    let stand = Stand::new()
        .listener(&format!(
            "tls: [{}, {}, {}]",
            entry(&first, ""),
            entry(&exact, ", sni: [a.example, \"B.Example\"]"),
            entry(&wild, ", sni: [\"*.example\"]")
        ))
        .start();
    for (name, of) in [
        ("localhost", &first),
        ("a.example", &exact),
        ("b.example", &exact),
        ("A.EXAMPLE", &exact),
        ("c.example", &wild),
        ("d.c.example", &first),
        ("example", &first),
    ] {
        // The names do not stand in the certificates, so the client's own check fails: what was shown is what counts.
        let shown = TlsClient::new(&of.ca).named(name).shown(stand.gateway.public);
        assert_eq!(shown, of_file(&of.server_certificate), "{name}");
    }
}

#[test]
fn a_client_needs_a_certificate_where_an_authority_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (server, stranger) = (issue(folder.path(), "server"), issue(folder.path(), "stranger"));
    let stand = Stand::new()
        .listener(&format!("tls: {}", entry(&server, &format!(", client_ca: \"{}\"", server.ca.display()))))
        .start();
    let known = TlsClient::identified(&server.ca, &server.client_certificate, &server.client_key);
    assert!(known.ask(stand.gateway.public, REQUEST).unwrap().starts_with("HTTP/1.1 404"));
    let other = TlsClient::identified(&server.ca, &stranger.client_certificate, &stranger.client_key);
    for client in [TlsClient::new(&server.ca), other] {
        assert!(client.ask(stand.gateway.public, REQUEST).is_err());
    }
    eventually("two handshakes that failed", SOON, || {
        stand.gateway.metric("gateway_tls_handshakes_failed_total", "") == Some(2.0)
    });
}

#[test]
fn a_session_is_resumed_whichever_worker_takes_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::issue(folder.path());
    let stand = Stand::new().listener(&format!("tls: {}", entry(&certificates, ""))).start();
    for version in rustls::ALL_VERSIONS {
        let client = TlsClient::of_version(&certificates.ca, version);
        client.ask(stand.gateway.public, REQUEST).unwrap();
        for _ in 0..6 {
            let mut again = client.connect(stand.gateway.public, &["http/1.1"]).unwrap();
            assert!(again.is_resumed(), "{version:?}");
            again.write_all(REQUEST.as_bytes()).unwrap();
            let _ = again.read_to_end(&mut Vec::new());
        }
    }
}

#[test]
fn a_certificate_that_changes_is_taken_up_and_no_connection_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (issue(folder.path(), "old"), issue(folder.path(), "new"));
    // As Kubernetes does it: the files are links into a folder that is itself a link, which is replaced in one step.
    let place = folder.path().join("secret");
    std::fs::create_dir(&place).unwrap();
    let point_to = |name: &str| {
        let next = place.join("..next");
        std::os::unix::fs::symlink(folder.path().join(name), &next).unwrap();
        std::fs::rename(&next, place.join("..data")).unwrap();
    };
    point_to("old");
    for name in ["server.pem", "server.key"] {
        std::os::unix::fs::symlink(Path::new("..data").join(name), place.join(name)).unwrap();
    }
    let stand = Stand::new()
        .listener(&format!(
            "tls: {{ certificate: \"{0}/server.pem\", private_key: \"{0}/server.key\" }}",
            place.display()
        ))
        .start();
    let key = stand.key().create();
    let (knows_old, knows_new) = (TlsClient::new(&old.ca), TlsClient::new(&new.ca));
    let mut kept = Http2::open_tls(stand.gateway.public, &knows_old);
    kept.get("/echo/x", &key).expect(200);
    point_to("new");
    eventually("the new certificate", SOON, || knows_new.connect(stand.gateway.public, &["h2"]).is_ok());
    // A client that has a ticket from before still gets on with it.
    assert!(TlsClient::new(&old.ca).connect(stand.gateway.public, &["h2"]).is_err());
    kept.get("/echo/x", &key).expect(200);
    assert_eq!(stand.gateway.metric("gateway_tls_reloads_total", "outcome=\"loaded\""), Some(1.0));

    // A key that belongs to another certificate: told once, and what was in force stays.
    std::fs::copy(&old.server_key, &new.server_key).unwrap();
    eventually("a refusal", SOON, || {
        stand.gateway.metric("gateway_tls_reloads_total", "outcome=\"refused\"") == Some(1.0)
    });
    assert!(stand.gateway.process.stderr().contains("do not belong together"), "{}", stand.gateway.process.stderr());
    knows_new.connect(stand.gateway.public, &["h2"]).unwrap();
    kept.get("/echo/x", &key).expect(200);
}

#[test]
fn a_handshake_that_does_not_come_to_an_end_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::issue(folder.path());
    let stand = Stand::new()
        .listener(&format!("tls: {}", entry(&certificates, "")))
        .section("timeouts: { handshake: 1s }")
        .start();
    let mut silent = TcpStream::connect(stand.gateway.public).unwrap();
    silent.set_read_timeout(Some(SOON)).unwrap();
    // A record of a handshake, announced and not sent.
    silent.write_all(&[0x16, 3, 1, 2, 0, 1]).unwrap();
    let start = Instant::now();
    eventually("it counts as a connection", SOON, || stand.gateway.metric("gateway_connections", "") == Some(1.0));
    assert_eq!(silent.read(&mut [0; 9]).unwrap_or(0), 0);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    // HTTP without TLS is no handshake either.
    let mut plain = TcpStream::connect(stand.gateway.public).unwrap();
    plain.set_read_timeout(Some(SOON)).unwrap();
    plain.write_all(REQUEST.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
}
