//! Sends one request to one upstream and waits for the head of its answer; tries again where that can do no harm.
//!
//! The body of the answer is not read here; it streams to the client as an [`UpstreamBody`]. What may be tried again is decided
//! in [`retry`].

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::HOST;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::UpstreamError;
use super::aside::Aside;
use super::body::{Progress, RequestBody, UpstreamBody, deadline};
use super::cluster::{Cluster, Clusters, Slot};
use super::connect::connect;
use super::dns;
use super::interim::Interims;
use super::kept::Again;
use super::peer::UnderWay;
use super::pool::{Lease, Pool};
use crate::config::model::{Host, Upstream};
use crate::policy::retry::{self, Budget, Failure};
use crate::policy::route::UpstreamId;
use crate::telemetry::names::UpstreamMetrics;

/// How long a used connection may take to be ready again.
const SETTLE: Duration = Duration::from_millis(20);
/// Retries of the whole process in one window of the budget, whatever the traffic is: ten a second, as the sweep ticks.
const FLOOR: u64 = 100;

/// All upstreams, as one worker reaches them.
pub struct Upstreams {
    targets: Vec<Target>,
    worker: usize,
}

struct Target {
    cluster: Arc<Cluster>,
    /// Of this worker; it alone writes.
    requests: AtomicU64,
    budget: Mutex<Budget>,
    random: AtomicU64,
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Forwarding<'a> {
    /// When the wait begins.
    pub since: Instant,
    /// To the response head, from the last byte of the request.
    pub response: Duration,
    /// Between bytes of the response.
    pub idle: Duration,
    /// The request asks for another protocol: a 101 may be the answer.
    pub upgrade: bool,
    /// Where interim responses go; `None`: this client cannot be told.
    pub aside: Option<&'a Aside>,
}

/// What all tries of one request have in common.
struct Sending<'a> {
    id: UpstreamId,
    method: Method,
    progress: Option<&'a Arc<Progress>>,
    limits: Forwarding<'a>,
    /// Its body once more, if it may be sent again.
    again: Option<Again>,
}

/// A try that gave no answer.
struct Failed {
    error: UpstreamError,
    failure: Failure,
    /// The request, if it was given back or may go out again.
    request: Option<Request<RequestBody>>,
    address: SocketAddr,
}

impl Upstreams {
    /// As this worker, one of those that `clusters` were made for, reaches them.
    pub fn new(clusters: &Clusters, worker: usize) -> Self {
        let target = |cluster: &Arc<Cluster>| {
            let percent = cluster.config.retries.budget;
            let floor = if percent == 0 { 0 } else { FLOOR.div_ceil(clusters.workers() as u64) };
            Target {
                cluster: cluster.clone(),
                requests: AtomicU64::new(0),
                budget: Mutex::new(Budget::new(percent, floor)),
                random: AtomicU64::new(worker as u64),
            }
        };
        Self { targets: clusters.all().iter().map(target).collect(), worker }
    }

    /// The upstream's metrics.
    pub fn metrics(&self, id: UpstreamId) -> &UpstreamMetrics {
        &self.targets[id.0].cluster.metrics
    }

    /// The upstream's name, for logs.
    pub fn name(&self, id: UpstreamId) -> &Arc<str> {
        &self.targets[id.0].cluster.config.name
    }

    /// `host:port` of the upstream, for requests that came without a Host.
    pub fn authority(&self, id: UpstreamId) -> &str {
        self.targets[id.0].cluster.config.endpoints.first().map_or("", |endpoint| &endpoint.authority)
    }

    /// A slot among the requests that the upstream may have at a time, to be held until the answer has ended; `None`: it may have
    /// any number. Asked for before quota is charged: a refused request costs nothing.
    pub fn admit(&self, id: UpstreamId) -> Result<Option<Slot>, UpstreamError> {
        self.targets[id.0].cluster.admit()
    }

