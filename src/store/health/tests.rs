//! The guard over a store that fails on command, in simulated time.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance, sleep, timeout};

use super::*;
use crate::clock::SimulatedClock;
use crate::policy::credential::KeyHash;
use crate::policy::key::Environment;
use crate::policy::quota::{LeaseReply, LeaseRequest, Seen, Subject};
use crate::store::faulty::{Fault, FaultyStore, Method};
use crate::store::memory::MemoryStore;
use crate::store::{Part, ReplicaId, Store, StoreError, StoredKey};

const TIMEOUT: Duration = Duration::from_millis(50);
/// When an outage must have ended that nobody has asked about: the probe's second, a tenth more, and the ping itself.
const RECOVERY: Duration = Duration::from_millis(1_160);

struct Fixture {
    store: Arc<FaultyStore>,
    guard: Arc<Guard>,
}

fn fixture() -> Fixture {
    let store = FaultyStore::in_parts(MemoryStore::new(), |subject| Part(usize::from(*subject == subject_of(1))));
    let guard = Guard::new(store.clone(), SimulatedClock::shared(0), TIMEOUT, Handle::current());
    Fixture { store, guard }
}

/// A subject whose ledger is in this part.
fn subject_of(part: usize) -> Subject {
    Subject::new("account", Environment::Live, &format!("a{part}"))
}

impl Fixture {
    async fn read(&self) -> Result<Option<StoredKey>, StoreError> {
        self.guard.call(Part(0), Kind::Read, || self.store.key_by_secret(KeyHash([1; 32]))).await
    }

    fn spawn_read(&self) -> JoinHandle<Result<Option<StoredKey>, StoreError>> {
        let (store, guard) = (self.store.clone(), self.guard.clone());
        tokio::spawn(async move { guard.call(Part(0), Kind::Read, || store.key_by_secret(KeyHash([1; 32]))).await })
    }

    async fn charge(&self, part: usize) -> Result<LeaseReply, StoreError> {
        let request = LeaseRequest {
            target: None,
            want: 1,
            need: 1,
            limits: crate::policy::key::QuotaLimits { requests_per_minute: 60, requests_per_day: 1_000 },
            first: false,
            give_back: None,
            debit: None,
            seen: Seen::default(),
        };
        self.guard.call(Part(part), Kind::Charge, || self.store.lease(subject_of(part), request)).await
    }

