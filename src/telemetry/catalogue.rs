//! The names of all metrics, with what they tell: what is exported and what is documented cannot differ.

/// Name, kind, unit and help of every metric.
pub const ALL: &[(&str, Kind, &str)] = &[
    ("gateway_build_info", Kind::Gauge, "1, with the version as a label."),
    ("gateway_requests_total", Kind::Counter, "Requests, by route template and status class."),
    ("gateway_refusals_total", Kind::Counter, "Requests that the gateway itself refused, by code."),
    ("gateway_requests_in_flight", Kind::Gauge, "Requests being served."),
    ("gateway_request_duration_seconds", Kind::Histogram, "From the request's head to the end of its response."),
    (
        "gateway_upstream_duration_seconds",
        Kind::Histogram,
        "From forwarding to the upstream's response head, by upstream.",
    ),
    ("gateway_upstream_errors_total", Kind::Counter, "Requests that an upstream failed, by upstream and code."),
    ("gateway_upstream_connects_total", Kind::Counter, "Connections opened to an upstream."),
    ("gateway_upstream_endpoints", Kind::Gauge, "Addresses of an upstream, by upstream."),
    ("gateway_upstream_endpoints_usable", Kind::Gauge, "Those that are neither put aside nor found unhealthy."),
    ("gateway_upstream_ejections_total", Kind::Counter, "Addresses put aside for failures in a row (outlier)."),
    ("gateway_upstream_retries_total", Kind::Counter, "Requests sent again after an upstream failed them."),
    ("gateway_upstream_probe_failures_total", Kind::Counter, "Health checks that failed, by upstream."),
    ("gateway_upstream_dns_failures_total", Kind::Counter, "Look-ups of an endpoint's name that failed."),
    ("gateway_connections", Kind::Gauge, "Open client connections."),
    ("gateway_connections_total", Kind::Counter, "Client connections accepted."),
    ("gateway_connections_refused_total", Kind::Counter, "Client connections turned away, for a limit."),
    ("gateway_accept_errors_total", Kind::Counter, "Accepts that failed, nearly always for want of descriptors."),
    (
        "gateway_proxy_headers_refused_total",
        Kind::Counter,
        "Connections closed for a missing, late or malformed PROXY header.",
    ),
    ("gateway_tls_handshakes_failed_total", Kind::Counter, "TLS handshakes with clients that failed or took too long."),
    ("gateway_tls_reloads_total", Kind::Counter, "Changed certificates, by outcome: loaded, refused."),
    (
        "gateway_key_lookups_total",
        Kind::Counter,
        "Keys looked up, by outcome: hit, hit_unknown, found, unknown, error.",
    ),
    ("gateway_cached_keys", Kind::Gauge, "Entries of the key cache."),
    ("gateway_panics_total", Kind::Counter, "Requests that ended in a panic. Always a bug."),
    ("gateway_lease_calls_total", Kind::Counter, "Calls to the store's quota ledger."),
    ("gateway_lease_tokens_granted_total", Kind::Counter, "Tokens that the ledger granted to this process."),
    ("gateway_lease_tokens_returned_total", Kind::Counter, "Tokens given back unspent."),
    ("gateway_lease_recalls_total", Kind::Counter, "Recalls obeyed."),
    ("gateway_lease_refusals_total", Kind::Counter, "Requests over the quota, refused without asking the store."),
    ("gateway_outage_admissions_total", Kind::Counter, "Requests admitted under store.outage.quota without a grant."),
    (
        "gateway_outage_admission_bound",
        Kind::Gauge,
        "Requests that this process may at most admit without a grant in the current minute; 0 while the store is there.",
    ),
    ("gateway_store_outage", Kind::Gauge, "1 while the store, or a part of it, cannot be asked."),
    ("gateway_store_breaker_opened_total", Kind::Counter, "How often a part of the store was found not to be there."),
    ("gateway_store_probes_total", Kind::Counter, "Calls made to find out whether a part of the store is back."),
    (
        "gateway_store_findings",
        Kind::Gauge,
        "1 for each check of the store's settings that found trouble at the start (see the log); asked: whether they could be looked at.",
    ),
    ("gateway_change_feed_up", Kind::Gauge, "1 while changes of other processes arrive."),
    ("gateway_replicas", Kind::Gauge, "Live gateways on the same store."),
    ("gateway_usage_flushes_total", Kind::Counter, "Usage batches written, by outcome."),
    ("gateway_usage_pending", Kind::Gauge, "Distinct usage counters not written yet."),
    (
        "gateway_usage_batches_lost_total",
        Kind::Counter,
        "Usage batches that the store confirmed and has forgotten, or that the journal kept too long.",
    ),
    ("gateway_usage_journal_bytes", Kind::Gauge, "Size of the usage journal; 0 without one."),
    (
        "gateway_usage_journal_failing",
        Kind::Gauge,
        "1 while the usage journal cannot be written: a kill would lose usage.",
    ),
    ("gateway_log_lines_dropped_total", Kind::Counter, "Access log lines dropped because the log could not keep up."),
    ("gateway_config_reloads_total", Kind::Counter, "Changed files of configuration, by outcome: applied, refused."),
    ("gateway_config_stale", Kind::Gauge, "1 while the file on disk is not the one in force, because it was refused."),
    (
        "gateway_config_last_success_timestamp_seconds",
        Kind::Gauge,
        "When the configuration in force was taken from the file.",
    ),
    (
        "gateway_config_restart_needed",
        Kind::Gauge,
        "1 while the file says something else than what is in force in a member that only a restart takes up (see the log).",
    ),
];

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes both ways.
    Gauge,
    /// A distribution.
    Histogram,
}
