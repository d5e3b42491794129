//! Copies all that a store keeps of keys and accounts into another one: a move, a backup, a restore.
//!
//! It asks for nothing but the contract of [`Store`], so any backend can be copied into any other. Accounts go first, so that no key
//! is served in its new place before its limits are there. What the target has of a copied key or account is replaced, the rest of it
//! stays; so a copy that failed half-way is simply repeated. Afterwards the target is read again and counted.
//!
//! Gateways may run on both stores. Each key is copied as it is at one moment, but not all of them at the same one. Not copied are
//! the quota ledgers (windows begin anew), answers kept for idempotent calls and the list of gateways.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::panic::resume_unwind;
use std::sync::Arc;

use super::{Counted, KeyCopy, KeyFilter, Store, StoreError, UsageCount, record};
use crate::policy::key::{Account, Day, KeyId};

/// Keys that are on their way at once. A store that is far away, or that syncs to disk, is kept busy by so many.
const AT_ONCE: usize = 64;
/// How often something is read again that changes while it is read.
const TRIES: usize = 20;

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Keys, deleted ones included.
    pub keys: u64,
    /// How many of them are deleted.
    pub deleted_keys: u64,
    /// Accounts that were set.
    pub accounts: u64,
    /// Lines of the audit trail.
    pub events: u64,
    /// Requests that were counted.
    pub requests: u64,
    /// Keys that the target has beside the copied ones.
    pub other_keys: u64,
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// So many of so many keys are in the target.
    Copied(usize, usize),
    /// So many of so many were found there.
    Checked(usize, usize),
}

/// Why a copy did not succeed. What it had copied by then stays.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CopyError {
    /// The store that is copied from.
    #[error("cannot read {0} from the source: {1}")]
    Read(Item, StoreError),
    /// The store that is copied to.
    #[error("cannot write {0} to the target: {1}")]
    Write(Item, StoreError),
    /// The store that is copied to, after it had taken everything.
    #[error("cannot read {0} back from the target: {1}")]
    ReadBack(Item, StoreError),
    /// It was different each time.
    #[error("{0} changes faster than it can be copied")]
    Restless(Item),
    /// Both stores know the same secret under different keys.
    #[error("a secret of {0} belongs to another key of the target: delete that one, or copy into an empty store")]
    SecretTaken(Item),
    /// The target has not what was copied into it.
    #[error("{0} is not in the target as it was copied: {1}")]
    Differs(Item, String),
}

/// What a step of a copy is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// All of them.
    Accounts,
    /// One of them.
    Account(Arc<str>),
    /// All of them.
    Keys,
    /// One of them.
    Key(KeyId),
    /// Who runs on it.
    Gateways,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accounts => f.write_str("the accounts"),
            Self::Account(id) => write!(f, "account {id}"),
            Self::Keys => f.write_str("the keys"),
            Self::Key(id) => write!(f, "key {id}"),
            Self::Gateways => f.write_str("the gateways"),
        }
    }
}

/// Copies everything, then checks that it is there.
pub async fn copy(
    from: &Arc<dyn Store>,
    to: &Arc<dyn Store>,
    mut progress: impl FnMut(Progress),
) -> Result<Copied, CopyError> {
    let accounts = from.accounts().await.map_err(|error| CopyError::Read(Item::Accounts, error))?;
    for account in &accounts {
        copy_account(&**to, account).await?;
    }
    let keys = from.keys(everything()).await.map_err(|error| CopyError::Read(Item::Keys, error))?;
    let ids: Vec<KeyId> = keys.into_iter().rev().map(|key| key.record.id).collect();
    let total = ids.len();
    let (mut done, mut copied) = (0, Vec::with_capacity(total));
    let one = |id| {
        let (from, to) = (Arc::clone(from), Arc::clone(to));
        async move { copy_key(&*from, &*to, id).await }
    };
    in_order(ids, one, |key| {
        done += 1;
        copied.extend(key);
        progress(Progress::Copied(done, total));
    })
    .await?;
    check(to, &accounts, copied, &mut progress).await
}

