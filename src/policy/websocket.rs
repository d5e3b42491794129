//! The opening handshake of a WebSocket (RFC 6455 section 4): which request asks for one, and which answer agrees to it.
//!
//! WebSocket is the only protocol that a connection may be switched to. `h2c` would carry requests that nobody authorizes, and of
//! any other protocol the gateway could not tell whether the backend has really agreed: those requests go on as if they had
//! not asked (RFC 9110 section 7.8 lets a server ignore `Upgrade`). After a 101 that was not agreed upon, what follows would be
//! read as frames on one side and as requests on the other; the proof in `Sec-WebSocket-Accept` excludes that.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, Method, Version};
use sha1_smol::Sha1;

use super::rejection::Rejection;

/// What every server appends to the client's key (RFC 6455 section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A request for a WebSocket. Boxed: every request has room for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake(Box<Asked>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    key: HeaderValue,
    /// What was offered, as it came.
    protocols: Vec<HeaderValue>,
    extensions: Vec<HeaderValue>,
}

impl Handshake {
    /// Whether this request asks for a WebSocket. One that does and is not well-formed is refused.
    pub fn requested(head: &Parts) -> Result<Option<Self>, Rejection> {
        // All that the usual request pays.
        if !head.headers.contains_key(UPGRADE) {
            return Ok(None);
        }
        let asks = has_token(&head.headers, &UPGRADE, "websocket") && has_token(&head.headers, &CONNECTION, "upgrade");
        if !asks || head.method != Method::GET || head.version != Version::HTTP_11 || has_body(&head.headers) {
            return Ok(None);
        }
        // Neither is there: whoever wrote this knows no more of WebSockets than the name.
        if !head.headers.contains_key(SEC_WEBSOCKET_KEY) && !head.headers.contains_key(SEC_WEBSOCKET_VERSION) {
            return Ok(None);
        }
        let mut versions = head.headers.get_all(SEC_WEBSOCKET_VERSION).iter();
        let version = versions.next();
        if versions.next().is_some() {
            return Err(Rejection::bad_request("More than one Sec-WebSocket-Version"));
        }
        if version.is_none_or(|version| version != "13") {
            return Err(Rejection::WebSocketVersion);
        }
        let offered = |name| head.headers.get_all(name).iter().cloned().collect();
        match sole(&head.headers, &SEC_WEBSOCKET_KEY) {
            Some(key) if is_key(key.as_bytes()) => Ok(Some(Self(Box::new(Asked {
                key: key.clone(),
                protocols: offered(SEC_WEBSOCKET_PROTOCOL),
                extensions: offered(SEC_WEBSOCKET_EXTENSIONS),
            })))),
            _ => Err(Rejection::bad_request("Malformed Sec-WebSocket-Key")),
        }
    }

    /// Asks the upstream for the same; its hop-by-hop fields are gone already.
    pub fn ask(&self, headers: &mut HeaderMap) {
        headers.insert(SEC_WEBSOCKET_KEY, self.0.key.clone());
        // There `Connection` would have to name it too, and not every backend reads a list.
        headers.remove(TE);
        set_upgrade(headers);
    }

    /// Whether a 101 with these fields agrees to what was asked, and to nothing else.
    pub fn is_agreed_by(&self, headers: &HeaderMap) -> bool {
        sole(headers, &UPGRADE).is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
            && has_token(headers, &CONNECTION, "upgrade")
            && sole(headers, &SEC_WEBSOCKET_ACCEPT).is_some_and(|proof| *proof == accept(self.0.key.as_bytes()))
            && !headers.contains_key(TRANSFER_ENCODING)
            && !headers.contains_key(CONTENT_LENGTH)
            && self.offered_protocol(headers)
            && self.offered_extensions(headers)
    }

