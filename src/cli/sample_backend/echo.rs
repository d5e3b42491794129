//! `/echo/*`: tells what arrived, and misbehaves as asked, for tests of a proxy.
//!
//! | query | does |
//! |---|---|
//! | `status=NNN` | answers with that status (200 to 599) |
//! | `bytes=N` | answers N bytes of a fixed pattern instead of the JSON |
//! | `reflect=1` | answers the request's body, while it arrives |
//! | `delay_ms=N` | waits before the head of the answer |
//! | `chunk_delay_ms=N` · `chunk_bytes=N` | waits between chunks of the body · their size, 64 KiB at most and when not told |
//! | `close=head\|body` | closes the connection before the head, or after half of the body |
//! | `trailer=1` | chunked, with the body's BLAKE3 in the trailer `X-Checksum`; sent, as HTTP asks, only after `TE: trailers` |
//! | `header=Name:value` | adds a header to the answer; may be repeated |
//!
//! The JSON: `{"method", "path", "query", "headers": {name: [values…]}, "body_bytes", "body_blake3", "trailers"}`, path
//! and query as received, each octet of a header value as the character of that number (ISO 8859-1), so that nothing is
//! lost. Other members of the query are left alone: a test may send any.

use std::io;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::body::{CHUNK, Drained, Frames, ResponseBody, pattern_at, pause, refusal};
use super::dispatch::Hangup;

/// Where the connection is closed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Close {
    Head,
    Body,
}

/// The query of an `/echo` request.
struct Knobs {
    status: StatusCode,
    bytes: Option<u64>,
    reflect: bool,
    delay: Duration,
    pace: Pace,
    headers: HeaderMap,
}

/// How the body of the answer is sent.
#[derive(Clone, Copy)]
struct Pace {
    chunk: usize,
    delay: Duration,
    close: Option<Close>,
    trailer: bool,
}

/// What the body of the answer is made of.
enum Source {
    Text(Bytes),
    Pattern(u64),
}

/// The decoded value of the first query member `name`.
pub(super) fn knob(query: Option<&str>, name: &str) -> Option<String> {
    knobs(query, name).next()
}

fn knobs<'q>(query: Option<&'q str>, name: &'q str) -> impl Iterator<Item = String> + 'q {
    let members = query.unwrap_or_default().split('&');
    members
        .filter_map(|member| member.split_once('='))
        .filter(move |(key, _)| *key == name)
        .map(|(_, value)| percent_decode_str(value).decode_utf8_lossy().into_owned())
}

impl Knobs {
    fn parse(query: Option<&str>) -> Result<Self, String> {
        let close = match knob(query, "close").as_deref() {
            None => None,
            Some("head") => Some(Close::Head),
            Some("body") => Some(Close::Body),
            Some(_) => return Err("close: head or body".to_owned()),
        };
        let status = number(query, "status")?.unwrap_or(200);
        let status = StatusCode::from_u16(status).ok();
        let chunk: usize = number(query, "chunk_bytes")?.unwrap_or(CHUNK);
        Ok(Self {
            status: status.filter(|status| (200..600).contains(&status.as_u16())).ok_or("status: 200 to 599")?,
            bytes: number(query, "bytes")?,
            reflect: knob(query, "reflect").as_deref() == Some("1"),
            delay: Duration::from_millis(number(query, "delay_ms")?.unwrap_or(0)),
            pace: Pace {
                chunk: chunk.clamp(1, CHUNK),
                delay: Duration::from_millis(number(query, "chunk_delay_ms")?.unwrap_or(0)),
                close,
                trailer: knob(query, "trailer").as_deref() == Some("1"),
            },
            headers: added_headers(query)?,
        })
    }
}

fn number<N: FromStr>(query: Option<&str>, name: &str) -> Result<Option<N>, String> {
    let text = knob(query, name);
    text.map(|text| text.parse().map_err(|_| format!("{name}: a whole number"))).transpose()
}

