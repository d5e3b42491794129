//! From what a configuration says of a store to the store itself.
//!
//! `store` and `config` do not know each other; here one is told what the other has read.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::config::model::{Config, RedisAccess, Secret, StoreUrl};
use crate::config::redis_url::{RedisServers, RedisUrl};
use crate::store::redis::{Address, Password, RedisConfig, RedisStore, Servers, Tls};
use crate::store::sqlite::SqliteStore;
use crate::store::{Store, StoreError};

/// Opens a store by its URL, for a short while: makes a file when absent, begins to connect to a server.
pub fn open(url: &StoreUrl, access: &RedisAccess) -> Result<Arc<dyn Store>, StoreError> {
    match url {
        StoreUrl::Sqlite(path) => Ok(SqliteStore::open(path)?),
        StoreUrl::Redis(url) => Ok(RedisStore::open(redis_config(url, access, 1))?),
    }
}

/// Opens the store of a gateway, whose control runtime carries the connections.
pub(super) fn open_for(config: &Config, control: &Handle) -> Result<Arc<dyn Store>, StoreError> {
    match &config.store.url {
        StoreUrl::Sqlite(path) => Ok(SqliteStore::open(path)?),
        // The control runtime calls too, beside the workers.
        StoreUrl::Redis(url) => {
            Ok(RedisStore::open_on(redis_config(url, &config.store.access, config.workers + 1), control))
        }
    }
}

/// Credentials in the URL stand for themselves; otherwise those of the file are used.
fn redis_config(url: &RedisUrl, access: &RedisAccess, connections: usize) -> RedisConfig {
    let address = |(host, port): &(String, u16)| Address { host: host.clone(), port: *port };
    let all = |hosts: &[(String, u16)]| hosts.iter().map(address).collect();
    let servers = match &url.servers {
        RedisServers::Standalone(host, port) => Servers::Standalone(Address { host: host.clone(), port: *port }),
        RedisServers::Sentinel(hosts, master) => Servers::Sentinel { sentinels: all(hosts), master: master.clone() },
        RedisServers::Cluster(hosts) => Servers::Cluster(all(hosts)),
    };
    let encrypted = url.encrypted || (access.encrypted && !matches!(servers, Servers::Standalone(_)));
    let in_url = url.username.is_some() || url.password.is_some();
    let (username, password) = if in_url {
        (url.username.clone(), url.password.clone().map(Password::Text))
    } else {
        let password = access.password.clone().map(|secret| match secret {
            Secret::Text(text) => Password::Text(text),
            Secret::File(path) => Password::File(path),
        });
        (access.username.clone(), password)
    };
    RedisConfig {
        servers,
        tls: encrypted.then(|| Tls { ca: access.ca.clone(), client: access.client.clone() }),
        username,
        password,
        database: i64::from(url.database),
        prefix: access.prefix.clone(),
        connections,
    }
}