    /// Whether a 101 chooses no subprotocol, or one of those that were offered. Letters' case counts.
    fn offered_protocol(&self, headers: &HeaderMap) -> bool {
        let is_offered = |chosen: &HeaderValue| tokens(&self.0.protocols).any(|offered| offered == chosen);
        !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) || sole(headers, &SEC_WEBSOCKET_PROTOCOL).is_some_and(is_offered)
    }

    /// Whether a 101 chooses only extensions that were offered. With which parameters is between the two that speak them.
    fn offered_extensions(&self, headers: &HeaderMap) -> bool {
        let name = |extension: &'_ str| extension.split(';').next().unwrap_or_default().trim_end().to_ascii_lowercase();
        let is_offered = |chosen: &str| tokens(&self.0.extensions).any(|offered| name(offered) == name(chosen));
        let all = |chosen: &HeaderValue| chosen.to_str().is_ok() && tokens([chosen]).all(is_offered);
        !headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) || sole(headers, &SEC_WEBSOCKET_EXTENSIONS).is_some_and(all)
    }
}

/// `Connection` and `Upgrade`, as both the request and the 101 carry them.
pub fn set_upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// `Sec-WebSocket-Accept` for this key.
pub fn accept(key: &[u8]) -> String {
    let mut sha1 = Sha1::from(key);
    sha1.update(GUID);
    STANDARD.encode(sha1.digest().bytes())
}

/// Sixteen octets in base64.
fn is_key(key: &[u8]) -> bool {
    key.strip_suffix(b"==").is_some_and(|digits| {
        digits.len() == 22 && digits.iter().all(|d| d.is_ascii_alphanumeric() || matches!(d, b'+' | b'/'))
    })
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING) || headers.get_all(CONTENT_LENGTH).iter().any(|length| length != "0")
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers.get_all(name)).any(|listed| listed.eq_ignore_ascii_case(token))
}

/// What the values of a field list.
fn tokens<'v>(values: impl IntoIterator<Item = &'v HeaderValue>) -> impl Iterator<Item = &'v str> {
    let texts = values.into_iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).map(str::trim).filter(|listed| !listed.is_empty())
}

