//! The socket to an upstream under hyper: a gate on what comes, and small writes in one piece, on both sides of the proxy.
//!
//! An upstream may answer before it has read the whole request, and close. Then a write fails while the answer waits to be read,
//! and hyper would end the exchange without a look at it: such a write never ends here, and how the exchange ends is left to the
//! reading side, which finds the answer or the end of the connection.
//!
//! hyper hands a head and the chunk behind it over as two slices. `writev` on a socket costs a process with several threads more
//! than `send` does (the kernel takes the file's position lock), so what is small is copied together and sent; what is large
//! is gathered as it is.

use std::io::{self, ErrorKind, IoSlice};
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
) -> Poll<io::Result<usize>> {
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
    /// A write found nobody any more, in this way.
    gone: Option<ErrorKind>,
}

impl UpstreamIo {
    /// Around a new connection; `exchange` is told of each request before it is written, `heard` of what comes, `interims` of what
    /// passes, `sent` of what goes.
    pub(super) fn new(stream: Socket, exchange: Arc<Exchange>, heard: Heard, interims: Interims, sent: Sent) -> Self {
        let gate = Gate::new(Answers::new(exchange.clone()));
        Self { stream, gate, exchange, heard, interims, sent, gone: None }
    }

    fn socket(&mut self) -> TokioIo<&mut Socket> {
        TokioIo::new(&mut self.stream)
    }

    /// Writes, or flushes, unless that was in vain before.
    fn poll_send<T>(
        &mut self,
        cx: &mut Context<'_>,
        send: impl FnOnce(Pin<&mut TokioIo<&mut Socket>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.gone.is_some() {
            return Poll::Pending;
        }
        match send(Pin::new(&mut self.socket()), cx) {
            Poll::Ready(Err(error)) if self.is_no_verdict(&error) => {
                tracing::debug!(%error, "the upstream reads no more");
                self.gone = Some(error.kind());
                self.exchange.spoil();
                // Whoever drives the connection reads on, whether or not that was waited for.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            sent => sent,
        }
    }

    /// Whether the reading side knows better: the upstream is gone, and what it had said may still be there.
    fn is_no_verdict(&self, error: &io::Error) -> bool {
        matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) && !self.exchange.has_left_http()
    }
}

/// The reading half: here the octets are to be seen where they were read, and what may not pass is taken back.
struct Sifted<'a>(&'a mut UpstreamIo);

impl AsyncRead for Sifted<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let UpstreamIo { stream, gate, heard, interims, gone, .. } = &mut *self.get_mut().0;
        let before = buf.filled().len();
        loop {
            if gate.hand_over(|ready| put(ready, buf)) {
                break;
            }
            if gate.is_shut() {
                return Poll::Ready(Err(ErrorKind::InvalidData.into()));
            }
            ready!(Pin::new(&mut *stream).poll_read(cx, buf))?;
            let fresh = &buf.filled()[before..];
            if fresh.is_empty() && *gone == Some(ErrorKind::ConnectionReset) && !stream.is_encrypted() {
                // The write was told of the reset, and the kernel tells it once: this is no end that an answer could have.
                return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
            }
            heard.note();
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
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut TokioIo::new(Sifted(self.get_mut()))).poll_read(cx, buf)
    }
}

impl Write for UpstreamIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.exchange.wrote();
        self.sent.note(buf);
        self.poll_send(cx, |socket, cx| socket.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.exchange.wrote();
        self.sent.note(slices.first().map_or(&[], |first| first));
        self.poll_send(cx, |socket, cx| poll_write_gathered(socket, cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx, |socket, cx| socket.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{Shutdown, TcpListener, TcpStream};

    use bytes::Bytes;
    use http::{Method, Request};
    use http_body::{Body, Frame};
    use http_body_util::BodyExt;
    use hyper::client::conn::http1;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const WHOLE: &str = "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig";
    const TO_CLOSE: &str = "HTTP/1.1 401 Unauthorized\r\n\r\nwho";

    /// An upload without end. The upstream answers and goes before the first octet of it is written.
    struct Upload(Option<Box<dyn FnOnce() + Send>>);

    impl Body for Upload {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            let Some(answer) = self.0.take() else { return Poll::Pending };
            answer();
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"upload")))))
        }
    }

    /// The socket of a request with this method, what it is told of, and the upstream's end.
    async fn connected(method: &Method, upgrade: bool) -> (UpstreamIo, Arc<Exchange>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let exchange = Arc::<Exchange>::default();
        exchange.begin(method, upgrade);
        let socket = Socket::plain(stream, Vec::new());
        let io = UpstreamIo::new(socket, exchange.clone(), Heard::default(), Interims::default(), Sent::default());
        (io, exchange, listener.accept().unwrap().0)
    }

    fn reset(peer: &TcpStream) {
        socket2::SockRef::from(peer).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }

    /// Status and body that are found when the upstream says this and resets the connection, `ended` or not before. The connection
    /// is never used again.
    async fn found(answer: &'static str, ended: bool) -> Result<(u16, Option<Bytes>), hyper::Error> {
        let (io, exchange, mut peer) = connected(&Method::POST, false).await;
        let (mut sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let leave = move || {
            peer.write_all(answer.as_bytes()).unwrap();
            if ended {
                peer.shutdown(Shutdown::Write).unwrap();
            }
            reset(&peer);
        };
        let answered = sender.send_request(Request::post("/").body(Upload(Some(Box::new(leave)))).unwrap()).await;
        assert!(exchange.is_spoilt());
        let (head, body) = answered?.into_parts();
        Ok((head.status.as_u16(), body.collect().await.ok().map(|body| body.to_bytes())))
    }

    #[tokio::test]
    async fn an_answer_is_found_though_nothing_could_be_written_any_more() {
        for ended in [false, true] {
            assert_eq!(found(WHOLE, ended).await.unwrap(), (413, Some(Bytes::from_static(b"big"))), "{ended}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_ends_with_its_connection_is_whole_only_at_an_end_and_not_at_a_reset() {
        assert_eq!(found(TO_CLOSE, true).await.unwrap(), (401, Some(Bytes::from_static(b"who"))));
        assert_eq!(found(TO_CLOSE, false).await.unwrap(), (401, None));
    }

    #[tokio::test]
    async fn without_an_answer_it_is_lost() {
        assert!(found("", true).await.unwrap_err().is_incomplete_message());
        assert!(found("", false).await.is_err());
        assert!(found("HTTP/1.1 413 Too", true).await.unwrap_err().is_incomplete_message());
    }

    #[tokio::test]
    async fn a_write_that_fails_ends_what_is_no_longer_http() {
        let (io, _, mut peer) = connected(&Method::GET, true).await;
        let mut io = TokioIo::new(io);
        io.write_all(b"GET").await.unwrap();
        peer.write_all(b"HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n").unwrap();
        assert_ne!(io.read(&mut [0; 100]).await.unwrap(), 0);
        reset(&peer);
        drop(peer);
        let written = tokio::time::timeout(std::time::Duration::from_secs(5), io.write_all(b"x")).await;
        assert!(written.expect("a verdict").is_err());
    }
}
