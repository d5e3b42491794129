//! The PROXY header: any octets are judged at once and for good, and what stands behind a header is left to the client.

use seeme_gateway::wire::proxy_header::{LONGEST, parse};

use super::mutation::run;

const WORDS: [&[u8]; 20] = [
    b"PROXY ",
    b"TCP4 ",
    b"TCP6 ",
    b"UNKNOWN",
    b"192.0.2.1 ",
    b"2001:db8::1 ",
    b"::ffff:192.0.2.1",
    b"65535",
    b"65536",
    b"00",
    b"\r\n",
    b"\n",
    b" ",
    b"\r\n\r\n\0\r\nQUIT\n",
    b"\x21\x11\0\x0c",
    b"\x21\x21\0\x24",
    b"\x20\0\0\0",
    b"\x03\0\x04",
    b"\xff\xff",
    b"GET / HTTP/1.1\r\n",
];

#[test]
fn a_header_is_judged_as_soon_as_it_can_be_and_never_otherwise() {
    run("proxy_header", &WORDS, |input, _| {
        let input = &input[..input.len().min(LONGEST + 64)];
        let whole = parse(input);
        let first = (0..input.len()).map(|end| parse(&input[..end])).find(|verdict| *verdict != Ok(None));
        // More octets never unsay what fewer have said.
        assert_eq!(first.unwrap_or(whole), whole);
        let Ok(Some(header)) = whole else { return };
        assert!(header.length <= input.len().min(LONGEST));
        let (own, behind) = input.split_at(header.length);
        assert_eq!(parse(own), whole);
        assert_eq!(parse(&own[..own.len() - 1]), Ok(None), "its last octet belongs to it");
        assert_eq!(parse(&[own, b"PROXY UNKNOWN\r\n", behind].concat()), whole);
        if let (Some(client), Ok(text)) = (header.client, std::str::from_utf8(own))
            && text.starts_with("PROXY ")
        {
            assert_eq!(text.split(' ').nth(2).unwrap().parse(), Ok(client));
        }
    });
}
