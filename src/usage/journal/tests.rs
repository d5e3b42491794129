//! The file: what it is when it is torn, damaged, locked, too large, or the disk is full.

use std::fs::OpenOptions;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use super::*;
use crate::policy::key::{Day, KeyId};
use crate::store::{Counted, ReplicaId, StatusClass};
use crate::telemetry::Metrics;
use crate::usage::counts::Counts;
use crate::usage::ledger::{Bounds as LedgerBounds, Ledger};
use crate::usage::tests::{DAY, HandClock};

impl Journal {
    /// From now on the disk is full, as far as this file is concerned.
    pub(in crate::usage) fn break_file(&mut self) {
        self.file = OpenOptions::new().append(true).open("/dev/full").unwrap();
    }
}

struct Place {
    folder: tempfile::TempDir,
    clock: Arc<HandClock>,
    metrics: Arc<Metrics>,
}

impl Place {
    fn new() -> Self {
        let metrics = Arc::new(Metrics::new());
        Self { folder: tempfile::tempdir().unwrap(), clock: HandClock::new(), metrics }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("usage.journal")
    }

    fn open(&self) -> Result<Journal, JournalError> {
        Journal::open(&self.path(), self.clock.clone())
    }

    fn ledger(&self, replica: &str) -> Ledger {
        self.ledger_on(replica, self.open().unwrap())
    }

    fn ledger_on(&self, replica: &str, journal: Journal) -> Ledger {
        Ledger::new(ReplicaId(replica.into()), self.metrics.clone(), Some(journal), LedgerBounds::USUAL)
    }

    /// What the next process would send: the sum of all counts.
    fn left(&self) -> u64 {
        self.open().unwrap().recovered.iter().flat_map(|frozen| &frozen.batch.counts).map(|count| count.count).sum()
    }

    fn len(&self) -> u64 {
        fs::metadata(self.path()).unwrap().len()
    }

    fn metric(&self, name: &str) -> String {
        let text = self.metrics.handle().render();
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap().to_owned()
    }
}

fn named(endpoint: usize, day: Day) -> Counts {
    let mut counts = Counts::default();
    let counted = Counted::Endpoint(format!("GET /{endpoint}").into(), StatusClass::Success);
    counts.add((KeyId::parse("k1").unwrap(), day, counted), 1);
    counts
}

fn one() -> Counts {
    named(1, DAY)
}

fn confirm_all(ledger: &mut Ledger) {
    for _ in 0..2 {
        ledger.freeze();
        while let Some(batch) = ledger.first() {
            ledger.confirm(&batch.replica, batch.sequence);
        }
    }
}

#[test]
fn a_record_that_was_torn_off_is_ignored_wherever_it_was_torn() {
    let place = Place::new();
    let mut ledger = place.ledger("r1");
    ledger.take_in(one());
    let before = place.len();
    ledger.take_in(one());
    drop(ledger);
    let whole = fs::read(place.path()).unwrap();
    for length in before as usize..whole.len() {
        fs::write(place.path(), &whole[..length]).unwrap();
        assert_eq!(place.left(), 1, "torn after {length} of {} bytes", whole.len());
    }
    fs::write(place.path(), &whole).unwrap();
    assert_eq!(place.left(), 2);
    assert!(!place.folder.path().join("usage.journal.damaged").exists());
    // Torn while it was emptied: everything was confirmed by then.
    for length in 0..record::MAGIC.len() {
        fs::write(place.path(), &whole[..length]).unwrap();
        assert_eq!(place.left(), 0, "{length} bytes of the first line");
    }
}

#[test]
fn a_damaged_record_ends_the_replay_and_the_file_is_kept_beside() {
    let place = Place::new();
    let mut ledger = place.ledger("r1");
    (0..9).for_each(|_| ledger.take_in(one()));
    drop(ledger);
    let whole = fs::read(place.path()).unwrap();
    let lines: Vec<_> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    // One byte of the sixth record that counts, behind the magic and the life.
    let at: usize = lines[..7].iter().map(|line| line.len()).sum::<usize>() + 30;
    let mut damaged = whole.clone();
    damaged[at] ^= 0x20;
    fs::write(place.path(), &damaged).unwrap();
    let copy = place.folder.path().join("usage.journal.damaged");
    let (log, left) = logged(|| {
        let journal = place.open().unwrap();
        let left: usize = journal.recovered.iter().map(|frozen| frozen.batch.counts[0].count as usize).sum();
        drop(place.ledger_on("r2", journal));
        left
    });
    assert_eq!(left, 5);
    assert!(log.contains("damaged") && log.contains("line=8") && log.contains("usage.journal.damaged"), "{log}");
    assert_eq!(fs::read(&copy).unwrap(), damaged);
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    // What was good is in the new file, and no longer damaged.
    fs::remove_file(&copy).unwrap();
    assert_eq!(place.left(), 5);
    assert!(!copy.exists());
}

