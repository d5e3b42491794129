//! What others change, pushed: one supervised connection to each master, and the subscribers.
//!
//! The server is asked to push the names of all keys, accounts and recall markers that change (`CLIENT TRACKING ON BCAST`, RESP3).
//! A script that changes the registry touches the name `seq:REVISION` too, and names of one prefix that change together come in
//! one message: so a message says what changed and up to which revision everything has been told. A name without a revision (a
//! record written by another program, a secret that expired) is passed on under the last one.
//!
//! A connection that is lost means that changes may have been missed: subscribers hear [`FeedItem::Lost`] at once, and
//! [`FeedItem::Restored`] only after tracking is on again **everywhere**. Where the server refuses tracking, the channel on which
//! scripts publish the same news is subscribed to instead.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, PushInfo, PushKind, RedisError, ServerErrorKind, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::connect::{Address, RedisConfig, connect, of_answer};
use super::names::Names;
use super::topology::Topology;
use crate::policy::credential::KeyHash;
use crate::policy::key::{AccountId, KeyId};
use crate::policy::quota::{MINUTE_SECONDS, Minute, Subject};
use crate::store::{Change, ChangeFeed, FeedItem, Revision, StoreError};

/// How often the connection is asked for a sign of life, which is also how subscribers learn that nothing happened.
const BEAT: Duration = Duration::from_millis(500);
/// Silent for longer than this, the connection is given up.
pub(super) const SILENCE: Duration = Duration::from_millis(1500);
/// What arming a connection may take.
const ARM: Duration = Duration::from_secs(1);
/// Before the next attempt.
const PAUSE: Duration = Duration::from_millis(200);

/// The subscribers, and whether all masters are listened to.
pub(super) struct Hub {
    names: Names,
    state: Mutex<State>,
    /// Whether nothing is missed.
    whole: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    senders: Vec<UnboundedSender<FeedItem>>,
    /// Masters that are listened to, and those among them that refuse tracking.
    armed: HashSet<Address>,
    refused: HashSet<Address>,
    masters: HashSet<Address>,
    told: Revision,
    lost: bool,
    /// Nobody was told anything yet, or trusted it.
    beginning: bool,
}

impl Hub {
    /// Begins to listen. Needs the runtime on which the connections shall live.
    pub(super) fn start(config: &Arc<RedisConfig>, names: &Names, topology: &Arc<Topology>) -> Arc<Self> {
        let state = State { lost: true, beginning: true, ..State::default() };
        let hub = Arc::new(Self { names: names.clone(), state: Mutex::new(state), whole: watch::Sender::new(false) });
        tokio::spawn(follow_masters(Arc::downgrade(&hub), config.clone(), Arc::downgrade(topology)));
        hub
    }

    pub(super) fn subscribe(&self) -> ChangeFeed {
        let (sender, receiver) = unbounded_channel();
        let mut state = self.state();
        if state.lost && !state.beginning {
            // The receiver is in hand.
            let _ = sender.send(FeedItem::Lost);
        }
        state.senders.push(sender);
        receiver
    }

    /// Waits a moment for all masters to be listened to. Whoever subscribes afterwards is told when they are not.
    pub(super) async fn begin(&self, patience: Duration) {
        let mut whole = self.whole.subscribe();
        drop(timeout(patience, whole.wait_for(|whole| *whole)).await);
        let mut state = self.state();
        if std::mem::take(&mut state.beginning) && state.lost {
            state.send(&FeedItem::Lost);
        }
    }

    /// Masters that do not let names be tracked.
    pub(super) fn refusing(&self) -> Vec<Address> {
        self.state().refused.iter().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, masters: HashSet<Address>) {
        let mut state = self.state();
        state.armed.retain(|address| masters.contains(address));
        state.refused.retain(|address| masters.contains(address));
        state.masters = masters;
        if state.masters.is_empty() || state.masters.iter().any(|master| !state.armed.contains(master)) {
            self.lose(&mut state);
        }
    }

    fn lose(&self, state: &mut State) {
        if !state.lost {
            state.lost = true;
            state.send(&FeedItem::Lost);
            self.whole.send_replace(false);
        }
    }

    fn disarmed(&self, address: &Address) {
        let mut state = self.state();
        state.armed.remove(address);
        if state.masters.contains(address) {
            self.lose(&mut state);
        }
    }

    /// A connection listens from now on; the registry stood at this revision after it began, as far as this master knows.
    fn armed(&self, address: &Address, tracked: bool, revision: Revision) {
        let mut state = self.state();
        state.told = state.told.max(revision);
        state.armed.insert(address.clone());
        if tracked {
            state.refused.remove(address);
        } else {
            state.refused.insert(address.clone());
        }
        if state.lost && state.masters.iter().all(|master| state.armed.contains(master)) {
            state.lost = false;
            let told = state.told;
            if !std::mem::take(&mut state.beginning) {
                state.send(&FeedItem::Restored(told));
            }
            self.whole.send_replace(true);
        }
    }

