//! A small raw HTTP/2 client: it sends exactly the frames it is told, malformed ones too, and shows what came.
//!
//! Fields go out as literals without Huffman's code or a table (RFC 7541 section 6.2.2), so that any octet can be sent.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use seeme_gateway::wire::frames::PREFACE;
use seeme_gateway::wire::hpack::Decoder;
use serde_json::Value;

use super::key::Key;
use super::transport::{TlsClient, Transport};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const ACK: u8 = 1;

/// `ENHANCE_YOUR_CALM`
pub(crate) const CALM: u32 = 0xb;

/// A connection that speaks HTTP/2.
#[derive(Debug)]
pub(crate) struct Http2 {
    transport: Transport,
    ahead: Vec<u8>,
    decoder: Decoder,
    next_stream: u32,
    /// Whether it answers a PING.
    pub(crate) is_attentive: bool,
}

/// A frame as it came.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With END_STREAM.
    Stream,
    /// With RST_STREAM of this code; what was answered before counts.
    Reset(u32),
    /// With its connection, which said why.
    GoAway(u32),
    /// With its connection, without a word.
    Closed,
}

/// What came on one stream.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    pub(crate) end: End,
}

/// One field as a literal; lengths in as few octets as they need.
pub(crate) fn literal(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut octets = vec![0];
    for text in [name.as_ref(), value.as_ref()] {
        match text.len() {
            short @ 0..=126 => octets.push(short as u8),
            long => {
                octets.push(127);
                let mut rest = long - 127;
                while rest > 127 {
                    octets.push((rest & 127) as u8 | 128);
                    rest >>= 7;
                }
                octets.push(rest as u8);
            }
        }
        octets.extend(text);
    }
    octets
}

pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut octets = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    octets.extend([kind, flags]);
    octets.extend(stream.to_be_bytes());
    octets.extend(payload);
    octets
}

/// What a request without a body begins with.
pub(crate) fn get(path: &str) -> Vec<(&str, &str)> {
    request("GET", path)
}

pub(crate) fn request<'a>(method: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![(":method", method), (":scheme", "http"), (":authority", "gateway.example"), (":path", path)]
}

impl Http2 {
    /// By prior knowledge.
    pub(crate) fn open(address: SocketAddr) -> Self {
        Self::on(Transport::plain(address))
    }

    /// By ALPN.
    pub(crate) fn open_tls(address: SocketAddr, client: &TlsClient) -> Self {
        let transport = client.connect(address, &["h2"]).unwrap();
        assert_eq!(transport.alpn().as_deref(), Some(&b"h2"[..]));
        Self::on(transport)
    }

