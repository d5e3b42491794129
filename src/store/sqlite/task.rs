//! A piece of work that an async caller hands to a thread, and the answer that comes back.

use tokio::sync::oneshot;

use crate::store::StoreError;

/// Work together with the place where its answer goes. `C` is what the thread lends to it.
pub(super) struct Task<T, W> {
    work: Option<W>,
    outcome: Option<Result<T, StoreError>>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

/// The receiving end.
pub(super) type Answer<T> = oneshot::Receiver<Result<T, StoreError>>;

impl<T, W> Task<T, W> {
    pub(super) fn new(work: W) -> (Self, Answer<T>) {
        let (answer, receiver) = oneshot::channel();
        (Self { work: Some(work), outcome: None, answer }, receiver)
    }

    /// Does the work, once, and keeps the outcome; tells whether it succeeded.
    pub(super) fn perform(&mut self, run: impl FnOnce(W) -> Result<T, StoreError>) -> bool {
        self.outcome = self.work.take().map(run);
        matches!(self.outcome, Some(Ok(_)))
    }

    /// Sends the outcome, or `failure` in the place of a success: what was not committed did not happen.
    pub(super) fn answer(self, failure: Option<&StoreError>) {
        let outcome = match (self.outcome, failure) {
            (Some(Err(error)), _) => Err(error),
            (Some(Ok(_)) | None, Some(failure)) => Err(failure.clone()),
            (Some(Ok(value)), None) => Ok(value),
            (None, None) => return,
        };
        // A caller that went away does not want it.
        let _ = self.answer.send(outcome);
    }
}

/// Waits for the thread's answer.
pub(super) async fn answered<T>(answer: Answer<T>) -> Result<T, StoreError> {
    answer.await.unwrap_or_else(|_| Err(StoreError::Unknown("the store's thread ended before it answered".into())))
}

/// The thread has ended already, so nothing was done.
pub(super) fn thread_gone() -> StoreError {
    StoreError::Unavailable("the store's thread has ended".into())
}

/// Starts a named thread.
pub(super) fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<std::thread::JoinHandle<()>, StoreError> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(body);
    thread.map_err(|error| StoreError::Unavailable(format!("cannot start a thread for the store: {error}")))
}
