//! The operations on keys, for the REST API and the command line alike: who sees which key, what is stored, what is recorded.
//!
//! Whatever is refused is refused before anything is written, and a change that somebody else overtook is decided again on
//! what they left behind. Knows no JSON, no HTTP, no terminal.

use uuid::Uuid;

use super::body::{Change, Changes, NewKey};
use super::problem::{BadMember, ManagementError};
use super::usage::{Days, Usage};
use super::view::KeyView;
use super::{audit, grant};
use crate::clock::Clock;
use crate::config::model::Config;
use crate::policy::access::KeyProfile;
use crate::policy::credential::Secret;
use crate::policy::key::{Account, AccountId, Environment, KeyId, KeyRecord, OrganizationId, Timestamp};
use crate::policy::scope::Scope;
use crate::store::{Action, Event, KeyFilter, Revision, SecretRow, Store, StoreError, StoredKey};

/// A change is decided again at most so often; each time somebody else's change succeeded.
const ATTEMPTS: usize = 16;
/// Random bytes for one secret: twice what it needs, so that rejection sampling hardly ever asks again.
const RANDOM_BYTES: usize = 64;
/// What the management API itself asks for; known even where no route names it.
const MANAGEMENT_SCOPES: [&str; 5] =
    ["api-keys:read", "api-keys:write", "api-keys:admin", "accounts:read", "accounts:write"];

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller<'a> {
    authority: Authority<'a>,
    /// Whose keys it works on; `None` is everybody's.
    account: Option<AccountId>,
    from: &'a str,
}

#[derive(Debug, Clone, Copy)]
enum Authority<'a> {
    /// Whoever can open the store, under the name that events show: no limits of its own.
    Operator(&'a str),
    Key(&'a KeyProfile),
}

/// Whether deleted keys are found too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// They are as good as absent.
    Hidden,
    /// Until the store forgets them.
    Shown,
}

/// A new key.
#[derive(Debug)]
pub struct Created {
    /// As it is stored.
    pub key: KeyView,
    /// To be handed out once.
    pub secret: Secret,
}

/// A key after a change.
#[derive(Debug)]
pub struct Changed {
    /// As it is now.
    pub key: KeyView,
    /// Where the change stands in the feed; `None`: it was like that already.
    pub revision: Option<Revision>,
}

/// The operations.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// Where keys live.
    pub store: &'a dyn Store,
    /// What scopes and plans mean.
    pub config: &'a Config,
    /// What time it is.
    pub clock: &'a dyn Clock,
}

impl<'a> Caller<'a> {
    /// Somebody on this machine who can open the store: `cli` or `demo`.
    pub const fn operator(name: &'a str) -> Self {
        Self { authority: Authority::Operator(name), account: None, from: name }
    }

    /// Looks only at the keys of one account.
    pub fn limited_to(self, account: Option<AccountId>) -> Self {
        Self { account, ..self }
    }

    /// A key that calls from an address, for the keys of `account` (its own, unless it may name another).
    pub const fn key(profile: &'a KeyProfile, account: AccountId, from: &'a str) -> Self {
        Self { authority: Authority::Key(profile), account: Some(account), from }
    }

    fn profile(&self) -> Option<&'a KeyProfile> {
        match self.authority {
            Authority::Operator(_) => None,
            Authority::Key(profile) => Some(profile),
        }
    }

    fn by(&self) -> &str {
        match self.authority {
            Authority::Operator(name) => name,
            Authority::Key(profile) => profile.record.id.as_str(),
        }
    }

    fn organization(&self) -> Option<&OrganizationId> {
        self.profile().and_then(|profile| profile.record.organization_id.as_ref())
    }

    fn sees(&self, record: &KeyRecord) -> bool {
        self.account.as_ref().is_none_or(|mine| *mine == record.account_id)
            && self.organization().is_none_or(|mine| record.organization_id.as_ref() == Some(mine))
    }

    fn event(&self, at: Timestamp, action: Action, changed: Vec<String>) -> Event {
        Event { at, action, by: self.by().to_owned(), from: self.from.to_owned(), changed }
    }
}

