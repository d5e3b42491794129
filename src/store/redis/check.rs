//! Whether this server can be the store, and whether it is set up as it should be.
//!
//! What cannot work is refused before the first call; what works and may lose something is a [`Finding`]. A server that does not
//! let itself be asked (managed ones often do not) is taken as it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use super::RedisStore;
use super::node::Node;
use super::script;
use crate::policy::key::Timestamp;
use crate::store::{Finding, StoreError};

/// What this version writes. Raise it when rows change; members that are only added, and narrow nothing, need no new one.
/// 2: `allowed_addresses` of keys, `concurrent_requests` of accounts.
const SCHEMA: u32 = 2;
/// The oldest version that can still read what this one writes, and lets nothing through that is forbidden there.
const MIN_READER: u32 = 2;
/// `SET … EXAT` and RESP3 with tracking of prefixes.
const OLDEST_SERVER: (u32, u32) = (6, 2);
/// How long the start waits for all masters to be listened to.
const LISTEN: Duration = Duration::from_secs(2);

impl RedisStore {
    /// Checked once, before the first call to the registry: is it a server that we can use, with a schema that we understand?
    pub(super) async fn ready(&self) -> Result<(), StoreError> {
        self.checked
            .get_or_try_init(|| async {
                let info = self.info(&self.registry_node_soon().await?).await?;
                if let Some(version) = info.get("redis_version")
                    && !new_enough(version)
                {
                    let (major, minor) = OLDEST_SERVER;
                    return Err(StoreError::Refused(format!(
                        "the server is Redis {version}; {major}.{minor} or newer is needed"
                    )));
                }
                let call = self.registry_call(&script::SCHEMA).arg(SCHEMA).arg(MIN_READER);
                let (version, min_reader): (u32, u32) = self.client.call(call).await?;
                if min_reader > SCHEMA {
                    return Err(StoreError::Corrupt(format!(
                        "written by a newer seeme-gateway (schema {version}, readable from {min_reader} on, this one knows \
                         {SCHEMA}); run that version, or set another store.prefix"
                    )));
                }
                // Who subscribes now must not hear that the feed is only beginning. One that cannot begin says so by itself.
                self.hub.begin(LISTEN).await;
                Ok(())
            })
            .await
            .map(drop)
    }

    /// What the server tells of itself; nothing, when it does not.
    async fn info(&self, node: &Arc<Node>) -> Result<HashMap<String, String>, StoreError> {
        match self.client.ask(node.clone(), redis::cmd("INFO")).await {
            Ok(text) => Ok(understand(&text)),
            Err(StoreError::Refused(_) | StoreError::Corrupt(_)) => Ok(HashMap::new()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn look_around(&self) -> Result<Vec<Finding>, StoreError> {
        self.ready().await?;
        let (mut eviction, mut persistence) = (Vec::new(), Vec::new());
        for node in &self.client.topology().view().masters {
            let info = self.info(node).await?;
            let value = |name: &str| info.get(name).map_or("", String::as_str);
            if !matches!(value("maxmemory_policy"), "" | "noeviction") {
                eviction.push(format!(
                    "{}: maxmemory-policy is {}: under memory pressure the server forgets keys and quota; set noeviction",
                    node.address,
                    value("maxmemory_policy")
                ));
            }
            if value("aof_enabled") == "0" && value("connected_slaves") == "0" {
                persistence.push(format!(
                    "{}: no append-only file and no replica: a restart forgets keys, accounts and usage; set appendonly yes, \
                     or add a replica",
                    node.address
                ));
            }
        }
        let refusing = self.hub.refusing();
        let tracking = refusing.iter().map(|address| {
            format!(
                "{address} does not let names be tracked (CLIENT TRACKING): changes come over the channel {} instead",
                self.names.channel()
            )
        });
        Ok(vec![
            finding("eviction", eviction),
            finding("persistence", persistence),
            finding("tracking", tracking.collect()),
        ])
    }

    /// The server's clock.
    pub(super) async fn server_time(&self) -> Result<Timestamp, StoreError> {
        let time = self.client.ask(self.registry_node()?, redis::cmd("TIME")).await?;
        let (seconds, micros): (i64, i64) =
            redis::from_redis_value(time).map_err(|error| StoreError::Corrupt(format!("TIME: {error}")))?;
        Ok(Timestamp::from_unix_millis(seconds * 1000 + micros / 1000))
    }
}

fn finding(check: &'static str, troubles: Vec<String>) -> Finding {
    Finding { check, trouble: (!troubles.is_empty()).then(|| troubles.join("; ")) }
}

fn understand(info: &Value) -> HashMap<String, String> {
    let text = match info {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::VerbatimString { text, .. } => text.clone(),
        _ => String::new(),
    };
    let pair = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    text.lines().filter_map(pair).collect()
}

fn new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= OLDEST_SERVER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_compared_as_numbers() {
        for (version, enough) in
            [("6.2.0", true), ("6.0.16", false), ("10.1.2", true), ("7.0.15", true), ("5.9", false)]
        {
            assert_eq!(new_enough(version), enough, "{version}");
        }
        let info = Value::BulkString(b"# Server\r\nredis_version:7.0.15\r\naof_enabled:0\r\n".to_vec());
        assert_eq!(understand(&info)["redis_version"], "7.0.15");
    }
}
