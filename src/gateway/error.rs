//! Why a request got no answer of the upstream's: joined here, told to the client in [`super::respond`] alone.

use crate::auth::StoreUnavailable;
use crate::limit::LimitError;
use crate::limit::address::TooManyFromAddress;
use crate::management::rate::TooManyCalls;
use crate::policy::rejection::{Problem, Rejection};
use crate::upstream::{BodyError, UpstreamError};

/// Everything that ends a request before its answer comes from the upstream.
#[derive(Debug, Clone, PartialEq)]
pub enum GatewayError {
    /// A decision.
    Rejected(Rejection),
    /// A refusal of the management API.
    Problem(Problem),
    /// `management.rate` is used up.
    TooManyCalls(TooManyCalls),
    /// A rate of `limits.per_address` is used up.
    TooManyFromAddress(TooManyFromAddress),
    /// The store could not be asked about a key or a lease.
    StoreUnavailable,
    /// No memory left for inspecting bodies.
    Overloaded,
    /// The client's body failed while it was read here; the limit it passed, if it was too large.
    RequestBody(BodyError, Option<u64>),
    /// The upstream.
    Upstream(UpstreamError),
}

impl From<Rejection> for GatewayError {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<TooManyFromAddress> for GatewayError {
    fn from(refusal: TooManyFromAddress) -> Self {
        Self::TooManyFromAddress(refusal)
    }
}

impl From<StoreUnavailable> for GatewayError {
    fn from(_: StoreUnavailable) -> Self {
        Self::StoreUnavailable
    }
}

impl From<LimitError> for GatewayError {
    fn from(error: LimitError) -> Self {
        match error {
            LimitError::Rejected(rejection) => Self::Rejected(rejection),
            LimitError::StoreUnavailable => Self::StoreUnavailable,
        }
    }
}
