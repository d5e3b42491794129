//! How one connection to one server is made: address, TLS, credentials, and what an error means.
//!
//! Files (password, certificates) are read for every connection, so that what an operator replaces is used from the next one on.
//! No password appears in an error or in `Debug`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError, ServerErrorKind, TlsCertificates,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::store::StoreError;

/// A connection that is not made by then is not made.
const CONNECT: Duration = Duration::from_secs(1);
/// What was sent and is not confirmed by then ends the connection: a black hole must not look like patience.
const USER_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls that may wait for the socket; redis-rs has room for 50.
const BUFFER: usize = 4096;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Name or IP address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Which servers form the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Servers {
    /// One server.
    Standalone(Address),
    /// The master of this name, as these sentinels see it.
    Sentinel {
        /// Any of them is asked.
        sentinels: Vec<Address>,
        /// The name the sentinels know it by.
        master: String,
    },
    /// A cluster, entered by any of these.
    Cluster(Vec<Address>),
}

/// A password, in the configuration or in a file.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// Itself.
    Text(String),
    /// Where it stands; a newline at its end is not part of it.
    File(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Password(…)"),
            Self::File(path) => write!(f, "Password({})", path.display()),
        }
    }
}

/// Encryption on the way to the servers, as PEM files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Who may have signed the server's certificate; `None`: the system's authorities.
    pub ca: Option<PathBuf>,
    /// The certificate and private key by which the gateway identifies itself.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Everything that a connection needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// Where.
    pub servers: Servers,
    /// `store.tls`; `None` is plain TCP.
    pub tls: Option<Tls>,
    /// ACL user; `None` is `default`.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Password>,
    /// `SELECT`; 0 on a cluster.
    pub database: i64,
    /// What all names begin with.
    pub prefix: String,
    /// Connections for each server and process: one a worker.
    pub connections: usize,
}

/// Makes a connection; what the server pushes goes to `pushed`.
pub(super) async fn connect(
    config: &RedisConfig,
    address: &Address,
    pushed: UnboundedSender<PushInfo>,
) -> Result<MultiplexedConnection, StoreError> {
    open(config, address, config.database, pushed, true).await
}

/// A connection to a sentinel, which has users and databases of its own: first with the credentials, then without.
pub(super) async fn connect_sentinel(
    config: &RedisConfig,
    address: &Address,
) -> Result<MultiplexedConnection, StoreError> {
    let (pushed, _) = tokio::sync::mpsc::unbounded_channel();
    match open(config, address, 0, pushed.clone(), true).await {
        Err(StoreError::Refused(_)) if config.password.is_some() => open(config, address, 0, pushed, false).await,
        other => other,
    }
}

async fn open(
    config: &RedisConfig,
    address: &Address,
    database: i64,
    pushed: UnboundedSender<PushInfo>,
    with_credentials: bool,
) -> Result<MultiplexedConnection, StoreError> {
    let mut redis = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_lib_name("seeme-gateway", env!("CARGO_PKG_VERSION"))
        .set_db(database);
    if let Some(password) = config.password.as_ref().filter(|_| with_credentials) {
        redis = redis.set_password(read_password(password)?);
        if let Some(username) = &config.username {
            redis = redis.set_username(username);
        }
    }
    let (host, port) = (address.host.clone(), address.port);
    let wanted = match &config.tls {
        None => ConnectionAddr::Tcp(host, port),
        Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
    };
    let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(USER_TIMEOUT).set_keepalive(
        TcpKeepalive::new().with_time(USER_TIMEOUT).with_interval(Duration::from_secs(1)).with_retries(3),
    );
    let named = |error: RedisError| of_connection(address, &error, config.tls.is_some());
    let info: ConnectionInfo =
        wanted.into_connection_info().map_err(named)?.set_redis_settings(redis).set_tcp_settings(tcp);
    let client = match &config.tls {
        None => Client::open(info),
        Some(tls) => Client::build_with_tls(info, certificates(tls)?),
    };
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT))
        // Calls have their own patience: a late answer to a lease still brings its tokens.
        .set_response_timeout(None)
        .set_pipeline_buffer_size(BUFFER)
        .set_push_sender(pushed);
    client.map_err(named)?.get_multiplexed_async_connection_with_config(&settings).await.map_err(named)
}

