//! Interim responses (RFC 9110 section 15.2): found among what an upstream sends, and said to a client before the final answer.
//!
//! hyper skips them on one side and has no words for them on the other; its call-back costs every request four allocations, for
//! what one in a million has; over HTTP/2 it has none. So the octets are looked at where the socket hands them on ([`super::gather`],
//! [`super::sifted`]): one comparison for the usual answer. How many may come the gate there has judged. A 100 is not passed on, because the gateway has answered the
//! client's expectation itself, and a 101 is final.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::policy::headers::for_interim;
use crate::wire::answers::Field;

/// Heads that wait for a client to take the ones before; what comes on top of them is not passed on.
const QUEUE: usize = 16;
/// The largest interim head that is passed on.
const MAX_HEAD: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;

/// Of what is read nothing is looked at: a final answer, or none is waited for.
const FINAL: u8 = 0;
/// The next octet is the first of a head.
const HEAD: u8 = 1;
/// Of a head that may be an interim one more must come.
const WITHIN: u8 = 2;

/// What every interim response begins with, and where a final one differs.
const START: &[u8] = b"HTTP/1.1 1";

/// The interim responses of one connection to an upstream, shared by its socket and by whoever waits for an answer on it.
#[derive(Debug, Clone, Default)]
pub(super) struct Interims(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// [`FINAL`], [`HEAD`] or [`WITHIN`].
    place: AtomicU8,
    /// Something waits.
    any: AtomicBool,
    /// Since the last request went out there was more than the usual to do.
    used: AtomicBool,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    /// The beginning of a head of which more must come.
    partial: Vec<u8>,
    /// Whole heads as they go to the client.
    heads: Vec<Vec<u8>>,
    /// The last one who waited, perhaps long gone: asking is cheaper than taking it back each time.
    waiting: Option<Waker>,
}

impl Interims {
    /// A request is about to go out. What was found before is not for its client.
    pub(super) fn begin(&self) {
        if self.0.used.load(Ordering::Relaxed) {
            *self.lock() = Found::default();
            self.0.any.store(false, Ordering::Release);
            self.0.used.store(false, Ordering::Relaxed);
        }
        self.0.place.store(HEAD, Ordering::Relaxed);
    }

    /// The next one that has come.
    pub(super) fn take(&self) -> Option<Vec<u8>> {
        if !self.0.any.load(Ordering::Acquire) {
            return None;
        }
        self.pop(&mut self.lock())
    }

    fn pop(&self, found: &mut Found) -> Option<Vec<u8>> {
        let head = (!found.heads.is_empty()).then(|| found.heads.remove(0));
        self.0.any.store(!found.heads.is_empty(), Ordering::Release);
        head
    }

    /// The next one that comes.
    pub(super) async fn next(&self) -> Vec<u8> {
        poll_fn(|cx| {
            let mut found = self.lock();
            if let Some(head) = self.pop(&mut found) {
                return Poll::Ready(head);
            }
            match &mut found.waiting {
                // A connection of an upstream often serves the same client again.
                Some(waiting) if waiting.will_wake(cx.waker()) => {}
                waiting => *waiting = Some(cx.waker().clone()),
            }
            Poll::Pending
        })
        .await
    }

    /// Octets that were read, before anybody acts on them.
    pub(super) fn hear(&self, octets: &[u8]) {
        match self.0.place.load(Ordering::Relaxed) {
            FINAL => {}
            HEAD if octets.len() >= START.len() && !octets.starts_with(START) => {
                self.0.place.store(FINAL, Ordering::Relaxed);
            }
            _ => self.hear_head(octets),
        }
    }

    /// Takes whole interim heads off the beginning, as far as they go.
    #[cold]
    fn hear_head(&self, octets: &[u8]) {
        self.0.used.store(true, Ordering::Relaxed);
        let mut found = self.lock();
        found.partial.extend_from_slice(octets);
        let taken = std::mem::take(&mut found.partial);
        let mut all = &*taken;
        let place = loop {
            if all.is_empty() {
                break HEAD;
            }
            let compared = all.len().min(START.len());
            if all[..compared] != START[..compared] {
                break FINAL;
            }
            match interim_head(all) {
                Ok(Some(Whole { length, passed })) => {
                    all = &all[length..];
                    if let Some(head) = passed.filter(|_| found.heads.len() < QUEUE) {
                        found.heads.push(head);
                    }
                }
                Ok(None) if all.len() <= MAX_HEAD => {
                    found.partial = all.to_vec();
                    break WITHIN;
                }
                Ok(None) | Err(Final) => break FINAL,
            }
        };
        self.0.place.store(place, Ordering::Relaxed);
        if !found.heads.is_empty() {
            self.announce(&mut found);
        }
    }

