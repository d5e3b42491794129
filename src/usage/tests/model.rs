//! Random lives: whatever order steps, faults and kills come in, what was written down counts exactly once.

use std::collections::HashMap;

use super::*;
use crate::policy::resource::Kind;
use crate::store::UsageBatch;
use crate::usage::counts::Counts;
use crate::usage::ledger::Ledger;

/// A store that applies a batch in pieces, one a key, and remembers for each what it has.
#[derive(Default)]
struct Pieces {
    markers: HashMap<(ReplicaId, KeyId), u64>,
    sums: BTreeMap<(KeyId, Day, Counted), u64>,
    /// Every batch as it was first sent; `None`: nobody minds.
    seen: Option<HashMap<(ReplicaId, u64), UsageBatch>>,
}

impl Pieces {
    /// Applies the pieces of those keys that `reach` lets through.
    fn flush(&mut self, batch: &UsageBatch, reach: impl Fn(&KeyId) -> bool) {
        if let Some(seen) = &mut self.seen {
            let known = seen.entry((batch.replica.clone(), batch.sequence)).or_insert_with(|| batch.clone());
            assert_eq!(known, batch, "a batch was repeated with another content");
        }
        let mut keys: Vec<_> = batch.counts.iter().map(|count| count.key_id.clone()).collect();
        keys.dedup();
        for key in keys.into_iter().filter(reach) {
            let marker = self.markers.entry((batch.replica.clone(), key.clone())).or_default();
            if batch.sequence > *marker {
                *marker = batch.sequence;
                for count in batch.counts.iter().filter(|count| count.key_id == key) {
                    *self.sums.entry((key.clone(), count.day, count.counted.clone())).or_default() += count.count;
                }
            }
        }
    }
}

/// xorshift: the same seed, the same life.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn counts(&mut self) -> Counts {
        let mut counts = Counts::default();
        for _ in 0..self.below(8) {
            let key = KeyId::parse(&format!("k{}", self.below(4))).unwrap();
            let counted = match self.below(3) {
                0 => Counted::Endpoint(format!("GET /{}", self.below(3)).into(), StatusClass::Success),
                1 => Counted::Scope(Scope::parse(&format!("s:{}", (b'a' + self.below(3) as u8) as char)).unwrap()),
                _ => Counted::Resource(Kind::Model, format!("m-{}", self.below(5)).into()),
            };
            counts.add((key, Day(self.below(2) as i32), counted), 1 + self.below(9));
            counts.used(KeyHash([self.below(6) as u8; 32]), Timestamp::from_unix_millis(self.below(1000) as i64));
        }
        counts
    }
}

struct World {
    random: Random,
    store: Pieces,
    clock: Arc<HandClock>,
    path: PathBuf,
    lives: u64,
    /// All that was written down.
    counted: Counts,
}

impl World {
    fn start(&mut self) -> Ledger {
        self.lives += 1;
        let journal = Journal::open(&self.path, self.clock.clone()).unwrap();
        let metrics = Arc::new(Metrics::new());
        let bounds = Bounds { batch: 3, ..Bounds::USUAL };
        Ledger::new(ReplicaId(format!("r{}", self.lives).into()), metrics, Some(journal), bounds)
    }

    fn take_in(&mut self, ledger: &mut Ledger) {
        let counts = self.random.counts();
        self.counted.merge(counts.clone());
        ledger.take_in(counts);
    }

    /// A flush that may end at any step.
    fn flush(&mut self, ledger: &mut Ledger) {
        loop {
            while let Some(batch) = ledger.first() {
                let (reached, lost) = (self.random.below(32), self.random.below(3) == 0);
                self.store.flush(&batch, |key| !lost || reached >> (key.as_str().as_bytes()[1] - b'0') & 1 == 1);
                if lost {
                    return;
                }
                ledger.confirm(&batch.replica, batch.sequence);
            }
            if self.random.below(2) == 0 {
                return;
            }
            ledger.freeze();
        }
    }

    /// A store that works again, until nothing is left.
    fn finish(&mut self, ledger: &mut Ledger) {
        for _ in 0..2 {
            while let Some(batch) = ledger.first() {
                self.store.flush(&batch, |_| true);
                ledger.confirm(&batch.replica, batch.sequence);
            }
            ledger.freeze();
        }
        assert!(ledger.first().is_none());
    }

    fn expected(&self) -> BTreeMap<(KeyId, Day, Counted), u64> {
        let counts = self.counted.pieces(usize::MAX).next().unwrap_or_default().counts;
        counts.into_iter().map(|c| ((c.key_id, c.day, c.counted), c.count)).collect()
    }
}

fn world(seed: u64, folder: &Path) -> World {
    World {
        random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
        store: Pieces::default(),
        clock: HandClock::new(),
        path: folder.join("usage.journal"),
        lives: 0,
        counted: Counts::default(),
    }
}

#[test]
fn whatever_is_lost_or_killed_what_was_written_down_counts_exactly_once() {
    for seed in 0..400 {
        let folder = tempfile::tempdir().unwrap();
        let mut world = world(seed, folder.path());
        world.store.seen = Some(HashMap::new());
        let mut ledger = world.start();
        for _ in 0..30 {
            match world.random.below(8) {
                0..4 => world.take_in(&mut ledger),
                4..7 => world.flush(&mut ledger),
                _ => {
                    drop(ledger);
                    ledger = world.start();
                }
            }
        }
        world.finish(&mut ledger);
        assert_eq!(world.store.sums, world.expected(), "seed {seed}");
        drop(ledger);
        assert!(world.start().first().is_none(), "seed {seed}: something is left after all was confirmed");
    }
}

#[test]
fn a_journal_that_fails_now_and_then_may_lose_in_a_kill_but_never_counts_twice() {
    let mut lost = 0;
    for seed in 0..400 {
        let folder = tempfile::tempdir().unwrap();
        let mut world = world(seed, folder.path());
        // What cannot be written anew, and what was opened by then is a full disk: see `Journal::break_file`.
        let obstacle = folder.path().join("usage.journal.new");
        let mut ledger = world.start();
        for _ in 0..30 {
            match world.random.below(10) {
                0..4 => world.take_in(&mut ledger),
                4..7 => world.flush(&mut ledger),
                7 if !obstacle.exists() => {
                    std::fs::create_dir(&obstacle).unwrap();
                    ledger.break_journal();
                }
                8 if obstacle.exists() => {
                    std::fs::remove_dir(&obstacle).unwrap();
                    world.clock.advance(Duration::from_secs(60));
                }
                9 => {
                    drop(ledger);
                    let _ = std::fs::remove_dir(&obstacle);
                    ledger = world.start();
                }
                _ => {}
            }
        }
        world.finish(&mut ledger);
        let expected = world.expected();
        for (name, count) in &world.store.sums {
            assert!(
                expected.get(name).is_some_and(|most| count <= most),
                "seed {seed}: {name:?} counted {count} times"
            );
        }
        lost += u64::from(world.store.sums != expected);
    }
    assert!(lost > 0, "no kill ever met a broken journal: the test tests nothing");
}
