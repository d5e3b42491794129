//! What a peer sends over HTTP/2, sifted before the library behind reads it.
//!
//! Frames pass where they are, unless they carry fields: a field block passes as a whole, when all of it has come and was judged.
//! One that is malformed is changed so that the library is sure to refuse that stream, and no other: it gets a field that none may
//! have, and no octet that the library would end the connection for. What cannot be followed ends the connection here, because
//! behind it nothing could be judged. Copies nothing in the usual case, in which a block comes with one read.

use std::borrow::Cow;

use super::frames::{
    CONTINUATION, END_HEADERS, END_STREAM, Frame, HEAD, HEADERS, INITIAL_WINDOW_SIZE, MAX_PAYLOAD, PREFACE,
    PUSH_PROMISE, Reason, SETTINGS,
};
use super::held::Held;
use super::hpack::Decoder;

const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// The table that a peer may use unless it is told otherwise (RFC 9113 section 6.5.2).
const TABLE: usize = 4096;
/// The largest window of flow control (RFC 9113 section 6.9.1).
const MAX_WINDOW: u32 = 0x7fff_ffff;
/// A literal that no table keeps: `connection: x`. The library refuses a stream that has it (RFC 9113 section 8.2.2).
const REFUSED: &[u8] = b"\0\x0aconnection\x01x";

/// Who judges what comes.
pub trait Judge {
    /// A frame; one that carries fields when it is complete, others when their head is.
    fn frame(&mut self, frame: Frame) -> Result<(), Reason>;
    /// A setting; those of a frame follow it.
    fn setting(&mut self, _id: u16, _value: u32) -> Result<(), Reason> {
        Ok(())
    }
    /// A field block begins with this frame.
    fn begin(&mut self, frame: Frame);
    /// A field of it.
    fn field(&mut self, name: &[u8], value: &[u8]);
    /// It is complete; whether it may pass. `is_unsound`: it has octets that no field may have.
    fn end(&mut self, frame: Frame, is_unsound: bool) -> Result<bool, Reason>;
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Sieve {
    decoder: Decoder,
    /// Octets of the current payload, or of the preface, that pass unseen.
    left: usize,
    /// The preface is not complete.
    in_preface: bool,
    /// The beginning of a field block, and what may pass by now.
    held: Held,
    /// How much of the block that waits has been looked at: whole frames.
    walked: usize,
    /// The most that may wait.
    most: usize,
    /// The highest stream that was named.
    pub last_stream: u32,
}

/// So many octets may not pass, and these pass instead.
type Instead = (usize, Vec<u8>);

impl Sieve {
    /// Of what a client sends, with blocks of at most so many octets.
    pub fn client(most: usize) -> Self {
        Self { left: PREFACE.len(), in_preface: true, ..Self::server(most) }
    }

    /// The same of what a server sends.
    pub fn server(most: usize) -> Self {
        let (decoder, held) = (Decoder::new(TABLE), Held::default());
        Self { decoder, left: 0, in_preface: false, held, walked: 0, most, last_stream: 0 }
    }

    /// Judges octets that were just read. So many of them, from the first on, may pass where they are; what may pass of the
    /// others is handed over later. An error ends the connection.
    pub fn sift(&mut self, octets: &[u8], judge: &mut impl Judge) -> Result<usize, Reason> {
        if !self.held.octets.is_empty() {
            let mut waits = self.held.octets.split_off(self.held.ready);
            waits.extend_from_slice(octets);
            return self.queue(&waits, judge).map(|()| 0);
        }
        let (passed, instead) = self.follow(octets, judge)?;
        let rest = &octets[passed..];
        match instead {
            None => self.held.octets.extend_from_slice(rest),
            Some((length, instead)) => {
                (self.held.ready, self.held.octets) = (instead.len(), instead);
                self.queue(&rest[length..], judge)?;
            }
        }
        Ok(passed)
    }

    /// The same behind what is held.
    fn queue(&mut self, mut octets: &[u8], judge: &mut impl Judge) -> Result<(), Reason> {
        loop {
            let (passed, instead) = self.follow(octets, judge)?;
            let (passed, rest) = octets.split_at(passed);
            self.held.octets.extend_from_slice(passed);
            self.held.ready = self.held.octets.len();
            let Some((length, instead)) = instead else {
                self.held.octets.extend_from_slice(rest);
                return Ok(());
            };
            self.held.octets.extend(instead);
            self.held.ready = self.held.octets.len();
            octets = &rest[length..];
        }
    }

    /// Hands held octets on that may pass now, as many as `put` takes; whether there were any.
    pub fn hand_over(&mut self, put: impl FnOnce(&[u8]) -> usize) -> bool {
        self.held.hand_over(put)
    }

    /// The preface, a field block or the head of a frame has begun and is not complete: nobody may take for ever over it.
    pub fn is_in_head(&self) -> bool {
        self.in_preface || !self.waiting().is_empty()
    }

    /// The beginning of a frame, or of a field block, of which more must come.
    pub fn waiting(&self) -> &[u8] {
        self.held.waiting()
    }

