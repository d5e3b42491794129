//! Request heads of HTTP/2 as they were sent: what the library behind drops without a word is found here.
//!
//! It parses `:path` into a URI and loses a fragment; without `:authority` it loses `:scheme` as well. Both are malformed
//! (RFC 9113 section 8.3.1), and nobody behind the parser could refuse them.

use super::frames::{Frame, Section};
use super::hpack::Decoder;

const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// The table that a client may use unless it is told otherwise (RFC 9113 section 6.5.2).
const TABLE: usize = 4096;

/// What is malformed in a block, and in a way that nobody else will see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Odd {
    /// A request for this target, as it will be seen: without its fragment.
    Request(Vec<u8>),
    /// Trailers with a field that only heads have: the library drops that and passes the rest on.
    Trailers,
}

/// Puts field blocks together and looks at them.
#[derive(Debug)]
pub struct Heads {
    decoder: Decoder,
    /// Of the frame under way.
    frame: Option<Frame>,
    payload: Vec<u8>,
    /// Of the frames before it.
    block: Vec<u8>,
    /// The longest block that is put together. The library behind refuses what is much longer.
    most: usize,
    /// The last stream that was opened: a block for it, or for one before it, is trailers.
    opened: u32,
    /// Nothing more can be said: a block was too long, or none.
    lost: bool,
}

impl Heads {
    /// Of a connection whose blocks have at most so many octets.
    pub const fn new(most: usize) -> Self {
        let decoder = Decoder::new(TABLE);
        Self { decoder, frame: None, payload: Vec::new(), block: Vec::new(), most, opened: 0, lost: false }
    }

    /// A frame begins that is part of a block.
    pub fn begin(&mut self, frame: Frame) {
        self.frame = Some(frame);
        self.payload.clear();
    }

    /// Octets of it; what is odd about the block, if they complete it.
    pub fn payload(&mut self, octets: &[u8]) -> Option<Odd> {
        let frame = self.frame?;
        if self.lost || self.block.len() + self.payload.len() + octets.len() > self.most {
            (self.lost, self.payload, self.block) = (true, Vec::new(), Vec::new());
            return None;
        }
        self.payload.extend_from_slice(octets);
        if self.payload.len() < frame.length as usize {
            return None;
        }
        self.frame = None;
        let Some(fragment) = fragment(frame, &self.payload) else {
            self.lost = true;
            return None;
        };
        self.block.extend_from_slice(fragment);
        if frame.section() != Section::Last {
            return None;
        }
        let (mut target, mut is_odd, mut has_pseudo) = (std::mem::take(&mut self.payload), false, false);
        target.clear();
        let decoded = self.decoder.decode(&self.block, |name, value| match name {
            b":path" => {
                has_pseudo = true;
                let end = value.iter().position(|octet| *octet == b'#');
                is_odd |= end.is_some();
                target.extend_from_slice(&value[..end.unwrap_or(value.len())]);
            }
            b":scheme" => {
                has_pseudo = true;
                is_odd |= ![&b"http"[..], b"https"].iter().any(|known| value.eq_ignore_ascii_case(known));
            }
            _ => has_pseudo |= name.starts_with(b":"),
        });
        self.block.clear();
        self.lost = decoded.is_err();
        if frame.stream <= self.opened {
            self.payload = target;
            return (has_pseudo && !self.lost).then_some(Odd::Trailers);
        }
        self.opened = frame.stream;
        if is_odd && !self.lost {
            // As the library writes a path of which nothing is left.
            if target.is_empty() {
                target.push(b'/');
            }
            return Some(Odd::Request(target));
        }
        self.payload = target;
        None
    }
}

/// The part of a payload that belongs to the block (RFC 9113 section 6.2).
fn fragment(frame: Frame, payload: &[u8]) -> Option<&[u8]> {
    if frame.is_continuation() {
        return Some(payload);
    }
    let (padding, rest) = match frame.flags & PADDED {
        0 => (0, payload),
        _ => payload.split_first().map(|(length, rest)| (usize::from(*length), rest))?,
    };
    let rest = if frame.flags & PRIORITY == 0 { rest } else { rest.get(5..)? };
    rest.get(..rest.len().checked_sub(padding)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frames::Walker;

    fn literal(name: &str, value: &str) -> Vec<u8> {
        [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn found(octets: &[u8], piece: usize) -> Vec<String> {
        let (mut walker, mut heads, mut found) = (Walker::server(), Heads::new(1000), Vec::new());
        for piece in octets.chunks(piece) {
            walker.feed_heads(
                piece,
                &mut heads,
                |_| (),
                |odd| {
                    found.push(match odd {
                        Odd::Request(target) => String::from_utf8(target).unwrap(),
                        Odd::Trailers => "trailers".to_owned(),
                    });
                },
            );
        }
        found
    }

    #[test]
    fn a_fragment_and_an_odd_scheme_are_seen_however_the_block_is_cut_and_padded() {
        let block = [literal(":scheme", "http"), literal(":path", "/a?b#c"), literal("x", "#")].concat();
        let padded = [&[3], &[0; 5][..], &block[..], &[0; 3]].concat();
        for octets in [
            frame(1, 4, &block),
            frame(1, 4 | 8 | 0x20, &padded),
            [frame(1, 0, &block[..9]), frame(9, 0, &[]), frame(9, 4, &block[9..])].concat(),
        ] {
            for piece in [1, 2, 7, 1000] {
                assert_eq!(found(&octets, piece), ["/a?b"], "{piece}");
            }
        }
        let odd = [literal(":path", "/x"), literal(":scheme", "ftp")].concat();
        assert_eq!(found(&frame(1, 4, &odd), 3), ["/x"]);
        let fine = [literal(":path", "/x"), literal(":scheme", "HTTPS"), literal("y", "#")].concat();
        assert!(found(&frame(1, 4, &fine), 3).is_empty());
    }

    #[test]
    fn trailers_have_no_pseudo_fields() {
        let (head, trailers) = (literal(":path", "/x"), literal("x", "#"));
        let both = |trailers: &[u8]| [frame(1, 4, &head), frame(1, 5, trailers)].concat();
        assert!(found(&both(&trailers), 5).is_empty());
        for name in [":path", ":scheme", ":authority", ":other"] {
            assert_eq!(found(&both(&literal(name, "http")), 5), ["trailers"]);
        }
    }

    #[test]
    fn a_block_that_is_too_long_or_none_is_left_to_the_library() {
        let long = literal(":path", &format!("/{}#", "a".repeat(120)));
        let octets: Vec<u8> = (0..9).flat_map(|_| frame(9, 0, &long)).chain(frame(9, 4, &long)).collect();
        assert!(found(&[frame(1, 0, &long), octets].concat(), 50).is_empty());
        assert!(found(&[frame(1, 4, &[0xff; 9]), frame(1, 4, &literal(":path", "/#"))].concat(), 50).is_empty());
        assert!(found(&frame(1, 4 | 8, &[200, 0]), 50).is_empty());
    }
}
