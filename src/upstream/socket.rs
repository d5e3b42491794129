//! A socket on either side of the proxy: plain, or with TLS on it.
//!
//! One type, so that whoever speaks HTTP on it need not know which. Octets that were read to find out what is spoken are read
//! again from here first.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// A connected socket.
#[derive(Debug)]
pub struct Socket {
    /// Read before, and not yet handed on.
    ahead: Vec<u8>,
    transport: Transport,
}

#[derive(Debug)]
enum Transport {
    Plain(TcpStream),
    /// Boxed: a session has a kilobyte, which plain connections need not carry.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Without TLS. `ahead` was read from it already.
    pub const fn plain(stream: TcpStream, ahead: Vec<u8>) -> Self {
        Self { ahead, transport: Transport::Plain(stream) }
    }

    /// After the handshake, on either side.
    pub fn tls(stream: impl Into<TlsStream<TcpStream>>) -> Self {
        Self { ahead: Vec::new(), transport: Transport::Tls(Box::new(stream.into())) }
    }
}

impl Socket {
    /// Whether TLS says where the peer's octets end.
    pub const fn is_encrypted(&self) -> bool {
        matches!(self.transport, Transport::Tls(_))
    }

    /// Ready once a read would bring something. Whoever asks has read all that there was, so that TLS holds nothing back.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            return Poll::Ready(Ok(()));
        }
        match &self.transport {
            Transport::Plain(stream) => stream.poll_read_ready(cx),
            Transport::Tls(stream) => stream.get_ref().0.poll_read_ready(cx),
        }
    }
}

impl Socket {
    /// Closes, when it is dropped, in a way that nobody takes for the end of what was sent.
    pub fn reset(&self) {
        let stream = match &self.transport {
            Transport::Plain(stream) => stream,
            Transport::Tls(stream) => stream.get_ref().0,
        };
        let _ = socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            return Pin::new(&mut this.transport).poll_read(cx, buf);
        }
        let count = buf.remaining().min(this.ahead.len());
        buf.put_slice(&this.ahead[..count]);
        this.ahead.drain(..count);
        if this.ahead.is_empty() {
            this.ahead = Vec::new();
            // What followed meanwhile goes along: whoever looks at the beginning of a head would rather have it in one piece.
            if buf.remaining() > 0
                && let Poll::Ready(Err(error)) = Pin::new(&mut this.transport).poll_read(cx, buf)
            {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
