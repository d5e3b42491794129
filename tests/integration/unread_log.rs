//! Nobody reads stderr, or nothing can be written to it: lines are lost, and nothing else.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, pipe};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::*;

const SOON: Duration = Duration::from_secs(10);

/// A gateway of its own whose stderr goes there. Killed when dropped.
struct Untold(Child);

impl Untold {
    fn start(stand: &Stand, stderr: Stdio) -> Self {
        let mut command = command(&["run", "-c", stand.config().to_str().unwrap()]);
        Self(command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap())
    }

    /// Each makes it say something.
    fn reload(&self, times: usize) {
        for _ in 0..times {
            kill_process(Pid::from_child(&self.0), Signal::HUP).unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn ends_well(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        let (status, _) = wait_for("its end", SOON, || self.0.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{status}");
    }
}

impl Drop for Untold {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads up to the line that says where it serves.
fn read_addresses(lines: &mut BufReader<PipeReader>) -> (SocketAddr, SocketAddr) {
    let mut line = String::new();
    while !line.contains(" serving ") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0);
    }
    let member = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse().ok()).unwrap();
    (member("public="), member("admin="))
}

/// It forwards: the backend has nothing there.
fn serves(public: SocketAddr, admin: SocketAddr) {
    Request::new(public, "GET", "/public/x").send().expect_status(404);
    Request::new(admin, "GET", "/livez").send().expect_status(200);
}

#[test]
fn a_gateway_whose_reader_is_gone_serves_on_and_ends_well() {
    let stand = Stand::new().start();
    let (reader, writer) = pipe().unwrap();
    let gateway = Untold::start(&stand, writer.into());
    let mut lines = BufReader::new(reader);
    let (public, admin) = read_addresses(&mut lines);
    drop(lines);
    gateway.reload(20);
    serves(public, admin);
    gateway.ends_well();
}

#[test]
fn a_gateway_that_nobody_reads_serves_on_and_ends_well() {
    let stand = Stand::new().start();
    let (reader, writer) = pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    let gateway = Untold::start(&stand, writer.into());
    let mut lines = BufReader::new(reader);
    let (public, admin) = read_addresses(&mut lines);
    gateway.reload(200);
    serves(public, admin);
    gateway.ends_well();
}

#[test]
fn a_gateway_that_cannot_write_at_all_starts_and_ends_well() {
    let stand = Stand::new().start();
    let gateway = Untold::start(&stand, File::create("/dev/full").unwrap().into());
    let threads = format!("/proc/{}/task", gateway.0.id());
    eventually("its workers", SOON, || {
        let names = std::fs::read_dir(&threads)
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.into_iter().any(|name| name.starts_with("worker"))
    });
    gateway.reload(20);
    gateway.ends_well();
}
