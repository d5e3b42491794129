//! Answers of an upstream over HTTP/2, judged as strictly as those over HTTP/1 ([`super::http1`]).
//!
//! The library behind keeps streams and lengths; what it overlooks is refused here: fields of requests, a second length, interim
//! answers without end, a 101, padded values. A refused answer ends its stream (RFC 9113 section 8.1.1), and nothing else.

use rustc_hash::FxHashMap;

use super::frames::{ACK, DATA, ENABLE_PUSH, Frame, HEADERS, RST_STREAM, Reason, SETTINGS};
use super::http1::MAX_INTERIM;
use super::is_length;
use super::sieve::Judge;

/// Heads on streams that have ended, between two that are answers. A few cross with a reset of ours.
const MAX_STRAYS: u32 = 1000;

/// Where the answer on a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// So many interim answers have come.
    Head(u32),
    /// Trailers may follow.
    Body,
}

/// How far an exchange has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Its request has not gone out.
    Unsent,
    /// Nothing of its answer has come.
    Silent,
    /// Something has.
    Answered,
}

/// Name and value.
pub type Field = (Box<[u8]>, Box<[u8]>);

/// An interim answer, for whoever waits for the final one.
#[derive(Debug)]
pub struct Interim {
    /// Of the exchange.
    pub stream: u32,
    /// 102 to 199.
    pub status: u16,
    /// As they came.
    pub fields: Vec<Field>,
}

/// What the block under way has said.
#[derive(Debug, Default)]
struct Block {
    /// Of an interim answer that is to be told.
    fields: Vec<Field>,
    /// 0: nothing.
    status: u16,
    /// `Content-Length`, and whether it announces something.
    length: Option<bool>,
    is_malformed: bool,
}

/// Judges what an upstream sends.
#[derive(Debug, Default)]
pub struct Answers {
    /// Streams that were asked on and have not ended.
    open: FxHashMap<u32, At>,
    last_asked: u32,
    strays: u32,
    block: Block,
    /// Those that have come and were not taken yet, in their order.
    pub interims: Vec<Interim>,
    /// Its settings have come: what it allows is known.
    pub is_greeted: bool,
}

impl Answers {
    /// A frame that goes to the upstream.
    pub fn sent(&mut self, frame: Frame) {
        match frame.kind {
            // Another one on the same stream is trailers.
            HEADERS if frame.stream > self.last_asked => {
                self.last_asked = frame.stream;
                self.open.insert(frame.stream, At::Head(0));
            }
            RST_STREAM => drop(self.open.remove(&frame.stream)),
            _ => {}
        }
    }

    /// How far the exchange on a stream has come.
    pub fn extent(&self, stream: u32) -> Extent {
        match self.open.get(&stream) {
            _ if stream > self.last_asked => Extent::Unsent,
            Some(At::Head(0)) => Extent::Silent,
            _ => Extent::Answered,
        }
    }

    /// The connection is lost, and this is the beginning of what came last: of whose answer, if it cannot be told, of everybody's.
    pub fn lost(&mut self, waiting: &[u8]) {
        match Frame::first(waiting) {
            Some(frame) => drop(self.open.remove(&frame.stream)),
            None if waiting.is_empty() => {}
            None => self.open.clear(),
        }
    }

    /// Whether it may come there; and where the answer is then, or that it has ended.
    fn advance(&self, at: At, ends: bool) -> Option<Option<At>> {
        let Block { status, length, is_malformed, .. } = self.block;
        let next = match (at, status) {
            (At::Body, 0) => At::Body,
            (At::Body, _) | (_, 0 | 101) => return None,
            (At::Head(interims), 100..200) => {
                if ends || length.is_some() || interims == MAX_INTERIM {
                    return None;
                }
                At::Head(interims + 1)
            }
            // It announces what cannot be (RFC 9110 section 8.6).
            (_, 204) if length == Some(true) => return None,
            _ => At::Body,
        };
        (!is_malformed).then_some((!ends).then_some(next))
    }
}

impl Judge for Answers {
    fn frame(&mut self, frame: Frame) -> Result<(), Reason> {
        match frame.kind {
            // RFC 9113 section 3.4.
            kind if !self.is_greeted && (kind != SETTINGS || frame.flags & ACK != 0) => return Err(Reason::Malformed),
            RST_STREAM => drop(self.open.remove(&frame.stream)),
            DATA if frame.ends_stream() => drop(self.open.remove(&frame.stream)),
            SETTINGS => self.is_greeted = true,
            _ => {}
        }
        Ok(())
    }

    fn setting(&mut self, id: u16, value: u32) -> Result<(), Reason> {
        // A server that wants to be pushed to (RFC 9113 section 6.5.2).
        if id == ENABLE_PUSH && value != 0 { Err(Reason::Malformed) } else { Ok(()) }
    }

    fn begin(&mut self, _: Frame) {
        self.block = Block::default();
    }

    fn field(&mut self, name: &[u8], value: &[u8]) {
        let block = &mut self.block;
        // A 100 is for nobody: the client's expectation was answered before.
        if (102..200).contains(&block.status) {
            block.fields.push((name.into(), value.into()));
        }
        match name {
            b":status" => match value {
                [a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9'] if block.status == 0 => {
                    block.status = [a, b, c].into_iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
                }
                _ => block.is_malformed = true,
            },
            [b':', ..] => block.is_malformed = true,
            b"content-length" => {
                let before = block.length.replace(value.iter().any(|digit| *digit != b'0'));
                block.is_malformed |= before.is_some() || !is_length(value);
            }
            // A reader that trims would see another value (RFC 9113 section 8.2.1).
            _ => block.is_malformed |= matches!(value, [b' ' | b'\t', ..] | [.., b' ' | b'\t']),
        }
    }

