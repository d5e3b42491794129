//! A request, described fluently; sent on a connection of its own or on one that is kept.

use std::net::SocketAddr;

use serde_json::Value;

use super::http::{Connection, Response};
use super::key::Key;

/// A request under construction.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    address: SocketAddr,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    None,
    Whole(Vec<u8>),
    Chunked(Vec<Vec<u8>>, Vec<(String, String)>),
}

impl Request {
    pub(crate) fn new(address: SocketAddr, method: &str, target: &str) -> Self {
        Self { address, method: method.to_owned(), target: target.to_owned(), headers: Vec::new(), body: Body::None }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn bearer(self, key: &Key) -> Self {
        self.token(&key.secret)
    }

    pub(crate) fn token(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = Body::Whole(body.as_ref().to_vec());
        self
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.header("Content-Type", "application/json").body(body.to_string())
    }

    pub(crate) fn chunked(mut self, chunks: &[&[u8]], trailers: &[(&str, &str)]) -> Self {
        let trailers = trailers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.body = Body::Chunked(chunks.iter().map(|chunk| chunk.to_vec()).collect(), trailers.collect());
        self
    }

    /// As it goes over the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.target).into_bytes();
        let mut field = |name: &str, value: &str| bytes.extend(format!("{name}: {value}\r\n").bytes());
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            field("Host", "gateway.example");
        }
        self.headers.iter().for_each(|(name, value)| field(name, value));
        match &self.body {
            Body::None => bytes.extend(b"\r\n"),
            Body::Whole(body) => {
                field("Content-Length", &body.len().to_string());
                bytes.extend(b"\r\n");
                bytes.extend(body);
            }
            Body::Chunked(chunks, trailers) => {
                field("Transfer-Encoding", "chunked");
                bytes.extend(b"\r\n");
                for chunk in chunks {
                    bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n");
                for (name, value) in trailers {
                    bytes.extend(format!("{name}: {value}\r\n").bytes());
                }
                bytes.extend(b"\r\n");
            }
        }
        bytes
    }

    /// Sends it on a connection of its own and reads the answer.
    #[track_caller]
    pub(crate) fn send(&self) -> Response {
        self.on(&mut Connection::open(self.address))
    }

    /// Sends it on a connection that stays open, and reads the answer.
    #[track_caller]
    pub(crate) fn on(&self, connection: &mut Connection) -> Response {
        connection.send(self.bytes());
        match connection.try_response(&self.method) {
            Ok(response) => response,
            Err(error) => panic!("no response to {} {}: {error}", self.method, self.target),
        }
    }

    /// Sends it on a connection of its own and returns that, the answer unread.
    pub(crate) fn start(&self) -> Connection {
        let mut connection = Connection::open(self.address);
        connection.send(self.bytes());
        connection
    }
}
