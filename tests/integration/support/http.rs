//! A small raw HTTP/1.1 client: it sends exactly what it is told and shows exactly what came.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Longer than anything a test waits for: reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to a server.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    /// Received and not yet taken.
    ahead: Vec<u8>,
}

/// The head of a response.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) version: String,
    pub(crate) status: u16,
    pub(crate) reason: String,
    /// Names as they came, in their order.
    pub(crate) headers: Vec<(String, String)>,
}

/// A response with its body.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// Statuses of the interim responses that came before it.
    pub(crate) interim: Vec<u16>,
    /// Whether the body reached the end that its framing announced.
    pub(crate) complete: bool,
}

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    ToClose,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        Self::try_open(address).unwrap()
    }

    pub(crate) fn try_open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, ahead: Vec::new() })
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    pub(crate) fn set_patience(&self, patience: Duration) {
        self.stream.set_read_timeout(Some(patience)).unwrap();
    }

    /// Room for few octets that were sent and are not read yet.
    pub(crate) fn receive_little(&self) {
        socket2::SockRef::from(&self.stream).set_recv_buffer_size(4096).unwrap();
    }

    /// Ends its half of the connection, and still listens.
    pub(crate) fn end_sending(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Closes with a reset, as a client that was killed does.
    pub(crate) fn abort(self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// The next response, whole. `method` is that of the request: HEAD has no body.
    pub(crate) fn response(&mut self, method: &str) -> Response {
        self.try_response(method).unwrap()
    }

    /// Fails when the connection ends, or nothing comes, before the end of a head.
    pub(crate) fn try_response(&mut self, method: &str) -> io::Result<Response> {
        let mut interim = Vec::new();
        let head = loop {
            let head = self.try_head()?;
            if head.status >= 200 {
                break head;
            }
            interim.push(head.status);
        };
        let mut response = Response { head, body: Vec::new(), trailers: Vec::new(), interim, complete: true };
        match response.head.framing(method) {
            Framing::Length(length) => {
                while response.body.len() < length {
                    let wanted = length - response.body.len();
                    if self.ahead.is_empty() && !self.fill().unwrap_or(false) {
                        response.complete = false;
                        break;
                    }
                    let taken = wanted.min(self.ahead.len());
                    response.body.extend(self.ahead.drain(..taken));
                }
            }
            Framing::ToClose => {
                while self.fill().unwrap_or(false) {}
                response.body = std::mem::take(&mut self.ahead);
            }
            Framing::Chunked => {
                response.complete = false;
                while let Some(chunk) = self.chunk() {
                    if chunk.is_empty() {
                        if let Some(trailers) = self.trailers() {
                            (response.trailers, response.complete) = (trailers, true);
                        }
                        break;
                    }
                    response.body.extend(chunk);
                }
            }
        }
        Ok(response)
    }

    /// The next head, interim ones included.
    pub(crate) fn head(&mut self) -> Head {
        self.try_head().unwrap()
    }

    pub(crate) fn try_head(&mut self) -> io::Result<Head> {
        let block = loop {
            if let Some(end) = find(&self.ahead, b"\r\n\r\n") {
                break self.ahead.drain(..end + 4).collect::<Vec<u8>>();
            }
            if !self.fill()? {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before the end of a head"));
            }
        };
        Ok(Head::parse(&String::from_utf8_lossy(&block)))
    }

    /// The next chunk of a chunked body; an empty one is the last. None: it broke off.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.line()?;
        let size = usize::from_str_radix(line.split(';').next().unwrap().trim(), 16).expect("a chunk size");
        if size == 0 {
            return Some(Vec::new());
        }
        let chunk = self.take(size)?;
        assert_eq!(self.take(2)?, b"\r\n", "the end of a chunk");
        Some(chunk)
    }

    fn trailers(&mut self) -> Option<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Some(fields);
            }
            fields.push(field(&line));
        }
    }

    /// Exactly so many bytes, or none when the connection ends before.
    pub(crate) fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.ahead.len() < count {
            if !self.fill().ok()? {
                return None;
            }
        }
        Some(self.ahead.drain(..count).collect())
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.ahead, b"\r\n") {
                let line: Vec<u8> = self.ahead.drain(..end + 2).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.fill().ok()? {
                return None;
            }
        }
    }

    /// Waits for the server to close; false when it sends something instead or does nothing for long.
    pub(crate) fn is_closed_by_server(&mut self) -> bool {
        self.ahead.is_empty() && matches!(self.fill(), Ok(false) | Err(_)) && !self.is_silent()
    }

    /// Whether the last read ended for want of bytes and not because the connection did.
    fn is_silent(&mut self) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut byte = [0];
        let silent = matches!(
            self.stream.read(&mut byte),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
        );
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        silent
    }

    /// Whether the connection ends with a reset, whatever comes before.
    pub(crate) fn ends_with_a_reset(&mut self) -> bool {
        loop {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Reads once; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 64 * 1024];
        let read = self.stream.read(&mut buffer)?;
        self.ahead.extend_from_slice(&buffer[..read]);
        Ok(read > 0)
    }
}

