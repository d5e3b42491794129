//! Processes of the real binary, with what they write kept.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::clock::wait_for;

/// A debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running process of the product. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// What a process that has ended left.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Process {
    /// Starts the binary with its output in files of `folder`.
    pub(crate) fn start(name: &str, folder: &Path, arguments: &[&str]) -> Self {
        Self::start_in(name, folder, arguments, &[])
    }

    /// The same, with these variables in its environment.
    pub(crate) fn start_in(name: &str, folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::spawn(name, folder, command(arguments).envs(variables.iter().copied()))
    }

    /// The same, within a limit of prlimit(1).
    pub(crate) fn start_limited(name: &str, folder: &Path, arguments: &[&str], limit: &str) -> Self {
        let whole = command(arguments);
        let mut limited = Command::new("prlimit");
        limited.arg(limit).arg(whole.get_program()).args(whole.get_args());
        Self::spawn(name, folder, limited.stdin(Stdio::null()).env_remove("SEEME_GATEWAY_CONFIG"))
    }

    fn spawn(name: &str, folder: &Path, command: &mut Command) -> Self {
        let (stdout, stderr) = (folder.join(format!("{name}.stdout")), folder.join(format!("{name}.stderr")));
        let child =
            command.stdout(File::create(&stdout).unwrap()).stderr(File::create(&stderr).unwrap()).spawn().unwrap();
        Self { child, name: name.to_owned(), stdout, stderr }
    }

    /// What it has written so far.
    pub(crate) fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it has complained so far.
    pub(crate) fn stderr(&self) -> String {
        read(&self.stderr)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in KiB.
    pub(crate) fn resident(&self) -> u64 {
        self.memory("VmRSS")
    }

    /// A line of its memory in /proc/PID/status, in KiB.
    fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// How many files it has open.
    pub(crate) fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Processor time it has used.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // Behind the name, which may hold anything: user and system time are the 12th and 13th (proc(5)), in hundredths.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        Duration::from_millis(10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()))
    }

    /// The code or signal it ended with, if it did.
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Asks it to end: SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self) -> Finished {
        let what = format!("the end of {}", self.name);
        let (status, _) = wait_for(&what, PATIENCE, || self.child.try_wait().unwrap());
        Finished { code: status.code(), stdout: self.stdout(), stderr: self.stderr() }
    }

    /// SIGTERM, then waits: the orderly end.
    pub(crate) fn stop(mut self) -> Finished {
        self.terminate();
        self.wait()
    }

    /// Waits until `probe` finds something in what it wrote; it must not end before.
    pub(crate) fn await_output<T>(&mut self, what: &str, probe: impl Fn(&Self) -> Option<T>) -> T {
        let found = wait_for(what, PATIENCE, || {
            probe(self)
                .map(Ok)
                .or_else(|| self.has_ended().map(|status| Err(format!("ended ({status}) before {what}"))))
        });
        found.0.unwrap_or_else(|ended| panic!("{}: {ended}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} wrote to stderr:\n{}", self.name, self.stderr());
            let stdout = self.stdout();
            let last = stdout.lines().rev().take(20).collect::<Vec<_>>();
            eprintln!("--- {}, the last lines of stdout, latest first:\n{}", self.name, last.join("\n"));
        }
    }
}

/// Runs a command to its end.
pub(crate) fn run(arguments: &[&str], stdin: Option<&[u8]>) -> Finished {
    use std::io::Write;
    let mut child = command(arguments)
        .stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    if let Some(bytes) = stdin {
        // One that ends without reading it all is judged by its exit code.
        let _ = child.stdin.take().unwrap().write_all(bytes);
    }
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Finished { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    // Another build of it, for figures: `target/release/seeme-gateway`.
    let named = std::env::var_os("SEEME_TEST_GATEWAY_BIN");
    let mut command = Command::new(named.unwrap_or_else(|| env!("CARGO_BIN_EXE_seeme-gateway").into()));
    // Nothing of the caller's environment may decide a test.
    command.args(arguments).stdin(Stdio::null()).env_remove("SEEME_GATEWAY_CONFIG").env("COLUMNS", "120");
    command
}

fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let _ = file.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
