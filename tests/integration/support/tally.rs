//! A backend that counts what reaches it: the truth about what was admitted, also by a gateway that did not live to answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use super::backend::Scripted;

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Answers everything with 200 and remembers for whom it was.
#[derive(Debug)]
pub(crate) struct Tally {
    backend: Scripted,
    counts: Arc<Mutex<Counts>>,
}

/// Requests by account and by the end of the window that the gateway told.
type Counts = BTreeMap<String, BTreeMap<u64, usize>>;

impl Tally {
    pub(crate) fn start() -> Self {
        let counts = Arc::<Mutex<Counts>>::default();
        let shared = counts.clone();
        let backend = Scripted::start(move |wire| {
            while let Some(head) = wire.head() {
                let field = |name: &str| {
                    let named = |line: &&str| line.split_once(':').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
                    head.lines().find(named)?.split_once(':').map(|(_, value)| value.trim().to_owned())
                };
                let account = field("x-seeme-account-id").unwrap_or_default();
                let reset = field("x-ratelimit-reset").and_then(|text| text.parse().ok()).unwrap_or(0);
                *shared.lock().unwrap().entry(account).or_default().entry(reset).or_insert(0) += 1;
                wire.send(ANSWER);
            }
        });
        Self { backend, counts }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.backend.address
    }

    /// How many came for this account: by the end of their window.
    pub(crate) fn windows(&self, account: &str) -> BTreeMap<u64, usize> {
        self.counts.lock().unwrap().get(account).cloned().unwrap_or_default()
    }

    /// How many came for this account.
    pub(crate) fn of(&self, account: &str) -> usize {
        self.windows(account).values().sum()
    }
}
