//! Whether a connection has brought any octet since a request went out on it.
//!
//! hyper tells of a connection that ended before the answer and of one that ended inside its head in the same words. A request
//! may be sent again after the first, never after the second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Counts reads that brought something, or the end. Shared by the socket and by whoever waits for the answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard(Arc<AtomicU32>);

impl Heard {
    /// A request is about to go out.
    pub(super) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Something came, or the end.
    pub(super) fn note(&self) {
        // One task reads, and whoever resets has it wait for him: no need for an atomic addition.
        self.0.store(self.0.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
    }

    /// Whether the connection was lost in this way before any octet came: without a word, or with its end as the only one.
    pub(super) fn nothing(&self, lost: &hyper::Error) -> bool {
        match self.0.load(Ordering::Relaxed) {
            0 => true,
            1 => lost.is_incomplete_message(),
            _ => false,
        }
    }
}
