//! What an upstream sees in the place of what the client sent: `host`, `strip_prefix`, `add_prefix`, `set_headers`.
//!
//! The last step before a request goes out, after everything that looks at the client's own words. An upstream without any of
//! these costs a request three comparisons.

use std::sync::Arc;

use http::header::HOST;
use http::{HeaderValue, Request, Uri};

use super::body::RequestBody;
use super::cluster::Cluster;
use super::fields::Fields;
use super::peer::Peer;
use crate::config::model::Host;
use crate::policy::headers;
use crate::policy::rewrite::rewrite;

impl Cluster {
    /// All of it but `host: upstream`, which is known when an endpoint has been chosen.
    pub(super) fn rewrite(&self, request: &mut Request<RequestBody>) {
        let config = &self.config;
        if let Host::Name(name) = &config.host {
            request.headers_mut().insert(HOST, name.clone());
        }
        if !(config.strip_prefix.is_empty() && config.add_prefix.is_empty()) {
            let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
            // Both parts were parsed before; their joint is a slash.
            if let Some(Ok(new)) = rewrite(target, &config.strip_prefix, &config.add_prefix).map(Uri::try_from) {
                *request.uri_mut() = new;
            }
        }
        self.set_own_fields(request);
    }

    /// `set_headers`
    pub(super) fn set_own_fields(&self, request: &mut Request<RequestBody>) {
        if !self.config.set_headers.is_empty() {
            let fields = self.fields.load_full();
            headers::set(request.headers_mut(), &fields);
            request.body_mut().refuse_trailers(fields);
        }
    }

    /// Which host a health check asks.
    pub(super) fn probe_host(&self, peer: &Peer) -> HeaderValue {
        match &self.config.host {
            Host::Name(name) => name.clone(),
            Host::Preserve | Host::Upstream => peer.host.clone(),
        }
    }

    /// Values that were read again.
    pub(super) fn set_fields(&self, fields: Fields) {
        if **self.fields.load() != fields {
            tracing::info!(upstream = %self.config.name, "set_headers: a file has changed");
            self.fields.store(Arc::new(fields));
        }
    }
}
