//! HTTP/2 from the outside: where its frames begin and end, and how many of them a peer may send that do nothing.
//!
//! The library behind it parses frames, decodes heads and keeps streams apart. What it does not bound is bounded here: a peer
//! that makes us work without asking for anything (CVE-2023-44487, CVE-2019-9511 to 9518). A [`Budget`] is earned by work that
//! is done for the peer and grows slowly by itself, so that no rate of honest use comes near its end.

use super::heads::{Heads, Odd};
use crate::policy::instant::Mono;

/// What a client sends first (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

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

    /// Its part in a field section.
    pub const fn section(self) -> Section {
        match self.kind {
            HEADERS | CONTINUATION if self.flags & END_HEADERS != 0 => Section::Last,
            HEADERS | CONTINUATION => Section::More,
            _ => Section::Other,
        }
    }

    /// It carries on with a block that another frame began.
    pub const fn is_continuation(self) -> bool {
        self.kind == CONTINUATION
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
    /// PROTOCOL_ERROR
    Malformed = 1,
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

/// What there is to see on the way.
enum Event<'a> {
    /// A frame begins.
    Frame(Frame),
    /// Octets of its payload, when it is part of a field section.
    Head(&'a [u8]),
}

/// Walks over one direction of a connection, however its octets are cut.
#[derive(Debug)]
pub struct Walker {
    /// Octets of the current payload, or of the preface, that are still to come.
    left: u32,
    head: [u8; HEAD],
    filled: usize,
    /// What is under way when something is left, and after it: part of a field section, and whether its last.
    section: Section,
    /// Past the preface, if there is one.
    is_framed: bool,
    /// The highest stream that was named.
    pub last_stream: u32,
}

/// What a frame has to do with field sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// No field section.
    Other,
    /// More of it follows in another frame.
    More,
    /// It ends with this frame.
    Last,
}

impl Walker {
    /// At the beginning of the preface, which clients send.
    pub const fn client() -> Self {
        Self { left: PREFACE.len() as u32, section: Section::Last, is_framed: false, ..Self::server() }
    }

    /// At the beginning of a frame.
    pub const fn server() -> Self {
        Self { left: 0, head: [0; HEAD], filled: 0, section: Section::Other, is_framed: true, last_stream: 0 }
    }

    /// The next octets; `on` is told of each frame once its head is complete.
    pub fn feed(&mut self, octets: &[u8], mut on: impl FnMut(Frame)) {
        self.walk(octets, |event| {
            if let Event::Frame(frame) = event {
                on(frame);
            }
        });
    }

    /// The same, with a look at the field blocks; `odd` is told of what is malformed in them ([`Heads::payload`]).
    pub fn feed_heads(
        &mut self,
        octets: &[u8],
        heads: &mut Heads,
        mut on: impl FnMut(Frame),
        mut odd: impl FnMut(Odd),
    ) {
        self.walk(octets, |event| match event {
            Event::Frame(frame) => {
                on(frame);
                if frame.section() != Section::Other {
                    heads.begin(frame);
                    if frame.length == 0 {
                        heads.payload(&[]).into_iter().for_each(&mut odd);
                    }
                }
            }
            Event::Head(payload) => heads.payload(payload).into_iter().for_each(&mut odd),
        });
    }

    fn walk(&mut self, mut octets: &[u8], mut on: impl FnMut(Event<'_>)) {
        loop {
            let (passed, rest) = octets.split_at(octets.len().min(self.left as usize));
            self.left -= passed.len() as u32;
            if self.is_framed && self.section != Section::Other && !passed.is_empty() {
                on(Event::Head(passed));
            }
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
            (self.filled, self.left, self.is_framed) = (0, frame.length, true);
            self.section = frame.section();
            self.last_stream = self.last_stream.max(frame.stream);
            on(Event::Frame(frame));
        }
    }

    /// Nothing of a frame is missing.
    pub const fn is_between_frames(&self) -> bool {
        self.left == 0 && self.filled == 0
    }

    /// The preface, a field section or the head of a frame has begun and is not complete: nobody may take for ever over it.
    pub const fn is_in_head(&self) -> bool {
        match self.section {
            Section::Other => self.filled > 0,
            Section::More => true,
            Section::Last => self.left > 0 || self.filled > 0,
        }
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
    fn a_head_is_open_from_its_first_octet_to_its_last() {
        let mut walker = Walker::client();
        assert!(walker.is_in_head(), "the preface is owed");
        walker.feed(&PREFACE[..23], |_| ());
        assert!(walker.is_in_head());
        walker.feed(&PREFACE[23..], |_| ());
        assert!(!walker.is_in_head() && walker.is_between_frames());
        walker.feed(&[0, 0], |_| ());
        assert!(walker.is_in_head() && !walker.is_between_frames());
        walker.feed(&[2, HEADERS, 0, 0, 0, 0, 1, b'a', b'b'], |_| ());
        assert!(walker.is_in_head() && walker.is_between_frames(), "CONTINUATION is owed");
        walker.feed(&frame(CONTINUATION, END_HEADERS, 1, b"c"), |_| ());
        assert!(!walker.is_in_head());
        walker.feed(&frame(DATA, 0, 1, b"half of it")[..12], |_| ());
        assert!(!walker.is_in_head(), "a body has a timeout of its own");
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
            let whole = seen(&mut Walker::server(), &octets);
            prop_assert_eq!(whole.len(), frames.len());
            let (mut walker, mut pieces, mut rest) = (Walker::server(), Vec::new(), &octets[..]);
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
