//! What passes is seen as the library sees it: by its own decoder, in the frames that it gets.

use proptest::prelude::*;

use super::*;
use crate::wire::frames::{ACK, DATA, GOAWAY, PING, RST_STREAM, WINDOW_UPDATE};
use crate::wire::heads::Heads;

/// A client's judge without a budget.
#[derive(Default)]
struct Client {
    heads: Heads,
    odd: Vec<String>,
    frames: usize,
}

impl Judge for Client {
    fn frame(&mut self, _: Frame) -> Result<(), Reason> {
        self.frames += 1;
        Ok(())
    }

    fn begin(&mut self, _: Frame) {
        self.heads.begin();
    }

    fn field(&mut self, name: &[u8], value: &[u8]) {
        self.heads.field(name, value);
    }

    fn end(&mut self, frame: Frame, is_unsound: bool) -> Result<bool, Reason> {
        let may_pass = self.heads.end(frame, is_unsound)?;
        self.odd.extend(self.heads.odd_target().map(|target| String::from_utf8(target).unwrap()));
        Ok(may_pass)
    }
}

fn literal(first: u8, name: &str, value: &str) -> Vec<u8> {
    [&[first, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

fn plain(name: &str, value: &str) -> Vec<u8> {
    literal(0, name, value)
}

/// With a place in the table.
fn kept(name: &str, value: &str) -> Vec<u8> {
    literal(0x40, name, value)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut octets = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    octets.extend([kind, flags]);
    octets.extend(stream.to_be_bytes());
    octets.extend(payload);
    octets
}

fn head(stream: u32, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, block)
}

/// What passes of octets that come in pieces of this size.
fn sifted(octets: &[u8], piece: usize, most: usize) -> (Vec<u8>, Client, Result<(), Reason>) {
    let (mut sieve, mut client, mut passed) = (Sieve::server(most), Client::default(), Vec::new());
    for piece in octets.chunks(piece) {
        match sieve.sift(piece, &mut client) {
            Ok(count) => passed.extend_from_slice(&piece[..count]),
            Err(reason) => return (passed, client, Err(reason)),
        }
        // As a reader with a small buffer.
        while sieve.hand_over(|waits| {
            let taken = waits.len().min(7);
            passed.extend_from_slice(&waits[..taken]);
            taken
        }) {}
    }
    (passed, client, Ok(()))
}

/// Streams and their fields, as they are read behind the sieve. Fails where the library would end the connection.
fn read(octets: &[u8]) -> Vec<(u32, Vec<String>)> {
    let (mut decoder, mut rest, mut read) = (Decoder::new(TABLE), octets, Vec::new());
    while let Some(first) = Frame::first(rest) {
        let mut length = HEAD + first.length as usize;
        if first.kind == HEADERS {
            while !Frame::first(&rest[..length]).unwrap().ends_block() && length < rest.len() {
                let more = Frame::first(&rest[length..]).unwrap();
                assert_eq!((more.kind, more.stream), (CONTINUATION, first.stream));
                length += HEAD + more.length as usize;
                if more.ends_block() {
                    break;
                }
            }
            let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
            let mut fields = Vec::new();
            let block = block(&rest[..length], first).unwrap();
            let reading = decoder.decode(&block, |name, value| fields.push(format!("{}: {}", text(name), text(value))));
            assert!(!reading.unwrap().is_unsound, "{fields:?}");
            read.push((first.stream, fields));
        }
        rest = &rest[length..];
    }
    assert!(rest.is_empty());
    read
}

fn is_refused(fields: &[String]) -> bool {
    fields.last().is_some_and(|last| last == "connection: x")
}

#[test]
fn what_is_sound_passes_octet_for_octet_however_it_is_cut_and_padded() {
    let block = [plain(":scheme", "http"), plain(":path", "/a?b"), kept("x", "#")].concat();
    let padded = [&[3], &[0; 5][..], &block[..], &[0; 3]].concat();
    let octets = [
        frame(4, 0, 0, &[0; 6]),
        head(1, &block),
        frame(DATA, 0, 1, &[b'x'; 300]),
        frame(HEADERS, END_HEADERS | PADDED | PRIORITY, 3, &padded),
        frame(HEADERS, 0, 5, &block[..9]),
        frame(CONTINUATION, 0, 5, &[]),
        frame(CONTINUATION, END_HEADERS, 5, &block[9..]),
        frame(DATA, 1, 1, &[]),
    ];
    for piece in [1, 2, 7, 50, 1000] {
        let (passed, client, ended) = sifted(&octets.concat(), piece, 1000);
        assert_eq!((passed, ended), (octets.concat(), Ok(())), "{piece}");
        assert_eq!((client.frames, client.odd.len()), (octets.len(), 0));
    }
}

#[test]
fn a_fragment_and_an_odd_scheme_are_seen_and_pass() {
    for (fields, odd) in [
        ([(":path", "/a?b#c"), (":scheme", "http")], &["/a?b"][..]),
        ([(":path", "#"), (":scheme", "http")], &["/"]),
        ([(":path", "/x"), (":scheme", "ftp")], &["/x"]),
        ([(":path", "/x"), (":scheme", "HTTPS")], &[]),
    ] {
        let octets = head(1, &fields.map(|(name, value)| plain(name, value)).concat());
        for piece in [1, 9, 1000] {
            let (passed, client, _) = sifted(&octets, piece, 1000);
            assert_eq!((&passed, client.odd.iter().map(String::as_str).collect()), (&octets, odd.to_vec()));
        }
    }
}

#[test]
fn a_malformed_stream_is_refused_and_the_others_are_what_they_were() {
    let good = [plain(":path", "/x"), kept("x-kept", "1")].concat();
    for bad in [
        kept("X-Upper", "a"),
        kept("x a", "b"),
        kept("x", "a\nb"),
        kept("x", "\0"),
        kept("", "a"),
        plain("", ""),
        kept(":unknown", "a"),
        kept(":status", "2x0"),
        kept(":method", ""),
        // The name by reference: `:status`, and `accept`.
        vec![0x48, 2, b'2', b'0'],
        vec![0x53, 1, b'\r'],
    ] {
        // What the table holds afterwards is asked for by place.
        let octets = [
            head(1, &good),
            frame(HEADERS, END_HEADERS | END_STREAM, 3, &[plain(":path", "/y"), bad.clone()].concat()),
            head(5, &kept("x-after", "2")),
            head(7, &[0xbe]),
            frame(DATA, 1, 1, b"done"),
        ]
        .concat();
        for piece in [1, 3, 20, 1000] {
            let (passed, _, ended) = sifted(&octets, piece, 1000);
            assert_eq!(ended, Ok(()));
            let seen = read(&passed);
            assert_eq!(seen.iter().map(|(stream, _)| *stream).collect::<Vec<_>>(), [1, 3, 5, 7]);
            assert!(is_refused(&seen[1].1), "{bad:?}: {seen:?}");
            assert_eq!(seen[0].1, [":path: /x", "x-kept: 1"]);
            assert_eq!((&*seen[2].1, &*seen[3].1), (&["x-after: 2".to_owned()][..], &["x-after: 2".to_owned()][..]));
            assert!(passed.ends_with(&frame(DATA, 1, 1, b"done")));
        }
    }
}

#[test]
fn a_reference_to_what_was_malformed_is_malformed_and_its_name_is_not() {
    let octets = [
        head(1, &kept("x-a", "b\nc")),
        head(3, &[0xbe]),
        // Its name with another value.
        head(5, &[0x7e, 1, b'v']),
        head(7, &kept(":status", "2x0")),
        head(9, &[0x7e, 3, b'2', b'0', b'0']),
    ]
    .concat();
    let (passed, _, _) = sifted(&octets, 1000, 1000);
    let seen = read(&passed);
    assert!(is_refused(&seen[0].1) && is_refused(&seen[1].1) && is_refused(&seen[3].1), "{seen:?}");
    assert_eq!((&*seen[2].1, &*seen[4].1), (&["x-a: v".to_owned()][..], &[":status: 200".to_owned()][..]));
}

#[test]
fn trailers_have_no_pseudo_fields() {
    let (path, trailers) = (head(1, &plain(":path", "/x")), head(1, &plain("x", "#")));
    let octets = [path.clone(), trailers].concat();
    assert_eq!(sifted(&octets, 5, 1000).0, octets);
    for name in [":path", ":scheme", ":authority", ":other"] {
        let (passed, ..) = sifted(&[path.clone(), head(1, &plain(name, "http"))].concat(), 5, 1000);
        assert!(is_refused(&read(&passed)[1].1), "{name}");
    }
}

#[test]
fn a_request_comes_on_a_stream_above_all_before() {
    let request = [plain(":method", "GET"), plain(":path", "/x")].concat();
    let octets = |second| [head(5, &request), head(second, &request)].concat();
    assert_eq!(sifted(&octets(7), 50, 1000).2, Ok(()));
    for second in [5, 3, 1] {
        let (passed, _, ended) = sifted(&octets(second), 50, 1000);
        assert_eq!((passed, ended), (head(5, &request), Err(Reason::Malformed)), "{second}");
    }
}

#[test]
fn a_length_is_a_number() {
    for (value, may_pass) in [("0", true), ("12", true), ("", false), ("+1", false), ("1 ", false), ("1,1", false)] {
        let (passed, ..) = sifted(&head(1, &[plain(":path", "/x"), plain("content-length", value)].concat()), 50, 1000);
        assert_eq!(is_refused(&read(&passed)[0].1), !may_pass, "{value:?}");
    }
}

#[test]
fn settings_pass_as_a_whole_however_they_are_cut() {
    let good = [
        frame(SETTINGS, 0, 0, &[[0, 4, 0x7f, 0xff, 0xff, 0xff], [0, 9, 0xff, 0, 0, 0]].concat()),
        frame(SETTINGS, ACK, 0, &[]),
    ];
    for piece in [1, 5, 10, 100] {
        assert_eq!(sifted(&good.concat(), piece, 1000).0, good.concat(), "{piece}");
        let late = [[0, 3, 0, 0, 0, 9], [0, 4, 0x80, 0, 0, 0]].concat();
        let (passed, _, ended) = sifted(&frame(SETTINGS, 0, 0, &late), piece, 1000);
        assert_eq!((passed.len(), ended), (0, Err(Reason::FlowControl)), "{piece}");
    }
}

#[test]
fn what_cannot_be_followed_ends_the_connection() {
    let long: Vec<u8> = plain("x", &"a".repeat(120));
    let endless: Vec<u8> = (0..9).flat_map(|_| frame(CONTINUATION, 0, 1, &long)).collect();
    for (octets, reason) in [
        ([frame(HEADERS, 0, 1, &long), endless].concat(), Reason::TooMuch),
        (head(1, &[0xff; 9]), Reason::Compression),
        (frame(HEADERS, END_HEADERS | PADDED, 1, &[200, 0]), Reason::Malformed),
        ([frame(HEADERS, 0, 1, &long), frame(DATA, 0, 1, &[])].concat(), Reason::Malformed),
        ([frame(HEADERS, 0, 1, &long), frame(CONTINUATION, END_HEADERS, 3, &[])].concat(), Reason::Malformed),
        (frame(CONTINUATION, END_HEADERS, 1, &long), Reason::Malformed),
        (frame(PUSH_PROMISE, END_HEADERS, 1, &long), Reason::Malformed),
        (head(1, &[0; MAX_PAYLOAD + 1]), Reason::FrameSize),
        // A size of the table behind a field.
        (head(1, &[plain("x", "y"), vec![0x20]].concat()), Reason::Compression),
        (frame(SETTINGS, 0, 0, &[0; 5]), Reason::FrameSize),
        (frame(SETTINGS, ACK, 0, &[0; 6]), Reason::FrameSize),
        (frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]), Reason::FlowControl),
        (frame(PING, 0, 0, &[0; 7]), Reason::FrameSize),
        (frame(GOAWAY, 0, 0, &[0; 7]), Reason::FrameSize),
        (frame(RST_STREAM, 0, 1, &[0; 3]), Reason::FrameSize),
        (frame(WINDOW_UPDATE, 0, 0, &[0; 5]), Reason::FrameSize),
        (frame(2, 0, 1, &[0; 4]), Reason::FrameSize),
        (frame(DATA, 0, 1, &[0; MAX_PAYLOAD + 1]), Reason::FrameSize),
        // Nothing of that size has a name.
        (head(1, &kept("", "")), Reason::Compression),
    ] {
        for piece in [50, 100_000] {
            let (passed, _, ended) = sifted(&octets, piece, 1000);
            assert_eq!((passed.len(), ended), (0, Err(reason)), "{piece}");
        }
    }
}

