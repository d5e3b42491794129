//! Rules for clients: origins of web pages, requests in flight.

use super::{HEAD, ROUTES, good, section};
use crate::config::model::Plan;
use crate::policy::cors::{Cors, parse_origin};
use crate::policy::key::{Account, AccountId};

#[test]
fn origins_are_read_and_every_mistake_in_one_says_what_to_write() {
    let cors = |text: &str| good(&format!("{HEAD}{ROUTES}{text}")).cors;
    assert_eq!(cors(""), None);
    let two = vec![parse_origin("https://app.seeme.ai").unwrap(), parse_origin("http://localhost:3000").unwrap()];
    assert_eq!(
        cors("cors: { allowed_origins: [\"https://app.seeme.ai\", \"http://localhost:3000\"] }\n"),
        Some(Cors::of(two))
    );
    assert_eq!(cors("cors: { allowed_origins: [\"*\"] }\n"), Some(Cors::any()));
    for (text, told) in [
        (
            "{}",
            "5:7: `allowed_origins` is missing (cors); name the origins of your pages: allowed_origins: [\"https://app.seeme.ai\"]",
        ),
        (
            "{ allowed_origins: [] }",
            "5:26: the list is empty: no page could use it (cors.allowed_origins); name an origin, or remove cors",
        ),
        (
            "{ allowed_origin: [\"https://a.b\"] }",
            "5:9: unknown member `allowed_origin` (cors.allowed_origin); did you mean `allowed_origins`?",
        ),
        (
            "{ allowed_origins: \"*\" }",
            "5:26: expected a list, found a single value (cors.allowed_origins); write [a, b] or a line `- a` for each",
        ),
        (
            "{ allowed_origins: [\"https://a.b\", \"*\"] }",
            "5:42: `*` allows every origin, with others beside it (cors.allowed_origins[1]); write \"*\" alone, or remove it",
        ),
        (
            "{ allowed_origins: [\"https://app.seeme.ai/\"] }",
            "5:27: browsers do not write an origin like this (cors.allowed_origins[0]); write https://app.seeme.ai",
        ),
        (
            "{ allowed_origins: [app.seeme.ai] }",
            "5:27: `app.seeme.ai` has no scheme (cors.allowed_origins[0]); write https://app.seeme.ai",
        ),
        (
            "{ allowed_origins: [\"https://*.seeme.ai\"] }",
            "5:27: an origin has no wildcards (cors.allowed_origins[0]); write each one in full, or * alone for all of them",
        ),
        (
            "{ allowed_origins: [\"null\"] }",
            "5:27: `null` is the origin of every sandboxed page (cors.allowed_origins[0]); write the origin of your own",
        ),
    ] {
        assert_eq!(section(&format!("cors: {text}\n")), format!("{told}\n"), "{text}");
    }
}

#[test]
fn a_plan_or_an_account_on_a_custom_plan_says_how_many_may_be_in_flight() {
    let config = good(&format!(
        "{HEAD}{ROUTES}plans: {{ free: {{ requests_per_minute: 60, requests_per_day: 1000, concurrent_requests: 4 }}, own: custom, \
         pro: {{ requests_per_minute: 1, requests_per_day: 1 }} }}\n"
    ));
    let [(_, Plan::Fixed(free)), _, (_, Plan::Fixed(pro))] = &config.quota.plans[..] else { panic!() };
    assert_eq!((free.concurrent_requests, pro.concurrent_requests), (Some(4), None));
    let account = Account { plan: Some("own".to_owned()), ..Account::unset(AccountId::parse("u-1").unwrap()) };
    let of = |account: &Account| config.quota.of(account).1.concurrent_requests;
    // Without limits of its own those of the default plan apply, all of them.
    assert_eq!(of(&Account { concurrent_requests: Some(9), ..account.clone() }), Some(4));
    let limited = Account { requests_per_minute: Some(5), requests_per_day: Some(5), ..account };
    assert_eq!(of(&limited), None);
    assert_eq!(of(&Account { concurrent_requests: Some(9), ..limited }), Some(9));
    for bad in ["0", "-1", "many", "4294967296"] {
        let told = section(&format!(
            "plans: {{ free: {{ requests_per_minute: 1, requests_per_day: 1, concurrent_requests: {bad} }} }}\n"
        ));
        let expected = format!(
            "5:84: `{bad}` is not a whole number from 1 to 4294967295 (plans.free.concurrent_requests); write digits only, within \
             these bounds\n"
        );
        assert_eq!(told, expected);
    }
}
