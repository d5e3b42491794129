//! A configuration, a store, a backend, and the gateways in front of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::backend::Sample;
use super::clock::wait_for;
use super::http::Connection;
use super::key::{Key, NewKey};
use super::process::{Finished, Process, run};
use super::request::Request;

/// For a line of a log to be written: a machine may be busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// Plans of the contract, and one that no test exhausts: the default, so that only tests of quota meet it.
const PLANS: &str = "plans:
  free: { requests_per_minute: 60, requests_per_day: 1000 }
  pro: { requests_per_minute: 300, requests_per_day: 50000 }
  enterprise: custom
  roomy: { requests_per_minute: 10000000, requests_per_day: 100000000 }
default_plan: roomy
";

/// What a stand will be.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    routes: String,
    sections: String,
    listener: String,
    upstream: Option<String>,
    management: Option<String>,
    store: Option<PathBuf>,
    shared_store: Option<String>,
}

/// Everything that a test talks to. The first gateway answers for the stand.
#[derive(Debug)]
pub(crate) struct Stand {
    pub(crate) gateway: Gateway,
    folder: TempDir,
    config: PathBuf,
    store: PathBuf,
    accounts: AtomicUsize,
    gateways: AtomicUsize,
    /// Where the store is.
    _memory: TempDir,
    /// Kept running, when the stand has its own.
    _sample: Option<Sample>,
}

/// One gateway process.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) process: Process,
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Layout {
    /// A route: what it matches, and its other members as in a YAML flow mapping.
    pub(crate) fn route(mut self, matches: &str, members: &str) -> Self {
        self.routes += &format!("  - {{ match: \"{matches}\", {members} }}\n");
        self
    }

    /// A section of gateway.yaml, or several.
    pub(crate) fn section(mut self, yaml: &str) -> Self {
        self.sections += &format!("{yaml}\n");
        self
    }

    /// Members of `listen.public` beside its address.
    pub(crate) fn listener(mut self, members: &str) -> Self {
        self.listener += &format!(", {members}");
        self
    }

    /// In front of this backend instead of a sample backend of its own.
    pub(crate) fn upstream(mut self, address: SocketAddr) -> Self {
        self.upstream = Some(format!("http://{address}"));
        self
    }

    /// The section `management`; its rate is out of the way unless a test is about it.
    pub(crate) fn management(mut self, members: &str) -> Self {
        self.management = Some(members.to_owned());
        self
    }

    /// The store in this folder.
    pub(crate) fn store_in(mut self, folder: &Path) -> Self {
        self.store = Some(folder.join("gateway.db"));
        self
    }

    /// The members of the section `store`, for a store that is no file.
    pub(crate) fn shared_store(mut self, members: &str) -> Self {
        self.shared_store = Some(members.to_owned());
        self
    }

    pub(crate) fn start(self) -> Stand {
        let folder = tempfile::tempdir().unwrap();
        let memory = in_memory();
        let store = self.store.unwrap_or_else(|| memory.path().join("store").join("gateway.db"));
        let (upstreams, sample) = match self.upstream {
            Some(url) => (format!("main: {{ endpoints: [\"{url}\"] }}"), None),
            None => {
                let sample = Sample::start();
                (format!("main: {{ endpoints: [\"http://{}\"] }}", sample.address), Some(sample))
            }
        };
        let upstreams = if self.sections.contains("upstreams:") {
            String::new()
        } else {
            format!("upstreams: {{ {upstreams} }}\n")
        };
        let plans = if self.sections.contains("plans:") { "" } else { PLANS };
        let log_level = if self.sections.contains("log_level:") { "" } else { "log_level: info\n" };
        let management = self.management.unwrap_or_else(|| "rate: 1000000/min".to_owned());
        let members = self.shared_store.unwrap_or_else(|| format!("url: \"sqlite:{}\"", store.display()));
        let routes = if self.routes.is_empty() { USUAL_ROUTES } else { &self.routes };
        let text = format!(
            "listen: {{ public: {{ address: \"127.0.0.1:0\"{} }}, admin: {{ address: \"127.0.0.1:0\" }} }}
store: {{ {members} }}
{upstreams}{plans}management: {{ {management} }}
{log_level}workers: 2
{}routes:
{routes}",
            self.listener, self.sections,
        );
        let config = folder.path().join("gateway.yaml");
        std::fs::write(&config, text).unwrap();
        let gateway = Gateway::start("gateway-1", folder.path(), &config);
        let (accounts, gateways) = (AtomicUsize::new(1), AtomicUsize::new(2));
        Stand { gateway, folder, config, store, accounts, gateways, _memory: memory, _sample: sample }
    }
}

