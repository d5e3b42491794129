//! Who the client is when a proxy that is trusted passes its request on: `X-Forwarded-For` and `Forwarded` (RFC 7239).
//!
//! Both are read from the right, where the nearest proxy writes: over hops that are trusted, to the first that is not, which is the
//! client. What nobody trusted has written is never believed, and what cannot be read ends the walk at the hop that passed it on.
//!
//! Where `X-Forwarded-For` came, `Forwarded` is ignored: nearly every proxy writes the former, and most of those pass the
//! client's own copy of the latter on unread.

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
    /// The field that told it; `None`: the proxy said nothing.
    family: Option<Family>,
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
            let values = headers.get_all(X_FORWARDED_FOR).iter().rev();
            let hops = values.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
            // An empty element of a list means nothing (RFC 9110 section 5.6.1.2).
            let hops = hops.map(<[u8]>::trim_ascii).filter(|hop| !hop.is_empty());
            let hops = hops.map(|hop| std::str::from_utf8(hop).ok().and_then(address));
            return Self { client: walk(peer, hops, trusted), family: Some(Family::XForwardedFor) };
        }
        let mut hops = Vec::new();
        for value in headers.get_all(FORWARDED) {
            // One that is malformed may have hidden anything: nothing to its left is believed.
            hops.extend(value.to_str().ok().and_then(nodes).unwrap_or_else(|| vec![None]));
        }
        let family = headers.contains_key(FORWARDED).then_some(Family::Forwarded);
        Self { client: walk(peer, hops.into_iter().rev(), trusted), family }
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

    /// Sets what the gateway adds: itself as one more hop to the family that was believed, and the other family anew.
    pub(super) fn set(&self, headers: &mut HeaderMap, peer: &HeaderValue, forwarded: Option<HeaderValue>, proto: &str) {
        let host = headers.get(header::HOST).cloned();
        match self.family {
            Some(Family::XForwardedFor) => append(headers, X_FORWARDED_FOR, peer),
            _ => set(headers, X_FORWARDED_FOR, HeaderValue::try_from(self.client.to_string())),
        }
        match (self.family, forwarded, &host) {
            (Some(Family::Forwarded), Some(hop), _) => append(headers, FORWARDED, &hop),
            (Some(Family::Forwarded), None, _) | (_, _, None) => {}
            (_, _, Some(host)) => {
                let element = element(&node(self.client), proto, host);
                element.into_iter().for_each(|value| drop(headers.insert(FORWARDED, value)));
            }
        }
        if !one(headers, &X_FORWARDED_PROTO, |value| ["http", "https"].iter().any(|p| p.eq_ignore_ascii_case(value))) {
            set(headers, X_FORWARDED_PROTO, HeaderValue::try_from(proto));
        }
        if let Some(host) = host
            && !one(headers, &X_FORWARDED_HOST, |value| value.parse::<Authority>().is_ok() && !value.contains('@'))
        {
            headers.insert(X_FORWARDED_HOST, host);
        }
    }
}

fn walk(peer: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>, trusted: &Networks) -> IpAddr {
    let mut client = peer;
    for hop in hops {
        let Some(hop) = hop else { break };
        client = hop;
        if !trusted.contains(hop) {
            break;
        }
    }
    client
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

/// The `for` of each element of a `Forwarded` value; nothing when the value is malformed.
fn nodes(value: &str) -> Option<Vec<Option<IpAddr>>> {
    let elements = split(value, ',')?.into_iter().map(str::trim).filter(|element| !element.is_empty());
    elements.map(node_of).collect()
}

fn node_of(element: &str) -> Option<Option<IpAddr>> {
    let mut found = None;
    for pair in split(element, ';')?.into_iter().map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=')?;
        if !name.eq_ignore_ascii_case("for") {
            continue;
        }
        if found.is_some() {
            return None;
        }
        let bare = value.strip_prefix('"').map_or(Some(value), |value| value.strip_suffix('"'))?;
        found = Some(address(bare));
    }
    Some(found.flatten())
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

/// Whether the field came once and with such a value.
fn one(headers: &HeaderMap, name: &HeaderName, is_good: impl Fn(&str) -> bool) -> bool {
    let mut values = headers.get_all(name).iter();
    let value = values.next().and_then(|value| value.to_str().ok());
    value.is_some_and(is_good) && values.next().is_none()
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
        assert_eq!(fields[FORWARDED], "for=192.0.2.1;proto=http;host=\"h\"");
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
