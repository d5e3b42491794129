//! The client's socket under hyper: notes progress for the timeouts, looks at the octets that hyper hides, closes slowly.
//!
//! Timeouts of the head and of an idle connection are not timers but a note of when the phase began; the worker's sweep reads
//! it. So a request arms no timer, and ten thousand idle connections cost one short loop. Decides nothing.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use crate::clock::Clock;
use crate::gateway::context::{ConnInfo, Phase};
use crate::upstream::poll_write_gathered;

/// How long a client may go on sending after a refusal before the socket closes under it.
const LINGER: Duration = Duration::from_secs(10);

/// The first read of a head takes no more than this: hyper's own buffer begins with as much.
const FIRST_READ: usize = 8 * 1024;

/// Whether these bytes begin with a request line whose target has a fragment.
///
/// `http::Uri` drops a fragment without a word, so nobody behind the parser could refuse it. A line that comes in pieces, or
/// pipelined behind another request, is not looked at: its fragment is dropped and so never forwarded.
fn has_fragment(bytes: &[u8]) -> bool {
    // Nearly no head has one anywhere.
    if !bytes.contains(&b'#') {
        return false;
    }
    let Some(line) = bytes.trim_ascii_start().split(|byte| *byte == b'\n').next() else { return false };
    // What follows a pipelined request may be the rest of any line: only a whole request line counts.
    let mut words = line.trim_ascii_end().split(|byte| *byte == b' ').skip(1);
    let (target, version) = (words.next(), words.next());
    target.is_some_and(|target| target.contains(&b'#')) && version.is_some_and(|v| v.starts_with(b"HTTP/1."))
}

/// The client's socket. Notes progress; closes slowly when asked to.
pub(super) struct ClientIo {
    stream: TokioIo<TcpStream>,
    conn: Arc<ConnInfo>,
    clock: Arc<dyn Clock>,
    linger: Option<Pin<Box<Sleep>>>,
}

impl ClientIo {
    /// Around an accepted socket.
    pub(super) fn new(stream: TcpStream, conn: Arc<ConnInfo>, clock: Arc<dyn Clock>) -> Self {
        Self { stream: TokioIo::new(stream), conn, clock, linger: None }
    }

    /// Interim responses: before hyper's next octets what was `begun` of one, in a flush all of it.
    fn poll_aside(&mut self, cx: &mut Context<'_>, begun: bool) -> Poll<std::io::Result<()>> {
        let Self { stream, conn, clock, .. } = self;
        if !conn.aside.is_waiting(begun) {
            return Poll::Ready(Ok(()));
        }
        let said = conn.aside.poll_write(cx, Pin::new(stream));
        conn.wrote(said.is_ready(), &**clock);
        said
    }
}

impl Read for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.conn.phase().0 == Phase::Idle {
            // Only here are the octets of the request line to be seen. Neither cleared nor large, so it costs next to nothing.
            let mut scratch = [const { MaybeUninit::uninit() }; FIRST_READ];
            let length = buf.remaining().min(FIRST_READ);
            let mut first = hyper::rt::ReadBuf::uninit(&mut scratch[..length]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, first.unfilled()))?;
            if has_fragment(first.filled()) {
                self.conn.found_fragment();
            }
            buf.put_slice(first.filled());
        } else {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        }
        self.conn.received(&*self.clock);
        Poll::Ready(Ok(()))
    }
}

impl Write for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        ready!(self.poll_aside(cx, true))?;
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.conn.wrote(written.is_ready(), &*self.clock);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        ready!(self.poll_aside(cx, true))?;
        let written = poll_write_gathered(Pin::new(&mut self.stream), cx, bufs);
        self.conn.wrote(written.is_ready(), &*self.clock);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        ready!(self.poll_aside(cx, false))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// With a refused body unread, closing at once would reset the connection and could destroy the answer on its way: close
    /// our side, then read on until the client closes too or has had its time (RFC 9112 section 9.6).
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
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
            ready!(Pin::new(this.stream.inner_mut()).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::has_fragment;

    #[test]
    fn a_fragment_is_seen_in_the_target_and_nowhere_else() {
        for (bytes, expected) in [
            ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", true),
            ("\r\nGET /a?b#c HTTP/1.1\r\n", true),
            ("GET /a HTTP/1.1\r\nX: #\r\n\r\n", false),
            ("#GET /a HTTP/1.1\r\n", false),
            ("le: the rest of a field #1\r\n\r\n", false),
            ("GET /a#b HT", false),
            ("", false),
        ] {
            assert_eq!(has_fragment(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }
}
