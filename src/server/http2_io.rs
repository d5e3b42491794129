//! The client's socket under HTTP/2: follows the frames in both directions, notes progress for the timeouts, and ends a
//! connection whose peer sends too much that does nothing, or was given its time to leave.
//!
//! The end is told as one of the library's own: it sees no more octets, closes down, and before the socket goes the peer gets a
//! GOAWAY that says why (RFC 9113 section 10.5). Decides nothing about requests.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::clock::Clock;
use crate::gateway::connection::ConnInfo;
use crate::upstream::{Socket, poll_read_sifted};
use crate::wire::frames::{Budget, Frame, Reason, Walker, go_away};
use crate::wire::heads::Heads;
use crate::wire::sieve::{Judge, Sieve};

/// How long, and how much, a peer may go on sending after the last frame: closing at once would reset the connection and could
/// destroy that frame on its way.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_OCTETS: usize = 1 << 20;

/// The socket, watched.
pub(super) struct Http2Io {
    socket: Socket,
    sieve: Sieve,
    requests: Requests,
    outbound: Walker,
    /// What is still to be said of a peer that was cut off; `None`: it was not.
    farewell: Option<Vec<u8>>,
    linger: Option<(Pin<Box<Sleep>>, usize)>,
}

/// What the client sends, judged.
struct Requests {
    conn: Arc<ConnInfo>,
    clock: Arc<dyn Clock>,
    heads: Heads,
    budget: Budget,
}

impl Judge for Requests {
    fn frame(&mut self, frame: Frame) -> Result<(), Reason> {
        let is_enough = self.budget.spend(frame, || self.clock.mono());
        if is_enough { Ok(()) } else { Err(Reason::TooMuch) }
    }

    fn begin(&mut self, _: Frame) {
        self.heads.begin();
    }

    fn field(&mut self, name: &[u8], value: &[u8]) {
        self.heads.field(name, value);
    }

    fn end(&mut self, frame: Frame, is_unsound: bool) -> Result<bool, Reason> {
        let may_pass = self.heads.end(frame, is_unsound)?;
        if let Some(target) = self.heads.odd_target() {
            self.conn.found_malformed(target);
        }
        Ok(may_pass)
    }
}

impl Http2Io {
    /// Around a socket whose preface has not been taken from it.
    pub(super) fn new(socket: Socket, conn: Arc<ConnInfo>, clock: Arc<dyn Clock>, longest_block: usize) -> Self {
        conn.in_head(true, &*clock);
        let budget = Budget::new(clock.mono());
        let requests = Requests { conn, clock, heads: Heads::default(), budget };
        let (sieve, outbound) = (Sieve::client(longest_block), Walker::default());
        Self { socket, sieve, requests, outbound, farewell: None, linger: None }
    }

    fn wrote(&mut self, written: &Poll<io::Result<usize>>, slices: &[IoSlice<'_>]) {
        let Self { outbound, requests: Requests { conn, clock, budget, .. }, .. } = self;
        conn.wrote(written.is_ready(), &**clock);
        let Poll::Ready(Ok(mut left)) = *written else { return };
        for slice in slices {
            let taken = slice.len().min(left);
            outbound.feed(&slice[..taken], |frame| budget.earn(frame));
            left -= taken;
        }
    }

    /// Writes what is left of the farewell. In the middle of a frame there is no room for one.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(farewell) = &mut self.farewell else { return Poll::Ready(Ok(())) };
        while self.outbound.is_between_frames() && !farewell.is_empty() {
            let count = ready!(Pin::new(&mut self.socket).poll_write(cx, farewell))?;
            farewell.drain(..count);
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }
}

impl Drop for Http2Io {
    fn drop(&mut self) {
        if self.requests.conn.must_reset() {
            self.socket.reset();
        }
    }
}

impl AsyncRead for Http2Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.farewell.is_some() {
            return Poll::Ready(Ok(()));
        }
        if this.requests.conn.takes_leave() {
            // What the kernel still holds was not looked at, and its client is told so.
            this.farewell = Some(go_away(this.sieve.last_stream, Reason::Done));
            return Poll::Ready(Ok(()));
        }
        let Self { socket, sieve, requests, .. } = this;
        let polled = poll_read_sifted(socket, sieve, requests, cx, buf);
        requests.conn.in_head(sieve.is_in_head(), &*requests.clock);
        if let Some(reason) = ready!(polled)? {
            tracing::debug!(client = %requests.conn.peer, ?reason, "a connection is cut off");
            this.farewell = Some(go_away(sieve.last_stream, reason));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write(cx, buf);
        this.wrote(&written, &[IoSlice::new(buf)]);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write_vectored(cx, slices);
        this.wrote(&written, slices);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(this.poll_farewell(cx))?;
            ready!(Pin::new(&mut this.socket).poll_shutdown(cx))?;
            if this.farewell.is_none() {
                this.requests.conn.parts();
            }
        }
        let (timer, left) = this.linger.get_or_insert_with(|| (Box::pin(sleep(LINGER)), LINGER_OCTETS));
        let mut scratch = [0; 16 * 1024];
        while *left > 0 && timer.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut this.socket).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                break;
            }
            *left = left.saturating_sub(buf.filled().len());
        }
        Poll::Ready(Ok(()))
    }
}
