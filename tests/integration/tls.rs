//! TLS in front: which certificate is shown to whom, who is let in, and what happens when a file changes.

use std::path::Path;

use super::servers::Certificates;
use super::support::http2::Http2;
use super::support::{Stand, TlsClient};

fn member(certificates: &Certificates) -> String {
    format!(
        "tls: {{ certificate: \"{}\", private_key: \"{}\" }}",
        certificates.server_certificate.display(),
        certificates.server_key.display()
    )
}

#[test]
fn both_versions_of_tls_and_both_of_http_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::issue(folder.path());
    let stand = Stand::new().listener(&member(&certificates)).start();
    let key = stand.key().create();
    for version in rustls::ALL_VERSIONS {
        let client = TlsClient::of_version(&certificates.ca, version);
        let answer = Http2::open_tls(stand.gateway.public, &client).get("/echo/x", &key).expect(200);
        assert_eq!(answer.echoed("x-forwarded-proto"), ["https"]);
        assert!(answer.echoed("forwarded")[0].contains("proto=https"));
    }
}
