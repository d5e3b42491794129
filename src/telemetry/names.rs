//! Every metric and label of the gateway, in one place; handles resolved once.
//!
//! This is the only file that registers metrics. Names are `gateway_*` in base units; the dashboard's test compares with
//! [`ALL`].

use std::sync::{Arc, Mutex, OnceLock};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::config::model::Config;
use crate::policy::route::RouteId;
use crate::store::StatusClass;

pub use super::catalogue::{ALL, Kind};

const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

const CLASSES: usize = StatusClass::ALL.len();

/// All handles.
pub struct Metrics {
    recorder: PrometheusRecorder,
    refusals: Mutex<Vec<(&'static str, Counter)>>,
    /// Requests being served.
    pub in_flight: Gauge,
    /// See [`ALL`].
    pub duration: Histogram,
    /// Open client connections.
    pub connections: Gauge,
    /// Accepted.
    pub connections_total: Counter,
    /// Turned away.
    pub connections_refused: Counter,
    /// Accepts that failed.
    pub accept_errors: Counter,
    /// Connections without a good PROXY header.
    pub proxy_headers_refused: Counter,
    /// Handshakes with clients that came to nothing.
    pub tls_handshakes_failed: Counter,
    /// Changed certificates that are in force.
    pub tls_reloads: Counter,
    /// Changed certificates that do not fit.
    pub tls_reloads_refused: Counter,
    /// Outcomes of key look-ups.
    pub lookups: LookupMetrics,
    /// Entries of the key cache.
    pub cached_keys: Gauge,
    /// Panics caught.
    pub panics: Counter,
    /// Quota leases.
    pub leases: LeaseMetrics,
    /// The store, as this process meets it.
    pub store: StoreMetrics,
    /// 1 while the change feed runs.
    pub change_feed_up: Gauge,
    /// Live gateways.
    pub replicas: Gauge,
    /// Flushes that the store took.
    pub usage_flushes: Counter,
    /// Flushes that failed and will be repeated.
    pub usage_flush_failures: Counter,
    /// Counters waiting.
    pub usage_pending: Gauge,
    /// Batches of usage that nobody has any more.
    pub usage_batches_lost: Counter,
    /// Size of the journal.
    pub usage_journal_bytes: Gauge,
    /// 1 while it cannot be written.
    pub usage_journal_failing: Gauge,
    /// Log lines dropped.
    pub log_lines_dropped: Counter,
    /// Reloads of gateway.yaml.
    pub reloads: ReloadMetrics,
}

/// Where a request belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A route of the file.
    Route(RouteId),
    /// The management API, all its calls together.
    Management,
    /// Neither.
    Nowhere,
}

/// Counters of the routes of one configuration, by [`RouteId`]. They are labelled by template, so a route counts on after a
/// reload, whatever its index is then.
pub struct RouteCounters(Vec<(Arc<str>, [OnceLock<Counter>; CLASSES])>);

impl RouteCounters {
    /// For the routes of this configuration.
    pub fn of(config: &Config) -> Self {
        Self::new(config.routes.routes().iter().map(|route| route.label()))
    }

    fn new(labels: impl Iterator<Item = String>) -> Self {
        let others = ["(management)", "(none)"].map(str::to_owned);
        Self(labels.chain(others).map(|label| (label.into(), Default::default())).collect())
    }
}

