//! What the socket of an HTTP/2 connection and the exchanges on it know together: which stream a request went out on, and how far
//! the answer had come when the connection was lost.
//!
//! The library does not say which stream it gave a request. It gives the numbers in turn, and asks each body whether it is empty
//! just before it does: that is when a [`Numbered`] body takes its number.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::body::RequestBody;
use crate::wire::answers::{Answers, Extent};

/// Of one connection.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Requests that the library has taken.
    taken: AtomicU32,
    answers: Mutex<Answers>,
}

/// One request on it.
#[derive(Debug, Clone)]
pub(super) struct Asked(Arc<Place>);

#[derive(Debug)]
struct Place {
    traffic: Arc<Traffic>,
    /// 0: none yet.
    stream: AtomicU32,
}

/// A body on its way to the library.
#[derive(Debug)]
pub(super) struct Numbered {
    pub(super) body: RequestBody,
    asked: Asked,
}

impl Traffic {
    /// What has come. Its socket and all exchanges are on one thread, so nobody ever waits.
    pub(super) fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    pub(super) fn new(traffic: &Arc<Traffic>) -> Self {
        Self(Arc::new(Place { traffic: traffic.clone(), stream: AtomicU32::new(0) }))
    }

    pub(super) fn numbered(&self, body: RequestBody) -> Numbered {
        Numbered { body, asked: self.clone() }
    }

    /// How far it had come.
    pub(super) fn extent(&self) -> Extent {
        match self.0.stream.load(Ordering::Relaxed) {
            0 => Extent::Unsent,
            stream => self.0.traffic.answers().extent(stream),
        }
    }

    fn number(&self) {
        let Place { traffic, stream } = &*self.0;
        if stream.load(Ordering::Relaxed) == 0 {
            stream.store(2 * traffic.taken.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }
}

impl Body for Numbered {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.asked.number();
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
