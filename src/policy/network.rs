//! Networks of addresses, as `listen.public.trusted_proxies` lists them.

use std::net::IpAddr;

use ipnet::IpNet;

/// A list of networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Whether one of them holds this address. IPv4 written as IPv6 is IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        Self(networks.into_iter().collect())
    }
}

/// Reads `10.0.0.0/8`, or one address. Bits beyond the length do not matter.
pub fn parse(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()
}

/// Whom a limit per address counts: an IPv4 address, or the /64 that one IPv6 subscriber has to himself.
pub fn subscriber(address: IpAddr) -> IpAddr {
    const HOST: u128 = u64::MAX as u128;
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !HOST).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_in_a_network_or_not() {
        let networks: Networks =
            ["10.1.2.3/8", "192.0.2.7", "2001:db8::/32", "::1"].iter().map(|text| parse(text).unwrap()).collect();
        for inside in ["10.0.0.0", "10.255.255.255", "::ffff:10.1.1.1", "192.0.2.7", "2001:db8:ffff::1", "::1"] {
            assert!(networks.contains(address(inside)), "{inside}");
        }
        for outside in ["11.0.0.0", "192.0.2.8", "2001:db9::1", "::2", "::10.1.1.1"] {
            assert!(!networks.contains(address(outside)), "{outside}");
        }
        assert!(!Networks::default().contains(address("10.0.0.1")));
        for bad in ["10.0.0.0/33", "10.0.0/8", "::/129", "host.example", "", "10.0.0.1/", "10.0.0.1-10.0.0.9"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_subscriber_is_an_ipv4_address_or_a_network_of_64_bits() {
        assert_eq!(subscriber(address("192.0.2.7")), address("192.0.2.7"));
        assert_eq!(subscriber(address("::ffff:192.0.2.7")), address("192.0.2.7"));
        assert_eq!(subscriber(address("2001:db8:1:2:3:4:5:6")), address("2001:db8:1:2::"));
    }
}
