//! `routes`: groups resolved, names looked up, the table built.
//!
//! A group hands its settings down, the child's own win. What a route *touches* (contract 2, "Limited keys") is worked out here
//! once, so that the data path only looks it up.

use std::time::Duration;

use super::access::{access, check_source, kinds, methods_and_path, source};
use super::reader::{Map, Value, shorten};
use super::{enforcement, unbuilt, upstreams};
use crate::config::model::Upstream;
use crate::policy::pattern::{InvalidPattern, Pattern};
use crate::policy::resource::{Kind, Kinds, LimitedKeys, ValueSource};
use crate::policy::route::{Access, Bindings, Methods, Route, RouteId, RouteTable, UpstreamId};

/// What the routes refer to.
pub(super) struct Scene<'a> {
    /// `None` where the section could not be read: then no name is looked up.
    pub(super) upstreams: Option<&'a [Upstream]>,
    /// Several upstreams and no environments: every route names one.
    pub(super) needs_upstream: bool,
}

const SETTINGS: &[&str] = &[
    "access",
    "scope",
    "resources",
    "organization",
    "touches",
    "limited_keys",
    "forward_authorization",
    "upstream",
    "cost",
    "enforcement",
    "hosts",
    "timeouts",
    "body_bytes",
];

/// Settings that ask something of a key.
const WITH_A_KEY: &[&str] = &["resources", "organization", "touches", "limited_keys", "forward_authorization", "cost"];

/// A value that is bound, with the place to blame when it does not fit a child's path.
#[derive(Clone)]
struct Bound<'a> {
    source: ValueSource,
    value: Value<'a>,
}

/// Everything that a group hands down.
#[derive(Clone)]
struct Settings<'a> {
    access: Option<Access>,
    /// Access was given, readable or not: no second complaint that it is missing.
    access_given: bool,
    model: Option<Bound<'a>>,
    dataset: Option<Bound<'a>>,
    organization: Option<Bound<'a>>,
    touches: Kinds,
    limited_keys: LimitedKeys,
    forward_authorization: bool,
    upstream: Option<UpstreamId>,
    upstream_given: bool,
    cost: u32,
    response_timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    body_bytes: Option<u64>,
}

