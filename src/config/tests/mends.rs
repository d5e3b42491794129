//! Mistakes that operators made and misread: each must say, at its place and once, what to write instead.

use super::{HEAD, ROUTES, compile, good, route, routes, section, told};
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
