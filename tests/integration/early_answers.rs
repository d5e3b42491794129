//! Backends that answer before they have read the whole request, and close: the client is told what the backend said, however the
//! answer and the failure of a write race each other.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::servers::Certificates;
use super::support::{Scripted, Stand, Wire};

/// Each of them is one race.
const RACES: usize = 300;
/// Comes to a backend that takes none of it.
const UPLOAD: usize = 1_000_000;

const ANSWERS: [(u16, &str); 3] = [
    (413, "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nearly"),
    (401, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 5\r\n\r\nearly"),
    (400, "HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n0\r\n\r\n"),
];

/// Every upload gets the answer of the backend; says how often the gateway counted an error of the upstream.
fn expect_answers(stand: &Stand) {
    let key = stand.key().create();
    for race in 0..RACES {
        let expected = ANSWERS[race % ANSWERS.len()].0;
        let request = stand.post(&format!("/echo/{expected}")).bearer(&key).body(vec![b'x'; UPLOAD]);
        let response = request.send().expect_status(expected);
        assert!(response.complete && response.text() == "early", "{race}: {response:?}");
    }
    let errors = stand.gateway.metric("gateway_upstream_errors_total", "").unwrap_or_default();
    assert_eq!(errors, 0.0, "an answer that is complete is no failure");
}

fn answer_to(head: &str) -> &'static str {
    ANSWERS.iter().find(|(status, _)| head.contains(&format!("/echo/{status} "))).unwrap().1
}

#[test]
fn an_answer_that_comes_before_the_upload_is_over_reaches_the_client() {
    let upstream = Scripted::start(|wire: &mut Wire| {
        if let Some(head) = wire.head() {
            wire.send(answer_to(&head));
        }
    });
    let stand = Stand::new().upstream(upstream.address).start();
    expect_answers(&stand);
    assert_eq!(upstream.connections(), RACES, "none was used again, and nothing was sent twice");
}

#[test]
fn the_same_from_a_backend_that_speaks_tls() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::issue(folder.path());
    let connections = Arc::new(AtomicUsize::new(0));
    let address = serve_tls(&certificates, connections.clone());
    let upstream = format!(
        "main: {{ endpoints: [\"https://localhost:{}\"], tls: {{ ca: \"{}\" }} }}",
        address.port(),
        certificates.ca.display()
    );
    let stand = Stand::new().section(&format!("upstreams: {{ {upstream} }}")).start();
    expect_answers(&stand);
    assert_eq!(connections.load(Ordering::Relaxed), RACES);
}

fn serve_tls(certificates: &Certificates, connections: Arc<AtomicUsize>) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = vec![CertificateDer::from_pem_file(&certificates.server_certificate).unwrap()];
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(&certificates.server_key).unwrap())
        .unwrap();
    let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            connections.fetch_add(1, Ordering::Relaxed);
            // Nothing that was said may wait for anything, because a reset would take it away.
            stream.set_nodelay(true).unwrap();
            let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
            std::thread::spawn(move || {
                let mut octets = [0; 2048];
                let read = stream.read(&mut octets).unwrap();
                let _ = stream.write_all(answer_to(&String::from_utf8_lossy(&octets[..read])).as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
            });
        }
    });
    address
}
