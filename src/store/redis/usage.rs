//! Usage counters: spread over partitions, each batch exactly once.
//!
//! A batch is split by partition, and a large part into pieces, each one atomic script that remembers the last piece it added of
//! this replica. A batch that is sent again is split the same way, so what was added is not added again. Only when all pieces are in
//! the batch is marked as written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::task::JoinSet;

use super::RedisStore;
use super::names::{Names, Partition};
use super::script::{self, Invocation};
use crate::policy::key::{Day, KeyId};
use crate::policy::resource::Kind;
use crate::policy::scope::Scope;
use crate::store::{
    Counted, FlushOutcome, MAX_RESOURCES, OTHER, ReplicaId, StatusClass, StoreError, UsageBatch, UsageCount,
};

/// Counters of one script: a few milliseconds of the server's time.
const PIECE: usize = 2000;
/// Pieces that one batch may have in one partition.
const PIECES: u64 = 1 << 16;
/// The longest that a replica may hold a batch back and still have it recognised.
const MARK_KEPT: Duration = Duration::from_secs(8 * 86_400);

impl RedisStore {
    pub(super) async fn flush(&self, batch: UsageBatch) -> Result<FlushOutcome, StoreError> {
        self.ready().await?;
        self.write_counts(&batch).await?;
        let before = self.write_uses(&batch.replica, batch.sequence, &batch.last_used, MARK_KEPT).await?;
        Ok(match before {
            Some(last) if batch.sequence <= last => FlushOutcome::Duplicate,
            Some(last) if batch.sequence > last + 1 => FlushOutcome::AppliedAfterGap(last),
            _ => FlushOutcome::Applied,
        })
    }

    async fn write_counts(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        let mut parts: BTreeMap<Partition, Vec<&UsageCount>> = BTreeMap::new();
        for count in &batch.counts {
            parts.entry(Partition::of(&count.key_id)).or_default().push(count);
        }
        let mut writes: JoinSet<Result<(), StoreError>> = JoinSet::new();
        for (partition, counts) in parts {
            let calls: Vec<Invocation> = (batch.sequence * PIECES..)
                .zip(counts.chunks(PIECE))
                .map(|(piece, counts)| self.piece(partition, batch, piece, counts))
                .collect();
            let client = self.client.clone();
            writes.spawn(async move {
                for call in calls {
                    client.call::<u8>(call).await?;
                }
                Ok(())
            });
        }
        while let Some(written) = writes.join_next().await {
            written.map_err(|_| StoreError::Unknown("the store is being closed".to_owned()))??;
        }
        Ok(())
    }

    fn partition_call(&self, script: &'static script::Script, partition: Partition) -> Invocation {
        let base = self.names.usage(partition);
        Invocation::new(script, vec![format!("{base}names"), Names::never(&base)]).arg(base)
    }

    fn piece(&self, partition: Partition, batch: &UsageBatch, number: u64, counts: &[&UsageCount]) -> Invocation {
        let mut call = self
            .partition_call(&script::FLUSH, partition)
            .arg(&*batch.replica.0)
            .arg(number)
            .arg(MARK_KEPT.as_secs())
            .arg(MAX_RESOURCES)
            .arg(OTHER);
        for count in counts {
            let (kind, name, class) = match &count.counted {
                Counted::Endpoint(name, class) => ("e", &**name, class.as_str()),
                Counted::Scope(scope) => ("s", scope.as_str(), ""),
                Counted::Resource(kind, id) => (letter(*kind), &**id, ""),
            };
            call = call.arg(count.key_id.as_str()).arg(count.day.0).arg(kind).arg(name).arg(class).arg(count.count);
        }
        call
    }

    pub(super) async fn read_usage(&self, key_id: KeyId, from: Day, to: Day) -> Result<Vec<UsageCount>, StoreError> {
        self.ready().await?;
        let call = self.partition_call(&script::USAGE, Partition::of(&key_id)).arg(key_id.as_str());
        let answer: Vec<Value> = self.client.call(call.arg(from.0).arg(to.0)).await?;
        let damaged = |error: redis::ParsingError| StoreError::Corrupt(format!("usage of {key_id}: {error}"));
        let mut answer = answer.into_iter();
        let names: HashMap<String, String> =
            redis::from_redis_value(answer.next().unwrap_or_default()).map_err(damaged)?;
        let endpoints: HashMap<&str, Arc<str>> =
            names.iter().map(|(name, number)| (number.as_str(), name.as_str().into())).collect();
        let mut counts = Vec::new();
        for day in answer {
            let (day, fields): (i32, Vec<(String, u64)>) = redis::from_redis_value(day).map_err(damaged)?;
            for (field, count) in fields {
                // "#" is the number of resources; a kind that this version does not know is a later one's.
                if let Some(counted) = counted(&field, &endpoints) {
                    counts.push(UsageCount { key_id: key_id.clone(), day: Day(day), counted, count });
                }
            }
        }
        Ok(counts)
    }

    /// Makes the usage of a key what it was in another store.
    pub(super) async fn replace_usage(&self, key: &KeyId, counts: &[UsageCount]) -> Result<(), StoreError> {
        self.drop_usage(std::slice::from_ref(key), Day(i32::MAX)).await?;
        // Nobody repeats this batch: its name is used once.
        let replica = ReplicaId(uuid::Uuid::now_v7().to_string().into());
        let counts = counts.iter().map(|count| UsageCount { key_id: key.clone(), ..count.clone() }).collect();
        let batch = UsageBatch { replica, sequence: 1, counts, last_used: Vec::new() };
        self.write_counts(&batch).await
    }

    /// Forgets usage of these keys up to and including a day.
    pub(super) async fn drop_usage(&self, keys: &[KeyId], last: Day) -> Result<(), StoreError> {
        let mut parts: BTreeMap<Partition, Vec<&KeyId>> = BTreeMap::new();
        for key in keys {
            parts.entry(Partition::of(key)).or_default().push(key);
        }
        for (partition, keys) in parts {
            let call = self.partition_call(&script::DROP_USAGE, partition).arg(last.0);
            let call = keys.into_iter().fold(call, |call, key| call.arg(key.as_str()));
            self.client.call::<u8>(call).await?;
        }
        Ok(())
    }
}

const fn letter(kind: Kind) -> &'static str {
    match kind {
        Kind::Model => "m",
        Kind::Dataset => "d",
    }
}

fn counted(field: &str, endpoints: &HashMap<&str, Arc<str>>) -> Option<Counted> {
    let (kind, name) = field.split_at_checked(1)?;
    match kind {
        "e" => {
            let (number, class) = name.split_once(':')?;
            let class = StatusClass::ALL.into_iter().find(|known| known.as_str() == class)?;
            Some(Counted::Endpoint(endpoints.get(number)?.clone(), class))
        }
        "s" => Scope::parse(name).ok().map(Counted::Scope),
        _ => {
            let kind = Kind::ALL.into_iter().find(|known| letter(*known) == kind)?;
            Some(Counted::Resource(kind, name.into()))
        }
    }
}
