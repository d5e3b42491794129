//! Writing a head and a small body in one piece, on both sides of the proxy.
//!
//! hyper hands a head and the chunk behind it over as two slices. `writev` on a socket costs a process with several threads more
//! than `send` does (the kernel takes the file's position lock), so what is small is copied together and sent; what is large
//! is gathered as it is.

use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};

use arrayvec::ArrayVec;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;

use super::socket::Socket;

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

/// The socket to an upstream.
pub(super) struct UpstreamIo(pub(super) TokioIo<Socket>);

impl Read for UpstreamIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for UpstreamIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        poll_write_gathered(Pin::new(&mut self.0), cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
