//! The contract of [`Store`](super::Store) as a test-suite: what every backend has to pass.
//!
//! A case is a function that gets an empty store. `store_contract!(make)` in a backend's tests turns each case into a test; `make` is
//! an expression of type [`Stand`]. Cases use the store's own clock, so they run against one that cannot be told the time (Redis).

pub(crate) mod copy;
pub(crate) mod feed;
pub(crate) mod keys;
pub(crate) mod quota;
pub(crate) mod usage;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use crate::policy::credential::KeyHash;
use crate::policy::key::{AccountId, Environment, KeyId, KeyRecord, QuotaLimits, Timestamp};
use crate::policy::network::Network;
use crate::policy::quota::{LeaseRequest, Seen, Subject};
use crate::policy::scope::Scope;

use super::{Action, Change, ChangeFeed, Event, FeedItem, Revision, SecretRow, Store};

/// An empty store, and what must live as long as it.
pub(crate) struct Stand {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) _keep: Box<dyn Any + Send>,
}

macro_rules! store_contract {
    ($make:expr) => {
        $crate::store::contract::store_contract! { $make;
            keys::a_created_key_is_found_by_its_secret_and_by_its_id,
            keys::an_id_or_a_secret_that_exists_is_a_conflict_and_nothing_is_done,
            keys::a_key_is_replaced_only_at_the_version_that_was_read,
            keys::a_deleted_key_loses_its_secrets_and_stays_readable,
            keys::when_a_key_was_last_used_survives_its_secrets,
            keys::a_replacement_without_an_event_is_a_change_all_the_same,
            keys::a_rotated_key_has_two_secrets_until_the_former_is_dropped,
            keys::keys_are_listed_newest_first_and_by_account,
            keys::an_account_is_made_once_replaced_by_version_and_comes_with_its_keys,
            keys::an_idempotency_row_is_claimed_once_and_keeps_its_answer,
            keys::an_idempotency_row_is_free_again_when_released_or_expired,
            copy::a_key_is_restored_whole_and_only_once_however_often,
            copy::what_the_store_had_of_a_restored_key_is_gone,
            copy::a_deleted_key_is_restored_deleted_and_without_secrets,
            copy::a_secret_of_another_key_is_not_taken_and_nothing_is_done,
            copy::a_restored_key_is_announced_with_each_of_its_secrets,
            quota::concurrent_leases_of_a_day_add_up_to_its_limit_and_no_more,
            quota::no_minute_grants_more_than_its_limit,
            quota::returned_tokens_can_be_leased_again,
            quota::subjects_do_not_share_tokens,
            quota::a_debit_is_charged_above_the_limit,
            quota::little_left_recalls_what_is_outstanding,
            feed::every_change_reaches_every_subscriber_in_order,
            feed::a_change_is_delivered_with_the_revision_its_method_returned,
            feed::a_replica_is_listed_until_it_says_goodbye,
            feed::a_replica_of_the_same_name_replaces_its_predecessor,
            feed::a_replica_that_takes_another_name_has_acknowledged_no_more_than_before,
            feed::an_acknowledgement_never_goes_back,
            usage::a_batch_counts_once_however_often_it_is_sent,
            usage::a_batch_after_a_gap_counts_and_the_gap_is_told,
            usage::usage_is_asked_by_day_both_ends_included,
            usage::resource_ids_are_bounded_and_totals_stay_right,
            usage::the_later_time_of_use_wins,
            usage::a_sweep_forgets_what_is_old_and_nothing_else,
        }
    };
    ($make:expr; $($module:ident :: $case:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $case() {
                let stand: $crate::store::contract::Stand = $make;
                $crate::store::contract::$module::$case(std::sync::Arc::clone(&stand.store)).await;
            }
        )*
    };
}
pub(crate) use store_contract;

pub(crate) fn key_id(text: &str) -> KeyId {
    KeyId::parse(text).unwrap()
}

pub(crate) fn account_id(text: &str) -> AccountId {
    AccountId::parse(text).unwrap()
}

pub(crate) fn at(millis: i64) -> Timestamp {
    Timestamp::from_unix_millis(millis)
}

/// A time within a key's life, with milliseconds, so that a store that drops them is found out.
pub(crate) const CREATED: i64 = 1_700_000_000_123;

pub(crate) fn record(id: &str, account: &str) -> KeyRecord {
    KeyRecord {
        id: key_id(id),
        name: format!("the key “{id}” 🔑"),
        key_prefix: "sm_live_abcd".into(),
        environment: Environment::Live,
        account_id: account_id(account),
        organization_id: None,
        scopes: vec![Scope::parse("models:read").unwrap(), Scope::parse("datasets:*").unwrap()],
        model_ids: Some(vec![crate::policy::key::ResourceId::parse("gpt-4.1:mini").unwrap()]),
        dataset_ids: None,
        allowed_addresses: Some(vec![Network::parse("10.0.0.0/8").unwrap(), Network::parse("2001:db8::1").unwrap()]),
        expires_at: Some(at(CREATED + 86_400_000)),
        disabled: false,
        created_at: at(CREATED),
        updated_at: at(CREATED),
        created_by: "cli".into(),
        deleted_at: None,
    }
}

pub(crate) fn hash(seed: &str) -> KeyHash {
    KeyHash(*blake3::hash(seed.as_bytes()).as_bytes())
}

pub(crate) fn secret(id: &str) -> SecretRow {
    SecretRow { hash: hash(id), key_prefix: "sm_live_abcd".into(), expires_at: None, last_used_at: None }
}

pub(crate) fn event(action: Action) -> Event {
    Event { at: at(CREATED), action, by: "cli".into(), from: "cli".into(), changed: Vec::new() }
}

/// Creates a key whose secret is `hash(id)`.
pub(crate) async fn create(store: &dyn Store, id: &str, account: &str) -> Revision {
    store.create_key(record(id, account), secret(id), event(Action::Created)).await.unwrap()
}

pub(crate) fn subject(id: &str) -> Subject {
    Subject::new("account", Environment::Live, id)
}

pub(crate) fn ask(want: u32, per_minute: u32, per_day: u32) -> LeaseRequest {
    LeaseRequest {
        target: None,
        want,
        need: want.min(1),
        limits: QuotaLimits { requests_per_minute: per_minute, requests_per_day: per_day },
        first: false,
        give_back: None,
        debit: None,
        seen: Seen::default(),
    }
}

/// The next `count` changes, which may come in fewer items. Fails on anything else, and when they do not come.
pub(crate) async fn changes(feed: &mut ChangeFeed, count: usize) -> (Revision, Vec<Change>) {
    tokio::time::timeout(Duration::from_secs(5), collect(feed, count)).await.expect("changes within five seconds")
}

async fn collect(feed: &mut ChangeFeed, count: usize) -> (Revision, Vec<Change>) {
    let (mut last, mut changes) = (Revision(0), Vec::new());
    while changes.len() < count {
        match feed.recv().await.expect("the feed is open") {
            FeedItem::Changes(revision, more) => {
                assert!(revision >= last, "revisions never go back");
                last = revision;
                changes.extend(more);
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(changes.len(), count, "{changes:?}");
    (last, changes)
}
