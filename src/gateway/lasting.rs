//! Answers that last: a tunnel, an event stream, a large download. They end soon after the key that asked for them does.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::sleep;

use super::context::RequestRecord;
use crate::auth::{Ended, Front};
use crate::policy::rejection::Problem;

use super::GatewayError;

/// An answer that is done within this is not watched: most are.
pub(super) const LASTS: Duration = Duration::from_secs(1);

/// Resolves when, and says why, an answer must end before its end.
pub(crate) type Revoked = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// Begins to watch after a while. `None`: a public route, which no key opened.
pub(super) fn watch(record: &RequestRecord, after: Duration) -> Option<Revoked> {
    let (grant, hash) = (record.permit.as_ref()?.grant().clone(), record.secret?);
    let (profile, shared) = (grant.profile()?.clone(), record.shared().clone());
    Some(Box::pin(async move {
        if !after.is_zero() {
            sleep(after).await;
        }
        let watch = shared.auth.watch(hash, &profile);
        watch.ended(&grant, &Front::default(), || shared.config()).await
    }))
}

/// Of an answer that was waited for: whether the key may still have it.
pub(super) async fn check(record: &RequestRecord) -> Result<(), GatewayError> {
    let (Some(permit), Some(hash)) = (&record.permit, record.secret) else { return Ok(()) };
    let (grant, shared) = (permit.grant(), record.shared());
    let Some(profile) = grant.profile() else { return Ok(()) };
    let watch = shared.auth.watch(hash, profile);
    watch.check(grant, &Front::default(), &shared.config()).await.map(drop).map_err(GatewayError::from)
}

impl From<Ended> for GatewayError {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Rejected(rejection) => Self::Rejected(rejection),
            Ended::StoreUnavailable => Self::StoreUnavailable,
        }
    }
}

impl RequestRecord {
    /// The answer was ended for this reason.
    pub fn ended(&mut self, ended: Ended) -> Problem {
        let problem = GatewayError::from(ended).problem();
        self.code = Some(problem.code);
        problem
    }
}
