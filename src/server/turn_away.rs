//! What a connection hears for which there is no place: one 503 in HTTP/1.1, then a slow close.
//!
//! Only a few are told at once and none of them for long, so that a flood costs little; all others are closed without a word.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::places::{Counts, take_one};
use crate::telemetry::trace::Id;

/// So many are told at once.
const AT_ONCE: usize = 16;
/// How long one of them may take to ask, and to take its answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells the client `why`, if it asks in HTTP/1; closes the connection in any case.
pub(super) fn turn_away(counts: &Arc<Counts>, stream: TcpStream, why: &'static str, id: Id) {
    if !take_one(&counts.leaving, AT_ONCE) {
        return;
    }
    let leaving = Leaving(counts.clone());
    tokio::spawn(async move {
        let _leaving = leaving;
        let _ = timeout(PATIENCE, tell(stream, why, id)).await;
    });
}

/// Counted as long as it is there.
struct Leaving(Arc<Counts>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.leaving.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn tell(mut stream: TcpStream, why: &str, id: Id) -> io::Result<()> {
    let mut first = [0; 4];
    let length = stream.peek(&mut first).await?;
    if !speaks_http_1(&first[..length]) {
        return Ok(());
    }
    stream.write_all(answer(why, id).as_bytes()).await?;
    stream.shutdown().await?;
    // Closed with octets unread, the connection would be reset, and the answer with it.
    let mut unread = [0; 4096];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

/// A method, or a PROXY header in front of one; neither the greeting of HTTP/2 nor of TLS.
fn speaks_http_1(first: &[u8]) -> bool {
    first != b"PRI " && first.first().is_some_and(|byte| byte.is_ascii_uppercase() || *byte == b'\r')
}

fn answer(why: &str, id: Id) -> String {
    let document = json!({
        "type": "urn:seeme:gateway:overloaded",
        "title": "Overloaded",
        "status": 503,
        "detail": why,
        "code": "overloaded",
        "message": "Too many connections",
        "request_id": id.as_str(),
    });
    let document = document.to_string();
    format!(
        "HTTP/1.1 503 Too many connections\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         cache-control: no-store\r\nretry-after: 1\r\nx-request-id: {}\r\nconnection: close\r\n\r\n{document}",
        document.len(),
        id.as_str(),
    )
}

#[cfg(test)]
mod tests {
    use super::speaks_http_1;

    #[test]
    fn only_who_speaks_http_1_is_told() {
        for (first, told) in [
            (&b"GET "[..], true),
            (b"P", true),
            (b"PROX", true),
            (b"\r\n\r\n", true),
            (b"PRI ", false),
            (b"\x16\x03\x01\x02", false),
            (b"", false),
        ] {
            assert_eq!(speaks_http_1(first), told, "{first:?}");
        }
    }
}
