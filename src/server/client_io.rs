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
use crate::gateway::connection::ConnInfo;
use crate::upstream::{Socket, poll_write_gathered, put};
use crate::wire::http1::{Gate, RequestLimits, Requests};

/// How long a client may go on sending after a refusal before the socket closes under it.
const LINGER: Duration = Duration::from_secs(10);

/// How much is taken of what a client sends behind a request for an upgrade before that is answered.
const LOOK_AHEAD: usize = 64 * 1024;

/// The client's socket. Lets only pass what is beyond doubt, notes progress, closes slowly when asked to.
pub(super) struct ClientIo {
    stream: Socket,
    gate: Gate<Requests>,
    conn: Arc<ConnInfo>,
    clock: Arc<dyn Clock>,
    linger: Option<Pin<Box<Sleep>>>,
    /// The client has shut its sending side, and hyper does not know yet.
    end_withheld: bool,
}

impl ClientIo {
    /// Around an accepted socket.
    pub(super) fn new(socket: Socket, limits: &Limits, conn: Arc<ConnInfo>, clock: Arc<dyn Clock>) -> Self {
        let limits = RequestLimits { head: limits.header_bytes, fields: limits.header_count, target: limits.uri_bytes };
        Self { stream: socket, gate: Gate::new(Requests::new(limits)), conn, clock, linger: None, end_withheld: false }
    }

    /// A 101 was sent: whatever comes now, and came behind the request, passes as it is.
    pub(super) fn open(&mut self) {
        self.gate.open();
    }

    /// Waits, with nothing but the socket, until octets or the end have come.
    pub(super) fn poll_arrival(&self, cx: &mut Context<'_>) -> Poll<()> {
        // An error is told by the read that follows.
        self.stream.poll_read_ready(cx).map(drop)
    }

    fn socket(&mut self) -> TokioIo<&mut Socket> {
        TokioIo::new(&mut self.stream)
    }

    /// Interim responses: before hyper's next octets what was `begun` of one, in a flush all of it.
    fn poll_aside(&mut self, cx: &mut Context<'_>, begun: bool) -> Poll<std::io::Result<()>> {
        let Self { stream, conn, clock, .. } = self;
        if !conn.aside.is_waiting(begun) {
            return Poll::Ready(Ok(()));
        }
        let said = conn.aside.poll_write(cx, Pin::new(&mut TokioIo::new(stream)));
        conn.wrote(said.is_ready(), &**clock);
        said
    }
}

impl Drop for ClientIo {
    fn drop(&mut self) {
        if self.conn.must_reset() {
            self.stream.reset();
        }
    }
}

/// The reading half: here the octets are to be seen where they were read, and what may not pass is taken back.
struct Sifted<'a>(&'a mut ClientIo);

impl AsyncRead for Sifted<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let ClientIo { stream, gate, conn, clock, end_withheld, .. } = &mut *self.get_mut().0;
        loop {
            if gate.hand_over(|ready| put(ready, buf)) {
                note(conn, gate);
                return Poll::Ready(Ok(()));
            }
            if let Some(held) = gate.waits() {
                if conn.answered() == gate.begun() {
                    gate.settle();
                    note(conn, gate);
                    continue;
                }
                conn.wake_when_answered(held > 0);
                if held > LOOK_AHEAD {
                    return Poll::Pending;
                }
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
                // A client may shut its sending side and still wait for an answer, or a verdict; hyper would take it for gone.
                *end_withheld = (gate.is_between() || gate.waits().is_some()) && conn.answered() != gate.begun();
                if *end_withheld {
                    conn.stops_sending(&**clock);
                    return Poll::Pending;
                }
                return Poll::Ready(Ok(()));
            }
            conn.received(&**clock);
            let passed = gate.sift(fresh);
            buf.set_filled(before + passed);
            note(conn, gate);
            if passed > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// Tells the connection what its gate has found.
fn note(conn: &ConnInfo, gate: &mut Gate<Requests>) {
    if let Some(refused) = gate.take_refused() {
        conn.refuse(refused);
    }
    conn.gate_stands(gate.is_between(), gate.holds_head());
}

impl Read for ClientIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut TokioIo::new(Sifted(self.get_mut()))).poll_read(cx, buf)
    }
}

impl Write for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        ready!(self.poll_aside(cx, true))?;
        let written = Pin::new(&mut self.socket()).poll_write(cx, buf);
        self.conn.wrote(written.is_ready(), &*self.clock);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        ready!(self.poll_aside(cx, true))?;
        let written = poll_write_gathered(Pin::new(&mut self.socket()), cx, bufs);
        self.conn.wrote(written.is_ready(), &*self.clock);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        ready!(self.poll_aside(cx, false))?;
        ready!(Pin::new(&mut self.socket()).poll_flush(cx))?;
        if self.end_withheld && self.conn.answered() == self.gate.begun() {
            // They are out: now the end may be read.
            self.end_withheld = false;
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
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