    /// Forwards a request. `progress` belongs to its body, if it streams one.
    pub async fn forward(
        &self,
        id: UpstreamId,
        mut request: Request<RequestBody>,
        progress: Option<&Arc<Progress>>,
        limits: Forwarding<'_>,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let target = &self.targets[id.0];
        target.count();
        target.cluster.rewrite(&mut request);
        let again = body_to_repeat(&mut request, &target.cluster.config);
        let sending = Sending { id, method: request.method().clone(), progress, limits, again };
        let (pool, under_way) = match target.cluster.selection().pick(self.worker, || target.random()) {
            Some(picked) => picked,
            // Boxed: rare, as everything behind a failure.
            None => Box::pin(self.resolve(target, limits)).await?,
        };
        match self.send(pool, under_way, request, &sending, false).await {
            Ok(response) => Ok(response),
            Err(failed) => Box::pin(self.send_again(failed, &sending)).await,
        }
    }

    /// No address is known yet.
    async fn resolve(
        &self,
        target: &Target,
        limits: Forwarding<'_>,
    ) -> Result<(Arc<Pool>, Option<UnderWay>), UpstreamError> {
        let end = deadline(limits.since, limits.response);
        timeout_at(end, dns::resolve_now(&target.cluster)).await.map_err(|_elapsed| UpstreamError::Timeout)?;
        let selection = target.cluster.selection();
        selection.pick(self.worker, || target.random()).ok_or(UpstreamError::Unreachable)
    }

    /// Retries, as far as the configuration and the budget go; the last failure is the client's.
    async fn send_again(
        &self,
        mut failed: Box<Failed>,
        sending: &Sending<'_>,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let target = &self.targets[sending.id.0];
        let mut tried = Vec::new();
        for _ in 0..target.cluster.config.retries.attempts {
            tried.push(failed.address);
            let request = failed.request.take();
            let may_follow = retry::may_follow(failed.failure, &sending.method, request.is_some());
            let Some(request) = request.filter(|_| may_follow) else { break };
            let picked = target.cluster.selection().pick_other(&tried, self.worker, || target.random());
            let Some((pool, under_way)) = picked.filter(|_| target.may_retry()) else { break };
            target.cluster.metrics.health.retries.increment(1);
            match self.send(pool, under_way, request, sending, true).await {
                Ok(response) => return Ok(response),
                Err(again) => failed = again,
            }
        }
        Err(failed.error)
    }

    /// One try. A kept-alive connection that closed under us gives the request back unsent; the next one takes it.
    async fn send(
        &self,
        pool: Arc<Pool>,
        mut under_way: Option<UnderWay>,
        mut request: Request<RequestBody>,
        sending: &Sending<'_>,
        mut fresh: bool,
    ) -> Result<Response<UpstreamBody>, Box<Failed>> {
        let config = &self.targets[sending.id.0].cluster.config;
        if config.host == Host::Upstream {
            request.headers_mut().insert(HOST, pool.peer().host.clone());
        }
        let failed = |error, failure, request| {
            if !matches!(error, UpstreamError::RequestBody(_) | UpstreamError::OutOfDescriptors) {
                pool.peer().failed();
            }
            Err(Box::new(Failed { error, failure, request, address: pool.peer().address }))
        };
        loop {
            let (mut lease, reused) = match self.connection(&pool, sending, fresh).await {
                Ok(found) => found,
                Err(error) => return failed(error, Failure::Unsent, Some(request)),
            };
            let answer = pin!(lease.sender().send(request, sending.again.is_some(), sending.limits.aside.is_some()));
            let interims = lease.sender().interims();
            let answer = match wait_for_head(answer, interims, sending.progress, sending.limits).await {
                Ok(answer) => answer,
                Err(error) => return failed(error, Failure::Final, None),
            };
            let mut lost = match answer {
                Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS && sending.limits.upgrade => {
                    lease.under_way = under_way.take();
                    return Ok(response.map(|incoming| UpstreamBody::switching(incoming, lease)));
                }
                // The connection is not reused.
                Ok(response) if !is_final(&response) => {
                    return failed(UpstreamError::Malformed, Failure::Final, None);
                }
                Ok(response) => {
                    lease.under_way = under_way.take();
                    let (idle, progress) = (sending.limits.idle, sending.progress.cloned());
                    let (head, incoming) = response.into_parts();
                    return match UpstreamBody::new(incoming, &head, idle, lease, progress) {
                        Ok(body) => Ok(Response::from_parts(head, body)),
                        Err(_) => failed(UpstreamError::Malformed, Failure::Final, None),
                    };
                }
                Err(lost) => lease.sender().judge(lost),
            };
            match lost.unsent.take() {
                Some(unsent) if reused => (request, fresh) = (unsent, false),
                Some(unsent) => return failed(UpstreamError::Unreachable, Failure::Unsent, Some(unsent)),
                None => {
                    let body = sending.progress.and_then(|progress| progress.failure());
                    let failure = if lost.silent { Failure::Unanswered } else { Failure::Final };
                    let again = sending.again.as_ref().and_then(Again::body);
                    let request = again.and_then(|body| lease.sender().again(lost, body));
                    return failed(body.map_or(UpstreamError::Malformed, UpstreamError::RequestBody), failure, request);
                }
            }
        }
    }

