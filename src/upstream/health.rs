//! Health checks: each endpoint is asked how it is, on a connection of its own, beside all requests.
//!
//! A check that no answer of 2xx or 3xx meets in time has failed. Two failures in a row make an endpoint unhealthy, one good
//! answer makes it healthy again; until the first check everybody is. Counted in no usage, logged in no request log.

use std::sync::{Arc, Weak};
use std::time::Duration;

use http::header::{HOST, USER_AGENT};
use http::{HeaderValue, Request};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::body::RequestBody;
use super::cluster::Cluster;
use super::connect::connect;
use super::peer::Peer;
use crate::config::model::HealthCheck;

/// Nobody waits for an answer longer than this, or than to the next check.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks all endpoints of an upstream, as long as that is there.
pub(super) async fn keep_checked(cluster: Weak<Cluster>, check: HealthCheck) {
    let mut ticks = interval(check.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(cluster) = cluster.upgrade() else { return };
        let mut probes = JoinSet::new();
        for peer in cluster.peers() {
            let (cluster, check) = (cluster.clone(), check.clone());
            probes.spawn(async move {
                let answer = timeout(check.interval.min(PATIENCE), probe(&cluster, &peer, &check)).await;
                let is_well = answer.is_ok_and(|status| status.is_some_and(|status| (200..400).contains(&status)));
                if !is_well {
                    cluster.metrics.health.probe_failures.increment(1);
                }
                cluster.probed(&peer, is_well);
            });
        }
        probes.join_all().await;
    }
}

/// The status of the answer.
async fn probe(cluster: &Arc<Cluster>, peer: &Arc<Peer>, check: &HealthCheck) -> Option<u16> {
    // Closed when it goes out of scope, also when time is up.
    let connected = connect(&cluster.config, &peer.endpoint, peer.address, &cluster.tls).await.ok()?;
    let mut request = Request::new(RequestBody::Empty);
    *request.uri_mut() = check.path.clone().into();
    request.headers_mut().insert(HOST, cluster.probe_host(peer));
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static("seeme-gateway-health-check"));
    cluster.set_own_fields(&mut request);
    let response = connected.alone().send(request, false, false).await.ok()?;
    Some(response.status().as_u16())
}
