//! The contract over real servers in every topology, and what only Redis can be asked.

#[path = "../../../tests/support/mod.rs"]
mod support;

mod away;
mod feed;
mod lease;
mod login;
mod moves;
mod speed;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Address, Password, RedisConfig, RedisStore, Servers, Tls};
use crate::store::contract::{Stand, store_contract};
use support::{Cluster, RedisServer, Sentinels};

fn local(port: u16) -> Address {
    Address { host: "127.0.0.1".to_owned(), port }
}

/// A configuration with a prefix that nobody else has.
fn config(servers: Servers) -> RedisConfig {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let prefix = format!("t{}-{}:", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    RedisConfig { servers, tls: None, username: None, password: None, database: 0, prefix, connections: 2 }
}

fn at(server: &RedisServer) -> RedisConfig {
    config(Servers::Standalone(local(server.port())))
}

/// A store that has been asked something, so that it is connected.
async fn open(config: RedisConfig) -> Arc<RedisStore> {
    let store = RedisStore::open(config).unwrap();
    store.ready().await.unwrap();
    store
}

async fn stand(config: RedisConfig, keep: impl Send + 'static) -> Stand {
    Stand { store: open(config).await, _keep: Box::new(keep) }
}

mod standalone {
    use super::*;

    store_contract!({
        let server = RedisServer::shared();
        stand(at(&server), server).await
    });
}

mod sentinel {
    use super::*;

    store_contract!({
        let sentinels = Sentinels::shared();
        stand(config(with_sentinels(&sentinels)), sentinels).await
    });
}

mod cluster {
    use super::*;

    store_contract!({
        let cluster = Cluster::shared();
        stand(config(with_cluster(&cluster)), cluster).await
    });
}

fn with_sentinels(sentinels: &Sentinels) -> Servers {
    let all = sentinels.sentinel_ports().into_iter().map(local).collect();
    Servers::Sentinel { sentinels: all, master: sentinels.name().to_owned() }
}

fn with_cluster(cluster: &Cluster) -> Servers {
    Servers::Cluster(cluster.nodes().iter().map(|node| local(node.port())).collect())
}
