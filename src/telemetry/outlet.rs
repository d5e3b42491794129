//! A thread that writes lines, and the queue in front of it: whoever has a line hands it over and goes on.
//!
//! Nobody ever waits for whoever reads what we print: a log shipper that hangs, a full disk or a closed pipe costs lines, which
//! are counted where they were to be written, and nothing else.

use std::io::{self, BufWriter, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Lines that may wait.
const CAPACITY: usize = 16_384;

enum Message<T> {
    Line(T),
    Flush(SyncSender<()>),
}

/// The sending side.
#[derive(Debug)]
pub(super) struct Outlet<T>(SyncSender<Message<T>>);

impl<T> Clone for Outlet<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Send + 'static> Outlet<T> {
    /// Starts the thread, which gives each line to `write`. It ends with the last sender.
    pub(super) fn start<W: Write + Send + 'static>(
        name: &str,
        out: W,
        write: impl FnMut(&mut BufWriter<W>, T) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(CAPACITY);
        let out = BufWriter::with_capacity(64 * 1024, out);
        std::thread::Builder::new().name(name.into()).spawn(move || write_lines(&receiver, out, write))?;
        Ok(Self(sender))
    }

    /// Hands a line over; false when it was dropped.
    pub(super) fn write(&self, line: T) -> bool {
        self.0.try_send(Message::Line(line)).is_ok()
    }

    /// Waits until everything handed over so far is written, but no longer than `patience`: whoever reads it may have stopped
    /// reading, and must not keep the process from ending. False: some lines were not written.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let (done, wait) = sync_channel(1);
        // A full queue is a reader that stopped: there is no point in waiting for room.
        self.0.try_send(Message::Flush(done)).is_ok() && wait.recv_timeout(patience).is_ok()
    }
}

fn write_lines<T, W: Write>(
    receiver: &Receiver<Message<T>>,
    mut out: BufWriter<W>,
    mut write: impl FnMut(&mut BufWriter<W>, T) -> io::Result<()>,
) {
    while let Ok(mut message) = receiver.recv() {
        // Write all that waits, then flush once.
        loop {
            match message {
                // A closed pipe or a full disk must not end the gateway; there is nobody left to tell.
                Message::Line(line) => drop(write(&mut out, line)),
                Message::Flush(done) => {
                    let _ = out.flush();
                    let _ = done.send(());
                }
            }
            match receiver.try_recv() {
                Ok(next) => message = next,
                Err(_) => break,
            }
        }
        let _ = out.flush();
    }
}
