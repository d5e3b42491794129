//! Attacks on HTTP/2: a peer that sends much and asks for nothing is told to calm down, or cut, and costs little.

use std::time::{Duration, Instant};

use super::support::http2::{
    ACK, CALM, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Http2, PING, PRIORITY, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, frame, get, literal,
};
use super::support::{Key, Scripted, Stand, Transport, eventually};

/// One that answers nobody, so that every stream is there until it is given up.
fn silent() -> (Scripted, Stand, Key) {
    let upstream = Scripted::start(|wire| while wire.request().is_some() {});
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    (upstream, stand, key)
}

/// Sends so many rounds, as long as the gateway takes them; then it must have cut the connection.
fn flood(stand: &Stand, what: &str, rounds: u32, octets: impl Fn(u32) -> Vec<u8>) -> Option<u32> {
    let (before, memory) = (stand.gateway.process.cpu(), stand.gateway.process.resident());
    let mut client = Http2::open(stand.gateway.public);
    let mut sent = 0;
    while sent < rounds {
        let batch: Vec<u8> = (sent..rounds.min(sent + 50)).flat_map(&octets).collect();
        if client.try_send(batch).is_err() {
            break;
        }
        sent += 50;
    }
    let word = client.last_word();
    let (used, grown) = (stand.gateway.process.cpu() - before, stand.gateway.process.resident().saturating_sub(memory));
    assert!(used < Duration::from_secs(5), "{what} cost {used:?}");
    assert!(grown < 40 * 1024, "{what} cost {grown} KiB");
    assert!(word.is_none_or(|code| code != 0), "{what} ended with a friendly word");
    word
}

fn fields(key: &Key) -> Vec<u8> {
    let bearer = format!("Bearer {}", key.secret);
    let mut fields = get("/echo/x");
    fields.push(("authorization", &bearer));
    block(&fields)
}

#[test]
fn twenty_thousand_streams_given_up_at_once_are_cut() {
    let (upstream, stand, key) = silent();
    let block = fields(&key);
    let word = flood(&stand, "rapid reset", 20_000, |round| {
        let stream = 2 * round + 1;
        let head = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block);
        [head, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    });
    assert!(matches!(word, None | Some(CALM)), "{word:?}");
    assert!(upstream.connections() < 1000, "{} connections to the upstream", upstream.connections());
    assert_eq!(stand.get("/nowhere").send().status(), 404);
}

#[test]
fn streams_that_were_accepted_and_then_given_up_are_cut_too() {
    let (_upstream, stand, key) = silent();
    let block = fields(&key);
    let mut client = Http2::open(stand.gateway.public);
    let (mut given_up, mut stream) = (0, 1);
    // A hundred at a time, and a ping in between whose answer shows that they were taken.
    'all: while given_up < 20_000 {
        let opened: Vec<u32> = (0..100).map(|place| stream + 2 * place).collect();
        let heads: Vec<u8> =
            opened.iter().flat_map(|id| frame(HEADERS, END_HEADERS | END_STREAM, *id, &block)).collect();
        client.send(heads);
        client.frame(PING, 0, 0, &u64::from(stream).to_be_bytes());
        loop {
            match client.next() {
                Some(frame) if frame.kind == PING && frame.flags & ACK != 0 => break,
                Some(_) => {}
                None => break 'all,
            }
        }
        client.send(opened.iter().flat_map(|id| frame(RST_STREAM, 0, *id, &8_u32.to_be_bytes())).collect::<Vec<u8>>());
        (given_up, stream) = (given_up + opened.len(), stream + 200);
    }
    assert!(given_up < 2000, "{given_up} streams were opened and given up");
}

