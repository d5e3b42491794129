//! A WebSocket that says back what it is told (RFC 6455): whatever `/echo/*` or `/ws` is asked for one.
//!
//! Frames go back as they come, piece by piece, so that a message may be of any size. `?close=N` ends it after so many data frames,
//! `?subprotocol=NAME` agrees to one. It does not check that text is UTF-8.

use std::io;

use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufStream};

use super::body::ResponseBody;
use super::echo::knob;
use crate::policy::websocket::{Handshake, accept, set_upgrade};

/// So much of a frame is held at once.
const PIECE: usize = 64 * 1024;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// A protocol error (section 7.4.1).
const PROTOCOL_ERROR: u16 = 1002;
const NORMAL: u16 = 1000;

/// The 101, if this is asked for a WebSocket; what follows it is served beside.
pub(super) fn answer(head: &mut Parts) -> Option<Response<ResponseBody>> {
    let path = head.uri.path();
    if path != "/ws" && !path.starts_with("/echo/") {
        return None;
    }
    Handshake::requested(head).ok().flatten()?;
    let upgrade = head.extensions.remove::<OnUpgrade>()?;
    let mut response = Response::new(ResponseBody::Full(None));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let proof = accept(head.headers.get("sec-websocket-key")?.as_bytes());
    response.headers_mut().insert("sec-websocket-accept", HeaderValue::try_from(proof).ok()?);
    if let Some(name) = knob(head.uri.query(), "subprotocol") {
        response.headers_mut().insert("sec-websocket-protocol", HeaderValue::try_from(name).ok()?);
    }
    set_upgrade(response.headers_mut());
    let frames = knob(head.uri.query(), "close").and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            // A client that has left: nobody to tell.
            let _ = Echo { io: BufStream::new(TokioIo::new(upgraded)), frames, open: false }.run().await;
        }
    });
    Some(response)
}

struct Echo {
    io: BufStream<TokioIo<hyper::upgrade::Upgraded>>,
    /// Data frames until it closes.
    frames: u64,
    /// Between the first and the last frame of a message.
    open: bool,
}

/// The beginning of a frame (section 5.2).
struct Frame {
    first: u8,
    length: u64,
    mask: [u8; 4],
}

impl Frame {
    fn opcode(&self) -> u8 {
        self.first & 0x0f
    }

    fn is_last(&self) -> bool {
        self.first & 0x80 != 0
    }
}

impl Echo {
    async fn run(&mut self) -> io::Result<()> {
        loop {
            if self.frames == 0 {
                return self.close(NORMAL).await;
            }
            let Some(frame) = self.frame().await? else { return self.close(PROTOCOL_ERROR).await };
            match frame.opcode() {
                CLOSE => {
                    self.pass(&frame, CLOSE).await?;
                    return self.io.shutdown().await;
                }
                PING => self.pass(&frame, PONG).await?,
                PONG => self.skip(&frame).await?,
                opcode => {
                    self.open = !frame.is_last();
                    self.frames -= 1;
                    self.pass(&frame, opcode).await?;
                }
            }
        }
    }

    /// The next frame's beginning; `None`: it breaks a rule.
    async fn frame(&mut self) -> io::Result<Option<Frame>> {
        let (first, second) = (self.io.read_u8().await?, self.io.read_u8().await?);
        let length = match second & 0x7f {
            126 => self.io.read_u16().await?.into(),
            127 => self.io.read_u64().await?,
            short => short.into(),
        };
        let mut frame = Frame { first, length, mask: [0; 4] };
        let fits = match frame.opcode() {
            0 => self.open,
            TEXT | BINARY => !self.open,
            CLOSE | PING | PONG => frame.is_last() && length < 126 && (frame.opcode() != CLOSE || length != 1),
            _ => false,
        };
        // No extension was agreed upon, and a client masks.
        if !fits || first & 0x70 != 0 || second & 0x80 == 0 || length > i64::MAX as u64 {
            return Ok(None);
        }
        self.io.read_exact(&mut frame.mask).await?;
        Ok(Some(frame))
    }

    /// Writes the frame back, unmasked, under another opcode or its own.
    async fn pass(&mut self, frame: &Frame, opcode: u8) -> io::Result<()> {
        self.io.write_u8(frame.first & 0x80 | opcode).await?;
        match frame.length {
            short @ 0..=125 => self.io.write_u8(short as u8).await?,
            medium @ 126..=0xffff => {
                self.io.write_u8(126).await?;
                self.io.write_u16(medium as u16).await?;
            }
            long => {
                self.io.write_u8(127).await?;
                self.io.write_u64(long).await?;
            }
        }
        let mut piece = vec![0; PIECE.min(frame.length as usize)];
        let mut left = frame.length;
        while left > 0 {
            // Whole groups of four but for the last, so that the mask begins anew with each piece.
            let piece = &mut piece[..left.min(PIECE as u64) as usize];
            self.io.read_exact(piece).await?;
            piece.iter_mut().zip(frame.mask.iter().cycle()).for_each(|(octet, mask)| *octet ^= mask);
            self.io.write_all(piece).await?;
            left -= piece.len() as u64;
        }
        self.io.flush().await
    }

    async fn skip(&mut self, frame: &Frame) -> io::Result<()> {
        let mut payload = [0; 125];
        self.io.read_exact(&mut payload[..frame.length as usize]).await.map(drop)
    }

    async fn close(&mut self, code: u16) -> io::Result<()> {
        self.io.write_all(&[0x80 | CLOSE, 2]).await?;
        self.io.write_u16(code).await?;
        self.io.flush().await?;
        self.io.shutdown().await
    }
}
