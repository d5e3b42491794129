//! A recognised call, carried out: status and JSON, or a problem. The gateway adapts it to HTTP.
//!
//! Before it comes here the transport has authenticated the caller, checked [`Call::scope`], charged [`Management::charge`]
//! and read the body up to [`BODY_LIMIT`](super::body::BODY_LIMIT). Whether a key may be seen is decided before any parameter
//! is looked at, so that another's id is answered like an absent one whatever else the request holds.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::Value;

use super::acknowledge::{self, Acknowledged};
use super::body::{BODY_LIMIT, Changes, NewKey, Nulls};
use super::call::{Address, Call, Operation};
use super::grant;
use super::keys::{Caller, Deleted, Keys};
use super::object::object;
use super::problem::{BadMember, ManagementError};
use super::rate::{CallRate, TooManyCalls};
use super::usage::Days;
use super::view;
use crate::clock::Clock;
use crate::config::model::Config;
use crate::policy::access::KeyProfile;
use crate::policy::key::{AccountId, KeyId};
use crate::policy::quota::QuotaState;
use crate::policy::rejection::{Problem, Rejection};
use crate::store::{Revision, Store};

/// Writes this process's usage counters to the store, so that the next reading is exact.
pub type FlushUsage = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// The management API of one gateway process.
pub struct Management {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    flush: FlushUsage,
    rate: CallRate,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq)]
pub enum ManagementResponse {
    /// It was done.
    Done {
        /// 200, 201, or 202 when not every gateway obeys yet.
        status: u16,
        /// The body.
        json: Value,
    },
    /// It was not.
    Refused(Problem),
}

type Outcome = Result<(u16, Value), ManagementError>;