    fn end(&mut self, frame: Frame, is_unsound: bool) -> Result<bool, Reason> {
        self.block.is_malformed |= is_unsound;
        let Some(at) = self.open.get(&frame.stream).copied() else {
            self.strays += 1;
            // The library has forgotten the stream, or never knew it.
            return if self.strays > MAX_STRAYS { Err(Reason::TooMuch) } else { Ok(true) };
        };
        let next = self.advance(at, frame.ends_stream());
        if let Some(Some(At::Head(_))) = next
            && self.block.status > 100
        {
            let (status, fields) = (self.block.status, std::mem::take(&mut self.block.fields));
            self.interims.push(Interim { stream: frame.stream, status, fields });
        }
        match next.flatten() {
            Some(next) => drop(self.open.insert(frame.stream, next)),
            None => drop(self.open.remove(&frame.stream)),
        }
        if matches!(next, Some(None | Some(At::Body))) {
            self.strays = 0;
        }
        Ok(next.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END_STREAM: u8 = 1;

    /// Whether each of these blocks, one after the other on one stream, may pass; the last one ends it.
    fn judged(blocks: &[&[(&str, &str)]]) -> Vec<bool> {
        let mut answers = Answers::default();
        let frame = |flags| Frame { length: 1, kind: HEADERS, flags, stream: 1 };
        answers.sent(frame(END_STREAM));
        let mut judged = Vec::new();
        for (place, block) in blocks.iter().enumerate() {
            let frame = frame(if place + 1 == blocks.len() { END_STREAM } else { 0 });
            answers.begin(frame);
            block.iter().for_each(|(name, value)| answers.field(name.as_bytes(), value.as_bytes()));
            judged.push(answers.end(frame, false).unwrap());
        }
        assert!(answers.open.is_empty());
        judged
    }

    #[test]
    fn an_answer_has_interim_heads_one_final_head_and_trailers() {
        let (interim, done) = ([(":status", "103"), ("link", "a")], [(":status", "200"), ("content-length", "0")]);
        assert_eq!(judged(&[&done]), [true]);
        assert_eq!(judged(&[&interim, &interim, &done, &[("x-sum", "1")]]), [true; 4]);
        assert_eq!(judged(&[&[(":status", "204"), ("content-length", "0")]]), [true]);
        let mut many = vec![&interim[..]; 32];
        many.push(&done);
        assert_eq!(judged(&many), [true; 33]);
        many.insert(0, &interim);
        assert_eq!(judged(&many).iter().filter(|may_pass| !**may_pass).count(), 1);
    }

    #[test]
    fn what_no_answer_may_have_is_refused() {
        for block in [
            &[][..],
            &[("x", "y")],
            &[(":status", "200"), (":status", "200")],
            &[(":status", "200"), (":path", "/")],
            &[(":status", "200"), (":method", "GET")],
            &[(":status", "200"), (":other", "a")],
            &[(":status", "20")],
            &[(":status", "2000")],
            &[(":status", "20x")],
            &[(":status", "600")],
            &[(":status", "099")],
            &[(":status", "101")],
            &[(":status", "103")],
            &[(":status", "200"), ("content-length", "1"), ("content-length", "1")],
            &[(":status", "200"), ("content-length", "+1")],
            &[(":status", "200"), ("content-length", "")],
            &[(":status", "204"), ("content-length", "1")],
            &[(":status", "200"), ("x", " a")],
            &[(":status", "200"), ("x", "a\t")],
        ] {
            assert_eq!(judged(&[block]), [false], "{block:?}");
        }
        for trailers in [&[(":status", "200")][..], &[(":path", "/")], &[("x", "a ")]] {
            assert_eq!(judged(&[&[(":status", "200")], trailers]), [true, false], "{trailers:?}");
        }
        assert!(!judged(&[&[(":status", "100"), ("content-length", "0")], &[]])[0]);
    }

    #[test]
    fn an_upstream_begins_with_its_settings_and_does_not_ask_for_a_push() {
        let frame = |kind, flags| Frame { length: 0, kind, flags, stream: 0 };
        for first in [frame(SETTINGS, ACK), frame(HEADERS, 0), frame(DATA, 0), frame(0xfa, 0)] {
            assert_eq!(Answers::default().frame(first), Err(Reason::Malformed), "{first:?}");
        }
        let mut answers = Answers::default();
        assert_eq!(answers.frame(frame(SETTINGS, 0)), Ok(()));
        assert_eq!(answers.frame(frame(SETTINGS, ACK)), Ok(()));
        assert_eq!((answers.setting(2, 0), answers.setting(3, 1)), (Ok(()), Ok(())));
        assert_eq!(answers.setting(2, 1), Err(Reason::Malformed));
    }

    #[test]
    fn an_upstream_that_goes_on_about_a_stream_that_has_ended_is_cut() {
        let mut answers = Answers::default();
        let frame = Frame { length: 1, kind: HEADERS, flags: 0, stream: 1 };
        let passed = (0..5000).take_while(|_| answers.end(frame, false) == Ok(true)).count();
        assert_eq!(passed, 1000);
    }
}
