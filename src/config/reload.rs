//! From one configuration to the next: what changed, and what only a restart can take up. Pure.
//!
//! The new file is taken up as far as it can be. A member that needs a restart keeps the value that is in force and is named, so that
//! what the process says of itself and what it does stay the same. Whoever adds a member to [`Config`] decides here where it belongs:
//! the code does not compile before.

use std::collections::BTreeMap;
use std::fmt;

use super::model::{CacheConfig, Config, Listen, StoreConfig, UsageConfig};
use crate::policy::route::{Route, RouteTable};

/// What is to be taken into force, and what to tell about it.
#[derive(Debug)]
pub struct Reload {
    /// The new configuration, with the old value wherever a restart is needed.
    pub config: Config,
    /// What is different in it.
    pub changes: Changes,
    /// Members in which the file differs from what is in force until a restart.
    pub restart: Vec<&'static str>,
}

/// What a reload changes, for one line of the log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Routes that were not there.
    pub added: usize,
    /// Routes that are not there any more.
    pub removed: usize,
    /// Routes of the same methods and path that say something else.
    pub changed: usize,
    /// Other sections that say something else.
    pub sections: Vec<&'static str>,
}

/// Works out what happens when `new` follows on `old`.
pub fn plan(old: &Config, mut new: Config) -> Reload {
    let mut restart = Vec::new();
    let mut keep = Keep(&mut restart);
    let Config { revision, workers, listen, store, cache, limits, usage, log, log_level, .. } = &mut new;
    *revision = old.revision + 1;
    keep.old("workers", &old.workers, workers);
    keep.old("listen.public.address", &old.listen.public, &mut listen.public);
    if old.listen.tls.is_some() != listen.tls.is_some() {
        keep.old("listen.public.tls", &old.listen.tls, &mut listen.tls);
    }
    keep.old("listen.admin.address", &old.listen.admin, &mut listen.admin);
    keep.old("store.url", &old.store.url, &mut store.url);
    keep.old("store (username, password, tls, prefix)", &old.store.access, &mut store.access);
    keep.old("store.timeout", &old.store.timeout, &mut store.timeout);
    keep.old("cache.capacity", &old.cache.capacity, &mut cache.capacity);
    keep.old("limits.inspect_total", &old.limits.inspect_total, &mut limits.inspect_total);
    keep.old("usage.flush", &old.usage.flush, &mut usage.flush);
    keep.old("usage.journal", &old.usage.journal, &mut usage.journal);
    keep.old("log", &old.log, log);
    keep.old("log_level", &old.log_level, log_level);
    Reload { changes: Changes::between(old, &new), config: new, restart }
}

/// Members that only a restart takes up.
struct Keep<'a>(&'a mut Vec<&'static str>);

impl Keep<'_> {
    fn old<T: PartialEq + Clone>(&mut self, name: &'static str, old: &T, new: &mut T) {
        if old != new {
            new.clone_from(old);
            self.0.push(name);
        }
    }
}

impl Changes {
    fn between(old: &Config, new: &Config) -> Self {
        // Everything by name: a new member is an error here until somebody has thought about it.
        let Config {
            source: _,
            digest: _,
            revision: _,
            workers: _,
            listen,
            store,
            cache,
            upstreams,
            environments,
            quota,
            scopes,
            management,
            limits,
            timeouts,
            drain,
            usage,
            key_shape,
            cors,
            log: _,
            log_level: _,
            routes,
            tests: _,
        } = new;
        let StoreConfig { url: _, access: _, timeout: _, outage_quota: _, serve_cached_keys_for: _ } = store;
        let CacheConfig { capacity: _, ttl: _, negative_ttl: _, recheck_without_push: _ } = cache;
        let UsageConfig { flush: _, journal: _, retention: _ } = usage;
        let Listen { public: _, admin: _, tls, proxy_protocol, trusted_proxies } = listen;
        let differs = [
            ("listen.public.tls", old.listen.tls != *tls),
            ("listen.public.proxy_protocol", old.listen.proxy_protocol != *proxy_protocol),
            ("listen.public.trusted_proxies", old.listen.trusted_proxies != *trusted_proxies),
            ("store.outage", old.store != *store),
            ("cache", old.cache != *cache),
            ("upstreams", old.upstreams != *upstreams),
            ("environments", old.environments != *environments),
            ("plans", old.quota != *quota),
            ("scopes", old.scopes != *scopes),
            ("management", old.management != *management),
            ("limits", old.limits != *limits),
            ("timeouts", old.timeouts != *timeouts),
            ("drain", old.drain != *drain),
            ("usage", old.usage != *usage),
            ("cors", old.cors != *cors),
            ("keys", old.key_shape != *key_shape),
        ];
        let sections = differs.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect();
        Self { sections, ..Self::of_routes(old, routes) }
    }