impl Management {
    /// Over a store.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, flush: FlushUsage) -> Self {
        Self { store, clock, flush, rate: CallRate::default() }
    }

    /// Charges one call to `management.rate` of the calling key.
    pub fn charge(&self, config: &Config, key: &KeyId) -> Result<(), TooManyCalls> {
        self.rate.charge(key, config.management.per_minute, self.clock.mono())
    }

    /// Carries out one call under the configuration of its request. `quota`: what is left of the caller's plan, if known; `from`: its address, for the audit trail.
    pub async fn handle(
        &self,
        config: &Config,
        call: &Call,
        caller: &KeyProfile,
        quota: Option<QuotaState>,
        body: &[u8],
        from: &str,
    ) -> ManagementResponse {
        if body.len() > BODY_LIMIT {
            return ManagementResponse::Refused(Rejection::BodyTooLarge(BODY_LIMIT as u64).problem());
        }
        let keys = Keys { store: &*self.store, config, clock: &*self.clock };
        match self.serve(keys, call, caller, quota, body, from).await {
            Ok((status, json)) => ManagementResponse::Done { status, json },
            Err(error) => {
                if let ManagementError::Store(store) = &error {
                    tracing::error!(endpoint = %call.endpoint(), error = %store, "management call failed");
                }
                ManagementResponse::Refused(error.problem())
            }
        }
    }

    async fn serve(
        &self,
        keys: Keys<'_>,
        call: &Call,
        profile: &KeyProfile,
        quota: Option<QuotaState>,
        body: &[u8],
        from: &str,
    ) -> Outcome {
        let config = keys.config;
        let caller = Caller::key(profile, account_of(call, profile)?, from);
        match &call.operation {
            Operation::List => {
                let found = keys.list(&caller, include_deleted(call)?).await?;
                Ok((200, found.iter().map(|key| key.to_json(&config.quota)).collect()))
            }
            Operation::Create => self.create(keys, &caller, call.address, body).await,
            Operation::Current => {
                let itself = Caller::key(profile, profile.record.account_id.clone(), from);
                let key = keys.get(&itself, Some(&profile.record.id), Deleted::Hidden).await?;
                Ok((200, key.to_json_with_limits(&config.quota, quota.as_ref())))
            }
            Operation::Get(id) => {
                // Found even if deleted, so that a bad `include` is told about visible keys only.
                let key = keys.get(&caller, id.as_ref(), Deleted::Shown).await?;
                if key.record.deleted_at.is_some() && include_deleted(call)? == Deleted::Hidden {
                    return Err(ManagementError::KeyNotFound);
                }
                Ok((200, key.to_json(&config.quota)))
            }
            Operation::Update(id, nulls) => self.update(keys, &caller, id.as_ref(), *nulls, body).await,
            Operation::Delete(id) => {
                let deleted = keys.delete(&caller, id.as_ref()).await?;
                let acknowledged = self.acknowledged(config, deleted.revision).await;
                let json = view::deleted(&deleted.key.record.id, &acknowledged);
                Ok((status_of(&acknowledged), json))
            }
            Operation::Usage(id) => {
                keys.get(&caller, id.as_ref(), Deleted::Shown).await?;
                let (start, end) = (call.query.one("start_date")?, call.query.one("end_date")?);
                let days = Days::parse(start, end, self.clock.wall().day())?;
                (self.flush)().await;
                Ok((200, keys.usage(&caller, id.as_ref(), days).await?.to_json()))
            }
            Operation::Events(id) => {
                let events = keys.events(&caller, id.as_ref()).await?;
                Ok((200, events.iter().map(view::event).collect()))
            }
        }
    }

    async fn create(&self, keys: Keys<'_>, caller: &Caller<'_>, address: Address, body: &[u8]) -> Outcome {
        let scopes_required = address == Address::BasePath;
        let members = object(body)?;
        let new = NewKey::from_members(members, self.clock.wall(), scopes_required)?;
        let created = keys.create(caller, new).await?;
        for scope in keys.unknown_scopes(&created.key.record.scopes) {
            tracing::warn!(key_id = %created.key.record.id, %scope, "a key was given a scope that no route knows");
        }
        Ok((201, created.key.to_json_with_secret(&keys.config.quota, &created.secret)))
    }

    async fn update(
        &self,
        keys: Keys<'_>,
        caller: &Caller<'_>,
        id: Option<&KeyId>,
        nulls: Nulls,
        body: &[u8],
    ) -> Outcome {
        let present = keys.get(caller, id, Deleted::Hidden).await?.record;
        let changes = Changes::from_members(object(body)?, self.clock.wall(), nulls, Some(&present))?;
        let changed = keys.update(caller, id, &changes).await?;
        if changes.disabled != Some(true) {
            return Ok((200, changed.key.to_json(&keys.config.quota)));
        }
        let acknowledged = self.acknowledged(keys.config, changed.revision).await;
        Ok((status_of(&acknowledged), changed.key.to_json_acknowledged(&keys.config.quota, &acknowledged)))
    }

    async fn acknowledged(&self, config: &Config, revision: Option<Revision>) -> Acknowledged {
        let lost_within = config.cached_keys_are_served_for();
        acknowledge::wait(&*self.store, revision.unwrap_or_default(), lost_within, acknowledge::PATIENCE).await
    }
}

fn status_of(acknowledged: &Acknowledged) -> u16 {
    if acknowledged.is_complete() { 200 } else { 202 }
}

/// The account whose keys are meant: the caller's, unless an administrator names another.
fn account_of(call: &Call, profile: &KeyProfile) -> Result<AccountId, ManagementError> {
    let own = profile.record.account_id.clone();
    if !grant::is_admin(profile) {
        return Ok(own);
    }
    let Some(named) = call.query.one("account_id")? else { return Ok(own) };
    AccountId::parse(named)
        .map_err(|_| ManagementError::InvalidQuery(vec![BadMember::new("account_id", "not an account id")]))
}

fn include_deleted(call: &Call) -> Result<Deleted, ManagementError> {
    match call.query.one("include")? {
        None => Ok(Deleted::Hidden),
        Some("deleted") => Ok(Deleted::Shown),
        Some(_) => Err(ManagementError::InvalidQuery(vec![BadMember::new("include", "may be `deleted`")])),
    }
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
