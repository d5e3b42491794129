//! What a backend sees in the place of what the client sent: Host, prefixes, fields that prove the gateway.

use std::time::Duration;

use super::support::{Scripted, Stand, eventually};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Files are looked at once a second.
const SOON: Duration = Duration::from_secs(5);

/// A stand whose upstream has these members, and public routes.
fn before(upstream: &Scripted, members: &str) -> Stand {
    let section = format!("upstreams: {{ main: {{ endpoints: [\"http://{}\"], {members} }} }}", upstream.address);
    Stand::new()
        .section(&section)
        .upstream(upstream.address)
        .route("* /api/{*rest}", "access: public")
        .route("* /{*rest}", "access: public")
        .route("* /keyed/{*rest}", "scope: models:read")
        .start()
}

fn target(head: &str) -> &str {
    head.split(' ').nth(1).unwrap()
}

#[test]
fn the_backend_sees_the_clients_host_its_own_or_the_one_of_the_file() {
    let backend = Scripted::answering(HELLO);
    let own = backend.address.to_string();
    for (members, expected) in [
        ("host: preserve", "gateway.example"),
        ("host: upstream", &*own),
        ("host: api.example:8443", "api.example:8443"),
    ] {
        let stand = before(&backend, members);
        stand.get("/x").send().expect_status(200);
        let request = backend.requests().pop().unwrap();
        assert_eq!(request.all("host"), [expected], "{members}");
        assert_eq!(request.all("x-forwarded-host"), ["gateway.example"], "{members}: what the client asked for");
    }
}

#[test]
fn prefixes_are_whole_segments_and_the_rest_stays_octet_for_octet() {
    let backend = Scripted::answering(HELLO);
    for (members, sent, expected) in [
        ("strip_prefix: /api", "/api/a%2Db/?q=%20/api", "/a%2Db/?q=%20/api"),
        ("strip_prefix: /api", "/%61pi/x", "/x"),
        ("strip_prefix: /api", "/api/", "/"),
        ("strip_prefix: /api", "/apis/x", "/apis/x"),
        ("add_prefix: /v2", "/api/x", "/v2/api/x"),
        ("strip_prefix: /api, add_prefix: /v2/b%20c", "/api/x?y", "/v2/b%20c/x?y"),
    ] {
        let stand = before(&backend, members);
        stand.get(sent).send().expect_status(200);
        assert_eq!(target(&backend.requests().pop().unwrap().head), expected, "{members}");
    }
    // An absolute target, too.
    let stand = before(&backend, "strip_prefix: /api");
    stand.get("http://gateway.example/api/x?y").send().expect_status(200);
    assert_eq!(target(&backend.requests().pop().unwrap().head), "/x?y");
}

#[test]
fn fields_of_the_file_replace_the_clients_own_on_every_route() {
    let backend = Scripted::answering(HELLO);
    let stand = before(&backend, "set_headers: { X-Proof: secret, Authorization: Basic Z2F0ZXdheQ== }");
    let key = stand.key().scope("models:read").create();
    let forged = |request: super::support::Request| {
        request
            .header("X-Proof", "forged")
            .header("x_proof", "forged")
            .header("X-PROOF", "forged")
            .header("X_Other", "kept")
    };
    forged(stand.get("/x")).send().expect_status(200);
    forged(stand.get("/keyed/x")).bearer(&key).send().expect_status(200);
    forged(stand.request("POST", "/x"))
        .chunked(&[b"a"], &[("X-Proof", "forged"), ("X-Sum", "1")])
        .send()
        .expect_status(200);
    let requests = backend.requests();
    assert_eq!(requests.len(), 3);
    for request in &requests {
        assert_eq!(request.all("x-proof"), ["secret"]);
        assert_eq!(request.all("authorization"), ["Basic Z2F0ZXdheQ=="]);
        assert_eq!(request.all("x_other"), ["kept"]);
        assert!(!request.head.contains("forged"), "{}", request.head);
        assert!(!String::from_utf8_lossy(&request.body).contains("forged"), "no trailer adds one");
    }
}