    /// Follows the frames; how many octets may pass, and what passes in the place of the next ones.
    fn follow(&mut self, octets: &[u8], judge: &mut impl Judge) -> Result<(usize, Option<Instead>), Reason> {
        let mut at = 0;
        loop {
            let passed = self.left.min(octets.len() - at);
            (at, self.left) = (at + passed, self.left - passed);
            self.in_preface &= self.left > 0;
            let rest = &octets[at..];
            let Some(frame) = Frame::first(rest) else { return Ok((at, None)) };
            self.last_stream = self.last_stream.max(frame.stream);
            match frame.kind {
                HEADERS => {
                    let Some(length) = self.whole_block(rest, frame, judge)? else { return Ok((at, None)) };
                    match self.judge_block(&rest[..length], frame, judge)? {
                        None => at += length,
                        Some(instead) => return Ok((at, Some((length, instead)))),
                    }
                }
                // Nobody may push here, and its fields would be missing from the table.
                CONTINUATION | PUSH_PROMISE => return Err(Reason::Malformed),
                _ if !frame.is_sized() => return Err(Reason::FrameSize),
                // As a whole: what they say is looked at.
                SETTINGS if rest.len() < HEAD + frame.length as usize => return Ok((at, None)),
                kind => {
                    judge.frame(frame)?;
                    if kind == SETTINGS {
                        judge_settings(&rest[HEAD..HEAD + frame.length as usize], judge)?;
                    }
                    (at, self.left) = (at + HEAD, frame.length as usize);
                }
            }
        }
    }

    /// How long the block is that begins here, if all of it is there.
    fn whole_block(&mut self, octets: &[u8], first: Frame, judge: &mut impl Judge) -> Result<Option<usize>, Reason> {
        while let Some(frame) = Frame::first(&octets[self.walked..]) {
            if self.walked > 0 && (frame.kind, frame.stream) != (CONTINUATION, first.stream) {
                return Err(Reason::Malformed);
            }
            if !frame.is_sized() {
                return Err(Reason::FrameSize);
            }
            let end = self.walked + HEAD + frame.length as usize;
            if end > octets.len() {
                break;
            }
            judge.frame(frame)?;
            self.walked = end;
            if frame.ends_block() {
                self.walked = 0;
                return Ok(Some(end));
            }
        }
        if octets.len() > self.most { Err(Reason::TooMuch) } else { Ok(None) }
    }

    /// What passes in the place of a block, if it may not pass as it is.
    fn judge_block(&mut self, frames: &[u8], first: Frame, judge: &mut impl Judge) -> Result<Option<Vec<u8>>, Reason> {
        let block = block(frames, first).ok_or(Reason::Malformed)?;
        judge.begin(first);
        let reading = self.decoder.decode(&block, |name, value| judge.field(name, value));
        let reading = reading.map_err(|_| Reason::Compression)?;
        let may_pass = judge.end(first, reading.is_unsound)?;
        if may_pass && reading.instead.is_none() {
            return Ok(None);
        }
        let mut block = reading.instead.unwrap_or_else(|| block.into_owned());
        if !may_pass {
            block.extend_from_slice(REFUSED);
        }
        Ok(Some(in_frames(&block, first)))
    }
}

/// What the library would call by another name (RFC 9113 section 6.5.2), and what the judge has to say.
fn judge_settings(payload: &[u8], judge: &mut impl Judge) -> Result<(), Reason> {
    for setting in payload.as_chunks().0 {
        let [i, d, v, a, l, u] = *setting;
        let (id, value) = (u16::from_be_bytes([i, d]), u32::from_be_bytes([v, a, l, u]));
        if id == INITIAL_WINDOW_SIZE && value > MAX_WINDOW {
            return Err(Reason::FlowControl);
        }
        judge.setting(id, value)?;
    }
    Ok(())
}

/// The block that these frames carry.
fn block(frames: &[u8], first: Frame) -> Option<Cow<'_, [u8]>> {
    let (payload, mut rest) = frames[HEAD..].split_at(first.length as usize);
    let mut block = Cow::Borrowed(fragment(payload, first.flags)?);
    while let Some(frame) = Frame::first(rest) {
        let (payload, after) = rest[HEAD..].split_at(frame.length as usize);
        block.to_mut().extend_from_slice(payload);
        rest = after;
    }
    Some(block)
}

/// The part of a payload of HEADERS that belongs to the block (RFC 9113 section 6.2).
fn fragment(payload: &[u8], flags: u8) -> Option<&[u8]> {
    let (padding, rest) = match flags & PADDED {
        0 => (0, payload),
        _ => payload.split_first().map(|(length, rest)| (usize::from(*length), rest))?,
    };
    let rest = if flags & PRIORITY == 0 { rest } else { rest.get(5..)? };
    rest.get(..rest.len().checked_sub(padding)?)
}

/// A block in frames of its own, that do to the stream what the first one did.
fn in_frames(block: &[u8], first: Frame) -> Vec<u8> {
    let mut frames = Vec::with_capacity(block.len() + 2 * HEAD);
    let mut pieces = block.chunks(MAX_PAYLOAD).peekable();
    let mut flags = first.flags & END_STREAM;
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        flags |= if pieces.peek().is_none() { END_HEADERS } else { 0 };
        frames.extend_from_slice(&(piece.len() as u32).to_be_bytes()[1..]);
        frames.extend([kind, flags]);
        frames.extend(first.stream.to_be_bytes());
        frames.extend_from_slice(piece);
        (kind, flags) = (CONTINUATION, 0);
    }
    frames
}

#[cfg(test)]
mod tests;
