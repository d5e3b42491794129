//! Hot reload: looks at the file, compiles what changed, and takes it into force or says why not.
//!
//! A thread of its own, because reading and compiling block. The **content** is looked at, not a time or an inode: so an editor that
//! writes anew, one that renames, and the symbolic links of a Kubernetes ConfigMap are all the same. A change is taken when two looks
//! found the same, so that nobody's half-written file counts; SIGHUP takes what is there at once.
//!
//! A pipe (`run -c <(…)`) has been read once and for all: that is told at the start, and is no trouble later.
//!
//! A file that does not compile changes nothing. What it takes to apply one is [`plan`] and a few stores: a request in flight keeps
//! the snapshot it began with.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rustix::io::Errno;

use crate::config::diagnostic::{ConfigError, Diagnostic};
use crate::config::model::Config;
use crate::config::reload::{Reload, plan};
use crate::gateway::Shared;
use crate::server::FrontTls;
use crate::upstream::read_fields;

/// How often the file is looked at. A change is in force after two looks and a compilation: well within a second.
const LOOK: Duration = Duration::from_millis(150);

/// A configuration with its warnings, or why there is none.
type Compiled = Result<(Config, Vec<Diagnostic>), ConfigError>;

/// Makes a configuration of the file.
pub struct Compile {
    /// Of what was read from it.
    pub compile: Box<dyn Fn(io::Result<Vec<u8>>) -> Compiled + Send>,
    /// The warnings about what is in force. They were told.
    pub warnings: Vec<Diagnostic>,
}

/// What a look found: the digest of the content, or why there is none.
type Found = Result<[u8; 32], io::ErrorKind>;

/// Wakes the thread.
#[derive(Debug)]
pub(super) struct Reloader(Sender<()>);

struct Watch {
    path: PathBuf,
    compile: Compile,
    shared: Arc<Shared>,
    tls: Option<Arc<FrontTls>>,
    looks: Looks,
    /// At the start it was no regular file, and it has not become one.
    read_once: bool,
}

/// What was found so far.
struct Looks {
    /// What is in force, or was refused last.
    judged: Found,
    /// A change that one look has found.
    seen: Option<Found>,
}

impl Looks {
    /// Whether this is to be judged: it is another one, and was the same the last time.
    fn are_settled(&mut self, found: Found) -> bool {
        if found == self.judged {
            self.seen = None;
            return false;
        }
        self.seen.replace(found) == Some(found)
    }

    fn judge(&mut self, found: Found) {
        *self = Self { judged: found, seen: None };
    }
}

impl Reloader {
    /// Begins to look. The thread ends when this is dropped.
    pub(super) fn start(shared: Arc<Shared>, tls: Option<Arc<FrontTls>>, compile: Compile) -> io::Result<Self> {
        let (wake, woken) = channel();
        let config = shared.config();
        note_success(&shared);
        let watch = Watch {
            path: config.source.clone(),
            looks: Looks { judged: Ok(config.digest), seen: None },
            read_once: !is_regular(&config.source).unwrap_or(true),
            compile,
            tls,
            shared,
        };
        if watch.read_once {
            watch.tell_read_once();
        }
        std::thread::Builder::new().name("reload".into()).spawn(move || watch.run(&woken))?;
        Ok(Self(wake))
    }

    /// Takes the file as it is now.
    pub(super) fn reload(&self) {
        // The thread ends only after this does.
        let _ = self.0.send(());
    }
}