    fn state(&self) -> State {
        self.guard.state(Part(0))
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_an_outage_after_the_timeout_and_one_ping_a_second_looks_whether_it_is_over() {
    let f = fixture();
    f.read().await.unwrap();
    f.store.inject_everywhere(Fault::Hold);
    let started = Instant::now();
    assert!(matches!(f.read().await, Err(StoreError::Unknown(_))));
    let waited = started.elapsed();
    assert!(waited >= TIMEOUT && waited <= TIMEOUT + Duration::from_millis(10), "{waited:?}");
    assert_eq!((f.state(), f.guard.opened()), (State::Away, 1));

    let pings = f.store.calls(Method::Ping);
    let started = Instant::now();
    for _ in 0..10_000 {
        assert!(matches!(f.read().await, Err(StoreError::Unavailable(_))));
        sleep(Duration::from_millis(1)).await;
    }
    assert!(started.elapsed() < Duration::from_millis(20_010), "nobody waits: {:?}", started.elapsed());
    let seconds = started.elapsed().as_secs();
    let pings = f.store.calls(Method::Ping) - pings;
    assert!((seconds * 8 / 10..=seconds * 12 / 10).contains(&pings), "{pings} pings in {seconds} s");
    assert_eq!(f.guard.probes(), pings);
    assert_eq!(f.store.calls(Method::KeyBySecret), 2, "nothing else goes out");

    f.store.heal();
    sleep(RECOVERY).await;
    assert!(f.guard.is_well(), "nobody had to ask");
    f.read().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn slow_answers_among_pings_are_no_outage() {
    let f = fixture();
    f.store.inject(Method::KeyBySecret, Fault::DelayReply(Duration::from_millis(200)));
    // Pings that take their time, but not too much of it.
    f.store.inject(Method::Ping, Fault::DelayReply(Duration::from_millis(30)));
    for _ in 0..20 {
        let reads: Vec<_> = (0..10).map(|_| f.spawn_read()).collect();
        for read in reads {
            read.await.unwrap().unwrap();
        }
        assert!(f.guard.is_well());
    }
    assert_eq!((f.guard.opened(), f.guard.probes()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_too_slow_in_every_answer_is_away() {
    let f = fixture();
    f.store.inject_everywhere(Fault::DelayReply(Duration::from_millis(60)));
    f.read().await.unwrap_err();
    sleep(Duration::from_secs(10)).await;
    assert_eq!((f.state(), f.guard.opened()), (State::Away, 1), "its late answers do not end the outage");
}

#[tokio::test(start_paused = true)]
async fn a_stall_of_this_process_is_no_outage() {
    let f = fixture();
    for heard_before in [false, true] {
        f.store.inject(Method::KeyBySecret, Fault::Hold);
        if !heard_before {
            f.store.inject(Method::Ping, Fault::Hold);
        }
        let read = f.spawn_read();
        sleep(Duration::from_millis(12)).await;
        f.store.inject(Method::Ping, Fault::Hold);
        advance(Duration::from_secs(10)).await;
        sleep(Duration::from_millis(12)).await;
        assert!(f.guard.is_well(), "it could not have heard anything");
        f.store.heal();
        f.store.release();
        read.await.unwrap().unwrap();
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn parts_fail_on_their_own() {
    let f = fixture();
    f.store.inject_into(Part(1), Fault::Hold);
    f.charge(1).await.unwrap_err();
    assert_eq!((f.guard.state(Part(1)), f.state()), (State::Away, State::There));
    assert!(!f.guard.is_well());
    for _ in 0..100 {
        f.charge(0).await.unwrap();
        f.read().await.unwrap();
        assert!(matches!(f.charge(1).await, Err(StoreError::Unavailable(_))));
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((f.guard.opened(), f.store.calls(Method::Lease)), (1, 101));
    f.store.heal();
    sleep(RECOVERY).await;
    f.charge(1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_full_is_read_on_and_one_charge_a_second_finds_out_whether_it_still_is() {
    let f = fixture();
    f.store.inject(Method::Lease, Fault::Unavailable);
    let charges = async |millis: u64| {
        for _ in 0..millis {
            let _ = f.charge(0).await;
            sleep(Duration::from_millis(1)).await;
        }
    };
    charges(1).await;
    assert_eq!(f.state(), State::Refusing);
    charges(10_000).await;
    let made = f.store.calls(Method::Lease);
    assert!((9..=14).contains(&made), "{made} charges");
    assert_eq!(f.guard.probes(), made - 1);
    f.read().await.unwrap();
    f.store.heal();
    charges(1_200).await;
    assert!(f.guard.is_well());

    // Of what nobody tries any more nobody knows.
    f.store.inject(Method::Lease, Fault::Unavailable);
    f.charge(0).await.unwrap_err();
    sleep(Duration::from_secs(4)).await;
    assert_eq!(f.state(), State::Refusing);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(f.state(), State::There);
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_is_an_outage_at_once_whoever_meets_it() {
    let f = fixture();
    f.store.inject_everywhere(Fault::Unavailable);
    f.charge(0).await.unwrap_err();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(f.state(), State::Away, "the ledger alone does not refuse: a ping has found out");

    let f = fixture();
    f.store.inject_everywhere(Fault::Unavailable);
    f.guard.guarded().heartbeat(ReplicaId("r".into())).await.unwrap_err();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(f.state(), State::Away);

    let f = fixture();
    f.store.inject(Method::FlushUsage, Fault::Unavailable);
    f.store.inject(Method::Heartbeat, Fault::LoseReply);
    for _ in 0..5 {
        f.guard.guarded().heartbeat(ReplicaId("r".into())).await.unwrap_err();
    }
    sleep(Duration::from_millis(1)).await;
    assert_eq!(f.state(), State::There, "pings are answered");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_cut_under_many_calls_is_no_outage() {
    let f = fixture();
    sleep(Duration::from_millis(1)).await;
    f.store.inject_times(Method::KeyBySecret, Fault::LoseReply, 10);
    let reads: Vec<_> = (0..10).map(|_| f.spawn_read()).collect();
    for read in reads {
        assert!(matches!(read.await.unwrap(), Err(StoreError::Unknown(_))));
    }
    assert_eq!(f.state(), State::There);
    sleep(Duration::from_millis(1)).await;
    f.store.inject_times(Method::KeyBySecret, Fault::LoseReply, 1);
    f.read().await.unwrap_err();
    assert_eq!(f.state(), State::Away, "lost again, on the next connection");
}

#[tokio::test(start_paused = true)]
async fn how_a_call_from_before_an_outage_fails_after_it_opens_nothing() {
    let f = fixture();
    f.store.inject_everywhere(Fault::Hold);
    let leave = f.guard.permit(Part(0), Kind::Read, f.guard.clock().mono()).unwrap();
    let call = async {
        sleep(Duration::from_millis(1_200)).await;
        Err::<(), _>(StoreError::Unavailable("its connection was found dead at last".to_owned()))
    };
    let watched = f.guard.watch(leave, call, Duration::from_secs(2), || f.store.heal());
    assert!(matches!(watched.await, Err(StoreError::Unavailable(_))));
    assert!(f.guard.is_well() && f.guard.opened() == 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_out_when_the_store_goes_away_tells_who_waits_once_and_is_given_up_later() {
    let f = fixture();
    f.store.inject_everywhere(Fault::Hold);
    let (told, started) = (AtomicU32::new(0), Instant::now());
    let leave = f.guard.permit(Part(0), Kind::Read, f.guard.clock().mono()).unwrap();
    let call = f.store.key_by_secret(KeyHash([1; 32]));
    let on_outage = || {
        told.fetch_add(1, Ordering::Relaxed);
        assert!(started.elapsed() <= TIMEOUT + Duration::from_millis(10));
    };
    let outcome = f.guard.watch(leave, call, Duration::from_secs(1), on_outage).await;
    assert!(matches!(outcome, Err(StoreError::Unknown(_))));
    assert_eq!(told.load(Ordering::Relaxed), 1);
    let lasted = started.elapsed();
    assert!(lasted >= Duration::from_secs(1) && lasted < Duration::from_millis(1_200), "{lasted:?}");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_alone_notice_an_outage_and_its_end_and_do_not_pile_up() {
    let f = fixture();
    let store = f.guard.guarded();
    let id = ReplicaId("r".into());
    store.register(id.clone(), "r".to_owned()).await.unwrap();
    let beating = tokio::spawn(async move {
        loop {
            let _ = store.heartbeat(id.clone()).await;
            sleep(Duration::from_millis(500)).await;
        }
    });
    sleep(Duration::from_secs(3)).await;
    f.store.inject_everywhere(Fault::Hold);
    let beats = f.store.calls(Method::Heartbeat);
    sleep(Duration::from_millis(570)).await;
    assert_eq!(f.state(), State::Away);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(f.store.calls(Method::Heartbeat), beats + 1, "the one that found out");
    f.store.heal();
    sleep(RECOVERY + Duration::from_millis(500)).await;
    assert!(f.guard.is_well());
    assert!(f.store.calls(Method::Heartbeat) > beats + 1, "they go on");
    beating.abort();
}

/// What was logged at INFO and above while it lives.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn lines(&self) -> Vec<String> {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_has_a_line_each_way_and_one_a_second_at_most() {
    let (log, _while_it_lives) = Log::start();
    let f = fixture();
    f.store.inject_everywhere(Fault::Hold);
    f.read().await.unwrap_err();
    sleep(Duration::from_secs(10)).await;
    f.store.heal();
    sleep(RECOVERY).await;
    let lines = log.lines();
    assert!(lines.len() == 2, "{lines:#?}");
    assert!(lines[0].contains("WARN") && lines[0].contains("not a word for 50ms"), "{lines:#?}");
    assert!(lines[1].contains("INFO") && lines[1].contains("the store is back"), "{lines:#?}");

    // However soon after its beginning, the end of an outage is told: sometimes less than a second.
    for _ in 0..12 {
        let before = log.lines().len();
        f.store.inject_times(Method::KeyBySecret, Fault::Unavailable, 1);
        f.read().await.unwrap_err();
        sleep(Duration::from_secs(3)).await;
        let lines = log.lines().split_off(before);
        assert!(lines.len() == 2 && lines[1].contains("the store is back"), "{lines:#?}");
    }
    let before = log.lines().len();

    // It comes and goes: each ping is answered, each read is refused.
    f.store.inject(Method::KeyBySecret, Fault::Unavailable);
    for _ in 0..20_000 {
        let _ = f.read().await;
        sleep(Duration::from_millis(1)).await;
    }
    f.store.heal();
    sleep(RECOVERY + RECOVERY).await;
    let lines = log.lines().split_off(before);
    assert!((10..=23).contains(&lines.len()), "{} lines in 22 s: {lines:#?}", lines.len());
    assert!(lines.last().unwrap().contains("the store is back"), "the log ends with what is true: {lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_this_gateway_is_an_error_in_the_log_and_otherwise_an_outage() {
    let (log, _while_it_lives) = Log::start();
    let f = fixture();
    f.store.inject_everywhere(Fault::Refused);
    f.read().await.unwrap_err();
    assert_eq!(f.state(), State::Away);
    let lines = log.lines();
    assert!(lines.len() == 1 && lines[0].contains("ERROR") && lines[0].contains("store.password"), "{lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_is_dropped_ends_its_watch() {
    let f = fixture();
    let before = Handle::current().metrics().num_alive_tasks();
    drop(f.guard);
    timeout(Duration::from_secs(1), async {
        while Handle::current().metrics().num_alive_tasks() >= before {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_part_goes_on_as_soon_as_it_can_be_read() {
    let f = fixture();
    timeout(Duration::ZERO, f.guard.until_readable(Part(0))).await.expect("it is there");
    f.store.inject_everywhere(Fault::Hold);
    f.read().await.unwrap_err();
    timeout(Duration::from_secs(10), f.guard.until_readable(Part(0))).await.expect_err("it is away");
    timeout(Duration::ZERO, f.guard.until_readable(Part(1))).await.expect("another part");
    f.store.heal();
    timeout(RECOVERY, f.guard.until_readable(Part(0))).await.expect("it is back");
    f.read().await.unwrap();
}
