//! `Host` and the authority of a target: `uri-host [ ":" port ]` of RFC 3986, without user information.

use std::net::Ipv6Addr;

use super::table;

/// `unreserved / sub-delims` of RFC 3986 section 2, the octets of a name beside percent-encoded ones.
const NAME: [bool; 256] = table(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-._~!$&'()*+,;=");

/// Whether this is a host with or without a port. An empty host names nobody and is none (RFC 9110 section 4.2.1); an empty
/// port is the default one (RFC 3986 section 3.2.3).
pub fn is_host(octets: &[u8]) -> bool {
    let after = match octets {
        [b'[', literal @ ..] => match literal.iter().position(|byte| *byte == b']') {
            Some(end) if is_literal(&literal[..end]) => &literal[end + 1..],
            _ => return false,
        },
        _ => {
            let end = octets.iter().position(|byte| *byte == b':').unwrap_or(octets.len());
            if end == 0 || !is_name(&octets[..end]) {
                return false;
            }
            &octets[end..]
        }
    };
    match after {
        [] => true,
        [b':', port @ ..] => is_port(port),
        _ => false,
    }
}

/// `reg-name`, which every IPv4 address is too. What looks like an address and is none is some server's name.
fn is_name(name: &[u8]) -> bool {
    // Nearly every name.
    if name.iter().all(|byte| NAME[*byte as usize]) {
        return true;
    }
    let mut rest = name;
    loop {
        match rest {
            [] => return true,
            [b'%', a, b, after @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest = after,
            [byte, after @ ..] if NAME[*byte as usize] => rest = after,
            _ => return false,
        }
    }
}

/// `IPv6address / IPvFuture`, inside the brackets.
fn is_literal(literal: &[u8]) -> bool {
    if let [b'v' | b'V', future @ ..] = literal {
        let Some(dot) = future.iter().position(|byte| *byte == b'.') else { return false };
        let (version, address) = (&future[..dot], &future[dot + 1..]);
        return !version.is_empty()
            && version.iter().all(u8::is_ascii_hexdigit)
            && !address.is_empty()
            && address.iter().all(|byte| NAME[*byte as usize] || *byte == b':');
    }
    // The standard library's reader takes no zone and nothing else beyond RFC 4291 section 2.2.
    std::str::from_utf8(literal).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

fn is_port(port: &[u8]) -> bool {
    let number = port.iter().try_fold(0_u32, |number, byte| {
        byte.is_ascii_digit().then(|| number * 10 + u32::from(byte - b'0')).filter(|number| *number <= 65_535)
    });
    number.is_some()
}

#[cfg(test)]
mod tests {
    use super::is_host;

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for good in [
            "a",
            "api.example",
            "api.example:8443",
            "a:",
            "a:0",
            "a:65535",
            "a:00080",
            "127.0.0.1:80",
            "999.1.1.1",
            "[::1]",
            "[::1]:8080",
            "[::ffff:192.0.2.1]",
            "[v1.fe80::a+en1]",
            "xn--bcher-kva.example",
            "a%41b",
            "a_b",
            "a,b;c=d!$&'()*+~",
            ".",
        ] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            ":80",
            "a b",
            " a",
            "a\t",
            "a:b",
            "a:-1",
            "a:+1",
            "a:65536",
            "a:99999999999999999999",
            "a:80:80",
            "a:80 ",
            "a:0x50",
            "user@a",
            "user:pw@a",
            "a/b",
            "a?b",
            "a#b",
            "a\\b",
            "a%4",
            "a%zz",
            "a%",
            "[::1",
            "::1",
            "[]",
            "[::1]x",
            "[::1]80",
            "[fe80::1%25eth0]",
            "[127.0.0.1]",
            "[v.a]",
            "[v1.]",
            "[1::2::3]",
            "<a>",
            "a\"b",
            "\u{fc}ber",
            "a\0",
            "a|b",
            "a{b}",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }
}
