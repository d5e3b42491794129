//! Random requests: whatever comes over a socket, the gateway answers or closes, and goes on.
//!
//! 20,000 by default; `SEEME_RANDOM_REQUESTS=100000` for more, `SEEME_RANDOM_SEED` to repeat a run.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::support::{Connection, Key, Stand, eventually};

/// xorshift64*: small, and the same everywhere for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

const METHODS: [&str; 12] =
    ["GET", "GET", "GET", "POST", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"];
const SEGMENTS: [&str; 24] = [
    "echo",
    "echo",
    "public",
    "models",
    "m-1",
    "m-2",
    "api",
    "v1",
    "api-keys",
    "me",
    "apikeys",
    "current",
    "usage",
    "events",
    "chat",
    "..",
    ".",
    "%2e%2e",
    "a%2fb",
    "%00",
    "%",
    ";x",
    "%e2%82%ac",
    "x",
];
const PATHS: [&str; 8] = [
    "/echo/x",
    "/public/x",
    "/echo/models/m-1",
    "/echo/chat",
    "/api/v1/api-keys",
    "/api/v1/api-keys/current",
    "/api/v1/me/apikeys",
    "/any",
];
const NAMES: [&str; 20] = [
    "X-A",
    "X-SeeMe-Key-Id",
    "x_seeme_scopes",
    "Connection",
    "Via",
    "TE",
    "Trailer",
    "Upgrade",
    "Expect",
    "Content-Encoding",
    "Content-Type",
    "traceparent",
    "X-Forwarded-For",
    "Forwarded",
    "Authorization",
    "Host",
    "Range",
    "Cookie",
    "X-Model",
    "Keep-Alive",
];
const VALUES: [&str; 18] = [
    "",
    "x",
    "close",
    "keep-alive, X-A",
    "trailers",
    "100-continue",
    "gzip",
    "chunked",
    "h2c",
    "00-x-y-z",
    "127.0.0.1",
    "Bearer x",
    "Bearer sm_live_0",
    "a\tb",
    "caf\u{e9}",
    "\"",
    "a,b;c=d",
    "*",
];
const BODIES: [&str; 10] = [
    "",
    "x",
    "{}",
    "{\"model\":\"m-1\"}",
    "{\"model\":\"m-2\",\"Model\":\"m-1\"}",
    "[",
    "{\"name\":\"n\",\"scopes\":[\"models:read\"]}",
    "{\"name\":1}",
    "null",
    "\u{0}\u{1}",
];

/// The bytes of a request, and the method as far as the framing of its answer depends on it.
fn request(random: &mut Random, keys: &[Key]) -> (Vec<u8>, &'static str) {
    let method = random.pick(&METHODS);
    let mut target = if random.one_in(2) {
        random.pick(&PATHS).to_owned()
    } else {
        (0..random.below(6) + 1).map(|_| format!("/{}", random.pick(&SEGMENTS))).collect()
    };
    if random.one_in(4) {
        target += &format!(
            "?{}={}",
            random.pick(&["model", "status", "delay", "include", "%"]),
            random.pick(&["m-1", "204", "304", "500", "%zz"])
        );
    }
    if random.one_in(40) {
        target += &"/long".repeat(random.below(8000));
    }
    let mut bytes = format!("{method} {target} HTTP/1.{}\r\n", usize::from(!random.one_in(30)));
    if !random.one_in(50) {
        bytes += "Host: gateway.example\r\n";
    }
    if !random.one_in(4) {
        bytes += &format!("Authorization: Bearer {}\r\n", keys[random.below(keys.len())].secret);
    }
    for _ in 0..random.below(5) {
        bytes += &format!("{}: {}\r\n", random.pick(&NAMES), random.pick(&VALUES));
    }
    if random.one_in(60) {
        bytes += &"X-Many: v\r\n".repeat(random.below(300));
    }
    let body = random.pick(&BODIES).repeat(if random.one_in(20) { random.below(50_000) } else { 1 });
    match random.below(6) {
        0..3 => bytes += "\r\n",
        3 => {
            bytes += &format!("Content-Length: {}\r\n\r\n", body.len());
            bytes += &body;
        }
        4 => {
            bytes += "Transfer-Encoding: chunked\r\n\r\n";
            for chunk in body.as_bytes().chunks(1000) {
                bytes += &format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk));
            }
            bytes += "0\r\n\r\n";
        }
        _ => {
            bytes += &format!(
                "Content-Length: {}\r\n\r\n{body}",
                random.pick(&["0", "5", "-1", "x", "99999999999999999999"])
            )
        }
    }
    let mut bytes = bytes.into_bytes();
    if random.one_in(25) {
        // Damage: a few octets of the message become others.
        for _ in 0..random.below(4) + 1 {
            let at = random.below(bytes.len());
            bytes[at] = random.next() as u8;
        }
    }
    let method = if bytes.starts_with(b"HEAD ") { "HEAD" } else { "GET" };
    (bytes, method)
}

