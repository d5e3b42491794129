//! The client's socket under hyper: a gate on the octets, notes of progress for the timeouts, a slow close.
//!
//! Timeouts of the head and of an idle connection are not timers but a note of when the phase began; the worker's sweep reads
//! it. So a request arms no timer, and ten thousand idle connections cost one short loop. What may pass the gate is decided in
//! [`crate::wire::http1`].

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::clock::Clock;
use crate::config::model::Limits;
use crate::gateway::context::ConnInfo;
use crate::upstream::{Socket, poll_write_gathered};
use crate::wire::http1::{Gate, RequestLimits, Requests};

/// How long a client may go on sending after a refusal before the socket closes under it.
const LINGER: Duration = Duration::from_secs(10);

/// The client's socket. Lets only pass what is beyond doubt, notes progress, closes slowly when asked to.
pub(super) struct ClientIo {
    stream: Socket,
    gate: Gate<Requests>,
    conn: Arc<ConnInfo>,
    clock: Arc<dyn Clock>,
    linger: Option<Pin<Box<Sleep>>>,
}

impl ClientIo {
    /// Around an accepted socket.
    pub(super) fn new(socket: Socket, limits: &Limits, conn: Arc<ConnInfo>, clock: Arc<dyn Clock>) -> Self {
        let limits = RequestLimits { head: limits.header_bytes, fields: limits.header_count, target: limits.uri_bytes };
        Self { stream: socket, gate: Gate::new(Requests::new(limits)), conn, clock, linger: None }
    }

    fn socket(&mut self) -> TokioIo<&mut Socket> {
        TokioIo::new(&mut self.stream)
    }
}

/// The reading half: here the octets are to be seen where they were read, and what may not pass is taken back.
struct Sifted<'a>(&'a mut ClientIo);

impl AsyncRead for Sifted<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let ClientIo { stream, gate, conn, clock, .. } = &mut *self.get_mut().0;
        loop {
            let ready = gate.ready();
            if !ready.is_empty() {
                let taken = ready.len().min(buf.remaining());
                buf.put_slice(&ready[..taken]);
                gate.took(taken);
                return Poll::Ready(Ok(()));
            }
            if gate.is_broken() {
                return Poll::Ready(Err(std::io::ErrorKind::InvalidData.into()));
            }
            if gate.is_shut() {
                // The answer to what was refused ends the connection.
                return Poll::Pending;
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut *stream).poll_read(cx, buf))?;
            let fresh = &buf.filled()[before..];
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            conn.received(&**clock);
            let passed = gate.sift(fresh);
            buf.set_filled(before + passed);
            if let Some(refused) = gate.take_refused() {
                conn.refuse(refused);
            }
            conn.holds_head(gate.holds_head());
            if passed > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl Read for ClientIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut TokioIo::new(Sifted(self.get_mut()))).poll_read(cx, buf)
    }
}

impl Write for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.socket()).poll_write(cx, buf);
        self.conn.wrote(written.is_ready(), &*self.clock);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = poll_write_gathered(Pin::new(&mut self.socket()), cx, bufs);
        self.conn.wrote(written.is_ready(), &*self.clock);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket()).poll_flush(cx)
    }

    /// With a refused body unread, closing at once would reset the connection and could destroy the answer on its way: close
    /// our side, then read on until the client closes too or has had its time (RFC 9112 section 9.6).
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        ready!(Pin::new(&mut self.socket()).poll_shutdown(cx))?;
        if !self.conn.must_linger() {
            return Poll::Ready(Ok(()));
        }
        let this = &mut *self;
        let timer = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut scratch = [0; 16 * 1024];
        loop {
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buf = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
