//! What has passed of a small request body, kept for the case that the request must go out again.
//!
//! Only where the method promises that a repetition does no harm ([`crate::policy::retry`]), and only until the answer begins. What
//! is larger than [`MOST`] streams through and is gone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::body::RequestBody;

/// The most octets of one body that are kept.
pub(super) const MOST: usize = 64 * 1024;

/// The body of a request that may go out twice.
#[derive(Debug)]
pub(super) enum Again {
    /// At hand, or there is none.
    Whole(RequestBody),
    /// Streams, and is kept on its way.
    Kept(Kept),
}

/// The frames of one body, shared by the body and by whoever may send it again.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    frames: Vec<Bytes>,
    octets: usize,
    /// It was read to its end.
    is_whole: bool,
    /// It is too large, or more than octets.
    is_lost: bool,
}

impl Again {
    /// The body, if all of it is there.
    pub(super) fn body(&self) -> Option<RequestBody> {
        match self {
            Self::Whole(body) => body.again(),
            Self::Kept(kept) => kept.whole().map(RequestBody::Held),
        }
    }

    /// It will be there whenever it is asked for.
    pub(super) const fn is_sure(&self) -> bool {
        matches!(self, Self::Whole(_))
    }
}

impl Kept {
    /// More of it passes.
    pub(super) fn note(&self, data: &Bytes) {
        let mut state = self.lock();
        state.octets += data.len();
        if state.octets > MOST {
            state.is_lost = true;
            state.frames.clear();
        } else {
            state.frames.push(data.clone());
        }
    }

    /// It ended; with trailers it is more than its octets.
    pub(super) fn end(&self, has_trailers: bool) {
        let mut state = self.lock();
        state.is_whole = true;
        state.is_lost |= has_trailers;
    }

    fn whole(&self) -> Option<Bytes> {
        let state = self.lock();
        (state.is_whole && !state.is_lost).then(|| state.frames.concat().into())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_there_again_once_it_was_read_to_its_end() {
        let kept = Kept::default();
        kept.note(&Bytes::from_static(b"a"));
        kept.note(&Bytes::from_static(b"bc"));
        assert_eq!(kept.whole(), None, "more may come");
        kept.end(false);
        assert_eq!(kept.whole().unwrap(), "abc");
        assert_eq!(kept.whole().unwrap(), "abc", "as often as it is needed");
    }

    #[test]
    fn what_is_too_large_or_has_trailers_is_not_kept() {
        let large = Kept::default();
        for _ in 0..3 {
            large.note(&Bytes::from(vec![0; MOST / 2]));
        }
        large.end(false);
        assert_eq!((large.whole(), large.lock().frames.len()), (None, 0));
        let full = Kept::default();
        full.note(&Bytes::from(vec![0; MOST]));
        full.end(false);
        assert_eq!(full.whole().unwrap().len(), MOST);
        let trailed = Kept::default();
        trailed.end(true);
        assert_eq!(trailed.whole(), None);
    }
}
