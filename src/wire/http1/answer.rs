//! Answers of an upstream: the status line, the rules on their framing (RFC 9112 sections 4 and 6), and whether anybody asked.
//!
//! An answer that nobody asked for is what a poisoned connection looks like, and a second answer behind the first is what a
//! split one looks like: both end the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use http::Method;

use super::Fault;
use super::gate::{Body, Messages, Standing};
use super::head::Head;

/// Octets of the head of an answer.
pub const MAX_HEAD: usize = 256 * 1024;
/// Fields of an answer for which hyper has room.
const MAX_FIELDS: usize = 100;
/// Interim answers before the final one.
pub const MAX_INTERIM: u32 = 32;

/// No request is out.
const IDLE: u8 = 0;
/// One will be written.
const ASKED: u8 = 1;
/// Some of it was written: an answer may come.
const SENT: u8 = 2;
const STEP: u8 = 0b11;
/// Its answer has no body, whatever its head says.
const HEAD: u8 = 0b100;
/// It asked for an upgrade: one 101 may come, and what follows it is no HTTP.
const UPGRADE: u8 = 0b1000;
/// The connection takes no further request: octets came that belong to no answer, or a write found nobody.
const SPOILT: u8 = 0b1_0000;
/// It was answered by a 101.
const LEFT: u8 = 0b10_0000;

/// What is asked on a connection to an upstream, shared by whoever asks and by whoever reads the answer. One thread uses it.
#[derive(Debug, Default)]
pub struct Exchange(AtomicU8);

impl Exchange {
    /// A request with this method will be written next. `upgrade`: it asks to leave HTTP.
    pub fn begin(&self, method: &Method, upgrade: bool) {
        let head = if *method == Method::HEAD { HEAD } else { 0 };
        self.0.store(ASKED | head | if upgrade { UPGRADE } else { 0 }, Ordering::Relaxed);
    }

    /// Something was written.
    pub fn wrote(&self) {
        let state = self.0.load(Ordering::Relaxed);
        if state & STEP == ASKED {
            self.0.store(state ^ ASKED | SENT, Ordering::Relaxed);
        }
    }

    /// Whether the connection may not be used again.
    pub fn is_spoilt(&self) -> bool {
        self.0.load(Ordering::Relaxed) & SPOILT != 0
    }

    /// The connection takes no further request.
    pub fn spoil(&self) {
        self.0.store(self.state() | SPOILT, Ordering::Relaxed);
    }

    /// Whether HTTP has ended on it.
    pub fn has_left_http(&self) -> bool {
        self.state() & LEFT != 0
    }

    fn state(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    /// `how`: [`IDLE`] or [`LEFT`].
    fn end(&self, how: u8) {
        self.0.store(self.state() & SPOILT | how, Ordering::Relaxed);
    }
}

/// How answers are judged.
#[derive(Debug)]
pub struct Answers {
    exchange: Arc<Exchange>,
    line: Option<StatusLine>,
    interim: u32,
}

#[derive(Debug, Clone, Copy)]
struct StatusLine {
    status: u16,
    is_1_1: bool,
}

impl Answers {
    /// To the requests of this exchange.
    pub fn new(exchange: Arc<Exchange>) -> Self {
        Self { exchange, line: None, interim: 0 }
    }

    fn finish(&mut self, head: &Head) -> Result<Body, Fault> {
        let StatusLine { status, is_1_1 } = self.line.take().ok_or(Fault::Malformed("Malformed status line"))?;
        head.check_framing()?;
        if head.is_chunked && !is_1_1 {
            return Err(Fault::Malformed("Transfer-Encoding in HTTP/1.0"));
        }
        let asked = self.exchange.state();
        if status < 200 {
            return self.interim(status, head, asked);
        }
        self.interim = 0;
        self.exchange.end(IDLE);
        Ok(match (status, head.length) {
            // Without a body, whatever is announced; but this announces what cannot be (RFC 9110 section 8.6, RFC 9112 6.1).
            (204 | 205, Some(1..)) => return Err(Fault::Malformed("Length of an answer without content")),
            (204, _) if head.is_chunked => return Err(Fault::Malformed("Chunks of an answer without content")),
            (204 | 304, _) => Body::None,
            _ if asked & HEAD != 0 => Body::None,
            _ if head.is_chunked => Body::Chunked,
            (_, Some(0)) => Body::None,
            (_, Some(length)) => Body::Length(length),
            (_, None) => Body::ToClose,
        })
    }

    fn interim(&mut self, status: u16, head: &Head, asked: u8) -> Result<Body, Fault> {
        if head.is_chunked || head.length.is_some() {
            return Err(Fault::Malformed("Body of an interim answer"));
        }
        if status == 101 {
            if asked & UPGRADE == 0 {
                return Err(Fault::Malformed("Upgrade that nobody asked for"));
            }
            self.exchange.end(LEFT);
            return Ok(Body::ToClose);
        }
        self.interim += 1;
        if self.interim > MAX_INTERIM { Err(Fault::Malformed("Too many interim answers")) } else { Ok(Body::None) }
    }
}

impl Messages for Answers {
    type Refused = Fault;

    fn scan(&mut self, head: &mut Head, octets: &[u8]) -> Result<Option<Body>, Fault> {
        if self.exchange.state() & STEP != SENT {
            self.exchange.spoil();
            return Err(Fault::Malformed("Octets that nobody asked for"));
        }
        while let Some(line) = head.next_line(octets)? {
            if self.line.is_none() {
                self.line = Some(StatusLine::parse(line)?);
            } else if line.is_empty() {
                return self.finish(head).map(Some);
            } else {
                head.field(line)?;
            }
        }
        if octets.len() > MAX_HEAD || head.fields > MAX_FIELDS {
            return Err(Fault::TooLarge);
        }
        Ok(None)
    }

    fn refuse(&mut self, fault: Fault, _octets: &[u8]) -> (Fault, Standing) {
        self.exchange.spoil();
        (fault, Standing(b""))
    }

    fn trailer_limits(&self) -> (usize, usize) {
        (usize::MAX, usize::MAX)
    }
}

impl StatusLine {
    /// `HTTP-version SP 3DIGIT [ SP reason-phrase ]`: the last space is missing in the wild, and nobody reads it otherwise.
    fn parse(line: &[u8]) -> Result<Self, Fault> {
        const BAD: Fault = Fault::Malformed("Malformed status line");
        let (is_1_1, rest) = match line {
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor @ (b'0' | b'1'), b' ', rest @ ..] => {
                (*minor == b'1', rest)
            }
            _ => return Err(BAD),
        };
        let status = match rest {
            [a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', reason @ ..] if matches!(reason, [] | [b' ', ..]) => {
                if !reason.iter().all(|byte| super::is_field_octet(*byte)) {
                    return Err(BAD);
                }
                [a, b, c].into_iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'))
            }
            _ => return Err(BAD),
        };
        Ok(Self { status, is_1_1 })
    }
}
