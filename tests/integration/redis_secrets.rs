//! What Redis is told: hashes, never keys. Neither its commands nor anything it keeps hold a part of a secret that is not shown.

use serde_json::json;

use super::servers::{RedisServer, Reply};
use super::support::{Key, Stand, is_long};

const BASE: &str = "/api/v1/api-keys";

#[test]
fn redis_is_told_hashes_and_never_a_key() {
    let redis = RedisServer::start();
    let mut monitor = redis.monitor();
    let stand = Stand::new()
        .route("* /echo/{*rest}", "scope: models:read")
        .route("GET /models/{id}", "scope: models:read, resources: { model: path.id }")
        .shared_store(&format!("url: \"{}\"", redis.url()))
        .start();
    let other = stand.another_gateway();
    let caller = stand.key().scope("models:read").scope("api-keys:*").create();
    let admin = stand.key().scope("api-keys:*").scope("api-keys:admin").create();
    let limited = stand.key().scope("models:read").model("m-1").create();
    let mut secrets = vec![
        caller.secret.clone(),
        admin.secret.clone(),
        limited.secret.clone(),
        stand.key().plan("free").create().secret,
    ];
    for round in 0..if is_long() { 50 } else { 3 } {
        // A life: made, used, changed, looked at, refused, deleted; and where a key should not be.
        let wanted = json!({"name": format!("key {round}"), "scopes": ["models:read"]});
        let retry = format!("idempotency-key-{round}");
        let make = stand.post(BASE).bearer(&caller).header("Idempotency-Key", &retry).json(&wanted);
        let key = Key::of(make.send().expect_status(201).json());
        for gateway in [&stand.gateway, &other] {
            for path in ["/echo/x", "/nowhere", &format!("/echo/{}", key.secret), &format!("{BASE}/current")] {
                gateway.get(path).bearer(&key).send();
            }
        }
        let path = format!("{BASE}/{}", key.id);
        let patch = |body| stand.request("PATCH", &path).bearer(&caller).json(&body).send();
        patch(json!({"name": "another"})).expect_status(200);
        patch(json!({"disabled": true}));
        stand.get("/echo/x").bearer(&key).send().expect_status(401);
        stand.get(&format!("{path}/usage")).bearer(&caller).send().expect_status(200);
        stand.get(&format!("{path}/events")).bearer(&caller).send().expect_status(200);
        stand.request("DELETE", &path).bearer(&caller).send();
        stand.get("/echo/x").bearer(&key).send().expect_status(401);
        for told in [&key.secret, &key.secret[..40]] {
            stand.get(&format!("{BASE}/{told}")).bearer(&caller).send().expect_status(404);
            stand.get(&format!("{BASE}/{told}/usage")).bearer(&caller).send().expect_status(404);
            stand.get(&format!("{BASE}?account_id={told}")).bearer(&admin).send().expect_status(400);
            stand.get(&format!("/models/{told}")).bearer(&limited).send();
            for words in [["keys", "show", told], ["keys", "events", told], ["accounts", "show", told]] {
                assert_ne!(stand.cli(&words).code, Some(0), "{words:?}");
            }
        }
        stand.post(BASE).bearer(&caller).header("Idempotency-Key", &key.secret).json(&wanted).send();
        secrets.push(key.secret);
    }
    stand.usage(&caller);
    stand.cli(&["keys", "list", "--json"]).expect_success();
    other.process.stop();
    let commands = monitor.lines();
    println!("{} commands seen, with those in scripts; {} keys lived", commands.len(), secrets.len());
    assert!(commands.iter().any(|line| line.contains(&hash(&secrets[0]))), "the hash of a key in use was not seen");
    for line in &commands {
        clean(line.as_bytes(), &secrets);
    }
    for (name, value) in everything(&redis) {
        clean(name.as_bytes(), &secrets);
        clean(&value, &secrets);
    }
}

fn hash(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

/// All names with all that they hold.
fn everything(redis: &RedisServer) -> Vec<(String, Vec<u8>)> {
    let mut connection = redis.connect().unwrap();
    let names = connection.command(&["KEYS", "*"]).unwrap();
    let names: Vec<String> = names.list().iter().map(Reply::text).collect();
    assert!(
        names.iter().any(|name| name.contains("secret:")) && names.iter().any(|name| name.contains(":u:")),
        "{names:?}"
    );
    let mut all = Vec::new();
    for name in names {
        let kind = connection.command(&["TYPE", &name]).unwrap().text();
        let words: &[&str] = match kind.as_str() {
            "string" => &["GET", &name],
            "hash" => &["HGETALL", &name],
            "list" => &["LRANGE", &name, "0", "-1"],
            "zset" => &["ZRANGE", &name, "0", "-1"],
            "set" => &["SMEMBERS", &name],
            other => panic!("{name} is a {other}"),
        };
        let mut bytes = Vec::new();
        gather(&connection.command(words).unwrap(), &mut bytes);
        all.push((name, bytes));
    }
    all
}

fn gather(reply: &Reply, bytes: &mut Vec<u8>) {
    match reply {
        Reply::Bulk(more) => bytes.extend(more),
        Reply::List(list) => list.iter().for_each(|reply| gather(reply, bytes)),
        other => bytes.extend(other.text().bytes()),
    }
    bytes.push(b'\n');
}

fn clean(bytes: &[u8], secrets: &[String]) {
    for secret in secrets {
        // From the 13th character on nobody may ever see it again.
        let random = &secret.as_bytes()[12..];
        if let Some(at) = bytes.windows(random.len()).position(|window| window.eq_ignore_ascii_case(random)) {
            let around = String::from_utf8_lossy(&bytes[at.saturating_sub(200)..(at + 50).min(bytes.len())]);
            panic!("Redis holds a secret: …{around}…");
        }
    }
}
