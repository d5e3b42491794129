//! Fields that the HTTP/2 library cannot read at all, and what it is given in their place.
//!
//! A capital letter in a name or a line feed in a value makes one stream malformed (RFC 9113 section 8.1.1). The library takes
//! it for a broken encoding and ends the connection with all its streams. So a literal of that kind is written anew with octets
//! that mean nothing, as many as it had: what fields cost the table stays the same on both sides (RFC 7541 section 4.1).
//! Whether the stream is refused is not decided here.

use super::{is_field_value, is_token};

/// What the library has instead of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Another value.
    Value,
    /// Another name and, maybe, another value.
    Name,
}

/// Fits in wherever it stands: letters are part of every name and every value.
const NOTHING: u8 = b'x';

/// What is wrong with a field, if the library cannot read it.
pub(super) fn fault(name: &[u8], value: &[u8]) -> Option<Fault> {
    let is_sound = match name {
        // Written with the name it is another field, for this name has values of one kind only.
        [b':', pseudo @ ..] => match pseudo {
            b"method" => !value.is_empty() && value.iter().all(|octet| is_token(*octet)),
            b"status" => matches!(value, [b'1'..=b'9', b'0'..=b'9', b'0'..=b'9']),
            b"authority" | b"scheme" | b"path" | b"protocol" => std::str::from_utf8(value).is_ok(),
            _ => false,
        },
        _ => !name.is_empty() && name.iter().all(|octet| is_token(*octet) && !octet.is_ascii_uppercase()),
    };
    match is_sound {
        false => Some(Fault::Name),
        true if name[0] == b':' => None,
        // Without a way out of the loop, so that the compiler looks at many octets at once.
        true => (!is_field_value(value)).then_some(Fault::Value),
    }
}

/// A literal as the library reads it. `first` is its first octet, for how it is to be kept; `index` names it, if the library
/// knows that name. `None`: nothing of that size has a name.
pub(super) fn literal(
    to: &mut Vec<u8>,
    first: u8,
    index: Option<usize>,
    (name, value): (&[u8], &[u8]),
    fault: Option<Fault>,
) -> Option<()> {
    let (kind, prefix) = if first & 0x40 != 0 { (0x40, 6) } else { (first & 0x10, 4) };
    integer(to, kind, prefix, index.filter(|_| fault != Some(Fault::Name)).unwrap_or(0));
    match (fault, index) {
        (Some(Fault::Name), _) => {
            // A name has one octet at least: where there was none, the value gives one of its own.
            let borrowed = usize::from(name.is_empty());
            let length = value.len().checked_sub(borrowed);
            nothing(to, name.len() + borrowed);
            // Of what no table keeps nobody counts the octets.
            nothing(to, length.or((kind != 0x40).then_some(0))?);
            return Some(());
        }
        (_, Some(_)) => {}
        (_, None) => text(to, name),
    }
    match fault {
        Some(_) => nothing(to, value.len()),
        None => text(to, value),
    }
    Some(())
}

/// RFC 7541 section 5.1.
fn integer(to: &mut Vec<u8>, kind: u8, prefix: u32, number: usize) {
    let most = (1 << prefix) - 1;
    if number < most {
        return to.push(kind | number as u8);
    }
    to.push(kind | most as u8);
    let mut rest = number - most;
    while rest > 0x7f {
        to.push(rest as u8 & 0x7f | 0x80);
        rest >>= 7;
    }
    to.push(rest as u8);
}

fn text(to: &mut Vec<u8>, octets: &[u8]) {
    integer(to, 0, 7, octets.len());
    to.extend_from_slice(octets);
}

fn nothing(to: &mut Vec<u8>, length: usize) {
    integer(to, 0, 7, length);
    to.resize(to.len() + length, NOTHING);
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue, Method, StatusCode};

    use super::*;

    #[test]
    fn whatever_passes_the_library_reads() {
        for octet in 0..=u8::MAX {
            for octets in [&[octet][..], &[b'a', octet], &[octet, b'2', b'0']] {
                let as_name = octets[0] == b':' || HeaderName::from_lowercase(octets).is_ok();
                assert!(fault(octets, b"").is_some() || as_name, "{octets:?}");
                assert_eq!(fault(b"a", octets).is_none(), HeaderValue::from_bytes(octets).is_ok(), "{octets:?}");
                assert!(fault(b":method", octets).is_some() || Method::from_bytes(octets).is_ok(), "{octets:?}");
                assert_eq!(fault(b":status", octets).is_none(), StatusCode::from_bytes(octets).is_ok(), "{octets:?}");
            }
        }
        assert_eq!(fault(b":path", b"/\xff"), Some(Fault::Name));
        assert_eq!((fault(b"", b"a"), fault(b":other", b"a")), (Some(Fault::Name), Some(Fault::Name)));
    }
}
