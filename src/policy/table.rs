//! The table that finds the route of a request.
//!
//! A trie of segments: at each node the literal child is tried before `{name}`, that before `{*rest}`, so the first leaf that
//! takes the method is the one the contract wants. A leaf that does not take the method sends the search on: the best path must
//! not hide another route that has the method. Every node is visited at most once, so no path is expensive.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use http::Method;

use super::path::RequestPath;
use super::pattern::Segment;
use super::rejection::Rejection;
use super::route::{Methods, Route, RouteId};

/// A route that was found, with the variables of its pattern.
#[derive(Debug, Clone)]
pub struct Match {
    /// The route.
    pub route: Arc<Route>,
    /// Decoded values of `{name}` and `{*rest}`, in the pattern's order.
    pub variables: Vec<(Arc<str>, String)>,
}

impl Match {
    /// The decoded value of one variable.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(known, _)| &**known == name).map(|(_, value)| value.as_str())
    }
}

/// Two routes of the same shape that share a method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Index of the earlier one.
    pub first: usize,
    /// Index of the later one.
    pub second: usize,
    /// The shared method; `None`: both are `*`.
    pub method: Option<Method>,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = self.method.as_ref().map_or("*", Method::as_str);
        write!(f, "another route takes {method} on the same paths")
    }
}

/// All routes.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<Arc<Route>>,
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    /// Sorted by text.
    literals: Vec<(Arc<str>, usize)>,
    variable: Option<usize>,
    tail: Leaf,
    end: Leaf,
}

/// The routes of one shape.
#[derive(Debug, Default)]
struct Leaf {
    named: Vec<(Method, RouteId)>,
    any: Option<RouteId>,
}

impl RouteTable {
    /// Builds the table; every route gets its index as its id. Fails with all pairs that could both claim a request.
    pub fn build(routes: Vec<Route>) -> Result<Self, Vec<Conflict>> {
        let mut table = Self { routes: Vec::with_capacity(routes.len()), nodes: vec![Node::default()] };
        let mut conflicts = Vec::new();
        for (index, mut route) in routes.into_iter().enumerate() {
            route.id = RouteId(index);
            let leaf = table.leaf(route.pattern.segments());
            conflicts.extend(leaf.insert(&route.methods, route.id));
            table.routes.push(Arc::new(route));
        }
        if conflicts.is_empty() { Ok(table) } else { Err(conflicts) }
    }

    /// All routes, in the order of the file.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// Finds the route of a request: path and method match, then the leftmost literal wins over `{name}`, that over `{*rest}`,
    /// then a named method over `*`. The order in the file never matters.
    pub fn find(&self, method: &Method, path: &RequestPath<'_>) -> Result<Match, Rejection> {
        let mut allow = Allow::default();
        match self.search(0, path.segments(), method, &mut allow) {
            Some(RouteId(index)) => {
                let route = self.routes[index].clone();
                let variables = route.pattern.capture(path.segments());
                Ok(Match { route, variables })
            }
            None => Err(self.not_found(path, allow)),
        }
    }

    fn not_found(&self, path: &RequestPath<'_>, mut allow: Allow) -> Rejection {
        if !allow.path_matched {
            return Rejection::RouteNotFound;
        }
        // A second walk, in which no leaf is good enough, so that it sees them all. Rare, hence not worth a list in the first.
        allow.methods = Some(BTreeSet::new());
        self.search(0, path.segments(), &Method::default(), &mut allow);
        let methods: Vec<String> = allow.methods.into_iter().flatten().collect();
        Rejection::MethodNotAllowed(methods.join(", "))
    }

