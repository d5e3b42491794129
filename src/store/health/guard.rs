//! Gives leave to call the store, watches what is out, and learns from how it ends.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::breaker::{Breaker, State};
use super::{Guarded, Kind, watchman};
use crate::clock::Clock;
use crate::policy::instant::Mono;
use crate::store::{Part, Store, StoreError};

/// Breakers; parts beyond share them.
const PARTS: usize = 64;
/// How often a call is looked at whose caller has been told that the store is away.
const LEFTOVER_LOOK: Duration = Duration::from_millis(100);

/// Leave to make one call.
#[derive(Debug)]
#[must_use = "leave to be a probe is given once a second"]
pub struct Leave {
    part: Part,
    kind: Kind,
    sent: Mono,
    probe: bool,
}

impl Leave {
    /// Whether it is to find out if the store is back: what must not be lost goes with another call.
    pub fn is_probe(&self) -> bool {
        self.probe
    }
}

/// What stands before a store. See the module.
pub struct Guard {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    timeout: Duration,
    control: Handle,
    breakers: Box<[Breaker]>,
    dice: AtomicU64,
    probes: AtomicU64,
    opened: AtomicU64,
    woken: Arc<Notify>,
    /// A part is there again.
    back: Notify,
    /// When damage in the store was last told.
    damage_told: AtomicU64,
}

