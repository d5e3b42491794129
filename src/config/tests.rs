//! Tests of the compiler as a whole: what operators read when a file is wrong, and what a right one means.

mod clients;
mod mends;
mod rules;
mod store;
mod tls;
mod upstreams;

use std::path::Path;
use std::time::Duration;

use http::Method;
use proptest::prelude::*;

use super::diagnostic::{Diagnostic, Severity};
use super::model::{CLIENT_MANAGEMENT_PATH, Config, Plan, StoreUrl};
use super::parse;
use crate::policy::path::RequestPath;
use crate::policy::pattern::Pattern;
use crate::policy::resource::{Kind, LimitedKeys, ValueSource};
use crate::policy::route::{Access, Route, UpstreamId};

/// The four required sections, as short as they can be.
const HEAD: &str = "listen: { public: { address: 127.0.0.1:8080 } }
store: { url: \"sqlite:data/gateway.db\" }
upstreams: { seeme: { endpoints: [\"http://127.0.0.1:9000\"] } }
";
const ROUTES: &str = "routes: [ { match: GET /a, access: authenticated } ]\n";

fn compile(text: &str) -> Result<(Config, Vec<Diagnostic>), super::ConfigError> {
    parse(Path::new("/etc/seeme/gateway.yaml"), text, &|name| (name == "PORT").then(|| "8443".to_owned()))
}

fn good(text: &str) -> Config {
    match compile(text) {
        Ok((config, _)) => config,
        Err(error) => panic!("{error}"),
    }
}

/// Errors and warnings as `check` prints them, without the file.
fn told(text: &str) -> String {
    let found = match compile(text) {
        Ok((_, warnings)) => warnings,
        Err(error) => error.0,
    };
    let line = |d: &Diagnostic| {
        let level = if d.severity == Severity::Warning { "warning: " } else { "" };
        format!("{level}{}\n", d.to_string().trim_start_matches("/etc/seeme/gateway.yaml:"))
    };
    found.iter().map(line).collect()
}

fn section(text: &str) -> String {
    told(&format!("{HEAD}{ROUTES}{text}"))
}

fn routes(text: &str) -> String {
    told(&format!("{HEAD}routes:\n{text}"))
}

fn route<'c>(config: &'c Config, method: &str, path: &str) -> &'c Route {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let id = config.routes.find(&method, &RequestPath::parse(path).unwrap()).unwrap().route.id;
    &config.routes.routes()[id.0]
}

#[test]
fn five_different_mistakes_are_all_reported_at_their_lines() {
    let text = "listen:
  public: { adress: 127.0.0.1:8080 }
store:
  url: sqlite:data/gateway.db
  timeout: 50
upstreams:
  seeme: { endpoints: [\"http://127.0.0.1:9000\"] }
default_plan: fre
routes:
  - { match: GET /api/v1/models, scope: Models:read }
  - match: GET /api/v1/models/{model_id}
    scope: models:read
    resources: { model: path.modelid }
    upstream: seme
";
    let found = compile(text).unwrap_err().0;
    let lines: Vec<usize> = found.iter().filter(|d| d.severity == Severity::Error).map(|d| d.line).collect();
    assert_eq!(lines, [2, 5, 8, 10, 13, 14]);
    insta::assert_snapshot!(told(text));
}

#[test]
fn a_short_file_has_the_defaults_of_the_contract() {
    let config = good(&format!("{HEAD}{ROUTES}"));
    assert_eq!(config.listen.admin.to_string(), "127.0.0.1:9901");
    assert_eq!(config.store.url, StoreUrl::Sqlite("/etc/seeme/data/gateway.db".into()));
    assert_eq!(config.store.timeout, Duration::from_millis(50));
    assert_eq!((config.cache.capacity, config.cache.negative_ttl), (1_000_000, Duration::from_secs(2)));
    assert_eq!(config.environments.unwrap().test, UpstreamId(0));
    assert_eq!(&*config.quota.default_plan.0, "free");
    assert_eq!(config.quota.plans.len(), 3);
    assert_eq!(config.quota.plans[2].1, Plan::Custom);
    assert_eq!(config.management.base_path, "/api/v1/api-keys");
    assert_eq!((config.limits.header_bytes, config.limits.inspect_total), (64 << 10, 64 << 20));
    assert_eq!(config.usage.retention, Duration::from_secs(400 * 86_400));
    assert!(config.workers >= 1 && config.key_shape.require_checksum);
    assert_eq!(&*config.upstreams[0].endpoints[0].authority, "127.0.0.1:9000");
}

#[test]
fn values_that_equal_the_default_are_accepted_also_where_nothing_else_is_built_yet() {
    good(
        "version: 1
listen:
  public: { address: 127.0.0.1:8080, proxy_protocol: false }
  admin: { address: 127.0.0.1:9901 }
store: { url: \"sqlite:/var/lib/gw.db\", prefix: \"sm:\", timeout: 50ms, outage: { quota: local_share, serve_cached_keys_for: 60s } }
cache: { capacity: 1000000, ttl: 60s, negative_ttl: 2s, recheck_without_push: 5s }
upstreams: { seeme: { endpoints: [\"http://[::1]:9000\"], http2: false, host: preserve, connect_timeout: 1s } }
quota: { subject: account }
management: { base_path: /api/v1/api-keys, console_path: /settings/api-keys, rate: 60/min }
sessions: { unknown_tokens: reject }
enforcement: enforce
log: off
log_level: debug
workers: 3
usage: { journal: none }
keys: { import_hashes: [blake3], adopt: false }
timeouts: { handshake: 10s }
drain: { delay: 0s }
routes:
  - { match: GET /a, access: authenticated, enforcement: enforce, cost: 1, limited_keys: deny }
",
    );
}

#[test]
fn a_usage_journal_lies_beside_the_file_unless_there_is_none() {
    let journal = |usage: &str| good(&format!("{HEAD}{ROUTES}usage: {{ {usage} }}\n")).usage.journal;
    assert_eq!(journal("journal: data/usage.journal"), Some("/etc/seeme/data/usage.journal".into()));
    assert_eq!(journal("journal: \"/var/lib/usage-${PORT}.journal\""), Some("/var/lib/usage-8443.journal".into()));
    for none in ["flush: 1s", "journal: none", "journal: null", "journal: ~"] {
        assert_eq!(journal(none), None, "{none}");
    }
}

#[test]
fn each_section_reports_its_own_mistakes() {
    let sections = [
        "cache: { capacity: 0, ttl: 0s, tll: 5s }",
        "plans: { free: { requests_per_minute: 0 }, pro: custm }",
        "plans: { pro: { requests_per_minute: 1, requests_per_day: 1 } }",
        "default_plan: enterprise",
        "quota: { subject: acount }",
        "scopes: { models: [a:b], \"m:*\": [], \"x:y\": [\"accounts:read\", nonsense] }",
        "management: { base_path: \"/keys/{x}\", rate: 60, console_path: /x }",
        "management: { base_path: keys }",
        "limits: { header_bytes: 1KiB, header_count: many, body_bytes: 10MB, inspect_bytes: 2MiB, inspect_total: 1MiB }",
        "timeouts: { header: 10, idle: 5min, response: 0s }",
        "keys: { require_checksum: yes, adopt: true, import_hashes: [md5] }",
        "environments: { live: seeme, test: sandbox }",
        "workers: 0",
        "log: loud\nlog_level: verbose",
        "version: 2",
        "cache:",
        "cache: [1]",
        "quota: { subject: key }\nquota: { subject: account }",
        "store: x",
        "usage: { flush: 0s, journal: [a], retention: ever }",
        "usage: { journal: \"\" }",
        "usage: { journal: data/ }",
        "usage: { journal: data/gateway.db }",
    ];
    insta::assert_snapshot!(sections.map(|text| format!("{text}\n{}\n", section(text))).concat());
}

#[test]
fn the_required_sections_are_asked_for() {
    insta::assert_snapshot!([
        "",
        "listen: {}",
        "[]",
        "a: [",
        "listen: { public: { address: \"localhost:80\" }, admin: { adress: x } }\nstore: { url: postgres://u:secret@h/x }\nupstreams: {}\nroutes: []",
        "listen: { public: { address: 127.0.0.1:9901 } }\nstore: { url: gateway.db }\nupstreams: { a b: 1, c: { endpoints: [] }, d: { endpoints: [\"h:1\", \"ftp://h\"] }, e: { endpoints: [\"http://u:p@h:1\"] }, f: { endpoints: [\"http://h:1/x\"] }, g: { endpoints: [\"http://h:99999\"] } }\nroutes: {}",
        "listen: { public: { address: 127.0.0.1:1 } }\nstore: { url: \"sqlite:\" }\nupstreams: { a: { endpoints: [\"http://h\"] } }\nroutes:\n  - { match: GET /a/{id}, access: public }",
    ].map(|text| format!("--- {text}\n{}", told(text))).join("\n"));
}

#[test]
fn a_blank_that_is_missing_behind_a_colon_is_pointed_at() {
    for text in
        ["upstreams:\n  tname:{ endpoints: [\"http://h\"] }", "upstreams: { tname:{ endpoints: [\"http://h\"] } }"]
    {
        let told = told(text);
        assert!(told.contains("not YAML") && told.contains("as in `name: { … }`"), "{told}");
    }
}

#[test]
fn what_this_build_does_not_enforce_is_refused_and_checked_all_the_same() {
    let text = "listen:
  public:
    address: 127.0.0.1:8080
  authz: { address: 127.0.0.1:9902 }
store: { url: \"sqlite:x.db\" }
upstreams:
  a: { endpoints: [\"http://a:1\", \"http://b:1\"], identity: { jwt_key: { file: k } } }
  b: { endpoints: [\"http://a:1\"] }
plans: { free: { requests_per_minute: 1, requests_per_day: 1, concurrent_requests: 5 } }
sessions: { unknown_tokens: forward, introspect: { path: /x, ttl: 30s } }

enforcement: observe
include: [routes/*.yaml]
usage: { journal: none }
tracing: { otlp: \"http://x:4317\" }

environments: { live: a, test: b }
routes:
  - { match: GET /a, access: public, hosts: [x.y], enforcement: observe }
";
    insta::assert_snapshot!(told(text));
}

#[test]
fn each_kind_of_mistake_in_a_route_says_how_to_mend_it() {
    insta::assert_snapshot!(routes(
        "  - { match: GET, access: public }
  - { match: GTE /a, access: public }
  - { match: get /a, access: public }
  - { match: CONNECT /a, access: public }
  - { match: GET|GET /a, access: public }
  - { match: \"GET /a/{b\", access: public }
  - { match: GET /b }
  - { match: GET /c, access: pubic }
  - { match: GET /c2, access: models:read }
  - { match: GET /d, scope: models:read, access: public }
  - { match: GET /e, scope: [a:b] }
  - { match: GET /f, access: { any_scope: [] } }
  - { match: GET /g, access: { any_scope: [a:b], all_scopes: [c:d] } }
  - { match: GET /h, scope: a:b, resources: { model: pth.id, dataset: body.model }, organization: id }
  - { match: GET /i, scope: a:b, touches: [modle], cost: 0, limited_keys: allow, body_bytes: -1 }
  - { match: GET /j, scope: a:b, upstream: nowhere, timeouts: { header: 5s } }
  - { match: GET /k, under: /k, access: public }
  - { access: public }
  - { under: /x/, access: public, routes: [ { match: GET / } ] }
  - { under: /x, access: public }
  - { under: \"/x/{*r}\", access: public, routes: [ { match: GET /y } ] }
  - { under: /x, access: public, routes: [] }
  - { match: GET /l, routes: [], access: public }
  - { match: GET /m, access: public, sope: a:b }
  - { match: GET /n, scope: a:b, resources: { model: body./a~2 } }
  - just text
  - { under: /x, access: public, routes: [ { match: GET upload }, { under: y, routes: [] } ] }
"
    ));
    let conflict = routes("  - { match: GET /a/b, access: public }\n  - { match: \"GET|PUT /a/b\", access: public }\n");
    assert_eq!(
        conflict,
        "6:14: another route takes GET on the same paths: `GET /a/b` in line 5 (routes[1].match); remove one, or give them \
         different methods\n"
    );
}

#[test]
fn children_inherit_from_their_group_and_their_own_settings_win() {
    let config = good(&format!(
        "{HEAD}routes:
  - under: /api/v1/models/{{model_id}}
    resources: {{ model: path.model_id }}
    scope: models:read
    limited_keys: forward
    cost: 5
    timeouts: {{ idle: 1m, response: 2m }}
    routes:
      - {{ match: GET / }}
      - {{ match: PUT|DELETE /, access: {{ all_scopes: [models:write, datasets:x] }}, limited_keys: deny }}
      - {{ match: POST /upload/, scope: models:upload, timeouts: {{ idle: 5m }}, cost: 1 }}
      - under: /versions/{{version_id}}
        forward_authorization: true
        routes:
          - {{ match: GET /, resources: {{ dataset: query.dataset }}, organization: header.X-Org }}
  - {{ match: POST /v1/chat/completions, scope: x:predict, resources: {{ model: body./a~1b/m~0n }}, touches: [dataset] }}
  - {{ match: GET /, access: authenticated }}
"
    ));
    let get = route(&config, "GET", "/api/v1/models/m");
    assert_eq!(get.label(), "GET /api/v1/models/{model_id}");
    assert_eq!(get.access, Access::AnyScope(vec!["models:read".to_owned().try_into().unwrap()]));
    assert_eq!(get.bindings.model, Some(ValueSource::Path("model_id".to_owned())));
    assert_eq!((get.cost, get.limited_keys, get.line), (5, LimitedKeys::Forward, 12));
    let put = route(&config, "PUT", "/api/v1/models/m");
    assert!(matches!(&put.access, Access::AllScopes(scopes) if scopes.len() == 2));
    assert_eq!(put.limited_keys, LimitedKeys::Deny);
    assert!(put.touches.contains(Kind::Dataset) && put.touches.contains(Kind::Model));
    let upload = route(&config, "POST", "/api/v1/models/m/upload/");
    assert_eq!(
        (upload.idle_timeout, upload.response_timeout),
        (Some(Duration::from_secs(300)), Some(Duration::from_secs(120)))
    );
    assert_eq!(upload.cost, 1);
    let version = route(&config, "GET", "/api/v1/models/m/versions/v");
    assert!(version.forward_authorization && version.bindings.model.is_some());
    assert_eq!(version.bindings.dataset, Some(ValueSource::Query("dataset".to_owned())));
    assert_eq!(version.bindings.organization, Some(ValueSource::Header("x-org".parse().unwrap())));
    let chat = route(&config, "POST", "/v1/chat/completions");
    assert_eq!(chat.bindings.model, Some(ValueSource::Body(vec!["a/b".to_owned(), "m~n".to_owned()])));
    assert!(chat.touches.contains(Kind::Dataset));
    assert_eq!(&**route(&config, "GET", "/").endpoint(&Method::HEAD), "HEAD /");
    assert!(config.routes.find(&Method::POST, &RequestPath::parse("/api/v1/models/m/upload").unwrap()).is_err());
}

#[test]
fn with_several_upstreams_and_no_environments_every_route_names_one() {
    let two = "listen: { public: { address: 127.0.0.1:8080 } }
store: { url: \"sqlite:x\" }
upstreams: { a: { endpoints: [\"http://a:1\"] }, b: { endpoints: [\"http://b:1\"] } }
routes:
  - { match: GET /a, access: public, upstream: b }
";
    let config = good(two);
    assert!(config.environments.is_none());
    assert_eq!(route(&config, "GET", "/a").upstream, Some(UpstreamId(1)));
    let bad = format!("{two}  - {{ match: GET /b, access: public }}\n");
    insta::assert_snapshot!(told(&bad));
    good(&format!("{bad}environments: {{ live: a, test: b }}\n"));
}

#[test]
fn warnings_do_not_fail_a_file() {
    insta::assert_snapshot!(routes(
        "  - { match: GET /a, access: public }
  - { match: GET /b, access: authenticated }
  - { match: GET /c, scope: a:b, organization: query.org }
  - { match: GET /d, scope: a:b }
  - { match: GET /e, scope: a:b }
  - { match: GET /f, scope: a:b }
  - { match: \"* /api/v1/me/apikeys/{id}\", scope: a:b }
  - { match: GET /api/v1/api-keys, access: public }
"
    ));
}

#[test]
fn variables_of_the_environment_are_replaced_in_scalars() {
    let config = good(
        &format!("{HEAD}{ROUTES}management: {{ base_path: \"/k/${{PREFIX:-keys}}\" }}\n")
            .replace("127.0.0.1:8080", "\"${ADDR:-0.0.0.0}:${PORT}\""),
    );
    assert_eq!(config.listen.public.to_string(), "0.0.0.0:8443");
    assert_eq!(config.management.base_path, "/k/keys");
    insta::assert_snapshot!(section("log: ${LOG}"));
}

#[test]
fn the_files_own_tests_are_read() {
    let config = good(&format!(
        "{HEAD}{ROUTES}tests:
  - {{ request: POST /api/v1/inferences/m-2?x=1, scopes: [models:predict], model_ids: [m-1], expect: resource_not_allowed }}
  - {{ request: GET /a, key: none, expect: missing_key }}
  - {{ request: GET /a, scopes: [], environment: test, organization_id: o-1, body: '{{}}', expect: allowed }}
"
    ));
    assert_eq!(config.tests.len(), 3);
    assert_eq!(config.tests[0].target, "/api/v1/inferences/m-2?x=1");
    assert!(config.tests[1].key.is_none() && config.tests[2].key.is_some());
    insta::assert_snapshot!(section(
        "tests:
  - { request: POST, expect: allowd }
  - { request: GET /a, model_ids: [x], expect: teapot }
  - { request: GET /a, scopes: [x], dataset_ids: [], expect: allowed, key: none }
  - { request: GET /a, scopes: [a:b], organization_id: a b, environment: prod, key: k1 }
"
    ));
}

#[test]
fn the_shipped_file_compiles() {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/gateway.yaml"));
    let (config, warnings) = super::load(file, &|_| None).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.listen.public.to_string(), "127.0.0.1:8080");
    assert_eq!(config.listen.admin.to_string(), "127.0.0.1:9901");
    assert!(config.routes.routes().len() > 100 && !config.tests.is_empty());
    assert!(warnings.iter().all(|warning| !warning.what.contains("is never used")), "{warnings:#?}");
    // The four variables are the ones that containers set.
    let env = |name: &str| match name {
        "SEEME_GATEWAY_PUBLIC" => Some("0.0.0.0:80".to_owned()),
        "SEEME_GATEWAY_ADMIN" => Some("0.0.0.0:81".to_owned()),
        "SEEME_GATEWAY_STORE" => Some("sqlite:/data/g.db".to_owned()),
        "SEEME_GATEWAY_UPSTREAM" => Some("http://backend:8000".to_owned()),
        _ => None,
    };
    let (config, _) = super::load(file, &env).unwrap();
    assert_eq!((config.listen.public.port(), config.listen.admin.port()), (80, 81));
    assert_eq!(config.store.url, StoreUrl::Sqlite("/data/g.db".into()));
    assert_eq!(&*config.upstreams[0].endpoints[0].authority, "backend:8000");
}

#[test]
fn the_shipped_file_has_a_route_for_every_call_of_the_sdk() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (config, _) = super::load(&folder.join("gateway.yaml"), &|_| None).unwrap();
    let calls = std::fs::read_to_string(folder.join("tests/data/seeme-sdk-routes.tsv")).unwrap();
    let mut missing = Vec::new();
    for line in calls.lines().skip(1) {
        let mut fields = line.split('\t');
        let (method, path) = (fields.next().unwrap(), fields.next().unwrap());
        let called = path.replace(['{', '}'], "");
        let called = RequestPath::parse(&called).unwrap();
        let found = config.routes.find(&method.parse().unwrap(), &called);
        // Not by a tail or a literal that happens to be there: by a route of its own.
        let wanted = Pattern::parse(path).unwrap();
        let own = found.as_ref().is_ok_and(|found| found.route.pattern.same_shape(&wanted));
        if !path.starts_with(CLIENT_MANAGEMENT_PATH) && !own {
            missing.push(format!("{method} {path}: {:?}", found.map(|found| found.route.label())));
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

proptest! {
    #[test]
    fn no_mutation_of_a_valid_file_makes_the_compiler_panic(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..8usize, "[ -~\n]{0,4}"), 1..6),
    ) {
        let mut text = format!(
            "{HEAD}environments: {{ live: seeme, test: seeme }}\nplans: {{ free: {{ requests_per_minute: 6, requests_per_day: 9 }} }}\n\
             scopes: {{ a:b: [c:d] }}\nlimits: {{ body_bytes: 10MiB }}\ntimeouts: {{ idle: 5m }}\nroutes:\n  - under: /m/{{id}}\n    \
             resources: {{ model: path.id }}\n    routes:\n      - {{ match: GET /, scope: a:b }}\n      - {{ match: POST /x, access: \
             {{ all_scopes: [a:b] }}, organization: body./o }}\ntests:\n  - {{ request: GET /m/1, scopes: [a:b], expect: allowed }}\n"
        );
        prop_assert!(compile(&text).is_ok());
        for (at, length, insert) in cuts {
            let at = at.index(text.len());
            text.replace_range(at..(at + length).min(text.len()), &insert);
        }
        match compile(&text) {
            Ok((_, warnings)) => prop_assert!(warnings.iter().all(|d| d.severity == Severity::Warning)),
            Err(error) => {
                prop_assert!(error.0.iter().any(|d| d.severity == Severity::Error));
                let lines = text.lines().count() + 1;
                prop_assert!(error.0.iter().all(|d| (1..=lines).contains(&d.line)), "{}", error);
            }
        }
    }
}