#[test]
fn a_client_cannot_have_a_field_of_the_file_removed() {
    let backend = Scripted::answering(HELLO);
    let stand = before(&backend, "set_headers: { X-Proof: secret }");
    stand.get("/x").header("Connection", "X-Proof, close").send().expect_status(200);
    assert_eq!(backend.requests()[0].all("x-proof"), ["secret"]);
}

#[test]
fn a_secret_in_a_file_is_read_again_when_it_changes_and_stays_when_it_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proof");
    std::fs::write(&file, "first\n").unwrap();
    let backend = Scripted::answering(HELLO);
    let stand = before(&backend, &format!("set_headers: {{ X-Proof: {{ file: \"{}\" }} }}", file.display()));
    let proof = || {
        stand.get("/x").send().expect_status(200);
        backend.requests().pop().unwrap().all("x-proof").join(",")
    };
    assert_eq!(proof(), "first");
    // As Kubernetes does it: another file takes its name.
    let next = folder.path().join("next");
    std::fs::write(&next, "second").unwrap();
    std::fs::rename(&next, &file).unwrap();
    eventually("the new value is sent", SOON, || proof() == "second");
    std::fs::write(&file, "two\nlines").unwrap();
    eventually("that is complained about", SOON, || {
        stand.gateway.process.stderr().contains("is not the value of a field")
    });
    assert_eq!(proof(), "second");
    let log = stand.gateway.process.stderr() + &stand.gateway.process.stdout();
    assert!(!log.contains("second") && !log.contains("first"), "{log}");
}

#[test]
fn a_secret_that_is_emptied_or_gone_stays_and_each_trouble_is_told_once_with_member_and_file() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    std::fs::write(&first, "one").unwrap();
    std::fs::write(&second, "two").unwrap();
    let backend = Scripted::answering(HELLO);
    let file = |path: &std::path::Path| format!("{{ file: \"{}\" }}", path.display());
    let stand = before(&backend, &format!("set_headers: {{ X-First: {}, X-Second: {} }}", file(&first), file(&second)));
    let seen = || {
        stand.get("/x").send().expect_status(200);
        let request = backend.requests().pop().unwrap();
        (request.all("x-first").join(","), request.all("x-second").join(","))
    };
    let told = |text: &str| stand.gateway.process.stderr().matches(text).count();
    let emptied = format!("upstreams.main.set_headers.x-first: {} is not the value of a field", first.display());
    let gone = format!("upstreams.main.set_headers.x-first: cannot read {}", first.display());
    std::fs::write(&first, "").unwrap();
    eventually("an emptied file is told", SOON, || told(&emptied) == 1);
    // Another trouble of the same file, and another file that is well all the while.
    std::fs::remove_file(&first).unwrap();
    eventually("a file that is gone is told", SOON, || told(&gone) == 1);
    std::fs::write(&second, "new").unwrap();
    eventually("the other file is taken up", SOON, || seen().1 == "new");
    assert_eq!(seen().0, "one");
    std::fs::write(&first, "back").unwrap();
    eventually("it is taken up again", SOON, || seen().0 == "back");
    assert_eq!((told(&emptied), told(&gone)), (1, 1));
    std::fs::write(&first, "").unwrap();
    eventually("the same trouble again is told again", SOON, || told(&emptied) == 2);
    assert_eq!(seen(), ("back".to_owned(), "new".to_owned()));
}

#[test]
fn a_secret_that_is_not_there_at_the_start_is_told_and_nothing_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("gateway.yaml");
    std::fs::write(
        &config,
        "listen: { public: { address: \"127.0.0.1:0\" }, admin: { address: \"127.0.0.1:0\" } }
store: { url: \"sqlite:gateway.db\" }
upstreams: { main: { endpoints: [\"http://127.0.0.1:9\"], set_headers: { X-Proof: { file: nowhere } } } }
routes: [{ match: GET /, access: public }]
",
    )
    .unwrap();
    let finished = super::support::cli(&["run", "-c", config.to_str().unwrap()]).expect_code(1);
    assert!(finished.stderr.contains("upstreams.main.set_headers.x-proof: cannot read"), "{}", finished.stderr);
}