fn added_headers(query: Option<&str>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for text in knobs(query, "header") {
        let (name, value) = text.split_once(':').ok_or("header: Name:value")?;
        let name = HeaderName::from_str(name).map_err(|_| "header: not a header name")?;
        if name == header::CONTENT_LENGTH || name == header::TRANSFER_ENCODING {
            return Err("header: the framing is not for sale; use bytes and trailer".to_owned());
        }
        let value = HeaderValue::from_str(value.trim()).map_err(|_| "header: not a value")?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// Answers a request to `/echo`.
pub(super) async fn answer(head: &Parts, body: Incoming) -> Result<Response<ResponseBody>, Hangup> {
    let knobs = match Knobs::parse(head.uri.query()) {
        Ok(knobs) => knobs,
        Err(mistake) => {
            Drained::read(body).await?;
            return Ok(refusal(StatusCode::BAD_REQUEST, &mistake));
        }
    };
    let (content_type, body) = if knobs.reflect {
        tokio::time::sleep(knobs.delay).await;
        let sent = head.headers.get(header::CONTENT_TYPE).cloned();
        let length = body.size_hint().exact();
        let reflected = ResponseBody::stream(length, |frames| reflect(body, frames));
        (sent, reflected)
    } else {
        let body = Drained::read(body).await?;
        tokio::time::sleep(knobs.delay).await;
        let (content_type, source) = match knobs.bytes {
            Some(bytes) => ("application/octet-stream", Source::Pattern(bytes)),
            None => {
                let report = report(head, &body).to_string();
                ("application/json", Source::Text(report.into()))
            }
        };
        let content_type = Some(HeaderValue::from_static(content_type));
        (content_type, source.paced(knobs.pace))
    };
    if knobs.pace.close == Some(Close::Head) {
        return Err(Hangup::Asked);
    }
    let mut response = Response::new(body);
    *response.status_mut() = knobs.status;
    *response.headers_mut() = knobs.headers;
    let headers = response.headers_mut();
    if let (None, Some(value)) = (headers.get(header::CONTENT_TYPE), content_type) {
        headers.insert(header::CONTENT_TYPE, value);
    }
    if knobs.pace.trailer {
        headers.insert(header::TRAILER, HeaderValue::from_static("x-checksum"));
    }
    Ok(response)
}

/// What arrived.
fn report(head: &Parts, body: &Drained) -> Value {
    json!({
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "query": head.uri.query().unwrap_or_default(),
        "headers": fields(&head.headers),
        "body_bytes": body.bytes,
        "body_blake3": body.hash.to_hex().as_str(),
        "trailers": fields(&body.trailers),
    })
}

fn fields(headers: &HeaderMap) -> Map<String, Value> {
    let text = |value: &HeaderValue| value.as_bytes().iter().copied().map(char::from).collect();
    let values = |name| headers.get_all(name).iter().map(text).collect::<Vec<String>>();
    headers.keys().map(|name| (name.as_str().to_owned(), values(name).into())).collect()
}

async fn reflect(mut body: Incoming, frames: Frames) {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(io::Error::other);
        if frames.send(frame).await.is_err() {
            return;
        }
    }
}

impl Source {
    fn length(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Pattern(length) => *length,
        }
    }

    /// The chunk at `position`, short of `end`.
    fn chunk(&self, position: u64, end: u64, size: usize) -> Bytes {
        match self {
            Self::Text(text) => {
                // A text is in memory, so its positions fit.
                let start = position as usize;
                text.slice(start..(end as usize).min(start + size))
            }
            Self::Pattern(_) => pattern_at(position, end - position, size),
        }
    }

    fn paced(self, pace: Pace) -> ResponseBody {
        match self {
            Self::Text(text) if pace.close.is_none() && !pace.trailer && text.len() <= pace.chunk => {
                ResponseBody::Full(Some(text))
            }
            source => {
                let length = (!pace.trailer).then_some(source.length());
                ResponseBody::stream(length, move |frames| source.send(pace, frames))
            }
        }
    }

    async fn send(self, pace: Pace, frames: Frames) {
        let end = match pace.close {
            Some(_) => self.length() / 2,
            None => self.length(),
        };
        let mut position = 0;
        let mut hasher = blake3::Hasher::new();
        while position < end {
            if position > 0 && !pace.delay.is_zero() && !pause(&frames, pace.delay).await {
                return;
            }
            let chunk = self.chunk(position, end, pace.chunk);
            position += chunk.len() as u64;
            hasher.update(&chunk);
            if frames.send(Ok(Frame::data(chunk))).await.is_err() {
                return;
            }
        }
        if pace.close.is_some() {
            // An error makes hyper close at once; what went before has to leave first for the cut to be in the body.
            pause(&frames, Duration::from_millis(20)).await;
            let _ = frames.send(Err(io::Error::other("asked to close"))).await;
        } else if pace.trailer {
            let mut trailers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_str(hasher.finalize().to_hex().as_str()) {
                trailers.insert("x-checksum", value);
            }
            let _ = frames.send(Ok(Frame::trailers(trailers))).await;
        }
    }
}
