//! What of an answer's body came with its head, looked at before that goes out: what has broken by then is refused instead.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, Version};
use http_body::{Body, Frame};
use hyper::body::Incoming;

use super::body::{BodyError, is_cut_short};

/// Frames that are looked at before the head goes out.
const LOOK_AHEAD: usize = 8;

/// Frames, small enough to be carried along.
#[derive(Debug)]
pub(super) enum First {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
    Several(VecDeque<Frame<Bytes>>),
}

impl First {
    /// What is there already, without waiting; an error when the body has broken already. Over HTTP/2 a stream breaks behind what
    /// came before, so there several frames are looked at.
    pub(super) fn of(incoming: &mut Incoming, version: Version) -> Result<Option<Self>, BodyError> {
        let Some(first) = next_at_once(incoming, version)? else { return Ok(None) };
        if version == Version::HTTP_2
            && first.is_data()
            && let Some(second) = next_at_once(incoming, version)?
        {
            let mut frames = VecDeque::from([first, second]);
            while frames.len() < LOOK_AHEAD
                && let Some(frame) = next_at_once(incoming, version)?
            {
                frames.push_back(frame);
            }
            return Ok(Some(Self::Several(frames)));
        }
        let trailers = match first.into_data() {
            Ok(data) => return Ok(Some(Self::Data(data))),
            Err(frame) => frame.into_trailers(),
        };
        Ok(trailers.ok().map(|trailers| Self::Trailers(Box::new(trailers))))
    }

    /// The next frame, and what is left.
    pub(super) fn next(self) -> (Option<Frame<Bytes>>, Option<Self>) {
        match self {
            Self::Data(data) => (Some(Frame::data(data)), None),
            Self::Trailers(trailers) => (Some(Frame::trailers(*trailers)), None),
            Self::Several(mut frames) => {
                let next = frames.pop_front();
                (next, (!frames.is_empty()).then_some(Self::Several(frames)))
            }
        }
    }

    /// Octets of content.
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Trailers(_) => 0,
            Self::Several(frames) => frames.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum(),
        }
    }
}

/// A frame that is there. Whoever sends it asks again within the same turn, with a waker.
fn next_at_once(incoming: &mut Incoming, version: Version) -> Result<Option<Frame<Bytes>>, BodyError> {
    if incoming.is_end_stream() {
        return Ok(None);
    }
    match Pin::new(&mut *incoming).poll_frame(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Some(frame)) => frame.map(Some).map_err(|_| BodyError::Broken),
        Poll::Ready(None) if is_cut_short(incoming, version) => Err(BodyError::Broken),
        Poll::Ready(None) | Poll::Pending => Ok(None),
    }
}
