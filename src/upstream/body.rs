//! Bodies in both directions: concrete, streamed frame by frame, counted, and bounded in time and size.
//!
//! Never buffers to count, never boxes. A timer exists only while a body is actually waited for, so the usual small
//! exchange arms none.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use super::fields::Fields;
use super::first::First;
use super::kept::{Again, Kept};
use super::pool::Lease;
use crate::policy::headers::{self, filter_trailers};

/// Why a body did not reach its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// No byte for too long.
    #[error("no data for too long")]
    Idle,
    /// More bytes than allowed.
    #[error("more than the allowed number of bytes")]
    TooLarge,
    /// The peer broke the framing.
    #[error("the peer broke the framing")]
    Broken,
    /// The peer went away.
    #[error("the peer went away")]
    Gone,
}

impl BodyError {
    /// What hyper's error says of the peer: octets that cannot be a body, or no more octets.
    pub fn of(error: &hyper::Error) -> Self {
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            if let Some(io) = inner.downcast_ref::<std::io::Error>() {
                let bad = matches!(io.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData);
                return if bad { Self::Broken } else { Self::Gone };
            }
            cause = inner.source();
        }
        if error.is_parse() { Self::Broken } else { Self::Gone }
    }
}

/// How far a request body has come; shared with whoever waits for the response.
#[derive(Debug)]
pub struct Progress {
    begun: Instant,
    /// When a frame passed last, in microseconds since it was begun.
    moved: AtomicU64,
    bytes: AtomicU64,
    failure: AtomicU8,
    unread: AtomicBool,
    /// The upstream would take more than has come.
    starves: AtomicBool,
}

impl Default for Progress {
    fn default() -> Self {
        let (moved, bytes, failure) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU8::new(0));
        let (unread, starves) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { begun: Instant::now(), moved, bytes, failure, unread, starves }
    }
}

impl Progress {
    /// Bytes received so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// When it moved last: the wait for the response begins then.
    pub fn moved(&self) -> Instant {
        self.begun + Duration::from_micros(self.moved.load(Ordering::Relaxed))
    }

    /// Whether it is the client that everybody waits for.
    pub fn starves(&self) -> bool {
        self.starves.load(Ordering::Relaxed)
    }

    /// A frame passes, or the end.
    pub(super) fn moves(&self) {
        self.moved.store(self.begun.elapsed().as_micros() as u64, Ordering::Relaxed);
        self.starves.store(false, Ordering::Relaxed);
    }

    /// Whether a streamed body has not been read to its end: the client may still be sending.
    pub fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// Why the body ended early, if it did.
    pub fn failure(&self) -> Option<BodyError> {
        match self.failure.load(Ordering::Relaxed) {
            1 => Some(BodyError::Idle),
            2 => Some(BodyError::TooLarge),
            3 => Some(BodyError::Broken),
            4 => Some(BodyError::Gone),
            _ => None,
        }
    }

    fn fail(&self, error: BodyError) {
        let code = match error {
            BodyError::Idle => 1,
            BodyError::TooLarge => 2,
            BodyError::Broken => 3,
            BodyError::Gone => 4,
        };
        self.failure.store(code, Ordering::Relaxed);
    }
}

/// A timer that exists only while it is needed.
#[derive(Debug)]
struct IdleTimer {
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl IdleTimer {
    const fn new(limit: Duration) -> Self {
        Self { limit, sleep: None }
    }

    /// Data came.
    fn rest(&mut self) {
        self.sleep = None;
    }

    /// No data now: ready once nothing came for the whole limit.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sleep.get_or_insert_with(|| Box::pin(sleep(self.limit))).as_mut().poll(cx)
    }
}

/// A body on its way to the upstream.
#[derive(Debug)]
pub enum RequestBody {
    /// Nothing.
    Empty,
    /// Held in memory because a value was read from it; goes on byte for byte.
    Held(Bytes),
    /// Straight from the client. Boxed: every request is moved as often as one with a body.
    Streamed(Box<Streamed>),
}

/// A client's body, counted and bounded.
#[derive(Debug)]
pub struct Streamed {
    incoming: Incoming,
    version: Version,
    left: u64,
    idle: IdleTimer,
    progress: Arc<Progress>,
    /// What the upstream gets from us, and so from no trailer.
    ours: Option<Arc<Fields>>,
    /// Where it may have to go out again.
    kept: Option<Kept>,
}

