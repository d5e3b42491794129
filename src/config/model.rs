//! The compiled configuration: types that cannot be wrong.
//!
//! Only [`super::compile`] makes these. Whoever holds a [`Config`] needs no further validation: names are resolved to
//! handles, durations and sizes are numbers, routes are a table. Nothing here knows YAML.

mod upstream;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::redis_url::RedisUrl;
use crate::policy::cors::Cors;
use crate::policy::credential::KeyShape;
use crate::policy::key::{Account, Environment, PlanLimits, QuotaLimits};
use crate::policy::network::Networks;
use crate::policy::route::{RouteTable, UpstreamId};
use crate::policy::scope::ScopeCatalog;

pub use upstream::{Endpoint, HealthCheck, Host, Outlier, Retries, Upstream, UpstreamTls};

/// gateway.yaml, compiled.
#[derive(Debug)]
pub struct Config {
    /// The file it came from.
    pub source: PathBuf,
    /// BLAKE3 of the text it was compiled from.
    pub digest: [u8; 32],
    /// Counts the reloads of this process: what was worked out under one number is worked out anew under another.
    pub revision: u64,
    /// Threads that serve; each has its own listener and upstream pool.
    pub workers: usize,
    /// Where it listens.
    pub listen: Listen,
    /// Where keys live.
    pub store: StoreConfig,
    /// How long keys are trusted without asking.
    pub cache: CacheConfig,
    /// The backends; [`UpstreamId`] indexes them.
    pub upstreams: Vec<Upstream>,
    /// Which backend serves which environment; `None` where every route names its own.
    pub environments: Option<Environments>,
    /// Plans and whose quota is charged.
    pub quota: Quota,
    /// What scopes stand for.
    pub scopes: ScopeCatalog,
    /// The management API.
    pub management: Management,
    /// Which web pages may read answers; `None`: browsers let none of another origin.
    pub cors: Option<Cors>,
    /// Size limits.
    pub limits: Limits,
    /// Time limits.
    pub timeouts: Timeouts,
    /// What SIGTERM does.
    pub drain: Drain,
    /// Usage counting.
    pub usage: UsageConfig,
    /// Which secrets are worth a look-up.
    pub key_shape: KeyShape,
    /// The request log.
    pub log: LogFormat,
    /// The diagnostic log on stderr.
    pub log_level: tracing::Level,
    /// All routes.
    pub routes: RouteTable,
    /// The file's own tests, for `check`.
    pub tests: Vec<RouteTest>,
}

/// Where the gateway listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// For clients.
    pub public: SocketAddr,
    /// How they are spoken to there; `None`: without TLS.
    pub tls: Option<ListenTls>,
    /// For operators: /livez /readyz /metrics.
    pub admin: SocketAddr,
    /// Every connection begins with a PROXY header.
    pub proxy_protocol: bool,
    /// Whose word on their clients is believed.
    pub trusted_proxies: Arc<Networks>,
}

/// `listen.public.tls`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenTls {
    /// One at least; the first is shown to whoever asks for no name that another has.
    pub certificates: Vec<ServerCertificate>,
    /// Who must have signed the certificate of every client; `None`: none is asked for.
    pub client_ca: Option<PathBuf>,
}

/// A certificate and the names it is shown for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerCertificate {
    /// Names in lower case; `*.` stands for one label.
    pub names: Vec<String>,
    /// Where it is.
    pub files: CertificateFiles,
}

/// Where a certificate chain and its key are, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, the own certificate first.
    pub certificate: PathBuf,
    /// The key of the first.
    pub private_key: PathBuf,
}

impl Config {
    /// How long a gateway may serve a cached key after it last heard of the store: while it cannot ask, or because it asked a moment
    /// before.
    pub fn cached_keys_are_served_for(&self) -> Duration {
        self.store.serve_cached_keys_for.max(self.cache.recheck_without_push)
    }