impl Head {
    fn parse(block: &str) -> Self {
        let mut lines = block.trim_end_matches("\r\n").split("\r\n");
        let mut start = lines.next().unwrap().splitn(3, ' ');
        Self {
            version: start.next().unwrap().to_owned(),
            status: start
                .next()
                .and_then(|status| status.parse().ok())
                .unwrap_or_else(|| panic!("no status line: {block}")),
            reason: start.next().unwrap_or_default().to_owned(),
            headers: lines.map(field).collect(),
        }
    }

    /// All values of a field.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
    }

    fn framing(&self, method: &str) -> Framing {
        if method == "HEAD" || matches!(self.status, 204 | 304) {
            Framing::Length(0)
        } else if self.all("transfer-encoding").iter().any(|coding| coding.eq_ignore_ascii_case("chunked")) {
            Framing::Chunked
        } else {
            let length = self.all("content-length").first().map(|text| text.parse().expect("a length"));
            length.map_or(Framing::ToClose, Framing::Length)
        }
    }
}

impl Response {
    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }

    /// The value of a field that must not come more than once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let values = self.head.all(name);
        assert!(values.len() <= 1, "{name} came {} times: {values:?}", values.len());
        values.first().copied()
    }

    /// The value of a field that must be there.
    pub(crate) fn expect_header(&self, name: &str) -> &str {
        self.header(name).unwrap_or_else(|| panic!("no {name} in {self:#?}"))
    }

    pub(crate) fn number(&self, name: &str) -> u64 {
        self.expect_header(name).parse().unwrap_or_else(|_| panic!("{name} is no number in {self:#?}"))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The member `code` of a problem document.
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_else(|| panic!("no code in {}", self.text())).to_owned()
    }

    #[track_caller]
    pub(crate) fn expect_status(self, status: u16) -> Self {
        assert_eq!(self.status(), status, "{} {}: {}", self.status(), self.head.reason, self.text());
        self
    }

    /// A refusal of the gateway, with this status and code.
    #[track_caller]
    pub(crate) fn expect_refusal(self, status: u16, code: &str) -> Self {
        let found = self.expect_status(status);
        assert_eq!(found.code(), code, "{}", found.text());
        found
    }

    /// What `/echo` says it received of a field: all values.
    pub(crate) fn echoed(&self, name: &str) -> Vec<String> {
        let values = &self.json()["headers"][name];
        values
            .as_array()
            .map_or_else(Vec::new, |values| values.iter().map(|value| value.as_str().unwrap().to_owned()).collect())
    }

    /// The one value of a field that `/echo` received.
    #[track_caller]
    pub(crate) fn echoed_once(&self, name: &str) -> String {
        let values = self.echoed(name);
        assert_eq!(values.len(), 1, "{name}: {values:?} of {}", self.text());
        values[0].clone()
    }
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no field: {line:?}"));
    (name.to_owned(), value.trim().to_owned())
}

pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
