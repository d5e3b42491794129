//! Which endpoint takes a request: of two drawn by weight, the one with less under way for its weight.
//!
//! Two choices spread load nearly as well as looking at all, and do not send everybody to the same idle one at once
//! (Mitzenmacher, "The power of two choices in randomized load balancing"). Chooses; whoever may be chosen is decided by
//! [`super::cluster`].

use std::net::SocketAddr;
use std::sync::Arc;

use super::peer::{Peer, UnderWay};
use super::pool::Pool;

/// An address with its weight and the connections that each worker keeps to it.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub(super) peer: Arc<Peer>,
    pub(super) weight: u64,
    /// By worker.
    pub(super) pools: Arc<[Arc<Pool>]>,
}

/// Endpoints that requests may go to.
#[derive(Debug, Default)]
pub(super) struct Selection {
    endpoints: Vec<Endpoint>,
}

impl Selection {
    pub(super) fn new(endpoints: Vec<Endpoint>) -> Self {
        Self { endpoints }
    }

    /// The pool to take a connection from. With one endpoint nothing is counted and nothing is drawn.
    pub(super) fn pick(&self, worker: usize, random: impl FnOnce() -> u64) -> Option<(Arc<Pool>, Option<UnderWay>)> {
        match &*self.endpoints {
            [] => None,
            [only] => Some((only.pools[worker].clone(), None)),
            several => {
                let chosen = choose(several, random());
                Some((chosen.pools[worker].clone(), Some(UnderWay::at(&chosen.peer))))
            }
        }
    }

    /// The same without those that were tried, as long as there are others.
    pub(super) fn pick_other(
        &self,
        tried: &[SocketAddr],
        worker: usize,
        random: impl FnOnce() -> u64,
    ) -> Option<(Arc<Pool>, Option<UnderWay>)> {
        let is_new = |endpoint: &&Endpoint| !tried.contains(&endpoint.peer.address);
        let others: Vec<Endpoint> = self.endpoints.iter().filter(is_new).cloned().collect();
        match &*others {
            [] => self.pick(worker, random),
            [only] => Some((only.pools[worker].clone(), Some(UnderWay::at(&only.peer)))),
            _ => Self { endpoints: others }.pick(worker, random),
        }
    }

    pub(super) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }
}

/// `random`: 64 bits, all of them used.
fn choose(endpoints: &[Endpoint], random: u64) -> &Endpoint {
    let total: u64 = endpoints.iter().map(|endpoint| endpoint.weight).sum();
    let (first, second) = (random >> 32, random & 0xffff_ffff);
    let a = draw(endpoints, scale(first, total), None);
    let b = draw(endpoints, scale(second, total - endpoints[a].weight), Some(a));
    let (a, b) = (&endpoints[a], &endpoints[b]);
    let load = |endpoint: &Endpoint, other: &Endpoint| u64::from(endpoint.peer.in_flight()) * other.weight;
    // Equal: the first, so that weights hold where nothing is under way.
    if load(b, a) < load(a, b) { b } else { a }
}

/// 32 random bits as a number below `limit`.
fn scale(random: u64, limit: u64) -> u64 {
    ((u128::from(random) * u128::from(limit)) >> 32) as u64
}

/// The endpoint in whose stretch of the weights `at` lies; `without`: one that has none.
fn draw(endpoints: &[Endpoint], mut at: u64, without: Option<usize>) -> usize {
    let mut last = 0;
    for (index, endpoint) in endpoints.iter().enumerate().filter(|(index, _)| Some(*index) != without) {
        last = index;
        match at.checked_sub(endpoint.weight) {
            Some(left) => at = left,
            None => break,
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model;

    fn endpoints(weights: &[u64]) -> Vec<Endpoint> {
        let endpoint = |(index, weight): (usize, &u64)| {
            let configured = model::Endpoint { authority: "h:80".into(), encrypted: false, weight: 1 };
            let address = SocketAddr::from(([10, 0, 0, index as u8], 80));
            let peer = Arc::new(Peer::new(address, &configured));
            Endpoint { pools: [Arc::new(Pool::new(peer.clone()))].into(), peer, weight: *weight }
        };
        weights.iter().enumerate().map(endpoint).collect()
    }

    /// Numbers that look random and are the same in every run (SplitMix64).
    fn numbers() -> impl Iterator<Item = u64> {
        (1u64..).map(|n| {
            let z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        })
    }

    /// How many of 10,000 requests each gets; `stays` says whether what it got stays under way.
    fn shares(weights: &[u64], stays: bool) -> Vec<usize> {
        let endpoints = endpoints(weights);
        let (mut counts, mut held) = (vec![0; weights.len()], Vec::new());
        for random in numbers().take(10_000) {
            let chosen = choose(&endpoints, random);
            let index = endpoints.iter().position(|e| e.peer.address == chosen.peer.address).unwrap();
            counts[index] += 1;
            if stays {
                held.push(UnderWay::at(&chosen.peer));
            }
        }
        counts
    }

    fn is_about(count: usize, expected: usize) -> bool {
        count.abs_diff(expected) < 250
    }

    #[test]
    fn where_nothing_is_under_way_each_gets_its_weight() {
        for weights in [&[1u64, 1][..], &[1, 3], &[5, 3, 2], &[1, 1, 1, 1], &[100, 1]] {
            let total: u64 = weights.iter().sum();
            let counts = shares(weights, false);
            for (count, weight) in counts.iter().zip(weights) {
                assert!(is_about(*count, (10_000 * weight / total) as usize), "{weights:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn what_is_under_way_is_spread_by_weight_more_evenly_than_by_chance() {
        for weights in [&[1u64, 1][..], &[1, 3], &[1, 1, 1, 1]] {
            let total: u64 = weights.iter().sum();
            let counts = shares(weights, true);
            for (count, weight) in counts.iter().zip(weights) {
                assert!(count.abs_diff((10_000 * weight / total) as usize) <= 30, "{weights:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn a_busy_endpoint_is_left_alone_until_the_other_is_as_busy_for_its_weight() {
        let endpoints = endpoints(&[1, 2]);
        let _busy: Vec<_> = (0..3).map(|_| UnderWay::at(&endpoints[0].peer)).collect();
        let mut held = Vec::new();
        for random in numbers().take(5) {
            assert_eq!(choose(&endpoints, random).peer.address, endpoints[1].peer.address);
            held.push(UnderWay::at(&endpoints[1].peer));
        }
        held.push(UnderWay::at(&endpoints[1].peer));
        let drawn: Vec<_> = numbers().take(50).map(|random| choose(&endpoints, random).peer.address).collect();
        assert!(drawn.contains(&endpoints[0].peer.address), "3 of 1 are as much as 6 of 2");
        drop(held);
        assert_eq!(endpoints[1].peer.in_flight(), 0);
    }

    #[test]
    fn one_endpoint_is_taken_without_counting_and_a_second_try_goes_elsewhere() {
        let all = endpoints(&[1, 1]);
        let alone = Selection::new(all[..1].to_vec());
        let (_, under_way) = alone.pick(0, || panic!("nothing is drawn")).unwrap();
        assert!(under_way.is_none());
        let both = Selection::new(all.clone());
        for random in numbers().take(20) {
            let (pool, _) = both.pick_other(&[all[0].peer.address], 0, || random).unwrap();
            assert_eq!(pool.peer().address, all[1].peer.address);
        }
        let tried = [all[0].peer.address, all[1].peer.address];
        assert!(both.pick_other(&tried, 0, || 7).is_some(), "all were tried: any will do");
        assert!(Selection::default().pick(0, || 7).is_none());
    }
}
