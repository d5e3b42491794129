//! SeeMe gateway: a reverse proxy that validates API keys, enforces scopes, resource limits and quotas, counts every
//! request and forwards what is allowed.
//!
//! Start reading at [`gateway`]: it tells the life of a request on one screen. [`policy`] holds the decisions themselves,
//! without I/O; everything else fetches what a decision needs or carries it out.
//!
//! # The layer rule
//!
//! Imports point down only:
//! `policy` ← `clock`, `wire` ← `config`, `store` ← `telemetry` ← `auth`, `limit`, `usage`, `upstream` ← `management` ← `gateway`,
//! `admin` ← `server` ← `app` ← `cli` ← `main`. A test scans every `use crate::` line and fails on an upward one.

pub mod admin;
pub mod app;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod config;
pub mod gateway;
pub mod limit;
pub mod management;
pub mod policy;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod upstream;
pub mod usage;
pub mod wire;
