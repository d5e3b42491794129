//! The streams of an HTTP/2 connection, each a task that ends when its client takes nothing of the answer for too long.
//!
//! hyper asks a body for more only when the client has room for it. Of a client that never makes any, nobody else would hear: its
//! stream would hold the upstream's connection for ever. So a body notes what was asked of it and handed out ([`Pace`]), and the
//! task of its stream looks at that while it waits; and at whether the key of the answer is still good. Knows no request.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use tokio::time::{Instant, sleep};

use crate::gateway::lasting::Revoked;
use crate::gateway::respond::RecordedBody;
use crate::upstream::deadline;

tokio::task_local! {
    static PACE: Arc<Pace>;
}

/// How far the client has taken an answer: 0 while nothing waits for it, else a number that is another one for each part. One
/// task writes and reads.
#[derive(Default)]
struct Pace {
    waiting: AtomicU64,
    parts: AtomicU64,
    /// When the key of the answer ends; looked at only here, for the body that looks itself is not asked meanwhile.
    revoked: Mutex<Option<Revoked>>,
    /// How long the client may take nothing, where the route of the answer says so.
    idle: OnceLock<Duration>,
}

impl Pace {
    /// The client has room. A part is `ready` and waits now to be taken, or none is there yet.
    fn asked(&self, ready: bool) {
        let part = self.parts.load(Ordering::Relaxed) + 1;
        self.parts.store(part, Ordering::Relaxed);
        self.waiting.store(if ready { part } else { 0 }, Ordering::Relaxed);
    }
}

impl Pace {
    fn poll_revoked(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.revoked.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(revoked) => revoked.as_mut().poll(cx).map(drop),
            None => Poll::Pending,
        }
    }
}

/// Spawns streams on the worker's runtime.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    /// How long a client may take nothing, unless its route says otherwise.
    pub(super) idle: Duration,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let pace = Arc::<Pace>::default();
        tokio::spawn(PACE.scope(pace.clone(), until_stalled(stream, pace, self.idle)));
    }
}

/// Runs a stream to its end; or drops it, which resets it, when its client has taken nothing for `idle`, or takes nothing and its key
/// has ended.
async fn until_stalled(stream: impl Future<Output = ()>, pace: Arc<Pace>, idle: Duration) {
    let mut stream = pin!(stream);
    let mut timer = None;
    poll_fn(|cx| {
        let before = pace.waiting.load(Ordering::Relaxed);
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let now = pace.waiting.load(Ordering::Relaxed);
        if now == 0 {
            timer = None;
            return Poll::Pending;
        }
        let idle = pace.idle.get().copied().unwrap_or(idle);
        let timer = timer.get_or_insert_with(|| Box::pin(sleep(idle)));
        if now != before {
            timer.as_mut().reset(deadline(Instant::now(), idle));
        }
        if timer.as_mut().poll(cx).is_ready() { Poll::Ready(()) } else { pace.poll_revoked(cx) }
    })
    .await;
}

/// A body that notes its pace for the task of its stream.
pub(super) struct Paced {
    body: RecordedBody,
    pace: Arc<Pace>,
}

impl Paced {
    /// An answer on the stream whose task this is.
    pub(super) fn new(body: RecordedBody) -> Self {
        let pace = PACE.try_with(Arc::clone).unwrap_or_default();
        // Its head waits to be taken, too: a client may give a stream no room at all.
        pace.asked(true);
        if let Some(idle) = body.idle() {
            let _ = pace.idle.set(idle);
        }
        *pace.revoked.lock().unwrap_or_else(PoisonError::into_inner) = body.revoked();
        Self { body, pace }
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.pace.asked(polled.is_ready());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
