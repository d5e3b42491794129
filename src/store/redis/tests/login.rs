//! Who is let in, over which encryption, and what is said to those who are not.

use super::support::{ClientCertificate, RedisServer};
use super::{Password, RedisConfig, RedisStore, Servers, Tls, at, config, local, open};
use crate::store::contract::{create, hash};
use crate::store::{Store, StoreError};

async fn refusal(config: RedisConfig) -> StoreError {
    RedisStore::open(config).unwrap().ready().await.unwrap_err()
}

#[tokio::test]
async fn an_acl_user_with_the_permissions_of_the_readme_is_enough() {
    let server = RedisServer::start();
    let mut limited = at(&server);
    let keys = format!("~{}*", limited.prefix);
    let channel = format!("&{}changes", limited.prefix);
    let readme = include_str!("../../../../README.md");
    let rules =
        readme.lines().find_map(|line| line.trim().strip_prefix("ACL SETUSER gateway on '>…' '~sm:*' '&sm:changes' "));
    let rules = rules.expect("the line of the README that makes the user");
    let rules: Vec<&str> =
        [keys.as_str(), channel.as_str()].into_iter().chain(rules.split_ascii_whitespace()).collect();
    server.create_user("gateway", "secret", &rules);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "secret\n").unwrap();
    (limited.username, limited.password) = (Some("gateway".to_owned()), Some(Password::File(file)));
    let store = open(limited).await;
    create(&*store, "k1", "a1").await;
    assert!(store.key_by_secret(hash("k1")).await.unwrap().is_some());
    store.sweep(std::time::Duration::from_secs(1)).await.unwrap();
    let findings = store.findings().await.unwrap();
    assert!(findings.iter().all(|finding| finding.check != "tracking" || finding.trouble.is_none()), "{findings:?}");
}

#[tokio::test]
async fn wrong_credentials_and_missing_permissions_are_a_refusal_that_says_where_to_look() {
    let server = RedisServer::start();
    server.create_user("gateway", "secret", &["~*", "&*", "+@all"]);
    server.create_user("reader", "secret", &["~*", "+@read", "+info", "+ping", "+hello", "+client"]);
    let wrong = |username: &str, password: &str| RedisConfig {
        username: Some(username.to_owned()),
        password: Some(Password::Text(password.to_owned())),
        ..at(&server)
    };
    for (config, words) in [(wrong("gateway", "guess"), "store.password"), (wrong("reader", "secret"), "permissions")] {
        match refusal(config).await {
            StoreError::Refused(text) => assert!(text.contains(words) && !text.contains("guess"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn tls_is_proved_by_the_named_authority_in_both_directions() {
    let server = RedisServer::start_tls(ClientCertificate::Required);
    let certificates = server.certificates();
    let good = Tls {
        ca: Some(certificates.ca.clone()),
        client: Some((certificates.client_certificate.clone(), certificates.client_key.clone())),
    };
    let with = |tls| RedisConfig { tls: Some(tls), ..config(Servers::Standalone(local(server.tls_port()))) };
    let store = open(with(good.clone())).await;
    create(&*store, "k1", "a1").await;
    assert!(store.key_by_secret(hash("k1")).await.unwrap().is_some());
    // Without a certificate of ours, or with an authority that did not sign theirs, nothing is said.
    for tls in [Tls { client: None, ..good.clone() }, Tls { ca: None, ..good }] {
        let error = refusal(with(tls)).await;
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    }
}