    /// How long a known key stays in the cache: past its TTL, so that an outage of the store can be bridged.
    pub fn known_keys_are_kept_for(&self) -> Duration {
        self.cache.ttl + self.store.serve_cached_keys_for
    }
}

/// Which store, and what to do without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// Which backend.
    pub url: StoreUrl,
    /// How Redis lets us in, and what our names begin with there.
    pub access: RedisAccess,
    /// No reply of any kind for this long, with a call outstanding, is an outage.
    pub timeout: Duration,
    /// What happens to quota in an outage.
    pub outage_quota: OutageQuota,
    /// How long cached keys are served without a store.
    pub serve_cached_keys_for: Duration,
}

/// A backend with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// One file on this machine.
    Sqlite(PathBuf),
    /// Shared by many machines.
    Redis(RedisUrl),
}

/// What a Redis URL does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisAccess {
    /// ACL user, in the place of one in the URL.
    pub username: Option<String>,
    /// Its password, in the place of one in the URL.
    pub password: Option<Secret>,
    /// What all names begin with.
    pub prefix: String,
    /// Whether connections to sentinels and clusters are encrypted; a single server says so by its scheme.
    pub encrypted: bool,
    /// Who may have signed the server's certificate; `None`: the system's authorities.
    pub ca: Option<PathBuf>,
    /// Certificate and private key by which the gateway identifies itself.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl Default for RedisAccess {
    fn default() -> Self {
        let prefix = "sm:".to_owned();
        Self { username: None, password: None, prefix, encrypted: false, ca: None, client: None }
    }
}

/// A secret, in the file itself or in one of its own that is read when it is needed.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// Itself.
    Text(String),
    /// Where it stands.
    File(PathBuf),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Secret(…)"),
            Self::File(path) => write!(f, "Secret({})", path.display()),
        }
    }
}

/// `store.outage.quota`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutageQuota {
    /// Each replica admits its share of what was left.
    LocalShare,
    /// Refuse with 503.
    Reject,
    /// Admit without limit.
    Allow,
}

/// The key cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// Entries at most.
    pub capacity: u64,
    /// How long a known key is trusted.
    pub ttl: Duration,
    /// How long an unknown key is remembered as unknown.
    pub negative_ttl: Duration,
    /// While the change feed is lost, a cached key is asked for again this often.
    pub recheck_without_push: Duration,
}

/// Which backend serves which kind of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Environments {
    /// For `sm_live_` keys and requests without a key.
    pub live: UpstreamId,
    /// For `sm_test_` keys.
    pub test: UpstreamId,
}

impl Environments {
    /// The backend of one environment.
    pub const fn of(self, environment: Environment) -> UpstreamId {
        match environment {
            Environment::Live => self.live,
            Environment::Test => self.test,
        }
    }
}

/// Plans, and what they are charged to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// By name, in the order of the file.
    pub plans: Vec<(Arc<str>, Plan)>,
    /// The plan of accounts that have none. Never `custom`.
    pub default_plan: (Arc<str>, PlanLimits),
    /// Whose windows are charged.
    pub subject: QuotaSubject,
}

/// A plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Limits for everybody on the plan.
    Fixed(PlanLimits),
    /// Limits come with the account.
    Custom,
}

/// `quota.subject`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaSubject {
    /// The key's account.
    Account,
    /// The key itself.
    Key,
    /// The key's organization, else its account.
    Organization,
}

impl Quota {
    /// The plan's name and the limits in force for an account. An unknown or custom plan without limits is the default plan.
    pub fn of(&self, account: &Account) -> (Arc<str>, PlanLimits) {
        let (default_name, default_limits) = &self.default_plan;
        let Some(name) = &account.plan else { return (default_name.clone(), *default_limits) };
        match self.plans.iter().find(|(plan, _)| **plan == **name) {
            Some((plan, Plan::Fixed(limits))) => (plan.clone(), *limits),
            Some((plan, Plan::Custom)) => match (account.requests_per_minute, account.requests_per_day) {
                (Some(requests_per_minute), Some(requests_per_day)) => {
                    let windows = QuotaLimits { requests_per_minute, requests_per_day };
                    (plan.clone(), PlanLimits { windows, concurrent_requests: account.concurrent_requests })
                }
                _ => (plan.clone(), *default_limits),
            },
            None => (default_name.clone(), *default_limits),
        }
    }