impl Watch {
    fn run(mut self, woken: &Receiver<()>) {
        loop {
            match woken.recv_timeout(LOOK) {
                Ok(()) if self.is_gone() => self.tell_read_once(),
                Ok(()) => self.take(read(&self.path)),
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// There is nothing to read again.
    fn is_gone(&self) -> bool {
        self.read_once && !is_regular(&self.path).unwrap_or_default()
    }

    fn tell_read_once(&self) {
        let file = self.path.display();
        tracing::warn!(%file, "it is no regular file and cannot be read again: hot reload is off, and a change needs a restart");
    }

    fn look(&mut self) {
        if self.is_gone() {
            return;
        }
        let read = read(&self.path);
        if read.as_ref().is_err_and(is_out_of_descriptors) {
            // Says nothing about the file.
            return;
        }
        if self.looks.are_settled(found(&read)) {
            self.take(read);
        }
    }

    fn take(&mut self, read: io::Result<Vec<u8>>) {
        self.read_once = false;
        self.looks.judge(found(&read));
        let is_readable = read.is_ok();
        match (self.compile.compile)(read) {
            Ok((config, warnings)) => self.apply(config, warnings),
            Err(mut error) => {
                if !is_readable {
                    // At a start another one would be named.
                    let mend = |diagnostic: &mut Diagnostic| {
                        "put it back, it is then taken up by itself".clone_into(&mut diagnostic.mend)
                    };
                    error.0.iter_mut().for_each(mend);
                }
                error.0.iter().for_each(|diagnostic| tracing::error!("{diagnostic}"));
                self.refuse();
            }
        }
    }

    fn apply(&mut self, config: Config, warnings: Vec<Diagnostic>) {
        let shared = &self.shared;
        let old = shared.config();
        let Reload { config, changes, restart } = plan(&old, config);
        // What can still go wrong comes first; the last of it changes something.
        let fields = match read_fields(&config.upstreams) {
            Ok(fields) => fields,
            Err(error) => {
                tracing::error!("{error}");
                return self.refuse();
            }
        };
        if let (Some(tls), Some(settings)) = (&self.tls, &config.listen.tls)
            && old.listen.tls != config.listen.tls
            && let Err(error) = tls.reconfigure(settings)
        {
            tracing::error!("listen.public.tls: {error}");
            return self.refuse();
        }
        shared.limiter.set_outage_quota(config.store.outage_quota);
        shared.reload(config, fields);
        shared.metrics.reloads.applied.increment(1);
        shared.metrics.reloads.restart_needed.set(f64::from(u8::from(!restart.is_empty())));
        note_success(shared);
        let file = self.path.display();
        let (known, new): (Vec<_>, Vec<_>) =
            warnings.iter().partition(|warning| self.compile.warnings.iter().any(|told| is_same(told, warning)));
        new.iter().for_each(|warning| tracing::warn!("{warning}"));
        let remain = match known.len() {
            0 => String::new(),
            1 => "; 1 warning remains".to_owned(),
            count => format!("; {count} warnings remain"),
        };
        tracing::info!(%file, "configuration reloaded; {}{remain}", changes.told(&restart));
        if !restart.is_empty() {
            let members = restart.join(", ");
            tracing::warn!(%file, "not taken up before a restart, their old values stay in force: {members}");
        }
        self.compile.warnings = warnings;
    }

    fn refuse(&self) {
        self.shared.metrics.reloads.refused.increment(1);
        self.shared.metrics.reloads.stale.set(1.0);
        tracing::error!(file = %self.path.display(), "configuration refused; what was in force stays in force");
    }
}

/// Never waits: whoever writes to a pipe may be long gone, and nothing would be taken up any more.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !is_regular(path)? {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no regular file, so no change of it can be seen",
        ));
    }
    std::fs::read(path)
}

/// Wherever it stands by now: lines move.
fn is_same(a: &Diagnostic, b: &Diagnostic) -> bool {
    (&a.place, &a.what) == (&b.place, &b.what)
}

fn is_regular(path: &Path) -> io::Result<bool> {
    std::fs::metadata(path).map(|metadata| metadata.is_file())
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

fn found(read: &io::Result<Vec<u8>>) -> Found {
    read.as_ref().map(|bytes| *blake3::hash(bytes).as_bytes()).map_err(io::Error::kind)
}

fn note_success(shared: &Shared) {
    shared.metrics.reloads.stale.set(0.0);
    shared.metrics.reloads.last_success.set(shared.clock.wall().unix_seconds() as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_when_two_looks_have_found_the_same() {
        let (old, half, new) = (Ok([0; 32]), Ok([1; 32]), Ok([2; 32]));
        let gone = Err(io::ErrorKind::NotFound);
        let mut looks = Looks { judged: old, seen: None };
        let mut look = |found: Found| looks.are_settled(found);
        assert!(!look(old) && !look(half) && !look(new) && look(new));
        // An editor that removes before it writes.
        assert!(!look(old) && !look(gone) && !look(new) && look(new));
        // Back to what it was, in the middle of something: as if nothing had been.
        assert!(!look(half) && !look(old) && !look(half));
        looks.judge(new);
        assert!(!looks.are_settled(new) && !looks.are_settled(gone) && looks.are_settled(gone));
    }
}