fn everything() -> KeyFilter {
    KeyFilter { include_deleted: true, ..KeyFilter::default() }
}

async fn copy_account(to: &dyn Store, account: &Account) -> Result<(), CopyError> {
    let item = || Item::Account(account.id.as_str().into());
    for _ in 0..TRIES {
        let there = to.account(account.id.clone()).await.map_err(|error| CopyError::ReadBack(item(), error))?;
        if there.as_ref().is_some_and(|(there, _)| there == account) {
            return Ok(());
        }
        match to.replace_account(account.clone(), there.map(|(_, version)| version)).await {
            Err(StoreError::Conflict) => {}
            Err(error) => return Err(CopyError::Write(item(), error)),
            Ok(_) => return Ok(()),
        }
    }
    Err(CopyError::Restless(item()))
}

/// `None` when the source has forgotten it meanwhile.
async fn copy_key(from: &dyn Store, to: &dyn Store, id: KeyId) -> Result<Option<(KeyId, Contents)>, CopyError> {
    let Some(key) = read(from, &id, CopyError::Read).await? else { return Ok(None) };
    let item = || Item::Key(id.clone());
    let contents = Contents::of(&key).map_err(|error| CopyError::Read(item(), error))?;
    match to.restore_key(key).await {
        Ok(_) => Ok(Some((id, contents))),
        Err(StoreError::Conflict) => Err(CopyError::SecretTaken(item())),
        Err(error) => Err(CopyError::Write(item(), error)),
    }
}

/// A key as it was at one moment. Whatever adds an event changes the version of the row.
async fn read(
    store: &dyn Store,
    id: &KeyId,
    failed: fn(Item, StoreError) -> CopyError,
) -> Result<Option<KeyCopy>, CopyError> {
    let failed = |error| failed(Item::Key(id.clone()), error);
    for _ in 0..TRIES {
        let Some(key) = store.key(id.clone()).await.map_err(failed)? else { return Ok(None) };
        let events = store.events(id.clone()).await.map_err(failed)?;
        let usage = store.usage(id.clone(), Day(i32::MIN), Day(i32::MAX)).await.map_err(failed)?;
        let now = store.key(id.clone()).await.map_err(failed)?;
        if now.is_some_and(|now| now.version == key.version) {
            return Ok(Some(KeyCopy { key, events, usage }));
        }
    }
    Err(CopyError::Restless(Item::Key(id.clone())))
}

/// Reads the target again and compares it with what was copied.
async fn check(
    to: &Arc<dyn Store>,
    accounts: &[Account],
    copied: Vec<(KeyId, Contents)>,
    progress: &mut impl FnMut(Progress),
) -> Result<Copied, CopyError> {
    check_accounts(&**to, accounts).await?;
    // Whoever runs there may have counted more since.
    let gateways = to.replicas().await.map_err(|error| CopyError::ReadBack(Item::Gateways, error))?;
    let may_grow = !gateways.is_empty();
    let (mut outcome, mut done, total) =
        (Copied { accounts: accounts.len() as u64, ..Copied::default() }, 0, copied.len());
    let ids: HashSet<KeyId> = copied.iter().map(|(id, _)| id.clone()).collect();
    let one = |(id, expected)| {
        let to = Arc::clone(to);
        async move { check_key(&*to, &id, expected, may_grow).await.map(|()| expected) }
    };
    in_order(copied, one, |key: Contents| {
        done += 1;
        outcome.keys += 1;
        outcome.deleted_keys += u64::from(key.deleted);
        outcome.events += key.events;
        outcome.requests += key.requests;
        progress(Progress::Checked(done, total));
    })
    .await?;
    let listed = to.keys(everything()).await.map_err(|error| CopyError::ReadBack(Item::Keys, error))?;
    let (ours, others): (Vec<_>, Vec<_>) = listed.into_iter().partition(|key| ids.contains(&key.record.id));
    if ours.len() != ids.len() {
        return Err(CopyError::Differs(Item::Keys, format!("{} of {} are listed", ours.len(), ids.len())));
    }
    Ok(Copied { other_keys: others.len() as u64, ..outcome })
}

