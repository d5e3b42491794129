//! The gate between a socket and hyper: follows a stream of messages and says how many octets are beyond doubt.
//!
//! What passes stays where it was read. Only the beginning of a head is held back, until the rest has come; and nothing
//! follows a message that was refused.

use super::Fault;
use super::chunk::Chunks;
use super::head::Head;
use crate::wire::held::Held;

/// How a body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// None.
    None,
    /// So many octets.
    Length(u64),
    /// Chunks.
    Chunked,
    /// All that comes until the connection ends.
    ToClose,
    /// None, and it asks to leave HTTP: what follows is judged when it is answered ([`Gate::settle`], [`Gate::open`]).
    Upgrade,
}

/// What hyper reads in the place of a message that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing(pub(super) &'static [u8]);

/// What tells requests from answers.
pub trait Messages {
    /// What is kept of a message that is refused.
    type Refused;

    /// Reads on in a head, which begins with the first of `octets`; the framing of its body, once the head is whole.
    fn scan(&mut self, head: &mut Head, octets: &[u8]) -> Result<Option<Body>, Fault>;

    /// A message that begins with these octets is refused, and nothing of it was handed on.
    fn refuse(&mut self, fault: Fault, octets: &[u8]) -> (Self::Refused, Standing);

    /// Octets and fields that trailers may have.
    fn trailer_limits(&self) -> (usize, usize);
}

/// Follows the messages of one direction of a connection.
#[derive(Debug)]
pub struct Gate<M: Messages> {
    /// How they are judged.
    pub messages: M,
    at: At,
    head: Head,
    /// Messages whose heads have passed.
    begun: u64,
    /// The beginning of a head, and what may pass by now.
    held: Held,
    refused: Option<M::Refused>,
}

#[derive(Debug)]
enum At {
    Head,
    Length(u64),
    Chunks(Chunks),
    ToClose,
    /// A request asked to leave HTTP: whether what follows is a request is not known before it is answered.
    Asked,
    /// Nothing passes any more: a message was refused as a whole.
    Refused,
    /// Nothing passes any more: a message broke whose head has passed.
    Broken,
}

impl<M: Messages> Gate<M> {
    /// At the beginning of a connection.
    pub fn new(messages: M) -> Self {
        Self { messages, at: At::Head, head: Head::default(), begun: 0, held: Held::default(), refused: None }
    }

    /// Judges octets that were just read. So many of them, from the first on, may pass where they are; what may pass of the
    /// others is handed over later.
    pub fn sift(&mut self, octets: &[u8]) -> usize {
        if self.held.octets.is_empty() {
            let passed = self.follow(octets);
            if matches!(self.at, At::Head | At::Asked) {
                self.held.octets.extend_from_slice(&octets[passed..]);
            }
            return passed;
        }
        let mut held = std::mem::take(&mut self.held.octets);
        held.extend_from_slice(octets);
        let waiting = self.held.ready;
        let passed = waiting + self.follow(&held[waiting..]);
        if !matches!(self.at, At::Head | At::Asked) {
            held.truncate(passed);
        }
        // Behind what passes comes the stand-in for what does not, if there is one.
        self.held.ready = passed + self.held.octets.len();
        held.append(&mut self.held.octets);
        self.held.octets = held;
        0
    }

    /// Hands held octets on that may pass now, as many as `put` takes; whether there were any.
    pub fn hand_over(&mut self, put: impl FnOnce(&[u8]) -> usize) -> bool {
        self.held.hand_over(put)
    }

    /// The message that was refused, once.
    pub fn take_refused(&mut self) -> Option<M::Refused> {
        self.refused.take()
    }

    /// Nothing will pass any more.
    pub fn is_shut(&self) -> bool {
        matches!(self.at, At::Refused | At::Broken)
    }

    /// A message broke after its head had passed.
    pub fn is_broken(&self) -> bool {
        matches!(self.at, At::Broken)
    }

    /// Between two messages, and nothing of the next one has come.
    pub fn is_between(&self) -> bool {
        matches!(self.at, At::Head) && self.held.octets.is_empty()
    }

    /// How many messages have begun.
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// An upgrade was asked for and not answered: octets are held unjudged, so many by now.
    pub fn waits(&self) -> Option<usize> {
        matches!(self.at, At::Asked).then_some(self.held.waiting().len())
    }

    /// It was answered by something else than a 101: what follows is a message like any other.
    pub fn settle(&mut self) {
        if matches!(self.at, At::Asked) {
            self.at = At::Head;
            self.sift(&[]);
        }
    }

    /// HTTP has ended: whatever comes passes.
    pub fn open(&mut self) {
        self.at = At::ToClose;
        self.held.ready = self.held.octets.len();
    }

    /// The beginning of a head is held until the rest comes.
    pub fn holds_head(&self) -> bool {
        matches!(self.at, At::Head) && !self.held.waiting().is_empty()
    }

    /// Follows the messages through these octets; how many may pass.
    fn follow(&mut self, octets: &[u8]) -> usize {
        let mut at = 0;
        // Where the message began whose end has not come: if here, it can still be refused as a whole.
        let mut began = None;
        while at < octets.len() {
            let step = match &mut self.at {
                At::Head => {
                    began = Some(at);
                    match self.messages.scan(&mut self.head, &octets[at..]) {
                        Ok(None) => return at,
                        Ok(Some(body)) => {
                            let end = std::mem::take(&mut self.head).end();
                            self.begin(body);
                            Ok(end)
                        }
                        Err(fault) => Err((0, fault)),
                    }
                }
                At::Length(left) => {
                    let here = (*left).min((octets.len() - at) as u64);
                    *left -= here;
                    if *left == 0 {
                        self.at = At::Head;
                    }
                    Ok(here as usize)
                }
                At::Chunks(chunks) => {
                    let step = chunks.advance(&octets[at..]);
                    if chunks.is_done() {
                        self.at = At::Head;
                    }
                    step
                }
                At::ToClose => Ok(octets.len() - at),
                At::Asked | At::Refused | At::Broken => return at,
            };
            match (step, began) {
                (Ok(taken), _) => at += taken,
                (Err((_, fault)), Some(began)) => {
                    self.refuse(fault, &octets[began..]);
                    return began;
                }
                (Err((good, _)), None) => {
                    self.at = At::Broken;
                    return at + good;
                }
            }
        }
        at
    }

    fn begin(&mut self, body: Body) {
        self.begun += 1;
        self.at = match body {
            Body::None | Body::Length(0) => At::Head,
            Body::Length(length) => At::Length(length),
            Body::Chunked => At::Chunks(Chunks::new(self.messages.trailer_limits())),
            Body::ToClose => At::ToClose,
            Body::Upgrade => At::Asked,
        };
    }

    fn refuse(&mut self, fault: Fault, octets: &[u8]) {
        let (refused, Standing(stand_in)) = self.messages.refuse(fault, octets);
        self.refused = Some(refused);
        self.at = At::Refused;
        self.held.octets.extend_from_slice(stand_in);
        self.held.ready = self.held.octets.len();
    }
}
