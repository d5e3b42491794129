//! The harness: a [`Stand`] is a configuration, a store, a backend and the gateways in front of it.
//!
//! ```text
//! let stand = Stand::new().route("GET /echo/{*rest}", "scope: models:read").start();
//! let key = stand.key().scope("models:read").create();
//! stand.get("/echo/x").bearer(&key).send().expect_status(200);
//! ```
//!
//! Everything listens on free loopback ports and is killed when it is dropped; what a process wrote is shown when the test
//! that owns it fails.

mod backend;
mod clock;
mod flapping;
mod http;
pub(crate) mod http2;
mod http2_backend;
mod key;
mod load;
mod long;
mod process;
mod request;
mod stand;
mod tally;
mod transport;
pub(crate) mod websocket;

pub(crate) use backend::{Scripted, Wire};
pub(crate) use clock::{eventually, minute_with, seconds_now, wait_for};
pub(crate) use flapping::Flapping;
pub(crate) use http::{Connection, Response};
pub(crate) use http2_backend::{Exchange, Http2Wire};
pub(crate) use key::Key;
pub(crate) use load::{Load, Running, Shot, count, percentile, print_seconds, statuses};
pub(crate) use long::{PATIENCE, is_long, seconds, sized};
pub(crate) use process::{Finished, Process, command};
pub(crate) use request::Request;
pub(crate) use stand::{Gateway, Layout, Stand, before, cli};
pub(crate) use tally::Tally;
pub(crate) use transport::{TlsClient, Transport};