/// Reads all routes and builds the table. Routes that conflict are told also where something else about them is wrong.
pub(super) fn routes(value: &Value<'_>, scene: &Scene<'_>) -> Option<RouteTable> {
    let mut walk = Walk { scene, found: Vec::new(), complete: true };
    let top = Settings {
        access: None,
        access_given: false,
        model: None,
        dataset: None,
        organization: None,
        touches: Kinds::default(),
        limited_keys: LimitedKeys::Deny,
        forward_authorization: false,
        upstream: None,
        upstream_given: false,
        cost: 1,
        response_timeout: None,
        idle_timeout: None,
        body_bytes: None,
    };
    let entries = value.items()?;
    if entries.is_empty() {
        return value.mistake("there is no route", "add one for each path to forward");
    }
    for entry in entries {
        walk.entry(&entry, "", &top);
    }
    let complete = walk.complete;
    let (places, routes): (Vec<Value<'_>>, Vec<Route>) = walk.found.into_iter().unzip();
    let labels: Vec<(usize, String)> = routes.iter().map(|route| (route.line, route.label())).collect();
    match RouteTable::build(routes) {
        Ok(table) => complete.then_some(table),
        Err(conflicts) => {
            for conflict in conflicts {
                let (line, label) = &labels[conflict.first];
                let mend = "remove one, or give them different methods";
                places[conflict.second].mistake::<()>(format!("{conflict}: `{label}` in line {line}"), mend);
            }
            None
        }
    }
}

struct Walk<'s, 'a> {
    scene: &'s Scene<'s>,
    found: Vec<(Value<'a>, Route)>,
    /// The access of every route could be read.
    complete: bool,
}

impl<'a> Walk<'_, 'a> {
    /// A route or a group.
    fn entry(&mut self, entry: &Value<'a>, prefix: &str, parent: &Settings<'a>) -> Option<()> {
        let known: Vec<&str> = ["match", "under", "routes"].iter().chain(SETTINGS).copied().collect();
        let map = entry.mapping(&known)?;
        let settings = self.settings(&map, parent);
        match (map.get("match"), map.has("under")) {
            (Some(_), true) => entry
                .mistake("`match` and `under` are both given", "a route has `match`, a group has `under` and `routes`"),
            (None, true) => self.group(&map, prefix, &settings),
            (Some(value), false) => {
                if let Some(routes) = map.get("routes") {
                    routes.mistake::<()>("a route has no `routes`", "write `under` instead of `match` for a group");
                }
                if settings.access == Some(Access::Public) {
                    refuse_without_meaning(&map);
                }
                self.route(entry, &value, prefix, &settings)
            }
            (None, false) if map.has("match") => None,
            (None, false) => entry.mistake("neither `match` nor `under`", "add match: METHOD PATH"),
        }
    }

    fn group(&mut self, map: &Map<'a>, prefix: &str, settings: &Settings<'a>) -> Option<()> {
        let under = map.get("under")?;
        let path = under.text()?;
        if let Some((methods, path)) = path.split_once(' ').filter(|(_, path)| path.trim_start().starts_with('/')) {
            let mend =
                format!("write under: {}, and {} in front of each path inside", shorten(path.trim()), shorten(methods));
            return under.mistake("a group has a path and no method", &mend);
        }
        if !path.starts_with('/') {
            return under.mistake(InvalidPattern::NoSlash.to_string(), &format!("write /{}", shorten(path)));
        }
        // The prefix must stand on its own as a path, but not as one with a slash or a tail at its end.
        let prefix = match Pattern::parse(&format!("{prefix}{path}")) {
            Err(error) => return under.misread(&error, mend_of(&error)),
            Ok(_) if path.ends_with('/') => {
                return under.mistake("ends with `/`", "remove the slash: `GET /` inside is the group's own path");
            }
            Ok(_) if path.ends_with('}') && path.contains("{*") => {
                return under
                    .mistake("a tail leaves nothing for the routes inside", "write {name}, or move {*rest} into them");
            }
            Ok(pattern) => pattern.template().to_string(),
        };
        let routes = map.require("routes", "list the routes of the group")?;
        let items = routes.items()?;
        if items.is_empty() {
            return routes.mistake("the group is empty", "add a route or remove the group");
        }
        for entry in items {
            self.entry(&entry, &prefix, settings);
        }
        Some(())
    }

    fn route(&mut self, entry: &Value<'a>, value: &Value<'a>, prefix: &str, settings: &Settings<'a>) -> Option<()> {
        let matched = methods_and_path(value).and_then(|(methods, path)| {
            if !path.starts_with('/') {
                return value.mistake(InvalidPattern::NoSlash.to_string(), &format!("write /{}", shorten(path)));
            }
            let path = if path == "/" && !prefix.is_empty() { prefix.to_owned() } else { format!("{prefix}{path}") };
            match Pattern::parse(&path) {
                Ok(pattern) => Some((methods, pattern)),
                Err(error) => value.misread(&error, mend_of(&error)),
            }
        });
        if !settings.access_given {
            entry.mistake::<()>(
                "says nobody who may pass",
                "add scope: FAMILY:ACTION, access: authenticated or access: public",
            );
        }
        if self.scene.needs_upstream && self.scene.upstreams.is_some() && !settings.upstream_given {
            entry.mistake::<()>(
                "names no upstream",
                "add upstream: NAME, or environments: { live: …, test: … } for all routes",
            );
        }
        let (methods, pattern) = matched?;
        let without_key = (settings.access == Some(Access::Public)).then(|| settings.without_key());
        let settings = without_key.as_ref().unwrap_or(settings);
        self.complete &= settings.access.is_some();
        for bound in [&settings.model, &settings.dataset, &settings.organization].into_iter().flatten() {
            check_source(&bound.value, &bound.source, &pattern);
        }
        let route = settings.route(methods, pattern, value.at().line);
        self.found.push((value.clone(), route));
        Some(())
    }

    /// The settings of an entry over those of its group.
    fn settings(&self, map: &Map<'a>, parent: &Settings<'a>) -> Settings<'a> {
        let mut settings = parent.clone();
        match access(map) {
            Some(None) => {}
            given => (settings.access, settings.access_given) = (given.flatten(), true),
        }
        bindings(map, &mut settings);
        settings.touches = map.read("touches", parent.touches, kinds);
        settings.limited_keys = map.read("limited_keys", parent.limited_keys, |value| {
            value.choice(&[("deny", LimitedKeys::Deny), ("forward", LimitedKeys::Forward)])
        });
        settings.forward_authorization = map.read("forward_authorization", parent.forward_authorization, Value::flag);
        if let Some(value) = map.get("upstream") {
            settings.upstream_given = true;
            settings.upstream = self.scene.upstreams.and_then(|upstreams| upstreams::by_name(&value, upstreams));
        }
        settings.cost =
            map.read("cost", parent.cost, |value| value.count(1, 1_000_000).and_then(|cost| u32::try_from(cost).ok()));
        if let Some(timeouts) = map.get("timeouts").and_then(|value| value.mapping(&["response", "idle"])) {
            let read = |name: &str, inherited| timeouts.get(name).map_or(inherited, |value| value.positive_duration());
            settings.response_timeout = read("response", parent.response_timeout);
            settings.idle_timeout = read("idle", parent.idle_timeout);
        }
        settings.body_bytes = map.get("body_bytes").map_or(parent.body_bytes, |value| value.size());
        if let Some(value) = map.get("enforcement") {
            enforcement(&value);
        }
        if let Some(value) = map.get("hosts") {
            unbuilt::refuse::<()>(&value, &unbuilt::TEXTS);
        }
        settings
    }
}