async fn check_accounts(to: &dyn Store, copied: &[Account]) -> Result<(), CopyError> {
    let there = to.accounts().await.map_err(|error| CopyError::ReadBack(Item::Accounts, error))?;
    match copied.iter().find(|account| !there.contains(account)) {
        None => Ok(()),
        Some(missing) => {
            let known = there.iter().any(|account| account.id == missing.id);
            let why = if known { "it has been changed since" } else { "it is missing" };
            Err(CopyError::Differs(Item::Account(missing.id.as_str().into()), why.to_owned()))
        }
    }
}

async fn check_key(to: &dyn Store, id: &KeyId, expected: Contents, may_grow: bool) -> Result<(), CopyError> {
    let differs = |why: &str| CopyError::Differs(Item::Key(id.clone()), why.to_owned());
    let key = read(to, id, CopyError::ReadBack).await?.ok_or_else(|| differs("it is missing"))?;
    let found = Contents::of(&key).map_err(|error| CopyError::ReadBack(Item::Key(id.clone()), error))?;
    if found.record != expected.record {
        return Err(differs("its record has been changed since"));
    }
    let difference = expected
        .numbers()
        .into_iter()
        .zip(found.numbers())
        .find(|((_, expected), (_, found))| found < expected || (found > expected && !may_grow));
    match difference {
        None => Ok(()),
        Some(((what, expected), (_, found))) => Err(differs(&format!("{what}: {found} instead of {expected}"))),
    }
}

/// What is remembered of a key until it is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Contents {
    record: blake3::Hash,
    deleted: bool,
    /// Without an end: the others are forgotten some time after it.
    secrets: u64,
    events: u64,
    requests: u64,
    scopes: u64,
    resources: u64,
}

impl Contents {
    fn of(copy: &KeyCopy) -> Result<Self, StoreError> {
        let KeyCopy { key, events, usage } = copy;
        let sum = |of: fn(&Counted) -> bool| -> u64 {
            usage.iter().filter(|UsageCount { counted, .. }| of(counted)).map(|count| count.count).sum()
        };
        Ok(Self {
            record: blake3::hash(record::to_json(&key.record)?.as_bytes()),
            deleted: key.record.deleted_at.is_some(),
            secrets: key.secrets.iter().filter(|secret| secret.expires_at.is_none()).count() as u64,
            events: events.len() as u64,
            requests: sum(|counted| matches!(counted, Counted::Endpoint(..))),
            scopes: sum(|counted| matches!(counted, Counted::Scope(_))),
            resources: sum(|counted| matches!(counted, Counted::Resource(..))),
        })
    }

    /// What can be counted, with its name.
    fn numbers(&self) -> [(&'static str, u64); 5] {
        [
            ("secrets", self.secrets),
            ("events", self.events),
            ("requests", self.requests),
            ("uses of scopes", self.scopes),
            ("uses of models and datasets", self.resources),
        ]
    }
}

/// Works on many items at once, and takes their outcomes in the order of the items. Ends with the first that fails.
async fn in_order<T, O, F>(items: Vec<T>, work: impl Fn(T) -> F, mut done: impl FnMut(O)) -> Result<(), CopyError>
where
    O: Send + 'static,
    F: Future<Output = Result<O, CopyError>> + Send + 'static,
{
    let mut waiting = items.into_iter();
    let mut running = VecDeque::new();
    loop {
        running.extend(waiting.by_ref().take(AT_ONCE - running.len()).map(|item| tokio::spawn(work(item))));
        let Some(first) = running.pop_front() else { return Ok(()) };
        match first.await {
            Ok(outcome) => done(outcome?),
            Err(stopped) => resume_unwind(stopped.into_panic()),
        }
    }
}

#[cfg(test)]
mod tests;
