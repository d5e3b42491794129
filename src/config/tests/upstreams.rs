//! Tests of `upstreams`: what its members mean, and what operators read when they are wrong.

use std::time::Duration;

use super::{ROUTES, good, told};
use crate::config::model::{Host, Outlier, Retries, Secret, Upstream};

fn file(members: &str) -> String {
    format!(
        "listen: {{ public: {{ address: 127.0.0.1:8080 }} }}
store: {{ url: \"sqlite:x.db\" }}
upstreams: {{ a: {{ {members} }} }}
{ROUTES}"
    )
}

fn upstream(members: &str) -> Upstream {
    good(&file(members)).upstreams.remove(0)
}

const ONE: &str = "endpoints: [\"http://h:1\"]";

#[test]
fn an_upstream_that_says_nothing_has_the_defaults_of_the_contract() {
    let upstream = upstream(ONE);
    assert_eq!((upstream.connect_timeout, upstream.dns_refresh), (Duration::from_secs(1), Duration::from_secs(30)));
    assert_eq!(upstream.outlier, Some(Outlier { failures: 5, eject_for: Duration::from_secs(10) }));
    assert_eq!(upstream.retries, Retries { attempts: 2, budget: 20 });
    assert_eq!((upstream.host, upstream.health_check, upstream.max_requests), (Host::Preserve, None, None));
    assert!(upstream.strip_prefix.is_empty() && upstream.add_prefix.is_empty() && upstream.set_headers.is_empty());
    assert_eq!(upstream.endpoints[0].weight, 1);
}

#[test]
fn every_member_can_be_set() {
    let upstream = upstream(
        "endpoints: [\"http://h:1\", \"http://[::1]:2\"], weights: [3, 0], dns_refresh: 5s, host: api.example, \
         strip_prefix: /api/v%31/, add_prefix: /x%20y, max_requests: 7, health_check: { path: \"/up?full\", interval: 1s }, \
         outlier: { failures: 0 }, retries: { attempts: 0, budget: 5% }, \
         set_headers: { X-Proof: { file: proof }, Authorization: \"Basic x\" }",
    );
    let weights: Vec<u32> = upstream.endpoints.iter().map(|endpoint| endpoint.weight).collect();
    assert_eq!((weights, upstream.max_requests), (vec![3, 0], Some(7)));
    assert_eq!(upstream.host, Host::Name("api.example".parse().unwrap()));
    assert_eq!((upstream.strip_prefix, &*upstream.add_prefix), (vec!["api".to_owned(), "v1".to_owned()], "/x%20y"));
    let check = upstream.health_check.unwrap();
    assert_eq!((check.path.as_str(), check.interval), ("/up?full", Duration::from_secs(1)));
    assert_eq!((upstream.outlier, upstream.retries), (None, Retries { attempts: 0, budget: 5 }));
    assert_eq!(upstream.set_headers[0], ("x-proof".parse().unwrap(), Secret::File("/etc/seeme/proof".into())));
    assert_eq!(upstream.set_headers[1].1, Secret::Text("Basic x".to_owned()));
}

#[test]
fn each_mistake_says_how_to_mend_it() {
    let mistakes = [
        "endpoints: [\"http://h:1\", \"http://h:1\"]",
        "endpoints: [\"http://h:1\", \"http://i:1\"], weights: [1]",
        "endpoints: [\"http://h:1\", \"http://i:1\"], weights: [0, 0]",
        "endpoints: [\"http://h:1\"], weights: [1001]",
        "endpoints: [\"http://h:1\"], host: \"a b\", strip_prefix: api, add_prefix: /",
        "endpoints: [\"http://h:1\"], strip_prefix: /a/../b, add_prefix: \"/a?b\"",
        "endpoints: [\"http://h:1\"], max_requests: 0, dns_refresh: 0s",
        "endpoints: [\"http://h:1\"], health_check: { interval: 1s }, outlier: { failure: 5 }",
        "endpoints: [\"http://h:1\"], health_check: { path: up }, retries: { attempts: 11, budget: 101% }",
        "endpoints: [\"http://h:1\"], set_headers: { Host: h, x_seeme_key_id: k, Content_Length: 5, X-Forwarded-For: x }",
        "endpoints: [\"http://h:1\"], set_headers: { X-A: 1, x_a: 2, \"a b\": 1, X-B: \"two\\nlines\", X-C: { path: x } }",
    ];
    insta::assert_snapshot!(mistakes.map(|members| format!("{members}\n{}\n", told(&file(members)))).concat());
}

#[test]
fn no_value_of_a_set_header_is_shown() {
    let upstream = upstream("endpoints: [\"http://h:1\"], set_headers: { X-Proof: hush }");
    assert!(!format!("{upstream:?}").contains("hush"));
    assert!(!told(&file("endpoints: [\"http://h:1\"], set_headers: { X-Proof: \"hush\\nhush\" }")).contains("hush"));
}

#[test]
fn what_proves_the_gateway_to_every_backend_of_a_route_ends_the_warning() {
    let two = |first: &str, second: &str, environments: &str| {
        told(&format!(
            "listen: {{ public: {{ address: 127.0.0.1:8080 }} }}
store: {{ url: \"sqlite:x.db\" }}
upstreams:
  a: {{ {ONE}, {first} }}
  b: {{ {ONE}, {second} }}
{environments}
routes:
  - {{ match: GET /a, scope: a:b, organization: query.o, upstream: a }}
  - {{ match: GET /b, scope: a:b, organization: query.o, upstream: b }}
  - {{ match: GET /c, scope: a:b, organization: query.o }}
"
        ))
    };
    let both = "environments: { live: a, test: b }";
    let proof = "set_headers: { X-Proof: x }";
    assert_eq!(two(proof, proof, both), "");
    assert!(
        two(proof, "host: preserve", both)
            .contains("nothing proves to the backend that a request comes from the gateway on 2 of 3 routes")
    );
    let on_one = two(proof, "host: preserve", "environments: { live: a, test: a }");
    assert!(on_one.contains("on 1 of 3 routes"), "{on_one}");
}

#[test]
fn a_prefix_that_no_route_has_is_told() {
    let warned = |prefix: &str, routes: &str| {
        let text = file(&format!("{ONE}, strip_prefix: {prefix}")).replace(ROUTES, &format!("routes: [{routes}]\n"));
        told(&text).contains("no route to `a` has paths below its strip_prefix")
    };
    assert!(warned("/api", "{ match: \"GET /x/{y}\", access: public }"));
    assert!(warned("/api/v1", "{ match: GET /api, access: public }"));
    assert!(!warned("/api", "{ match: GET /x, access: public }, { match: GET /api/x, access: public }"));
    assert!(!warned("/api/v1", "{ match: \"GET /{a}/v1\", access: public }"));
    assert!(!warned("/api/v1", "{ match: \"GET /{*rest}\", access: public }"));
}
