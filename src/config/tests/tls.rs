//! `tls` of the listener and of upstreams, with files that fit and files that do not.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use super::super::diagnostic::Severity;
use super::super::parse;

/// Writes a certificate for `name` that is valid until the end of that year, and its key.
fn issue(folder: &Path, name: &str, until: i32) {
    let mut params = CertificateParams::new(vec![format!("{name}.example")]).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(until, 12, 31));
    let key = KeyPair::generate().unwrap();
    std::fs::write(folder.join(format!("{name}.crt")), params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

/// What is said about a listener and an upstream with these members, without the folder and the warnings about routes.
fn told(folder: &Path, listener: &str, upstream: &str) -> String {
    let text = format!(
        "listen: {{ public: {{ address: 127.0.0.1:8080{listener} }} }}\nstore: {{ url: \"sqlite:x.db\" }}\n\
         upstreams: {{ a: {{ {upstream} }} }}\nroutes: [{{ match: GET /a, access: public }}]\n"
    );
    let found = match parse(&folder.join("gateway.yaml"), &text, &|_| None) {
        Ok((_, warnings)) => warnings,
        Err(error) => error.0,
    };
    let told = found.iter().filter(|d| d.severity == Severity::Error || d.place.contains("tls"));
    told.map(|d| d.to_string().replace(&format!("{}/", folder.display()), "")).collect::<Vec<_>>().join("\n")
}

#[test]
fn files_that_are_missing_or_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    [("a", 2999), ("b", 2999), ("old", 2021)].into_iter().for_each(|(name, until)| issue(folder, name, until));
    std::fs::write(folder.join("empty"), "nothing\n").unwrap();
    std::fs::write(folder.join("broken"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let plain = "endpoints: [\"http://h:1\"]";
    let pair = |a: &str, b: &str| format!("certificate: {a}, private_key: {b}");
    let of_a = pair("a.crt", "a.key");
    let mut all = String::new();
    for listener in [
        format!(", tls: {{ {of_a} }}"),
        format!(", tls: [{{ {of_a}, client_ca: b.crt }}, {{ {of_a}, client_ca: b.crt, sni: [x.y, \"*.z\"] }}]"),
        format!(", tls: {{ {} }}", pair("a.crt", "b.key")),
        format!(", tls: {{ {} }}", pair("none.crt", "{ file: a.key }")),
        format!(", tls: {{ {} }}", pair("empty", "a.key")),
        format!(", tls: {{ {} }}", pair("broken", "a.key")),
        format!(", tls: {{ {} }}", pair("a.crt", "a.crt")),
        format!(", tls: {{ {} }}", pair("old.crt", "old.key")),
        ", tls: { certificate: a.crt }".to_owned(),
        ", tls: {}".to_owned(),
        ", tls: []".to_owned(),
        format!(", tls: {{ {of_a}, client_ca: empty, sni: [\"a b\", \"*\"] }}"),
        format!(", tls: [{{ {of_a} }}, {{ {of_a} }}]"),
        format!(", tls: [{{ {of_a} }}, {{ {of_a}, client_ca: b.crt, sni: [x.y] }}]"),
    ] {
        all += &format!("---{listener}\n{}\n", told(folder, &listener, plain));
    }
    for upstream in [
        "endpoints: [\"https://h\"], http2: true".to_owned(),
        format!("endpoints: [\"https://h\"], tls: {{ ca: a.crt, server_name: x.y, {of_a} }}"),
        "endpoints: [\"https://h\"], tls: { ca: none.crt, server_name: \"a b\", private_key: a.key }".to_owned(),
        "endpoints: [\"http://h\"], tls: { ca: a.crt }".to_owned(),
        "endpoints: [\"http://h\"], http2: maybe".to_owned(),
    ] {
        all += &format!("--- {upstream}\n{}\n", told(folder, "", &upstream));
    }
    insta::assert_snapshot!(all);
}

#[test]
fn an_endpoint_of_https_has_its_usual_port_and_the_dates_of_a_certificate_are_read() {
    let text = "listen: { public: { address: 127.0.0.1:8080 } }\nstore: { url: \"sqlite:x.db\" }\n\
                upstreams: { a: { endpoints: [\"https://h\", \"https://h:8443\"] } }\n\
                routes: [{ match: GET /a, access: public }]\ntimeouts: { handshake: 3s }\n";
    let (config, _) = parse(Path::new("gateway.yaml"), text, &|_| None).unwrap();
    let endpoints: Vec<_> = config.upstreams[0].endpoints.iter().map(|e| (&*e.authority, e.encrypted)).collect();
    assert_eq!(endpoints, [("h:443", true), ("h:8443", true)]);
    assert_eq!(config.timeouts.handshake, std::time::Duration::from_secs(3));
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    // One date of each of the two kinds that certificates have.
    (params.not_before, params.not_after) = (date_time_ymd(1999, 12, 31), date_time_ymd(2050, 1, 2));
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let (first, last) = super::super::certificates::validity(certificate.der()).unwrap();
    assert_eq!((first.to_string(), last.to_string()), ("1999-12-31T00:00:00Z".into(), "2050-01-02T00:00:00Z".into()));
    assert_eq!(super::super::certificates::validity(&b"\x30\x03\x30\x01\x30"[..].into()), None);
}
