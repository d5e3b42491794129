//! Whether a connection has brought any octet since a request went out on it.
//!
//! hyper tells of a connection that ended before the answer and of one that ended inside its head in the same words. A request
//! may be sent again after the first, never after the second.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

/// Counts reads that brought something, or the end. Shared by the socket and by whoever waits for the answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard(Arc<AtomicU32>);

impl Heard {
    /// A request is about to go out.
    pub(super) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Whether the connection was lost in this way before any octet came: without a word, or with its end as the only one.
    pub(super) fn nothing(&self, lost: &hyper::Error) -> bool {
        match self.0.load(Ordering::Relaxed) {
            0 => true,
            1 => lost.is_incomplete_message(),
            _ => false,
        }
    }
}

/// A connection that notes when something comes.
#[derive(Debug)]
pub(super) struct Listening<T> {
    io: T,
    heard: Heard,
}

impl<T> Listening<T> {
    pub(super) fn new(io: T, heard: &Heard) -> Self {
        Self { io, heard: heard.clone() }
    }
}

impl<T: Read + Unpin> Read for Listening<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        // One task reads, and whoever resets has it wait for him: no need for an atomic addition.
        let reads = self.heard.0.load(Ordering::Relaxed).saturating_add(1);
        self.heard.0.store(reads, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<T: Write + Unpin> Write for Listening<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
