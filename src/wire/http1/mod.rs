//! The octets of HTTP/1, judged before any parser of ours repairs or hides what they say.
//!
//! hyper is a lenient reader: it takes bare line feeds, drops a length beside chunks, cuts a fragment off, guesses at sloppy
//! chunks. What two parties could read differently is how requests are smuggled, so each socket has a [`gate`] between itself
//! and hyper: it follows the messages through any split of reads and hands on only what is beyond doubt (RFC 9112, RFC 9110
//! section 5). Nothing here allocates for a head that comes in one read.
//!
//! Pure: octets in, verdicts out. Knows no socket, no route and no key.

mod answer;
mod chunk;
mod gate;
mod head;
mod request;
#[cfg(test)]
mod tests;

pub use answer::{Answers, Exchange, MAX_HEAD};
pub use gate::{Body, Gate, Messages, Standing};
pub use request::{Refused, RequestLimits, Requests};

use super::table;
use crate::policy::rejection::Rejection;

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its grammar; in words fit for a reason phrase.
    Malformed(&'static str),
    /// A version that is not spoken here.
    Version,
    /// A head, or the end of a chunked body, with too many octets or fields.
    TooLarge,
    /// A request target that is too long.
    TargetTooLong,
    /// An expectation that nobody here meets.
    Expectation,
}

impl From<Fault> for Rejection {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Malformed(what) => Self::bad_request(what),
            Fault::Version => Self::VersionNotSupported,
            Fault::TooLarge => Self::HeadersTooLarge,
            Fault::TargetTooLong => Self::UriTooLong,
            Fault::Expectation => Self::ExpectationFailed,
        }
    }
}

/// `tchar` of RFC 9110 section 5.6.2.
const fn is_token(byte: u8) -> bool {
    const TABLE: [bool; 256] = table(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz");
    TABLE[byte as usize]
}

/// What a field value may hold, blanks included: all but controls (RFC 9110 section 5.5).
const fn is_field_octet(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// The same of a whole value, eight octets at a time: every request has a dozen of them.
fn is_field_value(value: &[u8]) -> bool {
    let (words, rest) = value.as_chunks();
    let controls = words.iter().fold(0, |controls, word| controls | controls_in(u64::from_ne_bytes(*word)));
    // Some may be a tab.
    (controls == 0 || words.as_flattened().iter().all(|byte| is_field_octet(*byte)))
        && rest.iter().all(|byte| is_field_octet(*byte))
}

/// Not zero if any octet of the word is below a space or DEL ("Bit Twiddling Hacks", Determine if a word has a byte less than n).
const fn controls_in(word: u64) -> u64 {
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    let below_space = word.wrapping_sub(EACH * 0x20) & !word;
    let other_than_del = word ^ (EACH * 0x7f);
    (below_space | (other_than_del.wrapping_sub(EACH) & !other_than_del)) & (EACH << 7)
}
