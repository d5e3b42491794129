//! HTTP/1, differential: what passes the gate means to hyper exactly what it means to a strict reader of the octets received, however
//! they are cut into reads.

use std::sync::Arc;

use http::Method;
use seeme_gateway::wire::http1::{Answers, Exchange, Gate, Messages, RequestLimits, Requests};

use super::mutation::{Random, run};
use super::reference::{Message, lenient, strict};

const WORDS: [&[u8]; 34] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b"\0",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Host: a\r\n",
    b"GET /x HTTP/1.1\r\n",
    b"POST /y HTTP/1.1\r\n",
    b"HTTP/1.0",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b";a=\"b\"",
    b"0x",
    b"+",
    b"-",
    b",",
    b"chunked",
    b"#",
    b"http://a/",
    b"*",
    b"Expect: 100-continue\r\n",
    b"Upgrade: x\r\n",
    b"X: y\r\n",
    b" X: y\r\n",
    b"X : y\r\n",
    b"00000000000000000",
    b"ffffffffffffffff",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
];

/// What passes a gate when the octets come in reads of such lengths; and whether it shut.
fn passed<M: Messages>(gate: &mut Gate<M>, mut octets: &[u8], mut length: impl FnMut() -> usize) -> (Vec<u8>, bool) {
    let mut out = Vec::new();
    while !octets.is_empty() && !gate.is_shut() {
        let (read, rest) = octets.split_at(length().clamp(1, octets.len()));
        octets = rest;
        let count = gate.sift(read);
        out.extend_from_slice(&read[..count]);
        loop {
            let handed = gate.hand_over(|ready| {
                // As little as a full buffer would take.
                let some = ready.len().min(3);
                out.extend_from_slice(&ready[..some]);
                some
            });
            if !handed && gate.waits().is_none() {
                break;
            }
            if gate.waits().is_some() {
                gate.settle();
            }
        }
    }
    (out, gate.is_shut())
}

fn requests(octets: &[u8], length: impl FnMut() -> usize) -> (Vec<Message>, bool) {
    let limits = RequestLimits { head: 8192, fields: 100, target: 4096 };
    let mut gate = Gate::new(Requests::new(limits));
    let (mut out, shut) = passed(&mut gate, octets, length);
    // In the place of a message that was refused as a whole stands one that no client can send.
    if gate.take_refused().is_some() {
        let stand_in =
            [&b"GET / HTTP/1.1\r\n\r\n"[..], b"HEAD / HTTP/1.1\r\n\r\n"].into_iter().find(|s| out.ends_with(s));
        out.truncate(out.len() - stand_in.expect("a stand-in").len());
    }
    (lenient(&out), shut)
}

#[test]
fn what_is_authorized_is_what_was_sent_and_what_is_forwarded() {
    run("requests", &WORDS, |input, random| {
        let sent = strict(input);
        let mut cuts: Vec<(Vec<Message>, bool)> = Vec::new();
        for most in [usize::MAX, 1, 2, 40] {
            let length = |random: &mut Random| if most > 2 && most < 100 { 1 + random.below(most) } else { most };
            cuts.push(requests(input, || length(random)));
        }
        let (seen, shut) = &cuts[0];
        assert!(seen.len() <= sent.len(), "more was forwarded than sent: {seen:?}");
        assert_eq!(seen[..], sent[..seen.len()], "another request was forwarded than was sent");
        // Refusing is the gate's to decide; losing a message without a word is not.
        assert!(*shut || seen.len() == sent.len(), "a request vanished: {sent:?}");
        for (other, _) in &cuts[1..] {
            assert_eq!(seen, other, "the cut decides");
        }
    });
}

#[test]
fn what_passes_of_answers_does_not_depend_on_how_they_are_cut() {
    run("answers", &WORDS, |input, random| {
        let mut through = |most: usize| {
            let exchange = Arc::new(Exchange::default());
            exchange.begin(&Method::GET, false);
            exchange.wrote();
            let mut gate = Gate::new(Answers::new(exchange.clone()));
            let (out, shut) = passed(&mut gate, input, || if most == 7 { 1 + random.below(7) } else { most });
            assert!(input.starts_with(&out), "octets that did not come");
            (out, shut, exchange.is_spoilt())
        };
        let (whole, shut, _) = through(usize::MAX);
        for most in [1, 7] {
            let (cut, cut_shut, _) = through(most);
            // Cut, the good part of an answer may have passed before its bad part came.
            assert!(cut.starts_with(&whole), "{:?}", String::from_utf8_lossy(&cut));
            assert_eq!(shut, cut_shut);
            assert!(shut || cut == whole);
        }
        // hyper's parser takes every head that passes.
        let mut rest = &whole[..];
        while rest.starts_with(b"HTTP/1.1 1") {
            let mut fields = [httparse::EMPTY_HEADER; 100];
            let parsed = httparse::Response::new(&mut fields).parse(rest).expect("hyper's parser takes what passes");
            let httparse::Status::Complete(length) = parsed else { break };
            rest = &rest[length..];
        }
        if !rest.is_empty() {
            let mut fields = [httparse::EMPTY_HEADER; 100];
            let mut answer = httparse::Response::new(&mut fields);
            answer.parse(rest).expect("hyper's parser takes what passes");
        }
    });
}
