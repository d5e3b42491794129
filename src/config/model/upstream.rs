//! `upstreams`: where a backend is, how it is met, and what is done when it fails.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};
use rustls::pki_types::ServerName;

use super::{CertificateFiles, Secret};

/// A backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Its name in the file; bounded, so fit for logs and metrics.
    pub name: Arc<str>,
    /// Where it is; one at least, and one at least with a weight.
    pub endpoints: Vec<Endpoint>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// Whether HTTP/2 is spoken to it.
    pub http2: bool,
    /// How its https endpoints are met.
    pub tls: UpstreamTls,
    /// How often names of endpoints are looked up again.
    pub dns_refresh: Duration,
    /// Which `Host` it sees.
    pub host: Host,
    /// Leading segments that it does not see, decoded.
    pub strip_prefix: Vec<String>,
    /// What its paths begin with, as it goes over the wire; empty, or `/` and more.
    pub add_prefix: String,
    /// Fields that it gets with every request.
    pub set_headers: Vec<(HeaderName, Secret)>,
    /// Whether endpoints are asked how they are.
    pub health_check: Option<HealthCheck>,
    /// When an endpoint gets no requests for a while; `None`: never.
    pub outlier: Option<Outlier>,
    /// When a request is sent again.
    pub retries: Retries,
    /// Requests in flight at most.
    pub max_requests: Option<u32>,
}

/// `upstreams.X.tls`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Who must have signed its certificate; `None`: one of the system's authorities.
    pub ca: Option<PathBuf>,
    /// The name that its certificate must have; `None`: the host of the endpoint.
    pub server_name: Option<ServerName<'static>>,
    /// By what the gateway identifies itself.
    pub client: Option<CertificateFiles>,
}

/// One place of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `host:port`, the port always there.
    pub authority: Arc<str>,
    /// Whether it is an https endpoint.
    pub encrypted: bool,
    /// Its share of the requests; 0: none at all.
    pub weight: u32,
}

/// `host`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// The client's.
    Preserve,
    /// The endpoint's own.
    Upstream,
    /// This one.
    Name(HeaderValue),
}

/// `health_check`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked for.
    pub path: PathAndQuery,
    /// How often.
    pub interval: Duration,
}

/// `outlier`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlier {
    /// So many failures in a row.
    pub failures: u32,
    /// Put an endpoint aside for so long.
    pub eject_for: Duration,
}

/// `retries`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// Tries after the first one.
    pub attempts: u32,
    /// Retries in a hundred requests.
    pub budget: u8,
}
