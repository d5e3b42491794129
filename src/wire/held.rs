//! Octets that could not pass where they were read: first those that may by now, then the beginning of what must come whole.

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) octets: Vec<u8>,
    /// How many of them may pass.
    pub(super) ready: usize,
}

impl Held {
    /// Hands on what may pass, as much as `put` takes; whether there was any.
    pub(super) fn hand_over(&mut self, put: impl FnOnce(&[u8]) -> usize) -> bool {
        // Nearly always.
        if self.ready == 0 {
            return false;
        }
        let taken = put(&self.octets[..self.ready]);
        self.octets.drain(..taken);
        self.ready -= taken;
        if self.octets.is_empty() {
            // Rare, so the room is not kept: an idle connection holds none.
            self.octets = Vec::new();
        }
        true
    }

    /// Those that wait for more to come.
    pub(super) fn waiting(&self) -> &[u8] {
        &self.octets[self.ready..]
    }
}
