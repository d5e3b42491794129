//! The section `store`: each topology compiles to what it says, and contradictions are told.

use super::{HEAD, ROUTES, good, told};
use crate::config::model::{RedisAccess, Secret, StoreConfig, StoreUrl};
use crate::config::redis_url::RedisServers;

fn with(store: &str) -> String {
    format!("{}{ROUTES}", HEAD.replace("store: { url: \"sqlite:data/gateway.db\" }", &format!("store: {store}")))
}

fn store(members: &str) -> StoreConfig {
    good(&with(members)).store
}

#[test]
fn a_redis_store_is_read_with_its_credentials_and_files_beside_the_configuration() {
    let read = store(
        "{ url: \"rediss://cache:7000/2\", username: gateway, password: { file: redis.password }, prefix: \"app1:\",
           tls: { ca: ca.crt, certificate: c.crt, private_key: { file: /keys/c.key } }, timeout: 20ms }",
    );
    let StoreUrl::Redis(url) = &read.url else { panic!("{:?}", read.url) };
    assert_eq!(url.servers, RedisServers::Standalone("cache".into(), 7000));
    assert_eq!((url.encrypted, url.database), (true, 2));
    let expected = RedisAccess {
        username: Some("gateway".into()),
        password: Some(Secret::File("/etc/seeme/redis.password".into())),
        prefix: "app1:".into(),
        encrypted: true,
        ca: Some("/etc/seeme/ca.crt".into()),
        client: Some(("/etc/seeme/c.crt".into(), "/keys/c.key".into())),
    };
    assert_eq!(read.access, expected);
    let sentinel = store("{ url: \"redis+sentinel://a,b/main\", tls: { enabled: true } }");
    assert!(sentinel.access.encrypted && sentinel.access.prefix == "sm:");
    assert!(!store("{ url: \"redis+cluster://a,b\", tls: { enabled: false } }").access.encrypted);
}

#[test]
fn what_contradicts_itself_or_has_no_effect_is_told() {
    let text = [
        "{ url: \"redis://h\", tls: { ca: x } }",
        "{ url: \"rediss://h\", tls: { enabled: false } }",
        "{ url: \"rediss://h\", tls: { certificate: c } }",
        "{ url: \"redis://u:topsecret@h\", username: v }",
        "{ url: \"redis://u:topsecret@h\" }",
        "{ url: \"redis+sentinel://h\" }",
        "{ url: \"redis+cluster://h/3\" }",
        "{ url: \"redis://a,b\" }",
        "{ url: \"redis://h\", prefix: \"a{b}\", password: { fil: x } }",
        "{ url: \"sqlite:x.db\", username: u, tls: { ca: c } }",
    ]
    .map(|members| format!("--- {members}\n{}", told(&with(members))))
    .join("");
    assert!(!text.lines().any(|line| !line.starts_with("---") && line.contains("topsecret")), "{text}");
    insta::assert_snapshot!(text);
}
