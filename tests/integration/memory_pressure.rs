//! Experiment 19, where memory is short: what would need it is told 503, and nobody else notices. The half about descriptors is in
//! `connection_caps`.

use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::support::{Connection, Load, Stand, count, eventually, print_seconds};

const CLIENTS: usize = 1000;
/// What all bodies under inspection may hold by default, in bodies as large as one may be.
const PLACES: usize = 64;
const MIB: usize = 1 << 20;
/// What the process may take beyond what it has: far less than its clients want it to hold.
const ROOM: u64 = 256 << 20;
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_thousand_bodies_that_would_have_to_be_held_are_shed_before_memory_runs_out() {
    let stand = Stand::new()
        .route("POST /echo/held", "scope: models:read, resources: { model: body./model }")
        .route("GET /echo/{*rest}", "scope: models:read")
        .start();
    let (key, limited) = (stand.key().create(), stand.key().model("A").create());
    let process = &stand.gateway.process;
    let load = Load::on(&[&stand.gateway]).keys([&key]).connections(20).rate(200.0).start();
    eventually("all connections of the load are there", SOON, || load.begun() > 100);
    let before = process.resident();
    let space = process.memory("VmSize") * 1024 + ROOM;
    let pid = Pid::from_raw(i32::try_from(process.pid()).unwrap()).unwrap();
    prlimit(Some(pid), Resource::As, Rlimit { current: Some(space), maximum: Some(space) }).unwrap();

    let body = format!("{{\"model\": \"A\"{}}}", " ".repeat(MIB - 14));
    let request = stand.post("/echo/held").bearer(&limited).body(&body);
    let (bytes, mut held, mut shed) = (request.bytes(), Vec::new(), 0);
    assert_eq!(body.len(), MIB);
    for _ in 0..CLIENTS {
        let mut connection = stand.connect();
        connection.set_patience(Duration::from_millis(50));
        // All but its end, so that it stays where it is. One that is refused may be told before it has sent all.
        let _ = connection.try_send(&bytes[..bytes.len() - 1]);
        match connection.try_response("POST") {
            Ok(answer) => {
                assert!(answer.expect_refusal(503, "overloaded").number("retry-after") >= 1);
                shed += 1;
            }
            Err(_) => held.push(connection),
        }
    }
    let grown = process.resident().saturating_sub(before);
    println!("{} bodies held, {shed} shed; {grown} KiB more in memory", held.len());
    assert_eq!((held.len(), shed), (PLACES, CLIENTS - PLACES));
    assert!(grown < 2 * (PLACES * MIB / 1024) as u64, "{grown} KiB");
    // Those that are held are served when they are whole, and their room is free again.
    let mut rest = held.split_off(PLACES / 2);
    for connection in &mut held {
        connection.set_patience(SOON);
        connection.send("}");
        connection.response("POST").expect_status(200);
    }
    rest.drain(..).for_each(Connection::abort);
    let free = eventually("there is room", SOON, || request.send().status() == 200);
    let shots = load.stop();
    print_seconds("who was there", &shots);
    println!("room again after {free:.1?}");
    assert_eq!(count(&shots, |status| status != 200), 0, "of {}", shots.len());
}
