//! A master with two replicas, and three sentinels that watch it.

use std::sync::OnceLock;
use std::time::Duration;

use super::ports::wait_for;
use super::redis_server::{Plan, RedisServer};
use super::resp::Reply;
use super::shared::{Logged, Shared};

/// Start and synchronisation; a failover takes about two seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of the master, as the sentinels call it.
const NAME: &str = "seeme";
/// Shorter than a second and ten. A failover closes the connections of the sentinels to the new master, and they connect again
/// once a ping period only: with `down-after` no longer than that they would now and then call the new one down, too.
const PERIODS: [&str; 6] = ["SENTINEL", "DEBUG", "ping-period", "250", "info-period", "500"];

/// The servers (the first was the first master) and the sentinels. Sentinels call a master down after a second, two of them
/// agreeing.
#[derive(Debug)]
pub(crate) struct Sentinels {
    servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

impl Sentinels {
    /// Returns when the replicas are in sync and the sentinels know all of them and each other.
    pub(crate) fn start() -> Self {
        // Without the delay a replica is in sync at once: one that is not in sync is never promoted.
        let usual = ["--repl-diskless-sync-delay", "0"];
        let master = RedisServer::start_with(&usual);
        let port = master.port().to_string();
        let mut servers = vec![master];
        for _ in 0..2 {
            let mut arguments = vec!["--replicaof", "127.0.0.1", &port];
            arguments.extend(usual);
            servers.push(RedisServer::start_with(&arguments));
        }
        let file = format!(
            "sentinel monitor {NAME} 127.0.0.1 {port} 2
sentinel down-after-milliseconds {NAME} 1000
sentinel failover-timeout {NAME} 5000
"
        );
        let sentinel = || {
            let sentinel = RedisServer::launch(Plan { file: Some(file.clone()), ..Plan::default() });
            sentinel.cli(&PERIODS);
            sentinel
        };
        let all = Self { servers, sentinels: (0..3).map(|_| sentinel()).collect() };
        all.await_settled();
        all
    }

    /// The ones that all tests of this process share, for tests that kill nothing.
    pub(crate) fn shared() -> Shared<Self> {
        static SHARED: OnceLock<Sentinels> = OnceLock::new();
        Shared(SHARED.get_or_init(Self::start))
    }

    /// `redis+sentinel://`, with all sentinels and the name of the master.
    pub(crate) fn url(&self) -> String {
        let hosts = self.sentinel_ports().iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>();
        format!("redis+sentinel://{}/{NAME}", hosts.join(","))
    }

    /// The name that the sentinels know the master by.
    pub(crate) fn name(&self) -> &'static str {
        NAME
    }

    pub(crate) fn sentinel_ports(&self) -> Vec<u16> {
        self.sentinels.iter().map(RedisServer::port).collect()
    }

    pub(crate) fn sentinels(&self) -> &[RedisServer] {
        &self.sentinels
    }

    /// The master and the replicas, in no order of rank.
    pub(crate) fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// Whom the first sentinel that answers calls the master.
    pub(crate) fn master_port(&self) -> u16 {
        self.sentinels.iter().find_map(master_by).unwrap()
    }

    /// The server that the sentinels call the master.
    pub(crate) fn master(&self) -> &RedisServer {
        self.server(self.master_port())
    }

    /// Those that run and are not the master.
    pub(crate) fn replicas(&self) -> Vec<&RedisServer> {
        let master = self.master_port();
        self.servers.iter().filter(|server| server.port() != master && server.is_running()).collect()
    }

    pub(crate) fn server(&self, port: u16) -> &RedisServer {
        self.servers.iter().find(|server| server.port() == port).unwrap()
    }

    /// SIGKILL for the master of the moment. Returns which one that was.
    pub(crate) fn kill_master(&self) -> u16 {
        let master = self.master();
        master.kill();
        master.port()
    }

    /// Waits until every sentinel that runs calls another one than `old` the master, and it takes writes.
    pub(crate) fn await_new_master(&self, old: u16) -> u16 {
        wait_for("a new master", PATIENCE, || {
            let running = self.sentinels.iter().filter(|sentinel| sentinel.is_running());
            let named = running.map(master_by).collect::<Option<Vec<_>>>()?;
            let new = *named.first()?;
            let agreed = new != old && named.iter().all(|&port| port == new);
            (agreed && self.server(new).info("replication", "role")? == "master").then_some(new)
        })
    }

    /// Starts again what is dead, as replicas of the master, and waits until all is in sync as after [`start`](Self::start).
    pub(crate) fn heal(&self) {
        for sentinel in self.sentinels.iter().filter(|sentinel| !sentinel.is_running()) {
            sentinel.restart();
            sentinel.cli(&PERIODS);
        }
        let master = self.master_port();
        for server in self.servers.iter().filter(|server| server.port() != master && !server.is_running()) {
            server.restart();
            // The sentinels would do it, ten seconds later.
            server.cli(&["REPLICAOF", "127.0.0.1", &master.to_string()]);
        }
        self.await_settled();
    }

    fn await_settled(&self) {
        wait_for("the replicas are in sync, and the sentinels agree", PATIENCE, || {
            let master = self.master_port();
            let synced = self.servers.iter().all(|server| {
                if server.port() == master {
                    server.info("replication", "connected_slaves").as_deref() == Some("2")
                } else {
                    server.info("replication", "master_link_status").as_deref() == Some("up")
                }
            });
            (synced && self.sentinels.iter().all(|sentinel| knows_all(sentinel, master))).then_some(())
        });
    }
}

fn master_by(sentinel: &RedisServer) -> Option<u16> {
    let reply = sentinel.connect().ok()?.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]).ok()?;
    reply.list().get(1)?.text().parse().ok()
}

/// It sees this master up, both replicas with a link that is up, and both other sentinels.
fn knows_all(sentinel: &RedisServer, master: u16) -> bool {
    let view = sentinel.command(&["SENTINEL", "MASTER", NAME]);
    let expected =
        [("port", &*master.to_string()), ("flags", "master"), ("num-slaves", "2"), ("num-other-sentinels", "2")];
    let replicas = sentinel.command(&["SENTINEL", "REPLICAS", NAME]);
    let up = |replica: &Reply| {
        member(replica, "flags").is_some_and(|flags| flags == "slave")
            && member(replica, "master-link-status").is_some_and(|status| status == "ok")
    };
    expected.iter().all(|&(name, value)| member(&view, name).is_some_and(|found| found == value))
        && replicas.list().iter().all(up)
}

/// A member of a list of names and values.
fn member(list: &Reply, name: &str) -> Option<String> {
    list.list().chunks_exact(2).find(|pair| pair[0].text() == name).map(|pair| pair[1].text())
}

impl Logged for Sentinels {
    fn show_logs(&self) {
        self.servers.iter().chain(&self.sentinels).for_each(Logged::show_logs);
    }
}
