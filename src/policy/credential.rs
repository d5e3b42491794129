//! The secret of a key: its shape, its checksum, its hash, and how a request presents it.
//!
//! A [`Secret`] never prints itself and is never stored; [`KeyHash`] is what is stored and looked up. Randomness comes in
//! as an argument, so minting is pure too.

use std::fmt;

use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::key::Environment;
use super::rejection::Rejection;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const RANDOM_LEN: usize = 32;
const CHECKSUM_LEN: usize = 6;
const PREFIX_LEN: usize = 8;
const TOTAL_LEN: usize = PREFIX_LEN + RANDOM_LEN + CHECKSUM_LEN;
/// How much of a secret may be shown: enough to recognise it, too little to use it.
const SHOWN_LEN: usize = 12;

/// A key in clear text. Shows only its first 12 characters, whatever formats it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// BLAKE3 of a secret: all that is ever kept of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash(pub [u8; 32]);

/// What a request presents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nothing: fine on a public route, 401 elsewhere.
    Absent,
    /// A well-formed key, worth a look-up.
    Key(KeyHash),
    /// Anything else; refused without a look-up.
    Other,
}

/// Which keys are worth a look-up (`keys.require_checksum`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyShape {
    /// Only keys with a valid checksum; else also `sm_(live|test)_[A-Za-z0-9]{12,64}`.
    pub require_checksum: bool,
}

impl Secret {
    /// Makes a secret from 32 random base62 digits' worth of `random` bytes, by rejection so that each digit is uniform.
    /// Returns `None` when `random` runs out (64 bytes suffice but for one time in 2^40); call again with fresh bytes.
    pub fn mint(environment: Environment, random: &[u8]) -> Option<Self> {
        let mut text = format!("sm_{}_", environment.as_str());
        let digits = random.iter().filter(|&&b| b < 248).map(|&b| BASE62[usize::from(b) % 62] as char);
        text.extend(digits.take(RANDOM_LEN));
        if text.len() != PREFIX_LEN + RANDOM_LEN {
            return None;
        }
        let checksum = checksum(text.as_bytes());
        text.extend(checksum.iter().map(|&b| b as char));
        Some(Self(text))
    }

    /// Takes clear text as it is, for hashing what somebody presents.
    pub fn from_text(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The clear text. Called where a new key is handed out, once, and nowhere else.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The hash under which the store knows it.
    pub fn hash(&self) -> KeyHash {
        KeyHash(*blake3::hash(self.0.as_bytes()).as_bytes())
    }

    /// The first 12 characters, as shown to people.
    pub fn prefix(&self) -> &str {
        self.0.get(..SHOWN_LEN).unwrap_or("")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({}…)", self.prefix())
    }
}

impl KeyHash {
    /// Lower-case hexadecimal.
    pub fn to_hex(self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({}…)", &self.to_hex()[..8])
    }
}

impl KeyShape {
    /// Whether `token` could be a key at all; most mistyped ones end here, without a look-up.
    pub fn accepts(self, token: &[u8]) -> bool {
        let Some(body) = token.strip_prefix(b"sm_live_").or_else(|| token.strip_prefix(b"sm_test_")) else {
            return false;
        };
        if !body.iter().all(u8::is_ascii_alphanumeric) {
            return false;
        }
        let checked = token.len() == TOTAL_LEN
            && checksum(&token[..TOTAL_LEN - CHECKSUM_LEN]) == token[TOTAL_LEN - CHECKSUM_LEN..];
        checked || (!self.require_checksum && (12..=64).contains(&body.len()))
    }
}

impl Credential {
    /// Reads `Authorization`. Never looks at the query (RFC 6750 section 2.3 is a SHOULD NOT).
    ///
    /// Two credentials are ambiguous and refused: which of them did the next hop check?
    pub fn extract(headers: &HeaderMap, shape: KeyShape) -> Result<Self, Rejection> {
        let mut fields = headers.get_all(AUTHORIZATION).iter();
        let Some(value) = fields.next() else { return Ok(Self::Absent) };
        if fields.next().is_some() {
            return Err(Rejection::bad_request("More than one Authorization field"));
        }
        // Another scheme is no credential at all to a bearer-only service (RFC 6750 section 3.1).
        let Some(token) = bearer_token(value.as_bytes()) else { return Ok(Self::Absent) };
        if shape.accepts(token) {
            return Ok(Self::Key(KeyHash(*blake3::hash(token).as_bytes())));
        }
        if token.contains(&b',') || token.contains(&b' ') {
            return Err(Rejection::bad_request("More than one credential in Authorization"));
        }
        Ok(Self::Other)
    }
}

/// Whether an `Authorization` value carries something that looks like a key of ours, whole or mistyped. Such a value is
/// never passed to an upstream of a public route.
pub fn looks_like_key(value: &[u8]) -> bool {
    value.windows(PREFIX_LEN).any(|w| w.eq_ignore_ascii_case(b"sm_live_") || w.eq_ignore_ascii_case(b"sm_test_"))
}

/// Whether a text contains something that may be a whole key, and so must not be stored: `sm_live_` or `sm_test_` with at
/// least the 12 characters of the shortest key. A prefix as shown to people is less.
pub fn holds_secret(text: &str) -> bool {
    const SHORTEST: usize = 12;
    text.as_bytes().windows(PREFIX_LEN + SHORTEST).any(|window| {
        let (prefix, rest) = window.split_at(PREFIX_LEN);
        looks_like_key(prefix) && rest.iter().all(u8::is_ascii_alphanumeric)
    })
}

/// The token of a `Bearer` credential; the scheme is compared without case (RFC 9110 section 11.1).
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"bearer") || rest.first() != Some(&b' ') {
        return None;
    }
    Some(rest.trim_ascii())
}

