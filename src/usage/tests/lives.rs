//! Processes that are killed, and the next ones that find their journal.

use super::*;

/// One that lives, with a journal.
fn journaled() -> Fixture {
    Fixture::with(true, Bounds::USUAL)
}

/// Small batches, so that a flush has several.
const SMALL: Bounds = Bounds { counts: 1_000, resources: 1_000, batch: 3 };

#[tokio::test]
async fn what_was_written_down_survives_a_kill_and_counts_once() {
    let mut f = journaled();
    for n in 0..10 {
        f.request(&format!("m-{}", n % 3), DAY.start());
        f.usage().write_down().await.unwrap();
    }
    f.request("m-1", DAY.start());
    f.kill_and_start();
    assert_eq!(f.requests_stored().await, 0, "replayed before it was asked for");
    f.request("m-1", DAY.start());
    f.usage().flush().await.unwrap();
    assert_eq!(
        f.requests_stored().await,
        11,
        "ten of the former life, one of this; the last of the former was not written"
    );
    f.kill_and_start();
    f.usage().flush().await.unwrap();
    assert_eq!(f.requests_stored().await, 11);
    assert_eq!(f.store.calls(Method::FlushUsage), 2, "a confirmed batch is not sent again");
}

#[tokio::test]
async fn a_batch_that_was_in_flight_at_the_kill_counts_once_whether_it_had_arrived_or_not() {
    for fault in [Fault::LoseReply, Fault::LoseRequest, Fault::Unavailable] {
        let mut f = Fixture::with(true, SMALL);
        for n in 0..20 {
            f.request_of(n % 5, &format!("m-{}", n % 7), DAY.start());
        }
        // One batch of several gets through.
        f.usage().write_down().await.unwrap();
        f.store.inject_times(Method::FlushUsage, fault.clone(), 1);
        assert!(f.usage().flush().await.is_err());
        // More comes after it, and some is never written down.
        f.request("m-1", DAY.start());
        f.usage().write_down().await.unwrap();
        f.request("m-1", DAY.start());
        f.kill_and_start();
        f.usage().flush().await.unwrap();
        assert_eq!(f.requests_stored().await, 21, "{fault:?}");
        let resources = |((_, _, counted), count): ((_, _, Counted), u64)| {
            matches!(counted, Counted::Resource(..)).then_some(count)
        };
        assert_eq!(f.stored().await.into_iter().filter_map(resources).sum::<u64>(), 21, "{fault:?}");
    }
}

#[tokio::test]
async fn a_gateway_that_is_killed_again_and_again_in_an_outage_loses_nothing() {
    let mut f = Fixture::with(true, SMALL);
    f.store.inject(Method::FlushUsage, Fault::LoseReply);
    for life in 0..6 {
        for n in 0..10 {
            f.request_of(n % 5, &format!("m-{life}"), DAY.start());
        }
        assert!(f.usage().flush().await.is_err());
        f.request("m-x", DAY.start());
        f.usage().write_down().await.unwrap();
        f.kill_and_start();
    }
    f.store.heal();
    f.usage().flush().await.unwrap();
    assert_eq!(f.requests_stored().await, 66);
    assert_eq!(f.metric("gateway_usage_pending"), 0.0);
    let path = f.journal.clone().unwrap();
    assert!(std::fs::metadata(path).unwrap().len() < 200, "everything is confirmed, and the file is empty again");
}

#[tokio::test]
async fn a_batch_so_old_that_the_store_may_have_forgotten_it_is_not_sent_again() {
    let mut f = journaled();
    f.request("m-1", DAY.start());
    f.store.inject_times(Method::FlushUsage, Fault::LoseReply, 1);
    assert!(f.usage().flush().await.is_err());
    f.request("m-1", DAY.start());
    f.usage().write_down().await.unwrap();
    f.clock.advance(Duration::from_secs(5 * 86_400));
    f.kill_and_start();
    f.usage().flush().await.unwrap();
    assert_eq!(
        f.requests_stored().await,
        2,
        "the numbered one had arrived; the other had never been sent, however old"
    );
    assert_eq!(f.store.calls(Method::FlushUsage), 2);
    assert_eq!(f.metric("gateway_usage_batches_lost_total"), 1.0);
}

