//! Redis URLs, as an operator writes them: one server, sentinels and the name of their master, or nodes of a cluster.
//!
//! ```text
//! redis://[USER[:PASSWORD]@]HOST[:6379][/DATABASE]          rediss:// the same, encrypted
//! redis+sentinel://[USER[:PASSWORD]@]HOST[:26379],…/NAME[/DATABASE]
//! redis+cluster://[USER[:PASSWORD]@]HOST[:6379],…
//! ```
//!
//! A mistake never repeats the URL: it may hold a password.

use std::fmt;

use percent_encoding::percent_decode_str;

/// Which servers form the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisServers {
    /// One server: host and port.
    Standalone(String, u16),
    /// The master of this name, as these sentinels see it.
    Sentinel(Vec<(String, u16)>, String),
    /// A cluster, entered by any of these.
    Cluster(Vec<(String, u16)>),
}

/// A Redis URL.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// Where.
    pub servers: RedisServers,
    /// `rediss://`
    pub encrypted: bool,
    /// The user named in the URL.
    pub username: Option<String>,
    /// The password in the URL.
    pub password: Option<String>,
    /// `SELECT`
    pub database: u32,
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisUrl")
            .field("servers", &self.servers)
            .field("encrypted", &self.encrypted)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("database", &self.database)
            .finish()
    }
}

/// The schemes of this file.
pub const SCHEMES: [&str; 4] = ["redis", "rediss", "redis+sentinel", "redis+cluster"];

/// What is wrong with a URL, and what to write.
type Wrong = (&'static str, &'static str);

const ONE: &str = "write redis://HOST:PORT, with /DATABASE where it is not 0";
const SENTINELS: &str = "write redis+sentinel://HOST1,HOST2,HOST3/NAME";
const NODES: &str = "write redis+cluster://HOST1,HOST2,HOST3";

impl RedisUrl {
    /// Reads what follows `SCHEME:`. `scheme` is one of [`SCHEMES`].
    pub fn parse(scheme: &str, rest: &str) -> Result<Self, Wrong> {
        let like = match scheme {
            "redis+sentinel" => SENTINELS,
            "redis+cluster" => NODES,
            _ => ONE,
        };
        let rest = rest.strip_prefix("//").ok_or(("a Redis URL needs // after its scheme", like))?;
        if rest.contains(['?', '#']) {
            return Err(("a Redis URL has no query and no fragment", "what it would say belongs into store.*"));
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').map_or((None, authority), |(user, hosts)| (Some(user), hosts));
        let (username, password) = user.map_or(Ok((None, None)), credentials)?;
        let port = if scheme == "redis+sentinel" { 26_379 } else { 6_379 };
        let mut hosts = hosts.split(',').map(|host| address(host, port, like)).collect::<Result<Vec<_>, _>>()?;
        let (servers, database) = match scheme {
            "redis+cluster" if path.is_empty() => (RedisServers::Cluster(hosts), ""),
            "redis+cluster" => return Err(("a cluster has one database and no name", NODES)),
            "redis+sentinel" => match path.split_once('/').unwrap_or((path, "")) {
                ("", _) => return Err(("sentinels need the name of the master", SENTINELS)),
                (name, database) => (RedisServers::Sentinel(hosts, decoded(name)?), database),
            },
            _ if hosts.len() > 1 => {
                return Err((
                    "several servers are sentinels or a cluster",
                    "write redis+sentinel:// or redis+cluster://",
                ));
            }
            _ => {
                let (host, port) = hosts.remove(0);
                (RedisServers::Standalone(host, port), path)
            }
        };
        let database = match database {
            "" => 0,
            number => number.parse().map_err(|_| ("the database is not a number", like))?,
        };
        Ok(Self { servers, encrypted: scheme == "rediss", username, password, database })
    }
}

fn credentials(text: &str) -> Result<(Option<String>, Option<String>), Wrong> {
    let (user, password) = text.split_once(':').map_or((text, None), |(user, password)| (user, Some(password)));
    let username = (!user.is_empty()).then(|| decoded(user)).transpose()?;
    Ok((username, password.map(decoded).transpose()?))
}

fn decoded(text: &str) -> Result<String, Wrong> {
    let text = percent_decode_str(text).decode_utf8();
    text.map(|text| text.into_owned()).map_err(|_| ("a percent-encoded part is not UTF-8", "encode it as UTF-8"))
}

/// `HOST`, `HOST:PORT`, `[ADDRESS]` or `[ADDRESS]:PORT`.
fn address(text: &str, default: u16, like: &'static str) -> Result<(String, u16), Wrong> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or(("a port follows a colon", like))?)),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(("a host name is missing", like));
    }
    let port = match port {
        None => default,
        Some(port) => port.parse().map_err(|_| ("a port is not a number from 1 to 65535", like))?,
    };
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<RedisUrl, String> {
        let (scheme, rest) = text.split_once(':').unwrap();
        RedisUrl::parse(scheme, rest).map_err(|(what, mend)| format!("{what}; {mend}"))
    }

    #[test]
    fn each_topology_has_its_form() {
        let one = read("rediss://gateway:p%40ss@cache.internal/3").unwrap();
        assert_eq!(one.servers, RedisServers::Standalone("cache.internal".into(), 6379));
        assert_eq!((one.encrypted, one.database), (true, 3));
        assert_eq!((one.username.as_deref(), one.password.as_deref()), (Some("gateway"), Some("p@ss")));
        let sentinels = read("redis+sentinel://s1,s2:7000,[::1]/main").unwrap().servers;
        let hosts = vec![("s1".into(), 26_379), ("s2".into(), 7000), ("::1".into(), 26_379)];
        assert_eq!(sentinels, RedisServers::Sentinel(hosts, "main".into()));
        let cluster = read("redis+cluster://:secret@a:1,b:2").unwrap();
        assert_eq!(cluster.servers, RedisServers::Cluster(vec![("a".into(), 1), ("b".into(), 2)]));
        assert_eq!((cluster.username, cluster.password.as_deref()), (None, Some("secret")));
    }

    #[test]
    fn a_mistake_says_what_to_write_and_never_repeats_the_url() {
        for bad in [
            "redis:p4ss",
            "redis://",
            "redis://u:p4ss@",
            "redis://p4ss:x",
            "redis://p4ss:0x",
            "redis://h:70000",
            "redis://h/x",
            "redis://a,b",
            "redis+sentinel://u:p4ss@h",
            "redis+cluster://h/1",
            "redis://h?p4ss",
            "redis://[::1]p4ss",
        ] {
            let told = read(bad).unwrap_err();
            assert!(!told.contains("p4ss") && told.contains("; "), "{bad}: {told}");
        }
        assert!(!format!("{:?}", read("redis://u:p4ss@h").unwrap()).contains("p4ss"));
    }
}
