//! What is said to a client on HTTP/1.1 beside what hyper writes: interim responses.
//!
//! The order: hyper has one answer at a time to write, and asks for a flush when it has written all it has. What is said then
//! stands behind the answer before, and in front of the one to come, because nobody who says something gives that one to
//! hyper before it is written.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::rt::Write;

/// The place where it waits; one for each client connection.
#[derive(Debug, Default)]
pub struct Aside {
    /// Something waits. All that is asked in the usual case.
    any: AtomicBool,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    octets: Vec<u8>,
    written: usize,
}

impl Aside {
    /// Says something, and waits until it is written. Only for whoever has the answer to the current request still to give.
    pub(super) async fn say(&self, octets: Vec<u8>) {
        *self.lock() = Said { octets, written: 0 };
        self.any.store(true, Ordering::Release);
        // The connection's own task waits here, and wakes itself when it has written.
        poll_fn(|_| if self.any.load(Ordering::Acquire) { Poll::Pending } else { Poll::Ready(()) }).await;
    }

    /// Whether there is anything to write, or anything of which the beginning is written: that comes even before hyper's octets.
    pub fn is_waiting(&self, begun: bool) -> bool {
        self.any.load(Ordering::Acquire) && (!begun || self.lock().written > 0)
    }

    /// Writes it, and wakes the task when it is written.
    pub fn poll_write(&self, cx: &mut Context<'_>, mut to: Pin<&mut impl Write>) -> Poll<io::Result<()>> {
        let mut said = self.lock();
        while said.written < said.octets.len() {
            let taken = ready!(to.as_mut().poll_write(cx, &said.octets[said.written..]))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            said.written += taken;
        }
        *said = Said::default();
        self.any.store(false, Ordering::Release);
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
