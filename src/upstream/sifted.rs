//! HTTP/2 on a socket, sifted: what is read comes through a [`Sieve`], on both sides of the proxy.

use std::io::{self, IoSlice};
use std::mem::take;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::gather::put;
use super::socket::Socket;
use super::traffic::Traffic;
use crate::wire::frames::{Reason, Walker};
use crate::wire::sieve::{Judge, Sieve};

/// Reads what may pass; or tells why nothing more does.
pub fn poll_read_sifted(
    socket: &mut Socket,
    sieve: &mut Sieve,
    judge: &mut impl Judge,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<Option<Reason>>> {
    let before = buf.filled().len();
    while !sieve.hand_over(|waits| put(waits, buf)) {
        ready!(Pin::new(&mut *socket).poll_read(cx, buf))?;
        let fresh = &buf.filled()[before..];
        if fresh.is_empty() {
            break;
        }
        match sieve.sift(fresh, judge) {
            Ok(passed) => buf.set_filled(before + passed),
            Err(reason) => {
                buf.set_filled(before);
                return Poll::Ready(Ok(Some(reason)));
            }
        }
        if buf.filled().len() > before {
            break;
        }
    }
    Poll::Ready(Ok(None))
}

/// The socket to an upstream under HTTP/2.
pub(super) struct Http2Io {
    socket: Socket,
    sieve: Sieve,
    traffic: Arc<Traffic>,
    sent: Walker,
    /// Waits for the upstream's settings.
    greeted: Option<oneshot::Sender<()>>,
}

impl Http2Io {
    /// Around a new connection, whose field blocks have at most so many octets; and what tells that its settings have come.
    pub(super) fn new(socket: Socket, traffic: Arc<Traffic>, most: usize) -> (Self, oneshot::Receiver<()>) {
        let (greeted, settings) = oneshot::channel();
        let (sieve, sent) = (Sieve::server(most), Walker::behind_preface());
        (Self { socket, sieve, traffic, sent, greeted: Some(greeted) }, settings)
    }

    fn wrote(&mut self, written: &Poll<io::Result<usize>>, slices: &[IoSlice<'_>]) {
        let Poll::Ready(Ok(mut left)) = *written else { return };
        let mut answers = self.traffic.answers();
        for slice in slices {
            let taken = slice.len().min(left);
            self.sent.feed(&slice[..taken], |frame| answers.sent(frame));
            left -= taken;
        }
    }
}

impl AsyncRead for Http2Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { socket, sieve, traffic, greeted, .. } = self.get_mut();
        let (mut answers, before) = (traffic.answers(), buf.filled().len());
        let read = ready!(poll_read_sifted(socket, sieve, &mut *answers, cx, buf));
        if buf.filled().len() == before {
            answers.lost(sieve.waiting());
        }
        if !answers.interims.is_empty() {
            traffic.tell(take(&mut answers.interims));
        }
        let refused = read?;
        // Whoever waits has his turn when the library has read them.
        if answers.is_greeted
            && let Some(greeted) = greeted.take()
        {
            let _ = greeted.send(());
        }
        Poll::Ready(match refused {
            None => Ok(()),
            Some(reason) => {
                tracing::debug!(?reason, "an upstream connection is cut off");
                Err(io::ErrorKind::InvalidData.into())
            }
        })
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
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}
