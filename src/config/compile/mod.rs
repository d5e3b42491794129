//! From the tree to the model, section by section; every section reports its own mistakes and none stops another.

mod access;
mod cors;
mod edge;
mod limits;
mod plans;
mod reader;
mod rewriting;
mod routes;
mod store;
mod suite;
mod tls;
mod unbuilt;
mod units;
mod upstreams;
mod warnings;

use std::path::Path;

use super::diagnostic::{Diagnostic, Severity};
use super::interpolate::Mistake;
use super::model::Config;
use super::raw::Node;
use reader::{Map, Report, Value};

/// Every member that gateway.yaml may have.
const MEMBERS: &[&str] = &[
    "version",
    "listen",
    "store",
    "cache",
    "upstreams",
    "environments",
    "plans",
    "default_plan",
    "quota",
    "scopes",
    "management",
    "sessions",
    "cors",
    "limits",
    "enforcement",
    "log",
    "routes",
    "tests",
    "workers",
    "timeouts",
    "drain",
    "include",
    "log_level",
    "usage",
    "keys",
    "tracing",
];

/// Compiles a tree whose variables are replaced, but for those in `unset`. There is a [`Config`] exactly when no diagnostic is an
/// error.
pub(super) fn compile(file: &Path, root: &Node, unset: Vec<Mistake>) -> (Option<Config>, Vec<Diagnostic>) {
    let report = Report::new(file.display().to_string());
    for Mistake { at, place, what, mend } in unset {
        report.add(Severity::Error, at, &place, what, &mend);
    }
    let config = config(file, &Value::root(root, &report));
    let mut found = report.finish();
    let failed = found.iter().any(|diagnostic| diagnostic.severity == Severity::Error);
    if failed {
        // Warnings look at the file as a whole, and half of it may be missing here.
        found.retain(|diagnostic| diagnostic.severity == Severity::Error);
    }
    (config.filter(|_| !failed), found)
}

fn config(file: &Path, root: &Value<'_>) -> Option<Config> {
    let root = if root.is_mapping() {
        root.mapping(MEMBERS)?
    } else {
        return root.mistake("the file is empty or not a mapping", "it needs listen, store, upstreams and routes");
    };
    refuse_unbuilt(&root);
    // Read all sections before the first `?`: every mistake at once.
    let listen = root
        .require("listen", "add listen: { public: { address: 127.0.0.1:8080 } }")
        .and_then(|v| edge::listen(&v, file));
    let store =
        root.require("store", "add store: { url: \"sqlite:data/gateway.db\" }").and_then(|v| store::store(&v, file));
    let cache = edge::cache(root.get("cache").as_ref());
    let cors = cors::cors(&root);
    let (quota, scopes) = (plans::quota(&root), plans::scopes(root.get("scopes").as_ref()));
    let upstreams = root.require("upstreams", "add upstreams: { seeme: { endpoints: [\"http://127.0.0.1:9000\"] } }");
    let upstreams = upstreams.and_then(|value| upstreams::upstreams(&value, file));
    let environments = upstreams::environments(&root, upstreams.as_deref().unwrap_or_default());
    let management = edge::management(root.get("management").as_ref());
    let routes = root.require("routes", "add routes: with one entry for each path to forward");
    let scene = routes::Scene { upstreams: upstreams.as_deref(), needs_upstream: environments.is_none() };
    let routes = routes.and_then(|value| {
        let table = routes::routes(&value, &scene)?;
        let backends = warnings::Backends { upstreams: upstreams.as_deref().unwrap_or_default(), environments };
        warnings::routes(&value, &table, &backends, &management, quota.as_ref());
        Some(table)
    });
    let tests = root.get("tests").map_or_else(Vec::new, |value| suite::tests(&value));
    let log_level = root.read("log_level", tracing::Level::INFO, |value| value.choice(LOG_LEVELS));
    let workers = limits::workers(&root);
    let (limits, timeouts) =
        (limits::limits(root.get("limits").as_ref()), limits::timeouts(root.get("timeouts").as_ref()));
    let (drain, usage) =
        (limits::drain(root.get("drain").as_ref()), limits::usage(root.get("usage").as_ref(), file, store.as_ref()));
    let (key_shape, log) = (limits::keys(root.get("keys").as_ref()), limits::log(&root));
    let config = Config {
        source: file.to_owned(),
        digest: [0; 32],
        revision: 0,
        workers,
        listen: listen?,
        store: store?,
        cache,
        upstreams: upstreams?,
        environments,
        quota: quota?,
        scopes,
        management,
        cors,
        limits,
        timeouts,
        drain,
        usage,
        key_shape,
        log,
        log_level,
        routes: routes?,
        tests,
    };
    Some(config)
}

const LOG_LEVELS: &[(&str, tracing::Level)] = &[
    ("error", tracing::Level::ERROR),
    ("warn", tracing::Level::WARN),
    ("info", tracing::Level::INFO),
    ("debug", tracing::Level::DEBUG),
    ("trace", tracing::Level::TRACE),
];

/// Top-level members without a part in this build.
fn refuse_unbuilt(root: &Map<'_>) {
    root.get("version")
        .and_then(|value| value.parse("1, the only version", "write version: 1", |text| (text == "1").then_some(())));
    for (name, shape) in [("include", unbuilt::TEXTS), ("tracing", unbuilt::TRACING)] {
        if let Some(value) = root.get(name) {
            unbuilt::refuse::<()>(&value, &shape);
        }
    }
    if let Some(value) = root.get("enforcement") {
        enforcement(&value);
    }
    let Some(sessions) = root.get("sessions").and_then(|value| value.mapping(&["unknown_tokens", "introspect"])) else {
        return;
    };
    if let Some(value) = sessions.get("introspect") {
        unbuilt::refuse::<()>(&value, &unbuilt::INTROSPECT);
    }
    if let Some(value) = sessions.get("unknown_tokens") {
        let built = value.choice(&[("reject", true), ("forward", false), ("introspect", false)]);
        if built == Some(false) {
            value.not_yet::<()>("write unknown_tokens: reject, the default");
        }
    }
}

/// `enforcement`, of the file or of a route.
fn enforcement(value: &Value<'_>) {
    if value.choice(&[("enforce", true), ("observe", false)]) == Some(false) {
        value.not_yet::<()>("write enforcement: enforce, the default");
    }
}
