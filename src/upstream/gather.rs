//! The socket to an upstream under hyper: a gate on what comes, and small writes in one piece, on both sides of the proxy.
//!
//! hyper hands a head and the chunk behind it over as two slices. `writev` on a socket costs a process with several threads more
//! than `send` does (the kernel takes the file's position lock), so what is small is copied together and sent; what is large
//! is gathered as it is.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrayvec::ArrayVec;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};

use super::heard::Heard;
use super::interim::Interims;
use super::sent::Sent;
use super::socket::Socket;
use crate::wire::http1::{Answers, Exchange, Gate};

/// Up to this size slices are copied together.
const SMALL: usize = 4 * 1024;

/// Writes slices in the cheaper way.
pub fn poll_write_gathered(
    stream: Pin<&mut impl Write>,
    cx: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<std::io::Result<usize>> {
    if let [only] = slices {
        return stream.poll_write(cx, only);
    }
    let mut piece = ArrayVec::<u8, SMALL>::new();
    if slices.iter().all(|slice| piece.try_extend_from_slice(slice).is_ok()) {
        stream.poll_write(cx, &piece)
    } else {
        stream.poll_write_vectored(cx, slices)
    }
}

/// The socket to an upstream. Lets only pass what is beyond doubt and was asked for ([`crate::wire::http1`]).
pub(super) struct UpstreamIo {
    stream: Socket,
    gate: Gate<Answers>,
    exchange: Arc<Exchange>,
    heard: Heard,
    interims: Interims,
    sent: Sent,
}

impl UpstreamIo {
    /// Around a new connection; `exchange` is told of each request before it is written, `heard` of what comes, `interims` of what
    /// passes, `sent` of what goes.
    pub(super) fn new(stream: Socket, exchange: Arc<Exchange>, heard: Heard, interims: Interims, sent: Sent) -> Self {
        Self { stream, gate: Gate::new(Answers::new(exchange.clone())), exchange, heard, interims, sent }
    }

    fn socket(&mut self) -> TokioIo<&mut Socket> {
        TokioIo::new(&mut self.stream)
    }
}

/// The reading half: here the octets are to be seen where they were read, and what may not pass is taken back.
struct Sifted<'a>(&'a mut UpstreamIo);

impl AsyncRead for Sifted<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let UpstreamIo { stream, gate, heard, interims, .. } = &mut *self.get_mut().0;
        let before = buf.filled().len();
        loop {
            if gate.hand_over(|ready| put(ready, buf)) {
                break;
            }
            if gate.is_shut() {
                return Poll::Ready(Err(std::io::ErrorKind::InvalidData.into()));
            }
            ready!(Pin::new(&mut *stream).poll_read(cx, buf))?;
            heard.note();
            let fresh = &buf.filled()[before..];
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let passed = gate.sift(fresh);
            buf.set_filled(before + passed);
            if let Some(fault) = gate.take_refused() {
                tracing::debug!(?fault, "an answer was refused");
            }
            if passed > 0 {
                break;
            }
        }
        interims.hear(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

/// As much as there is room for.
pub fn put(octets: &[u8], buf: &mut ReadBuf<'_>) -> usize {
    let taken = octets.len().min(buf.remaining());
    buf.put_slice(&octets[..taken]);
    taken
}

impl Read for UpstreamIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut TokioIo::new(Sifted(self.get_mut()))).poll_read(cx, buf)
    }
}

impl Write for UpstreamIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.exchange.wrote();
        self.sent.note(buf);
        Pin::new(&mut self.socket()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.exchange.wrote();
        self.sent.note(slices.first().map_or(&[], |first| first));
        poll_write_gathered(Pin::new(&mut self.socket()), cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket()).poll_shutdown(cx)
    }
}
