//! Tests of what the process knows of an upstream, in time that the test lets pass.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::config;
use crate::upstream::dns::resolve_now;

/// A resolver that answers what a test last told it.
#[derive(Debug, Clone, Default)]
struct Names {
    known: Arc<Mutex<HashMap<String, Vec<SocketAddr>>>>,
    asked: Arc<AtomicUsize>,
}

impl Names {
    fn set(&self, name: &str, last_octets: &[u8]) {
        let addresses = last_octets.iter().map(|octet| address(*octet)).collect();
        self.known.lock().unwrap().insert(name.to_owned(), addresses);
    }

    fn forget(&self, name: &str) {
        self.known.lock().unwrap().remove(name);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn resolve(&self) -> Resolve {
        let names = self.clone();
        Arc::new(move |name| {
            names.asked.fetch_add(1, Ordering::Relaxed);
            let found = names.known.lock().unwrap().get(&*name).cloned();
            Box::pin(async move { found.ok_or_else(|| io::ErrorKind::NotFound.into()) })
        })
    }
}

fn address(last_octet: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last_octet], 80))
}

fn upstream(members: &str) -> Upstream {
    let text = format!(
        "listen: {{ public: {{ address: 127.0.0.1:1 }} }}
store: {{ url: \"sqlite:x.db\" }}
upstreams: {{ main: {{ {members} }} }}
routes: [{{ match: GET /, access: public }}]
"
    );
    let (mut config, _) = config::parse(Path::new("gateway.yaml"), &text, &|_| None).unwrap();
    config.upstreams.remove(0)
}

fn start(members: &str, names: &Names, earlier: Option<&Arc<Cluster>>) -> Arc<Cluster> {
    let (upstream, metrics) = (upstream(members), Arc::new(Metrics::new().upstream(&"main".into())));
    let fields = fields::read(&upstream).unwrap();
    Cluster::start(upstream, fields, 1, metrics, &Handle::current(), names.resolve(), earlier)
}

/// Last octets and weights of those that get requests.
fn chosen(cluster: &Cluster) -> Vec<(u8, u64)> {
    let octet = |endpoint: &Endpoint| match endpoint.peer.address {
        SocketAddr::V4(v4) => v4.ip().octets()[3],
        SocketAddr::V6(_) => 0,
    };
    cluster.selection().endpoints().iter().map(|endpoint| (octet(endpoint), endpoint.weight)).collect()
}

fn octets(cluster: &Cluster) -> Vec<u8> {
    chosen(cluster).into_iter().map(|(octet, _)| octet).collect()
}

fn peer(cluster: &Cluster, last_octet: u8) -> Arc<Peer> {
    cluster.peers().into_iter().find(|peer| peer.address == address(last_octet)).unwrap()
}

async fn pass(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

const TWO: &str = "endpoints: [\"http://10.0.0.1\", \"http://10.0.0.2\"]";
const NAMED: &str = "endpoints: [\"http://pods\"]";

#[tokio::test(start_paused = true)]
async fn all_addresses_of_a_name_share_its_weight_and_follow_it() {
    let names = Names::default();
    names.set("pods:80", &[1, 2]);
    let members = "endpoints: [\"http://pods\", \"http://10.0.0.9\"], weights: [1, 3], dns_refresh: 30s";
    let cluster = start(members, &names, None);
    pass(1).await;
    let mut both = chosen(&cluster);
    both.sort_unstable();
    assert_eq!(both, [(1, WEIGHT / 2), (2, WEIGHT / 2), (9, 3 * WEIGHT)]);

    let gone = cluster.selection().endpoints().iter().find(|e| e.peer.address == address(1)).unwrap().clone();
    let stays = peer(&cluster, 2);
    names.set("pods:80", &[2, 3, 4]);
    pass(28).await;
    assert_eq!(octets(&cluster).len(), 3, "not before its time");
    pass(2).await;
    let mut now = octets(&cluster);
    now.sort_unstable();
    assert_eq!(now, [2, 3, 4, 9]);
    assert!(Arc::ptr_eq(&stays, &peer(&cluster, 2)), "what stays keeps its connections and its count");
    assert!(gone.pools[0].is_retired(), "what is gone keeps none");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_not_found_keeps_its_addresses() {
    let names = Names::default();
    names.set("pods:80", &[1, 2]);
    let cluster = start(NAMED, &names, None);
    pass(1).await;
    names.forget("pods:80");
    pass(90).await;
    assert_eq!(octets(&cluster), [1, 2]);
    names.set("pods:80", &[]);
    pass(90).await;
    assert_eq!(octets(&cluster), [1, 2], "nor does an answer without any address take them away");
    names.set("pods:80", &[3]);
    pass(2).await;
    assert_eq!(octets(&cluster), [3], "asked again soon after a failure");
}

#[tokio::test(start_paused = true)]
async fn requests_before_the_first_answer_ask_once_together_and_no_more_often_than_once_a_second() {
    let names = Names::default();
    let cluster = start(NAMED, &names, None);
    let ask = || async {
        tokio::join!(resolve_now(&cluster), resolve_now(&cluster), resolve_now(&cluster));
        octets(&cluster)
    };
    assert_eq!(ask().await, [0; 0]);
    let asked = names.asked();
    assert!((1..=2).contains(&asked), "{asked}: the requests', and perhaps the background's own");
    assert_eq!(ask().await, [0; 0]);
    assert_eq!(names.asked(), asked.max(1), "a moment later nobody asks");
    names.set("pods:80", &[1]);
    sleep(Duration::from_millis(1001)).await;
    assert_eq!(ask().await, [1]);
}

#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_put_an_endpoint_aside_and_an_answer_between_them_does_not() {
    let cluster = start(TWO, &Names::default(), None);
    let first = peer(&cluster, 1);
    for _ in 0..4 {
        first.failed();
    }
    first.answered();
    for _ in 0..4 {
        first.failed();
    }
    assert_eq!(octets(&cluster), [1, 2]);
    first.failed();
    assert_eq!(octets(&cluster), [2]);
    pass(9).await;
    assert_eq!(octets(&cluster), [2]);
    pass(2).await;
    assert_eq!(octets(&cluster), [1, 2]);
    first.failed();
    assert_eq!(octets(&cluster), [2], "one failure is enough for one that has only just come back");
    pass(11).await;
    first.answered();
    first.failed();
    assert_eq!(octets(&cluster), [1, 2], "an answer forgets everything");
}

#[tokio::test(start_paused = true)]
async fn the_last_usable_endpoint_stays_whatever_happens() {
    let cluster = start(TWO, &Names::default(), None);
    let (first, second) = (peer(&cluster, 1), peer(&cluster, 2));
    (0..5).for_each(|_| first.failed());
    (0..50).for_each(|_| second.failed());
    assert_eq!(octets(&cluster), [2]);
    // The checks find it ill, too: one that is aside does not become the better choice by that.
    (0..UNHEALTHY).for_each(|_| cluster.probed(&second, false));
    assert_eq!(octets(&cluster), [1, 2], "nobody is usable, so all are");
    cluster.probed(&second, true);
    assert_eq!(octets(&cluster), [2]);
}

#[tokio::test(start_paused = true)]
async fn two_failed_checks_take_an_endpoint_out_and_one_good_one_brings_it_back() {
    let cluster = start(TWO, &Names::default(), None);
    let first = peer(&cluster, 1);
    cluster.probed(&first, false);
    cluster.probed(&first, true);
    cluster.probed(&first, false);
    assert_eq!(octets(&cluster), [1, 2]);
    cluster.probed(&first, false);
    assert_eq!(octets(&cluster), [2]);
    cluster.probed(&first, true);
    assert_eq!(octets(&cluster), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn only_so_many_requests_are_in_flight() {
    let cluster = start(&format!("{TWO}, max_requests: 2"), &Names::default(), None);
    let slots = [cluster.admit().unwrap(), cluster.admit().unwrap()];
    assert_eq!(cluster.admit().unwrap_err(), UpstreamError::Busy);
    assert_eq!(cluster.admit().unwrap_err(), UpstreamError::Busy);
    drop(slots);
    assert!(cluster.admit().unwrap().is_some());
    assert!(start(TWO, &Names::default(), None).admit().unwrap().is_none(), "without a limit nothing is counted");
}

#[tokio::test(start_paused = true)]
async fn a_changed_upstream_takes_over_what_is_the_same_with_its_trouble() {
    let names = Names::default();
    names.set("pods:80", &[5, 6]);
    let three = "endpoints: [\"http://10.0.0.1\", \"http://10.0.0.2\", \"http://pods\"]";
    let earlier = start(three, &names, None);
    pass(1).await;
    let (first, pod) = (peer(&earlier, 1), peer(&earlier, 5));
    (0..5).for_each(|_| first.failed());
    names.forget("pods:80");
    let members =
        "endpoints: [\"http://10.0.0.1\", \"http://pods\", \"http://10.0.0.3\"], weights: [1, 4, 1], max_requests: 5";
    let later = start(members, &names, Some(&earlier));
    assert!(Arc::ptr_eq(&pod, &peer(&later, 5)));
    assert_eq!(chosen(&later), [(5, 2 * WEIGHT), (6, 2 * WEIGHT), (3, WEIGHT)], "the first is still aside");
    drop(earlier);
    pass(11).await;
    assert_eq!(octets(&later), [1, 5, 6, 3], "and comes back in its time");
    first.failed();
    assert_eq!(octets(&later), [5, 6, 3], "the new one judges it now");
}

#[tokio::test(start_paused = true)]
async fn what_runs_for_an_upstream_ends_with_it() {
    let names = Names::default();
    names.set("pods:80", &[1]);
    let cluster = start(NAMED, &names, None);
    pass(31).await;
    drop(cluster);
    let asked = names.asked();
    assert!(asked >= 2);
    pass(300).await;
    assert_eq!(names.asked(), asked);
}
