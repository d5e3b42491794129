//! What can go wrong in a management operation, and how it is told: over HTTP as a [`Problem`], on the command line as one line.
//!
//! Nothing that a client sent is repeated here without passing through [`quoted`]: a secret that was put in the wrong
//! place must not come back in an answer, a log line or a terminal.

use std::borrow::Cow;
use std::fmt;

use crate::policy::credential::looks_like_key;
use crate::policy::rejection::Problem;
use crate::store::StoreError;

/// So many members are named in the short message; the detail names all of them.
const NAMED_IN_MESSAGE: usize = 6;
/// So much of a text that a client made up is repeated.
const QUOTED_CHARS: usize = 64;

/// A member of a body (or a parameter of a query) that cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadMember {
    /// Its name, such as `scopes[1]`; fit to be shown.
    pub member: String,
    /// What is wrong with it, and what would be right.
    pub reason: Cow<'static, str>,
}

impl BadMember {
    /// `member` is one of ours, or went through [`quoted`].
    pub fn new(member: impl Into<String>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { member: member.into(), reason: reason.into() }
    }
}

/// A part of a grant that the caller does not have to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excess {
    /// The member of the key.
    pub member: &'static str,
    /// What is beyond the caller.
    pub what: String,
}

/// Why a management operation was not carried out.
#[derive(Debug, Clone)]
pub enum ManagementError {
    /// The body is not what the operation takes.
    InvalidBody(Vec<BadMember>),
    /// The query is not what the operation takes.
    InvalidQuery(Vec<BadMember>),
    /// No key with this id, as far as the caller may know.
    KeyNotFound,
    /// The caller would give away more than it has.
    GrantExceedsCaller(Vec<Excess>),
    /// The account cannot be set so (command line only, for now).
    InvalidAccount(String),
    /// The store did not do it, or nobody knows whether it did.
    Store(StoreError),
}

impl From<StoreError> for ManagementError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl ManagementError {
    /// How it is told over HTTP. What the store said stays in our own log.
    pub fn problem(&self) -> Problem {
        match self {
            Self::InvalidBody(bad) => invalid("body", bad),
            Self::InvalidQuery(bad) => invalid("query", bad),
            Self::KeyNotFound => problem(
                404,
                "key_not_found",
                "No such key",
                "There is no key with this id, or it belongs to another account or organization.",
            ),
            Self::GrantExceedsCaller(excess) => {
                let members: Vec<&str> = excess.iter().map(|excess| excess.member).collect();
                problem(
                    403,
                    "grant_exceeds_caller",
                    format!("Grant exceeds the caller's own in {}", members.join(", ")),
                    format!("A key can give only what it has itself: {}.", sentences(excess)),
                )
            }
            Self::InvalidAccount(why) => problem(400, "bad_request", "Invalid account", why.clone()),
            Self::Store(_) => problem(
                503,
                "store_unavailable",
                "Key store unavailable",
                "The key store does not answer; try again in a moment, and look whether the change was made.",
            ),
        }
    }
}

impl fmt::Display for ManagementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidBody(bad) | Self::InvalidQuery(bad) => f.write_str(&reasons(bad)),
            Self::KeyNotFound => f.write_str("there is no key with this id"),
            Self::GrantExceedsCaller(excess) => write!(f, "beyond the caller's own grant: {}", sentences(excess)),
            Self::InvalidAccount(why) => f.write_str(why),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ManagementError {}

/// A text that a client made up, fit to be shown: short, visible ASCII, and never a key.
pub fn quoted(text: &str) -> String {
    if looks_like_key(text.as_bytes()) {
        return "(a key)".to_owned();
    }
    let short: String = text.chars().take(QUOTED_CHARS).flat_map(char::escape_default).collect();
    if text.chars().nth(QUOTED_CHARS).is_some() { format!("{short}...") } else { short }
}

fn invalid(place: &str, bad: &[BadMember]) -> Problem {
    let names: Vec<&str> = bad.iter().take(NAMED_IN_MESSAGE).map(|bad| bad.member.as_str()).collect();
    let more = match bad.len().saturating_sub(NAMED_IN_MESSAGE) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    problem(400, "bad_request", format!("Invalid {place}: {}{more}", names.join(", ")), format!("{}.", reasons(bad)))
}

/// `a, b: unknown member; name: at most 200 characters`: every member is named, a reason is given once for a run of them.
fn reasons(bad: &[BadMember]) -> String {
    let runs = bad.chunk_by(|one, next| one.reason == next.reason);
    let texts = runs.map(|run| {
        let members: Vec<&str> = run.iter().map(|bad| bad.member.as_str()).collect();
        format!("{}: {}", members.join(", "), run[0].reason)
    });
    texts.collect::<Vec<_>>().join("; ")
}

fn sentences(excess: &[Excess]) -> String {
    excess.iter().map(|excess| format!("{}: {}", excess.member, excess.what)).collect::<Vec<_>>().join("; ")
}

pub(crate) fn problem(
    status: u16,
    code: &'static str,
    message: impl Into<Cow<'static, str>>,
    detail: impl Into<Cow<'static, str>>,
) -> Problem {
    Problem { status, code, message: message.into(), detail: detail.into(), challenge: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_member_is_named_and_a_reason_is_given_once() {
        let bad = ManagementError::InvalidBody(vec![
            BadMember::new("foo", "unknown member"),
            BadMember::new("bar", "unknown member"),
            BadMember::new("name", "must be a string"),
        ]);
        let problem = bad.problem();
        assert_eq!((problem.status, problem.code), (400, "bad_request"));
        assert_eq!(problem.message, "Invalid body: foo, bar, name");
        assert_eq!(problem.detail, "foo, bar: unknown member; name: must be a string.");
    }

    #[test]
    fn the_reason_phrase_stays_short_however_many_members_are_bad() {
        let bad: Vec<_> = (0..1000).map(|n| BadMember::new(format!("m{n}"), "unknown member")).collect();
        let problem = ManagementError::InvalidBody(bad).problem();
        assert_eq!(problem.message, "Invalid body: m0, m1, m2, m3, m4, m5 and 994 more");
        assert!(problem.detail.contains("m999"));
    }

    #[test]
    fn what_a_client_made_up_is_shown_short_in_ascii_and_never_a_key() {
        assert_eq!(quoted("na\r\nme\u{e4}"), "na\\r\\nme\\u{e4}");
        assert_eq!(quoted(&"x".repeat(1000)).len(), QUOTED_CHARS + 3);
        assert_eq!(quoted("x sm_live_0123456789abcdef"), "(a key)");
    }

    #[test]
    fn what_the_store_said_is_not_told_to_clients() {
        let error = ManagementError::from(StoreError::Unavailable("/srv/gateway.db: disk full".into()));
        assert_eq!((error.problem().status, error.problem().code), (503, "store_unavailable"));
        assert!(!format!("{:?}", error.problem()).contains("gateway.db"));
        assert_eq!(error.to_string(), "the store is unavailable: /srv/gateway.db: disk full");
    }
}
