//! What sends one request: a connection of its own, or room on one that others share.

use std::sync::Arc;

use http::header::{HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::{Method, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::SendRequest;
use tokio::task::AbortHandle;

use super::body::RequestBody;
use super::connect::Connected;
use super::heard::Heard;
use super::http2::{Connections, Slot};
use super::interim::Interims;
use super::sent::Sent;
use crate::wire::http1::Exchange;

/// Either.
pub(super) enum Sender {
    /// For as long as the exchange takes, and the next one after it. Boxed: it goes from hand to hand with every answer.
    Http1(Box<Http1>),
    /// For this exchange.
    Http2(Slot),
}

/// A connection of HTTP/1 and the task that drives it: both end when it is dropped, whatever hyper still had to write.
pub(super) struct Http1 {
    pub(super) sender: SendRequest<RequestBody>,
    pub(super) task: AbortHandle,
    pub(super) heard: Heard,
    pub(super) interims: Interims,
    pub(super) sent: Sent,
    /// Tells the socket's gate what is asked.
    pub(super) exchange: Arc<Exchange>,
}

impl Drop for Http1 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Http1 {
    /// Whether it can take no other request.
    pub(super) fn is_over(&self) -> bool {
        self.sender.is_closed() || self.exchange.is_spoilt()
    }
}

/// A request that got no answer.
pub(super) struct Unanswered {
    /// The request itself, when no server can have begun to process it.
    pub(super) unsent: Option<Request<RequestBody>>,
    /// The connection was lost before any octet came.
    pub(super) silent: bool,
    /// The request's head, where its sender kept it and the connection did not.
    pub(super) head: Option<Request<()>>,
}

/// The same, while it is known only to the one who sent it. Boxed: as large as a request, and in the way of every answer.
pub(super) enum Lost {
    Http1(Box<TrySendError<Request<RequestBody>>>),
    Http2(Box<Unanswered>),
}

/// What is waited for, of either.
enum Waiting<A, B> {
    Http1(A),
    Http2(B),
}

impl Connected {
    /// For one exchange of nobody's but the one who opened it.
    pub(super) fn alone(self) -> Sender {
        match self {
            Self::Http1(http1) => Sender::Http1(http1),
            Self::Http2(new) => Sender::Http2(Connections::default().keep(new)),
        }
    }
}

impl Sender {
    /// Whether it can be used now.
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Http1(http1) => http1.sender.is_ready(),
            Self::Http2(slot) => slot.is_usable(),
        }
    }

    /// Waits until it can be used; false when it never will be.
    pub(super) async fn ready(&mut self) -> bool {
        match self {
            Self::Http1(http1) => http1.sender.ready().await.is_ok(),
            Self::Http2(slot) => slot.is_usable(),
        }
    }

    /// What comes before the answer, where that can be told.
    pub(super) fn interims(&self) -> Option<&Interims> {
        match self {
            Self::Http1(http1) => Some(&http1.interims),
            Self::Http2(slot) => slot.interims(),
        }
    }

    /// Sends a request and waits for the head of its answer. `keep`: should it be lost, it may have to go out [`again`](Self::again).
    /// `tell`: its client can be told of what comes [before](Self::interims) the answer.
    pub(super) fn send(
        &mut self,
        mut request: Request<RequestBody>,
        keep: bool,
        tell: bool,
    ) -> impl Future<Output = Result<Response<Incoming>, Lost>> + use<> {
        let waiting = match self {
            Self::Http1(http1) => {
                if matches!(*request.method(), Method::GET | Method::HEAD)
                    && request.body().size_hint().exact().is_none()
                {
                    // hyper sends no body of unknown length with these methods unless it is told how.
                    request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                }
                http1.heard.reset();
                http1.interims.begin();
                http1.sent.begin(keep);
                http1.exchange.begin(request.method(), request.headers().contains_key(UPGRADE));
                Waiting::Http1(http1.sender.try_send_request(request))
            }
            // Boxed: large, and of no use to the other.
            Self::Http2(slot) => Waiting::Http2(Box::pin(slot.send(request, keep, tell))),
        };
        async {
            match waiting {
                Waiting::Http1(answer) => answer.await.map_err(|lost| Lost::Http1(Box::new(lost))),
                Waiting::Http2(answer) => answer.await.map_err(|lost| Lost::Http2(Box::new(lost))),
            }
        }
    }

    /// The request that was lost so, with this body.
    pub(super) fn again(&self, lost: Unanswered, body: RequestBody) -> Option<Request<RequestBody>> {
        match self {
            Self::Http1(http1) => http1.sent.again(body),
            Self::Http2(_) => lost.head.map(|head| head.map(|()| body)),
        }
    }

    /// What became of a request that it lost.
    pub(super) fn judge(&self, lost: Lost) -> Unanswered {
        match (self, lost) {
            (_, Lost::Http2(unanswered)) => *unanswered,
            (Self::Http1(http1), Lost::Http1(mut lost)) => {
                let unsent = lost.take_message();
                Unanswered { unsent, silent: http1.heard.nothing(&lost.into_error()), head: None }
            }
            (Self::Http2(_), Lost::Http1(mut lost)) => {
                Unanswered { unsent: lost.take_message(), silent: false, head: None }
            }
        }
    }
}
