//! Forgetting what is older than it needs to be, a page of keys at a time. One gateway does it for all.

use std::time::Duration;

use super::RedisStore;
use super::script;
use crate::policy::key::{Day, KeyId, Timestamp};
use crate::store::StoreError;

/// Keys of one page: a few milliseconds of the server's time.
const PAGE: isize = 200;
/// A rotated secret is of no use after its grace; a day more lets people see why it failed.
const SECRETS_KEPT: i64 = 86_400_000;
/// Whoever sweeps does so alone for at most this long.
const ALONE: Duration = Duration::from_secs(600);

impl RedisStore {
    pub(super) async fn sweep_all(&self, retention: Duration) -> Result<(), StoreError> {
        self.ready().await?;
        let registry = self.registry_node()?;
        let lock = self.names.aux("sweeping");
        let mut claim = redis::cmd("SET");
        claim.arg(&lock).arg(1).arg("NX").arg("EX").arg(ALONE.as_secs());
        if self.client.ask(registry.clone(), claim).await? == redis::Value::Nil {
            return Ok(());
        }
        let swept = self.sweep_pages(retention).await;
        let mut release = redis::cmd("DEL");
        release.arg(&lock);
        self.client.ask(registry, release).await?;
        swept
    }

    async fn sweep_pages(&self, retention: Duration) -> Result<(), StoreError> {
        let now = self.server_time().await?.unix_millis();
        let retention = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        let oldest = Timestamp::from_unix_millis(now.saturating_sub(retention).max(0));
        let mut first = 0;
        loop {
            let mut page = redis::cmd("ZRANGE");
            page.arg(self.names.aux("keys")).arg(first).arg(first + PAGE - 1);
            let ids = self.client.ask(self.registry_node()?, page).await?;
            let ids: Vec<String> = redis::from_redis_value(ids)
                .map_err(|error| StoreError::Corrupt(format!("the list of keys: {error}")))?;
            let keys: Vec<KeyId> = ids.iter().filter_map(|id| KeyId::parse(id).ok()).collect();
            self.drop_usage(&keys, Day(oldest.day().0 - 1)).await?;
            let before = self.count_keys().await?;
            let call = self.registry_call(&script::SWEEP).arg(oldest.to_string()).arg(oldest.unix_millis());
            let call = call.arg(now - SECRETS_KEPT);
            let call = keys.iter().fold(call, |call, key| call.arg(key.as_str()));
            self.client.call::<u8>(call).await?;
            if ids.len() < PAGE as usize {
                return Ok(());
            }
            // Those that are gone moved the next ones up.
            first += PAGE - before.saturating_sub(self.count_keys().await?).clamp(0, PAGE);
        }
    }

    async fn count_keys(&self) -> Result<isize, StoreError> {
        let mut count = redis::cmd("ZCARD");
        count.arg(self.names.aux("keys"));
        let count = self.client.ask(self.registry_node()?, count).await?;
        redis::from_redis_value(count).map_err(|error| StoreError::Corrupt(format!("the list of keys: {error}")))
    }
}
