//! The tools themselves: Redis servers of every topology that start, fail and end as told, and the proxy that breaks links.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::servers::{
    Certificates, ClientCertificate, Cluster, FaultProxy, RedisServer, Reply, RespConnection, Sentinels,
};
use crate::support::eventually;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_killed_server_refuses_and_comes_back_empty_on_the_same_port() {
    let redis = RedisServer::start();
    redis.cli(&["SET", "a", "1"]);
    assert_eq!(redis.cli(&["GET", "a"]), "1");
    redis.kill();
    assert_eq!(TcpStream::connect(("127.0.0.1", redis.port())).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    redis.restart();
    assert_eq!(redis.command(&["GET", "a"]), Reply::Nil);
}

#[test]
fn arguments_win_over_the_usual_ones() {
    let redis = RedisServer::start_with(&["--maxmemory", "3mb", "--appendonly", "yes", "--appendfsync", "always"]);
    assert_eq!(redis.cli(&["CONFIG", "GET", "maxmemory"]), "maxmemory\n3145728");
    redis.cli(&["SET", "a", "1"]);
    redis.restart();
    assert_eq!(redis.cli(&["GET", "a"]), "1");
}

#[test]
fn a_stopped_server_answers_when_it_continues() {
    let redis = RedisServer::start();
    let mut connection = redis.connect().unwrap();
    redis.stop_signal();
    connection.send(&["INCR", "a"]).unwrap();
    let waiting = std::thread::spawn(move || connection.reply().unwrap());
    // Still without an answer, and a new connection still is accepted: by the system.
    let mut other = TcpStream::connect(("127.0.0.1", redis.port())).unwrap();
    other.write_all(b"PING\r\n").unwrap();
    other.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert_eq!(other.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert!(!waiting.is_finished());
    redis.cont();
    assert_eq!(waiting.join().unwrap(), Reply::Integer(1));
}

#[test]
fn a_stopped_server_can_be_killed() {
    let redis = RedisServer::start();
    redis.stop_signal();
    redis.kill();
    assert!(!redis.is_running());
}

#[test]
fn the_monitor_tells_every_command_so_far() {
    let redis = RedisServer::start();
    let mut monitor = redis.monitor();
    redis.cli(&["SET", "first", "1"]);
    redis.cli(&["EVAL", "return redis.call('GET', KEYS[1])", "1", "second"]);
    let lines = monitor.lines();
    assert!(lines.iter().any(|line| line.ends_with(r#""SET" "first" "1""#)), "{lines:?}");
    assert!(lines.iter().any(|line| line.ends_with(r#"lua] "GET" "second""#)), "{lines:?}");
    assert_eq!(monitor.lines(), Vec::<String>::new());
}

#[test]
fn a_user_has_only_the_rules_it_was_given() {
    let redis = RedisServer::start();
    redis.create_user("gateway", "p4ss", &["~seeme:*", "+get"]);
    redis.cli(&["ACL", "SETUSER", "default", "off"]);
    let mut connection = RespConnection::open(redis.port()).unwrap();
    assert!(matches!(connection.command(&["GET", "seeme:a"]).unwrap(), Reply::Error(e) if e.starts_with("NOAUTH")));
    connection.command(&["AUTH", "gateway", "p4ss"]).unwrap();
    assert_eq!(connection.command(&["GET", "seeme:a"]).unwrap(), Reply::Nil);
    assert!(matches!(connection.command(&["GET", "other"]).unwrap(), Reply::Error(e) if e.starts_with("NOPERM")));
    assert!(
        matches!(connection.command(&["SET", "seeme:a", "1"]).unwrap(), Reply::Error(e) if e.starts_with("NOPERM"))
    );
}

/// For the next test, which runs this one in a process of its own and kills that.
#[test]
fn holds_a_server_for_as_long_as_it_is_told() {
    if std::env::var_os("HOLD_A_SERVER").is_some() {
        let redis = RedisServer::shared();
        redis.stop_signal();
        println!("\nholding {} {}", redis.pid(), redis.folder().display());
        let _ = io::stdin().read(&mut [0]);
    }
}

#[test]
fn a_server_ends_with_the_test_process_even_when_both_are_in_no_state_to_help() {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "redis_harness::holds_a_server_for_as_long_as_it_is_told", "--nocapture"])
        .env("HOLD_A_SERVER", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(process.stdout.take().unwrap());
    let line = output.lines().find_map(|line| Some(line.unwrap().strip_prefix("holding ")?.to_owned())).unwrap();
    let (pid, folder) = line.split_once(' ').unwrap();
    let server = format!("/proc/{pid}");
    assert!(Path::new(&server).exists() && Path::new(folder).exists());
    process.kill().unwrap();
    process.wait().unwrap();
    eventually("the server is gone", PATIENCE, || !Path::new(&server).exists() && !Path::new(folder).exists());
}

#[test]
fn sentinels_promote_a_replica_and_take_the_old_master_back() {
    let redis = Sentinels::start();
    redis.master().cli(&["SET", "a", "1"]);
    redis.master().cli(&["WAIT", "2", "5000"]);
    let old = redis.kill_master();
    let new = redis.await_new_master(old);
    assert_ne!(old, new);
    assert_eq!(redis.master_port(), new);
    assert_eq!(redis.master().cli(&["GET", "a"]), "1");
    assert_eq!(redis.master().cli(&["INCR", "a"]), "2");
    redis.heal();
    assert_eq!(redis.master_port(), new);
    assert_eq!(redis.server(old).cli(&["GET", "a"]), "2");
}

#[test]
fn a_cluster_moves_slots_with_their_keys_and_replaces_a_master() {
    let redis = Cluster::start();
    let slot = redis.slot_of("{a}1");
    let from = redis.master_of(slot);
    let to = (from + 1) % 3;
    redis.node(from).cli(&["SET", "{a}1", "one"]);
    redis.node(from).cli(&["SET", "{a}2", "two"]);

    redis.begin_move(from, to, slot);
    let elsewhere = |number: usize, word: &str| format!("{word} {slot} 127.0.0.1:{}", redis.node(number).port());
    assert_eq!(redis.node(from).command(&["GET", "{a}3"]), Reply::Error(elsewhere(to, "ASK")));
    redis.move_keys(from, to, slot);
    redis.end_move(from, to, slot);
    assert_eq!(redis.master_of(slot), to);
    assert_eq!(redis.node(from).command(&["GET", "{a}1"]), Reply::Error(elsewhere(to, "MOVED")));
    assert_eq!(redis.node(to).cli(&["MGET", "{a}1", "{a}2"]), "one\ntwo");
    redis.move_slots(to, from, [slot]);
    assert_eq!(redis.node(from).cli(&["GET", "{a}2"]), "two");

    redis.node(from).cli(&["WAIT", "1", "5000"]);
    redis.kill(from);
    let new = redis.await_new_master(slot, from);
    assert_eq!(new, from + 3, "its replica");
    assert_eq!(redis.node(new).cli(&["GET", "{a}1"]), "one");
    redis.heal();
    assert_eq!(redis.masters().len(), 3);
    assert_eq!(redis.node(from).info("replication", "role").as_deref(), Some("slave"));
}

#[test]
fn tls_admits_a_client_of_its_own_authority_only() {
    let redis = RedisServer::start_tls(ClientCertificate::Required);
    let certificates = redis.certificates();
    let pong = |client: Option<&Certificates>| ping_over_tls(redis.tls_port(), &certificates.ca, client);
    assert_eq!(pong(Some(certificates)).unwrap(), "+PONG\r\n");
    pong(None).unwrap_err();
    let folder = tempfile::tempdir().unwrap();
    let foreign = Certificates::issue(folder.path());
    pong(Some(&foreign)).unwrap_err();
    ping_over_tls(redis.tls_port(), &foreign.ca, Some(certificates)).unwrap_err();

    let open = RedisServer::start_tls(ClientCertificate::NotAsked);
    assert_eq!(ping_over_tls(open.tls_port(), &open.certificates().ca, None).unwrap(), "+PONG\r\n");
}

fn ping_over_tls(port: u16, ca: &Path, client: Option<&Certificates>) -> io::Result<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let config = match client {
        Some(files) => {
            let certificate = CertificateDer::from_pem_file(&files.client_certificate).unwrap();
            config.with_client_auth_cert(vec![certificate], PrivateKeyDer::from_pem_file(&files.client_key).unwrap())
        }
        None => Ok(config.with_no_client_auth()),
    };
    let session = rustls::ClientConnection::new(Arc::new(config.unwrap()), "localhost".try_into().unwrap()).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = rustls::StreamOwned::new(session, stream);
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Sends back what it receives, on every connection.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    port
}

fn through(proxy: &FaultProxy) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends bytes and waits until as many have come back.
fn round_trip(stream: &mut TcpStream, bytes: &[u8]) -> Duration {
    let start = Instant::now();
    stream.write_all(bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    assert!(back == bytes, "other bytes came back");
    start.elapsed()
}

#[test]
fn the_proxy_delays_each_direction_by_its_latency_and_thins_out_nothing() {
    let proxy = FaultProxy::to(echo());
    let mut stream = through(&proxy);
    round_trip(&mut stream, b"ping");
    assert_eq!((proxy.connections(), proxy.bytes_to_server(), proxy.bytes_to_client()), (1, 4, 4));
    let (there, back) = (Duration::from_millis(80), Duration::from_millis(60));
    proxy.latency(there, back);
    assert!(round_trip(&mut stream, b"ping") >= there + back);
    assert!((proxy.bytes_to_server(), proxy.bytes_to_client()) == (8, 8));
    // More than what fits into one piece: latency is paid once, not for each piece.
    let mut writer = stream.try_clone().unwrap();
    let much = vec![b'x'; 1 << 20];
    let start = Instant::now();
    let sending = std::thread::spawn(move || writer.write_all(&much));
    io::copy(&mut (&stream).take(1 << 20), &mut io::sink()).unwrap();
    sending.join().unwrap().unwrap();
    let took = start.elapsed();
    assert!(took < (there + back) * 10, "{took:?}");
    proxy.latency(Duration::ZERO, Duration::ZERO);
    assert!(round_trip(&mut stream, b"ping") < there);
}

#[test]
fn a_stalled_proxy_holds_bytes_and_ends_both_ways_and_loses_none() {
    let proxy = FaultProxy::to(echo());
    let mut before = through(&proxy);
    round_trip(&mut before, b"ping");
    proxy.stall();
    let mut after = through(&proxy);
    for stream in [&mut before, &mut after] {
        stream.write_all(b"held").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
    assert_eq!(proxy.bytes_to_server(), 4);
    proxy.resume();
    for mut stream in [before, after] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut held = String::new();
        stream.read_to_string(&mut held).unwrap();
        assert_eq!(held, "held");
    }
    eventually("both are closed", PATIENCE, || proxy.open_connections() == 0);
}

#[test]
fn a_reset_reaches_both_sides_and_leaves_the_proxy_open() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = FaultProxy::to(listener.local_addr().unwrap().port());
    let mut client = through(&proxy);
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    // Also while bytes are held.
    proxy.stall();
    client.write_all(b"x").unwrap();
    proxy.reset();
    proxy.resume();
    for stream in [&mut client, &mut server] {
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
    assert_eq!(proxy.open_connections(), 0);
    drop(through(&proxy));
    listener.accept().unwrap();
}

#[test]
fn a_cut_comes_after_exactly_so_many_bytes_of_replies_on_each_connection() {
    let proxy = FaultProxy::to(echo());
    let mut before = through(&proxy);
    round_trip(&mut before, b"ping");
    proxy.cut_replies_after(6);
    let after = through(&proxy);
    for mut stream in [before, after] {
        round_trip(&mut stream, b"ping");
        stream.write_all(b"ping").unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"pi");
    }
    proxy.stop_cutting();
    round_trip(&mut through(&proxy), b"ping ping");
}

#[test]
fn a_proxy_that_is_down_refuses_and_keeps_what_it_has() {
    let proxy = FaultProxy::to(echo());
    let mut stream = through(&proxy);
    round_trip(&mut stream, b"ping");
    proxy.down();
    assert_eq!(TcpStream::connect(("127.0.0.1", proxy.port())).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    round_trip(&mut stream, b"ping");
    proxy.up();
    round_trip(&mut through(&proxy), b"ping");
    assert_eq!(proxy.connections(), 2);
}

#[test]
fn a_proxy_before_a_dead_server_closes_what_it_accepts() {
    let redis = RedisServer::start();
    let proxy = FaultProxy::to(redis.port());
    redis.kill();
    assert!(matches!(through(&proxy).read(&mut [0]), Ok(0) | Err(_)));
    redis.restart();
    let mut connection = RespConnection::open(proxy.port()).unwrap();
    assert_eq!(connection.command(&["PING"]).unwrap(), Reply::Status("PONG".to_owned()));
}
