//! The head of a message, line by line, over octets that may still be growing: each octet is looked at once.
//!
//! Lines end in CRLF and in nothing else. Fields are judged by their grammar, and those that frame a message are noted; what
//! a start line may say is for requests and answers to know.

use std::ops::Range;

use memchr::memchr;

use super::{Fault, is_field_octet, is_field_value, is_token};

/// How far a head was read, and what it said.
#[derive(Debug, Default)]
pub struct Head {
    /// Where the line begins that has not ended yet.
    line: usize,
    /// How far its end was looked for.
    searched: usize,
    /// Fields so far.
    pub(super) fields: usize,
    /// `Content-Length`.
    pub(super) length: Option<u64>,
    /// `Transfer-Encoding: chunked`.
    pub(super) is_chunked: bool,
    /// `Host`, where it stands.
    pub(super) host: Option<Range<usize>>,
    /// `Upgrade` came.
    pub(super) upgrades: bool,
    /// `Expect`, where it stands.
    pub(super) expect: Option<Range<usize>>,
}

impl Head {
    /// The next line without its end; none as long as it has not come whole. `octets` is the head from its first octet on.
    pub(super) fn next_line<'a>(&mut self, octets: &'a [u8]) -> Result<Option<&'a [u8]>, Fault> {
        let fresh = &octets[self.searched..];
        let Some(found) = memchr(b'\n', fresh) else {
            // Nobody waits for the end of a line that is bad already. Its last octet may be the CR of its end.
            let seen = fresh.split_last().map_or(fresh, |(last, rest)| if *last == b'\r' { rest } else { fresh });
            if !seen.iter().all(|byte| is_field_octet(*byte)) {
                return Err(Fault::Malformed("Control character in head"));
            }
            self.searched += seen.len();
            return Ok(None);
        };
        let (from, end) = (self.line, self.searched + found);
        (self.line, self.searched) = (end + 1, end + 1);
        match octets[from..end].split_last() {
            Some((b'\r', line)) => Ok(Some(line)),
            _ => Err(Fault::Malformed("Line feed without carriage return")),
        }
    }

    /// Where the last line that was read ended.
    pub(super) fn end(&self) -> usize {
        self.line
    }

    /// Where a line that was returned last stands among the octets.
    pub(super) fn start_of(&self, line: &[u8]) -> usize {
        self.line - 2 - line.len()
    }

    /// Judges a field line and notes what it says of framing.
    pub(super) fn field(&mut self, line: &[u8]) -> Result<(), Fault> {
        self.fields += 1;
        let (name, value) = field(line)?;
        // By its length first: nearly every field is none of these.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                let range = self.range_of(line, value);
                if self.host.replace(range).is_some() {
                    return Err(Fault::Malformed("More than one Host"));
                }
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                let range = self.range_of(line, value);
                if self.expect.replace(range).is_some() {
                    return Err(Fault::Expectation);
                }
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.upgrades = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let before = self.length.replace(length(value)?);
                if before.is_some() {
                    return Err(Fault::Malformed("More than one Content-Length"));
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Fault::Malformed("Transfer-Encoding other than chunked"));
                }
                self.is_chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// One framing at most (RFC 9112 section 6.3).
    pub(super) fn check_framing(&self) -> Result<(), Fault> {
        if self.is_chunked && self.length.is_some() {
            return Err(Fault::Malformed("Content-Length beside Transfer-Encoding"));
        }
        Ok(())
    }

    /// Where the value stands: at the end of its line but for blanks.
    fn range_of(&self, line: &[u8], value: &[u8]) -> Range<usize> {
        let behind = line.iter().rev().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let end = self.line - 2 - behind;
        end - value.len()..end
    }
}

/// Name and value, the value without the blanks around it.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let name = line.iter().position(|byte| !is_token(*byte)).unwrap_or(line.len());
    let value = match (name, line.get(name)) {
        (1.., Some(b':')) => line[name + 1..].trim_ascii_blanks(),
        (0, Some(b' ' | b'\t')) => return Err(Fault::Malformed("Folded header field")),
        (1.., Some(b' ' | b'\t')) => return Err(Fault::Malformed("Blank in the name of a header field")),
        _ => return Err(Fault::Malformed("Malformed header field")),
    };
    if !is_field_value(value) {
        return Err(Fault::Malformed("Control character in a header field"));
    }
    Ok((&line[..name], value))
}

/// Digits and nothing else: no sign, no list, no blank inside (RFC 9110 section 8.6).
fn length(value: &[u8]) -> Result<u64, Fault> {
    const BAD: Fault = Fault::Malformed("Malformed Content-Length");
    if value.is_empty() {
        return Err(BAD);
    }
    value.iter().try_fold(0_u64, |length, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0')).ok_or(BAD)?;
        // Beyond a signed number some reader overflows.
        length.checked_mul(10).and_then(|l| l.checked_add(digit)).filter(|l| *l <= i64::MAX as u64).ok_or(BAD)
    })
}

trait TrimBlanks {
    /// Without space and tab at both ends; no other octet is a blank here.
    fn trim_ascii_blanks(&self) -> &Self;
}

impl TrimBlanks for [u8] {
    fn trim_ascii_blanks(&self) -> &Self {
        let mut rest = self;
        while let [b' ' | b'\t', inner @ ..] = rest {
            rest = inner;
        }
        while let [inner @ .., b' ' | b'\t'] = rest {
            rest = inner;
        }
        rest
    }
}
