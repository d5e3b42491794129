//! Requests: the request line, the rules on `Host`, target and framing (RFC 9112 sections 3 and 6), and the limits of a head.

use std::ops::Range;

use http::{Method, Uri};

use super::gate::{Body, Messages, Standing};
use super::head::Head;
use super::{Fault, table};
use crate::policy::path::RequestPath;
use crate::policy::rejection::Rejection;
use crate::wire::is_host;

/// The longest method: every registered one is shorter.
const METHOD: usize = 64;
/// The longest target that the `http` crate holds.
const TARGET: usize = u16::MAX as usize - 1;
/// How much of the path of a refused request is shown.
const SHOWN_PATH: usize = 1024;

/// What may stand raw in a path, and behind the `?` as well (RFC 3986 section 3): of those that it does not allow only the ones
/// that many clients send all the same, ``[ ] ^ { | }``.
const PATH: [bool; 256] =
    table(b"!$%&'()*+,-./0123456789:;=@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_abcdefghijklmnopqrstuvwxyz{|}~");

/// `limits` of the configuration, as far as they concern a head.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Octets of the whole head, from the request line to the empty line.
    pub head: usize,
    /// Fields.
    pub fields: usize,
    /// Octets of the target.
    pub target: usize,
}

/// A request that is refused, as far as it could be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// Why.
    pub rejection: Rejection,
    /// Its method, if there was one.
    pub method: Option<Method>,
    /// Its path, if there was one: without the query, shortened.
    pub path: String,
}

/// How requests are judged.
#[derive(Debug)]
pub struct Requests {
    limits: RequestLimits,
    line: Option<RequestLine>,
    /// One empty line may stand before a request (RFC 9112 section 2.2).
    skipped: bool,
}

/// Where the parts of the request line stand.
#[derive(Debug, Clone)]
struct RequestLine {
    method: Range<usize>,
    target: Range<usize>,
    is_1_1: bool,
}

impl Requests {
    /// Judges by these limits.
    pub fn new(limits: RequestLimits) -> Self {
        Self { limits: RequestLimits { target: limits.target.min(TARGET), ..limits }, line: None, skipped: false }
    }

    fn finish(&mut self, head: &Head, octets: &[u8]) -> Result<Body, Fault> {
        let line = self.line.take().ok_or(Fault::Malformed("Malformed request line"))?;
        self.skipped = false;
        head.check_framing()?;
        if head.is_chunked && !line.is_1_1 {
            return Err(Fault::Malformed("Transfer-Encoding in HTTP/1.0"));
        }
        let host = head.host.clone().map(|host| &octets[host]);
        check_host(host, line.is_1_1)?;
        check_target(&octets[line.method.clone()], &octets[line.target.clone()], host)?;
        if line.is_1_1
            && let Some(expect) = &head.expect
            && !octets[expect.clone()].eq_ignore_ascii_case(b"100-continue")
        {
            return Err(Fault::Expectation);
        }
        if line.target.len() > self.limits.target {
            return Err(Fault::TargetTooLong);
        }
        if head.end() > self.limits.head || head.fields > self.limits.fields {
            return Err(Fault::TooLarge);
        }
        Ok(match head.length {
            _ if head.is_chunked => Body::Chunked,
            None | Some(0) if head.upgrades && line.is_1_1 => Body::Upgrade,
            None | Some(0) => Body::None,
            Some(length) => Body::Length(length),
        })
    }

    /// A head that has not ended must not grow without end; what is wrong with it is told once it has, if it has by then.
    fn check_growth(&self, head: &Head, octets: &[u8]) -> Result<(), Fault> {
        match &self.line {
            // Not even the request line: the target is what makes it long, unless it has not begun.
            None if octets.len() > self.limits.target + METHOD + 16 => match octets[..METHOD + 2].contains(&b' ') {
                true => Err(Fault::TargetTooLong),
                false => Err(Fault::Malformed("Malformed request line")),
            },
            Some(line) if line.target.len() > self.limits.target && octets.len() > self.limits.head => {
                Err(Fault::TargetTooLong)
            }
            _ if octets.len() > self.limits.head || head.fields > self.limits.fields => Err(Fault::TooLarge),
            _ => Ok(()),
        }
    }
}

impl Messages for Requests {
    type Refused = Refused;

    fn scan(&mut self, head: &mut Head, octets: &[u8]) -> Result<Option<Body>, Fault> {
        while let Some(line) = head.next_line(octets)? {
            if self.line.is_none() {
                if line.is_empty() && !self.skipped {
                    self.skipped = true;
                } else {
                    self.line = Some(RequestLine::parse(line, head.start_of(line))?);
                }
            } else if line.is_empty() {
                return self.finish(head, octets).map(Some);
            } else {
                head.field(line)?;
            }
        }
        self.check_growth(head, octets)?;
        Ok(None)
    }

