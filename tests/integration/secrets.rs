//! What a gateway never gives away: keys, whatever they are put into, and its files.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::support::{Stand, eventually};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_planted_key_is_nowhere_but_where_it_was_handed_out() {
    let stand = Stand::new()
        .section("limits: { body_bytes: 1KiB }\nlog_level: trace")
        .route("* /echo/{*rest}", "scope: models:read")
        .route("* /public/{*rest}", "access: public")
        .route("POST /chat", "scope: models:read, resources: { model: body./model }")
        .start();
    let key = stand.key().scope("*").scope("api-keys:*").model("m-1").create();
    let deleted = stand.key().create();
    stand.cli(&["keys", "delete", &deleted.id]).expect_success();
    let secret = &key.secret;
    let encoded: String = secret.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let mut answers = Vec::new();
    {
        let mut ask = |request: super::support::Request| answers.push(request.send());
        for secret in [secret, &deleted.secret] {
            ask(stand.get("/echo/x").token(secret));
            ask(stand.get(&format!("/echo/x?key={secret}")).token("x"));
            ask(stand.get(&format!("/nowhere?access_token={secret}")));
            ask(stand.get(&format!("/nowhere/{secret}/x")));
            ask(stand.get(&format!("/public/{secret}")));
            ask(stand.get(&format!("/public/{encoded}")));
            ask(stand.get(&format!("/a//{secret}")));
            ask(stand.request(secret, "/public/x"));
            ask(stand.get("/public/x").header("Host", secret));
            ask(stand.get("/public/x").header("Host", &format!("{secret}/x")));
            ask(stand.get("/nowhere").header("Authorization", secret));
            ask(stand.get("/echo/x").header("Authorization", &format!("Basic {secret}")));
            ask(stand.get("/echo/x").header("Authorization", &format!("Bearer {secret} {secret}")));
            ask(stand.get("/public/x").header("X-Other", secret).header("traceparent", secret));
            ask(stand.get("/public/x").header("X-Request-Id", secret));
            ask(stand.post("/chat").bearer(&key).body(format!("{{\"model\":\"{secret}\"}}")));
            ask(stand.post("/chat").bearer(&key).body(format!("{{\"{secret}\":1")));
            ask(stand.post("/echo/x").bearer(&key).body(secret.repeat(100)));
            let base = "/api/v1/api-keys";
            ask(stand.post(base).bearer(&key).body(format!("{{\"name\":\"{secret}\",\"scopes\":[\"a:b\"]}}")));
            ask(stand
                .post(base)
                .bearer(&key)
                .body(format!("{{\"{secret}\":\"x\",\"name\":\"n\",\"scopes\":[\"{secret}\"]}}")));
            ask(stand.post(base).bearer(&key).body(secret));
            ask(stand.get(&format!("{base}/{secret}")).bearer(&key));
            ask(stand.get(&format!("{base}?account_id={secret}&include={secret}")).bearer(&key));
            ask(stand.get(&format!("{base}/{}/usage?start_date={secret}", key.id)).bearer(&key));
            ask(stand
                .request("PATCH", &format!("{base}/{}", key.id))
                .bearer(&key)
                .body(format!("{{\"expires_at\":\"{secret}\"}}")));
        }
    }
    for (number, answer) in answers.iter().enumerate() {
        // What the backend says is its own affair: it was given some of these in a path or a field that passes.
        if answer.head.all("content-type") == ["application/problem+json"] {
            let told = format!("{:?}{}", answer.head, answer.text());
            assert!(!told.contains(&secret[8..]) && !told.contains(&deleted.secret[8..]), "answer {number}: {told}");
        }
    }
    let told = stand.cli(&["keys", "show", secret]);
    assert_ne!(told.code, Some(0));
    let events = stand.cli(&["keys", "events", &key.id]).expect_success();
    let listed = stand.cli(&["keys", "list", "--include-deleted", "--json"]).expect_success();
    let shown = stand.cli(&["explain", "GET", &format!("/echo/{secret}"), "--scope", "models:read"]);
    let metrics = stand.gateway.admin("/metrics").text();
    let (store, folder) = (stand.store().to_owned(), stand.folder().to_owned());
    for (place, text) in [
        ("keys show", format!("{}{}", told.stdout, told.stderr)),
        ("keys events", format!("{}{}", events.stdout, events.stderr)),
        ("keys list", format!("{}{}", listed.stdout, listed.stderr)),
        ("explain", format!("{}{}", shown.stdout, shown.stderr)),
        ("metrics", metrics),
    ] {
        clean(place, text.as_bytes(), &[secret, &deleted.secret]);
    }
    // On disk while it runs (the write-ahead log) and after it has ended.
    eventually("the log has the last line", SOON, || {
        stand.gateway.process.stdout().lines().count() >= answers.len() - 10
    });
    scan(store.parent().unwrap(), &[secret, &deleted.secret]);
    let Stand { gateway, .. } = stand;
    assert_eq!(gateway.process.stop().code, Some(0));
    scan(&folder, &[secret, &deleted.secret]);
}

/// No file below a folder holds any of the secrets, nor the part of them that is random.
fn scan(folder: &Path, secrets: &[&String]) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            scan(&path, secrets);
        } else {
            clean(&path.display().to_string(), &std::fs::read(&path).unwrap_or_default(), secrets);
        }
    }
}

fn clean(place: &str, bytes: &[u8], secrets: &[&String]) {
    for secret in secrets {
        // From the 13th character on nobody may ever see it again.
        let random = &secret.as_bytes()[12..];
        if let Some(at) = bytes.windows(random.len()).position(|window| window.eq_ignore_ascii_case(random)) {
            let around = String::from_utf8_lossy(&bytes[at.saturating_sub(100)..(at + 50).min(bytes.len())]);
            panic!("{place} holds a secret: …{around}…");
        }
    }
}

#[test]
fn nobody_else_may_read_the_store() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    stand.get("/echo/x").bearer(&key).send().expect_status(200);
    let folder = stand.store().parent().unwrap().to_owned();
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
        files += 1;
    }
    assert!(files >= 1);
}

#[test]
fn a_gateway_never_leaves_a_core_file() {
    let stand = Stand::new().start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", stand.gateway.process.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}