/// Handles of one upstream.
pub struct UpstreamMetrics {
    name: Arc<str>,
    /// To the response head.
    pub duration: Histogram,
    /// Connections opened.
    pub connects: Counter,
    /// How its endpoints are.
    pub health: HealthMetrics,
    errors: Mutex<Vec<(&'static str, Counter)>>,
}

/// Handles of an upstream's endpoints. Addresses are no labels: nobody bounds how many a name may have over time.
#[derive(Clone)]
pub struct HealthMetrics {
    /// All.
    pub endpoints: Gauge,
    /// Those that requests go to.
    pub usable: Gauge,
    /// Put aside.
    pub ejections: Counter,
    /// Sent again.
    pub retries: Counter,
    /// Asked how they are, without a good answer.
    pub probe_failures: Counter,
    /// Names that were not found.
    pub dns_failures: Counter,
}

/// Handles of the key look-ups.
pub struct LookupMetrics {
    /// Served from the cache.
    pub hit: Counter,
    /// Known to be unknown.
    pub hit_unknown: Counter,
    /// Read from the store.
    pub found: Counter,
    /// Not in the store.
    pub unknown: Counter,
    /// The store could not say.
    pub error: Counter,
}

/// Handles of the quota leases; the limiter counts, telemetry copies at scrape time.
pub struct LeaseMetrics {
    /// Calls.
    pub calls: Counter,
    /// Granted.
    pub granted: Counter,
    /// Returned.
    pub returned: Counter,
    /// Recalls.
    pub recalls: Counter,
    /// Refused locally.
    pub refused: Counter,
    /// Admitted in an outage.
    pub outage: Counter,
}

/// Handles of the reloads.
pub struct ReloadMetrics {
    /// Files taken into force.
    pub applied: Counter,
    /// Files refused.
    pub refused: Counter,
    /// 1 while the file on disk is not the one in force.
    pub stale: Gauge,
    /// When the file in force was taken, in seconds since 1970.
    pub last_success: Gauge,
    /// 1 while the file names something else than what is in force for a member that only a restart takes up.
    pub restart_needed: Gauge,
}

/// Handles of the store; whoever knows counts, telemetry copies at scrape time.
pub struct StoreMetrics {
    /// 1 while it cannot be asked.
    pub outage: Gauge,
    /// What `store.outage.quota` may admit.
    pub admission_bound: Gauge,
    /// Breakers opened.
    pub opened: Counter,
    /// Probes.
    pub probes: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Makes a recorder of its own (nothing global, so that tests can run several gateways in one process).
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .map(PrometheusBuilder::build_recorder)
            .unwrap_or_else(|_| PrometheusBuilder::new().build_recorder());
        for (name, kind, help) in ALL {
            let (name, unit) = ((*name).into(), name.ends_with("_seconds").then_some(Unit::Seconds));
            match kind {
                Kind::Counter => recorder.describe_counter(name, unit, (*help).into()),
                Kind::Gauge => recorder.describe_gauge(name, unit, (*help).into()),
                Kind::Histogram => recorder.describe_histogram(name, unit, (*help).into()),
            }
        }
        let r = &recorder;
        gauge(r, "gateway_build_info", &[("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        let lookup = |outcome| counter(r, "gateway_key_lookups_total", &[("outcome", outcome)]);
        let metrics = Self {
            refusals: Mutex::default(),
            in_flight: gauge(r, "gateway_requests_in_flight", &[]),
            duration: histogram(r, "gateway_request_duration_seconds", &[]),
            connections: gauge(r, "gateway_connections", &[]),
            connections_total: counter(r, "gateway_connections_total", &[]),
            connections_refused: counter(r, "gateway_connections_refused_total", &[]),
            accept_errors: counter(r, "gateway_accept_errors_total", &[]),
            proxy_headers_refused: counter(r, "gateway_proxy_headers_refused_total", &[]),
            tls_handshakes_failed: counter(r, "gateway_tls_handshakes_failed_total", &[]),
            tls_reloads: counter(r, "gateway_tls_reloads_total", &[("outcome", "loaded")]),
            tls_reloads_refused: counter(r, "gateway_tls_reloads_total", &[("outcome", "refused")]),
            lookups: LookupMetrics {
                hit: lookup("hit"),
                hit_unknown: lookup("hit_unknown"),
                found: lookup("found"),
                unknown: lookup("unknown"),
                error: lookup("error"),
            },
            cached_keys: gauge(r, "gateway_cached_keys", &[]),
            panics: counter(r, "gateway_panics_total", &[]),
            leases: LeaseMetrics {
                calls: counter(r, "gateway_lease_calls_total", &[]),
                granted: counter(r, "gateway_lease_tokens_granted_total", &[]),
                returned: counter(r, "gateway_lease_tokens_returned_total", &[]),
                recalls: counter(r, "gateway_lease_recalls_total", &[]),
                refused: counter(r, "gateway_lease_refusals_total", &[]),
                outage: counter(r, "gateway_outage_admissions_total", &[]),
            },
            store: StoreMetrics {
                outage: gauge(r, "gateway_store_outage", &[]),
                admission_bound: gauge(r, "gateway_outage_admission_bound", &[]),
                opened: counter(r, "gateway_store_breaker_opened_total", &[]),
                probes: counter(r, "gateway_store_probes_total", &[]),
            },
            change_feed_up: gauge(r, "gateway_change_feed_up", &[]),
            replicas: gauge(r, "gateway_replicas", &[]),
            usage_flushes: counter(r, "gateway_usage_flushes_total", &[("outcome", "written")]),
            usage_flush_failures: counter(r, "gateway_usage_flushes_total", &[("outcome", "failed")]),
            usage_pending: gauge(r, "gateway_usage_pending", &[]),
            usage_batches_lost: counter(r, "gateway_usage_batches_lost_total", &[]),
            usage_journal_bytes: gauge(r, "gateway_usage_journal_bytes", &[]),
            usage_journal_failing: gauge(r, "gateway_usage_journal_failing", &[]),
            log_lines_dropped: counter(r, "gateway_log_lines_dropped_total", &[]),
            reloads: ReloadMetrics {
                applied: counter(r, "gateway_config_reloads_total", &[("outcome", "applied")]),
                refused: counter(r, "gateway_config_reloads_total", &[("outcome", "refused")]),
                stale: gauge(r, "gateway_config_stale", &[]),
                last_success: gauge(r, "gateway_config_last_success_timestamp_seconds", &[]),
                restart_needed: gauge(r, "gateway_config_restart_needed", &[]),
            },
            recorder,
        };
        // A counter that has never moved is exported too: `rate()` needs the zero, and so does whoever looks for the name.
        for never in [
            &metrics.panics,
            &metrics.connections_refused,
            &metrics.accept_errors,
            &metrics.proxy_headers_refused,
            &metrics.usage_batches_lost,
            &metrics.log_lines_dropped,
            &metrics.reloads.applied,
            &metrics.reloads.refused,
            &metrics.tls_handshakes_failed,
            &metrics.tls_reloads,
            &metrics.tls_reloads_refused,
        ] {
            never.increment(0);
        }
        metrics
    }

    /// Counts one finished request among the routes of its configuration.
    pub fn request(&self, routes: &RouteCounters, place: Place, class: StatusClass) {
        let index = match place {
            Place::Route(id) => id.0,
            Place::Management => routes.0.len() - 2,
            Place::Nowhere => routes.0.len() - 1,
        };
        let Some((label, row)) = routes.0.get(index) else { return };
        let handle = row[class as usize].get_or_init(|| {
            counter(&self.recorder, "gateway_requests_total", &[("route", label), ("class", class.as_str())])
        });
        handle.increment(1);
    }

    /// Handles of one upstream. Whoever has the same name, also under another configuration, counts on where it was.
    pub fn upstream(&self, name: &Arc<str>) -> UpstreamMetrics {
        UpstreamMetrics::new(&self.recorder, name)
    }

    /// Counts one refusal by its code.
    pub fn refusal(&self, code: &'static str) {
        by_code(&self.refusals, code, || counter(&self.recorder, "gateway_refusals_total", &[("code", code)]));
    }

    /// Counts one failure of an upstream by its code.
    pub fn upstream_error(&self, upstream: &UpstreamMetrics, code: &'static str) {
        by_code(&upstream.errors, code, || {
            counter(&self.recorder, "gateway_upstream_errors_total", &[("upstream", &upstream.name), ("code", code)])
        });
    }

    /// Notes what a check of the store's settings has found.
    pub fn store_finding(&self, check: &str, trouble: bool) {
        gauge(&self.recorder, "gateway_store_findings", &[("check", check)]).set(f64::from(u8::from(trouble)));
    }

    /// Renders and drains; call [`PrometheusHandle::run_upkeep`] on it every few seconds.
    pub fn handle(&self) -> PrometheusHandle {
        self.recorder.handle()
    }
}

impl UpstreamMetrics {
    fn new(recorder: &PrometheusRecorder, name: &Arc<str>) -> Self {
        let count = |metric| {
            let counter = counter(recorder, metric, &[("upstream", name)]);
            counter.increment(0);
            counter
        };
        let health = HealthMetrics {
            endpoints: gauge(recorder, "gateway_upstream_endpoints", &[("upstream", name)]),
            usable: gauge(recorder, "gateway_upstream_endpoints_usable", &[("upstream", name)]),
            ejections: count("gateway_upstream_ejections_total"),
            retries: count("gateway_upstream_retries_total"),
            probe_failures: count("gateway_upstream_probe_failures_total"),
            dns_failures: count("gateway_upstream_dns_failures_total"),
        };
        Self {
            health,
            name: name.clone(),
            duration: histogram(recorder, "gateway_upstream_duration_seconds", &[("upstream", name)]),
            connects: counter(recorder, "gateway_upstream_connects_total", &[("upstream", name)]),
            errors: Mutex::default(),
        }
    }
}

/// A handful of codes: a short list under a lock that only refused requests take.
fn by_code(list: &Mutex<Vec<(&'static str, Counter)>>, code: &'static str, make: impl FnOnce() -> Counter) {
    let mut list = list.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match list.iter().find(|(known, _)| *known == code) {
        Some((_, counter)) => counter.increment(1),
        None => {
            let counter = make();
            counter.increment(1);
            list.push((code, counter));
        }
    }
}

const METADATA: Metadata<'static> = Metadata::new("gateway", Level::INFO, None);

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<Label> = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    Key::from_parts(name, labels)
}

fn counter(recorder: &PrometheusRecorder, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
    recorder.register_counter(&key(name, labels), &METADATA)
}

fn gauge(recorder: &PrometheusRecorder, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
    recorder.register_gauge(&key(name, labels), &METADATA)
}

fn histogram(recorder: &PrometheusRecorder, name: &'static str, labels: &[(&'static str, &str)]) -> Histogram {
    recorder.register_histogram(&key(name, labels), &METADATA)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_that_is_used_is_described_and_has_its_name() {
        let metrics = Metrics::new();
        let (routes, upstream) =
            (RouteCounters::new(["GET /a".to_owned()].into_iter()), metrics.upstream(&"seeme".into()));
        metrics.request(&routes, Place::Route(RouteId(0)), StatusClass::Success);
        metrics.request(&routes, Place::Management, StatusClass::Success);
        metrics.request(&routes, Place::Nowhere, StatusClass::ClientError);
        metrics.refusal("missing_key");
        metrics.upstream_error(&upstream, "upstream_timeout");
        upstream.duration.record(0.1);
        upstream.connects.increment(1);
        metrics.duration.record(0.1);
        metrics.store_finding("eviction", true);
        let text = metrics.handle().render();
        for (name, _, _) in ALL {
            assert!(text.contains(&format!("# TYPE {name} ")), "{name} is missing in\n{text}");
        }
        assert!(text.contains(r#"gateway_requests_total{route="GET /a",class="2xx"} 1"#), "{text}");
        assert!(text.contains(r#"gateway_requests_total{route="(management)",class="2xx"} 1"#), "{text}");
        assert!(text.contains(r#"gateway_requests_total{route="(none)",class="4xx"} 1"#), "{text}");
    }

    #[test]
    fn a_route_counts_on_under_another_configuration_whatever_its_index_is_there() {
        let metrics = Metrics::new();
        for (labels, index) in [(vec!["GET /a", "GET /b"], 1), (vec!["GET /b", "GET /c"], 0)] {
            let routes = RouteCounters::new(labels.into_iter().map(str::to_owned));
            metrics.request(&routes, Place::Route(RouteId(index)), StatusClass::Success);
        }
        let text = metrics.handle().render();
        assert!(text.contains(r#"gateway_requests_total{route="GET /b",class="2xx"} 2"#), "{text}");
    }
}
