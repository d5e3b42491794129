//! One call to the store: finds the server, sends the script, follows where the cluster points.
//!
//! What is repeated, and why that is safe: only a call of which the server itself says that it was **not** carried out (NOSCRIPT,
//! MOVED, ASK, TRYAGAIN). A call whose answer was lost is never repeated; its caller is told so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::{ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::connect::{Address, of_answer};
use super::node::{Node, Turn};
use super::script::Invocation;
use super::topology::Topology;
use crate::store::StoreError;

/// A call is waited for this long. Its callers have less patience, but a late lease still brings its tokens.
const LIVES: Duration = Duration::from_secs(3);
/// A slot on the move is followed so often.
const HOPS: usize = 8;
/// Before a slot is asked again whose names are being moved this very moment.
const MOVING: Duration = Duration::from_millis(20);

/// Sends calls.
#[derive(Clone)]
pub(super) struct Client {
    topology: Arc<Topology>,
    runtime: Handle,
}

/// Where a call goes next.
enum Target {
    Master,
    Moved(Address),
    Asked(Address),
}

impl Client {
    pub(super) fn new(topology: Arc<Topology>, runtime: Handle) -> Self {
        Self { topology, runtime }
    }

    /// Carries a call out in a task of its own: it goes on when its caller does not wait for it any longer.
    pub(super) async fn call<T: FromRedisValue + Send + 'static>(&self, call: Invocation) -> Result<T, StoreError> {
        let (topology, lane) = (self.topology.clone(), lane());
        let carried_out = self.runtime.spawn(async move {
            match timeout(LIVES, carry_out(&topology, &call, lane)).await {
                Ok(answer) => answer,
                Err(_) => {
                    topology.doubt();
                    Err(StoreError::Unknown("no answer within three seconds".to_owned()))
                }
            }
        });
        let value = carried_out.await.map_err(|_| StoreError::Unknown("the store is being closed".to_owned()))??;
        T::from_redis_value(value).map_err(|error| StoreError::Corrupt(format!("an answer that is none: {error}")))
    }

    /// Carries a call out, and lets nobody know.
    pub(super) fn send(&self, call: Invocation) {
        let (topology, lane) = (self.topology.clone(), lane());
        self.runtime.spawn(async move {
            let sent = timeout(LIVES, carry_out(&topology, &call, lane)).await;
            if !matches!(sent, Ok(Ok(_))) {
                tracing::debug!("a note to the other gateways was lost");
            }
        });
    }

    /// A plain command to one server.
    pub(super) async fn ask(&self, node: Arc<Node>, command: redis::Cmd) -> Result<Value, StoreError> {
        let lane = lane();
        let asked = self.runtime.spawn(async move {
            let ask = async {
                let mut turn = node.lane(lane).await?;
                let answer = command.query_async(&mut turn.connection).await;
                answer.map_err(|error| {
                    turn.doubt();
                    of_answer(&node.address, &error)
                })
            };
            timeout(LIVES, ask).await.unwrap_or_else(|_| Err(StoreError::Unknown("no answer".to_owned())))
        });
        asked.await.map_err(|_| StoreError::Unknown("the store is being closed".to_owned()))?
    }

    pub(super) fn topology(&self) -> &Topology {
        &self.topology
    }
}

/// One after the other, so that all connections carry their part.
fn lane() -> usize {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    CALLS.fetch_add(1, Ordering::Relaxed)
}

async fn carry_out(topology: &Topology, call: &Invocation, lane: usize) -> Result<Value, StoreError> {
    let (mut target, mut hops) = (Target::Master, 0);
    while hops < HOPS {
        let node = match &target {
            Target::Master => topology.find(call.slot())?,
            Target::Moved(address) | Target::Asked(address) => topology.node(address),
        };
        let mut turn = node.lane(lane).await?;
        match send(call, &mut turn, matches!(target, Target::Asked(_))).await {
            Ok(value) => return Ok(value),
            // It is moved this very moment; that ends, and the caller's patience may end before.
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::TryAgain) => {
                sleep(MOVING).await;
                target = Target::Master;
            }
            Err(error) => {
                target = next(topology, &node.address, &turn, &error)?;
                hops += 1;
            }
        }
    }
    Err(StoreError::Unavailable("the servers of the cluster keep pointing at each other".to_owned()))
}

/// The script by its name; in full when the server does not know it.
async fn send(call: &Invocation, turn: &mut Turn<'_>, asking: bool) -> RedisResult<Value> {
    match once(call.short(), turn, asking).await {
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
            once(call.whole(), turn, asking).await
        }
        other => other,
    }
}

async fn once(command: redis::Cmd, turn: &mut Turn<'_>, asking: bool) -> RedisResult<Value> {
    if !asking {
        return command.query_async(&mut turn.connection).await;
    }
    // The slot is on its way to this server, which serves it to nobody who does not say that.
    let mut both = redis::pipe();
    both.cmd("ASKING").ignore().add_command(command);
    let (value,): (Value,) = both.query_async(&mut turn.connection).await?;
    Ok(value)
}

/// Where to go on after an error, if the server has said that it did nothing.
fn next(topology: &Topology, at: &Address, turn: &Turn<'_>, error: &RedisError) -> Result<Target, StoreError> {
    use ServerErrorKind::{Ask, BusyLoading, ClusterDown, MasterDown, Moved, ReadOnly};
    let pointed = || error.redirect_node().and_then(|(node, _)| address(node, at));
    match error.kind() {
        ErrorKind::Server(Moved) => {
            topology.doubt();
            if let Some(address) = pointed() {
                return Ok(Target::Moved(address));
            }
        }
        ErrorKind::Server(Ask) => {
            if let Some(address) = pointed() {
                return Ok(Target::Asked(address));
            }
        }
        ErrorKind::Server(ReadOnly | MasterDown | BusyLoading | ClusterDown) => topology.doubt(),
        ErrorKind::Io | ErrorKind::Parse => turn.doubt(),
        _ => {}
    }
    Err(of_answer(at, error))
}

/// `HOST:PORT`; without a host it is the one that said so.
fn address(text: &str, at: &Address) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some(Address { host: if host.is_empty() { at.host.clone() } else { host.to_owned() }, port: port.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_point_elsewhere_in_several_ways() {
        let at = Address { host: "10.0.0.1".to_owned(), port: 7000 };
        let read = |text| address(text, &at).map(|address| address.to_string());
        assert_eq!(read("10.0.0.2:7001").as_deref(), Some("10.0.0.2:7001"));
        assert_eq!(read(":7001").as_deref(), Some("10.0.0.1:7001"));
        assert_eq!(read("::1:7001").as_deref(), Some("[::1]:7001"));
        assert_eq!(read("nonsense"), None);
    }
}
