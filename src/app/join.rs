//! Joining the store: a gateway waits a while for one that is not there yet, and tells what is wrong with how it is set up.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::StartError;
use crate::store::{Finding, ReplicaId, Revision, Store, StoreError};
use crate::telemetry::Metrics;

/// A gateway and its store are often started together: so long the one waits for the other.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it tries.
const RETRY: Duration = Duration::from_millis(500);
/// One attempt that is not answered by then is made again.
const ATTEMPT: Duration = Duration::from_secs(3);
/// How often it says what it waits for.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// The check that stands for all others when the store could not be looked at.
const ASKED: &str = "asked";

/// Registers with the store. A store that refuses or cannot be understood is not waited for; `stop` ends the wait.
pub(super) async fn register(
    store: &dyn Store,
    id: &ReplicaId,
    name: &str,
    stop: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let mut stop = pin!(stop);
    tokio::select! {
        biased;
        () = &mut stop => Err(StartError::Stopped),
        registered = wait_and_register(store, id, name) => Ok(registered.map(drop)?),
    }
}

async fn wait_and_register(store: &dyn Store, id: &ReplicaId, name: &str) -> Result<Revision, StoreError> {
    let began = Instant::now();
    let mut line_at = began;
    loop {
        let error = match timeout(ATTEMPT, store.register(id.clone(), name.to_owned())).await {
            Ok(Err(error @ (StoreError::Unavailable(_) | StoreError::Unknown(_)))) => error,
            Ok(outcome) => return outcome,
            Err(_) => StoreError::Unknown(format!("nothing within {ATTEMPT:?}")),
        };
        let waited = began.elapsed();
        if waited >= PATIENCE {
            return Err(error);
        }
        if Instant::now() >= line_at {
            line_at = Instant::now() + LINE_EVERY;
            tracing::warn!(%error, ?waited, "waiting for the store (store.url) before anything is served; for {PATIENCE:?} at most");
        }
        sleep(RETRY).await;
    }
}

/// Asks the store, once, whether it is set up as it should be. Nothing waits for the answer.
pub(super) async fn look_around(store: Arc<dyn Store>, metrics: Arc<Metrics>) {
    match store.findings().await {
        Ok(findings) => {
            metrics.store_finding(ASKED, false);
            for Finding { check, trouble } in findings {
                metrics.store_finding(check, trouble.is_some());
                if let Some(trouble) = trouble {
                    tracing::warn!(check, "the store: {trouble}");
                }
            }
        }
        Err(error) => {
            metrics.store_finding(ASKED, true);
            tracing::warn!(%error, "how the store is set up could not be looked at");
        }
    }
}

#[cfg(test)]
mod tests;
