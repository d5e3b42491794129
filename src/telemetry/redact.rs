//! Removes from a text everything that looks like a key of ours.
//!
//! For the few client-made texts that are ever shown: the path of the access log and errors about arguments.

use std::borrow::Cow;

const PREFIXES: [&str; 2] = ["sm_live_", "sm_test_"];

/// `text` with the characters after each `sm_live_` / `sm_test_` replaced, also when they are percent-encoded or in
/// another case. Borrowed when there is nothing to hide, which is nearly always.
pub fn keys(text: &str) -> Cow<'_, str> {
    // A key can hide behind percent-encoding: %73m_live_… is sm_live_… to whoever decodes it.
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8_lossy();
    if find(&decoded, 0).is_none() {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(decoded.len());
    let mut rest = 0;
    while let Some(at) = find(&decoded, rest) {
        shown.push_str(&decoded[rest..at]);
        shown.push_str("[redacted-key]");
        let tail = &decoded.as_bytes()[at + PREFIXES[0].len()..];
        let length = tail.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
        rest = at + PREFIXES[0].len() + length;
    }
    shown.push_str(&decoded[rest..]);
    Cow::Owned(shown)
}

fn find(text: &str, from: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    (from..bytes.len().saturating_sub(PREFIXES[0].len() - 1))
        .find(|&at| PREFIXES.iter().any(|prefix| bytes[at..at + prefix.len()].eq_ignore_ascii_case(prefix.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::keys;

    #[test]
    fn a_key_disappears_wherever_it_stands_and_nothing_else_does() {
        assert_eq!(keys("/api/v1/models"), "/api/v1/models");
        assert_eq!(keys("/a/sm_live_abc123/b"), "/a/[redacted-key]/b");
        assert_eq!(keys("/SM_TEST_x.sm_live_y"), "/[redacted-key].[redacted-key]");
        assert_eq!(keys("/%73m_live_abc%31/ü"), "/[redacted-key]/ü");
        assert_eq!(keys("sm_live"), "sm_live");
    }
}
