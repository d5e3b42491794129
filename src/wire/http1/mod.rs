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

pub use answer::{Answers, Exchange, MAX_HEAD, MAX_INTERIM};
pub use gate::{Body, Gate, Messages, Standing};
pub use request::{Refused, RequestLimits, Requests, check_path_and_query};

use super::{is_field_octet, is_field_value, is_token, table};
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
