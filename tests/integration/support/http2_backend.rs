//! A backend that speaks HTTP/2 frame by frame, as a script says.

use std::collections::HashMap;

use seeme_gateway::wire::frames::PREFACE;
use seeme_gateway::wire::hpack::Decoder;

use super::backend::Wire;
use super::http2::{ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, HEADERS, PING, SETTINGS, block, frame};

/// The server's end of one connection of HTTP/2.
#[derive(Debug)]
pub(crate) struct Http2Wire<'w> {
    wire: &'w mut Wire,
    decoder: Decoder,
}

/// What came on one stream, as far as it has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exchange {
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
}

impl<'w> Http2Wire<'w> {
    /// Takes the preface and answers it with these settings.
    pub(crate) fn accept(wire: &'w mut Wire, settings: &[(u16, u32)]) -> Option<Self> {
        assert_eq!(wire.take(PREFACE.len())?, PREFACE);
        let payload: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        wire.send(frame(SETTINGS, 0, 0, &payload));
        Some(Self { wire, decoder: Decoder::new(4096) })
    }

    pub(crate) fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.wire.send(frame(kind, flags, stream, payload));
    }

    /// Any octets, in one piece.
    pub(crate) fn send_octets(&mut self, octets: &[u8]) {
        self.wire.send(octets);
    }

    /// Whether they could be sent.
    pub(crate) fn try_send_octets(&mut self, octets: &[u8]) -> bool {
        self.wire.send(octets);
        !self.wire.is_closed()
    }

    /// The next frame; settings and pings are answered on the way.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let head = self.wire.take(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let found = Frame { kind: head[3], flags: head[4], stream, payload: self.wire.take(length)? };
        match found.kind {
            SETTINGS if found.flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[]),
            PING if found.flags & ACK == 0 => self.send(PING, ACK, 0, &found.payload),
            _ => {}
        }
        Some(found)
    }

    /// The fields of a HEADERS frame without padding, which the gateway does not use.
    pub(crate) fn fields(&mut self, frame: &Frame) -> Vec<(String, String)> {
        assert!(frame.flags & END_HEADERS != 0 && frame.kind != CONTINUATION, "one frame holds the head");
        let mut fields = Vec::new();
        let text = |octets: &[u8]| octets.iter().map(|octet| char::from(*octet)).collect::<String>();
        self.decoder.decode(&frame.payload, |name, value| fields.push((text(name), text(value)))).unwrap();
        fields
    }

    /// The next request that is complete, with its stream.
    pub(crate) fn request(&mut self) -> Option<(u32, Exchange)> {
        let mut open: HashMap<u32, Exchange> = HashMap::new();
        loop {
            let frame = self.next()?;
            match frame.kind {
                HEADERS => {
                    let fields = self.fields(&frame);
                    let exchange = open.entry(frame.stream).or_default();
                    *(if exchange.fields.is_empty() { &mut exchange.fields } else { &mut exchange.trailers }) = fields;
                }
                DATA => open.entry(frame.stream).or_default().body.extend(&frame.payload),
                _ => continue,
            }
            if frame.flags & END_STREAM != 0 {
                return open.remove(&frame.stream).map(|exchange| (frame.stream, exchange));
            }
        }
    }

    /// A whole answer; without a body when it is empty.
    pub(crate) fn answer(&mut self, stream: u32, fields: &[(&str, &str)], body: &[u8]) {
        let ends = if body.is_empty() { END_STREAM } else { 0 };
        self.send(HEADERS, END_HEADERS | ends, stream, &block(fields));
        if !body.is_empty() {
            self.send(DATA, END_STREAM, stream, body);
        }
    }
}

impl Exchange {
    /// The value of a field that came once.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.fields.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let first = values.next();
        assert!(values.next().is_none(), "{name} came more than once: {:?}", self.fields);
        first
    }
}
