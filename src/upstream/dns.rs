//! Names of endpoints: looked up again and again, so that an upstream whose addresses come and go is followed.
//!
//! All addresses of a name become endpoints (a headless service has one for each instance). Requests never wait for a look-up
//! but the first ones, before there was an answer; a look-up that fails changes nothing.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::cluster::Cluster;

/// How long a look-up may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// A name without an answer yet is asked for again this often, and by requests no more often.
const PAUSE: Duration = Duration::from_secs(1);

/// Finds the addresses of a `host:port`.
pub(super) type Resolve = Arc<dyn Fn(Arc<str>) -> Answer + Send + Sync>;
/// What it gives.
pub(super) type Answer = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// The system's resolver.
pub(super) fn system() -> Resolve {
    Arc::new(|name| Box::pin(async move { Ok(tokio::net::lookup_host(&*name).await?.collect()) }))
}

/// Looks all names of an upstream up, as long as that is there.
pub(super) async fn keep_resolved(cluster: Weak<Cluster>) {
    while let Some(there) = cluster.upgrade() {
        let pause = if refresh(&there).await { there.config.dns_refresh } else { there.config.dns_refresh.min(PAUSE) };
        drop(there);
        sleep(pause).await;
    }
}

/// For a request that found no address at all: looks up now, unless that failed a moment ago. Requests that come meanwhile wait
/// for the same answer.
pub(super) async fn resolve_now(cluster: &Arc<Cluster>) {
    let mut asked = cluster.asked.lock().await;
    let is_fresh = asked.is_some_and(|at| at.elapsed() < PAUSE);
    if cluster.selection().endpoints().is_empty() && !is_fresh {
        refresh(cluster).await;
        *asked = Some(Instant::now());
    }
}

/// Whether all names had an answer.
async fn refresh(cluster: &Arc<Cluster>) -> bool {
    let mut all = true;
    for endpoint in cluster.named_endpoints() {
        let found = timeout(PATIENCE, (cluster.resolve)(endpoint.authority.clone())).await;
        let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match found {
            Ok(mut addresses) if !addresses.is_empty() => {
                addresses.sort_unstable();
                addresses.dedup();
                cluster.set_addresses(endpoint, &addresses);
            }
            nothing => {
                all = false;
                cluster.metrics.health.dns_failures.increment(1);
                let error = nothing.err().map_or_else(|| "no address".to_owned(), |error| error.to_string());
                tracing::warn!(upstream = %cluster.config.name, endpoint = %endpoint.authority, error, "not found; addresses known before stay");
            }
        }
    }
    all
}
