//! The head of a request as it was written, kept until its answer has come.
//!
//! A retry needs the request once more, and hyper does not give back what it has begun to send. To copy each request before it
//! goes, field by field, costs a twentieth of all that the gateway does for it; to keep the octets costs next to nothing, and
//! reading them again happens only when a connection was lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::header::{HeaderName, HeaderValue};
use http::{Method, Request};

use super::body::RequestBody;

/// Room that is kept for the next head.
const USUAL: usize = 4 * 1024;

/// The octets of one connection, shared by its socket and by whoever sends on it.
#[derive(Debug, Clone, Default)]
pub(super) struct Sent(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// The next write begins a head that is to be kept.
    is_next: AtomicBool,
    head: Mutex<Vec<u8>>,
}

impl Sent {
    /// A request goes out next; `keep`: it may have to go out again.
    pub(super) fn begin(&self, keep: bool) {
        self.0.is_next.store(keep, Ordering::Relaxed);
        let mut head = self.lock();
        head.clear();
        // A connection that rests shall not hold room for the largest head that it ever saw.
        head.shrink_to(USUAL);
    }

    /// Octets are about to be written. The first slice of a request is its whole head.
    pub(super) fn note(&self, octets: &[u8]) {
        if self.0.is_next.load(Ordering::Relaxed) {
            self.0.is_next.store(false, Ordering::Relaxed);
            self.lock().extend_from_slice(octets);
        }
    }

    /// The request that went out last, with this body; `None` when its head was not kept, or never went.
    pub(super) fn again(&self, body: RequestBody) -> Option<Request<RequestBody>> {
        read(&self.lock(), body)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.head.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A head of our own writing, so nothing in it is judged.
fn read(octets: &[u8], body: RequestBody) -> Option<Request<RequestBody>> {
    let lines = octets.iter().filter(|octet| **octet == b'\n').count();
    let mut fields = vec![httparse::EMPTY_HEADER; lines];
    let mut head = httparse::Request::new(&mut fields);
    if !head.parse(octets).ok()?.is_complete() {
        return None;
    }
    let mut request = Request::new(body);
    *request.method_mut() = Method::from_bytes(head.method?.as_bytes()).ok()?;
    *request.uri_mut() = head.path?.parse().ok()?;
    for field in head.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        request.headers_mut().append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"GET /a?b=%20c HTTP/1.1\r\nhost: h\r\nx-a: 1\r\nx-a: \xe4\r\n\r\n";

    fn again(writes: &[&[u8]], keep: bool) -> Option<Request<RequestBody>> {
        let sent = Sent::default();
        sent.begin(keep);
        writes.iter().for_each(|write| sent.note(write));
        sent.again(RequestBody::Empty)
    }

    #[test]
    fn a_request_is_read_again_as_it_was_written() {
        let request = again(&[HEAD, b"GET /of-the-next-write HTTP/1.1\r\n\r\n"], true).unwrap();
        assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::GET, "/a?b=%20c"));
        let fields: Vec<_> = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(fields, [("host", &b"h"[..]), ("x-a", b"1"), ("x-a", b"\xe4")]);
    }

    #[test]
    fn what_was_not_kept_or_not_written_cannot_be_read() {
        assert!(again(&[HEAD], false).is_none());
        assert!(again(&[], true).is_none());
        assert!(again(&[&HEAD[..20]], true).is_none());
    }

    #[test]
    fn a_request_that_was_never_written_is_not_mistaken_for_the_one_before() {
        let sent = Sent::default();
        sent.begin(true);
        sent.note(HEAD);
        sent.begin(true);
        assert!(sent.again(RequestBody::Empty).is_none());
        sent.begin(false);
        assert!(sent.again(RequestBody::Empty).is_none(), "it was not to be kept");
    }
}
