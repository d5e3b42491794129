//! Credentials: no value panics, and what is looked up is the hash of exactly one token, in a shape that a key has.

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use seeme_gateway::policy::credential::{Credential, KeyShape, Secret};

use super::mutation::run;

const WORDS: [&[u8]; 10] =
    [b"Bearer ", b"bearer ", b"sm_live_", b"sm_test_", b" ", b",", b"\t", b"\n", b"0123456789abcdefghij", b"Basic "];

#[test]
fn a_credential_is_one_token_or_none() {
    run("credential", &WORDS, |input, _| {
        // Each line is one field.
        let mut headers = HeaderMap::new();
        for line in input.split(|byte| *byte == b'\n') {
            if let Ok(value) = HeaderValue::from_bytes(line) {
                headers.append(AUTHORIZATION, value);
            }
        }
        for require_checksum in [true, false] {
            let found = Credential::extract(&headers, KeyShape { require_checksum });
            let fields = headers.get_all(AUTHORIZATION).iter().count();
            assert!(fields < 2 || found.is_err(), "{fields} fields: {found:?}");
            let Ok(Credential::Key(hash)) = found else { continue };
            let value = headers[AUTHORIZATION].to_str().unwrap();
            let token = value.split_ascii_whitespace().nth(1).unwrap();
            assert_eq!(Secret::from_text(token).hash(), hash, "{value:?}");
            assert!(token.starts_with("sm_live_") || token.starts_with("sm_test_"), "{value:?}");
            assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{value:?}");
            assert_eq!(value.split_ascii_whitespace().count(), 2, "{value:?}");
        }
    });
}
