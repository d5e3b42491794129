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

/// SIGTERM and SIGINT, caught from the moment this exists: one that comes while the gateway starts still drains it.
pub(super) struct Signals {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes both over from their default, which would kill.
    pub(super) fn install() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let _inside = runtime.enter();
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        drop(_inside);
        Ok(Self { runtime, terminate, interrupt })
    }

    /// Blocks until one of them comes.
    pub(super) fn wait(self) {
        let Self { runtime, mut terminate, mut interrupt } = self;
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
    }
}
