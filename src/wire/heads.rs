//! Request heads of HTTP/2 as they were sent: what the library behind drops without a word is found here.
//!
//! It parses `:path` into a URI and loses a fragment; without `:authority` it loses `:scheme` as well; and of trailers it loses
//! the fields that only heads have; an empty Content-Length it takes for 0. All that is malformed (RFC 9113 section 8.3), and nobody
//! behind the parser could refuse it.

use super::frames::{Frame, Reason};
use super::is_length;

/// Looks at the field blocks of a client, one after the other ([`super::sieve::Judge`]).
#[derive(Debug, Default)]
pub struct Heads {
    /// The last stream that was opened: a block for it, or for one before it, is trailers.
    opened: u32,
    target: Vec<u8>,
    is_odd: bool,
    has_pseudo: bool,
    has_method: bool,
    is_malformed: bool,
}

impl Heads {
    /// A block begins.
    pub fn begin(&mut self) {
        self.target.clear();
        (self.is_odd, self.has_pseudo, self.has_method, self.is_malformed) = (false, false, false, false);
    }

    /// A field of it.
    pub fn field(&mut self, name: &[u8], value: &[u8]) {
        if !name.starts_with(b":") {
            self.is_malformed |= name == b"content-length" && !is_length(value);
            return;
        }
        self.has_pseudo = true;
        match name {
            // One that comes twice is malformed for everybody.
            b":path" if self.target.is_empty() => {
                let end = value.iter().position(|octet| *octet == b'#');
                self.is_odd |= end.is_some();
                self.target.extend_from_slice(&value[..end.unwrap_or(value.len())]);
            }
            b":method" => self.has_method = true,
            b":scheme" => {
                self.is_odd |= ![&b"http"[..], b"https"].iter().any(|known| value.eq_ignore_ascii_case(known));
            }
            _ => {}
        }
    }

    /// It is complete; whether it may pass. A request on a stream that is not above all before ends the connection (RFC 9113
    /// section 5.1.1).
    pub fn end(&mut self, frame: Frame, is_unsound: bool) -> Result<bool, Reason> {
        let is_trailers = frame.stream <= self.opened;
        if is_trailers && self.has_method {
            return Err(Reason::Malformed);
        }
        self.opened = self.opened.max(frame.stream);
        self.is_malformed |= is_unsound || is_trailers && self.has_pseudo;
        self.is_odd &= !is_trailers && !self.is_malformed;
        Ok(!self.is_malformed)
    }

    /// The target of the last block, as it will be seen, without its fragment: it passes and is malformed all the same. A fragment,
    /// or a scheme that is not HTTP, is refused with an answer that says so.
    pub fn odd_target(&self) -> Option<Vec<u8>> {
        // As the library writes a path of which nothing is left.
        self.is_odd.then(|| if self.target.is_empty() { b"/".to_vec() } else { self.target.clone() })
    }
}