    fn of_routes(old: &Config, new: &RouteTable) -> Self {
        let by_label = |table: &RouteTable| -> BTreeMap<String, Route> {
            // Neither its index nor its line says anything about a route.
            let plain = |route: &Route| Route { id: crate::policy::route::RouteId(0), line: 0, ..route.clone() };
            table.routes().iter().map(|route| (route.label(), plain(route))).collect()
        };
        let (old, new) = (by_label(&old.routes), by_label(new));
        Self {
            added: new.keys().filter(|label| !old.contains_key(*label)).count(),
            removed: old.keys().filter(|label| !new.contains_key(*label)).count(),
            changed: new.iter().filter(|(label, route)| old.get(*label).is_some_and(|known| known != *route)).count(),
            sections: Vec::new(),
        }
    }
}

impl Changes {
    /// In a line of the log; `restart`: members that only a restart takes up, which are told behind it.
    pub fn told(&self, restart: &[&'static str]) -> String {
        if *self == Self::default() && !restart.is_empty() {
            return "nothing of what is different is taken up".to_owned();
        }
        self.to_string()
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, removed, changed, sections } = self;
        if *self == Self::default() {
            return f.write_str("nothing is different");
        }
        write!(f, "routes: {added} added, {removed} removed, {changed} changed")?;
        if sections.is_empty() { Ok(()) } else { write!(f, "; also changed: {}", sections.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
workers: 2
listen: { public: { address: 127.0.0.1:1 } }
store: { url: sqlite:a.db }
upstreams: { s: { endpoints: ['http://127.0.0.1:2'] } }
routes:
  - { match: GET /a, access: public }
  - { match: GET /b, access: authenticated }
";

    fn config(edits: &[(&str, &str)]) -> Config {
        let mut text = FILE.to_owned();
        for (from, to) in edits {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, to);
        }
        crate::config::parse("gateway.yaml".as_ref(), &text, &|_| None).unwrap().0
    }

    fn planned(edits: &[(&str, &str)]) -> Reload {
        plan(&config(&[]), config(edits))
    }

    #[test]
    fn the_same_file_changes_nothing_but_the_number() {
        let reload = planned(&[]);
        assert_eq!((reload.changes.to_string().as_str(), reload.config.revision), ("nothing is different", 1));
        assert!(reload.restart.is_empty());
        let reload = planned(&[("127.0.0.1:1", "127.0.0.1:9")]);
        assert_eq!(reload.changes.told(&reload.restart), "nothing of what is different is taken up");
        let reload = planned(&[("127.0.0.1:1", "127.0.0.1:9"), ("GET /b", "GET /c")]);
        assert_eq!(reload.changes.told(&reload.restart), "routes: 1 added, 1 removed, 0 changed");
    }

    #[test]
    fn routes_are_told_apart_by_what_they_match_and_not_by_where_they_stand() {
        let moved = planned(&[("routes:\n", "routes:\n  - { match: GET /c, access: public }\n")]);
        assert_eq!(moved.changes.to_string(), "routes: 1 added, 0 removed, 0 changed");
        let other = planned(&[("GET /a", "GET /c"), ("authenticated", "public")]);
        assert_eq!(other.changes.to_string(), "routes: 1 added, 1 removed, 1 changed");
    }

    #[test]
    fn sections_that_differ_are_named_once() {
        let more = "routes:\n";
        let reload = planned(&[(
            more,
            "limits: { uri_bytes: 8KiB, body_bytes: 1MiB }\ntimeouts: { idle: 1m }\nscopes: { a:b: [c:d] }\nroutes:\n",
        )]);
        let expected = "routes: 0 added, 0 removed, 0 changed; also changed: scopes, limits, timeouts";
        assert_eq!(reload.changes.to_string(), expected);
        assert!(reload.restart.is_empty());
    }

    #[test]
    fn what_needs_a_restart_keeps_its_value_and_is_named_and_the_rest_is_taken_up() {
        let reload = planned(&[
            ("workers: 2", "workers: 3\nlog: off\nlog_level: debug\ncache: { capacity: 7, ttl: 9s }"),
            ("127.0.0.1:1 } }", "127.0.0.1:9 }, admin: { address: 127.0.0.1:8 } }"),
            ("sqlite:a.db", "sqlite:b.db, timeout: 1s, prefix: \"x:\", outage: { quota: reject }"),
            (
                "routes:\n",
                "usage: { flush: 2s, journal: j, retention: 3d }\nlimits: { inspect_total: 1MiB }\nroutes:\n",
            ),
        ]);
        assert_eq!(
            reload.restart,
            [
                "workers",
                "listen.public.address",
                "listen.admin.address",
                "store.url",
                "store (username, password, tls, prefix)",
                "store.timeout",
                "cache.capacity",
                "limits.inspect_total",
                "usage.flush",
                "usage.journal",
                "log",
                "log_level"
            ]
        );
        let (config, old) = (&reload.config, config(&[]));
        assert_eq!((config.workers, &config.listen), (2, &old.listen));
        assert_eq!((config.cache.capacity, config.cache.ttl.as_secs()), (1_000_000, 9));
        assert_eq!(config.usage.journal, None);
        assert_eq!(reload.changes.sections, ["store.outage", "cache", "usage"]);
    }
}
