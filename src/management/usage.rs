//! From counters to the usage object of contract 6. Pure.
//!
//! Days and endpoints without a request are left out; status classes are all there.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::problem::{BadMember, ManagementError};
use crate::policy::key::{Day, Timestamp};
use crate::store::{Counted, StatusClass, UsageCount};

/// Days shown when none are named.
const DEFAULT_DAYS: i32 = 30;

/// Requests, by how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// All of them.
    pub total: u64,
    /// Below 400.
    pub successful: u64,
    /// The rest.
    pub failed: u64,
}

/// What a key was used for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// All requests.
    pub all: Tally,
    /// By method and route template.
    pub by_endpoint: BTreeMap<String, Tally>,
    /// By UTC day of admission.
    pub by_day: BTreeMap<Day, Tally>,
    /// By status class.
    pub by_status: BTreeMap<StatusClass, u64>,
    /// When one of its secrets was last presented.
    pub last_used_at: Option<Timestamp>,
}

/// The days asked for, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days {
    /// The first.
    pub from: Day,
    /// The last.
    pub to: Day,
}

impl Tally {
    fn add(&mut self, class: StatusClass, count: u64) {
        self.total += count;
        *(if class.is_successful() { &mut self.successful } else { &mut self.failed }) += count;
    }
}

impl Usage {
    /// Adds counters up. Scopes and resources are counted beside the requests, not as requests.
    pub fn of(counts: &[UsageCount], last_used_at: Option<Timestamp>) -> Self {
        let mut usage = Self { last_used_at, ..Self::default() };
        for UsageCount { day, counted, count, .. } in counts {
            let Counted::Endpoint(endpoint, class) = counted else { continue };
            usage.all.add(*class, *count);
            usage.by_day.entry(*day).or_default().add(*class, *count);
            usage.by_endpoint.entry(endpoint.to_string()).or_default().add(*class, *count);
            *usage.by_status.entry(*class).or_default() += count;
        }
        usage
    }

    /// The object of contract 6.
    pub fn to_json(&self) -> Value {
        let by_status: Map<String, Value> = StatusClass::ALL
            .iter()
            .map(|class| (class.as_str().to_owned(), self.by_status.get(class).copied().unwrap_or(0).into()))
            .collect();
        let by_day: Vec<Value> = self
            .by_day
            .iter()
            .map(|(day, Tally { total, successful, failed })| {
                json!({"date": day.to_string(), "total": total, "successful": successful, "failed": failed})
            })
            .collect();
        json!({
            "total_requests": self.all.total,
            "successful": self.all.successful,
            "failed": self.all.failed,
            "by_endpoint": self.by_endpoint,
            "by_day": by_day,
            "by_status": by_status,
            "last_used_at": self.last_used_at,
        })
    }
}

impl Days {
    /// From texts like `2024-01-31`. Without an end it is `today`, without a start the 30 days that lead up to the end.
    pub fn parse(start: Option<&str>, end: Option<&str>, today: Day) -> Result<Self, ManagementError> {
        let mut bad = Vec::new();
        let mut day = |name: &str, text: Option<&str>| {
            let day = text.map(Day::parse)?;
            day.map_err(|_| bad.push(BadMember::new(name, "not a date such as 2024-01-31"))).ok()
        };
        let (start, end) = (day("start_date", start), day("end_date", end));
        let to = end.unwrap_or(today);
        let from = start.unwrap_or(Day(to.0 - (DEFAULT_DAYS - 1)));
        if bad.is_empty() && from > to {
            bad.push(BadMember::new("start_date", "must not be after the last day (today if absent)"));
        }
        if bad.is_empty() { Ok(Self { from, to }) } else { Err(ManagementError::InvalidQuery(bad)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::key::KeyId;
    use crate::policy::resource::Kind;
    use crate::policy::scope::Scope;

    fn count(day: &str, counted: Counted, count: u64) -> UsageCount {
        UsageCount { key_id: KeyId::parse("k").unwrap(), day: Day::parse(day).unwrap(), counted, count }
    }

    fn request(day: &str, endpoint: &str, class: StatusClass, n: u64) -> UsageCount {
        count(day, Counted::Endpoint(endpoint.into(), class), n)
    }

    #[test]
    fn every_class_counts_where_the_contract_says() {
        use StatusClass::{ClientError, ClientGone, RateLimited, Redirect, ServerError, Success};
        let (predict, list) = ("POST /api/v1/inferences/{model_id}", "GET /api/v1/models");
        let usage = Usage::of(
            &[
                request("2024-01-02", predict, Success, 100),
                request("2024-01-01", predict, Redirect, 20),
                request("2024-01-01", predict, ClientError, 3),
                request("2024-01-02", list, ServerError, 4),
                request("2024-01-02", list, RateLimited, 5),
                request("2024-01-02", list, ClientGone, 6),
                count("2024-01-02", Counted::Scope(Scope::parse("models:read").unwrap()), 1000),
                count("2024-01-02", Counted::Resource(Kind::Model, "m-1".into()), 1000),
            ],
            Timestamp::parse("2024-01-02T03:04:05Z").ok(),
        );
        insta::assert_json_snapshot!(usage.to_json());
    }

    #[test]
    fn a_key_that_was_never_used_has_every_member_all_the_same() {
        insta::assert_json_snapshot!(Usage::of(&[], None).to_json());
    }

    #[test]
    fn days_default_to_the_last_thirty_and_both_ends_are_included() {
        let today = Day::parse("2024-03-01").unwrap();
        let days = |start, end| {
            let Days { from, to } = Days::parse(start, end, today).unwrap();
            (from.to_string(), to.to_string())
        };
        let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        assert_eq!(days(None, None), pair("2024-02-01", "2024-03-01"));
        assert_eq!(days(Some("2024-01-01"), Some("2024-01-31")), pair("2024-01-01", "2024-01-31"));
        assert_eq!(days(Some("2024-01-01"), None), pair("2024-01-01", "2024-03-01"));
        assert_eq!(days(None, Some("2024-01-31")), pair("2024-01-02", "2024-01-31"));
        assert_eq!(days(Some("2024-01-31"), Some("2024-01-31")), pair("2024-01-31", "2024-01-31"));
    }

    #[test]
    fn what_is_no_range_of_days_is_refused_by_name() {
        let today = Day::parse("2024-03-01").unwrap();
        for (start, end, bad) in [
            (Some("yesterday"), Some("2024-02-30"), vec!["start_date", "end_date"]),
            (Some("2024-02-02"), Some("2024-02-01"), vec!["start_date"]),
            (Some("2024-03-02"), None, vec!["start_date"]),
            (None, Some(""), vec!["end_date"]),
        ] {
            match Days::parse(start, end, today) {
                Err(ManagementError::InvalidQuery(found)) => {
                    assert_eq!(found.iter().map(|bad| bad.member.as_str()).collect::<Vec<_>>(), bad);
                }
                other => panic!("{start:?} {end:?}: {other:?}"),
            }
        }
    }
}