#[tokio::test]
async fn batches_that_the_store_has_forgotten_are_told_by_their_number() {
    let mut f = journaled();
    // A store that knows only the second batch of this replica, as after a failover: the fifth is told apart from a first one.
    let forgotten = |sequence| crate::store::UsageBatch {
        replica: ReplicaId("r1".into()),
        sequence,
        counts: Vec::new(),
        last_used: Vec::new(),
    };
    f.store.flush_usage(forgotten(2)).await.unwrap();
    for _ in 0..2 {
        f.request("m-1", DAY.start());
        f.usage().flush().await.unwrap();
    }
    assert_eq!(f.requests_stored().await, 0, "the store has seen these numbers");
    f.request("m-1", DAY.start());
    f.usage().flush().await.unwrap();
    assert_eq!((f.requests_stored().await, f.metric("gateway_usage_batches_lost_total")), (1, 0.0));

    f.kill_and_start();
    f.store.flush_usage(crate::store::UsageBatch { replica: ReplicaId("r2".into()), ..forgotten(1) }).await.unwrap();
    let journal = f.journal.clone().unwrap();
    f.usage = None;
    let mut text = std::fs::read_to_string(&journal).unwrap();
    // The same life, after four more batches that were confirmed.
    text = text.lines().next().unwrap().to_owned() + "\n";
    let life = r#"{"life":{"replica":"r2","sequence":5,"size":9}}"#;
    let counted = r#"{"counted":{"counts":[["k0",20000,"endpoint","GET /a","2xx",7]],"used":[]}}"#;
    for json in [life, counted] {
        text += &format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
    }
    std::fs::write(&journal, text).unwrap();
    f.start();
    f.usage().flush().await.unwrap();
    assert_eq!(f.requests_stored().await, 8, "what comes after the gap counts");
    assert_eq!(f.metric("gateway_usage_batches_lost_total"), 4.0, "2, 3, 4 and 5 are lost to the store");
}

#[tokio::test]
async fn neither_requests_nor_their_thread_wait_for_a_disk_that_hangs() {
    let f = journaled();
    let (release, released) = std::sync::mpsc::channel();
    let (locked, is_locked) = std::sync::mpsc::channel();
    let ledger = f.usage().ledger.clone();
    // A write that takes as long as we like.
    let disk = std::thread::spawn(move || {
        let _writing = ledger.lock().unwrap();
        locked.send(()).unwrap();
        released.recv_timeout(Duration::from_secs(5)).is_ok()
    });
    is_locked.recv().unwrap();
    let (written, ()) = tokio::join!(biased; f.usage().write_down(), async {
        (0..100).for_each(|_| f.request("m-1", DAY.start()));
        release.send(()).unwrap();
    });
    written.unwrap();
    assert!(disk.join().unwrap(), "the thread that counts was held up");
    f.usage().flush().await.unwrap();
    assert_eq!(f.requests_stored().await, 100);
}

#[tokio::test]
async fn an_orderly_end_leaves_nothing_behind_and_a_failed_one_leaves_all() {
    let mut f = journaled();
    f.request("m-1", DAY.start());
    assert!(f.usage().has_journal());
    f.store.inject(Method::FlushUsage, Fault::Unavailable);
    assert!(f.usage().flush().await.is_err());
    assert!(f.usage().is_kept().await, "it is in the journal");
    f.kill_and_start();
    f.store.heal();
    f.usage().flush().await.unwrap();
    assert_eq!(f.requests_stored().await, 1);
    let without = Fixture::new();
    assert!(!without.usage().has_journal() && !without.usage().is_kept().await);
}