fn read_password(password: &Password) -> Result<String, StoreError> {
    match password {
        Password::Text(text) => Ok(text.clone()),
        Password::File(path) => {
            let text = String::from_utf8(read(path)?)
                .map_err(|_| StoreError::Refused(format!("{}: the password is not UTF-8", path.display())))?;
            Ok(text.strip_suffix('\n').map_or(text.as_str(), |line| line.trim_end_matches('\r')).to_owned())
        }
    }
}

fn certificates(tls: &Tls) -> Result<TlsCertificates, StoreError> {
    let root_cert = tls.ca.as_deref().map(read).transpose()?;
    let client_tls = match &tls.client {
        Some((certificate, key)) => Some(ClientTlsConfig { client_cert: read(certificate)?, client_key: read(key)? }),
        None => None,
    };
    Ok(TlsCertificates { client_tls, root_cert })
}

fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(|error| StoreError::Refused(format!("cannot read {}: {error}", path.display())))
}

/// Why there is no connection.
fn of_connection(address: &Address, error: &RedisError, encrypted: bool) -> StoreError {
    let advice = match (error.kind(), error.code()) {
        (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS" | "NOAUTH")) => {
            return StoreError::Refused(format!("{address}: {error}; look at store.username and store.password"));
        }
        (ErrorKind::Server(ServerErrorKind::NoPerm), _) => return refused(address, error),
        (ErrorKind::RESP3NotSupported, _) => {
            return StoreError::Refused(format!("{address} does not speak RESP3: Redis 6.2 or newer is needed"));
        }
        (ErrorKind::InvalidClientConfig, _) => "; look at store.tls",
        // It speaks, and does not want what every store must: a sentinel, another program, a database that it does not have.
        (ErrorKind::Server(ServerErrorKind::ResponseError) | ErrorKind::Extension, _) => {
            return StoreError::Refused(format!("{address}: {error}; look at store.url"));
        }
        _ if error.is_timeout() || error.is_io_error() => {
            if encrypted {
                "; if it listens without TLS, write redis:// (or tls.enabled: false)"
            } else {
                "; if it listens with TLS only, write rediss:// (or tls.enabled: true)"
            }
        }
        _ => "",
    };
    StoreError::Unavailable(format!("{address}: {error}{advice}"))
}

fn refused(address: &Address, error: &RedisError) -> StoreError {
    StoreError::Refused(format!("{address}: {error}; README.md names the permissions that the ACL user needs"))
}

/// What an answer of a server that was an error means.
pub(super) fn of_answer(address: &Address, error: &RedisError) -> StoreError {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, NoPerm, ReadOnly, TryAgain};
    // Some errors of the client have several lines; a line of the log has one.
    let text = || format!("{address}: {}", error.to_string().replace('\n', "; "));
    match error.kind() {
        ErrorKind::Server(NoPerm) => refused(address, error),
        // The server says itself that it did nothing.
        ErrorKind::Server(ReadOnly | MasterDown | BusyLoading | ClusterDown | TryAgain) => {
            StoreError::Unavailable(text())
        }
        ErrorKind::Extension => match error.code() {
            Some("NOAUTH" | "WRONGPASS") => refused(address, error),
            Some("OOM" | "MISCONF" | "NOREPLICAS" | "BUSY") => StoreError::Unavailable(text()),
            _ => StoreError::Corrupt(text()),
        },
        ErrorKind::Server(ServerErrorKind::ResponseError) if error.to_string().contains("unknown command") => {
            StoreError::Refused(format!("{address} is a server of another kind (a sentinel?); look at store.url"))
        }
        // The connection ended before the answer, or in its midst.
        ErrorKind::Io | ErrorKind::Parse => StoreError::Unknown(text()),
        _ => StoreError::Corrupt(text()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_in_one_line() {
        let address = Address { host: "h".to_owned(), port: 1 };
        let error = RedisError::from((ErrorKind::Parse, "Parse error", "at 0\nUnexpected end of input".to_owned()));
        let told = of_answer(&address, &error).to_string();
        assert!(told.contains("at 0; Unexpected end") && !told.contains('\n'), "{told}");
    }
}
