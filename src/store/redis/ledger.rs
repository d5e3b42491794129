//! Quota: one call of the lease script, of one name, so that it goes on while a cluster moves that name. The arithmetic is [`crate::policy::quota::Ledger`]'s; a test compares the two.

use super::RedisStore;
use super::script::{self, Invocation};
use crate::policy::quota::{LeaseReply, LeaseRequest, MINUTES_A_DAY, Seen, Subject};
use crate::store::StoreError;

const SCARCE: u32 = 1;
const SOFT: u32 = 2;
const RECALL: u32 = 4;

/// What the script answers, in its order.
type Reply = (u32, u32, u64, u32, u32, u32, u32, u32, u32);

impl RedisStore {
    pub(super) async fn lease_once(&self, subject: &Subject, request: &LeaseRequest) -> Result<LeaseReply, StoreError> {
        let names = vec![self.names.ledger(subject)];
        let (back_of, back) = request.give_back.unwrap_or_default();
        let (debit_of, debit) = request.debit.unwrap_or_default();
        let seen = request.seen;
        let call = Invocation::new(&script::LEASE, names)
            .arg(request.target.map_or(-1, i64::from))
            .arg(request.want)
            .arg(request.need)
            .arg(request.limits.requests_per_minute)
            .arg(request.limits.requests_per_day)
            .arg(u8::from(request.first))
            .arg(&[back_of, back, debit_of, debit])
            .arg(&[seen.minute, seen.minute_granted, seen.day, seen.day_granted]);
        let (granted, minute, now_micros, minute_left, day_left, flags, minute_granted, day_granted, active) =
            self.client.call::<Reply>(call).await?;
        if flags & RECALL != 0 {
            // Nobody waits for it: whoever was refused meanwhile asks again.
            let call = Invocation::new(&script::RECALL, vec![self.names.recall(subject)]);
            self.client.send(call.arg(minute).arg(self.names.channel()).arg(subject.as_str()));
        }
        Ok(LeaseReply {
            granted,
            minute,
            now_micros,
            minute_left,
            day_left,
            scarce: flags & SCARCE != 0,
            soft: flags & SOFT != 0,
            recall: flags & RECALL != 0,
            seen: Seen { minute, minute_granted, day: minute / MINUTES_A_DAY, day_granted },
            active,
        })
    }
}
