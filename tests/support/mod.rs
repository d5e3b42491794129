//! Real Redis servers in every topology, and a proxy that breaks the connections to them.
//!
//! Included with `#[path]` by the unit tests of `store::redis` and by the integration tests, so nothing here may name either
//! of them. Servers are `redis-server` from the PATH or what `SEEME_TEST_REDIS_SERVER` names (Valkey, another version). They
//! listen on free loopback ports and end with the test process, however that ends ([`watchdog`]); what they logged is shown
//! when the test that holds them fails.
//!
//! ```text
//! let redis = RedisServer::start();             // its own; or RedisServer::shared(), with keys of its own
//! let proxy = FaultProxy::to(redis.port());
//! redis.cli(&["CONFIG", "SET", "maxmemory", "2mb"]);
//! proxy.stall();
//! ```
//!
//! A shared server is for tests that only read and write under a prefix of their own: one that kills, stops or reconfigures
//! starts its own.

// Each binary uses its own part of it. The bans are for the product: tests measure real time and fail by panicking.
#![allow(dead_code, unused_imports, clippy::disallowed_methods, clippy::unwrap_used)]

mod certificates;
mod fault_proxy;
mod namespace;
mod ports;
mod redis_cluster;
mod redis_sentinel;
mod redis_server;
mod resp;
mod shared;
mod watchdog;

pub(crate) use certificates::{Certificates, ClientCertificate};
pub(crate) use fault_proxy::FaultProxy;
pub(crate) use namespace::Namespace;
pub(crate) use redis_cluster::Cluster;
pub(crate) use redis_sentinel::Sentinels;
pub(crate) use redis_server::RedisServer;
pub(crate) use resp::{Connection as RespConnection, Monitor, Reply};
pub(crate) use shared::Shared;
