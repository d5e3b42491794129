//! The audit trail as log lines, beside the events that the store keeps. Never a secret: only what a [`KeyRecord`] has.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::clock::Clock;
use crate::policy::key::{Account, AccountId, KeyId, KeyRecord};
use crate::store::{Change, Event, Store, StoreError};

/// How events name the command line.
pub const OPERATOR: &str = "cli";
/// Changes arrive within 250 ms; what is older than this was told before, or by nobody.
const RECENT_MILLIS: i64 = 10_000;

/// Tells that something happened to a key.
pub fn key(event: &Event, record: &KeyRecord) {
    tracing::info!(
        target: "audit",
        action = event.action.as_str(),
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
        concurrent_requests = account.concurrent_requests,
        suspended = account.suspended,
        by = %by,
        "audit: account",
    );
}

/// Tells what the command line did, which has no log that anybody keeps, from the changes that this gateway hears of. What a
/// gateway did it tells itself. Ends with the sender.
pub async fn follow(store: Arc<dyn Store>, clock: Arc<dyn Clock>, mut changes: UnboundedReceiver<Change>) {
    let mut told = Vec::new();
    while let Some(change) = changes.recv().await {
        let outcome = match change {
            Change::Key(id) => tell_of_key(&*store, &*clock, id, &mut told).await,
            Change::Account(id) => tell_of_account(&*store, id).await,
            Change::Secret(_) | Change::Recall(..) => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::warn!(target: "audit", %error, "a change of the command line could not be told");
        }
    }
}

/// All recent events that were not told yet: when several came close together, each of their changes finds them all.
async fn tell_of_key(
    store: &dyn Store,
    clock: &dyn Clock,
    id: KeyId,
    told: &mut Vec<(KeyId, Event)>,
) -> Result<(), StoreError> {
    let oldest = clock.wall().unix_millis() - RECENT_MILLIS;
    let is_recent = |event: &Event| event.at.unix_millis() >= oldest;
    told.retain(|(_, event)| is_recent(event));
    let mut events = store.events(id.clone()).await?;
    events.retain(|event| event.by == OPERATOR && is_recent(event));
    events.retain(|event| !told.iter().any(|(key, known)| *key == id && known == event));
    if events.is_empty() {
        return Ok(());
    }
    let Some(found) = store.key(id.clone()).await? else { return Ok(()) };
    for event in events {
        key(&event, &found.record);
        told.push((id.clone(), event));
    }
    Ok(())
}

async fn tell_of_account(store: &dyn Store, id: AccountId) -> Result<(), StoreError> {
    // Accounts are set by the command line alone.
    if let Some((found, _)) = store.account(id).await? {
        account(&found, OPERATOR);
    }
    Ok(())
}
