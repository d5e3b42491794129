//! What the file says of clients and of the proxies between them and us.

use super::{HEAD, ROUTES, good, section, told};

#[test]
fn proxies_and_limits_per_address_are_read_and_absent_they_are_off() {
    let config = good(&format!("{HEAD}{ROUTES}"));
    assert!(!config.listen.proxy_protocol && config.listen.trusted_proxies.is_empty());
    assert_eq!((config.limits.per_address.failed_auth, config.limits.per_address.public), (None, None));

    let head = HEAD.replace(
        "address: 127.0.0.1:8080",
        "address: 127.0.0.1:8080, proxy_protocol: true, trusted_proxies: [10.0.0.0/8, \"2001:db8::/32\", 192.0.2.1]",
    );
    let config =
        good(&format!("{head}{ROUTES}limits: {{ per_address: {{ failed_auth: 600/min, public: 60/min }} }}\n"));
    assert!(config.listen.proxy_protocol);
    for (address, trusted) in [("10.9.9.9", true), ("2001:db8::1", true), ("192.0.2.1", true), ("192.0.2.2", false)] {
        assert_eq!(config.listen.trusted_proxies.contains(address.parse().unwrap()), trusted, "{address}");
    }
    assert_eq!((config.limits.per_address.failed_auth, config.limits.per_address.public), (Some(600), Some(60)));
    assert_eq!(
        good(&format!("{HEAD}{ROUTES}limits: {{ per_address: {{ public: 5/min }} }}\n")).limits.per_address.failed_auth,
        None
    );
}

#[test]
fn mistakes_about_clients_say_how_to_mend_them() {
    let public = |members: &str| told(&format!("{}{ROUTES}", HEAD.replace("8080 }", &format!("8080, {members} }}"))));
    let told = [
        public("trusted_proxies: [10.0.0.0/33, localhost, 10.0.0.0/8]"),
        public("trusted_proxies: 10.0.0.0/8, proxy_protocol: yes"),
        public("trusted_proxies: [\"::/0\"]"),
        section("limits: { per_address: { failed_auth: 600, publik: 60/min } }\n"),
        section("limits: { per_address: 60/min }\n"),
    ];
    insta::assert_snapshot!(told.join("---\n"));
}
