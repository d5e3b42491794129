//! What the process promises about itself: where its diagnostics go, and that no secret leaves with a crash.

use std::io;
use std::panic::PanicHookInfo;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tracing::Level;

use crate::telemetry::{diagnostics, redact};

/// Makes a process that serves ready: its diagnostics, and panics that give nothing away.
pub(super) fn prepare(level: Level) -> io::Result<()> {
    diagnostics::start(level)?;
    redact_panics();
    Ok(())
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
        if std::thread::current().name() == Some("main") {
            // The process ends with it.
            diagnostics::flush();
        }
    }));
}