    /// One of an exchange over HTTP/2, as its fields were decoded.
    pub(super) fn tell(&self, status: u16, fields: &[Field]) {
        let status = StatusCode::from_u16(status).ok();
        let fields = fields.iter().map(|(name, value)| (&**name, &**value));
        let head = status.and_then(|status| passed_on(status, fields)).filter(|head| head.len() <= MAX_HEAD);
        let mut found = self.lock();
        if let Some(head) = head.filter(|_| found.heads.len() < QUEUE) {
            found.heads.push(head);
            self.announce(&mut found);
        }
    }

    /// Something waits.
    fn announce(&self, found: &mut Found) {
        self.0.any.store(true, Ordering::Release);
        if let Some(waiting) = found.waiting.take() {
            waiting.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.0.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A whole interim head at the beginning of what was read.
struct Whole {
    length: usize,
    /// What of it goes to the client; nothing of a 100.
    passed: Option<Vec<u8>>,
}

/// It is no interim head: a 101, or nothing that hyper will take.
struct Final;

/// The interim head at the beginning; `None`: more must come.
fn interim_head(octets: &[u8]) -> Result<Option<Whole>, Final> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(length) = head.parse(octets).map_err(|_| Final)? else { return Ok(None) };
    let status = head.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Final)?;
    match status {
        StatusCode::SWITCHING_PROTOCOLS => Err(Final),
        StatusCode::CONTINUE => Ok(Some(Whole { length, passed: None })),
        _ => {
            let fields = head.headers.iter().map(|field| (field.name.as_bytes(), field.value));
            Ok(Some(Whole { length, passed: Some(passed_on(status, fields).ok_or(Final)?) }))
        }
    }
}

/// What goes to the client; `None`: no field can be like that.
fn passed_on<'a>(status: StatusCode, fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Option<Vec<u8>> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
    }
    for_interim(&mut headers);
    Some(written(status, &headers))
}

fn written(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or("")).into_bytes();
    for (name, value) in headers {
        head.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    head.extend(b"\r\n");
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
    const FINAL_HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 103\r\n\r\n";

    /// What is found when these pieces come, each in a read of its own.
    fn found(pieces: &[&[u8]]) -> Vec<String> {
        let interims = Interims::default();
        interims.begin();
        pieces.iter().for_each(|piece| interims.hear(piece));
        std::iter::from_fn(|| interims.take()).map(|head| String::from_utf8(head).unwrap()).collect()
    }

    #[test]
    fn interim_heads_are_found_however_they_come_in_pieces() {
        let all = format!(
            "{HINTS}HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n{FINAL_HEAD}HTTP/1.1 103 X\r\n\r\n"
        );
        let expected =
            ["HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n", "HTTP/1.1 102 Processing\r\n\r\n"];
        for size in 1..=all.len() {
            let pieces: Vec<&[u8]> = all.as_bytes().chunks(size).collect();
            assert_eq!(found(&pieces), expected, "{size}");
        }
    }

    #[test]
    fn an_interim_head_in_front_of_a_large_answer_is_found() {
        let body = "x".repeat(200_000);
        let all = format!("{HINTS}HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        assert_eq!(found(&[all.as_bytes()]).len(), 1);
    }

    #[test]
    fn what_is_no_interim_head_is_none() {
        for octets in [
            FINAL_HEAD,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n",
            "HTTP/1.0 103 Early Hints\r\n\r\n",
            "HTTP/1.1 1x3 Early Hints\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nBad Field: x\r\n\r\n",
            "HTTP/1.1 103 Early",
            "",
        ] {
            assert!(found(&[octets.as_bytes()]).is_empty(), "{octets}");
        }
        let endless = format!("HTTP/1.1 103 Early Hints\r\nX: {}", "x".repeat(20_000));
        assert!(found(&[endless.as_bytes(), b"\r\n\r\n"]).is_empty());
    }

    #[test]
    fn an_upstream_cannot_speak_for_the_gateway_nor_frame_a_body_in_an_interim_head() {
        let head = "HTTP/1.1 103 Early Hints\r\nX-SeeMe-Key-Id: k\r\nX_RateLimit_Limit: 1\r\nX-Request-Id: r\r\n\
                    Connection: x-named\r\nX-Named: 1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\nLink: a\r\n\r\n";
        assert_eq!(found(&[head.as_bytes()]), ["HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n"]);
    }

    #[test]
    fn what_one_client_was_not_told_the_next_one_is_not_told_either() {
        let interims = Interims::default();
        interims.begin();
        interims.hear(HINTS.repeat(QUEUE + 5).as_bytes());
        assert_eq!(std::iter::from_fn(|| interims.take()).count(), QUEUE);
        interims.hear(HINTS.as_bytes());
        interims.begin();
        assert!(interims.take().is_none());
        interims.hear(b"HTTP/1.1 103 Ear");
        interims.begin();
        interims.hear(HINTS.as_bytes());
        assert_eq!(std::iter::from_fn(|| interims.take()).count(), 1);
    }
}