#[test]
fn a_head_is_open_from_its_first_octet_to_its_last() {
    let (mut sieve, mut client) = (Sieve::client(1000), Client::default());
    let mut feed = |octets: &[u8]| {
        sieve.sift(octets, &mut client).unwrap();
        while sieve.hand_over(<[u8]>::len) {}
        sieve.is_in_head()
    };
    assert!(feed(&PREFACE[..23]) && !feed(&PREFACE[23..]));
    let block = head(1, &plain("x", "y"));
    assert!(feed(&block[..3]) && feed(&block[3..10]) && !feed(&block[10..]));
    let block = frame(HEADERS, 0, 3, &plain("x", "y"));
    assert!(feed(&block), "CONTINUATION is owed");
    assert!(!feed(&frame(CONTINUATION, END_HEADERS, 3, &[])));
    assert!(!feed(&frame(DATA, 0, 1, b"half of it")[..12]), "a body has a timeout of its own");
}

proptest! {
    /// Any fields, some of which nobody can read: behind the sieve there is the same number of streams, those that had only
    /// sound fields have them still, and the others are refused.
    #[test]
    fn tables_stay_in_step(
        blocks in prop::collection::vec(prop::collection::vec(("[a-cA \n]{0,3}", "[a-c\n]{1,40}", 0_u8..6), 0..8), 1..30),
        piece in 1_usize..400,
    ) {
        let (mut octets, mut expected) = (Vec::new(), Vec::new());
        // Room for two fields or three, so that it shows when one is longer on one side.
        let small = [0x3f, 100];
        let mut known = Decoder::new(TABLE);
        known.decode(&small, |_, _| ()).unwrap();
        for (place, fields) in blocks.iter().enumerate() {
            let mut block = if place == 0 { small.to_vec() } else { Vec::new() };
            let (mut is_unsound, mut seen) = (false, Vec::new());
            for (name, value, kind) in fields {
                let mut has = |place: u8| known.decode(&[place], |_, _| ()).is_ok();
                let field = match kind {
                    0 => plain(name, value),
                    // A place in the table by number, if there is one.
                    1 if has(0xbe) => vec![0xbe],
                    2 if has(0xbf) => vec![0xbf],
                    3 if has(0xbe) => [&[0x7e, value.len() as u8], value.as_bytes()].concat(),
                    _ => kept(name, value),
                };
                let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
                let reading = known.decode(&field, |name, value| seen.push(format!("{}: {}", text(name), text(value))));
                is_unsound |= reading.unwrap().is_unsound;
                block.extend(field);
            }
            expected.push((is_unsound, seen));
            octets.extend(head(2 * place as u32 + 1, &block));
        }
        let (passed, _, ended) = sifted(&octets, piece, 100_000);
        prop_assert_eq!(ended, Ok(()));
        let seen = read(&passed);
        prop_assert_eq!(seen.len(), expected.len());
        for ((_, fields), (is_unsound, sound)) in seen.iter().zip(&expected) {
            prop_assert_eq!(is_refused(fields), *is_unsound);
            prop_assert!(*is_unsound || fields == sound);
        }
    }
}
