//! The rate-limit fields of answers: both families (contract 5; draft-ietf-httpapi-ratelimit-headers), and `Retry-After`.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};

use super::quota::{QuotaState, WindowState};

const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
pub(super) const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Both families of rate-limit fields (contract 5; draft-ietf-httpapi-ratelimit-headers), and `Retry-After` on a refusal.
pub fn set_quota(headers: &mut HeaderMap, quota: &QuotaState) {
    QuotaFields::new(*quota).set(headers);
}

/// The same for a refusal by another rate than the plan's: its window, of this name, is the violated one.
pub fn set_rate(headers: &mut HeaderMap, name: &str, window: &WindowState) {
    ShownWindow::new(window).set(headers);
    let policy = Text::new().str("\"").str(name).str("\";q=").number(window.limit).str(";w=60").value();
    headers.insert(RATELIMIT_POLICY, policy);
    let mut state = Text::new();
    state.str("\"").str(name).str("\";r=").number(window.remaining).str(";t=").number(window.seconds_left);
    headers.insert(RATELIMIT, state.value());
    headers.insert(RETRY_AFTER, HeaderValue::from(window.seconds_left));
}

/// The rate-limit fields of one request, written once for both directions.
#[derive(Debug)]
pub struct QuotaFields {
    state: QuotaState,
    shown: ShownWindow,
}

impl QuotaFields {
    /// For this state.
    pub fn new(state: QuotaState) -> Self {
        Self { shown: ShownWindow::new(&state.shown()), state }
    }

    /// The window with less left, alone: what the upstream is told.
    pub(super) fn set_shown(&self, headers: &mut HeaderMap) {
        self.shown.clone().set(headers);
    }

    pub(super) fn set(self, headers: &mut HeaderMap) {
        self.shown.set(headers);
        let (minute, day) = (&self.state.minute, &self.state.day);
        let mut policy = Text::new();
        policy.str("\"minute\";q=").number(minute.limit).str(";w=60, \"day\";q=").number(day.limit).str(";w=86400");
        headers.insert(RATELIMIT_POLICY, policy.value());
        let mut state = Text::new();
        state.str("\"minute\";r=").number(minute.remaining).str(";t=").number(minute.seconds_left);
        state.str(", \"day\";r=").number(day.remaining).str(";t=").number(day.seconds_left);
        headers.insert(RATELIMIT, state.value());
        if self.state.violated.minute || self.state.violated.day {
            headers.insert(RETRY_AFTER, HeaderValue::from(self.state.retry_after()));
        }
    }
}

/// `X-RateLimit-*`
#[derive(Debug, Clone)]
struct ShownWindow {
    limit: HeaderValue,
    remaining: HeaderValue,
    reset: HeaderValue,
}

impl ShownWindow {
    fn new(window: &WindowState) -> Self {
        Self { limit: window.limit.into(), remaining: window.remaining.into(), reset: window.reset.into() }
    }

    fn set(self, headers: &mut HeaderMap) {
        headers.insert(X_RATELIMIT_LIMIT, self.limit);
        headers.insert(X_RATELIMIT_REMAINING, self.remaining);
        headers.insert(X_RATELIMIT_RESET, self.reset);
    }
}

/// A short field value, put together on the stack: on every answer, so neither a `String` nor the machinery of `format!`.
struct Text {
    room: [u8; 128],
    length: usize,
}

impl Text {
    const fn new() -> Self {
        Self { room: [0; 128], length: 0 }
    }

    /// Appends visible ASCII; what does not fit is left out, and the longest value here has 90 characters.
    fn str(&mut self, text: &str) -> &mut Self {
        if let Some(room) = self.room.get_mut(self.length..self.length + text.len()) {
            room.copy_from_slice(text.as_bytes());
            self.length += text.len();
        }
        self
    }

    fn number(&mut self, number: impl itoa::Integer) -> &mut Self {
        self.str(itoa::Buffer::new().format(number))
    }

    fn value(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.room[..self.length]).unwrap_or(HeaderValue::from_static(""))
    }
}
