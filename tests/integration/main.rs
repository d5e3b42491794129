//! The product from outside: real gateway processes on loopback, real sockets, one SQLite file or real
//! Redis servers ([`servers`]).
//!
//! One binary, a module a concern; names of tests are sentences. [`support`] starts and stops everything and knows no
//! rule of the product; what must hold is said in the tests alone. Nothing sleeps where an event can be awaited.

// The bans are for the product, which asks its `Clock` and never panics: a test measures what a client would measure, and
// its helpers fail by panicking.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod allowed_addresses;
mod boundary;
mod check_cli;
mod concurrency;
mod connection_caps;
mod cors;
mod cost;
mod decision;
mod drain;
mod early_answers;
mod faults;
mod fleet;
mod forwarding;
mod grpc;
mod h1_answers;
mod h1_idle;
mod h1_requests;
mod h2_floods;
mod h2_malformed;
mod h2_semantics;
mod hanging_upstream;
mod headers;
mod http2;
mod idle_connections;
mod interim;
mod lasting;
mod layers;
mod lifecycle;
mod management;
mod memory_pressure;
mod operating;
mod paths;
mod per_address;
mod proxy_protocol;
mod quota;
mod random;
mod redis_cluster;
mod redis_harness;
mod redis_links;
mod redis_outage;
mod redis_quota;
mod redis_refusing;
mod redis_revocation;
mod redis_secrets;
mod redis_trouble;
mod redis_usage;
mod reload;
mod resources;
mod retries;
mod revoked_tunnels;
mod rewriting;
mod secrets;
#[path = "../support/mod.rs"]
mod servers;
mod slow_clients;
mod store_busy;
mod store_copy;
mod store_full;
mod support;
mod take_over;
mod tls;
mod trusted_proxies;
mod unread_log;
mod upgrades;
mod upstream_http2;
mod upstream_http2_answers;
mod upstream_http2_interim;
mod upstream_http2_lost;
mod upstream_tls;
mod upstreams;
mod usage;
