//! `run`: start, wait for a signal, drain.

use std::io;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{App, Compile, Ending, StartError};
use crate::config::diagnostic::Diagnostic;
use crate::config::model::Config;

/// Serves until SIGTERM or SIGINT.
pub(super) fn run(config: Config, warnings: Vec<Diagnostic>, take_over: bool) -> Result<(), StartError> {
    let mut signals = Signals::install()?;
    let compile = recompile(&config, warnings, |config| config);
    let Some(app) = signals.start(config, compile, take_over)? else { return Ok(()) };
    signals.serve(app);
    Ok(())
}

/// Compiles the file of this configuration again, with what the command makes of it. Its `warnings` need not be told again.
pub(super) fn recompile(config: &Config, warnings: Vec<Diagnostic>, adapt: fn(Config) -> Config) -> Compile {
    let path = config.source.clone();
    let compile = move |read| {
        let (config, warnings) = crate::config::compile_file(&path, read, &|name| std::env::var(name).ok())?;
        Ok((adapt(config), warnings))
    };
    Compile { compile: Box::new(compile), warnings }
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
    pub(super) fn start(
        &mut self,
        config: Config,
        compile: Compile,
        take_over: bool,
    ) -> Result<Option<App>, StartError> {
        // A file that changed meanwhile is found changed when the gateway runs.
        match App::start(config, compile, take_over, self.streams.ended(|| ())) {
            Ok(app) => Ok(Some(app)),
            Err(StartError::Stopped) => {
                tracing::info!("{}", StartError::Stopped);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Blocks until the process is to end, and ends the gateway. A second signal means: without waiting for what is in flight.
    pub(super) fn serve(mut self, app: App) {
        let ending = self.runtime.block_on(async {
            tokio::select! {
                () = self.streams.ended(|| app.reload()) => Ending::Told,
                () = app.taken_over() => Ending::TakenOver,
            }
        });
        app.stop(ending, self.streams.ended(|| ()));
    }
}

impl Streams {
    /// Until the process is to end.
    async fn ended(&mut self, reload: impl Fn()) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => reload(),
            }
        }
    }
}