    fn tell(&self, revision: Option<Revision>, changes: Vec<Change>) {
        let mut state = self.state();
        state.told = state.told.max(revision.unwrap_or_default());
        if !state.lost {
            let item = FeedItem::Changes(state.told, changes);
            state.send(&item);
        }
    }

    /// Everything was forgotten (FLUSHALL), so everything that is cached is wrong.
    fn emptied(&self) {
        let mut state = self.state();
        if !state.lost {
            let told = state.told;
            state.send(&FeedItem::Lost);
            state.send(&FeedItem::Restored(told));
        }
    }
}

impl State {
    /// Whoever dropped the receiving end is forgotten.
    fn send(&mut self, item: &FeedItem) {
        self.senders.retain(|sender| sender.send(item.clone()).is_ok());
    }
}

/// Has a listener for each master of the view, for as long as the store lives.
async fn follow_masters(hub: Weak<Hub>, config: Arc<RedisConfig>, topology: Weak<Topology>) {
    let Some(mut changes) = topology.upgrade().map(|topology| topology.changes()) else { return };
    let mut listeners: Vec<(Address, tokio::task::AbortHandle)> = Vec::new();
    loop {
        changes.mark_unchanged();
        let (Some(alive), Some(view)) = (hub.upgrade(), topology.upgrade().map(|topology| topology.view())) else {
            break;
        };
        let masters: HashSet<Address> = view.masters.iter().map(|node| node.address.clone()).collect();
        listeners.retain(|(address, task)| {
            let stays = masters.contains(address);
            if !stays {
                task.abort();
            }
            stays
        });
        alive.expect(masters.clone());
        for address in masters {
            if !listeners.iter().any(|(known, _)| *known == address) {
                let task = tokio::spawn(listen(hub.clone(), config.clone(), address.clone()));
                listeners.push((address, task.abort_handle()));
            }
        }
        drop(alive);
        if changes.changed().await.is_err() {
            break;
        }
    }
    listeners.iter().for_each(|(_, task)| task.abort());
}

/// Listens to one master, again and again.
async fn listen(hub: Weak<Hub>, config: Arc<RedisConfig>, address: Address) {
    loop {
        let Some(names) = hub.upgrade().map(|hub| hub.names.clone()) else { return };
        match Listener::arm(&config, &names, &address).await {
            Ok(mut listener) => {
                if let Some(hub) = hub.upgrade() {
                    hub.armed(&address, listener.tracked, listener.revision);
                }
                listener.run(&hub).await;
            }
            Err(error) => tracing::debug!(%error, "changes cannot be followed"),
        }
        let Some(hub) = hub.upgrade() else { return };
        hub.disarmed(&address);
        drop(hub);
        sleep(PAUSE).await;
    }
}

/// One connection that listens.
struct Listener {
    connection: MultiplexedConnection,
    pushed: UnboundedReceiver<PushInfo>,
    registry: String,
    recalls: String,
    /// Whether the server pushes names; otherwise news comes over the channel.
    tracked: bool,
    revision: Revision,
    /// The server's clock ahead of ours: microseconds of the epoch at `heard`.
    clock: u64,
    heard: Instant,
}

impl Listener {
    /// Connects and asks to be told. When this returns, nothing that follows is missed.
    async fn arm(config: &RedisConfig, names: &Names, address: &Address) -> Result<Self, StoreError> {
        let (sender, pushed) = unbounded_channel();
        let mut connection = connect(config, address, sender).await?;
        let named = |error: RedisError| of_answer(address, &error);
        let armed = async {
            let (registry, recalls) = (names.registry(), names.recalls());
            let mut track = redis::cmd("CLIENT");
            track.arg("TRACKING").arg("ON").arg("BCAST").arg("PREFIX").arg(&registry).arg("PREFIX").arg(&recalls);
            let tracked = match track.query_async::<()>(&mut connection).await {
                Ok(()) => true,
                Err(error) if refuses(&error) => {
                    connection.subscribe(names.channel()).await?;
                    false
                }
                Err(error) => return Err(error),
            };
            let clock = time(&mut connection).await?;
            // A master of other slots points elsewhere, and knows no revision.
            let revision = redis::cmd("GET").arg(names.aux("rev")).query_async::<Option<u64>>(&mut connection).await;
            Ok((tracked, clock, revision.ok().flatten().unwrap_or_default(), registry, recalls))
        };
        let (tracked, clock, revision, registry, recalls) = timeout(ARM, armed)
            .await
            .map_err(|_| StoreError::Unavailable(format!("{address} did not answer")))?
            .map_err(named)?;
        let heard = Instant::now();
        Ok(Self { connection, pushed, registry, recalls, tracked, revision: Revision(revision), clock, heard })
    }

