//! What the socket of an HTTP/2 connection and the exchanges on it know together: which stream a request went out on, how far
//! the answer had come when the connection was lost, and who is to be told of interim answers.
//!
//! The library does not say which stream it gave a request. It gives the numbers in turn, and asks each body whether it is empty
//! just before it does: that is when a [`Numbered`] body takes its number.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use rustc_hash::FxHashMap;

use super::body::RequestBody;
use super::interim::Interims;
use crate::wire::answers::{Answers, Extent, Interim};

/// Of one connection.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Requests that the library has taken.
    taken: AtomicU32,
    answers: Mutex<Answers>,
    /// Whose clients are told of interim answers, by stream.
    told: Mutex<FxHashMap<u32, Interims>>,
}

/// One request on it.
#[derive(Debug, Clone)]
pub(super) struct Asked(Arc<Place>);

#[derive(Debug)]
struct Place {
    traffic: Arc<Traffic>,
    /// 0: none yet.
    stream: AtomicU32,
    interims: Option<Interims>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.interims.is_some() {
            self.traffic.told().remove(self.stream.get_mut());
        }
    }
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

    /// Passes on what has come.
    pub(super) fn tell(&self, interims: Vec<Interim>) {
        let told = self.told();
        for Interim { stream, status, fields } in interims {
            if let Some(interims) = told.get(&stream) {
                interims.tell(status, &fields);
            }
        }
    }

    fn told(&self) -> MutexGuard<'_, FxHashMap<u32, Interims>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    /// On a connection; `interims`: where those of its answer go.
    pub(super) fn new(traffic: &Arc<Traffic>, interims: Option<Interims>) -> Self {
        Self(Arc::new(Place { traffic: traffic.clone(), stream: AtomicU32::new(0), interims }))
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
        let Place { traffic, stream, interims } = &*self.0;
        if stream.load(Ordering::Relaxed) == 0 {
            let number = 2 * traffic.taken.fetch_add(1, Ordering::Relaxed) + 1;
            stream.store(number, Ordering::Relaxed);
            if let Some(interims) = interims {
                traffic.told().insert(number, interims.clone());
            }
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
