//! WebSockets as far as a gateway sees them: an agreement, and octets both ways.

use super::backend::{Scripted, Wire};
use super::http::Connection;
use super::key::Key;
use super::request::Request;
use super::stand::Gateway;

pub(crate) const WS_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The proof is that of the key above.
pub(crate) const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Asks for one.
pub(crate) fn websocket(request: Request) -> Request {
    request
        .header("Connection", "keep-alive, Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Key", WS_KEY)
        .header("Sec-WebSocket-Version", "13")
}

/// A backend that agrees to every WebSocket and then does what it is told.
pub(crate) fn agreeing(then: impl Fn(&mut Wire) + Send + Sync + 'static) -> Scripted {
    Scripted::start(move |wire| {
        if wire.request().is_some() {
            wire.send(AGREED);
            then(wire);
        }
    })
}

/// Says back what it hears, octet by octet of meaning: no frames.
pub(crate) fn parrot(wire: &mut Wire) {
    while let Some(octet) = wire.take(1) {
        wire.send(octet);
    }
}

/// A tunnel through this gateway.
#[track_caller]
pub(crate) fn open(gateway: &Gateway, key: &Key) -> Connection {
    let mut connection = websocket(gateway.get("/echo/x").bearer(key)).start();
    let head = connection.head();
    assert_eq!(head.status, 101, "{head:?}");
    connection
}

#[track_caller]
pub(crate) fn is_alive(connection: &mut Connection) {
    connection.send("?");
    assert_eq!(connection.take(1).as_deref(), Some(&b"?"[..]));
}