    /// Until the connection ends or falls silent.
    async fn run(&mut self, hub: &Weak<Hub>) {
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (answers, mut answered) = unbounded_channel::<Option<(u64, Instant)>>();
        loop {
            tokio::select! {
                biased;
                push = self.pushed.recv() => {
                    let (Some(push), Some(hub)) = (push, hub.upgrade()) else { return };
                    if push.kind == PushKind::Disconnection {
                        return;
                    }
                    self.pass_on(&hub, push);
                }
                // What was pushed before the answer was read above: nothing is under way.
                clock = answered.recv() => {
                    let (Some(Some((clock, sent))), Some(hub)) = (clock, hub.upgrade()) else { return };
                    (self.clock, self.heard) = (clock, Instant::now());
                    // An answer that lay there while this process was stopped says nothing about now.
                    if sent.elapsed() < BEAT {
                        hub.tell(None, Vec::new());
                    }
                }
                _ = beats.tick() => {
                    if Instant::now().duration_since(self.heard) > SILENCE {
                        return;
                    }
                    let (mut connection, answers) = (self.connection.clone(), answers.clone());
                    tokio::spawn(async move {
                        let sent = Instant::now();
                        let clock = timeout(SILENCE, time(&mut connection)).await;
                        let clock = clock.ok().and_then(Result::ok).map(|clock| (clock, sent));
                        let _nobody_listens_any_more = answers.send(clock);
                    });
                }
            }
        }
    }

    fn pass_on(&self, hub: &Hub, push: PushInfo) {
        match (push.kind, push.data.as_slice()) {
            (PushKind::Invalidate, [Value::Array(names)]) => {
                let names = names.iter().filter_map(text);
                let news = self.understand(names);
                hub.tell(news.revision, news.changes);
            }
            (PushKind::Invalidate, _) => hub.emptied(),
            (PushKind::Message, [_, Value::BulkString(message)]) => {
                let news = published(&String::from_utf8_lossy(message));
                hub.tell(news.revision, news.changes);
            }
            _ => {}
        }
    }

    fn understand<'n>(&self, names: impl Iterator<Item = &'n str>) -> News {
        let mut news = News::default();
        for name in names {
            if let Some(name) = name.strip_prefix(&self.registry) {
                news.add(name);
            } else if let Some(subject) = name.strip_prefix(&self.recalls) {
                let subject = Subject::from_stored(subject.trim_start_matches('{').trim_end_matches('}'));
                news.changes.push(Change::Recall(subject, self.minute()));
            }
        }
        news
    }

    /// The server's minute. A recall is about the minute in which it is pushed; at worst tokens of the next go back.
    fn minute(&self) -> Minute {
        let micros = self.clock + Instant::now().duration_since(self.heard).as_micros() as u64;
        (micros / 1_000_000 / MINUTE_SECONDS) as Minute
    }
}

/// What one message says.
#[derive(Debug, Default, PartialEq, Eq)]
struct News {
    revision: Option<Revision>,
    changes: Vec<Change>,
}

impl News {
    /// A name without the registry's prefix. One that this version does not know concerns nothing that it caches.
    fn add(&mut self, name: &str) {
        let Some((kind, id)) = name.split_once(':') else { return };
        match kind {
            "key" => self.changes.extend(KeyId::parse(id).ok().map(Change::Key)),
            "acct" => self.changes.extend(AccountId::parse(id).ok().map(Change::Account)),
            "secret" => {
                let hash = blake3::Hash::from_hex(id).ok();
                self.changes.extend(hash.map(|hash| Change::Secret(KeyHash(*hash.as_bytes()))));
            }
            "seq" => self.revision = self.revision.max(id.parse().ok().map(Revision)),
            _ => {}
        }
    }
}

/// A message of the channel: `REVISION NAME…`, or `recall MINUTE SUBJECT`.
fn published(message: &str) -> News {
    let mut words = message.split_ascii_whitespace();
    let mut news = News::default();
    match words.next() {
        Some("recall") => {
            let minute = words.next().and_then(|minute| minute.parse().ok());
            news.changes.extend(
                minute.zip(words.next()).map(|(minute, subject)| Change::Recall(Subject::from_stored(subject), minute)),
            );
        }
        revision => {
            news.revision = revision.and_then(|revision| revision.parse().ok()).map(Revision);
            words.for_each(|name| news.add(name));
        }
    }
    news
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// Whether the server answered that it does not do this, or not for us.
fn refuses(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::NoPerm | ServerErrorKind::ResponseError))
        || error.kind() == ErrorKind::Extension
}

async fn time(connection: &mut MultiplexedConnection) -> redis::RedisResult<u64> {
    let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(connection).await?;
    Ok(seconds * 1_000_000 + micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::{account_id, hash, key_id, subject};

    #[test]
    fn what_is_published_is_understood_as_what_is_pushed() {
        let message = format!("42 key:k1 secret:{} acct:a1 novelty:x", hash("k1").to_hex());
        let changes = vec![Change::Key(key_id("k1")), Change::Secret(hash("k1")), Change::Account(account_id("a1"))];
        assert_eq!(published(&message), News { revision: Some(Revision(42)), changes });
        let recall = News { revision: None, changes: vec![Change::Recall(subject("a1"), 7)] };
        assert_eq!(published("recall 7 account:live:a1"), recall);
        for nonsense in ["", "x", "recall", "recall x y"] {
            assert_eq!(published(nonsense), News::default(), "{nonsense}");
        }
    }
}