/// What to do about a pattern whose mistake does not say it in its own words.
const fn mend_of(error: &InvalidPattern) -> &'static str {
    match error {
        InvalidPattern::EmptySegment => "write one slash",
        InvalidPattern::TailNotLast(_) => "move it to the end, or write {name} for one segment",
        InvalidPattern::DuplicateName(_) => "give each variable a name of its own",
        InvalidPattern::Unreachable(..) => "remove the segment, or write the path as clients send it",
        _ => "write a path such as /api/v1/models/{model_id}",
    }
}

/// A public route looks at no key: what asks something of one would stand there as a promise that nobody keeps.
fn refuse_without_meaning(map: &Map<'_>) {
    for name in WITH_A_KEY {
        let Some(value) = map.get(name) else { continue };
        if !matches!((*name, value.peek()), ("limited_keys", Some("deny")) | ("cost", Some("1")) | (_, Some("false"))) {
            value.mistake::<()>(
                format!("`{name}` means nothing on a public route: no key is looked at"),
                "remove it, or open the route to keys only: access: authenticated, or scope: FAMILY:ACTION",
            );
        }
    }
}

fn bindings<'a>(map: &Map<'a>, settings: &mut Settings<'a>) {
    let bound = |value: Value<'a>| source(&value).map(|source| Bound { source, value });
    if let Some(resources) = map.get("resources").and_then(|value| value.mapping(&["model", "dataset"])) {
        if let Some(value) = resources.get("model") {
            settings.model = bound(value);
        }
        if let Some(value) = resources.get("dataset") {
            settings.dataset = bound(value);
        }
    }
    if let Some(value) = map.get("organization") {
        settings.organization = bound(value);
    }
}

impl Settings<'_> {
    /// What a public route would do with a key, when its group says so for the others: nothing.
    fn without_key(&self) -> Self {
        Self {
            model: None,
            dataset: None,
            organization: None,
            touches: Kinds::default(),
            limited_keys: LimitedKeys::Deny,
            forward_authorization: false,
            cost: 1,
            ..self.clone()
        }
    }

    fn route(&self, methods: Methods, pattern: Pattern, line: usize) -> Route {
        // Where it could not be read the mistake is told and no table comes of it; the pattern is still compared with others.
        let access = self.access.clone().unwrap_or(Access::Authenticated);
        let of = |bound: &Option<Bound<'_>>| bound.as_ref().map(|bound| bound.source.clone());
        let bindings =
            Bindings { model: of(&self.model), dataset: of(&self.dataset), organization: of(&self.organization) };
        let mut touches = self.touches;
        for kind in Kind::ALL {
            if bindings.of(kind).is_some() || access.scopes().iter().any(|scope| kind.owns(scope)) {
                touches.insert(kind);
            }
        }
        let (endpoints, other_endpoint) = methods.endpoints(pattern.template());
        Route {
            id: RouteId(0),
            methods,
            pattern,
            access,
            bindings,
            touches,
            limited_keys: self.limited_keys,
            upstream: self.upstream,
            forward_authorization: self.forward_authorization,
            cost: self.cost,
            response_timeout: self.response_timeout,
            idle_timeout: self.idle_timeout,
            body_bytes: self.body_bytes,
            endpoints,
            other_endpoint,
            line,
        }
    }
}