/// For tests that are about no route in particular.
const USUAL_ROUTES: &str = "  - { match: \"* /echo/{*rest}\", scope: models:read }
  - { match: \"* /public/{*rest}\", access: public }
  - { match: \"GET|POST /any\", access: authenticated }
";

impl Gateway {
    pub(crate) fn start(name: &str, folder: &Path, config: &Path) -> Self {
        Self::start_in(name, folder, config, &[])
    }

    /// The same, with these variables in its environment.
    pub(crate) fn start_in(name: &str, folder: &Path, config: &Path, variables: &[(&str, &str)]) -> Self {
        Self::run(name, folder, &["run", "-c", config.to_str().unwrap()], variables)
    }

    /// In the place of the process that has the address of this file.
    pub(crate) fn take_over(name: &str, folder: &Path, config: &Path) -> Self {
        Self::run(name, folder, &["run", "--take-over", "-c", config.to_str().unwrap()], &[])
    }

    fn run(name: &str, folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::serving(Process::start_in(name, folder, arguments, variables))
    }

    fn serving(mut process: Process) -> Self {
        let (public, admin) = process.await_output("the line that says it serves", |process| {
            let stderr = process.stderr();
            let line = stderr.lines().find(|line| line.contains(" serving "))?;
            let member = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse().ok());
            Some((member("public=")?, member("admin=")?))
        });
        Self { process, public, admin }
    }

    pub(crate) fn request(&self, method: &str, target: &str) -> Request {
        Request::new(self.public, method, target)
    }

    pub(crate) fn get(&self, target: &str) -> Request {
        self.request("GET", target)
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.public)
    }

    /// From the operators' listener.
    pub(crate) fn admin(&self, path: &str) -> super::http::Response {
        Request::new(self.admin, "GET", path).send()
    }

    /// The lines of its request log, as soon as there are so many.
    pub(crate) fn request_log(&self, lines: usize) -> Vec<Value> {
        // What is being written is not whole.
        let of = |line: &str| line.ends_with('\n').then(|| serde_json::from_str(line).unwrap());
        let read = || -> Vec<Value> { self.process.stdout().split_inclusive('\n').filter_map(of).collect() };
        wait_for("a line for each request", PATIENCE, || Some(read()).filter(|log| log.len() >= lines)).0
    }

    /// The sum of a metric over its labels that contain `labels`; none when it was never exported.
    pub(crate) fn metric(&self, name: &str, labels: &str) -> Option<f64> {
        let text = self.admin("/metrics").expect_status(200).text();
        let mut found = None;
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (metric, its_labels) = series.split_once('{').unwrap_or((series, ""));
            if metric == name && its_labels.contains(labels) {
                *found.get_or_insert(0.0) += value.parse::<f64>().unwrap();
            }
        }
        found
    }
}

/// A folder in memory where the system has one: tests measure the gateway, not a disk that others keep busy.
fn in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

impl Stand {
    /// Routes are the usual ones until the first is named.
    #[allow(clippy::new_ret_no_self, reason = "a stand begins as its layout")]
    pub(crate) fn new() -> Layout {
        Layout::default()
    }

    /// Another gateway process on the same file and store.
    pub(crate) fn another_gateway(&self) -> Gateway {
        let name = format!("gateway-{}", self.gateways.fetch_add(1, Ordering::Relaxed));
        Gateway::start(&name, self.folder.path(), &self.config)
    }

    /// Another gateway process, which may open only so many files.
    pub(crate) fn gateway_with_files(&self, files: u32) -> Gateway {
        let name = format!("gateway-{}", self.gateways.fetch_add(1, Ordering::Relaxed));
        let arguments = ["run", "-c", self.config.to_str().unwrap()];
        Gateway::serving(Process::start_with_files(&name, self.folder.path(), &arguments, files))
    }

    /// Another gateway process whose file differs in one text, in a folder of its own.
    pub(crate) fn gateway_with(&self, text: &str, instead: &str) -> Gateway {
        let name = format!("gateway-{}", self.gateways.fetch_add(1, Ordering::Relaxed));
        let folder = self.folder.path().join(&name);
        std::fs::create_dir(&folder).unwrap();
        let file = std::fs::read_to_string(&self.config).unwrap();
        assert!(file.contains(text), "no {text} in {file}");
        let config = folder.join("gateway.yaml");
        std::fs::write(&config, file.replace(text, instead)).unwrap();
        Gateway::start(&name, &folder, &config)
    }

    /// A key on an account of its own with these limits.
    pub(crate) fn limited_key(&self, per_minute: usize, per_day: usize) -> Key {
        let account = self.new_account();
        let (minute, day) = (per_minute.to_string(), per_day.to_string());
        let limits = ["--requests-per-minute", &minute, "--requests-per-day", &day];
        self.cli(&[&["accounts", "set", &account, "--plan", "enterprise"], &limits[..]].concat()).expect_success();
        self.key().account(&account).create()
    }

    /// A key on an account of its own.
    pub(crate) fn key(&self) -> NewKey<'_> {
        NewKey::new(self, self.new_account())
    }

    /// An account id that no other key of this stand has.
    pub(crate) fn new_account(&self) -> String {
        format!("account-{}", self.accounts.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs a subcommand on the configuration and store of the stand.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Finished {
        let mut all = arguments.to_vec();
        all.extend(["-c", self.config.to_str().unwrap()]);
        run(&all, None)
    }

    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    pub(crate) fn request(&self, method: &str, target: &str) -> Request {
        self.gateway.request(method, target)
    }

    pub(crate) fn get(&self, target: &str) -> Request {
        self.gateway.get(target)
    }

    pub(crate) fn post(&self, target: &str) -> Request {
        self.gateway.request("POST", target)
    }

    pub(crate) fn connect(&self) -> Connection {
        self.gateway.connect()
    }

    /// The usage object of a key, by the management API of this gateway (which writes its own counters first).
    pub(crate) fn usage(&self, key: &Key) -> Value {
        let reader = self.key().account(&key.account).scope("api-keys:read").create();
        self.get(&format!("/api/v1/api-keys/{}/usage", key.id)).bearer(&reader).send().expect_status(200).json()
    }
}

/// Runs a subcommand that needs no stand.
pub(crate) fn cli(arguments: &[&str]) -> Finished {
    run(arguments, None)
}

impl Finished {
    #[track_caller]
    pub(crate) fn expect_success(self) -> Self {
        self.expect_code(0)
    }

    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}
