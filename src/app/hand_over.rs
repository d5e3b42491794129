//! Rolling restart: on the one side whoever asks for our sockets, on the other what follows when we have got somebody else's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::presence::Presence;
use crate::gateway::Shared;
use crate::server::take_over::{Link, Sockets, Successor};
use crate::usage::journal::{Journal, JournalError};

/// A journal that cannot be opened is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// What this process would hand over, and whether it has.
pub(super) struct HandOver {
    presence: Arc<Presence>,
    /// `None`: not any more. Closed with the listeners, or their queues would stay open and nobody accept.
    sockets: Mutex<Option<Sockets>>,
    /// Who has them. It waits for the end of this line, which is to be the end of this process.
    successor: Mutex<Option<Successor>>,
    done: watch::Sender<bool>,
}

impl HandOver {
    pub(super) fn new(presence: Arc<Presence>, sockets: Option<Sockets>) -> Arc<Self> {
        Arc::new(Self {
            presence,
            sockets: Mutex::new(sockets),
            successor: Mutex::default(),
            done: watch::Sender::new(false),
        })
    }

    /// Waits until another process serves on our sockets.
    pub(super) async fn done(&self) {
        // It lives as long as we look at it.
        let _ = self.done.subscribe().wait_for(|done| *done).await;
    }

    /// Nothing is handed over any more.
    pub(super) fn close(&self) {
        drop(self.sockets().take());
    }

    fn sockets(&self) -> std::sync::MutexGuard<'_, Option<Sockets>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers at the doorway, one after the other, until one has taken over.
    pub(super) async fn offer(self: Arc<Self>) {
        let doorway = self.sockets().as_ref().map(|sockets| sockets.doorway.try_clone());
        let Some(Ok(doorway)) = doorway else { return };
        let Ok(doorway) = doorway.set_nonblocking(true).and_then(|()| UnixListener::from_std(doorway)) else { return };
        loop {
            let Ok(stream) = doorway.accept().await.and_then(|(stream, _)| stream.into_std()) else {
                sleep(RETRY).await;
                continue;
            };
            let this = self.clone();
            if spawn_blocking(move || this.serve(stream)).await.unwrap_or(false) {
                self.done.send_replace(true);
                return;
            }
        }
    }

    fn serve(&self, stream: std::os::unix::net::UnixStream) -> bool {
        let mut successor = match Successor::greet(stream) {
            Ok(successor) => successor,
            Err(error) => {
                tracing::warn!(%error, "somebody who may not have them asked for the listening sockets");
                return false;
            }
        };
        let control = Handle::current();
        // It will register under our name; until we are gone both have to be waited for.
        if let Err(error) = control.block_on(self.presence.step_aside()) {
            tracing::warn!(%error, "another process asked for the listening sockets, and the store cannot be told; not now");
            return false;
        }
        tracing::info!("another process takes over");
        let given = self.sockets().as_ref().map(|sockets| successor.give(sockets));
        let taken = matches!(given, Some(Ok(()))) && successor.serves();
        if !taken {
            tracing::warn!("the process that was to take over does not serve; going on");
            if let Err(error) = control.block_on(self.presence.step_back()) {
                tracing::warn!(%error, "the store could not be told");
            }
            return false;
        }
        *self.successor.lock().unwrap_or_else(PoisonError::into_inner) = Some(successor);
        true
    }
}

/// Waits for the end of the process before us, and then has what two cannot have at once: the usage journal.
pub(super) async fn after(link: Link, shared: Arc<Shared>) {
    match spawn_blocking(move || link.wait_for_the_end()).await {
        Ok(Ok(())) => tracing::info!("the process before this one has ended"),
        Ok(Err(error)) => tracing::warn!(%error, "the process before this one cannot be watched"),
        Err(_) => return,
    }
    let Some(path) = shared.config().usage.journal.clone() else { return };
    loop {
        let (path, clock) = (path.clone(), shared.clock.clone());
        match spawn_blocking(move || Journal::open(&path, clock)).await {
            Ok(Ok(journal)) => return shared.usage.adopt(journal).await,
            Ok(Err(error @ JournalError::Locked(_))) => tracing::warn!(%error, "waiting for it"),
            Ok(Err(error)) => tracing::error!(%error, "usage is counted without its journal"),
            Err(_) => return,
        }
        sleep(RETRY).await;
    }
}