    fn search(&self, node: usize, rest: &[Cow<'_, str>], method: &Method, allow: &mut Allow) -> Option<RouteId> {
        let node = self.nodes.get(node)?;
        let Some((first, after)) = rest.split_first() else { return node.end.take(method, allow) };
        if let Ok(at) = node.literals.binary_search_by(|(text, _)| (**text).cmp(first))
            && let Some(found) = self.search(node.literals[at].1, after, method, allow)
        {
            return Some(found);
        }
        if let (Some(child), false) = (node.variable, first.is_empty())
            && let Some(found) = self.search(child, after, method, allow)
        {
            return Some(found);
        }
        node.tail.take(method, allow)
    }

    /// The leaf of a pattern, made where it does not exist.
    fn leaf(&mut self, segments: &[Segment]) -> &mut Leaf {
        let mut at = 0;
        for segment in segments {
            at = match segment {
                Segment::Literal(text) => self.literal_child(at, text),
                Segment::Variable(_) => match self.nodes[at].variable {
                    Some(child) => child,
                    None => {
                        let child = self.new_node();
                        self.nodes[at].variable = Some(child);
                        child
                    }
                },
                Segment::Tail(_) => return &mut self.nodes[at].tail,
            };
        }
        &mut self.nodes[at].end
    }

    fn literal_child(&mut self, at: usize, text: &Arc<str>) -> usize {
        match self.nodes[at].literals.binary_search_by(|(known, _)| known.cmp(text)) {
            Ok(place) => self.nodes[at].literals[place].1,
            Err(place) => {
                let child = self.new_node();
                self.nodes[at].literals.insert(place, (text.clone(), child));
                child
            }
        }
    }

    fn new_node(&mut self) -> usize {
        self.nodes.push(Node::default());
        self.nodes.len() - 1
    }
}

/// What a search learns about the methods of the paths that match.
#[derive(Debug, Default)]
struct Allow {
    path_matched: bool,
    /// Set: collect, and take no leaf.
    methods: Option<BTreeSet<String>>,
}

impl Leaf {
    fn insert(&mut self, methods: &Methods, id: RouteId) -> Vec<Conflict> {
        let conflict = |first: RouteId, method| Conflict { first: first.0, second: id.0, method };
        let mut conflicts = Vec::new();
        match methods {
            Methods::Any => match self.any {
                Some(first) => conflicts.push(conflict(first, None)),
                None => self.any = Some(id),
            },
            Methods::Named(named) => {
                for method in named {
                    match self.named.iter().find(|(known, _)| known == method) {
                        Some((_, first)) => conflicts.push(conflict(*first, Some(method.clone()))),
                        None => self.named.push((method.clone(), id)),
                    }
                }
            }
        }
        conflicts
    }

    /// The route for `method`: named, then GET for a HEAD, then `*`.
    fn take(&self, method: &Method, allow: &mut Allow) -> Option<RouteId> {
        allow.path_matched |= self.any.is_some() || !self.named.is_empty();
        if let Some(methods) = &mut allow.methods {
            self.collect(methods);
            return None;
        }
        let named = |wanted: &Method| self.named.iter().find(|(known, _)| known == wanted).map(|(_, id)| *id);
        named(method)
            .or_else(|| if *method == Method::HEAD { named(&Method::GET) } else { None })
            .or_else(|| if Methods::Any.takes(method) { self.any } else { None })
    }

