//! Who the client is when a proxy that is trusted passes its request on: `X-Forwarded-For` and `Forwarded` (RFC 7239).
//!
//! Both are read from the right, where the nearest proxy writes: over hops that are trusted, to the first that is not, which is the
//! client. What nobody trusted has written is never believed, and what cannot be read ends the walk at the hop that passed it on.
//!
//! Where `X-Forwarded-For` came, `Forwarded` is ignored: nearly every proxy writes the former, and most of those pass the
//! client's own copy of the latter on unread.
//!
//! Both families go on saying the same of client, scheme and host: what one of them says and was believed is what the other one is
//! made anew with.

use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{HeaderMap, header};

use super::network::Networks;

/// `X-Forwarded-For`
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Proto`
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// `X-Forwarded-Host`
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What a trusted proxy says of the request that it passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// The client.
    pub client: IpAddr,
    /// The field that told it; `None`: the proxy said nothing, or nothing that can be added to.
    family: Option<Family>,
    /// How many elements from the right were believed; the last of them is the client's.
    believed: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    XForwardedFor,
    Forwarded,
}

impl Passed {
    /// Reads what `peer`, which is trusted, says.
    pub fn read(peer: IpAddr, headers: &HeaderMap, trusted: &Networks) -> Self {
        if headers.contains_key(X_FORWARDED_FOR) {
            let (client, believed) = walk(peer, hops(headers).map(address), trusted);
            let is_whole = hops(headers).skip(believed).all(is_node);
            return Self { client, family: is_whole.then_some(Family::XForwardedFor), believed };
        }
        let elements = elements(headers);
        let hops = elements.iter().rev().map(|element| element.as_ref().and_then(|element| element.node));
        let (client, believed) = walk(peer, hops, trusted);
        // To one that is malformed nothing can be added: it may leave a quote open.
        let is_whole = headers.contains_key(FORWARDED) && elements.iter().all(Option::is_some);
        Self { client, family: is_whole.then_some(Family::Forwarded), believed }
    }

    /// Whether a field of the proxy's stays: the family that was believed, and what else it says of its client. Never a twin with
    /// `_`, which the proxy may have passed on without knowing what it is.
    pub(super) fn keeps(&self, name: &str) -> bool {
        match name {
            "x-forwarded-for" => self.family == Some(Family::XForwardedFor),
            "forwarded" => self.family == Some(Family::Forwarded),
            name => name.starts_with("x-forwarded-") && !name.contains('_'),
        }
    }

    /// Sets what the gateway adds: itself as one more hop to the family that was believed, and the other family anew, so that it says
    /// the same.
    pub(super) fn set(&self, headers: &mut HeaderMap, peer: &HeaderValue, forwarded: Option<HeaderValue>, proto: &str) {
        let (proto, host) = self.scheme_and_host(headers, proto);
        match self.family {
            Some(Family::XForwardedFor) => append(headers, X_FORWARDED_FOR, peer),
            _ => set(headers, X_FORWARDED_FOR, HeaderValue::try_from(self.client.to_string())),
        }
        match (self.family, forwarded, &host) {
            (Some(Family::Forwarded), Some(hop), _) => append(headers, FORWARDED, &hop),
            (Some(Family::Forwarded), None, _) | (_, _, None) => {}
            (_, _, Some(host)) => {
                let element = element(&node(self.client), &proto, host);
                element.into_iter().for_each(|value| drop(headers.insert(FORWARDED, value)));
            }
        }
        set(headers, X_FORWARDED_PROTO, HeaderValue::try_from(proto));
        host.into_iter().for_each(|host| drop(headers.insert(X_FORWARDED_HOST, host)));
    }

    /// How and for which host the client asked: by the family that was believed, else by what the proxy says besides, else as the
    /// proxy asked.
    fn scheme_and_host(&self, headers: &HeaderMap, proto: &str) -> (String, Option<HeaderValue>) {
        let mut elements = if self.family == Some(Family::Forwarded) { elements(headers) } else { Vec::new() };
        let at = elements.len().wrapping_sub(self.believed);
        let said = if at < elements.len() { elements.swap_remove(at) } else { None }.unwrap_or_default();
        let said_proto = said.proto.filter(|proto| is_scheme(proto)).or(one(headers, &X_FORWARDED_PROTO, is_scheme));
        let said_host = said.host.filter(|host| is_host(host)).or(one(headers, &X_FORWARDED_HOST, is_host));
        let host = said_host.and_then(|host| HeaderValue::try_from(host).ok());
        (said_proto.unwrap_or(proto).to_owned(), host.or_else(|| headers.get(header::HOST).cloned()))
    }
}

fn is_scheme(text: &str) -> bool {
    ["http", "https"].iter().any(|scheme| scheme.eq_ignore_ascii_case(text))
}

fn is_host(text: &str) -> bool {
    text.parse::<Authority>().is_ok() && !text.contains('@')
}

/// The elements of `X-Forwarded-For` from the right; an empty one for what is no text.
fn hops(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(X_FORWARDED_FOR).iter().rev();
    let hops = values.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
    // An empty element of a list means nothing (RFC 9110 section 5.6.1.2).
    let hops = hops.map(<[u8]>::trim_ascii).filter(|hop| !hop.is_empty());
    hops.map(|hop| std::str::from_utf8(hop).unwrap_or_default())
}

/// The client, and how many hops lead to it.
fn walk(peer: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>, trusted: &Networks) -> (IpAddr, usize) {
    let (mut client, mut believed) = (peer, 0);
    for hop in hops {
        let Some(hop) = hop else { break };
        (client, believed) = (hop, believed + 1);
        if !trusted.contains(hop) {
            break;
        }
    }
    (client, believed)
}

/// An address as proxies write it: with or without a port, IPv6 with or without brackets. `unknown` and `_hidden` are none.
fn address(text: &str) -> Option<IpAddr> {
    // A port may be hidden as well (RFC 7239 section 6).
    let text = match text.rsplit_once(':') {
        Some((host, port)) if port.starts_with('_') => host,
        _ => text,
    };
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok();
    let address = text.parse::<IpAddr>().ok();
    let address = address.or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.or_else(|| in_brackets().map(IpAddr::V6)).map(|address| address.to_canonical())
}

/// Whether a hop is written as one: an address, or a word for one that is not told (RFC 7239 section 6).
fn is_node(text: &str) -> bool {
    let is_hidden =
        || text.starts_with('_') && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    text.eq_ignore_ascii_case("unknown") || is_hidden() || address(text).is_some()
}

/// What an element of `Forwarded` says.
#[derive(Debug, Default)]
struct Element<'a> {
    node: Option<IpAddr>,
    proto: Option<&'a str>,
    host: Option<&'a str>,
}

/// All elements of `Forwarded`; nothing in the place of a value that is malformed: it may have hidden anything.
fn elements(headers: &HeaderMap) -> Vec<Option<Element<'_>>> {
    let mut all = Vec::new();
    for value in headers.get_all(FORWARDED) {
        match value.to_str().ok().and_then(elements_of) {
            Some(elements) => all.extend(elements.into_iter().map(Some)),
            None => all.push(None),
        }
    }
    all
}

fn elements_of(value: &str) -> Option<Vec<Element<'_>>> {
    let elements = split(value, ',')?.into_iter().map(str::trim).filter(|element| !element.is_empty());
    elements.map(Element::parse).collect()
}

impl<'a> Element<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let [mut node, mut proto, mut host] = [None; 3];
        for pair in split(text, ';')?.into_iter().map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=')?;
            let place = match name.to_ascii_lowercase().as_str() {
                "for" => &mut node,
                "proto" => &mut proto,
                "host" => &mut host,
                _ => continue,
            };
            let bare = value.strip_prefix('"').map_or(Some(value), |value| value.strip_suffix('"'))?;
            if place.replace(bare).is_some() {
                return None;
            }
        }
        Some(Self { node: node.and_then(address), proto, host })
    }
}

/// Splits outside of quoted strings; nothing when one of those does not end.
fn split(text: &str, at: char) -> Option<Vec<&str>> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = text.split(|c| {
        if escaped {
            escaped = false;
        } else {
            match c {
                '"' => quoted = !quoted,
                '\\' if quoted => escaped = true,
                _ => return c == at && !quoted,
            }
        }
        false
    });
    let parts = parts.collect();
    if quoted { None } else { Some(parts) }
}

/// An address as a node of `Forwarded` (RFC 7239 section 6).
pub fn node(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("\"[{v6}]\""),
    }
}

/// The scheme of a connection, as both families name it.
pub const fn scheme(secure: bool) -> &'static str {
    if secure { "https" } else { "http" }
}

/// An element of `Forwarded` (RFC 7239 section 4): who asked, how, for which host.
pub fn element(node: &str, proto: &str, host: &HeaderValue) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("for={node};proto={proto};host=\"{}\"", host.to_str().ok()?)).ok()
}

/// Joins what stands there and one more into one field: not every backend reads a second one.
fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    let mut joined = Vec::new();
    for value in headers.get_all(&name).iter().chain([value]) {
        if !joined.is_empty() {
            joined.extend(b", ");
        }
        joined.extend(value.as_bytes());
    }
    set(headers, name, HeaderValue::try_from(joined));
}

fn set<E>(headers: &mut HeaderMap, name: HeaderName, value: Result<HeaderValue, E>) {
    value.into_iter().for_each(|value| drop(headers.insert(&name, value)));
}

/// The value of a field that came once and is such a one.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName, is_good: impl Fn(&str) -> bool) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().and_then(|value| value.to_str().ok()).filter(|value| is_good(value));
    value.filter(|_| values.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::network::Network;
    use proptest::prelude::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn trusted() -> Networks {
        ["10.0.0.0/8", "2001:db8:aaaa::/48"].iter().map(|text| Network::parse(text).unwrap()).collect()
    }

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap())).collect()
    }

    fn client(fields: &[(HeaderName, &str)]) -> String {
        Passed::read(PEER, &headers(fields), &trusted()).client.to_string()
    }

    #[test]
    fn x_forwarded_for_is_walked_from_the_right_to_the_first_hop_that_is_not_trusted() {
        for (value, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1, 10.0.0.2", "192.0.2.1"),
            ("1.1.1.1, 192.0.2.1,10.0.0.2 , 10.0.0.3", "192.0.2.1"),
            ("192.0.2.1:4711", "192.0.2.1"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("[2001:db8::7]:4711, 2001:db8:aaaa::1", "2001:db8::7"),
            ("::ffff:192.0.2.1, ::ffff:10.0.0.9", "192.0.2.1"),
            // All of them trusted: the farthest.
            ("10.0.0.7, 10.0.0.2", "10.0.0.7"),
            ("192.0.2.1,, ,", "192.0.2.1"),
            // What cannot be read is passed on by the hop before it, and nothing to its left counts.
            ("192.0.2.1, unknown", "10.0.0.1"),
            ("192.0.2.1, _hidden, 10.0.0.2", "10.0.0.2"),
            ("192.0.2.1, 10.0.0.999, 10.0.0.2", "10.0.0.2"),
            ("192.0.2.1; 10.0.0.2", "10.0.0.1"),
            ("host.example", "10.0.0.1"),
            ("192.0.2.01", "10.0.0.1"),
            ("\"192.0.2.1\"", "10.0.0.1"),
            ("192.0.2.1\u{e9}", "10.0.0.1"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(client(&[(X_FORWARDED_FOR, value)]), expected, "{value}");
        }
        let lines = [(X_FORWARDED_FOR, "1.1.1.1"), (X_FORWARDED_FOR, "192.0.2.1"), (X_FORWARDED_FOR, "10.0.0.2")];
        assert_eq!(client(&lines), "192.0.2.1", "several fields are one list");
        assert_eq!(client(&[]), "10.0.0.1");
    }

    #[test]
    fn forwarded_is_walked_in_the_same_way() {
        for (value, expected) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("For=\"192.0.2.1:4711\";proto=https;by=10.0.0.1", "192.0.2.1"),
            ("for=\"[2001:db8::7]\", for=10.0.0.2", "2001:db8::7"),
            ("for=\"[2001:db8::7]:_port\";host=\"a,b;c\\\"d\"", "2001:db8::7"),
            ("for=1.1.1.1, proto=http;for=192.0.2.1 , by=x;for=10.0.0.2,", "192.0.2.1"),
            ("for=192.0.2.1, for=unknown", "10.0.0.1"),
            ("for=192.0.2.1, for=\"_gazonk\", for=10.0.0.2", "10.0.0.2"),
            // An element that does not say whom it is for.
            ("for=192.0.2.1, proto=http", "10.0.0.1"),
            // Malformed as a whole: a quote that a client left open may have swallowed what the proxy wrote.
            ("for=192.0.2.1;host=\"x, for=192.0.2.2", "10.0.0.1"),
            ("for=192.0.2.1;for=192.0.2.2", "10.0.0.1"),
            ("192.0.2.1", "10.0.0.1"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(client(&[(FORWARDED, value)]), expected, "{value}");
        }
        assert_eq!(client(&[(FORWARDED, "for=\"192.0.2.1"), (FORWARDED, "for=10.0.0.2")]), "10.0.0.2");
        assert_eq!(client(&[(FORWARDED, "for=192.0.2.9"), (X_FORWARDED_FOR, "192.0.2.1")]), "192.0.2.1");
    }

    fn passed_on(fields: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = headers(fields);
        headers.insert(header::HOST, HeaderValue::from_static("h"));
        let passed = Passed::read(PEER, &headers, &trusted());
        let gone: Vec<HeaderName> =
            headers.keys().filter(|name| *name != header::HOST && !passed.keeps(name.as_str())).cloned().collect();
        gone.iter().for_each(|name| drop(headers.remove(name)));
        let hop = element(&node(PEER), "http", &HeaderValue::from_static("h"));
        passed.set(&mut headers, &HeaderValue::from_static("10.0.0.1"), hop, "http");
        headers
    }

    #[test]
    fn the_family_that_was_believed_gets_one_more_hop_and_the_other_is_set_anew() {
        let fields = passed_on(&[
            (X_FORWARDED_FOR, "192.0.2.1"),
            (X_FORWARDED_FOR, "10.0.0.2"),
            (FORWARDED, "for=forged"),
            (X_FORWARDED_PROTO, "https"),
            (X_FORWARDED_HOST, "api.example:8443"),
            (HeaderName::from_static("x-forwarded-port"), "8443"),
            (HeaderName::from_static("x_forwarded_port"), "forged"),
        ]);
        assert_eq!(fields[X_FORWARDED_FOR], "192.0.2.1, 10.0.0.2, 10.0.0.1");
        assert_eq!(fields.get_all(X_FORWARDED_FOR).iter().count(), 1);
        assert_eq!(fields[FORWARDED], "for=192.0.2.1;proto=https;host=\"api.example:8443\"");
        assert_eq!(
            (&fields[X_FORWARDED_PROTO], &fields[X_FORWARDED_HOST]),
            (&"https".parse().unwrap(), &"api.example:8443".parse().unwrap())
        );
        assert_eq!(fields["x-forwarded-port"], "8443");
        assert!(!format!("{fields:?}").contains("forged"));

        let fields = passed_on(&[(FORWARDED, "for=\"[2001:db8::7]\";proto=https")]);
        assert_eq!(fields[FORWARDED], "for=\"[2001:db8::7]\";proto=https, for=10.0.0.1;proto=http;host=\"h\"");
        assert_eq!(fields[X_FORWARDED_FOR], "2001:db8::7");
        let fields = passed_on(&[]);
        assert_eq!(
            (&fields[X_FORWARDED_FOR], &fields[FORWARDED]),
            (&"10.0.0.1".parse().unwrap(), &"for=10.0.0.1;proto=http;host=\"h\"".parse().unwrap())
        );
    }

    #[test]
    fn both_families_say_the_same_of_scheme_and_host() {
        const ELEMENT: &str = "for=192.0.2.1;proto=https;host=\"api.example\"";
        let said = |fields: &[(HeaderName, &str)]| {
            let fields = passed_on(fields);
            let text = |name: HeaderName| fields[name].to_str().unwrap().to_owned();
            (text(X_FORWARDED_PROTO), text(X_FORWARDED_HOST), text(FORWARDED))
        };
        let appended = |forwarded: &str| format!("{forwarded}, for=10.0.0.1;proto=http;host=\"h\"");
        for (forwarded, proto, host) in [
            (ELEMENT, "https", "api.example"),
            // The client's own element, and none that another hop or the client has written.
            ("for=1.1.1.1;proto=http;host=x, for=192.0.2.1;proto=https, for=10.0.0.2;proto=http;host=y", "https", "h"),
            ("for=192.0.2.1;PROTO=\"HTTPS\";host=a:8443", "HTTPS", "a:8443"),
            ("for=192.0.2.1;proto=ftp;host=\"a\\\"b\"", "http", "h"),
            ("proto=https;host=a", "http", "h"),
        ] {
            let found = said(&[(FORWARDED, forwarded)]);
            assert_eq!(found, (proto.to_owned(), host.to_owned(), appended(forwarded)), "{forwarded}");
        }
        // What was believed goes before what may be the client's own.
        let twin = [(FORWARDED, ELEMENT), (X_FORWARDED_PROTO, "http"), (X_FORWARDED_HOST, "forged")];
        assert_eq!(said(&twin), ("https".to_owned(), "api.example".to_owned(), appended(ELEMENT)));
        let half = [(FORWARDED, "for=192.0.2.1"), (X_FORWARDED_PROTO, "https")];
        assert_eq!(said(&half).0, "https");
        let half = [(X_FORWARDED_FOR, "192.0.2.1"), (X_FORWARDED_PROTO, "https"), (X_FORWARDED_HOST, "a, b")];
        assert_eq!(said(&half).2, "for=192.0.2.1;proto=https;host=\"h\"");
    }

    #[test]
    fn to_a_field_that_is_malformed_nothing_is_added() {
        for open in ["for=\"192.0.2.1", "for=192.0.2.1;for=192.0.2.2", "192.0.2.1"] {
            assert_eq!(passed_on(&[(FORWARDED, open)])[FORWARDED], "for=10.0.0.1;proto=http;host=\"h\"", "{open}");
        }
        let lines = [(FORWARDED, "for=\"192.0.2.1"), (FORWARDED, "for=192.0.2.7, for=10.0.0.2")];
        assert_eq!(passed_on(&lines)[FORWARDED], "for=192.0.2.7;proto=http;host=\"h\"");

        for (bad, client) in [
            ("256.1.1.1", "10.0.0.1"),
            ("1.2.3.4\"", "10.0.0.1"),
            ("nonsense, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
            ("192.0.2.9 192.0.2.8, 192.0.2.1", "192.0.2.1"),
            ("_a b, 192.0.2.1", "192.0.2.1"),
        ] {
            let fields = passed_on(&[(X_FORWARDED_FOR, bad)]);
            assert_eq!(fields[X_FORWARDED_FOR], client, "{bad}");
            assert_eq!(fields[FORWARDED], format!("for={client};proto=http;host=\"h\""), "{bad}");
        }
        for good in ["unknown", "_hidden-1, 192.0.2.1:_p", "Unknown, 2001:db8::7, [2001:db8::7]:80, 10.0.0.2"] {
            assert_eq!(passed_on(&[(X_FORWARDED_FOR, good)])[X_FORWARDED_FOR], format!("{good}, 10.0.0.1"));
        }
    }

    #[test]
    fn what_a_proxy_says_of_scheme_and_host_is_kept_when_it_makes_sense() {
        for bad in ["https, http", "ftp", "", "https ; x"] {
            assert_eq!(passed_on(&[(X_FORWARDED_PROTO, bad)])[X_FORWARDED_PROTO], "http", "{bad}");
        }
        for bad in ["a, b", "user@h", "", "h/x"] {
            assert_eq!(passed_on(&[(X_FORWARDED_HOST, bad)])[X_FORWARDED_HOST], "h", "{bad}");
        }
        let twice = [(X_FORWARDED_PROTO, "https"), (X_FORWARDED_PROTO, "https")];
        assert_eq!(passed_on(&twice).get_all(X_FORWARDED_PROTO).iter().collect::<Vec<_>>(), ["http"]);
    }

    proptest! {
        #[test]
        fn whatever_is_written_the_client_is_the_peer_or_an_address_that_stands_there(
            value in "[0-9a-f.:,; \"\\[\\]_=\\\\unkwfor]{0,60}",
            forwarded in any::<bool>(),
        ) {
            let name = if forwarded { FORWARDED } else { X_FORWARDED_FOR };
            let client = client(&[(name, &value)]).parse::<IpAddr>().unwrap();
            let stands_there = || value.split([',', ';', '"', '=', ' ', '[', ']']).any(|word| address(word) == Some(client));
            prop_assert!(client == PEER || stands_there(), "{} in {:?}", client, value);
        }

        #[test]
        fn what_a_client_writes_to_the_left_of_an_honest_proxy_changes_nothing(left in "[ -~]{0,40}") {
            let honest = format!("{left}, 192.0.2.1, 10.0.0.2");
            prop_assert_eq!(client(&[(X_FORWARDED_FOR, &honest)]), "192.0.2.1");
        }
    }
}