    fn refuse(&mut self, fault: Fault, octets: &[u8]) -> (Refused, Standing) {
        let (method, target) = shown(octets);
        let standing = if method == Some(Method::HEAD) { Standing(STAND_IN_HEAD) } else { Standing(STAND_IN) };
        let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
        let path = String::from_utf8_lossy(&path[..path.len().min(SHOWN_PATH)]).into_owned();
        let rejection = match fault {
            // Well formed comes before the limits (contract 4).
            Fault::TargetTooLong | Fault::TooLarge if path.len() < SHOWN_PATH => {
                RequestPath::parse(&path).err().unwrap_or_else(|| fault.into())
            }
            _ => fault.into(),
        };
        (Refused { rejection, method, path }, standing)
    }

    fn trailer_limits(&self) -> (usize, usize) {
        (self.limits.head, self.limits.fields)
    }
}

/// What hyper reads instead of a request that is refused. Without a Host, which no request of HTTP/1.1 gets past the gate
/// without: so it cannot be mistaken for one.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
const STAND_IN_HEAD: &[u8] = b"HEAD / HTTP/1.1\r\n\r\n";

impl RequestLine {
    /// `method SP request-target SP HTTP-version`, one space each.
    fn parse(line: &[u8], at: usize) -> Result<Self, Fault> {
        const BAD: Fault = Fault::Malformed("Malformed request line");
        let method = line.iter().position(|byte| !super::is_token(*byte)).ok_or(BAD)?;
        if line[method] != b' ' || method == 0 {
            return Err(BAD);
        }
        if method > METHOD {
            return Err(Fault::Malformed("Method too long"));
        }
        let rest = &line[method + 1..];
        let target = memchr::memchr(b' ', rest).ok_or(BAD)?;
        let is_1_1 = match &rest[target + 1..] {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" => false,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
                return Err(Fault::Version);
            }
            _ => return Err(BAD),
        };
        if target == 0 {
            return Err(BAD);
        }
        let begin = at + method + 1;
        Ok(Self { method: at..at + method, target: begin..begin + target, is_1_1 })
    }
}

/// Exactly one in HTTP/1.1, at most one in 1.0 (RFC 9112 section 3.2).
fn check_host(host: Option<&[u8]>, is_1_1: bool) -> Result<(), Fault> {
    match host {
        None if is_1_1 => Err(Fault::Malformed("Host missing")),
        Some(host) if !is_host(host) => Err(Fault::Malformed("Malformed Host")),
        _ => Ok(()),
    }
}

/// Origin form; absolute form that agrees with Host; `*` for OPTIONS. CONNECT asks for a tunnel, and its form is no other
/// method's (RFC 9112 section 3.2).
fn check_target(method: &[u8], target: &[u8], host: Option<&[u8]>) -> Result<(), Fault> {
    if method == b"CONNECT" {
        return Err(Fault::Malformed("CONNECT is not served here"));
    }
    match target {
        [b'/', ..] => check_path_and_query(target),
        b"*" if method == b"OPTIONS" => Ok(()),
        _ => {
            let (authority, path) = split_absolute(target)?;
            if !is_host(authority) {
                return Err(Fault::Malformed("Malformed request target"));
            }
            if host.is_some_and(|host| !host.eq_ignore_ascii_case(authority)) {
                return Err(Fault::Malformed("Host differs from the request target"));
            }
            check_path_and_query(path)?;
            // Rare, and read by hyper in a way of its own: what that refuses must be refused here.
            Uri::try_from(target).map(drop).map_err(|_| Fault::Malformed("Malformed request target"))
        }
    }
}

/// Authority and the rest of `http://authority/path`.
fn split_absolute(target: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let is = |scheme: &str| target.get(..scheme.len()).is_some_and(|t| t.eq_ignore_ascii_case(scheme.as_bytes()));
    let scheme = ["http://", "https://"].into_iter().find(|scheme| is(scheme));
    let rest = &target[scheme.ok_or(Fault::Malformed("Malformed request target"))?.len()..];
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    Ok(rest.split_at(end))
}

/// Whether there is nothing in a path and its query that must not stand there raw.
pub fn check_path_and_query(target: &[u8]) -> Result<(), Fault> {
    let path = target.iter().position(|byte| !PATH[*byte as usize]).unwrap_or(target.len());
    let bad = match target[path..].split_first() {
        None => return Ok(()),
        Some((b'?', query)) => query.iter().find(|byte| !PATH[**byte as usize] && **byte != b'?'),
        Some((other, _)) => Some(other),
    };
    match bad {
        None => Ok(()),
        Some(b'#') => Err(Fault::Malformed("Fragment in request target")),
        Some(_) => Err(Fault::Malformed("Forbidden octet in request target")),
    }
}

/// Method and target of whatever this is, for the log.
fn shown(octets: &[u8]) -> (Option<Method>, &[u8]) {
    let start = octets.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(octets.len());
    let line = octets[start..].split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let method = words.next().filter(|method| method.len() <= METHOD).and_then(|m| Method::from_bytes(m).ok());
    match method {
        Some(method) => (Some(method), words.next().unwrap_or_default()),
        None => (None, b""),
    }
}
