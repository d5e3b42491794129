//! Networks of addresses: from where a key works, which peers are believed, and whom a limit per address counts.
//!
//! IPv4 and its form inside IPv6 (`::ffff:192.0.2.1`) are one address, in a network and in what is looked for: a listener on
//! `[::]` sees the second where others see the first.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

/// `10.0.0.0/8`; an address alone is the network of that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network(IpNet);

/// A text is not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address or a network such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32")]
pub struct InvalidNetwork(pub String);

/// Bits of an IPv6 address before the IPv4 address inside it.
const MAPPED: u8 = 96;

impl Network {
    /// Reads an address, or an address and the number of its leading bits that count; the others are dropped.
    pub fn parse(text: &str) -> Result<Self, InvalidNetwork> {
        let read = if text.contains('/') { text.parse().ok() } else { text.parse::<IpAddr>().ok().map(IpNet::from) };
        let network = read.ok_or_else(|| InvalidNetwork(text.chars().take(80).collect()))?;
        Ok(Self(canonical(network).trunc()))
    }

    /// Whether the address is one of these.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }

    /// Whether every address of its family is one of these.
    pub fn is_everything(&self) -> bool {
        self.0.prefix_len() == 0
    }

    /// The first address of it.
    pub fn first(&self) -> IpAddr {
        self.0.network()
    }

    /// Whether all addresses of `inner` are among those of `outer`, also where it takes several of `outer` to cover one.
    pub fn cover(outer: &[Self], inner: &Self) -> bool {
        let outer: Vec<IpNet> = outer.iter().map(|network| network.0).collect();
        IpNet::aggregate(&outer).iter().any(|network| network.contains(&inner.0))
    }
}

/// A list of networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<Network>);

impl Networks {
    /// Whether one of them holds this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Network> for Networks {
    fn from_iter<I: IntoIterator<Item = Network>>(networks: I) -> Self {
        Self(networks.into_iter().collect())
    }
}

/// Whom a limit per address counts: an IPv4 address, or the /64 that one IPv6 subscriber has to himself.
pub fn subscriber(address: IpAddr) -> IpAddr {
    const HOST: u128 = u64::MAX as u128;
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !HOST).into()),
        v4 => v4,
    }
}

/// IPv4 for a network of IPv4 addresses inside IPv6.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let (Some(address), Some(bits)) = (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(MAPPED)) else {
        return network;
    };
    Ipv4Net::new(address, bits).map_or(network, IpNet::V4)
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for Network {
    type Error = InvalidNetwork;
    fn try_from(text: String) -> Result<Self, InvalidNetwork> {
        Self::parse(&text)
    }
}

impl From<Network> for String {
    fn from(network: Network) -> String {
        network.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        Network::parse(text).unwrap()
    }

    #[test]
    fn networks_are_kept_in_one_form() {
        for (text, kept) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("2001:DB8::1", "2001:db8::1/128"),
            ("2001:db8:ffff::/32", "2001:db8::/32"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(network(text).to_string(), kept, "{text}");
            assert_eq!(network(kept), network(text));
        }
        for bad in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0",
            "010.0.0.1",
            "a.b",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "fe80::1%eth0",
            "1.2.3.4/8/8",
        ] {
            assert!(Network::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_is_in_it_in_whatever_form_it_comes() {
        for (net, address, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "::ffff:10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("::ffff:10.0.0.0/104", "10.0.0.1", true),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "10.0.0.1", false),
            ("::/0", "::ffff:10.0.0.1", false),
        ] {
            assert_eq!(network(net).contains(address.parse().unwrap()), inside, "{net} {address}");
        }
    }

    #[test]
    fn one_network_is_within_others_also_where_it_takes_two_of_them() {
        let outer = ["10.0.0.0/9", "10.128.0.0/9", "192.0.2.7", "2001:db8::/32"].map(network);
        for (inner, covered) in [
            ("10.0.0.0/8", true),
            ("10.9.9.9", true),
            ("192.0.2.7/32", true),
            ("192.0.2.6/31", false),
            ("11.0.0.0/8", false),
            ("8.0.0.0/6", false),
            ("0.0.0.0/0", false),
            ("::/0", false),
            ("2001:db8:1::/48", true),
        ] {
            assert_eq!(Network::cover(&outer, &network(inner)), covered, "{inner}");
        }
        assert!(!Network::cover(&[], &network("10.0.0.0/8")));
    }

    #[test]
    fn a_subscriber_is_an_ipv4_address_or_a_network_of_64_bits() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(subscriber(address("192.0.2.7")), address("192.0.2.7"));
        assert_eq!(subscriber(address("::ffff:192.0.2.7")), address("192.0.2.7"));
        assert_eq!(subscriber(address("2001:db8:1:2:3:4:5:6")), address("2001:db8:1:2::"));
    }
}
