//! `run`: start, wait for a signal, drain.

use std::io;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{App, StartError};
use crate::config::model::Config;

/// Serves until SIGTERM or SIGINT.
pub(super) fn run(config: Config) -> Result<(), StartError> {
    let mut signals = Signals::install()?;
    let Some(app) = signals.start(config)? else { return Ok(()) };
    signals.wait();
    app.stop();
    Ok(())
}

/// SIGTERM, SIGINT and SIGHUP, caught from the moment this exists: one that comes while the gateway starts still drains it.
pub(super) struct Signals {
    runtime: Runtime,
    streams: Streams,
}

/// Where they arrive; any runtime may wait for them.
struct Streams {
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
        Ok(Self { runtime, streams: Streams { terminate, interrupt, hangup } })
    }

    /// Starts a gateway; `None`: the process was told to end before it served.
    pub(super) fn start(&mut self, config: Config) -> Result<Option<App>, StartError> {
        match App::start(config, self.streams.ended()) {
            Ok(app) => Ok(Some(app)),
            Err(StartError::Stopped) => {
                tracing::info!("{}", StartError::Stopped);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Blocks until the process is to end.
    pub(super) fn wait(mut self) {
        self.runtime.block_on(self.streams.ended());
    }
}

impl Streams {
    /// Until the process is to end.
    async fn ended(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => tracing::warn!("SIGHUP: this build does not reload; restart it to read the file again"),
            }
        }
    }
}
