//! Tunnels end when their key is no longer good: on every gateway, whatever the store, and within a second.
//!
//! The times are printed: how long after the change was asked for each tunnel had ended.

use std::time::{Duration, Instant};

use super::servers::RedisServer;
use super::support::websocket::{agreeing, is_alive, open, parrot};
use super::support::{Gateway, Key, Layout, PATIENCE, Stand, wait_for};

/// The promise, counted from when it is said that the change is made.
const REVOKED_WITHIN: Duration = Duration::from_secs(1);

/// Two gateways with a tunnel each; `revoke` ends both in time, and the log says why. Nobody else notices.
fn revoked(layout: Layout, code: &str, revoke: impl FnOnce(&Stand, &Gateway, &Key)) {
    let upstream = agreeing(parrot);
    let stand = layout.upstream(upstream.address).start();
    let key = stand.key().create();
    let second = stand.another_gateway();
    let bystander = stand.key().create();
    let mut others = [open(&stand.gateway, &bystander), open(&second, &bystander)];
    let tunnels = [open(&stand.gateway, &key), open(&second, &key)].map(|mut tunnel| {
        is_alive(&mut tunnel);
        std::thread::spawn(move || (tunnel.is_closed_by_server(), Instant::now()))
    });
    let asked = Instant::now();
    revoke(&stand, &second, &key);
    let done = Instant::now();
    let ended = tunnels.map(|tunnel| {
        let (closed, ended) = tunnel.join().unwrap();
        assert!(closed, "{code}");
        assert!(ended.saturating_duration_since(done) < REVOKED_WITHIN, "{code}: {:?}", ended - done);
        ended - asked
    });
    println!("{code}: said to be done after {:?}, the tunnels had ended after {ended:?}", done - asked);
    for gateway in [&stand.gateway, &second] {
        let find = || gateway.request_log(1).into_iter().find(|line| line["status"] == 101);
        let (line, _) = wait_for("the end of the tunnel is logged", REVOKED_WITHIN * 10, find);
        assert_eq!(line["code"], code);
    }
    others.iter_mut().for_each(is_alive);
}

fn delete_over_the_api(stand: &Stand, through: &Gateway, key: &Key) {
    let manager = stand.key().account(&key.account).scope("api-keys:write").create();
    through.request("DELETE", &format!("/api/v1/api-keys/{}", key.id)).bearer(&manager).send().expect_status(200);
}

fn delete_by_the_command_line(stand: &Stand, _: &Gateway, key: &Key) {
    stand.cli(&["keys", "delete", &key.id]).expect_success();
}

#[test]
fn a_tunnel_ends_on_every_gateway_when_its_key_is_deleted_by_the_command_line() {
    revoked(Stand::new(), "invalid_key", delete_by_the_command_line);
}

#[test]
fn a_tunnel_ends_on_every_gateway_when_its_key_is_deleted_over_the_api() {
    revoked(Stand::new(), "invalid_key", delete_over_the_api);
}

#[test]
fn a_tunnel_ends_on_every_gateway_of_a_shared_redis_when_its_key_is_deleted() {
    for delete in [delete_over_the_api, delete_by_the_command_line] {
        let redis = RedisServer::start();
        let store = format!("url: \"{}\"{PATIENCE}", redis.url());
        revoked(Stand::new().shared_store(&store), "invalid_key", delete);
    }
}

#[test]
fn a_tunnel_ends_when_its_key_is_disabled_or_loses_scope_or_address_or_its_account_is_suspended() {
    revoked(Stand::new(), "disabled_key", |stand, _, key| {
        stand.cli(&["keys", "disable", &key.id]).expect_success();
    });
    revoked(Stand::new(), "insufficient_scope", |stand, _, key| {
        stand.cli(&["keys", "update", &key.id, "--scope", "datasets:read"]).expect_success();
    });
    revoked(Stand::new(), "address_not_allowed", |stand, _, key| {
        stand.cli(&["keys", "update", &key.id, "--allowed-address", "192.0.2.1"]).expect_success();
    });
    revoked(Stand::new(), "account_suspended", |stand, _, key| {
        stand.cli(&["accounts", "suspend", &key.account]).expect_success();
    });
}

#[test]
fn a_tunnel_ends_at_the_time_its_key_expires() {
    let upstream = agreeing(parrot);
    let stand = Stand::new().upstream(upstream.address).start();
    let expires = time::OffsetDateTime::now_utc() + Duration::from_secs(3);
    let text = expires.format(&time::format_description::well_known::Rfc3339).unwrap();
    let key = stand.key().expires_at(&text).create();
    let mut tunnel = open(&stand.gateway, &key);
    is_alive(&mut tunnel);
    assert!(tunnel.is_closed_by_server());
    let late = time::OffsetDateTime::now_utc() - expires;
    assert!((-0.01..1.0).contains(&late.as_seconds_f64()), "{late}");
    assert_eq!(stand.gateway.request_log(1)[0]["code"], "expired_key");
}