    fn collect(&self, methods: &mut BTreeSet<String>) {
        let named = self.named.iter().map(|(method, _)| method.as_str());
        let head = self.named.iter().any(|(method, _)| *method == Method::GET).then_some("HEAD");
        let any = self.any.iter().flat_map(|_| Methods::KNOWN.iter().map(Method::as_str));
        methods.extend(named.chain(head).chain(any).map(str::to_owned));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::pattern::Pattern;
    use proptest::prelude::*;

    fn table(routes: &[&str]) -> RouteTable {
        RouteTable::build(routes.iter().map(|text| Route::sample(text)).collect()).unwrap()
    }

    /// The template found, or the status with Allow.
    fn find(table: &RouteTable, method: &str, path: &str) -> String {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        match table.find(&method, &RequestPath::parse(path).unwrap()) {
            Ok(found) => found.route.label(),
            Err(Rejection::MethodNotAllowed(allow)) => format!("405 {allow}"),
            Err(_) => "404".to_owned(),
        }
    }

    #[test]
    fn the_leftmost_literal_wins_over_a_variable_and_that_over_a_tail() {
        let t = table(&["GET /{*all}", "GET /{a}/x", "GET /a/{b}", "GET /a/{*rest}", "GET /a/b"]);
        assert_eq!(find(&t, "GET", "/a/b"), "GET /a/b");
        assert_eq!(find(&t, "GET", "/a/x"), "GET /a/{b}");
        assert_eq!(find(&t, "GET", "/a/x/y"), "GET /a/{*rest}");
        assert_eq!(find(&t, "GET", "/z/x"), "GET /{a}/x");
        assert_eq!(find(&t, "GET", "/z/y"), "GET /{*all}");
        assert_eq!(find(&t, "GET", "/a/%62"), "GET /a/b");
    }

    #[test]
    fn the_best_path_does_not_hide_another_route_that_has_the_method() {
        let t = table(&["GET /a/b", "POST /a/{x}", "DELETE /{*rest}", "* /a/{*rest}"]);
        assert_eq!(find(&t, "POST", "/a/b"), "POST /a/{x}");
        assert_eq!(find(&t, "DELETE", "/a/b"), "* /a/{*rest}");
        assert_eq!(find(&t, "DELETE", "/b"), "DELETE /{*rest}");
        assert_eq!(find(&t, "GET", "/b"), "405 DELETE");
    }

    #[test]
    fn methods_are_named_over_any_and_get_serves_head() {
        let t = table(&["* /a", "GET /a", "GET /b", "HEAD /b", "GET|PUT /c", "PUT /c/{x}", "GET /c/d"]);
        assert_eq!(find(&t, "GET", "/a"), "GET /a");
        assert_eq!(find(&t, "HEAD", "/a"), "GET /a");
        assert_eq!(find(&t, "PROPFIND", "/a"), "* /a");
        assert_eq!(find(&t, "HEAD", "/b"), "HEAD /b");
        assert_eq!(find(&t, "DELETE", "/c"), "405 GET, HEAD, PUT");
        assert_eq!(find(&t, "POST", "/c/d"), "405 GET, HEAD, PUT");
        for method in ["CONNECT", "TRACE"] {
            assert_eq!(find(&t, method, "/a"), "405 DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT");
        }
    }

    #[test]
    fn a_trailing_slash_is_a_path_of_its_own_and_a_tail_may_be_empty() {
        let t = table(&["GET /a", "GET /b/", "GET /c/{*rest}", "GET /d/{x}", "GET /"]);
        assert_eq!(find(&t, "GET", "/a/"), "404");
        assert_eq!(find(&t, "GET", "/b"), "404");
        assert_eq!(find(&t, "GET", "/b/"), "GET /b/");
        assert_eq!(find(&t, "GET", "/c"), "404");
        assert_eq!(find(&t, "GET", "/c/"), "GET /c/{*rest}");
        assert_eq!(find(&t, "GET", "/c/x/y/"), "GET /c/{*rest}");
        assert_eq!(find(&t, "GET", "/d/"), "404");
        assert_eq!(find(&t, "GET", "/"), "GET /");
    }

    #[test]
    fn variables_are_decoded_values() {
        let t = table(&["GET /m/{id}/f/{*rest}"]);
        let found = t.find(&Method::GET, &RequestPath::parse("/m/a%20b/f/x/%79/").unwrap()).unwrap();
        assert_eq!(found.variable("id"), Some("a b"));
        assert_eq!(found.variable("rest"), Some("x/y/"));
        assert_eq!(found.variable("other"), None);
    }

    #[test]
    fn the_same_shape_with_a_shared_method_is_a_conflict() {
        let build = |texts: &[&str]| RouteTable::build(texts.iter().map(|text| Route::sample(text)).collect());
        let conflicts = build(&["GET|PUT /a/{x}", "* /a/{x}", "PUT /a/{y}", "* /a/{z}", "HEAD /a/{x}"]).unwrap_err();
        assert_eq!(
            conflicts,
            [
                Conflict { first: 0, second: 2, method: Some(Method::PUT) },
                Conflict { first: 1, second: 3, method: None }
            ]
        );
    }

    /// The contract read as literally as possible: look at all, keep those that match, take the best.
    fn naive(routes: &[Arc<Route>], method: &Method, path: &[Cow<'_, str>]) -> Option<RouteId> {
        let rank = |route: &Route| -> Vec<u8> {
            let kinds = route.pattern.segments().iter().map(|segment| match segment {
                Segment::Literal(_) => 0,
                Segment::Variable(_) => 1,
                Segment::Tail(_) => 2,
            });
            kinds.chain([u8::from(route.methods == Methods::Any)]).collect()
        };
        let names = |route: &Route, wanted: &Method| match &route.methods {
            Methods::Any => false,
            Methods::Named(named) => named.contains(wanted),
        };
        let takes = |route: &Arc<Route>| {
            let head_is_named =
                || routes.iter().any(|other| other.pattern.same_shape(&route.pattern) && names(other, &Method::HEAD));
            names(route, method)
                || (*method == Method::HEAD && names(route, &Method::GET) && !head_is_named())
                || (route.methods == Methods::Any && ![Method::CONNECT, Method::TRACE].contains(method))
        };
        let candidates = routes.iter().filter(|route| matches(&route.pattern, path) && takes(route));
        candidates.min_by_key(|route| rank(route)).map(|route| route.id)
    }

    fn matches(pattern: &Pattern, path: &[Cow<'_, str>]) -> bool {
        let segments = pattern.segments();
        let tail = matches!(segments.last(), Some(Segment::Tail(_)));
        (if tail { path.len() >= segments.len() } else { path.len() == segments.len() })
            && segments.iter().zip(path).all(|(segment, part)| match segment {
                Segment::Literal(text) => **text == **part,
                Segment::Variable(_) => !part.is_empty(),
                Segment::Tail(_) => true,
            })
    }

    fn route_text() -> impl Strategy<Value = String> {
        let method = prop::sample::select(vec!["*", "GET", "HEAD", "GET|HEAD", "POST", "PUT|POST", "TRACE"]);
        let segment = prop::sample::select(vec!["a", "b", "{v}"]);
        let end = prop::sample::select(vec!["", "/", "/{*rest}"]);
        (method, prop::collection::vec(segment, 0..3), end).prop_map(|(method, segments, end)| {
            let mut path = String::new();
            for (at, segment) in segments.iter().enumerate() {
                path += &format!("/{}", segment.replace('v', &format!("v{at}")));
            }
            format!("{method} {}", if path.is_empty() && end.is_empty() { "/".to_owned() } else { path + end })
        })
    }

    proptest! {
        #[test]
        fn the_trie_agrees_with_a_linear_matcher(
            texts in prop::collection::vec(route_text(), 1..12),
            path in "(/[abc]){0,3}/?",
            method in prop::sample::select(vec!["GET", "HEAD", "POST", "PUT", "TRACE", "X"]),
        ) {
            let path = if path.is_empty() { "/".to_owned() } else { path };
            // Drop what conflicts, so that every table builds.
            let mut kept: Vec<Route> = Vec::new();
            for text in &texts {
                kept.push(Route::sample(text));
                if RouteTable::build(kept.clone()).is_err() {
                    kept.pop();
                }
            }
            let table = RouteTable::build(kept).unwrap();
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let parsed = RequestPath::parse(&path).unwrap();
            let expected = naive(table.routes(), &method, parsed.segments());
            match table.find(&method, &parsed) {
                Ok(found) => prop_assert_eq!(Some(found.route.id), expected),
                Err(refused) => {
                    prop_assert_eq!(None, expected);
                    let any = table.routes().iter().any(|route| matches(&route.pattern, parsed.segments()));
                    prop_assert_eq!(any, matches!(refused, Rejection::MethodNotAllowed(_)));
                    if let Rejection::MethodNotAllowed(allow) = refused {
                        for method in allow.split(", ") {
                            let method = Method::from_bytes(method.as_bytes()).unwrap();
                            prop_assert!(table.find(&method, &parsed).is_ok(), "Allow lies about {}", method);
                        }
                    }
                }
            }
        }
    }
}