#[test]
fn frames_that_do_nothing_are_cut() {
    let (_upstream, stand, key) = silent();
    let block = fields(&key);
    let open = frame(HEADERS, END_HEADERS, 1, &block);
    let first = |round: u32, octets: Vec<u8>| if round == 0 { [open.clone(), octets].concat() } else { octets };
    for (what, octets) in [
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("PING that was not asked for", frame(PING, ACK, 0, &[0; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("PRIORITY", frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
        ("WINDOW_UPDATE of a stream", frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes())),
        ("WINDOW_UPDATE of nothing", frame(WINDOW_UPDATE, 0, 1, &[0; 4])),
        ("DATA without data", frame(DATA, 0, 1, &[])),
        ("padding", frame(DATA, 0x8, 1, &[&[200][..], &[0; 200]].concat())),
        ("unknown frames", frame(0xbe, 0, 1, &[])),
    ] {
        flood(&stand, what, 50_000, |round| first(round, octets.clone()));
    }
    assert_eq!(stand.get("/nowhere").send().status(), 404);
}

#[test]
fn a_head_without_end_is_cut() {
    let (_upstream, stand, _key) = silent();
    for (what, piece) in [
        ("fields", literal("x-a", "b".repeat(1000))),
        ("nothing", Vec::new()),
        ("a table of its own", [&[0x40][..], &literal("x-a", "b".repeat(1000))[1..]].concat()),
    ] {
        let start = frame(HEADERS, END_STREAM, 1, &block(&get("/echo/x")));
        let word = flood(&stand, what, 20_000, |round| {
            let more = frame(CONTINUATION, 0, 1, &piece);
            if round == 0 { [start.clone(), more].concat() } else { more }
        });
        assert!(word.is_some_and(|code| code != 0), "{what}: {word:?}");
    }
}

#[test]
fn a_head_that_unpacks_to_a_hundred_times_its_size_is_refused() {
    let (upstream, stand, key) = silent();
    let mut client = Http2::open(stand.gateway.public);
    // One field of 4000 octets in the table, then a thousand times one octet that stands for it.
    let mut bomb = [&[0x40][..], &literal("x-bomb", "b".repeat(4000))[1..]].concat();
    bomb.extend([0x80 | 62; 1000]);
    let head = [fields(&key), bomb].concat();
    let stream = client.start_block(&head, true);
    let answer = client.answer(stream);
    assert!(matches!(answer.status(), 0 | 431), "{answer:?}");
    assert!(upstream.requests().is_empty());
}

#[test]
fn a_peer_that_sends_no_preface_or_half_a_head_is_sent_away_in_time() {
    let upstream = Scripted::start(|wire| while wire.request().is_some() {});
    let stand = Stand::new().upstream(upstream.address).section("timeouts: { header: 1s, keepalive: 2s }").start();
    let mut half_preface = Transport::plain(stand.gateway.public);
    std::io::Write::write_all(&mut half_preface, b"PRI * HT").unwrap();
    let mut half_head = Http2::open(stand.gateway.public);
    half_head.send(&frame(HEADERS, END_HEADERS, 1, &block(&get("/echo/x")))[..20]);
    let mut open_head = Http2::open(stand.gateway.public);
    open_head.frame(HEADERS, 0, 1, &block(&get("/echo/x")));
    let mut silent = Http2::open(stand.gateway.public);
    let start = Instant::now();
    assert_eq!(std::io::Read::read(&mut half_preface, &mut [0; 9]).unwrap_or(0), 0);
    half_head.last_word();
    open_head.last_word();
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    silent.last_word();
    assert!(
        start.elapsed() >= Duration::from_millis(1500) && start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn honest_clients_stay_far_from_the_limits() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let mut client = Http2::open(stand.gateway.public);
    for round in 0..1500 {
        // What a careful client sends around each request.
        client.frame(WINDOW_UPDATE, 0, 0, &100_u32.to_be_bytes());
        client.frame(PRIORITY, 0, 2 * round + 1, &[0, 0, 0, 0, 1]);
        let answer = client.get("/echo/x", &key);
        assert_eq!(answer.status(), 200, "{round}: {answer:?}");
    }
    let download = client.get("/echo/x?bytes=20000000", &key).expect(200);
    assert_eq!(download.body.len(), 20_000_000);
    eventually("the connection goes on", Duration::from_secs(5), || client.get("/echo/x", &key).status() == 200);
}