/// Six base62 digits of the CRC32 of all before, most significant first.
fn checksum(text: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut rest = crc32fast::hash(text);
    let mut digits = [b'0'; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const STRICT: KeyShape = KeyShape { require_checksum: true };

    fn secret() -> Secret {
        Secret::mint(Environment::Live, &(0..64).map(|i| i * 3).collect::<Vec<u8>>()).unwrap()
    }

    fn extract(values: &[&str]) -> Result<Credential, Rejection> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Credential::extract(&headers, STRICT)
    }

    #[test]
    fn a_minted_key_is_accepted_and_any_single_changed_character_is_not() {
        let text = secret().reveal().to_owned();
        assert_eq!(text.len(), 46);
        assert!(STRICT.accepts(text.as_bytes()));
        for i in 0..text.len() {
            for replacement in [b'0', b'Z', b'q'] {
                let mut bytes = text.clone().into_bytes();
                if bytes[i] != replacement {
                    bytes[i] = replacement;
                    assert!(!STRICT.accepts(&bytes), "position {i}");
                }
            }
        }
    }

    #[test]
    fn without_the_checksum_rule_older_keys_are_worth_a_look_up() {
        let lax = KeyShape { require_checksum: false };
        assert!(lax.accepts(b"sm_live_abcdefghijkl"));
        assert!(!STRICT.accepts(b"sm_live_abcdefghijkl"));
        assert!(
            !lax.accepts(b"sm_live_abcdefghijk")
                && !lax.accepts(b"sm_prod_abcdefghijkl")
                && !lax.accepts(b"sm_live_abc defghijkl")
        );
    }

    #[test]
    fn the_secret_never_shows_more_than_its_prefix() {
        let shown = format!("{:?} {:?}", secret(), secret().hash());
        assert!(shown.contains(secret().prefix()));
        assert!(!shown.contains(&secret().reveal()[..13]));
    }

    #[test]
    fn the_scheme_is_case_insensitive_and_exactly_one_credential_is_taken() {
        let key = secret().reveal().to_owned();
        let found = Credential::Key(secret().hash());
        for scheme in ["Bearer", "bearer", "BEARER"] {
            assert_eq!(extract(&[&format!("{scheme} {key}")]).unwrap(), found);
        }
        assert_eq!(extract(&[]).unwrap(), Credential::Absent);
        assert_eq!(extract(&[&format!("Basic {key}")]).unwrap(), Credential::Absent);
        assert_eq!(extract(&[&key]).unwrap(), Credential::Absent);
        assert_eq!(extract(&["Bearer"]).unwrap(), Credential::Absent);
        assert_eq!(extract(&["Bearer "]).unwrap(), Credential::Other);
        assert!(extract(&[&format!("Bearer {key}"), &format!("Bearer {key}")]).is_err());
        assert!(extract(&[&format!("Bearer {key}, Bearer {key}")]).is_err());
    }
}
