//! What the process promises about itself: where its diagnostics go, and that no secret leaves with a crash.

use std::panic::PanicHookInfo;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;

use crate::telemetry::redact;

/// Makes a process that serves ready: its diagnostics, and panics that give nothing away.
pub(super) fn prepare(level: Level) {
    log_to_stderr(level);
    redact_panics();
}

/// Diagnostics as lines on stderr; stdout belongs to the request log and to what commands print.
fn log_to_stderr(level: Level) {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false)
        .finish()
        .with(of_interest(level));
    // A second call, in a test, finds the first one's subscriber in place: that is fine.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// What libraries warn of is for whoever debugs, and some do it as often as a client likes. What matters of it the gateway says
/// itself, at most so often.
fn of_interest(level: Level) -> Targets {
    let of_libraries = if level > Level::INFO { level } else { Level::ERROR };
    let ours = [env!("CARGO_CRATE_NAME"), "audit"].map(|target| (target, LevelFilter::from_level(level)));
    Targets::new().with_default(of_libraries).with_targets(ours)
}

/// No memory image of this process is ever written: it holds keys of requests in flight.
///
/// The limit stops core files; the dumpable flag also stops those that the kernel pipes to a program, which ignore the limit.
pub(super) fn forbid_core_dumps() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// A panic is one redacted line, not a message that may quote what a client sent.
fn redact_panics() {
    std::panic::set_hook(Box::new(|panic: &PanicHookInfo<'_>| {
        let payload = panic.payload();
        let text =
            payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(%place, "panic: {}", redact::keys(text.unwrap_or("(no message)")));
    }));
}
