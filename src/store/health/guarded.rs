//! A store that fails at once while it is away: for heartbeats, usage and management, which want an answer or an error.
//!
//! Its calls are watched like all others, so a gateway without any traffic notices an outage, and its end, by its heartbeats.

use std::sync::Arc;
use std::time::Duration;

use super::{Guard, Kind};
use crate::policy::credential::KeyHash;
use crate::policy::key::{Account, AccountId, Day, KeyId, KeyRecord};
use crate::policy::quota::{LeaseReply, LeaseRequest, Subject};
use crate::store::{
    ChangeFeed, Event, Finding, FlushOutcome, IdempotencyClaim, KeyCopy, KeyFilter, Part, Replica, ReplicaId, Revision,
    SecretRow, Store, StoreFuture, StoredKey, UsageBatch, UsageCount, Version,
};

/// See the module.
#[derive(Debug)]
pub struct Guarded(pub(super) Arc<Guard>);

macro_rules! guarded_methods {
    ($($kind:ident $method:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        impl Store for Guarded {
            $(fn $method(&self, $($argument: $type),*) -> StoreFuture<'_, $answer> {
                Box::pin(async move {
                    self.0.call(Part(0), Kind::$kind, || self.0.store().$method($($argument),*)).await
                })
            })*

            fn lease(&self, subject: Subject, request: LeaseRequest) -> StoreFuture<'_, LeaseReply> {
                Box::pin(async move {
                    let part = self.part(&subject);
                    self.0.call(part, Kind::Charge, || self.0.store().lease(subject, request)).await
                })
            }

            fn ping(&self, part: Part) -> StoreFuture<'_, ()> {
                Box::pin(async move { self.0.call(part, Kind::Read, || self.0.store().ping(part)).await })
            }

            fn subscribe(&self) -> ChangeFeed {
                self.0.store().subscribe()
            }

            fn feed_silence(&self) -> Duration {
                self.0.store().feed_silence()
            }

            fn part(&self, subject: &Subject) -> Part {
                self.0.store().part(subject)
            }
        }
    };
}

guarded_methods! {
    Read key_by_secret(hash: KeyHash) -> Option<StoredKey>;
    Read key(id: KeyId) -> Option<StoredKey>;
    Other keys(filter: KeyFilter) -> Vec<StoredKey>;
    Other create_key(record: KeyRecord, secret: SecretRow, event: Event) -> Revision;
    Other replace_key(record: KeyRecord, expected: Version, event: Option<Event>) -> Revision;
    Other rotate_key(record: KeyRecord, expected: Version, secrets: Vec<SecretRow>, event: Event) -> Revision;
    Other restore_key(copy: KeyCopy) -> Revision;
    Read account(id: AccountId) -> Option<(Account, Version)>;
    Other accounts() -> Vec<Account>;
    Other replace_account(account: Account, expected: Option<Version>) -> Revision;
    Other register(id: ReplicaId, name: String) -> Revision;
    Other heartbeat(id: ReplicaId) -> bool;
    Other acknowledge(id: ReplicaId, revision: Revision) -> ();
    Other deregister(id: ReplicaId) -> ();
    Other replicas() -> Vec<Replica>;
    Other flush_usage(batch: UsageBatch) -> FlushOutcome;
    Other usage(key_id: KeyId, from: Day, to: Day) -> Vec<UsageCount>;
    Other events(key_id: KeyId) -> Vec<Event>;
    Other idempotency_claim(name: [u8; 32], request: [u8; 32], ttl: Duration) -> IdempotencyClaim;
    Other idempotency_finish(name: [u8; 32], answer: Option<Vec<u8>>) -> ();
    Other sweep(retention: Duration) -> ();
    Other findings() -> Vec<Finding>;
}