/// Sends requests over kept connections; returns how many were answered.
fn bombard(stand: &Stand, keys: &[Key], requests: u64, seed: u64) -> u64 {
    let mut random = Random(seed | 1);
    let mut connection: Option<Connection> = None;
    let mut answered = 0;
    for number in 0..requests {
        let (bytes, method) = request(&mut random, keys);
        let mut open = connection.take().unwrap_or_else(|| stand.connect());
        open.set_patience(Duration::from_millis(500));
        if open.try_send(&bytes).is_err() {
            continue;
        }
        match open.try_response(method) {
            Ok(response) => {
                answered += 1;
                let status = response.status();
                let theirs = bytes.windows(7).any(|part| part == b"=500 HT")
                    || response.head.all("content-type") == ["application/json"];
                assert!(
                    status < 500 || status == 505 || theirs,
                    "seed {seed}, request {number}: {response:?}\n{:?}",
                    String::from_utf8_lossy(&bytes)
                );
                let closes = response.head.all("connection").iter().any(|value| value.eq_ignore_ascii_case("close"));
                // Only a request whose framing is beyond doubt leaves a connection that the next one may use.
                let clear = bytes.ends_with(b"\r\n\r\n")
                    && !bytes.windows(8).any(|part| part.eq_ignore_ascii_case(b"content-"));
                if response.complete && !closes && clear {
                    connection = Some(open);
                }
            }
            // Waits for the rest of a body that was announced, or was told too little to answer: closing is fine.
            Err(_) => drop(open),
        }
    }
    answered
}

#[test]
fn random_requests_make_no_panic_and_no_5xx_but_the_backends() {
    let stand = Stand::new()
        .route("* /echo/{*rest}", "scope: models:read")
        .route("* /echo/models/{id}", "scope: models:read, resources: { model: path.id }")
        .route("POST|PUT /echo/chat", "scope: models:read, resources: { model: body./model }")
        .route("* /public/{*rest}", "access: public")
        .route("GET|POST /any", "access: authenticated, organization: header.X-Model")
        .section("limits: { body_bytes: 256KiB }")
        .start();
    let keys = [
        stand.key().scope("*").create(),
        stand.key().scope("models:read").model("m-1").create(),
        stand.key().scope("api-keys:*").scope("models:*").organization("o-1").create(),
        stand.key().scope("nothing:known").create(),
        stand.key().plan("free").create(),
    ];
    let requests = number("SEEME_RANDOM_REQUESTS", 20_000);
    let seed = number("SEEME_RANDOM_SEED", SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
    println!("{requests} requests, SEEME_RANDOM_SEED={seed}");
    let threads = 8;
    let answered: u64 = std::thread::scope(|scope| {
        let (stand, keys) = (&stand, &keys);
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || bombard(stand, keys, requests / threads, seed.wrapping_add(thread * 0x9E37_79B9)))
            })
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    println!("{answered} were answered");
    assert!(answered > requests / 2, "only {answered} of {requests} were answered");
    assert_eq!(stand.gateway.metric("gateway_panics_total", ""), Some(0.0));
    assert!(!stand.gateway.process.stderr().contains("panic"), "{}", stand.gateway.process.stderr());
    stand.get("/echo/x").bearer(&keys[0]).send().expect_status(200);
    eventually("nothing hangs", Duration::from_secs(30), || {
        stand.gateway.metric("gateway_requests_in_flight", "") == Some(0.0)
            && stand.gateway.metric("gateway_connections", "") == Some(0.0)
    });
}
