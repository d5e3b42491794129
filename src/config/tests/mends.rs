//! Mistakes that operators made and misread: each must say, at its place and once, what to write instead.

use super::{HEAD, ROUTES, compile, good, route, routes, section, told};
use crate::policy::key::{Account, AccountId};
use crate::policy::resource::{Kinds, LimitedKeys};
use crate::policy::route::Methods;

/// The complaint about one `match`, which must be the only one.
fn told_of_match(text: &str) -> String {
    let told = routes(&format!("  - {{ match: \"{text}\", access: authenticated }}\n"));
    assert_eq!(told.matches("warning").count() + 1, told.lines().count().max(1), "{text}: {told}");
    told
}

#[test]
fn a_star_is_alone_and_methods_are_upper_case_names() {
    for (text, what, mend) in [
        ("*|GET /sg", "`*` stands in a list of methods", "write \"* /sg\" for every method"),
        ("GET|* /sg", "`*` stands in a list of methods", "or only the names"),
        ("GET | PUT /y", "blanks around `|`", "write GET|PUT /y"),
        ("GET| PUT|DELETE /y", "blanks around `|`", "write GET|PUT|DELETE /y"),
        (" GET /y", "begins with a blank", "write GET /y"),
        ("GET| /y", "blanks around `|`", "write GET /y"),
        ("GET|PUT| /y", "blanks around `|`", "GET|PUT"),
        ("|GET /y", "a method is missing", "GET|PUT"),
        ("GET,PUT /y", "`GET,PUT` is not a method", "upper-case letters"),
        ("FETCH! /y", "`FETCH!` is not a method", "upper-case letters"),
        ("X1 /y", "`X1` is not a method", "upper-case letters"),
        ("get /y", "`get` is not a method", "did you mean `GET`"),
        ("** /y", "`**` is not a method", "upper-case letters"),
    ] {
        let told = told_of_match(text);
        assert!(told.contains(what) && told.contains(mend), "{text}: {told}");
    }
    let group = routes("  - { under: GET /a, access: public, routes: [ { match: GET /b } ] }\n");
    assert_eq!(
        group,
        "5:14: a group has a path and no method (routes[0].under); write under: /a, and GET in front of each path inside\n"
    );
    let config = good(&format!("{HEAD}routes:\n  - {{ match: \"M-SEARCH|PROPFIND|GET /a\", access: public }}\n"));
    assert!(matches!(&route(&config, "M-SEARCH", "/a").methods, Methods::Named(named) if named.len() == 3));
}

#[test]
fn what_asks_something_of_a_key_is_refused_on_a_public_route() {
    for (setting, name) in [
        ("resources: { model: query.m }", "resources"),
        ("organization: query.o", "organization"),
        ("touches: [model]", "touches"),
        ("limited_keys: forward", "limited_keys"),
        ("cost: 2", "cost"),
        ("forward_authorization: true", "forward_authorization"),
    ] {
        let told = routes(&format!("  - {{ match: GET /a, access: public, {setting} }}\n"));
        assert!(told.contains(&format!("`{name}` means nothing on a public route")), "{setting}: {told}");
        assert_eq!(
            routes(&format!("  - {{ match: GET /a, access: authenticated, {setting} }}\n")).matches("public").count(),
            0
        );
    }
    assert_eq!(
        routes("  - { match: GET /a, access: public, limited_keys: deny, cost: 1, forward_authorization: false }\n"),
        ""
    );
    // Said by the group for the others: ignored, and shown as nothing.
    let config = good(&format!(
        "{HEAD}routes:
  - under: /m/{{id}}
    scope: models:read
    resources: {{ model: path.id }}
    cost: 7
    limited_keys: forward
    touches: [dataset]
    forward_authorization: true
    routes: [ {{ match: GET /, access: public }}, {{ match: PUT / }} ]
"
    ));
    let public = route(&config, "GET", "/m/x");
    assert_eq!((public.cost, public.forward_authorization, &public.bindings.model), (1, false, &None));
    assert_eq!((public.touches, public.limited_keys), (Kinds::default(), LimitedKeys::Deny));
    assert_eq!(route(&config, "PUT", "/m/x").cost, 7);
}

#[test]
fn a_mistake_in_a_group_is_told_once() {
    let told = routes(
        "  - under: \"/m/{model_id}\"
    scope: models:read
    resources: { model: path.model }
    routes: [ { match: GET / }, { match: PUT / }, { match: GET /a }, { match: GET /b } ]
",
    );
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("its variables: model_id"), "{told}");
}

#[test]
fn routes_of_the_same_shape_are_told_beside_other_mistakes() {
    let told = routes("  - { match: GET /a, scope: Bad }\n  - { match: GET /a, scope: a:b }\n  - { match: GET /a }\n");
    assert_eq!(told.matches("another route takes GET").count(), 2, "{told}");
    assert!(told.contains("`Bad` is not a scope") && told.contains("says nobody who may pass"), "{told}");
}

