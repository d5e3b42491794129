//! The PROXY header, versions 1 and 2 (haproxy's proxy-protocol.txt): who the client of a load balancer is.
//!
//! It stands before everything else on a connection, TLS included. Strict, since whoever may write it may be anybody: the exact
//! grammar, a bounded length, nothing guessed. Whether its writer is believed is not decided here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest header that is read; nginx draws the line at the same place.
pub const LONGEST: usize = 4096;
/// The longest line of version 1, with its line end.
const LONGEST_LINE: usize = 107;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED: usize = 16;
/// The TLV that holds a checksum of the header.
const CRC32C: u8 = 3;

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Bytes of it: what follows belongs to the client.
    pub length: usize,
    /// The client. `None`: the sender speaks for itself (a health check), or does not know; the connection's own peer counts.
    pub client: Option<IpAddr>,
}

/// These bytes are not the beginning of a PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY header, or a malformed one")]
pub struct Malformed;

/// Reads the header at the start of `bytes`. `None`: right so far, and not all of it is there.
pub fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, Malformed> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(a, b)| a == b);
    if begins(SIGNATURE) {
        binary(bytes)
    } else if begins(b"PROXY ") {
        line(bytes)
    } else {
        Err(Malformed)
    }
}

fn line(bytes: &[u8]) -> Result<Option<ProxyHeader>, Malformed> {
    let within = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = within.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < LONGEST_LINE { Ok(None) } else { Err(Malformed) };
    };
    let text = within[..end].strip_suffix(b"\r").and_then(|text| std::str::from_utf8(text).ok()).ok_or(Malformed)?;
    let mut words = text.split(' ').skip(1);
    let client = match words.next() {
        Some("TCP4") => Some(IpAddr::V4(addresses::<Ipv4Addr>(words)?)),
        Some("TCP6") => Some(IpAddr::V6(addresses::<Ipv6Addr>(words)?)),
        // Whatever else stands in such a line is to be ignored.
        Some("UNKNOWN") => None,
        _ => return Err(Malformed),
    };
    Ok(Some(ProxyHeader { length: end + 1, client }))
}

