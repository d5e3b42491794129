//! The way to a backend: a pool of connections per worker, bodies streamed both ways, every wait bounded.
//!
//! No retries here but one: a request that a kept-alive connection gave back **unsent** goes out on another one. Nothing is
//! known of keys, scopes or quotas; what may be forwarded was decided before.

mod body;
mod connect;
mod forward;
mod gather;
mod http2;
mod pool;
mod socket;
mod tls;

pub use body::{BodyError, Progress, RequestBody, UpstreamBody};
pub use forward::{Forwarding, Upstreams};
pub use gather::poll_write_gathered;
pub use socket::Socket;

/// Why an upstream gave no usable answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// No connection: refused, unresolvable, timed out. Nothing was sent.
    #[error("no connection to the upstream")]
    Unreachable,
    /// The connection broke, or the answer is not HTTP. The request may have been received.
    #[error("the upstream broke off or answered with something that is not HTTP")]
    Malformed,
    /// No response head in time.
    #[error("the upstream did not answer in time")]
    Timeout,
    /// The client's own body ended the exchange.
    #[error("the request body failed: {0}")]
    RequestBody(BodyError),
}