    /// Sends the preface and settings: no table, no push, room for whatever comes.
    pub(crate) fn on(transport: Transport) -> Self {
        let mut this =
            Self { transport, ahead: Vec::new(), decoder: Decoder::new(0), next_stream: 1, is_attentive: true };
        let settings = [[0, 1, 0, 0, 0, 0], [0, 2, 0, 0, 0, 0], [0, 4, 0x7f, 0xff, 0xff, 0xff]].concat();
        this.send([PREFACE.to_vec(), frame(SETTINGS, 0, 0, &settings)].concat());
        this.frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]);
        this
    }

    /// A gateway that has cut the connection is no failure of the client.
    pub(crate) fn send(&mut self, octets: impl AsRef<[u8]>) {
        let _ = self.transport.write_all(octets.as_ref());
    }

    /// Whether it could be sent.
    pub(crate) fn try_send(&mut self, octets: impl AsRef<[u8]>) -> io::Result<()> {
        self.transport.write_all(octets.as_ref())
    }

    pub(crate) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.send(frame(kind, flags, stream, payload));
    }

    /// The stream that comes next, for whoever writes its frames himself.
    pub(crate) fn next_stream(&mut self) -> u32 {
        self.next_stream += 2;
        self.next_stream - 2
    }

    /// Opens a stream with these fields, as they are.
    pub(crate) fn start(&mut self, fields: &[(&str, &str)], ends: bool) -> u32 {
        self.start_block(&block(fields), ends)
    }

    pub(crate) fn start_block(&mut self, block: &[u8], ends: bool) -> u32 {
        let stream = self.next_stream();
        // In frames as large as every peer takes.
        let (first, rest) = block.split_at(block.len().min(16_384));
        let flags = if ends { END_STREAM } else { 0 } | if rest.is_empty() { END_HEADERS } else { 0 };
        self.frame(HEADERS, flags, stream, first);
        let mut pieces = rest.chunks(16_384).peekable();
        while let Some(piece) = pieces.next() {
            self.frame(CONTINUATION, if pieces.peek().is_none() { END_HEADERS } else { 0 }, stream, piece);
        }
        stream
    }

    pub(crate) fn data(&mut self, stream: u32, octets: &[u8], ends: bool) {
        self.frame(DATA, if ends { END_STREAM } else { 0 }, stream, octets);
    }

    /// A whole exchange without a body.
    pub(crate) fn exchange(&mut self, fields: &[(&str, &str)]) -> Answer {
        let stream = self.start(fields, true);
        self.answer(stream)
    }

    /// The same, with a key.
    pub(crate) fn get(&mut self, path: &str, key: &Key) -> Answer {
        let stream = self.start_get(path, key);
        self.answer(stream)
    }

    pub(crate) fn start_get(&mut self, path: &str, key: &Key) -> u32 {
        let bearer = format!("Bearer {}", key.secret);
        let mut fields = get(path);
        fields.push(("authorization", &bearer));
        self.start(&fields, true)
    }

    /// The next frame; none when the connection has ended. Settings and pings are answered on the way.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        while self.ahead.len() < 9 {
            self.fill()?;
        }
        let length = u32::from_be_bytes([0, self.ahead[0], self.ahead[1], self.ahead[2]]) as usize;
        while self.ahead.len() < 9 + length {
            self.fill()?;
        }
        let octets: Vec<u8> = self.ahead.drain(..9 + length).collect();
        let stream = u32::from_be_bytes([octets[5], octets[6], octets[7], octets[8]]) & 0x7fff_ffff;
        let found = Frame { kind: octets[3], flags: octets[4], stream, payload: octets[9..].to_vec() };
        match found.kind {
            SETTINGS if found.flags & ACK == 0 => self.frame(SETTINGS, ACK, 0, &[]),
            PING if found.flags & ACK == 0 && self.is_attentive => self.frame(PING, ACK, 0, &found.payload),
            _ => {}
        }
        Some(found)
    }

    fn fill(&mut self) -> Option<()> {
        let mut buffer = [0; 64 * 1024];
        let read = match self.transport.read(&mut buffer) {
            Ok(read) => read,
            Err(error) => {
                let silent = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                assert!(!silent, "nothing came, and the connection stayed open");
                0
            }
        };
        self.ahead.extend_from_slice(&buffer[..read]);
        (read > 0).then_some(())
    }

    /// Fields of a header block.
    pub(crate) fn fields(&mut self, block: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        let text = |octets: &[u8]| octets.iter().map(|octet| char::from(*octet)).collect::<String>();
        self.decoder.decode(block, |name, value| fields.push((text(name), text(value)))).expect("a field block");
        fields
    }

    /// Everything that comes on a stream, to its end; what comes on others is dropped.
    pub(crate) fn answer(&mut self, stream: u32) -> Answer {
        let mut answer = Answer { fields: Vec::new(), body: Vec::new(), trailers: Vec::new(), end: End::Closed };
        let mut last_word = End::Closed;
        while let Some(frame) = self.next() {
            match frame.kind {
                HEADERS => {
                    assert!(frame.flags & END_HEADERS != 0, "the client reads no CONTINUATION");
                    let fields = self.fields(&frame.payload);
                    if frame.stream != stream {
                        continue;
                    }
                    let interim = fields[0].1.starts_with('1') && fields[0].0 == ":status";
                    if !interim {
                        *(if answer.fields.is_empty() { &mut answer.fields } else { &mut answer.trailers }) = fields;
                    }
                }
                DATA if frame.stream == stream => answer.body.extend(&frame.payload),
                RST_STREAM if frame.stream == stream => {
                    answer.end = End::Reset(code(&frame.payload));
                    return answer;
                }
                GOAWAY => last_word = End::GoAway(code(&frame.payload[4..])),
                _ => {}
            }
            if frame.stream == stream && matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                answer.end = End::Stream;
                return answer;
            }
        }
        answer.end = last_word;
        answer
    }

    /// Reads to the end of the connection; tells the code of its last GOAWAY.
    pub(crate) fn last_word(&mut self) -> Option<u32> {
        let mut word = None;
        while let Some(frame) = self.next() {
            if frame.kind == GOAWAY {
                word = Some(code(&frame.payload[4..]));
            }
        }
        word
    }
}

/// Of RST_STREAM, or of GOAWAY behind its stream.
fn code(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().unwrap())
}

impl Answer {
    /// 0 when none came.
    pub(crate) fn status(&self) -> u16 {
        self.header(":status").map_or(0, |status| status.parse().unwrap())
    }

    /// The value of a field that must not come more than once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.fields.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let first = values.next();
        assert!(values.next().is_none(), "{name} came more than once: {:?}", self.fields);
        first
    }

    pub(crate) fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status(), status, "{self:?}");
        assert_eq!(self.end, End::Stream, "{self:?}");
        self
    }

    /// A problem document with this code.
    #[track_caller]
    pub(crate) fn expect_refusal(self, status: u16, code: &str) -> Self {
        assert_eq!(self.status(), status, "{self:?}");
        assert_eq!(self.json()["code"], code, "{self:?}");
        self
    }

    /// What `/echo` says it received of a field: all values.
    pub(crate) fn echoed(&self, name: &str) -> Vec<String> {
        let json = self.json();
        let values = json["headers"][name].as_array().cloned().unwrap_or_default();
        values.iter().map(|value| value.as_str().unwrap().to_owned()).collect()
    }
}