impl RequestBody {
    /// Streams `incoming`; at most `limit` bytes, at most `idle` between two of them.
    pub fn stream(
        incoming: Incoming,
        version: Version,
        limit: Option<u64>,
        idle: Duration,
        progress: Arc<Progress>,
    ) -> Self {
        progress.unread.store(true, Ordering::Relaxed);
        let (left, idle) = (limit.unwrap_or(u64::MAX), IdleTimer::new(idle));
        Self::Streamed(Box::new(Streamed { incoming, version, left, idle, progress, ours: None, kept: None }))
    }

    /// No trailer passes that has the name of one of these.
    pub(super) fn refuse_trailers(&mut self, ours: Arc<Fields>) {
        if let Self::Streamed(streamed) = self {
            streamed.ours = Some(ours);
        }
    }

    /// What will be there of it, should it have to go out again.
    pub(super) fn keep(&mut self) -> Again {
        match self {
            Self::Streamed(streamed) => Again::Kept(streamed.kept.insert(Kept::default()).clone()),
            Self::Held(bytes) => Again::Whole(Self::Held(bytes.clone())),
            Self::Empty => Again::Whole(Self::Empty),
        }
    }

    /// The same once more, unless it streams.
    pub(super) fn again(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Held(bytes) => Some(Self::Held(bytes.clone())),
            Self::Streamed(_) => None,
        }
    }
}

impl Streamed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                self.progress.starves.store(true, Ordering::Relaxed);
                ready!(self.idle.poll_expired(cx));
                return Poll::Ready(Some(Err(self.fail(BodyError::Idle))));
            }
        };
        self.idle.rest();
        self.progress.moves();
        if frame.is_none() && is_cut_short(&self.incoming, self.version) {
            return Poll::Ready(Some(Err(self.fail(BodyError::Gone))));
        }
        let is_last = match &frame {
            None => true,
            Some(Ok(frame)) => frame.is_trailers() || self.incoming.is_end_stream(),
            Some(Err(_)) => false,
        };
        if let (Some(kept), Some(Ok(frame))) = (&self.kept, &frame)
            && let Some(data) = frame.data_ref()
        {
            kept.note(data);
        }
        if is_last {
            self.progress.unread.store(false, Ordering::Relaxed);
            if let Some(kept) = &self.kept {
                kept.end(frame.as_ref().is_some_and(|frame| frame.as_ref().is_ok_and(Frame::is_trailers)));
            }
        }
        Poll::Ready(match frame {
            None => None,
            Some(Err(error)) => Some(Err(self.fail(BodyError::of(&error)))),
            Some(Ok(mut frame)) => {
                if let Some(data) = frame.data_ref() {
                    let length = data.len() as u64;
                    self.progress.bytes.fetch_add(length, Ordering::Relaxed);
                    match self.left.checked_sub(length) {
                        Some(left) => self.left = left,
                        None => return Poll::Ready(Some(Err(self.fail(BodyError::TooLarge)))),
                    }
                } else if let Some(trailers) = frame.trailers_mut() {
                    filter_trailers(trailers);
                    if let Some(ours) = &self.ours {
                        headers::remove(trailers, ours);
                    }
                }
                Some(Ok(frame))
            }
        })
    }

    fn fail(&self, error: BodyError) -> BodyError {
        self.progress.fail(error);
        error
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    /// What an upstream of HTTP/2 is told: that its request is given up. Why, the [`Progress`] knows.
    type Error = h2::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            held @ Self::Held(_) => match std::mem::replace(held, Self::Empty) {
                Self::Held(bytes) if !bytes.is_empty() => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                _ => Poll::Ready(None),
            },
            Self::Streamed(streamed) => streamed.poll_frame(cx).map_err(|_| h2::Reason::CANCEL.into()),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Held(bytes) => bytes.is_empty(),
            Self::Streamed(streamed) => streamed.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Held(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Streamed(streamed) => streamed.incoming.size_hint(),
        }
    }
}

/// Whether a body that has come to its end was given up before it: hyper takes a reset without an error for the end of a stream.
pub(super) fn is_cut_short(incoming: &Incoming, version: Version) -> bool {
    version == Version::HTTP_2 && !incoming.is_end_stream()
}

/// Whether it brings no octet of content.
fn is_empty(frame: &Frame<Bytes>) -> bool {
    frame.data_ref().is_none_or(Bytes::is_empty)
}

