//! What the gateway says of itself on stderr, written by a thread of its own: no request and no signal waits for whoever reads it.
//!
//! One for the process, as its stderr is. Says nothing itself but how many lines were lost.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

use super::outlet::Outlet;

/// How long the last lines may take at the end of the process.
const PATIENCE: Duration = Duration::from_secs(1);

static OUTLET: OnceLock<Outlet<Vec<u8>>> = OnceLock::new();
/// Lines that found no room since one was written last.
static LOST: AtomicU64 = AtomicU64::new(0);

/// From now on, events of this level and above are lines on stderr.
pub fn start(level: Level) -> io::Result<()> {
    let outlet = Outlet::start("diagnostics", io::stderr(), |out, line: Vec<u8>| {
        let lost = LOST.swap(0, Ordering::Relaxed);
        if lost > 0 {
            writeln!(out, "{lost} lines were lost here: nobody read them in time")?;
        }
        out.write_all(&line)
    })?;
    let _ = OUTLET.set(outlet);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(Lines)
        .with_target(false)
        // It would tell of its trouble with stderr on stderr, and panic.
        .log_internal_errors(false)
        .finish()
        .with(of_interest(level));
    // A second call, in a test, finds the first one's subscriber in place: that is fine.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

/// What libraries warn of is for whoever debugs, and some do it as often as a client likes. What matters of it the gateway says
/// itself, at most so often.
fn of_interest(level: Level) -> Targets {
    let of_libraries = if level > Level::INFO { level } else { Level::ERROR };
    let ours = [env!("CARGO_CRATE_NAME"), "audit"].map(|target| (target, LevelFilter::from_level(level)));
    Targets::new().with_default(of_libraries).with_targets(ours)
}

/// Waits until all is written, within reason. To be called before the process ends, and before it says anything past this.
pub fn flush() {
    if let Some(outlet) = OUTLET.get() {
        outlet.flush(PATIENCE);
    }
}

struct Lines;

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

impl Write for Lines {
    /// An event comes as one piece.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        if !OUTLET.get().is_some_and(|outlet| outlet.write(event.to_vec())) {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