impl Keys<'_> {
    /// Makes a key. What is not named is inherited from the caller.
    pub async fn create(&self, caller: &Caller<'_>, new: NewKey) -> Result<Created, ManagementError> {
        let now = self.clock.wall();
        let account_id = new.account_id.clone().or_else(|| caller.account.clone());
        let account_id = account_id.ok_or_else(|| required("account_id"))?;
        let (record, secret) = new_record(caller, new, account_id, now)?;
        self.check_grant(caller, &record)?;
        let account = self.store.account(record.account_id.clone()).await?;
        let account = account.map_or_else(|| Account::unset(record.account_id.clone()), |(account, _)| account);
        let row = SecretRow {
            hash: secret.hash(),
            key_prefix: record.key_prefix.clone(),
            expires_at: None,
            last_used_at: None,
        };
        let event = caller.event(now, Action::Created, Vec::new());
        self.store.create_key(record.clone(), row.clone(), event.clone()).await?;
        audit::key(&event, &record);
        Ok(Created { key: KeyView { record, account, secrets: vec![row], former_use: None }, secret })
    }

    /// The keys that the caller sees, newest first.
    pub async fn list(&self, caller: &Caller<'_>, deleted: Deleted) -> Result<Vec<KeyView>, ManagementError> {
        let account_id = caller.account.clone();
        let filter = KeyFilter { id: None, account_id, include_deleted: deleted == Deleted::Shown };
        let keys = self.store.keys(filter).await?;
        Ok(keys.into_iter().filter(|key| caller.sees(&key.record)).map(KeyView::from).collect())
    }

    /// One key. What the caller does not see is absent.
    pub async fn get(
        &self,
        caller: &Caller<'_>,
        id: Option<&KeyId>,
        deleted: Deleted,
    ) -> Result<KeyView, ManagementError> {
        self.find(caller, id, deleted).await.map(KeyView::from)
    }

    /// Changes what is named. Switching a key off needs no grant; anything else needs the resulting key to be within the
    /// caller's own.
    pub async fn update(
        &self,
        caller: &Caller<'_>,
        id: Option<&KeyId>,
        changes: &Changes,
    ) -> Result<Changed, ManagementError> {
        self.replace(caller, id, |old, now| {
            let (record, changed) = changes.apply(old, now);
            if !changes.only_disables() {
                self.check_grant(caller, &record)?;
            }
            // Repeating a disable is how somebody asks again whether everybody obeys by now: it gets a revision of its own
            // (and no event, since nothing changed).
            if changed.is_empty() && changes.disabled != Some(true) {
                return Ok(None);
            }
            let action = match (old.disabled, record.disabled) {
                (false, true) => Action::Disabled,
                (true, false) => Action::Enabled,
                _ => Action::Updated,
            };
            Ok(Some((record, action, changed)))
        })
        .await
    }

    /// Deletes for good; usage and events stay readable for a while.
    pub async fn delete(&self, caller: &Caller<'_>, id: Option<&KeyId>) -> Result<Changed, ManagementError> {
        self.replace(caller, id, |old, now| {
            let record = KeyRecord { deleted_at: Some(now), updated_at: now, ..old.clone() };
            Ok(Some((record, Action::Deleted, Vec::new())))
        })
        .await
    }

    /// What a key was used for, as far as it has been flushed.
    pub async fn usage(&self, caller: &Caller<'_>, id: Option<&KeyId>, days: Days) -> Result<Usage, ManagementError> {
        let key = self.find(caller, id, Deleted::Shown).await?;
        let last_used_at = key.last_used_at();
        let counts = self.store.usage(key.record.id, days.from, days.to).await?;
        Ok(Usage::of(&counts, last_used_at))
    }

    /// The audit trail of a key, oldest first.
    pub async fn events(&self, caller: &Caller<'_>, id: Option<&KeyId>) -> Result<Vec<Event>, ManagementError> {
        let key = self.find(caller, id, Deleted::Shown).await?;
        Ok(self.store.events(key.record.id).await?)
    }

    /// Those of `scopes` that open nothing: accepted, but worth a warning.
    pub fn unknown_scopes(&self, scopes: &[Scope]) -> Vec<Scope> {
        let routes = self.config.routes.routes().iter().flat_map(|route| route.access.scopes().iter().cloned());
        let ours = MANAGEMENT_SCOPES.iter().filter_map(|scope| Scope::parse(scope).ok());
        let known: Vec<Scope> = routes.chain(ours).collect();
        let opens_nothing = |scope: &&Scope| {
            let grants = self.config.scopes.expand([*scope]);
            !known.iter().any(|known| grants.allows(known))
        };
        scopes.iter().filter(opens_nothing).cloned().collect()
    }

    async fn find(
        &self,
        caller: &Caller<'_>,
        id: Option<&KeyId>,
        deleted: Deleted,
    ) -> Result<StoredKey, ManagementError> {
        let id = id.ok_or(ManagementError::KeyNotFound)?;
        // The store looks for a key of this account: another's is as fast to be not found as an absent one, unread.
        let account_id = caller.account.clone();
        let filter = KeyFilter { id: Some(id.clone()), account_id, include_deleted: true };
        let found = self.store.keys(filter).await?.pop();
        let hidden = |key: &StoredKey| key.record.deleted_at.is_some() && deleted == Deleted::Hidden;
        found.filter(|key| caller.sees(&key.record) && !hidden(key)).ok_or(ManagementError::KeyNotFound)
    }

    /// Reads, decides and writes, again if somebody else wrote in between.
    async fn replace(
        &self,
        caller: &Caller<'_>,
        id: Option<&KeyId>,
        decide: impl Fn(&KeyRecord, Timestamp) -> Result<Option<(KeyRecord, Action, Vec<String>)>, ManagementError>,
    ) -> Result<Changed, ManagementError> {
        for _ in 0..ATTEMPTS {
            let old = self.find(caller, id, Deleted::Hidden).await?;
            let now = self.clock.wall();
            let Some((record, action, changed)) = decide(&old.record, now)? else {
                return Ok(Changed { key: old.into(), revision: None });
            };
            let event = (record != old.record).then(|| caller.event(now, action, changed));
            match self.store.replace_key(record.clone(), old.version, event.clone()).await {
                Ok(revision) => {
                    if let Some(event) = event {
                        audit::key(&event, &record);
                    }
                    let key = KeyView::from(StoredKey { record, ..old });
                    return Ok(Changed { key, revision: Some(revision) });
                }
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict.into())
    }

    fn check_grant(&self, caller: &Caller<'_>, result: &KeyRecord) -> Result<(), ManagementError> {
        caller.profile().map_or(Ok(()), |profile| grant::check(result, profile, &self.config.scopes))
    }
}