#[test]
fn a_variable_that_cannot_be_replaced_is_told_with_its_place_and_its_own_mend() {
    let address = |text: &str| told(&format!("{}{ROUTES}", HEAD.replace("127.0.0.1:8080", &format!("\"{text}\""))));
    assert_eq!(
        address("${NOPE}"),
        "1:30: the environment variable NOPE is not set (listen.public.address); set it, or give a default: ${NOPE:-default}\n"
    );
    for bad in ["${NOPE", "${NO PE}"] {
        let told = address(bad);
        assert!(told.contains("(listen.public.address); write ${NAME}") && !told.contains("set it"), "{told}");
    }
    let listed = section("tests: [ { request: GET /a, scopes: [a:b, \"${NOPE}\"], expect: allowed } ]");
    assert!(listed.contains("(tests[0].scopes[1])"), "{listed}");
}

#[test]
fn every_mistake_says_in_a_member_of_its_own_how_to_mend_it() {
    let with_routes = |text: &str| format!("{HEAD}routes: [ {text} ]\n");
    let mut found = Vec::new();
    for text in [
        format!("{}{ROUTES}", HEAD.replace("sqlite:data/gateway.db", "mysql:x")),
        with_routes("{ match: \"GET /{a}/{a}\", access: public }"),
        with_routes("{ match: GET /a/../b, access: public }"),
        with_routes("{ match: GET //b, access: public }"),
        with_routes("{ match: \"GET /{*r}/b\", access: public }"),
        with_routes("{ match: \"GET /*\", access: public }"),
        with_routes("{ match: \" GET /b\", access: public }"),
        with_routes("{ match: GET /a, scope: Models }"),
        with_routes("{ match: GET /a, scope: a:b, cost: 0, organization: \"header.a b\" }"),
        format!("{HEAD}{ROUTES}cache: {{ ttl: soon, capacity: [] }}\n"),
        format!("{HEAD}{ROUTES}timeouts: {{ idle: 5 }}\nlimits: {{ uri_bytes: 0 }}\nmanagement: {{ rate: 5 }}\n"),
        format!("{HEAD}{ROUTES}keys: {{ require_checksum: yes }}\nlog: loud\ndefault_plan: nothing\nversion: 2\n"),
        format!("{HEAD}{ROUTES}tests: [ {{ request: GET /a, scopes: [a:b], model_ids: [a b], expect: allowed }} ]\n"),
    ] {
        found.extend(compile(&text).unwrap_err().0);
    }
    assert_eq!(found.len(), 20, "{found:#?}");
    for found in found {
        assert!(!found.mend.is_empty() && !found.what.contains(": write") && !found.place.is_empty(), "{found:#?}");
        assert!(!found.what.contains("1 bytes"), "{found:#?}");
    }
}

#[test]
fn a_cost_beyond_a_plan_and_unproven_routes_are_warned_about() {
    let told = routes(
        "  - { match: GET /a, access: public }
  - { match: GET /b, scope: a:b, organization: query.o, forward_authorization: true }
  - { match: GET /c, scope: a:b, organization: query.o, cost: 61 }
",
    );
    assert!(told.contains("`GET /c` in line 7 costs 61, more than the 60 of the plan `free`"), "{told}");
    assert!(told.contains("comes from the gateway on 1 of 2 routes"), "{told}");
    assert_eq!(told.lines().count(), 2, "{told}");
}

#[test]
fn a_plan_that_brings_no_limits_is_noted() {
    let quota = good(&format!("{HEAD}{ROUTES}")).quota;
    let mut account = Account::unset(AccountId::parse("u-1").unwrap());
    let mut note = |plan: Option<&str>, limits: Option<u32>| {
        account.plan = plan.map(str::to_owned);
        (account.requests_per_minute, account.requests_per_day) = (limits, limits);
        quota.note(&account)
    };
    for (plan, limits) in [(None, None), (Some("pro"), None), (Some("enterprise"), Some(5))] {
        assert_eq!(note(plan, limits), None, "{plan:?}");
    }
    assert!(note(Some("enterprise"), None).unwrap().contains("u-1 has no limits of its own"));
    assert!(note(Some("gone"), Some(5)).unwrap().contains("the plan gone, which the file does not have: free applies"));
}

#[test]
fn what_the_parser_says_in_words_for_programmers_is_told_in_those_of_the_file() {
    let laughs = |count| {
        (1..count).fold("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, at| {
            let before = format!("*a{}", at - 1);
            text + &format!("a{at}: &a{at} [{}]\n", [before.as_str(); 10].join(", "))
        })
    };
    for (text, what, mend) in [
        ("a: &x [1, *x]\n".to_owned(), "inside its own anchor", "write out what is meant"),
        (laughs(7), "too many values", "use fewer aliases"),
        ("a: ".to_owned() + &"[".repeat(60) + &"]".repeat(60), "nested too deep", "brackets that are not closed"),
        ("a: ".to_owned() + &"[".repeat(500), "nested too deep", "brackets that are not closed"),
        ("a:\n\t- b\n".to_owned(), "tabs", "indent with spaces"),
        ("a: *b\n".to_owned(), "unknown anchor", "quote a text that begins with `*`"),
        ("{ a: 1 }: 2\n".to_owned(), "needs a name", "write NAME: VALUE"),
    ] {
        let told = told(&text);
        assert!(told.contains(what) && told.contains(mend) && told.lines().count() == 1, "{text:.40}: {told}");
    }
}