    /// An idle connection, unless only a `fresh` one will do, or a new one; and which it is.
    async fn connection(
        &self,
        pool: &Arc<Pool>,
        sending: &Sending<'_>,
        fresh: bool,
    ) -> Result<(Lease, bool), UpstreamError> {
        // Also where a fresh one is asked for: one that was lost is not shared any more.
        if self.targets[sending.id.0].cluster.config.http2
            && let Some(lease) = pool.share()
        {
            return Ok((lease, true));
        }
        while let Some(mut lease) = pool.take().filter(|_| !fresh) {
            if !sending.again.as_ref().is_some_and(Again::is_sure) {
                // Sent, it may be gone: a connection that is closing must be found out before. One turn of the event loop: a close
                // that has arrived is known after it.
                yield_now().await;
            }
            // Ready at once but for the moment in which hyper finishes the exchange before; an upstream that answered and then
            // reads no more of what it was sent would hold up a stranger's request.
            if lease.sender().is_ready() || timeout(SETTLE, lease.sender().ready()).await == Ok(true) {
                return Ok((lease, true));
            }
        }
        // Boxed: rare, and large enough to weigh on every request's future.
        Box::pin(self.connect(pool, sending)).await.map(|lease| (lease, false))
    }

    async fn connect(&self, pool: &Arc<Pool>, sending: &Sending<'_>) -> Result<Lease, UpstreamError> {
        let end = deadline(sending.limits.since, sending.limits.response);
        let opened = timeout_at(end, open(pool, &self.targets[sending.id.0].cluster)).await;
        opened.unwrap_or(Err(UpstreamError::Timeout))
    }

    /// Closes connections that have been idle too long, and lets the budgets forget. The worker's sweep.
    pub fn prune(&self) {
        for target in &self.targets {
            for endpoint in target.cluster.selection().endpoints() {
                endpoint.pools[self.worker].prune();
            }
            target.budget.lock().unwrap_or_else(PoisonError::into_inner).tick(target.requests.load(Ordering::Relaxed));
        }
    }
}

