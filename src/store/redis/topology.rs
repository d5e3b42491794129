//! Which server is asked for what: one server, the master that sentinels name, or the masters of a cluster.
//!
//! Keeps a view of slots and masters, and renews it every few seconds, and at once when a connection is lost or a server says that
//! it is not the one. A view that cannot be renewed stays: its servers may still answer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::connect::{Address, RedisConfig, Servers, connect, connect_sentinel};
use super::names::{Names, SLOTS, slot};
use super::node::Node;
use crate::store::StoreError;

/// How often the view is renewed although nothing is wrong.
const RENEW: Duration = Duration::from_secs(2);
/// Never more often than this.
const AT_MOST: Duration = Duration::from_millis(250);
/// What a server may take to describe the others.
const ANSWER: Duration = Duration::from_secs(1);

/// Who has which slots now.
#[derive(Debug, Default)]
pub(super) struct View {
    /// The last slot of each range, and its master; ranges without a master are left out.
    ranges: Vec<(u16, u16, Arc<Node>)>,
    /// Each master once, by address.
    pub(super) masters: Vec<Arc<Node>>,
}

impl View {
    fn of(&self, slot: u16) -> Option<&Arc<Node>> {
        let range = self.ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot));
        range.map(|(_, _, node)| node)
    }
}

/// The servers of the store.
pub(super) struct Topology {
    config: Arc<RedisConfig>,
    view: RwLock<Arc<View>>,
    /// Grows with every change of the view.
    changed: watch::Sender<u64>,
    /// Something is wrong with the view or its servers.
    doubted: Arc<Notify>,
    /// All servers ever met, so that parts keep their numbers and connections survive a change of the view.
    nodes: RwLock<BTreeMap<Address, (usize, Arc<Node>)>>,
    /// Servers met so far: each has a number of its own, also after others were given up.
    met: AtomicUsize,
    /// The slot of keys and accounts.
    registry: u16,
    /// Why the servers could not be found out, last.
    trouble: RwLock<Option<StoreError>>,
}

impl Topology {
    /// Begins to look. Needs the runtime on which connections shall live.
    pub(super) fn start(config: Arc<RedisConfig>, names: &Names) -> Arc<Self> {
        let topology = Arc::new(Self {
            config,
            view: RwLock::default(),
            changed: watch::Sender::new(0),
            doubted: Arc::default(),
            nodes: RwLock::default(),
            met: AtomicUsize::new(0),
            registry: slot(&names.registry()),
            trouble: RwLock::default(),
        });
        if let Servers::Standalone(address) = &topology.config.servers {
            topology.adopt(vec![(0, SLOTS - 1, address.clone())]);
        } else {
            tokio::spawn(renew(Arc::downgrade(&topology)));
        }
        topology
    }

    pub(super) fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Rings with every change of the view.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The master of a slot.
    pub(super) fn master(&self, slot: u16) -> Option<Arc<Node>> {
        self.view().of(slot).cloned()
    }

    /// [`Self::master`], or why there is none.
    pub(super) fn find(&self, slot: u16) -> Result<Arc<Node>, StoreError> {
        self.master(slot).ok_or_else(|| {
            self.doubt();
            let trouble = self.trouble.read().unwrap_or_else(PoisonError::into_inner).clone();
            trouble.unwrap_or_else(|| StoreError::Unavailable("its servers are not known yet".to_owned()))
        })
    }

    /// The master of keys and accounts.
    pub(super) fn registry(&self) -> Result<Arc<Node>, StoreError> {
        self.find(self.registry)
    }

