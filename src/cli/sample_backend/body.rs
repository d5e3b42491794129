//! Bodies in both directions: reading a request's to its end, and the kinds of response bodies the backend sends.
//!
//! Nothing here holds a large body: a request's is hashed and counted with a bounded prefix kept, a large response is
//! cut from one shared pattern. Must not know any path.

use std::io;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::sync::mpsc;

/// The size of one chunk of a streamed body.
pub(super) const CHUNK: usize = 64 * 1024;

/// The period of the pattern that large bodies are made of: prime, so that a lost or repeated chunk shows.
const PERIOD: usize = 251;

static PATTERN: LazyLock<Bytes> = LazyLock::new(|| (0..CHUNK + PERIOD).map(|i| (i % PERIOD) as u8).collect());

/// What the pumps of streamed bodies write to.
pub(super) type Frames = mpsc::Sender<io::Result<Frame<Bytes>>>;

/// The body of a response.
pub(super) enum ResponseBody {
    /// All of it, at once.
    Full(Option<Bytes>),
    /// What a task sends, frame by frame; a declared length becomes `Content-Length`, none means chunked.
    Stream { frames: mpsc::Receiver<io::Result<Frame<Bytes>>>, left: Option<u64> },
}

impl ResponseBody {
    /// A body that `pump` writes; the pump's sends fail once the client is gone, which is its sign to end.
    pub(super) fn stream<F>(length: Option<u64>, pump: impl FnOnce(Frames) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, frames) = mpsc::channel(1);
        tokio::spawn(pump(sender));
        Self::Stream { frames, left: length }
    }

    /// `length` bytes of the pattern.
    pub(super) fn pattern(length: u64) -> Self {
        Self::stream(Some(length), move |frames| async move {
            let mut sent = 0;
            while sent < length {
                let chunk = pattern_at(sent, length - sent, CHUNK);
                sent += chunk.len() as u64;
                if frames.send(Ok(Frame::data(chunk))).await.is_err() {
                    return;
                }
            }
        })
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream { frames, left } => {
                let frame = std::task::ready!(frames.poll_recv(cx));
                if let (Some(left), Some(Ok(frame))) = (left, &frame) {
                    *left -= frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Stream { left, .. } => left.map_or_else(SizeHint::new, SizeHint::with_exact),
        }
    }
}

/// The next chunk of the pattern at `position`, at most `left` and at most `chunk` bytes long.
pub(super) fn pattern_at(position: u64, left: u64, chunk: usize) -> Bytes {
    let start = (position % PERIOD as u64) as usize;
    let length = left.min(chunk.clamp(1, CHUNK) as u64) as usize;
    PATTERN.slice(start..start + length)
}

/// Waits, but not for a client that is gone; tells whether the client is still there.
pub(super) async fn pause(frames: &Frames, delay: Duration) -> bool {
    tokio::select! {
        () = frames.closed() => false,
        () = tokio::time::sleep(delay) => true,
    }
}

/// A request body that has been read to its end.
pub(super) struct Drained {
    /// How long it was.
    pub(super) bytes: u64,
    /// The hash of all of it.
    pub(super) hash: blake3::Hash,
    /// Its trailers.
    pub(super) trailers: HeaderMap,
    kept: Vec<u8>,
}

impl Drained {
    /// How much of a body is kept; more than any JSON document of the clients.
    const KEEP: usize = 4 * 1024 * 1024;

    /// Reads `body` to its end, whatever its size.
    pub(super) async fn read(mut body: Incoming) -> Result<Self, hyper::Error> {
        let (mut bytes, mut kept) = (0, Vec::new());
        let mut hasher = blake3::Hasher::new();
        let mut trailers = HeaderMap::new();
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => {
                    bytes += data.len() as u64;
                    hasher.update(&data);
                    let room = Self::KEEP - kept.len();
                    kept.extend_from_slice(&data[..data.len().min(room)]);
                }
                Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
            }
        }
        Ok(Self { bytes, hash: hasher.finalize(), trailers, kept })
    }

    /// The first bytes of the body, up to 4 MiB.
    pub(super) fn prefix(&self) -> &[u8] {
        &self.kept
    }

    /// The body as JSON, when it is that and no longer than what is kept. The content type is not asked: the published
    /// client sends none.
    pub(super) fn json(&self) -> Option<Value> {
        let whole = self.kept.len() as u64 == self.bytes;
        whole.then(|| serde_json::from_slice(&self.kept).ok()).flatten()
    }
}

/// A JSON response.
pub(super) fn json(status: StatusCode, value: &Value) -> Response<ResponseBody> {
    let text = Bytes::from(value.to_string());
    with_type(status, "application/json", ResponseBody::Full(Some(text)))
}

/// A response with a body of the type told.
pub(super) fn with_type(status: StatusCode, content_type: &'static str, body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A refusal in the shape that the SDK shows: `{"error": …}`.
pub(super) fn refusal(status: StatusCode, message: &str) -> Response<ResponseBody> {
    json(status, &serde_json::json!({ "error": message }))
}
