//! Forgetting what is older than it needs to be, a piece at a time.

use std::time::Duration;

use rusqlite::params;

use crate::policy::quota::{DAY_SECONDS, MINUTE_SECONDS};
use crate::store::StoreError;

use super::replicas::FORGOTTEN_AFTER;
use super::writer::Tx;

/// Rows per transaction: a few milliseconds, so that nobody waits long for the lock.
const PIECE: usize = 500;
/// A process that slept longer than this gets `Lost` from the feed instead of the changes it missed.
const CHANGES_KEPT: Duration = Duration::from_secs(3600);
/// The longest that a replica may hold a batch back and still have it recognised as a duplicate.
const FLUSHES_KEPT: Duration = Duration::from_secs(8 * DAY_SECONDS);
/// Ledgers keep two days; one more for clocks that are set.
const LEDGERS_KEPT: Duration = Duration::from_secs(3 * DAY_SECONDS);
/// A rotated secret is of no use after its grace; a day more lets people see why it failed, and late flushes tell of its use.
const SECRETS_KEPT: Duration = Duration::from_secs(DAY_SECONDS);

/// In which unit a table keeps its age.
#[derive(Debug, Clone, Copy)]
enum Unit {
    Micros,
    Millis,
    Minutes,
    Days,
}

/// How long rows are kept.
#[derive(Debug, Clone, Copy)]
enum Kept {
    /// As long as the operator says.
    Retention,
    For(Duration),
}

/// One kind of row that grows old.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stale {
    /// Deletes at most `?2` rows that are older than `?1`.
    delete: &'static str,
    unit: Unit,
    kept: Kept,
}

pub(super) const ALL: [Stale; 10] = [
    Stale {
        delete: "DELETE FROM usage WHERE (key_id, day, kind, name, class) IN
                 (SELECT key_id, day, kind, name, class FROM usage WHERE day < ?1 LIMIT ?2)",
        unit: Unit::Days,
        kept: Kept::Retention,
    },
    Stale {
        delete: "DELETE FROM events WHERE number IN (SELECT number FROM events WHERE at < ?1 LIMIT ?2)",
        unit: Unit::Millis,
        kept: Kept::Retention,
    },
    Stale {
        delete: "DELETE FROM keys WHERE id IN (SELECT id FROM keys WHERE deleted_at < ?1 LIMIT ?2)",
        unit: Unit::Millis,
        kept: Kept::Retention,
    },
    Stale {
        delete: "DELETE FROM secrets WHERE hash IN (SELECT hash FROM secrets WHERE expires_at < ?1 LIMIT ?2)",
        unit: Unit::Millis,
        kept: Kept::For(SECRETS_KEPT),
    },
    Stale {
        delete: "DELETE FROM former_secrets WHERE hash IN
                 (SELECT hash FROM former_secrets WHERE at_micros < ?1 LIMIT ?2)",
        unit: Unit::Micros,
        kept: Kept::For(SECRETS_KEPT),
    },
    Stale {
        delete: "DELETE FROM idempotency WHERE name IN
                 (SELECT name FROM idempotency WHERE expires_micros < ?1 LIMIT ?2)",
        unit: Unit::Micros,
        kept: Kept::For(Duration::ZERO),
    },
    Stale {
        // From the oldest on, so that what remains has no holes.
        delete: "DELETE FROM changes WHERE revision IN
                 (SELECT revision FROM (SELECT revision, at_micros FROM changes ORDER BY revision LIMIT ?2)
                  WHERE at_micros < ?1)",
        unit: Unit::Micros,
        kept: Kept::For(CHANGES_KEPT),
    },
    Stale {
        delete: "DELETE FROM ledgers WHERE subject IN (SELECT subject FROM ledgers WHERE last_minute < ?1 LIMIT ?2)",
        unit: Unit::Minutes,
        kept: Kept::For(LEDGERS_KEPT),
    },
    Stale {
        delete: "DELETE FROM flushes WHERE replica IN (SELECT replica FROM flushes WHERE at_micros < ?1 LIMIT ?2)",
        unit: Unit::Micros,
        kept: Kept::For(FLUSHES_KEPT),
    },
    Stale {
        delete: "DELETE FROM replicas WHERE id IN (SELECT id FROM replicas WHERE heartbeat_micros < ?1 LIMIT ?2)",
        unit: Unit::Micros,
        kept: Kept::For(FORGOTTEN_AFTER),
    },
];

impl Stale {
    /// Deletes one piece; tells whether there may be more.
    pub(super) fn delete_some(self, tx: &Tx<'_>, retention: Duration) -> Result<bool, StoreError> {
        let kept = match self.kept {
            Kept::Retention => retention,
            Kept::For(kept) => kept,
        };
        let micros = tx.now_micros().saturating_sub(kept.as_micros().try_into().unwrap_or(u64::MAX));
        let oldest = match self.unit {
            Unit::Micros => micros,
            Unit::Millis => micros / 1_000,
            Unit::Minutes => micros / 1_000_000 / MINUTE_SECONDS,
            Unit::Days => micros / 1_000_000 / DAY_SECONDS,
        };
        let deleted = tx.prepare_cached(self.delete)?.execute(params![oldest as i64, PIECE as i64])?;
        Ok(deleted == PIECE)
    }
}