/// Both addresses and both ports, and nothing behind them. The standard library's parsers take no leading zeros.
fn addresses<'t, A: std::str::FromStr>(words: impl Iterator<Item = &'t str>) -> Result<A, Malformed> {
    let words: Vec<&str> = words.collect();
    let [source, destination, ports @ ..] = &words[..] else { return Err(Malformed) };
    let client = source.parse().map_err(|_| Malformed)?;
    destination.parse::<A>().map_err(|_| Malformed)?;
    match ports {
        [one, other] if is_port(one) && is_port(other) => Ok(client),
        _ => Err(Malformed),
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'))
        && text.parse::<u16>().is_ok()
}

fn binary(bytes: &[u8]) -> Result<Option<ProxyHeader>, Malformed> {
    let is_local = match bytes.get(12) {
        None => return Ok(None),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(Malformed),
    };
    let Some(&[family, high, low]) = bytes.get(13..FIXED) else { return Ok(None) };
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST {
        return Err(Malformed);
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    let client = if is_local { None } else { source(header, family)? };
    Ok(Some(ProxyHeader { length, client }))
}

/// The source address of a connection that is passed on; `None` where it is no TCP connection.
fn source(header: &[u8], family: u8) -> Result<Option<IpAddr>, Malformed> {
    let rest = &header[FIXED..];
    let (client, size) = match family {
        0x11 => (IpAddr::from(first::<4>(rest)?), 12),
        0x21 => (IpAddr::from(first::<16>(rest)?), 36),
        // Unspecified, datagrams and Unix sockets: no address that means anything here. Others are none that exist.
        _ if family >> 4 <= 3 && family & 0xf <= 2 => return Ok(None),
        _ => return Err(Malformed),
    };
    let tlvs = rest.get(size..).ok_or(Malformed)?;
    check_tlvs(header, tlvs)?;
    Ok(Some(client))
}

fn first<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Malformed> {
    bytes.first_chunk().copied().ok_or(Malformed)
}

/// Skips them by their lengths, which must come out even; a checksum among them must be right.
fn check_tlvs(header: &[u8], mut tlvs: &[u8]) -> Result<(), Malformed> {
    while let [kind, high, low, rest @ ..] = tlvs {
        let (value, behind) = rest.split_at_checked(usize::from(u16::from_be_bytes([*high, *low]))).ok_or(Malformed)?;
        if *kind == CRC32C {
            let at = header.len() - behind.len() - value.len();
            let told = <[u8; 4]>::try_from(value).map_err(|_| Malformed)?;
            let (before, after) = (&header[..at], &header[at + 4..]);
            if crc32c(before.iter().chain(&[0; 4]).chain(after)) != u32::from_be_bytes(told) {
                return Err(Malformed);
            }
        }
        tlvs = behind;
    }
    if tlvs.is_empty() { Ok(()) } else { Err(Malformed) }
}

/// Castagnoli's CRC, bit by bit: once a connection, and only where a balancer sends one.
fn crc32c<'b>(bytes: impl Iterator<Item = &'b u8>) -> u32 {
    !bytes.fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client(bytes: &[u8]) -> Option<IpAddr> {
        let header = parse(bytes).unwrap().expect("a whole header");
        assert_eq!(header.length, bytes.len(), "{bytes:?}");
        header.client
    }

    /// A header of version 2; `claimed`: its length, where that is not what follows.
    fn version_2(command: u8, family: u8, rest: &[u8], claimed: Option<u16>) -> Vec<u8> {
        let length = claimed.unwrap_or(rest.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 1, 0x30, 0x39, 1, 187];

    #[test]
    fn a_line_of_version_1_names_the_client() {
        for (line, address) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.1 12345 443\r\n", Some("192.0.2.1")),
            ("PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", Some("0.0.0.0")),
            ("PROXY TCP6 2001:db8::1 ::1 1 2\r\n", Some("2001:db8::1")),
            (
                "PROXY TCP6 ffff:f:ffff:ffff:ffff:ffff:ffff:ffff ::ffff:192.0.2.1 65535 65535\r\n",
                Some("ffff:f:ffff:ffff:ffff:ffff:ffff:ffff"),
            ),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 whatever stands here\r\n", None),
        ] {
            assert_eq!(client(line.as_bytes()), address.map(|address| address.parse().unwrap()), "{line:?}");
            for cut in 0..line.len() {
                assert_eq!(parse(&line.as_bytes()[..cut]), Ok(None), "{line:?} up to {cut}");
            }
            // What stands behind it is the client's.
            let behind = format!("{line}GET / HTTP/1.1\r\n");
            assert_eq!(parse(behind.as_bytes()).unwrap().unwrap().length, line.len());
        }
    }

    #[test]
    fn no_other_line_is_taken() {
        for line in [
            "GET / HTTP/1.1\r\n",
            "proxy TCP4 192.0.2.1 198.51.100.1 1 2\r\n",
            " PROXY TCP4 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY\tTCP4 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY  TCP4 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 2\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 2 \r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 2\r\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 2 3\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 65536\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 01 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 -1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1  2\r\n",
            "PROXY TCP4 192.0.2.01 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 host.example 1 2\r\n",
            "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 2001:db8::2 1 2\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY TCP6 2001:db8::1::2 ::1 1 2\r\n",
            "PROXY TCP6 [2001:db8::1] ::1 1 2\r\n",
            "PROXY TCP6 fe80::1%lo ::1 1 2\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY \r\n",
            "PROXY unknown\r\n",
        ] {
            assert_eq!(parse(line.as_bytes()), Err(Malformed), "{line:?}");
        }
        let long = format!("PROXY UNKNOWN {}", "x".repeat(LONGEST_LINE));
        assert_eq!(parse(&long.as_bytes()[..LONGEST_LINE - 1]), Ok(None));
        assert_eq!(parse(&long.as_bytes()[..LONGEST_LINE]), Err(Malformed));
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_LINE - 16));
        assert_eq!(client(longest.as_bytes()), None);
        assert_eq!(parse(longest.replace("\r\n", "x\r\n").as_bytes()), Err(Malformed));
    }

    #[test]
    fn version_2_names_the_client_and_its_tlvs_are_skipped() {
        let v6 = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1], &[0; 16], &[0, 1, 0, 2]].concat();
        let tlvs = [&V4[..], &[4, 0, 2, 0, 0], &[0xea, 0, 0]].concat();
        for (command, family, rest, address) in [
            (0x21, 0x11, &V4[..], Some("192.0.2.1")),
            (0x21, 0x11, &tlvs, Some("192.0.2.1")),
            (0x21, 0x21, &v6, Some("2001:db8::1")),
            // A health check of the balancer; whatever it writes of families and addresses is ignored.
            (0x20, 0x00, &[], None),
            (0x20, 0xff, &V4, None),
            (0x21, 0x00, b"anything", None),
            (0x21, 0x12, &V4, None),
            (0x21, 0x31, &[0; 216], None),
        ] {
            let header = version_2(command, family, rest, None);
            assert_eq!(client(&header), address.map(|address| address.parse().unwrap()), "{header:?}");
            for cut in 0..header.len() {
                assert_eq!(parse(&header[..cut]), Ok(None), "{header:?} up to {cut}");
            }
        }
    }

    #[test]
    fn no_other_header_of_version_2_is_taken() {
        for (command, family, rest, claimed) in [
            (0x11, 0x11, &V4[..], None),
            (0x22, 0x11, &V4, None),
            (0x31, 0x11, &V4, None),
            (0x21, 0x41, &V4, None),
            (0x21, 0x13, &V4, None),
            // Shorter than the addresses it announces.
            (0x21, 0x11, &V4[..11], None),
            (0x21, 0x21, &V4, None),
            (0x21, 0x11, &V4, Some(LONGEST as u16)),
            // A TLV that ends before its head does, and one that is longer than what is left.
            (0x21, 0x11, &[&V4[..], &[4, 0]].concat(), None),
            (0x21, 0x11, &[&V4[..], &[4, 0, 2, 0]].concat(), None),
            (0x21, 0x11, &[&V4[..], &[CRC32C, 0, 3, 0, 0, 0]].concat(), None),
        ] {
            let header = version_2(command, family, rest, claimed);
            assert_eq!(parse(&header), Err(Malformed), "{header:?}");
        }
        assert_eq!(parse(b"\r\n\r\n\0\r\nQUIT\r"), Err(Malformed));
        assert_eq!(parse(b"\r\n\r\nGET"), Err(Malformed));
    }

    #[test]
    fn a_checksum_must_be_right() {
        // RFC 3720 appendix B.4.
        assert_eq!(crc32c([0; 32].iter()), 0x8A91_36AA);
        assert_eq!(crc32c((0..32).collect::<Vec<u8>>().iter()), 0x46DD_794E);
        let empty = [&V4[..], &[CRC32C, 0, 4, 0, 0, 0, 0], &[4, 0, 1, 9]].concat();
        let mut header = version_2(0x21, 0x11, &empty, None);
        let sum = crc32c(header.iter()).to_be_bytes();
        header[31..35].copy_from_slice(&sum);
        assert_eq!(client(&header), Some("192.0.2.1".parse().unwrap()));
        for at in [16, 27, 31, 38] {
            let mut wrong = header.clone();
            wrong[at] ^= 1;
            assert_eq!(parse(&wrong), Err(Malformed), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_and_more_of_them_never_unsay_it(
            start in prop_oneof![Just(SIGNATURE.to_vec()), Just(b"PROXY TCP4 ".to_vec()), Just(b"PROXY TCP6 ".to_vec()), Just(vec![])],
            rest in proptest::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"0123456789.: \r\n\x20\x21\x11\x00"[..])], 0..120),
        ) {
            let bytes = [start, rest].concat();
            let mut verdict = None;
            for end in 0..=bytes.len() {
                match (parse(&bytes[..end]), verdict) {
                    (Ok(None), told) => prop_assert_eq!(told, None),
                    (now, None) => verdict = Some(now),
                    (now, Some(told)) => prop_assert_eq!(now, told),
                }
            }
            if let Some(Ok(Some(header))) = verdict {
                prop_assert!(header.length <= bytes.len());
            }
        }
    }
}