/// The value of a field that came exactly once.
fn sole<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn request(fields: &[(&str, &str)]) -> Result<Option<Handshake>, Rejection> {
        asked("GET", Version::HTTP_11, fields)
    }

    fn asked(method: &str, version: Version, fields: &[(&str, &str)]) -> Result<Option<Handshake>, Rejection> {
        let mut request = http::Request::builder().method(method).version(version);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        Handshake::requested(&request.body(()).unwrap().into_parts().0)
    }

    fn good() -> Vec<(&'static str, &'static str)> {
        vec![
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-key", KEY),
            ("sec-websocket-version", "13"),
        ]
    }

    fn with(name: &'static str, value: &'static str) -> Vec<(&'static str, &'static str)> {
        good().into_iter().map(|(n, v)| (n, if n == name { value } else { v })).collect()
    }

    #[test]
    fn the_proof_is_the_one_of_the_rfc() {
        assert_eq!(accept(KEY.as_bytes()), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn what_does_not_ask_for_a_websocket_by_every_rule_goes_on_as_if_it_had_not_asked() {
        assert!(request(&good()).unwrap().is_some());
        for fields in [
            with("upgrade", "h2c"),
            with("upgrade", "websocket/13"),
            with("upgrade", "tls/1.0, foo"),
            with("connection", "keep-alive"),
            with("connection", "upgraded"),
            good()[..2].to_vec(),
            [good(), vec![("content-length", "5")]].concat(),
            [good(), vec![("transfer-encoding", "chunked")]].concat(),
            vec![],
        ] {
            assert_eq!(request(&fields), Ok(None), "{fields:?}");
        }
        assert_eq!(asked("POST", Version::HTTP_11, &good()), Ok(None));
        assert_eq!(asked("GET", Version::HTTP_10, &good()), Ok(None));
        assert!(request(&[good(), vec![("content-length", "0")]].concat()).unwrap().is_some());
        assert!(request(&with("upgrade", "foo, websocket")).unwrap().is_some());
    }

    #[test]
    fn a_malformed_handshake_is_refused() {
        for key in ["", "AAAA", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZQ=A", "dGhl-HNhbXBsZSBub25jZQ=="] {
            assert_eq!(request(&with("sec-websocket-key", key)).unwrap_err().problem().status, 400, "{key}");
        }
        let twice = [good(), vec![("sec-websocket-key", KEY)]].concat();
        assert_eq!(request(&twice).unwrap_err().problem().status, 400);
        let twice = [good(), vec![("sec-websocket-version", "13")]].concat();
        let problem = request(&twice).unwrap_err().problem();
        assert_eq!((problem.status, &*problem.message), (400, "More than one Sec-WebSocket-Version"));
        for version in ["8", "14", "1777", ""] {
            assert_eq!(request(&with("sec-websocket-version", version)), Err(Rejection::WebSocketVersion), "{version}");
        }
        assert_eq!(request(&good()[..3]), Err(Rejection::WebSocketVersion));
    }

    #[test]
    fn only_the_answer_to_this_very_request_is_an_agreement() {
        let handshake = request(&good()).unwrap().unwrap();
        let answer = |fields: &[(&str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
            }
            handshake.is_agreed_by(&headers)
        };
        let proof = ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let (upgrade, connection) = (("upgrade", "websocket"), ("connection", "upgrade"));
        assert!(answer(&[upgrade, connection, proof]));
        assert!(!answer(&[connection, proof]), "no protocol");
        assert!(!answer(&[("upgrade", "h2c"), connection, proof]), "another protocol");
        assert!(!answer(&[("upgrade", "websocket, h2c"), connection, proof]), "two protocols");
        assert!(!answer(&[upgrade, proof]), "no Connection");
        assert!(!answer(&[upgrade, connection]), "no proof");
        assert!(
            !answer(&[upgrade, connection, ("sec-websocket-accept", "AAAAAAAAAAAAAAAAAAAAAAAAAAA=")]),
            "a wrong proof"
        );
        assert!(!answer(&[upgrade, connection, proof, proof]), "two proofs");
        assert!(!answer(&[upgrade, connection, proof, ("content-length", "5")]), "a body");
    }

    #[test]
    fn an_agreement_chooses_only_what_was_offered() {
        let is_agreed = |offered: &[(&str, &str)], chosen: &[(&'static str, &str)]| {
            let handshake = request(&[&good(), offered].concat()).unwrap().unwrap();
            let mut headers = HeaderMap::new();
            set_upgrade(&mut headers);
            headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::try_from(accept(KEY.as_bytes())).unwrap());
            for (name, value) in chosen {
                headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            handshake.is_agreed_by(&headers)
        };
        let (protocol, extensions) = ("sec-websocket-protocol", "sec-websocket-extensions");
        let offered = &[(protocol, "chat, b"), (protocol, "c"), (extensions, "x-a; p=1, x-b"), (extensions, "x-c")];
        for chosen in [
            &[][..],
            &[(protocol, "chat")],
            &[(protocol, "c")],
            &[(extensions, "x-a; q=\"2\"; r, X-C")],
            &[(extensions, "")],
            &[(protocol, "b"), (extensions, "x-b ;p")],
        ] {
            assert!(is_agreed(offered, chosen), "{chosen:?}");
        }
        for chosen in [
            &[(protocol, "zzz")][..],
            &[(protocol, "Chat")],
            &[(protocol, "chat, b")],
            &[(protocol, "")],
            &[(protocol, "chat"), (protocol, "b")],
            &[(protocol, "chat"), (protocol, "chat")],
            &[(extensions, "permessage-deflate")],
            &[(extensions, "x-a, x-d; x-b")],
            &[(extensions, "x-a"), (extensions, "x-b")],
            &[(extensions, "x-a, é")],
        ] {
            assert!(!is_agreed(offered, chosen), "{chosen:?}");
        }
        assert!(!is_agreed(&[], &[(protocol, "chat")]));
        assert!(!is_agreed(&[], &[(extensions, "permessage-deflate")]));
    }
}
