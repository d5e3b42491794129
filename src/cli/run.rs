//! `run`: start, wait for a signal, drain.

use std::io;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{App, StartError};
use crate::config::model::Config;

/// Serves until SIGTERM or SIGINT.
pub(super) fn run(config: Config) -> Result<(), StartError> {
    let signals = Signals::install()?;
    let app = App::start(config)?;
    signals.wait();
    app.stop();
    Ok(())
}

/// SIGTERM, SIGINT and SIGHUP, caught from the moment this exists: one that comes while the gateway starts still drains it.
pub(super) struct Signals {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes them over from their default, which would kill.
    pub(super) fn install() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let _inside = runtime.enter();
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let hangup = signal(SignalKind::hangup())?;
        drop(_inside);
        Ok(Self { runtime, terminate, interrupt, hangup })
    }

    /// Blocks until the process is to end.
    pub(super) fn wait(self) {
        let Self { runtime, mut terminate, mut interrupt, mut hangup } = self;
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => return,
                    _ = interrupt.recv() => return,
                    _ = hangup.recv() => tracing::warn!("SIGHUP: this build does not reload; restart it to read the file again"),
                }
            }
        });
    }
}
