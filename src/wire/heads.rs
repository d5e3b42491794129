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
    /// Nothing more can be said: a block was too long, or none.
    lost: bool,
}

impl Heads {
    /// Of a connection whose blocks have at most so many octets.
    pub const fn new(most: usize) -> Self {
        let decoder = Decoder::new(TABLE);
        Self { decoder, frame: None, payload: Vec::new(), block: Vec::new(), most, lost: false }
    }

    /// A frame begins that is part of a block.
    pub fn begin(&mut self, frame: Frame) {
        self.frame = Some(frame);
        self.payload.clear();
    }

    /// Octets of it. When they complete a block, tells the target of a request that is malformed in a way that nobody else will
    /// see: as it will be seen, without its fragment.
    pub fn payload(&mut self, octets: &[u8]) -> Option<Vec<u8>> {
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
        let (mut target, mut is_odd) = (std::mem::take(&mut self.payload), false);
        target.clear();
        let decoded = self.decoder.decode(&self.block, |name, value| match name {
            b":path" => {
                let end = value.iter().position(|octet| *octet == b'#');
                is_odd |= end.is_some();
                target.extend_from_slice(&value[..end.unwrap_or(value.len())]);
            }
            b":scheme" => is_odd |= ![&b"http"[..], b"https"].iter().any(|known| value.eq_ignore_ascii_case(known)),
            _ => {}
        });
        self.block.clear();
        self.lost = decoded.is_err();
        if is_odd && !self.lost {
            // As the library writes a path of which nothing is left.
            if target.is_empty() {
                target.push(b'/');
            }
            return Some(target);
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
            walker.feed_heads(piece, &mut heads, |_| (), |target| found.push(String::from_utf8(target).unwrap()));
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
    fn a_block_that_is_too_long_or_none_is_left_to_the_library() {
        let long = literal(":path", &format!("/{}#", "a".repeat(120)));
        let octets: Vec<u8> = (0..9).flat_map(|_| frame(9, 0, &long)).chain(frame(9, 4, &long)).collect();
        assert!(found(&[frame(1, 0, &long), octets].concat(), 50).is_empty());
        assert!(found(&[frame(1, 4, &[0xff; 9]), frame(1, 4, &literal(":path", "/#"))].concat(), 50).is_empty());
        assert!(found(&frame(1, 4 | 8, &[200, 0]), 50).is_empty());
    }
}
