//! HTTP/2 from the outside: where its frames begin and end, and how many of them a peer may send that do nothing.
//!
//! The library behind it parses frames, decodes heads and keeps streams apart. What it does not bound is bounded here: a peer
//! that makes us work without asking for anything (CVE-2023-44487, CVE-2019-9511 to 9518). A [`Budget`] is earned by work that
//! is done for the peer and grows slowly by itself, so that no rate of honest use comes near its end.

use crate::policy::instant::Mono;

/// What a client sends first (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Octets of the head of a frame.
pub(super) const HEAD: usize = 9;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// Of SETTINGS.
pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// The longest payload that a peer may send unless it is told otherwise.
pub(super) const MAX_PAYLOAD: usize = 16_384;

/// Settings (RFC 9113 section 6.5.2).
pub(super) const ENABLE_PUSH: u16 = 2;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;

/// The head of a frame (RFC 9113 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Octets that follow.
    pub length: u32,
    /// What it is.
    pub kind: u8,
    /// Depends on the kind.
    pub flags: u8,
    /// 0: the connection.
    pub stream: u32,
}

impl Frame {
    fn parse(head: [u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = head;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff;
        Self { length: u32::from_be_bytes([0, a, b, c]), kind, flags, stream }
    }

    /// The one that begins here, if all of its head is there.
    pub fn first(octets: &[u8]) -> Option<Self> {
        octets.first_chunk().copied().map(Self::parse)
    }

    /// It ends a field block.
    pub const fn ends_block(self) -> bool {
        self.flags & END_HEADERS != 0
    }

    /// Its payload has a length that its kind may have (RFC 9113 sections 4.2 and 6).
    pub(super) const fn is_sized(self) -> bool {
        let length = self.length as usize;
        match self.kind {
            SETTINGS if self.flags & ACK != 0 => length == 0,
            SETTINGS => length.is_multiple_of(6) && length <= MAX_PAYLOAD,
            PRIORITY => length == 5,
            RST_STREAM | WINDOW_UPDATE => length == 4,
            PING => length == 8,
            GOAWAY => length >= 8 && length <= MAX_PAYLOAD,
            _ => length <= MAX_PAYLOAD,
        }
    }

    /// The frame ends its stream in its direction.
    pub const fn ends_stream(self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

/// Why a connection is ended (RFC 9113 section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// NO_ERROR
    Done = 0,
    /// PROTOCOL_ERROR
    Malformed = 1,
    /// FLOW_CONTROL_ERROR
    FlowControl = 3,
    /// FRAME_SIZE_ERROR
    FrameSize = 6,
    /// COMPRESSION_ERROR
    Compression = 9,
    /// ENHANCE_YOUR_CALM
    TooMuch = 0xb,
}

/// The GOAWAY that says so, of a connection whose last stream was this one.
pub fn go_away(last_stream: u32, reason: Reason) -> Vec<u8> {
    let mut frame = vec![0, 0, 8, 7, 0, 0, 0, 0, 0];
    frame.extend(last_stream.to_be_bytes());
    frame.extend([0, 0, 0, reason as u8]);
    frame
}

/// Walks over the frames that are sent, however their octets are cut.
#[derive(Debug, Default)]
pub struct Walker {
    /// Octets of the current payload that are still to come.
    left: u32,
    head: [u8; HEAD],
    filled: usize,
}

impl Walker {
    /// The next octets; `on` is told of each frame once its head is complete.
    pub fn feed(&mut self, mut octets: &[u8], mut on: impl FnMut(Frame)) {
        loop {
            let (passed, rest) = octets.split_at(octets.len().min(self.left as usize));
            self.left -= passed.len() as u32;
            if rest.is_empty() {
                return;
            }
            let taken = rest.len().min(HEAD - self.filled);
            self.head[self.filled..self.filled + taken].copy_from_slice(&rest[..taken]);
            self.filled += taken;
            octets = &rest[taken..];
            if self.filled < HEAD {
                return;
            }
            let frame = Frame::parse(self.head);
            (self.filled, self.left) = (0, frame.length);
            on(frame);
        }
    }

    /// Skips what comes before the first frame.
    pub const fn behind_preface() -> Self {
        Self { left: PREFACE.len() as u32, head: [0; HEAD], filled: 0 }
    }

    /// Nothing of a frame is missing.
    pub const fn is_between_frames(&self) -> bool {
        self.left == 0 && self.filled == 0
    }
}

/// Frames that do nothing, which a client may send at once, and in each second.
const IDLE_FRAMES: Allowance = Allowance { at_most: 1000, per_second: 100 };
/// Streams that it may give up before they were answered.
const RESETS: Allowance = Allowance { at_most: 200, per_second: 20 };
/// What an answered stream earns in idle frames: a client acknowledges, re-opens windows, gives priorities.
const FOR_A_STREAM: u32 = 4;
/// What a frame of data earns: windows are re-opened, and some clients measure the path with a PING for each.
const FOR_DATA: u32 = 10;

#[derive(Debug, Clone, Copy)]
struct Allowance {
    at_most: u32,
    per_second: u32,
}

/// What a client may still send that does nothing.
#[derive(Debug)]
pub struct Budget {
    idle_frames: u32,
    resets: u32,
    since: Mono,
}

impl Budget {
    /// Full.
    pub const fn new(now: Mono) -> Self {
        Self { idle_frames: IDLE_FRAMES.at_most, resets: RESETS.at_most, since: now }
    }

    /// A frame that the client sent; false when it is one too many. `now` is asked only when the budget looks used up.
    #[must_use]
    pub fn spend(&mut self, frame: Frame, now: impl FnOnce() -> Mono) -> bool {
        match frame.kind {
            HEADERS => return true,
            // The library counts small frames of data, but for empty ones.
            DATA if frame.length > 0 || frame.ends_stream() => return true,
            _ => {}
        }
        if *self.left_for(frame) == 0 {
            self.grow(now());
        }
        let left = self.left_for(frame);
        let is_enough = *left > 0;
        *left = left.saturating_sub(1);
        is_enough
    }

    const fn left_for(&mut self, frame: Frame) -> &mut u32 {
        if frame.kind == RST_STREAM { &mut self.resets } else { &mut self.idle_frames }
    }

    /// By whole seconds.
    fn grow(&mut self, now: Mono) {
        let seconds = now.since(self.since).as_secs();
        if seconds == 0 {
            return;
        }
        self.since = now;
        let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
        let grown = |left: u32, allowance: Allowance| {
            allowance.at_most.min(left.saturating_add(allowance.per_second.saturating_mul(seconds)))
        };
        self.idle_frames = grown(self.idle_frames, IDLE_FRAMES);
        self.resets = grown(self.resets, RESETS);
    }

    /// A frame that was sent to the client.
    pub fn earn(&mut self, frame: Frame) {
        if frame.ends_stream() {
            self.resets = RESETS.at_most.min(self.resets + 1);
            self.idle_frames = IDLE_FRAMES.at_most.min(self.idle_frames + FOR_A_STREAM);
        }
        if frame.kind == DATA {
            self.idle_frames = IDLE_FRAMES.at_most.min(self.idle_frames + FOR_DATA);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut octets = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        octets.extend([kind, flags]);
        octets.extend(stream.to_be_bytes());
        octets.extend(payload);
        octets
    }

    fn seen(walker: &mut Walker, octets: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        walker.feed(octets, |frame| frames.push(frame));
        frames
    }

    #[test]
    fn a_budget_is_used_up_and_grows_again() {
        let mut budget = Budget::new(Mono(0));
        let reset = Frame { length: 4, kind: RST_STREAM, flags: 0, stream: 1 };
        let taken = (0..1000).take_while(|_| budget.spend(reset, || Mono(10))).count();
        assert_eq!(taken, 200);
        budget.earn(Frame { length: 0, kind: DATA, flags: END_STREAM, stream: 1 });
        assert!(budget.spend(reset, || Mono(10)) && !budget.spend(reset, || Mono(10)));
        let taken = (0..1000).take_while(|_| budget.spend(reset, || Mono(2_000_000))).count();
        assert_eq!(taken, 40);
    }

    #[test]
    fn requests_and_bodies_cost_nothing() {
        let mut budget = Budget::new(Mono(0));
        for frame in [
            Frame { length: 10, kind: HEADERS, flags: END_HEADERS, stream: 1 },
            Frame { length: 10, kind: DATA, flags: 0, stream: 1 },
            Frame { length: 0, kind: DATA, flags: END_STREAM, stream: 1 },
        ] {
            assert!((0..10_000).all(|_| budget.spend(frame, || Mono(0))));
        }
    }

    proptest! {
        #[test]
        fn frames_are_the_same_however_they_are_cut(
            frames in prop::collection::vec((0_u8..12, 0_u8..64, 0_u32..100, prop::collection::vec(0_u8..255, 0..40)), 0..12),
            cuts in prop::collection::vec(1_usize..30, 1..8),
        ) {
            let octets: Vec<u8> = frames.iter().flat_map(|(kind, flags, stream, payload)| frame(*kind, *flags, *stream, payload)).collect();
            let whole = seen(&mut Walker::default(), &octets);
            prop_assert_eq!(whole.len(), frames.len());
            let (mut walker, mut pieces, mut rest) = (Walker::default(), Vec::new(), &octets[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at(rest.len().min(*cut));
                pieces.extend(seen(&mut walker, piece));
                rest = after;
            }
            prop_assert_eq!(pieces, whole);
            prop_assert!(walker.is_between_frames());
        }
    }
}