#[test]
fn a_file_of_zeros_is_damage_and_any_other_file_is_refused_untouched() {
    let place = Place::new();
    fs::write(place.path(), [0; 5000]).unwrap();
    assert_eq!(place.left(), 0);
    assert!(place.folder.path().join("usage.journal.damaged").exists());

    let refused = |text: &str| {
        fs::write(place.path(), text).unwrap();
        let error = place.open().unwrap_err().to_string();
        assert_eq!(fs::read_to_string(place.path()).unwrap(), text);
        assert!(error.contains(&place.path().display().to_string()) && error.contains("usage.journal"), "{error}");
        error
    };
    assert!(refused("SQLite format 3\0and much more of it").contains("is not a usage journal"));
    assert!(refused("x").contains("is not a usage journal"));
    assert!(refused("seeme-gateway usage journal 2\nsomething").contains("newer seeme-gateway"));
    fs::remove_file(place.path()).unwrap();
    fs::create_dir(place.path()).unwrap();
    assert!(place.open().unwrap_err().to_string().contains("cannot open"));
    let device = Journal::open(Path::new("/dev/full"), place.clock.clone());
    assert!(device.is_err(), "a device would be replaced by a file");
}

#[test]
fn one_process_at_a_time_has_the_journal() {
    let place = Place::new();
    let first = place.ledger("r1");
    let error = place.open().unwrap_err();
    assert!(matches!(error, JournalError::Locked(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains("in use by another gateway") && text.contains("a file of its own"), "{text}");
    let link = place.folder.path().join("link");
    std::os::unix::fs::symlink(place.path(), &link).unwrap();
    let by_link = Journal::open(&link, place.clock.clone());
    assert!(matches!(by_link, Err(JournalError::Locked(_))), "by another name it is the same journal");
    drop(first);
    place.open().unwrap();
}

#[test]
fn the_file_is_for_its_owner_alone_and_its_folders_are_made() {
    let place = Place::new();
    let path = place.folder.path().join("a/b/usage.journal");
    let mut ledger = place.ledger_on("r1", Journal::open(&path, place.clock.clone()).unwrap());
    ledger.take_in(one());
    drop(ledger);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    names.iter().for_each(|name| assert_eq!(mode(name), 0o600, "{}", name.display()));
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    // A link is followed, not replaced.
    let link = place.folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    drop(place.ledger_on("r2", Journal::open(&link, place.clock.clone()).unwrap()));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn a_journal_that_grows_is_written_anew_with_the_sums_and_never_passes_its_bound() {
    let place = Place::new();
    let mut journal = place.open().unwrap();
    journal.bounds = Bounds { compact: 4 << 10, most: 16 << 10 };
    journal.compact_past = journal.bounds.compact;
    let mut ledger = place.ledger_on("r1", journal);
    ledger.take_in(one());
    ledger.freeze();
    let (mut shrunk, mut last) = (0, 0);
    for n in 0..2_000 {
        ledger.take_in(named(n % 10, DAY));
        let len = place.len();
        shrunk += usize::from(len < last);
        assert!(len <= (4 << 10) + 200, "{len}");
        last = len;
    }
    assert!(shrunk > 10, "{shrunk}");
    drop(ledger);
    let recovered = place.open().unwrap().recovered;
    let numbers: Vec<_> = recovered.iter().map(|frozen| frozen.batch.sequence).collect();
    assert_eq!((numbers, place.left()), (vec![1, 2], 2_001), "the frozen batch is still a batch of its own");
    assert!(!place.folder.path().join("usage.journal.new").exists());
}

#[test]
fn past_its_bound_the_journal_says_so_and_begins_again_when_the_store_has_everything() {
    let place = Place::new();
    let mut journal = place.open().unwrap();
    journal.bounds = Bounds { compact: 4 << 10, most: 16 << 10 };
    let mut ledger = place.ledger_on("r1", journal);
    let (log, ()) = logged(|| (0..600).for_each(|n| ledger.take_in(named(n, DAY))));
    assert_eq!(log.matches("cannot be written").count(), 1, "{log}");
    assert!(log.contains("grow past"), "{log}");
    assert!(place.len() <= 16 << 10, "{}", place.len());
    assert_eq!(place.metric("gateway_usage_journal_failing"), "1");
    assert!(!ledger.is_kept());
    confirm_all(&mut ledger);
    assert!(ledger.is_kept());
    assert_eq!(place.metric("gateway_usage_journal_failing"), "0");
    assert!(place.len() < 200, "{}", place.len());
    ledger.take_in(one());
    drop(ledger);
    assert_eq!(place.left(), 1);
}

#[test]
fn on_a_full_disk_counting_goes_on_and_the_journal_catches_up_when_there_is_room() {
    let place = Place::new();
    let mut ledger = place.ledger("r1");
    ledger.take_in(one());
    let obstacle = place.folder.path().join("usage.journal.new");
    fs::create_dir(&obstacle).unwrap();
    ledger.break_journal();
    let (log, ()) = logged(|| {
        for _ in 0..600 {
            ledger.take_in(one());
            place.clock.advance(Duration::from_millis(100));
        }
    });
    // A minute of it, tried every five seconds.
    assert_eq!(log.matches("cannot be written").count(), 1, "{log}");
    assert!(!ledger.is_kept());
    assert_eq!(place.metric("gateway_usage_journal_failing"), "1");
    let (log, ()) = logged(|| {
        for _ in 0..600 {
            ledger.take_in(one());
            place.clock.advance(Duration::from_millis(100));
        }
    });
    assert_eq!(log.matches("cannot be written").count(), 1, "once a minute: {log}");
    fs::remove_dir(&obstacle).unwrap();
    place.clock.advance(RETRY);
    let (log, ()) = logged(|| ledger.take_in(Counts::default()));
    assert!(log.contains("is written again"), "{log}");
    assert!(ledger.is_kept());
    assert_eq!(place.metric("gateway_usage_journal_failing"), "0");
    ledger.take_in(one());
    drop(ledger);
    assert_eq!(place.left(), 1 + 600 + 600 + 1);
}

/// Unmounts at the end of the test.
struct Tmpfs<'a>(&'a Path);

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_really_full_file_system_is_survived() {
    let place = Place::new();
    let mut mount = std::process::Command::new("mount");
    let mounted = mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(place.folder.path()).output();
    if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
        println!("skipped: mounting a tmpfs is not allowed here ({mounted:?})");
        return;
    }
    let _tmpfs = Tmpfs(place.folder.path());
    let mut ledger = place.ledger("r1");
    let mut counted = 0;
    while ledger.is_kept() {
        counted += 1;
        ledger.take_in(named(counted, DAY));
        assert!(counted < 10_000, "64 KiB hold no ten thousand of these");
    }
    for _ in 0..100 {
        counted += 1;
        ledger.take_in(named(counted, DAY));
        place.clock.advance(Duration::from_secs(1));
    }
    assert!(!ledger.is_kept());
    let more = std::process::Command::new("mount").args(["-o", "remount,size=16m"]).arg(place.folder.path()).status();
    assert!(more.unwrap().success());
    place.clock.advance(RETRY);
    counted += 1;
    ledger.take_in(named(counted, DAY));
    assert!(ledger.is_kept());
    drop(ledger);
    assert_eq!(place.left() as usize, counted);
}

/// What is logged meanwhile.
fn logged<T>(work: impl FnOnce() -> T) -> (String, T) {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl Write for Lines {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // Somebody must listen all the time: a line that another test meets first, while nobody listens, is switched off for all.
    static LISTENING: std::sync::Once = std::sync::Once::new();
    LISTENING.call_once(|| {
        let nowhere = tracing_subscriber::fmt().with_writer(io::sink).finish();
        // Another test of this process may have been first with its own.
        let _ = tracing::subscriber::set_global_default(nowhere);
    });
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let done = tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    (text, done)
}
