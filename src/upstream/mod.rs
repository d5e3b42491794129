//! The way to a backend: which of its endpoints, on which connection, bodies streamed both ways, every wait bounded.
//!
//! What the process knows of an upstream (its addresses, who is usable) is in [`cluster`]; what a worker does with one request
//! is in [`forward`]. A request goes out a second time only where `policy::retry` allows it. Nothing is known of keys, scopes or
//! quotas; what may be forwarded was decided before.

mod aside;
mod balance;
mod body;
mod cluster;
mod connect;
mod dns;
mod fields;
mod first;
mod forward;
mod gather;
mod health;
mod heard;
mod http2;
mod interim;
mod kept;
mod peer;
mod pool;
mod rewriting;
mod sender;
mod sent;
mod sifted;
mod socket;
mod tls;
mod traffic;
mod upgrade;

pub use aside::Aside;
pub use body::{BodyError, Progress, RequestBody, UpstreamBody, deadline};
pub use cluster::{Clusters, Slot};
pub use fields::{FieldError, Fields, read_fields};
pub use forward::{Forwarding, Upstreams};
pub use gather::{poll_write_gathered, put};
pub use sifted::poll_read_sifted;
pub use socket::Socket;
pub use upgrade::{Switched, switch};

/// Why an upstream gave no usable answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// `max_requests` are in flight. Nothing was sent.
    #[error("the upstream has as many requests as it may have")]
    Busy,
    /// This process has no descriptor left for a connection. Says nothing about the upstream.
    #[error("no descriptor is left for a connection to the upstream")]
    OutOfDescriptors,
    /// No connection: refused, unresolvable, no TLS. Nothing was sent.
    #[error("no connection to the upstream")]
    Unreachable,
    /// The connection broke, or the answer is not HTTP. The request may have been received.
    #[error("the upstream broke off or answered with something that is not HTTP")]
    Malformed,
    /// No response head in time, or no connection.
    #[error("the upstream did not answer in time")]
    Timeout,
    /// The client's own body ended the exchange.
    #[error("the request body failed: {0}")]
    RequestBody(BodyError),
}
