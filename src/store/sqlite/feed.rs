//! The thread that notices what any process has changed, and its subscribers.
//!
//! `PRAGMA data_version` costs microseconds and changes whenever another connection has committed, the own writer's included; only
//! then the `changes` table is read. The own writer also wakes the thread, so that one's own changes arrive within a millisecond.

use std::fmt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::store::{Change, ChangeFeed, FeedItem, Revision, StoreError};

use super::changes::{self, Page};
use super::task::spawn;

/// How often other processes' changes are looked for. Contract: obeyed within 250 ms.
const POLL: Duration = Duration::from_millis(10);

/// After so many looks without news subscribers are told that there are none.
const QUIET_LOOKS: u32 = 5;

/// Makes the feed look at once.
pub(super) struct Waker(SyncSender<()>);

impl Waker {
    pub(super) fn wake(&self) {
        // Full means that it is about to look anyway.
        let _ = self.0.try_send(());
    }
}

#[derive(Default)]
struct Subscribers {
    senders: Vec<UnboundedSender<FeedItem>>,
    /// Between `Lost` and `Restored`.
    lost: bool,
}

/// The running feed; dropping it ends its thread.
pub(super) struct Feed {
    subscribers: Arc<Mutex<Subscribers>>,
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Feed")
    }
}

impl Feed {
    /// Starts at the newest revision of now.
    pub(super) fn start(connection: Connection) -> Result<Self, StoreError> {
        connection.pragma_update(None, "query_only", true)?;
        let data_version = data_version(&connection)?;
        let last = changes::newest(&connection)?;
        let subscribers = Arc::new(Mutex::new(Subscribers::default()));
        let (wake, woken) = mpsc::sync_channel(1);
        let state =
            FeedThread { connection, subscribers: Arc::clone(&subscribers), data_version, last, shown: last, quiet: 0 };
        let thread = spawn("sqlite-feed", move || state.run(&woken))?;
        Ok(Self { subscribers, wake: Some(wake), thread: Some(thread) })
    }

    pub(super) fn waker(&self) -> Waker {
        Waker(self.wake.clone().expect("only drop takes it"))
    }

    pub(super) fn subscribe(&self) -> ChangeFeed {
        let (sender, receiver) = unbounded_channel();
        let mut subscribers = lock(&self.subscribers);
        if subscribers.lost {
            let _ = sender.send(FeedItem::Lost);
        }
        subscribers.senders.push(sender);
        receiver
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            // It panicked at worst; there is nothing left to save then.
            let _ = thread.join();
        }
    }
}

fn lock(subscribers: &Mutex<Subscribers>) -> MutexGuard<'_, Subscribers> {
    subscribers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn data_version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?)
}

struct FeedThread {
    connection: Connection,
    subscribers: Arc<Mutex<Subscribers>>,
    data_version: i64,
    /// The last revision that was read.
    last: Revision,
    /// The last revision that subscribers were told: that of the last change which is no recall.
    shown: Revision,
    /// Looks without news since the last sign of life.
    quiet: u32,
}

impl FeedThread {
    fn run(mut self, woken: &Receiver<()>) {
        while !matches!(woken.recv_timeout(POLL), Err(RecvTimeoutError::Disconnected)) {
            match self.look() {
                Ok(Some(Page::Rows(rows))) if !rows.is_empty() => self.deliver(rows),
                Ok(Some(Page::Missed(newest))) => {
                    self.lose();
                    self.restore(newest);
                }
                Ok(_) => self.say_alive(),
                Err(_) => self.lose(),
            }
        }
    }

    /// `None` when nobody has committed anything since the last look.
    fn look(&mut self) -> Result<Option<Page>, StoreError> {
        let data_version = data_version(&self.connection)?;
        let lost = lock(&self.subscribers).lost;
        if data_version == self.data_version && !lost {
            return Ok(None);
        }
        let page = changes::after(&self.connection, self.last)?;
        self.data_version = data_version;
        if lost {
            // It can be read again. What is cached is stale, whether or not rows were missed.
            return Ok(Some(Page::Missed(changes::newest(&self.connection)?)));
        }
        Ok(Some(page))
    }

    fn deliver(&mut self, rows: Vec<(Revision, Change)>) {
        let Some(&(last, _)) = rows.last() else { return };
        self.last = last;
        let counts = |change: &Change| !matches!(change, Change::Recall(..));
        if let Some((revision, _)) = rows.iter().rfind(|(_, change)| counts(change)) {
            self.shown = *revision;
        }
        let item = FeedItem::Changes(self.shown, rows.into_iter().map(|(_, change)| change).collect());
        lock(&self.subscribers).send(&item);
    }

    /// Nothing happened, and that is known: every few looks subscribers are told so.
    fn say_alive(&mut self) {
        self.quiet = (self.quiet + 1) % QUIET_LOOKS;
        if self.quiet == 0 {
            lock(&self.subscribers).send(&FeedItem::Changes(self.shown, Vec::new()));
        }
    }

    fn lose(&self) {
        let mut subscribers = lock(&self.subscribers);
        if !subscribers.lost {
            subscribers.lost = true;
            subscribers.send(&FeedItem::Lost);
        }
    }

    fn restore(&mut self, newest: Revision) {
        (self.last, self.shown) = (newest, newest);
        let mut subscribers = lock(&self.subscribers);
        subscribers.lost = false;
        subscribers.send(&FeedItem::Restored(newest));
    }
}

impl Subscribers {
    /// Whoever dropped the receiving end is forgotten.
    fn send(&mut self, item: &FeedItem) {
        self.senders.retain(|sender| sender.send(item.clone()).is_ok());
    }
}