impl Changes {
    /// The record after the change, and the names of the members that differ.
    fn apply(&self, old: &KeyRecord, now: Timestamp) -> (KeyRecord, Vec<String>) {
        let mut new = old.clone();
        let mut changed = Vec::new();
        set(&mut new.name, self.name.clone(), "name", &mut changed);
        set(&mut new.scopes, self.scopes.clone(), "scopes", &mut changed);
        set(&mut new.model_ids, limit(&self.model_ids), "model_ids", &mut changed);
        set(&mut new.dataset_ids, limit(&self.dataset_ids), "dataset_ids", &mut changed);
        set(&mut new.allowed_addresses, limit(&self.allowed_addresses), "allowed_addresses", &mut changed);
        set(&mut new.expires_at, limit(&self.expires_at), "expires_at", &mut changed);
        set(&mut new.disabled, self.disabled, "disabled", &mut changed);
        if !changed.is_empty() {
            new.updated_at = now;
        }
        (new, changed)
    }
}

fn limit<T: Clone>(change: &Change<T>) -> Option<Option<T>> {
    match change {
        Change::Leave => None,
        Change::Clear => Some(None),
        Change::Set(value) => Some(Some(value.clone())),
    }
}

fn set<T: PartialEq>(member: &mut T, value: Option<T>, name: &str, changed: &mut Vec<String>) {
    if let Some(value) = value.filter(|value| value != member) {
        *member = value;
        changed.push(name.to_owned());
    }
}

fn required(member: &str) -> ManagementError {
    ManagementError::InvalidBody(vec![BadMember::new(member, "required")])
}

/// The record and secret of a new key; what `new` does not name is the caller's.
fn new_record(
    caller: &Caller<'_>,
    new: NewKey,
    account_id: AccountId,
    now: Timestamp,
) -> Result<(KeyRecord, Secret), ManagementError> {
    let mine = caller.profile().map(|profile| &profile.record);
    let scopes = new.scopes.or_else(|| mine.map(|mine| mine.scopes.clone())).ok_or_else(|| required("scopes"))?;
    let environment = new.environment.or(mine.map(|mine| mine.environment)).unwrap_or(Environment::Live);
    let secret = mint(environment);
    let record = KeyRecord {
        id: KeyId::parse(&Uuid::now_v7().to_string()).expect("a UUID is in the alphabet of ids"),
        name: new.name,
        key_prefix: secret.prefix().to_owned(),
        environment,
        account_id,
        organization_id: new.organization_id.or_else(|| mine?.organization_id.clone()),
        scopes,
        model_ids: new.model_ids.or_else(|| mine?.model_ids.clone()),
        dataset_ids: new.dataset_ids.or_else(|| mine?.dataset_ids.clone()),
        allowed_addresses: new.allowed_addresses.or_else(|| mine?.allowed_addresses.clone()),
        expires_at: new.expires_at.or_else(|| mine?.expires_at),
        disabled: false,
        created_at: now,
        updated_at: now,
        created_by: caller.by().to_owned(),
        deleted_at: None,
    };
    Ok((record, secret))
}

fn mint(environment: Environment) -> Secret {
    loop {
        let mut random = [0; RANDOM_BYTES];
        // Once the machine is up the kernel's generator does not fail, and no key is better than a guessable one.
        getrandom::fill(&mut random).expect("the operating system gives random bytes");
        if let Some(secret) = Secret::mint(environment, &random) {
            return secret;
        }
    }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
