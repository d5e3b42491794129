//! Sends one request to one upstream and waits for the head of its answer.
//!
//! The body of the answer is not read here; it streams to the client as an [`UpstreamBody`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Request, Response};
use tokio::time::{Instant, sleep_until, timeout};

use super::UpstreamError;
use super::body::{Progress, RequestBody, UpstreamBody, deadline};
use super::connect::connect;
use super::pool::{Lease, Pool};
use super::tls::UpstreamConnector;
use crate::config::model::{Endpoint, Upstream};
use crate::policy::route::UpstreamId;
use crate::telemetry::Metrics;

/// How long a used connection may take to be ready again.
const SETTLE: Duration = Duration::from_millis(20);

/// All upstreams, as one worker reaches them.
pub struct Upstreams {
    targets: Vec<Target>,
    metrics: Arc<Metrics>,
}

struct Target {
    upstream: Upstream,
    tls: UpstreamConnector,
    pool: Arc<Pool>,
}

impl Target {
    fn new(upstream: &Upstream) -> Self {
        Self { upstream: upstream.clone(), tls: UpstreamConnector::new(upstream), pool: Arc::default() }
    }
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Forwarding {
    /// When the wait begins.
    pub since: Instant,
    /// To the response head, from the last byte of the request.
    pub response: Duration,
    /// Between bytes of the response.
    pub idle: Duration,
}

impl Upstreams {
    /// Empty pools. One instance a worker.
    pub fn new(upstreams: &[Upstream], metrics: Arc<Metrics>) -> Self {
        Self { targets: upstreams.iter().map(Target::new).collect(), metrics }
    }

    /// The upstream's name, for logs.
    pub fn name(&self, id: UpstreamId) -> &Arc<str> {
        &self.targets[id.0].upstream.name
    }

    /// `host:port` of the upstream, for requests that came without a Host.
    pub fn authority(&self, id: UpstreamId) -> &str {
        self.targets[id.0].upstream.endpoints.first().map_or("", |endpoint| &endpoint.authority)
    }

    /// Forwards a request. `progress` belongs to its body, if it streams one.
    pub async fn forward(
        &self,
        id: UpstreamId,
        request: Request<RequestBody>,
        progress: Option<&Arc<Progress>>,
        limits: Forwarding,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let (mut lease, reused) = self.connection(id).await?;
        let answer = lease.sender().try_send(request);
        match wait_for_head(answer, progress, limits.since, limits.response).await? {
            Ok(response) => accept(response, lease, limits.idle, progress.cloned()),
            Err(failed) => match failed.unsent {
                // A kept-alive connection that closed under us gives the request back unsent; another one must take it.
                Some(unsent) if reused => Box::pin(self.forward(id, unsent, progress, limits)).await,
                Some(_) => Err(UpstreamError::Unreachable),
                None => {
                    let failure = progress.and_then(|progress| progress.failure());
                    Err(failure.map_or(UpstreamError::Malformed, UpstreamError::RequestBody))
                }
            },
        }
    }

    /// An idle connection, or a new one; and which it is.
    async fn connection(&self, id: UpstreamId) -> Result<(Lease, bool), UpstreamError> {
        let target = &self.targets[id.0];
        if target.upstream.http2
            && let Some(lease) = target.pool.share()
        {
            return Ok((lease, true));
        }
        while let Some(mut lease) = target.pool.take() {
            // Ready at once but for the moment in which hyper finishes the exchange before; an upstream that answered and then
            // reads no more of what it was sent would hold up a stranger's request.
            if lease.sender().is_ready() || timeout(SETTLE, lease.sender().ready()).await == Ok(true) {
                return Ok((lease, true));
            }
        }
        // Boxed: rare, and large enough to weigh on every request's future.
        Box::pin(self.connect(id)).await.map(|lease| (lease, false))
    }

    async fn connect(&self, id: UpstreamId) -> Result<Lease, UpstreamError> {
        let Target { upstream, tls, pool } = &self.targets[id.0];
        let failed = pool.failed.load(Ordering::Relaxed);
        // One connection at a time where the next one may find room on it.
        let _turn = if upstream.http2 { Some(pool.opening.lock().await) } else { None };
        if let Some(lease) = pool.share() {
            return Ok(lease);
        }
        if upstream.http2 && pool.failed.load(Ordering::Relaxed) != failed {
            return Err(UpstreamError::Unreachable);
        }
        let connected = connect(upstream, endpoint(upstream)?, tls).await.inspect_err(|_| {
            pool.failed.fetch_add(1, Ordering::Relaxed);
        })?;
        self.metrics.upstreams[id.0].connects.increment(1);
        Ok(pool.lease(connected))
    }

    /// Closes connections that have been idle too long.
    pub fn prune(&self) {
        self.targets.iter().for_each(|target| target.pool.prune());
    }
}

/// The compiler of the configuration lets no upstream be without one.
fn endpoint(upstream: &Upstream) -> Result<&Endpoint, UpstreamError> {
    upstream.endpoints.first().ok_or(UpstreamError::Unreachable)
}

/// Waits for the head; the clock starts over as long as the request's body still moves.
async fn wait_for_head<T>(
    answer: impl Future<Output = T>,
    progress: Option<&Arc<Progress>>,
    since: Instant,
    limit: Duration,
) -> Result<T, UpstreamError> {
    let mut answer = std::pin::pin!(answer);
    let frames = || progress.map_or(0, |progress| progress.frames());
    let mut seen = frames();
    let mut timer = std::pin::pin!(sleep_until(deadline(since, limit)));
    loop {
        tokio::select! {
            biased;
            answered = &mut answer => return Ok(answered),
            () = &mut timer => {
                if frames() == seen {
                    return Err(UpstreamError::Timeout);
                }
                seen = frames();
                timer.as_mut().reset(deadline(Instant::now(), limit));
            }
        }
    }
}

fn accept(
    response: Response<hyper::body::Incoming>,
    lease: Lease,
    idle: Duration,
    progress: Option<Arc<Progress>>,
) -> Result<Response<UpstreamBody>, UpstreamError> {
    // An interim response as the final one: we asked for no upgrade. The connection is not reused.
    if response.status().is_informational() {
        return Err(UpstreamError::Malformed);
    }
    Ok(response.map(|incoming| UpstreamBody::new(incoming, idle, lease, progress)))
}

impl std::fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.targets.iter().map(|target| &target.upstream.name)).finish()
    }
}
