//! Sockets, threads and the way out: one worker per core, each with its own listener.
//!
//! A worker is a thread with a current-thread runtime, an SO_REUSEPORT listener and its own upstream pool: a request lives and
//! dies on one core. Nothing here looks at what a request says.

mod client_io;
mod connection;
mod descriptors;
mod http1;
mod http2;
mod http2_io;
mod listener;
mod places;
mod proxy_protocol;
mod streams;
mod sweep;
pub mod take_over;
mod tls;
mod tunnel;
mod turn_away;
mod worker;

pub use listener::{BindError, Listeners};
pub use tls::{FrontTls, Refreshed, TlsError};
pub use worker::{Drain, Stage, Workers};
