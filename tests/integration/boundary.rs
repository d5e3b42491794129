//! The end of a minute, under load: no window admits more than its limit, and none less.
//!
//! A module of its own, first by name, because it waits up to a minute: the others run beside it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use super::support::{Gateway, Key, Stand, seconds_now};

/// How many of these are admitted by the windows that the answers name: window by its end, count.
fn by_window(gateways: &[&Gateway], key: &Key, connections: usize, until: u64) -> BTreeMap<u64, u64> {
    let counted = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for index in 0..connections {
            let (counted, gateway) = (&counted, gateways[index % gateways.len()]);
            scope.spawn(move || {
                let request = gateway.get("/echo/x?bytes=2").bearer(key);
                let mut connection = gateway.connect();
                while seconds_now() < until {
                    let response = request.on(&mut connection);
                    match response.status() {
                        200 => *counted.lock().unwrap().entry(response.number("x-ratelimit-reset")).or_default() += 1,
                        429 => {}
                        other => panic!("{other}: {}", response.text()),
                    }
                }
            });
        }
    });
    counted.into_inner().unwrap()
}

#[test]
fn over_the_boundary_of_a_minute_each_window_admits_exactly_its_60() {
    let stand = Stand::new().start();
    let (second, third) = (stand.another_gateway(), stand.another_gateway());
    let key = stand.key().plan("free").create();
    // The one long wait of the suite: for the end of a minute.
    let end = (seconds_now() / 60 + 1) * 60;
    while seconds_now() < end - 2 {
        thread::sleep(Duration::from_millis(50));
    }
    let admitted = by_window(&[&stand.gateway, &second, &third], &key, 12, end + 3);
    let expected = BTreeMap::from([(end, 60), (end + 60, 60)]);
    assert_eq!(admitted, expected);
    // What a client was told and what the store keeps is the same.
    let response = stand.get("/echo/x").bearer(&key).send().expect_refusal(429, "rate_limited");
    assert!(response.expect_header("ratelimit").contains("\"day\";r=880;"), "{response:?}");
}
