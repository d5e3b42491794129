//! The certificates of the public listener: their files are looked at once a second, whatever happens to gateway.yaml.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use super::every;
use crate::server::{FrontTls, Refreshed};
use crate::telemetry::Metrics;

/// How often they are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A certificate that changes is in force within a second or two.
pub(super) async fn follow(tls: Arc<FrontTls>, metrics: Arc<Metrics>) {
    every(LOOK, || {
        let (tls, metrics) = (tls.clone(), metrics.clone());
        async move {
            match spawn_blocking(move || tls.refresh()).await {
                Ok(Refreshed::Loaded) => {
                    tracing::info!("changed certificates are in force");
                    metrics.tls_reloads.increment(1);
                }
                Ok(Refreshed::Refused(error)) => {
                    tracing::error!(%error, "changed certificates do not fit; the old ones stay");
                    metrics.tls_reloads_refused.increment(1);
                }
                Ok(Refreshed::Unchanged) | Err(_) => {}
            }
        }
    })
    .await;
}