/// A body on its way to the client, holding the upstream connection until its end.
#[derive(Debug)]
pub struct UpstreamBody {
    incoming: Incoming,
    version: Version,
    /// What had come with the head.
    first: Option<First>,
    idle: IdleTimer,
    /// Goes back to the pool at a clean end; dropped, which closes it, at any other.
    lease: Option<Lease>,
    /// Of the request's body, if it streams one.
    progress: Option<Arc<Progress>>,
    /// It has ended before its end.
    broken: bool,
    /// By its status it has no content, however it is framed.
    contentless: bool,
}

impl UpstreamBody {
    /// Of the answer with this head. An error when it has broken already: hyper would close on the client without sending even that.
    pub(super) fn new(
        mut incoming: Incoming,
        head: &Parts,
        idle: Duration,
        lease: Lease,
        progress: Option<Arc<Progress>>,
    ) -> Result<Self, BodyError> {
        let (version, contentless) =
            (head.version, matches!(head.status, StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED));
        let first = First::of(&mut incoming, version)?;
        if contentless && first.as_ref().is_some_and(|first| first.length() > 0) {
            return Err(BodyError::Broken);
        }
        let idle = IdleTimer::new(idle);
        let (lease, broken) = (Some(lease), false);
        let mut body = Self { incoming, version, first, idle, lease, progress, broken, contentless };
        if body.is_end_stream() {
            body.give_back();
        }
        Ok(body)
    }

    /// Of a 101: its connection speaks HTTP no more, so it is never given back.
    pub(super) fn switching(incoming: Incoming, lease: Lease) -> Self {
        let (version, idle) = (Version::HTTP_11, IdleTimer::new(Duration::MAX));
        let (first, lease, progress, broken, contentless) = (None, Some(lease), None, false, false);
        Self { incoming, version, first, idle, lease, progress, broken, contentless }
    }

    /// The connection, for whoever takes it over.
    pub(super) fn take_lease(&mut self) -> Option<Lease> {
        self.lease.take()
    }

    /// Not when the upstream has answered without the whole request: it may never read the rest, and nobody waits for it.
    fn give_back(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        lease.peer().answered();
        if !self.progress.as_ref().is_some_and(|progress| progress.is_unread()) {
            lease.give_back();
        }
    }

    /// The answer ends before its end.
    fn break_off(&mut self) {
        self.broken = true;
        if let Some(lease) = self.lease.take() {
            lease.peer().failed();
        }
    }

    /// The upstream has broken it off. That is told a turn later: what came before, the head at least, goes out first, so that
    /// the client sees a broken answer and not a connection that was idle.
    fn break_late(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.break_off();
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.broken {
            return Poll::Ready(Some(Err(BodyError::Broken)));
        }
        let polled = match this.first.take() {
            Some(first) => {
                let (next, left) = first.next();
                this.first = left;
                Poll::Ready(next.map(Ok))
            }
            None => Pin::new(&mut this.incoming).poll_frame(cx),
        };
        let frame = match polled {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                ready!(this.idle.poll_expired(cx));
                this.break_off();
                return Poll::Ready(Some(Err(BodyError::Idle)));
            }
        };
        this.idle.rest();
        Poll::Ready(match frame {
            None if is_cut_short(&this.incoming, this.version) => return this.break_late(cx),
            None => {
                this.give_back();
                None
            }
            Some(Err(_)) => return this.break_late(cx),
            Some(Ok(frame)) if this.contentless && !is_empty(&frame) => return this.break_late(cx),
            Some(Ok(mut frame)) => {
                // Nothing comes after trailers, and nobody asks again.
                let is_last = frame.is_trailers() || this.is_end_stream();
                if let Some(trailers) = frame.trailers_mut() {
                    filter_trailers(trailers);
                }
                if is_last {
                    this.give_back();
                }
                Some(Ok(frame))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.incoming.is_end_stream() && !self.broken
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.incoming.size_hint();
        let first = self.first.as_ref().map_or(0, First::length);
        if let Some(rest) = hint.upper() {
            hint.set_upper(rest + first);
        }
        hint.set_lower(hint.lower() + first);
        hint
    }
}

/// The instant at which a wait that began at `start` is over.
pub fn deadline(start: Instant, limit: Duration) -> Instant {
    start.checked_add(limit).unwrap_or_else(|| start + Duration::from_secs(86_400 * 365))
}
