//! Servers that cannot outlive the test process.
//!
//! Rust drops no statics, and a killed process drops nothing. So each server is the child of a small shell that waits at a pipe
//! whose other end only this process holds. The system closes that end whenever and however the process goes away; then the
//! shell kills the server and removes its folder.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// `$0` is the folder. A group that loses its parent while one of it is stopped is sent SIGHUP by the system. SIGKILL ends a
/// stopped process, too.
const WATCH: &str = r#"
trap '' HUP
"$@" </dev/null >&2 &
echo $!
read word
kill -9 $!
wait $!
[ "$word" = keep ] || rm -rf "$0"
"#;

/// A running server and the shell that watches over it.
#[derive(Debug)]
pub(super) struct Watched {
    shell: Child,
    /// Held open for as long as the server may live.
    leash: Option<ChildStdin>,
    pid: i32,
}

impl Watched {
    /// Starts it in `folder` with its output in `log`.
    pub(super) fn start(program: &str, arguments: &[String], folder: &Path, log: File) -> Self {
        let mut shell = Command::new("sh")
            .args(["-c", WATCH])
            .arg(folder)
            .arg(program)
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // The Ctrl-C that ends the tests must not end the shell before it has done its work.
            .process_group(0)
            .spawn()
            .unwrap();
        let leash = shell.stdin.take();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid = line.trim().parse().unwrap();
        Self { shell, leash, pid }
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid).unwrap(), signal).unwrap();
    }

    /// Whether it has ended by itself: the shell, its parent, has not asked yet, so that it is a zombie.
    pub(super) fn has_ended(&self) -> bool {
        match std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')),
            Err(_) => true,
        }
    }

    /// SIGKILL; the folder stays. Returns when it is dead.
    pub(super) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(mut leash) = self.leash.take() {
            // A shell that is gone has killed it already.
            let _ = leash.write_all(b"keep\n");
            drop(leash);
            let _ = self.shell.wait();
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.end();
    }
}