    /// The server at this address, as another one has pointed to it.
    pub(super) fn node(&self, address: &Address) -> Arc<Node> {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            let number = self.met.fetch_add(1, Ordering::Relaxed) + 1;
            (number, Node::start(&self.config, address.clone(), &self.doubted))
        };
        nodes.entry(address.clone()).or_insert_with(start).1.clone()
    }

    /// The view may be wrong: look again soon.
    pub(super) fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// Uses these ranges from now on.
    fn adopt(&self, ranges: Vec<(u16, u16, Address)>) {
        let ranges: Vec<_> = ranges.into_iter().map(|(first, last, at)| (first, last, self.node(&at))).collect();
        let mut masters: Vec<Arc<Node>> = Vec::new();
        for (_, _, node) in &ranges {
            if !masters.iter().any(|known| known.address == node.address) {
                masters.push(node.clone());
            }
        }
        masters.sort_by(|a, b| a.address.cmp(&b.address));
        let view = View { ranges, masters };
        self.number_parts(&view);
        self.forget_others(&view);
        let mut current = self.view.write().unwrap_or_else(PoisonError::into_inner);
        if current.ranges_differ(&view) {
            *current = Arc::new(view);
            drop(current);
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// Part 0 is whoever keeps the registry; another master has the number under which it was first met.
    fn number_parts(&self, view: &View) {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let registry = view.of(self.registry).map(|node| node.address.clone());
        for (address, (number, node)) in nodes.iter() {
            node.set_part(if Some(address) == registry.as_ref() { 0 } else { *number });
        }
    }

    /// Connections to servers that are masters no more are given up.
    fn forget_others(&self, view: &View) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|address, _| view.masters.iter().any(|master| master.address == *address));
    }

    async fn look(&self) -> Result<Vec<(u16, u16, Address)>, StoreError> {
        match &self.config.servers {
            Servers::Standalone(address) => Ok(vec![(0, SLOTS - 1, address.clone())]),
            Servers::Sentinel { sentinels, master } => {
                let found = first_answer(sentinels, |at| self.ask_sentinel(at, master)).await?;
                Ok(vec![(0, SLOTS - 1, found)])
            }
            Servers::Cluster(seeds) => {
                let known: Vec<Address> = self.view().masters.iter().map(|node| node.address.clone()).collect();
                let all: Vec<Address> = known.into_iter().chain(seeds.iter().cloned()).collect();
                first_answer(&all, |at| self.ask_cluster(at)).await
            }
        }
    }

    async fn ask_sentinel(&self, sentinel: Address, master: &str) -> Result<Address, StoreError> {
        let mut connection = connect_sentinel(&self.config, &sentinel).await?;
        let mut command = redis::cmd("SENTINEL");
        command.arg("get-master-addr-by-name").arg(master);
        let found: Option<(String, u16)> = ask(&sentinel, &mut connection, &command).await?;
        let (host, port) = found.ok_or_else(|| {
            StoreError::Unavailable(format!("the sentinel {sentinel} knows no master `{master}`; look at store.url"))
        })?;
        let address = Address { host, port };
        self.prove_master(&address).await?;
        Ok(address)
    }

    /// A sentinel may still name a server that is a replica by now: leases must never be written there.
    async fn prove_master(&self, address: &Address) -> Result<(), StoreError> {
        if self.view().masters.first().is_some_and(|node| node.address == *address) {
            return Ok(());
        }
        let (pushed, _) = tokio::sync::mpsc::unbounded_channel();
        let mut connection = connect(&self.config, address, pushed).await?;
        match ask::<Value>(address, &mut connection, &redis::cmd("ROLE")).await {
            Ok(Value::Array(role)) if !matches!(role.first(), Some(Value::BulkString(role)) if role == b"master") => {
                Err(StoreError::Unavailable(format!("{address} is no master any more")))
            }
            // Whoever may not ask for the role will be told READONLY in time.
            Ok(_) | Err(StoreError::Refused(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn ask_cluster(&self, at: Address) -> Result<Vec<(u16, u16, Address)>, StoreError> {
        let mut connection = match self.registry_connection(&at).await {
            Some(connection) => connection,
            None => {
                let (pushed, _) = tokio::sync::mpsc::unbounded_channel();
                connect(&self.config, &at, pushed).await?
            }
        };
        let slots: Value = ask(&at, &mut connection, redis::cmd("CLUSTER").arg("SLOTS")).await?;
        let ranges = ranges(&slots, &at);
        if ranges.is_empty() {
            return Err(StoreError::Unavailable(format!("{at}: the cluster has no slots yet")));
        }
        Ok(ranges)
    }

    /// A connection that exists already.
    async fn registry_connection(&self, at: &Address) -> Option<MultiplexedConnection> {
        let node = self.view().masters.iter().find(|node| node.address == *at).cloned()?;
        let turn = timeout(ANSWER, node.lane(0)).await.ok()?.ok()?;
        Some(turn.connection.clone())
    }
}

impl View {
    fn ranges_differ(&self, other: &Self) -> bool {
        let plain = |view: &Self| -> Vec<(u16, u16, Address)> {
            view.ranges.iter().map(|(first, last, node)| (*first, *last, node.address.clone())).collect()
        };
        // A server that was given up and met again has new connections.
        let same = |view: &Self| view.masters.iter().map(Arc::as_ptr).collect::<Vec<_>>();
        plain(self) != plain(other) || same(self) != same(other)
    }
}

/// Asks one after the other until one answers.
async fn first_answer<T, F: Future<Output = Result<T, StoreError>>>(
    servers: &[Address],
    ask: impl Fn(Address) -> F,
) -> Result<T, StoreError> {
    let mut last = StoreError::Unavailable("no servers are named".to_owned());
    for server in servers {
        match ask(server.clone()).await {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask<T: redis::FromRedisValue>(
    at: &Address,
    connection: &mut MultiplexedConnection,
    command: &redis::Cmd,
) -> Result<T, StoreError> {
    match timeout(ANSWER, command.query_async(connection)).await {
        Ok(answer) => answer.map_err(|error: RedisError| super::connect::of_answer(at, &error)),
        Err(_) => Err(StoreError::Unavailable(format!("{at} did not answer"))),
    }
}

/// Reads CLUSTER SLOTS. A node that does not know its own address leaves it empty: it is the one that was asked.
fn ranges(slots: &Value, asked: &Address) -> Vec<(u16, u16, Address)> {
    let Value::Array(rows) = slots else { return Vec::new() };
    let read = |row: &Value| {
        let Value::Array(row) = row else { return None };
        let (Value::Int(first), Value::Int(last), Value::Array(master)) = (row.first()?, row.get(1)?, row.get(2)?)
        else {
            return None;
        };
        let host = match master.first()? {
            Value::BulkString(host) if !host.is_empty() => String::from_utf8_lossy(host).into_owned(),
            _ => asked.host.clone(),
        };
        let Value::Int(port) = master.get(1)? else { return None };
        let address = Address { host, port: u16::try_from(*port).ok()? };
        Some((u16::try_from(*first).ok()?, u16::try_from(*last).ok()?, address))
    };
    let mut found: Vec<_> = rows.iter().filter_map(read).collect();
    found.sort();
    found
}

/// Looks again and again, for as long as the topology lives.
async fn renew(topology: std::sync::Weak<Topology>) {
    loop {
        let Some(alive) = topology.upgrade() else { return };
        match alive.look().await {
            Ok(ranges) => alive.adopt(ranges),
            Err(error) => {
                tracing::debug!(%error, "the servers of the store could not be found out");
                *alive.trouble.write().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        }
        let doubted = alive.doubted.clone();
        drop(alive);
        sleep(AT_MOST).await;
        let _renew_anyway = timeout(RENEW, doubted.notified()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_read_as_the_cluster_tells_them() {
        let node = |host: &str, port| {
            Value::Array(vec![Value::BulkString(host.into()), Value::Int(port), Value::BulkString("id".into())])
        };
        let row =
            |first, last, master, replica| Value::Array(vec![Value::Int(first), Value::Int(last), master, replica]);
        let slots = Value::Array(vec![
            row(5461, 16_383, node("10.0.0.2", 7001), node("10.0.0.3", 7002)),
            row(0, 5460, node("", 7000), node("10.0.0.3", 7003)),
        ]);
        let asked = Address { host: "h".to_owned(), port: 1 };
        let at = |host: &str, port| Address { host: host.to_owned(), port };
        assert_eq!(ranges(&slots, &asked), [(0, 5460, at("h", 7000)), (5461, 16_383, at("10.0.0.2", 7001))]);
        assert!(ranges(&Value::Nil, &asked).is_empty());
    }

    #[tokio::test]
    async fn no_two_masters_are_one_part_however_often_they_are_replaced() {
        // Nobody listens at any of them.
        let at = |port| Address { host: "127.0.0.1".to_owned(), port };
        let names = Names::new("sm:");
        let config = RedisConfig {
            servers: Servers::Cluster(vec![at(1)]),
            tls: None,
            username: None,
            password: None,
            database: 0,
            prefix: "sm:".to_owned(),
            connections: 1,
        };
        let topology = Topology::start(Arc::new(config), &names);
        let keys = slot(&names.registry());
        for ports in [[1, 2, 3], [1, 4, 3], [1, 4, 5], [6, 4, 5], [6, 7, 5]] {
            let [first, second, third] = ports.map(at);
            topology.adopt(vec![(keys, keys, first), (keys + 1, keys + 1, second), (keys + 2, keys + 2, third)]);
            let mut parts: Vec<usize> = topology.view().masters.iter().map(|node| node.part().0).collect();
            assert_eq!(topology.registry().unwrap().part().0, 0);
            parts.sort_unstable();
            parts.dedup();
            assert_eq!(parts.len(), 3, "{ports:?}: {parts:?}");
        }
    }
}
