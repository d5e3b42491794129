//! One real Redis server.

use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::certificates::{Certificates, ClientCertificate};
use super::namespace::Namespace;
use super::ports::{free_port, wait_for};
use super::resp::{Connection, Monitor, Reply};
use super::shared::{Logged, Shared};
use super::watchdog::Watched;

/// A server on a busy machine, loading included.
const PATIENCE: Duration = Duration::from_secs(20);
/// So much of a log is shown.
const LAST_LINES: usize = 40;
/// Whom the harness logs in as, so that tests can take any right from the default user.
const HARNESS: &str = "harness";
/// What is used unless `SEEME_TEST_REDIS_SERVER` says otherwise.
const PROGRAM: &str = "redis-server";

/// A server of its own, empty, without persistence. Killed when dropped, or with the test process.
#[derive(Debug)]
pub(crate) struct RedisServer {
    /// Where it is reached.
    host: String,
    port: u16,
    tls: Option<Tls>,
    program: String,
    /// All but the ports.
    arguments: Vec<String>,
    /// Before the folder: it ends before that is removed.
    running: Mutex<Option<Watched>>,
    folder: TempDir,
}

#[derive(Debug)]
struct Tls {
    port: u16,
    certificates: Certificates,
}

/// What a server that is about to start becomes.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) arguments: Vec<String>,
    pub(super) tls: Option<ClientCertificate>,
    /// The text of a configuration file that the server may rewrite: a sentinel's.
    pub(super) file: Option<String>,
    /// The address in another network, and what a program follows to run there.
    pub(super) elsewhere: Option<(String, Vec<String>)>,
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more arguments: `&["--maxmemory", "2mb"]`. They win over the usual ones.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        Self::launch(Plan { arguments: arguments.iter().map(ToString::to_string).collect(), ..Plan::default() })
    }

    /// One that listens for TLS, too ([`tls_port`](Self::tls_port)), with certificates of its own. Always `redis-server` from the
    /// PATH: the Valkey of the Python package index is built without TLS.
    pub(crate) fn start_tls(client: ClientCertificate) -> Self {
        Self::launch(Plan { tls: Some(client), ..Plan::default() })
    }

    /// One that lives in this namespace.
    pub(crate) fn start_in(namespace: &Namespace) -> Self {
        let prefix = namespace.prefix().map(str::to_owned).to_vec();
        Self::launch(Plan { elsewhere: Some((namespace.address().to_owned(), prefix)), ..Plan::default() })
    }

    /// The one that all tests of this process share. Use keys of your own, and leave it as it is.
    pub(crate) fn shared() -> Shared<Self> {
        static SHARED: OnceLock<RedisServer> = OnceLock::new();
        Shared(SHARED.get_or_init(Self::start))
    }

    pub(super) fn launch(plan: Plan) -> Self {
        let folder = tempfile::Builder::new().prefix("redis-").tempdir().unwrap();
        let named = std::env::var("SEEME_TEST_REDIS_SERVER").ok().filter(|_| plan.tls.is_none());
        let user = ["user", HARNESS, "on", &format!(">{HARNESS}"), "~*", "&*", "+@all"];
        let mut arguments = Vec::new();
        if let Some(text) = &plan.file {
            let path = folder.path().join("server.conf");
            std::fs::write(&path, format!("{}\n{text}", user.join(" "))).unwrap();
            arguments.extend([path.display().to_string(), "--sentinel".to_owned()]);
        } else {
            arguments.extend(["--save", "", "--appendonly", "no", "--user"].map(str::to_owned));
            arguments.extend(user[1..].iter().map(ToString::to_string));
        }
        let (host, prefix) = plan.elsewhere.unwrap_or_else(|| ("127.0.0.1".to_owned(), Vec::new()));
        arguments.extend(["--bind", &host, "--protected-mode", "no"].map(str::to_owned));
        arguments.extend(["--dir".to_owned(), folder.path().display().to_string()]);
        let tls = plan.tls.map(|client| {
            let certificates = Certificates::issue(folder.path());
            arguments.extend(tls_arguments(&certificates, client));
            Tls { port: 0, certificates }
        });
        arguments.extend(plan.arguments);
        let mut words = prefix;
        words.push(named.unwrap_or_else(|| PROGRAM.to_owned()));
        words.extend(arguments);
        let program = words.remove(0);
        let mut server = Self { host, port: 0, tls, program, arguments: words, folder, running: Mutex::default() };
        // Another process may take the port in between.
        for _ in 0..10 {
            server.port = free_port();
            if let Some(tls) = &mut server.tls {
                tls.port = free_port();
            }
            if server.try_start() {
                return server;
            }
        }
        panic!("{} does not start:\n{}", server.program, server.log());
    }

    /// Whether it runs: false when it ended at once, as for a port that is taken.
    fn try_start(&self) -> bool {
        let mut arguments = self.arguments.clone();
        arguments.extend(["--port".to_owned(), self.port.to_string()]);
        if let Some(tls) = &self.tls {
            arguments.extend(["--tls-port".to_owned(), tls.port.to_string()]);
        }
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let watched = Watched::start(&self.program, &arguments, self.folder.path(), log);
        let runs = wait_for(&format!("{} answers", self.program), PATIENCE, || {
            if watched.has_ended() {
                return Some(false);
            }
            self.is_ready(watched.pid()).then_some(true)
        });
        if runs {
            *self.running.lock().unwrap() = Some(watched);
        }
        runs
    }

    /// It answers PING, and it is no other server on the same port.
    fn is_ready(&self, pid: i32) -> bool {
        let answers = |words: &[&str]| self.connect().ok()?.command(words).ok().map(|reply| reply.text());
        answers(&["PING"]).is_some_and(|pong| pong == "PONG")
            && answers(&["INFO", "server"]).is_some_and(|info| field(&info, "process_id") == Some(&pid.to_string()))
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}:{}", self.host, self.port)
    }

    /// Of a server that was started with TLS.
    pub(crate) fn tls_port(&self) -> u16 {
        self.tls.as_ref().unwrap().port
    }

    /// `rediss://`, by the name that is in the certificate.
    pub(crate) fn tls_url(&self) -> String {
        format!("rediss://localhost:{}", self.tls_port())
    }

    pub(crate) fn certificates(&self) -> &Certificates {
        &self.tls.as_ref().unwrap().certificates
    }

    /// For what a test wants to keep as long as the server.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Of the server itself.
    pub(crate) fn pid(&self) -> i32 {
        self.running.lock().unwrap().as_ref().unwrap().pid()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.lock().unwrap().as_ref().is_some_and(|running| !running.has_ended())
    }

    /// SIGKILL. Returns when it is dead; its folder stays.
    pub(crate) fn kill(&self) {
        if let Some(running) = self.running.lock().unwrap().take() {
            running.kill();
        }
    }

    /// SIGSTOP: connections stay open, and nothing is answered.
    pub(crate) fn stop_signal(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn cont(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        self.running.lock().unwrap().as_ref().unwrap().signal(signal);
    }

    /// Kills it if it runs, and starts it on the same port with the same arguments and folder: empty, unless it persists.
    pub(crate) fn restart(&self) {
        self.kill();
        assert!(self.try_start(), "{} does not start again:\n{}", self.program, self.log());
    }

    /// A connection with every right.
    pub(crate) fn connect(&self) -> std::io::Result<Connection> {
        let mut connection = Connection::open_at(&self.host, self.port)?;
        match connection.command(&["AUTH", HARNESS, HARNESS])? {
            Reply::Status(_) => Ok(connection),
            other => Err(std::io::Error::other(other.text())),
        }
    }

    /// Runs a command on a connection of its own, like `redis-cli`, and gives what that would print. Errors fail the test.
    #[track_caller]
    pub(crate) fn cli(&self, words: &[&str]) -> String {
        match self.command(words) {
            Reply::Error(error) => panic!("{}: {error}", words.join(" ")),
            reply => reply.text(),
        }
    }

    /// The reply itself, errors included.
    #[track_caller]
    pub(crate) fn command(&self, words: &[&str]) -> Reply {
        let reply = self.connect().and_then(|mut connection| connection.command(words));
        reply.unwrap_or_else(|error| panic!("{} on port {}: {error}", words.join(" "), self.port))
    }

    /// A member of `INFO`; nothing when there is no such, or no answer.
    pub(crate) fn info(&self, section: &str, name: &str) -> Option<String> {
        let info = self.connect().ok()?.command(&["INFO", section]).ok()?.text();
        field(&info, name).map(str::to_owned)
    }

    /// Sees every command from now on.
    pub(crate) fn monitor(&self) -> Monitor {
        Monitor::new(self.connect().unwrap(), self.connect().unwrap())
    }

    /// A user with these rules only: `&["~seeme:*", "+@read"]`.
    pub(crate) fn create_user(&self, name: &str, password: &str, rules: &[&str]) {
        let password = format!(">{password}");
        let mut words = vec!["ACL", "SETUSER", name, "reset", "on", &password];
        words.extend(rules);
        self.cli(&words);
    }

    /// What it logged so far, over all its starts.
    pub(crate) fn log(&self) -> String {
        std::fs::read(self.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn log_path(&self) -> std::path::PathBuf {
        self.folder.path().join("log")
    }
}

/// A member of `INFO`, `CLUSTER INFO` and the like.
pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn tls_arguments(certificates: &Certificates, client: ClientCertificate) -> Vec<String> {
    let asked = if client == ClientCertificate::Required { "yes" } else { "no" };
    let files = [
        ("--tls-ca-cert-file", &certificates.ca),
        ("--tls-cert-file", &certificates.server_certificate),
        ("--tls-key-file", &certificates.server_key),
    ];
    let files = files.iter().flat_map(|(name, path)| [(*name).to_owned(), path.display().to_string()]);
    files.chain(["--tls-auth-clients", asked].map(str::to_owned)).collect()
}

impl Logged for RedisServer {
    fn show_logs(&self) {
        let log = self.log();
        let lines = log.lines().collect::<Vec<_>>();
        let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
        eprintln!("--- {} on port {}, the end of its log:\n{}", self.program, self.port, last.join("\n"));
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // The server itself ends with its field.
        if std::thread::panicking() {
            self.show_logs();
        }
    }
}
