//! A server that is away is not stormed, however many connections there were to it.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::support::{FaultProxy, RedisServer};
use super::{Servers, config, local, open};
use crate::store::{Part, Store, StoreError};

#[tokio::test]
async fn however_many_workers_there_are_a_server_that_is_away_is_tried_a_few_times_a_second_and_then_used_by_all() {
    let server = RedisServer::start();
    let proxy = FaultProxy::to(server.port());
    let mut many = config(Servers::Standalone(local(proxy.port())));
    many.connections = 17;
    let store = open(many).await;
    let all_are_connected = async || {
        // And one that listens for changes.
        while proxy.open_connections() < 18 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), all_are_connected()).await.unwrap();

    let before = proxy.connections();
    server.kill();
    sleep(Duration::from_secs(4)).await;
    let tried = proxy.connections() - before;
    // Each notices that it is lost and may try once; then one does it for all, four times a second, and the listener five times.
    assert!(tried <= 18 + 4 * 10, "{tried} connections in 4 s");
    let asked = Instant::now();
    assert!(matches!(store.ping(Part(0)).await, Err(StoreError::Unavailable(_))));
    assert!(asked.elapsed() < Duration::from_secs(1), "nobody waits for it: {:?}", asked.elapsed());

    server.restart();
    timeout(Duration::from_secs(2), all_are_connected()).await.expect("all are back within two seconds");
    store.ping(Part(0)).await.unwrap();
}
