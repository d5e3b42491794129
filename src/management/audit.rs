//! The audit trail as log lines, beside the events that the store keeps. Never a secret: only what a [`KeyRecord`] has.

use crate::policy::key::{Account, KeyRecord};
use crate::store::Event;

/// Tells that something happened to a key.
pub fn key(event: &Event, record: &KeyRecord) {
    tracing::info!(
        target: "audit",
        action = ?event.action,
        key_id = %record.id,
        key_prefix = %record.key_prefix,
        account_id = %record.account_id,
        by = %event.by,
        from = %event.from,
        changed = %event.changed.join(","),
        "audit: key",
    );
}

/// Tells what an account is now.
pub fn account(account: &Account, by: &str) {
    tracing::info!(
        target: "audit",
        account_id = %account.id,
        plan = account.plan.as_deref().unwrap_or_default(),
        requests_per_minute = account.requests_per_minute,
        requests_per_day = account.requests_per_day,
        suspended = account.suspended,
        by = %by,
        "audit: account",
    );
}