impl Guard {
    /// A guard whose pings run on `control`; `timeout` is `store.timeout`.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, timeout: Duration, control: Handle) -> Arc<Self> {
        let guard = Arc::new(Self {
            store,
            clock,
            timeout,
            control,
            breakers: (0..PARTS).map(|_| Breaker::default()).collect(),
            // The only randomness the standard library offers; it places probes and early leases.
            dice: AtomicU64::new(RandomState::new().hash_one("dice")),
            probes: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            woken: Arc::default(),
            back: Notify::new(),
            damage_told: AtomicU64::new(0),
        });
        guard.control.spawn(watchman::keep_watch(Arc::downgrade(&guard), guard.woken.clone()));
        guard
    }

    /// The store itself.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The store for everybody who has no use for leave and watching: in an outage its calls fail at once.
    pub fn guarded(self: &Arc<Self>) -> Arc<dyn Store> {
        Arc::new(Guarded(self.clone()))
    }

    /// Time.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Where calls run that outlive the request they were made for.
    pub fn control(&self) -> &Handle {
        &self.control
    }

    /// What is known of a part.
    pub fn state(&self, part: Part) -> State {
        self.breaker(part).state()
    }

    /// Whether all parts are there.
    pub fn is_well(&self) -> bool {
        self.breakers.iter().all(|breaker| breaker.state() == State::There)
    }

    /// Waits until a part can be read.
    pub async fn until_readable(&self, part: Part) {
        loop {
            // Registered before the state is looked at: an answer in between is not missed.
            let mut back = pin!(self.back.notified());
            back.as_mut().enable();
            if self.state(part) != State::Away {
                return;
            }
            back.await;
        }
    }

    /// Calls that went out to find out whether the store is back.
    pub fn probes(&self) -> u64 {
        self.probes.load(Ordering::Relaxed)
    }

    /// How often a part was found not to be there.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Asks for leave to make a call now. `None`: its answer would be waited for in vain.
    pub fn permit(&self, part: Part, kind: Kind, now: Mono) -> Option<Leave> {
        let probe = self.breaker(part).permit(kind, now, || self.roll())?;
        self.probes.fetch_add(u64::from(probe), Ordering::Relaxed);
        Some(Leave { part, kind, sent: now, probe })
    }

    /// Carries out a call. Should the part be away before the answer comes, `on_outage` is called once, for those who wait; the
    /// call itself goes on until `lasting` after it was sent, and is then given up.
    pub async fn watch<T>(
        self: &Arc<Self>,
        leave: Leave,
        call: impl Future<Output = Result<T, StoreError>>,
        lasting: Duration,
        mut on_outage: impl FnMut(),
    ) -> Result<T, StoreError> {
        let mut call = pin!(call);
        let breaker = self.breaker(leave.part);
        let tick = (self.timeout / 10).max(Duration::from_millis(1));
        let (mut vigil, mut told) = (Vigil::begin(leave.sent), false);
        loop {
            tokio::select! {
                biased;
                answer = &mut call => {
                    self.learn(&leave, answer.as_ref().map(|_| ()));
                    return answer;
                }
                () = sleep(if told { LEFTOVER_LOOK } else { vigil.pause(tick, self.timeout) }) => {}
            }
            let now = self.clock.mono();
            let silence = vigil.look(breaker, now, tick);
            if silence >= self.timeout {
                self.worsen(leave.part, State::Away, now, || (format!("not a word for {:?}", self.timeout), false));
            } else if silence >= tick {
                self.doubt(leave.part);
            }
            if !told && breaker.state() == State::Away {
                told = true;
                on_outage();
            }
            if told && now.since(leave.sent) >= lasting {
                return Err(StoreError::Unknown("given up: the store is away".to_owned()));
            }
        }
    }

    /// Leave, call and watch in one, for callers that want an error as soon as the part is away.
    pub async fn call<T, F: Future<Output = Result<T, StoreError>>>(
        self: &Arc<Self>,
        part: Part,
        kind: Kind,
        call: impl FnOnce() -> F,
    ) -> Result<T, StoreError> {
        match self.permit(part, kind, self.clock.mono()) {
            Some(leave) => self.watch(leave, call(), Duration::ZERO, || ()).await,
            None => {
                Err(StoreError::Unavailable("it is away; whether it is back is looked at once a second".to_owned()))
            }
        }
    }

    /// Any number; not for secrets.
    pub fn roll(&self) -> u64 {
        // splitmix64
        let mut z = self.dice.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn breaker(&self, part: Part) -> &Breaker {
        &self.breakers[part.0 % PARTS]
    }

    pub(super) fn breakers(&self) -> impl Iterator<Item = (Part, &Breaker)> {
        self.breakers.iter().enumerate().map(|(index, breaker)| (Part(index), breaker))
    }

    /// What the end of a call says about its part.
    fn learn(self: &Arc<Self>, leave: &Leave, outcome: Result<(), &StoreError>) {
        let (now, breaker, part) = (self.clock.mono(), self.breaker(leave.part), leave.part);
        if let Err(error @ StoreError::Corrupt(_)) = outcome {
            self.tell_of_damage(now, error);
        }
        match outcome {
            // A row that is not as it should be was answered all the same.
            Ok(()) | Err(StoreError::Conflict | StoreError::Corrupt(_)) => {
                let mut back = breaker.answered(now, leave.sent, self.timeout);
                back |= leave.kind == Kind::Charge && outcome.is_ok() && breaker.end(State::Refusing);
                if back {
                    self.back.notify_waiters();
                    self.tell(part, breaker, now);
                }
            }
            Err(_) if breaker.is_history(leave.sent) => {}
            Err(error @ (StoreError::Unavailable(_) | StoreError::Refused(_))) => {
                let why = || (error.to_string(), matches!(error, StoreError::Refused(_)));
                match leave.kind {
                    Kind::Read => self.worsen(part, State::Away, now, why),
                    Kind::Charge => self.worsen(part, State::Refusing, now, why),
                    Kind::Other => {}
                }
                self.doubt(part);
            }
            Err(StoreError::Unknown(_)) if leave.kind == Kind::Other => self.doubt(part),
            Err(error @ StoreError::Unknown(_)) => {
                if breaker.lost_answer(now, leave.sent) {
                    self.worsen(part, State::Away, now, || (error.to_string(), false));
                }
            }
        }
    }

    /// A row that cannot be read is answered with 503 for ever: somebody must come to know why. At most once a second.
    fn tell_of_damage(&self, now: Mono, error: &StoreError) {
        let last = self.damage_told.load(Ordering::Relaxed);
        let due = last == 0 || now.since(Mono(last)) >= Duration::from_secs(1);
        if due && self.damage_told.compare_exchange(last, now.0.max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracing::error!(%error, "something in the store is damaged");
        }
    }

    /// Finds out by a ping whether the part can be read at least, unless one is out already.
    fn doubt(self: &Arc<Self>, part: Part) {
        let breaker = self.breaker(part);
        if breaker.state() != State::Away && breaker.begin_ping() {
            self.send_ping(part);
        }
    }

    fn worsen(&self, part: Part, to: State, now: Mono, why: impl FnOnce() -> (String, bool)) {
        let breaker = self.breaker(part);
        let Some(before) = breaker.worsen(to, now, self.roll()) else { return };
        if before == State::There {
            self.opened.fetch_add(1, Ordering::Relaxed);
        }
        {
            let mut told = watchman::lock(&breaker.told);
            (told.why, told.refused) = why();
        }
        self.tell(part, breaker, now);
        self.woken.notify_one();
    }

    /// A ping beside the calls that are out; there is one at a time, and whoever sends it has claimed it.
    fn send_ping(self: &Arc<Self>, part: Part) {
        let (guard, leave) = (self.clone(), Leave { part, kind: Kind::Read, sent: self.clock.mono(), probe: false });
        self.control.spawn(async move {
            guard.ping(leave).await;
            guard.breaker(part).end_ping();
        });
    }

    /// The ping that finds out whether a part is back.
    pub(super) fn send_probe(self: &Arc<Self>, part: Part, now: Mono) {
        self.probes.fetch_add(1, Ordering::Relaxed);
        let (guard, leave) = (self.clone(), Leave { part, kind: Kind::Read, sent: now, probe: true });
        self.control.spawn(async move { guard.ping(leave).await });
    }

    /// A ping that is not answered promptly says nothing; the next one may.
    async fn ping(self: &Arc<Self>, leave: Leave) {
        let ping = self.store.ping(leave.part);
        let _too_late = timeout(self.timeout * 2, self.watch(leave, ping, self.timeout, || ())).await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.woken.notify_one();
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("is_well", &self.is_well()).finish_non_exhaustive()
    }
}

/// For how long nothing has been heard, as far as this process ran to hear it.
struct Vigil {
    silence: Duration,
    looked_at: Mono,
}

impl Vigil {
    fn begin(sent: Mono) -> Self {
        Self { silence: Duration::ZERO, looked_at: sent }
    }

    /// Until the next look: not past the moment at which the silence is an outage.
    fn pause(&self, tick: Duration, timeout: Duration) -> Duration {
        tick.min(timeout.saturating_sub(self.silence)).max(Duration::from_millis(1))
    }

    fn look(&mut self, breaker: &Breaker, now: Mono, tick: Duration) -> Duration {
        let heard = breaker.heard_at();
        if heard >= self.looked_at {
            (self.silence, self.looked_at) = (Duration::ZERO, heard);
        }
        // If this process itself did not run for a while, it could not have heard anything either.
        self.silence += now.since(self.looked_at).min(tick);
        self.looked_at = now;
        self.silence
    }
}