    /// What an operator should know about the limits of an account: its plan brings none, so those of the default plan apply.
    pub fn note(&self, account: &Account) -> Option<String> {
        let (id, name, default) = (&account.id, account.plan.as_ref()?, &self.default_plan.0);
        let limited = account.requests_per_minute.is_some() && account.requests_per_day.is_some();
        match self.plans.iter().find(|(plan, _)| **plan == **name) {
            Some((_, Plan::Fixed(_))) => None,
            Some((_, Plan::Custom)) if limited => None,
            Some((_, Plan::Custom)) => Some(format!(
                "account {id} has no limits of its own and its plan {name} is custom: those of {default} apply; set them with \
                 accounts set {id} --plan {name} --requests-per-minute N --requests-per-day N"
            )),
            None => Some(format!(
                "account {id} is on the plan {name}, which the file does not have: {default} applies; put the plan back, or \
                 move the account with accounts set {id} --plan {default}"
            )),
        }
    }
}

/// The path at which the published client calls the management API, whatever `management.base_path` is.
pub const CLIENT_MANAGEMENT_PATH: &str = "/api/v1/me/apikeys";

/// The management API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Management {
    /// `/api/v1/api-keys`
    pub base_path: String,
    /// Management calls per key and minute.
    pub per_minute: u32,
}

/// Size limits of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at most.
    pub connections: usize,
    /// Connections of one address at most.
    pub connections_per_address: Option<usize>,
    /// Bytes of a head.
    pub header_bytes: usize,
    /// Fields of a head.
    pub header_count: usize,
    /// Bytes of the request target.
    pub uri_bytes: usize,
    /// Bytes of a body, unless the route says otherwise.
    pub body_bytes: Option<u64>,
    /// Bytes of a body that may be held to read a value from it.
    pub inspect_bytes: usize,
    /// Bytes of all such bodies together.
    pub inspect_total: usize,
    /// What one client address may do in a minute.
    pub per_address: PerAddress,
}

/// `limits.per_address`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PerAddress {
    /// Keys that do not exist.
    pub failed_auth: Option<u32>,
    /// Requests on public routes.
    pub public: Option<u32>,
}

/// Time limits of an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first byte to the end of the head.
    pub header: Duration,
    /// Between bytes of the request body.
    pub body_idle: Duration,
    /// To the upstream's response head.
    pub response: Duration,
    /// Between bytes of the response.
    pub idle: Duration,
    /// A TLS handshake with a client.
    pub handshake: Duration,
    /// An idle client connection.
    pub keepalive: Duration,
}

/// What SIGTERM does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// Not ready, but still accepting, for this long.
    pub delay: Duration,
    /// Work in flight gets this long.
    pub timeout: Duration,
}

/// Usage counting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageConfig {
    /// How often counters are written.
    pub flush: Duration,
    /// A file that keeps them until then.
    pub journal: Option<PathBuf>,
    /// How long they are kept.
    pub retention: Duration,
}

/// `log`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For reading along.
    Text,
    /// Nothing.
    Off,
}

/// One entry of `tests:`.
#[derive(Debug, Clone)]
pub struct RouteTest {
    /// Where it stands: line of the file.
    pub line: usize,
    /// Column of the file.
    pub column: usize,
    /// Place in the file, such as `tests[0]`.
    pub place: String,
    /// Method of the request.
    pub method: http::Method,
    /// Path and query of the request.
    pub target: String,
    /// The key it comes with; `None`: no key.
    pub key: Option<crate::policy::key::KeyRecord>,
    /// A JSON body, for routes that bind a value from it.
    pub body: Option<String>,
    /// `allowed`, or a code of contract 4.
    pub expect: String,
}
