//! A body as one JSON object whose members mean one thing. Knows no member by name.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::problem::{BadMember, ManagementError, quoted};

/// Reads the octets of a body as one JSON object. A member that is there twice has no meaning that everybody agrees on, and
/// whoever looked at the body on its way here may have seen the other one.
pub fn object(body: &[u8]) -> Result<Map<String, Value>, ManagementError> {
    let not_an_object = |why: String| ManagementError::InvalidBody(vec![BadMember::new("body", why)]);
    match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => match twice(body) {
            bad if bad.is_empty() => Ok(members),
            bad => Err(ManagementError::InvalidBody(bad)),
        },
        Ok(_) => Err(not_an_object("must be a JSON object".to_owned())),
        // Where, but never what: the parser's own text may repeat the body.
        Err(error) => Err(not_an_object(format!("is not JSON, at line {} column {}", error.line(), error.column()))),
    }
}

/// The members of an object that are there more than once, as they read once unescaped.
fn twice(body: &[u8]) -> Vec<BadMember> {
    struct Names(Vec<BadMember>);

    impl<'de> Visitor<'de> for Names {
        type Value = Vec<BadMember>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut seen = HashSet::new();
            while let Some((name, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                let shown = quoted(&name);
                if !seen.insert(name) && !self.0.iter().any(|bad| bad.member == shown) {
                    self.0.push(BadMember::new(shown, "given more than once"));
                }
            }
            Ok(self.0)
        }
    }

    // It was parsed before, so it parses; else nothing is twice in it.
    serde_json::Deserializer::from_slice(body).deserialize_map(Names(Vec::new())).unwrap_or_default()
}