impl Target {
    /// One more request. Not an atomic addition: nobody else adds.
    fn count(&self) {
        self.requests.store(self.requests.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn may_retry(&self) -> bool {
        let requests = self.requests.load(Ordering::Relaxed);
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).take(requests)
    }

    /// Numbers without a pattern, for the choice of endpoints; no secret hangs on them (SplitMix64).
    fn random(&self) -> u64 {
        let state = self.random.load(Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.store(state, Ordering::Relaxed);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What a retry will need of a request that was sent, where one may follow.
fn body_to_repeat(request: &mut Request<RequestBody>, config: &Upstream) -> Option<Again> {
    let may_follow = config.retries.attempts > 0 && retry::is_repeatable(request.method());
    may_follow.then(|| request.body_mut().keep())
}

/// Opens a connection; where others will share it, one at a time, because the next request may find room on it.
async fn open(pool: &Arc<Pool>, cluster: &Cluster) -> Result<Lease, UpstreamError> {
    let (config, peer, failed) = (&cluster.config, pool.peer(), pool.failed.load(Ordering::Relaxed));
    let _turn = if config.http2 { Some(pool.opening.lock().await) } else { None };
    if config.http2 {
        if let Some(lease) = pool.share() {
            return Ok(lease);
        }
        if pool.failed.load(Ordering::Relaxed) != failed {
            return Err(UpstreamError::Unreachable);
        }
    }
    let connected = connect(config, &peer.endpoint, peer.address, &cluster.tls).await.inspect_err(|_| {
        pool.failed.fetch_add(1, Ordering::Relaxed);
    })?;
    cluster.metrics.connects.increment(1);
    Ok(pool.lease(connected))
}

/// Whether it is what a final answer may be: none that asks to leave HTTP, which we did not ask for, none of an unknown class
/// (RFC 9110 section 15), and with 204 nothing else. Of HTTP/1 the gate has judged the rest.
fn is_final(response: &Response<Incoming>) -> bool {
    let status = response.status();
    let is_empty = status != StatusCode::NO_CONTENT || response.body().is_end_stream();
    (200..600).contains(&status.as_u16()) && is_empty
}

/// Waits for the head, for so long since the request went out or its body moved last.
async fn wait_for_head<T>(
    mut answer: Pin<&mut impl Future<Output = T>>,
    interims: Option<&Interims>,
    progress: Option<&Arc<Progress>>,
    Forwarding { since, response: limit, aside, .. }: Forwarding<'_>,
) -> Result<T, UpstreamError> {
    let told = aside.zip(interims);
    let mut timer = pin!(sleep_until(deadline(since, limit)));
    loop {
        tokio::select! {
            biased;
            answered = answer.as_mut() => {
                // Those that came with it are older.
                while let Some((aside, interims)) = told
                    && let Some(interim) = interims.take()
                {
                    aside.say(interim).await;
                }
                return Ok(answered);
            }
            () = &mut timer => {
                let now = Instant::now();
                let end = match progress {
                    None => return Err(UpstreamError::Timeout),
                    // Nobody can answer who waits for the rest of the question; the body has a limit of its own.
                    Some(progress) if progress.starves() => deadline(now, limit),
                    Some(progress) => deadline(progress.moved().max(since), limit),
                };
                if end <= now {
                    return Err(UpstreamError::Timeout);
                }
                timer.as_mut().reset(end);
            }
            // Last: an upstream that never stops must not keep the timer from being looked at.
            (aside, interim) = next_interim(told) => aside.say(interim).await,
        }
    }
}

async fn next_interim<'a>(told: Option<(&'a Aside, &Interims)>) -> (&'a Aside, Vec<u8>) {
    match told {
        Some((aside, interims)) => (aside, interims.next().await),
        None => std::future::pending().await,
    }
}

impl std::fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.targets.iter().map(|target| &target.cluster.config.name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::sleep;

    use super::*;

    /// Seconds until the wait for a head that never comes is over.
    async fn waited(progress: Option<&Arc<Progress>>) -> u64 {
        let since = Instant::now();
        let limit = Duration::from_secs(10);
        let limits = Forwarding { since, response: limit, idle: limit, upgrade: false, aside: None };
        let answer = wait_for_head(pin!(pending::<()>()), None, progress, limits).await;
        assert!(matches!(answer, Err(UpstreamError::Timeout)));
        since.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_a_head_begins_when_the_body_has_moved_last() {
        assert_eq!(waited(None).await, 10);
        let progress = Arc::<Progress>::default();
        assert_eq!(waited(Some(&progress)).await, 10);
        let progress = Arc::<Progress>::default();
        progress.moves();
        assert_eq!(waited(Some(&progress)).await, 10, "sent at once");
        let progress = Arc::<Progress>::default();
        let moving = progress.clone();
        tokio::spawn(async move {
            for _ in 0..3 {
                sleep(Duration::from_secs(4)).await;
                moving.moves();
            }
        });
        assert_eq!(waited(Some(&progress)).await, 22, "moved last after twelve");
    }
}
