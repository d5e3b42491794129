//! What SQLite's errors mean to callers of a store.

use rusqlite::ErrorCode;
use rusqlite::ffi::SQLITE_IOERR_FSYNC;

use crate::store::StoreError;

impl From<rusqlite::Error> for StoreError {
    /// For a statement: whatever the error, its savepoint or transaction is undone, so nothing was done.
    fn from(error: rusqlite::Error) -> Self {
        let Some(code) = error.sqlite_error_code() else { return Self::Corrupt(error.to_string()) };
        match code {
            ErrorCode::ConstraintViolation => Self::Conflict,
            ErrorCode::DatabaseCorrupt
            | ErrorCode::NotADatabase
            | ErrorCode::TypeMismatch
            // "No such table": not the schema that this version made.
            | ErrorCode::Unknown => Self::Corrupt(error.to_string()),
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
                Self::Unavailable(format!("another process has kept the file locked for too long ({error})"))
            }
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

/// For a COMMIT: it is undone as a whole, unless the last step, the sync, failed after everything was written.
pub(super) fn of_commit(error: &rusqlite::Error) -> StoreError {
    let synced = error.sqlite_error().is_none_or(|e| e.extended_code != SQLITE_IOERR_FSYNC);
    let text = format!("the change could not be committed: {error}");
    if synced { StoreError::Unavailable(text) } else { StoreError::Unknown(text) }
}
