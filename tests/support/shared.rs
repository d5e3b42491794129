//! One instance for all tests of a process.

use std::ops::Deref;

/// What keeps logs of servers.
pub(crate) trait Logged {
    /// Prints the ends of the logs, for a test that fails.
    fn show_logs(&self);
}

/// A test's hold on an instance that all tests share. The instance is never dropped; this is, and shows the logs when the test
/// fails: keep it in a variable.
#[derive(Debug)]
pub(crate) struct Shared<T: Logged + 'static>(pub(super) &'static T);

impl<T: Logged> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0
    }
}

impl<T: Logged> Drop for Shared<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.show_logs();
        }
    }
}
