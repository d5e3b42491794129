//! Octets between a client and an upstream that have switched to another protocol, both ways, until one of many ends.
//!
//! An idle tunnel holds no buffer: what is read is written on from the stack, and only what the other side has no room for is kept,
//! at most [`CHUNK`] in each direction; until it is gone nothing more is read. A side that has ended its half is told on, and
//! the other half goes on. A tunnel ends when both halves have, when a connection breaks, when neither side has said anything
//! for the idle limit, and when its key is no longer good. It then simply closes: a Close frame of the gateway's own could come
//! to stand in the middle of a frame of the backend's.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hyper::rt::{Read, ReadBuf, Write};
use tokio::time::{Instant, sleep_until};

use crate::gateway::upgrade::Tunnel;
use crate::upstream::deadline;

/// Read at once, as much as a TLS record holds.
const CHUNK: usize = 16 * 1024;

/// Runs a tunnel to its end. `ahead`: what the client has sent already.
pub(super) async fn run(mut client: impl Read + Write + Unpin, ahead: Bytes, tunnel: Tunnel) {
    let Tunnel { mut upstream, idle, mut revoked, mut record } = tunnel;
    record.received(ahead.len() as u64);
    let (mut inward, mut outward) = (Half { left: ahead, ..Half::default() }, Half::default());
    let mut heard = Instant::now();
    let mut silence = pin!(sleep_until(deadline(heard, idle)));
    record.code = poll_fn(|cx| {
        let to_upstream = inward.poll_copy(cx, &mut client, &mut upstream.io, |octets| record.received(octets));
        let to_client = outward.poll_copy(cx, &mut upstream.io, &mut client, |octets| record.bytes_out += octets);
        match (to_upstream, to_client) {
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => return Poll::Ready(None),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(None),
            _ => {}
        }
        if let Some(Poll::Ready(ended)) = revoked.as_mut().map(|revoked| revoked.as_mut().poll(cx)) {
            return Poll::Ready(Some(record.ended(ended).code));
        }
        if std::mem::take(&mut inward.moved) | std::mem::take(&mut outward.moved) {
            heard = Instant::now();
        }
        while silence.as_mut().poll(cx).is_ready() {
            let due = deadline(heard, idle);
            if due <= Instant::now() {
                return Poll::Ready(Some("idle_timeout"));
            }
            silence.as_mut().reset(due);
        }
        Poll::Pending
    })
    .await;
}

/// One direction.
#[derive(Default)]
struct Half {
    /// Read, and not taken by the other side yet.
    left: Bytes,
    /// Written, and perhaps still on its way in a layer below.
    unflushed: bool,
    /// Since somebody last asked.
    moved: bool,
    state: State,
}

#[derive(Default, PartialEq)]
enum State {
    #[default]
    Open,
    /// One side has ended its half; the other is being told.
    Ending,
    Ended,
}

impl Half {
    /// Ready when the end of this direction has been passed on.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl Read + Unpin),
        to: &mut (impl Write + Unpin),
        mut count: impl FnMut(u64),
    ) -> Poll<io::Result<()>> {
        let (mut from, mut to) = (Pin::new(from), Pin::new(to));
        loop {
            while !self.left.is_empty() {
                let taken = ready!(to.as_mut().poll_write(cx, &self.left))?;
                self.took(taken)?;
                self.left.advance(taken);
            }
            // An empty one may still hold what it was a part of.
            self.left = Bytes::new();
            if self.state == State::Ending {
                ready!(to.as_mut().poll_shutdown(cx))?;
                self.state = State::Ended;
            }
            if self.state == State::Ended {
                return Poll::Ready(Ok(()));
            }
            let mut room = [const { MaybeUninit::uninit() }; CHUNK];
            let mut chunk = ReadBuf::uninit(&mut room);
            if from.as_mut().poll_read(cx, chunk.unfilled())?.is_pending() {
                if self.unflushed {
                    ready!(to.as_mut().poll_flush(cx))?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
            let mut octets = chunk.filled();
            if octets.is_empty() {
                self.state = State::Ending;
                continue;
            }
            count(octets.len() as u64);
            self.moved = true;
            while !octets.is_empty() {
                let Poll::Ready(taken) = to.as_mut().poll_write(cx, octets)? else {
                    self.left = Bytes::copy_from_slice(octets);
                    return Poll::Pending;
                };
                self.took(taken)?;
                octets = &octets[taken..];
            }
        }
    }

    fn took(&mut self, octets: usize) -> io::Result<()> {
        (self.moved, self.unflushed) = (true, true);
        if octets == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// A tunnel between two pipes that hold eight octets each; the outer ends of both.
    fn between() -> (DuplexStream, DuplexStream, TokioIo<DuplexStream>, TokioIo<DuplexStream>) {
        let ((client, inner), (upstream, other)) = (duplex(8), duplex(8));
        (client, upstream, TokioIo::new(inner), TokioIo::new(other))
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_other_side_has_no_room_for_is_kept_and_nothing_more_is_read() {
        let (mut client, mut upstream, mut from, mut to) = between();
        let mut half = Half::default();
        let mut counted = 0;
        let copy = tokio::spawn(async move {
            let copied = poll_fn(|cx| half.poll_copy(cx, &mut from, &mut to, |n| counted += n)).await;
            (copied.is_ok(), counted, half.left.len())
        });
        // Eight octets wait for the upstream, eight in the tunnel, and eight before it; the next ones find no room.
        client.write_all(&[1; 24]).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(1), client.write_all(&[1; 1])).await.is_err());
        let mut read = vec![0; 24];
        upstream.read_exact(&mut read).await.unwrap();
        assert_eq!(read, [1; 24]);
        drop(client);
        assert_eq!(upstream.read_to_end(&mut Vec::new()).await.unwrap(), 0);
        assert_eq!(copy.await.unwrap(), (true, 24, 0));
    }
}
