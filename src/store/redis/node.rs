//! One server and the connections to it, kept open by tasks of their own.
//!
//! A lane is one multiplexed, pipelined connection; calls take turns on them. A connection that ends is noticed
//! at once; one that is silent with calls outstanding is asked with a PING, and replaced when that stays unanswered. Whoever needs a
//! connection while one is being made waits for the end of that attempt; after a failed attempt nobody waits. While a server is
//! away only the first lane tries to reach it.
//!
//! No call is repeated here, or anywhere below.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::connect::{Address, RedisConfig, connect};
use crate::store::{Part, StoreError};

/// How often a lane looks whether its calls are answered.
const LOOK: Duration = Duration::from_millis(500);
/// A PING that takes longer ends the connection.
const PING: Duration = Duration::from_secs(1);
/// The pause after a failed attempt, doubled up to the longest.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// An attempt that takes longer than this is joined by another. What was sent into a black hole is not sent again for a second;
/// when the hole is healed, nobody shall wait for that.
const OVERLAP: Duration = Duration::from_millis(300);

/// A server.
pub(super) struct Node {
    pub(super) address: Address,
    part: AtomicUsize,
    lanes: Vec<Lane>,
}

#[derive(Clone)]
enum State {
    /// An attempt is under way.
    Connecting,
    Up(MultiplexedConnection),
    Down(StoreError),
}

struct Lane {
    state: watch::Sender<State>,
    /// Somebody has reason to doubt the connection.
    doubted: Notify,
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Node {
    /// A server whose connections are being made. They end with the last handle. `lost` rings when one cannot be made.
    pub(super) fn start(config: &Arc<RedisConfig>, address: Address, lost: &Arc<Notify>) -> Arc<Self> {
        let lanes = (0..config.connections.max(1)).map(|_| Lane::new()).collect();
        let node = Arc::new(Self { address, part: AtomicUsize::new(0), lanes });
        for lane in 0..node.lanes.len() {
            tokio::spawn(keep(Arc::downgrade(&node), lane, config.clone(), lost.clone()));
        }
        node
    }

    /// Which part of the store it is.
    pub(super) fn part(&self) -> Part {
        Part(self.part.load(Ordering::Relaxed))
    }

    pub(super) fn set_part(&self, part: usize) {
        self.part.store(part, Ordering::Relaxed);
    }

    fn address_and_first_lane(&self) -> (Address, watch::Receiver<State>) {
        (self.address.clone(), self.lanes[0].state.subscribe())
    }

    /// A lease of a lane's connection for one call.
    pub(super) async fn lane(&self, number: usize) -> Result<Turn<'_>, StoreError> {
        let mut lane = &self.lanes[number % self.lanes.len()];
        if !matches!(*lane.state.borrow(), State::Up(_)) {
            lane = &self.lanes[0];
        }
        let mut states = lane.state.subscribe();
        let state = states.wait_for(|state| !matches!(state, State::Connecting)).await;
        match state.as_deref() {
            Ok(State::Up(connection)) => {
                lane.begun.fetch_add(1, Ordering::Relaxed);
                Ok(Turn { connection: connection.clone(), lane })
            }
            Ok(State::Down(error)) => Err(error.clone()),
            Ok(State::Connecting) | Err(_) => Err(StoreError::Unavailable(format!("{}: not connected", self.address))),
        }
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.address)
    }
}

/// The use of a connection for one call.
pub(super) struct Turn<'a> {
    pub(super) connection: MultiplexedConnection,
    lane: &'a Lane,
}

impl Turn<'_> {
    /// The call failed in a way that may be the connection's fault.
    pub(super) fn doubt(&self) {
        self.lane.doubted.notify_one();
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.lane.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl Lane {
    fn new() -> Self {
        Self {
            state: watch::Sender::new(State::Connecting),
            doubted: Notify::new(),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
        }
    }

    /// Calls that have not ended.
    fn outstanding(&self) -> u64 {
        self.begun.load(Ordering::Relaxed).saturating_sub(self.ended.load(Ordering::Relaxed))
    }

    /// Returns when the connection is of no use any more.
    async fn watch_over(&self, mut connection: MultiplexedConnection, mut pushed: UnboundedReceiver<PushInfo>) {
        loop {
            tokio::select! {
                push = pushed.recv() => match push {
                    Some(push) if push.kind != PushKind::Disconnection => continue,
                    _ => return,
                },
                () = self.doubted.notified() => {}
                () = sleep(LOOK) => if self.outstanding() == 0 { continue },
            }
            let answer = timeout(PING, redis::cmd("PING").query_async::<()>(&mut connection)).await;
            if !matches!(answer, Ok(Ok(()))) {
                return;
            }
        }
    }
}

/// A connection, and what the server pushes.
type Made = (MultiplexedConnection, UnboundedReceiver<PushInfo>);

async fn attempt(config: Arc<RedisConfig>, address: Address) -> Result<Made, StoreError> {
    let (sender, pushed) = unbounded_channel();
    Ok((connect(&config, &address, sender).await?, pushed))
}

/// One attempt, and others beside it while it takes its time; the first that ends decides, and the others end with it.
async fn attempts(config: &Arc<RedisConfig>, address: &Address) -> Result<Made, StoreError> {
    let mut running = JoinSet::new();
    loop {
        running.spawn(attempt(config.clone(), address.clone()));
        tokio::select! {
            Some(ended) = running.join_next() => {
                return ended.unwrap_or_else(|_| Err(StoreError::Unavailable(format!("{address}: given up"))));
            }
            () = sleep(OVERLAP) => {}
        }
    }
}

/// Keeps one lane connected for as long as the node lives.
async fn keep(node: Weak<Node>, number: usize, config: Arc<RedisConfig>, lost: Arc<Notify>) {
    let mut pause = PAUSE;
    loop {
        let Some((address, mut first)) = node.upgrade().map(|node| node.address_and_first_lane()) else { return };
        if number > 0 && first.wait_for(|state| matches!(state, State::Up(_))).await.is_err() {
            return;
        }
        // The first one tries for all, so it may try harder.
        let made = if number == 0 { attempts(&config, &address).await } else { attempt(config.clone(), address).await };
        let Some(node) = node.upgrade() else { return };
        let lane = &node.lanes[number];
        match made {
            Ok((connection, pushed)) => {
                pause = PAUSE;
                lane.state.send_replace(State::Up(connection.clone()));
                lane.watch_over(connection, pushed).await;
                lane.state.send_replace(State::Connecting);
                if number > 0 {
                    // It may be gone, too, and not know it: nobody asks it anything.
                    node.lanes[0].doubted.notify_one();
                }
                lost.notify_one();
            }
            Err(error) => {
                lane.state.send_replace(State::Down(error));
                lost.notify_one();
                drop(node);
                // Lanes and gateways must not come back all at once.
                sleep(pause.mul_f64(0.75 + 0.5 * f64::from(number as u32 % 8) / 8.0)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}
