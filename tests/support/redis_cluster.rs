//! A cluster of three masters with a replica each, made by commands of its own.

use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::time::Duration;

use super::ports::wait_for;
use super::redis_server::{RedisServer, field};
use super::resp::Reply;
use super::shared::{Logged, Shared};

/// Start and agreement; a failover takes about four seconds.
const PATIENCE: Duration = Duration::from_secs(30);
const MASTERS: usize = 3;
/// Of each master at the start.
const SLOTS: [RangeInclusive<u16>; MASTERS] = [0..=5460, 5461..=10922, 10923..=16383];

/// The nodes: 0, 1 and 2 begin as masters; 3, 4 and 5 as their replicas, in this order.
#[derive(Debug)]
pub(crate) struct Cluster {
    nodes: Vec<RedisServer>,
    ids: Vec<String>,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more arguments for each node: `&["--cluster-require-full-coverage", "no"]`. Returns when every node sees the whole
    /// cluster up and every replica is in sync: before, a dead master would have no successor.
    pub(crate) fn start_with(more: &[&str]) -> Self {
        let mut arguments = vec!["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"];
        arguments.extend(["--cluster-node-timeout", "2000", "--repl-diskless-sync-delay", "0"]);
        arguments.extend(more);
        let nodes = (0..2 * MASTERS).map(|_| RedisServer::start_with(&arguments)).collect::<Vec<_>>();
        let ids = nodes.iter().map(|node| node.cli(&["CLUSTER", "MYID"])).collect();
        let cluster = Self { nodes, ids };
        for (master, slots) in SLOTS.iter().enumerate() {
            let (first, last) = (slots.start().to_string(), slots.end().to_string());
            cluster.nodes[master].cli(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
        }
        for (number, node) in cluster.nodes.iter().enumerate() {
            // Nodes that agree on who came first have no conflicts to resolve.
            node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
        }
        // Only now: who has met somebody is told no epoch any more, and news of nodes travels by itself.
        for (number, node) in cluster.nodes.iter().enumerate() {
            for other in &cluster.nodes[number + 1..] {
                node.cli(&["CLUSTER", "MEET", "127.0.0.1", &other.port().to_string()]);
            }
        }
        cluster.wait_until("all nodes have met", |node| {
            let nodes = node.cli(&["CLUSTER", "NODES"]);
            nodes.lines().count() == 2 * MASTERS && !nodes.contains("handshake")
        });
        for master in 0..MASTERS {
            cluster.nodes[MASTERS + master].cli(&["CLUSTER", "REPLICATE", &cluster.ids[master]]);
        }
        cluster.await_settled();
        cluster
    }

    /// The one that all tests of this process share, for tests that neither kill nodes nor move slots.
    pub(crate) fn shared() -> Shared<Self> {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        Shared(SHARED.get_or_init(Self::start))
    }

    /// `redis+cluster://`, with all nodes.
    pub(crate) fn url(&self) -> String {
        let hosts = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect::<Vec<_>>();
        format!("redis+cluster://{}", hosts.join(","))
    }

    pub(crate) fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    pub(crate) fn node(&self, number: usize) -> &RedisServer {
        &self.nodes[number]
    }

    /// SIGKILL.
    pub(crate) fn kill(&self, number: usize) {
        self.nodes[number].kill();
    }

    /// Starts again what is dead (as a replica, when it was replaced), and waits until all is up and in sync.
    pub(crate) fn heal(&self) {
        for node in self.nodes.iter().filter(|node| !node.is_running()) {
            node.restart();
        }
        self.await_settled();
    }

    /// The slot of a key, its hash tag regarded.
    pub(crate) fn slot_of(&self, key: &str) -> u16 {
        self.any().cli(&["CLUSTER", "KEYSLOT", key]).parse().unwrap()
    }

    /// The number of the node that has this slot, as the first node that runs sees it.
    pub(crate) fn master_of(&self, slot: u16) -> usize {
        self.master_seen_by(self.any(), slot).unwrap()
    }

    /// The numbers of all masters with slots.
    pub(crate) fn masters(&self) -> Vec<usize> {
        let slots = self.any().command(&["CLUSTER", "SLOTS"]);
        let mut masters = slots.list().iter().filter_map(|range| self.number_at(range)).collect::<Vec<_>>();
        masters.sort_unstable();
        masters.dedup();
        masters
    }

    /// Waits until every node that runs sees another master than `old` for the slot, and the cluster up. Returns its number.
    pub(crate) fn await_new_master(&self, slot: u16, old: usize) -> usize {
        self.wait_until("a new master", |node| {
            self.master_seen_by(node, slot).is_some_and(|master| master != old) && is_up(node)
        });
        self.master_of(slot)
    }

    /// Moves slots with all their keys; clients that ask the old master are sent on.
    pub(crate) fn move_slots(&self, from: usize, to: usize, slots: impl IntoIterator<Item = u16>) {
        for slot in slots {
            self.begin_move(from, to, slot);
            self.move_keys(from, to, slot);
            self.end_move(from, to, slot);
        }
    }

    /// The first step of a move: from here on `from` answers ASK for keys that it does not have.
    pub(crate) fn begin_move(&self, from: usize, to: usize, slot: u16) {
        let slot = slot.to_string();
        self.nodes[to].cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.ids[from]]);
        self.nodes[from].cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.ids[to]]);
    }

    /// The second step: the keys.
    pub(crate) fn move_keys(&self, from: usize, to: usize, slot: u16) {
        let (slot, port) = (slot.to_string(), self.nodes[to].port().to_string());
        loop {
            let keys = self.nodes[from].command(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
            let keys = keys.list().iter().map(Reply::text).collect::<Vec<_>>();
            if keys.is_empty() {
                return;
            }
            let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            words.extend(keys.iter().map(String::as_str));
            self.nodes[from].cli(&words);
        }
    }

    /// The last step: the slot belongs to `to`. The new owner hears of it first, so that the slot always has one.
    pub(crate) fn end_move(&self, from: usize, to: usize, slot: u16) {
        let slot = slot.to_string();
        let others = self.masters().into_iter().filter(|&master| master != from && master != to);
        for node in [to, from].into_iter().chain(others) {
            self.nodes[node].cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &self.ids[to]]);
        }
    }

    fn any(&self) -> &RedisServer {
        self.nodes.iter().find(|node| node.is_running()).unwrap()
    }

    fn master_seen_by(&self, node: &RedisServer, slot: u16) -> Option<usize> {
        let slots = node.connect().ok()?.command(&["CLUSTER", "SLOTS"]).ok()?;
        let slot = i64::from(slot);
        let holds = |range: &&Reply| match range.list() {
            [first, last, ..] => first.number() <= Some(slot) && Some(slot) <= last.number(),
            _ => false,
        };
        self.number_at(slots.list().iter().find(holds)?)
    }

    /// Of the master in an entry of `CLUSTER SLOTS`.
    fn number_at(&self, range: &Reply) -> Option<usize> {
        let port = range.list().get(2)?.list().get(1)?.number()?;
        self.nodes.iter().position(|node| i64::from(node.port()) == port)
    }

    fn await_settled(&self) {
        self.wait_until("the cluster is up, and its replicas are in sync", |node| {
            let nodes = node.cli(&["CLUSTER", "NODES"]);
            let replica = node.info("replication", "role").as_deref() == Some("slave");
            let (link, copies) =
                (node.info("replication", "master_link_status"), node.info("replication", "connected_slaves"));
            let synced = if replica { link.as_deref() == Some("up") } else { copies.as_deref() == Some("1") };
            is_up(node) && synced && nodes.matches("slave ").count() == MASTERS && !nodes.contains("fail")
        });
    }

    /// Of all nodes that run.
    #[track_caller]
    fn wait_until(&self, what: &str, holds: impl Fn(&RedisServer) -> bool) {
        wait_for(what, PATIENCE, || self.nodes.iter().filter(|node| node.is_running()).all(&holds).then_some(()));
    }
}

fn is_up(node: &RedisServer) -> bool {
    let info = node.cli(&["CLUSTER", "INFO"]);
    let masters = MASTERS.to_string();
    [("cluster_state", "ok"), ("cluster_slots_ok", "16384"), ("cluster_size", &masters)]
        .iter()
        .all(|&(name, value)| field(&info, name) == Some(value))
}

impl Logged for Cluster {
    fn show_logs(&self) {
        self.nodes.iter().for_each(Logged::show_logs);
    }
}
