//! What a key and an account are: identifiers, records, plans, and whether a key is in force.
//!
//! Records here are what the store keeps and the management API shows. No secret is ever part of one: a secret lives in
//! [`super::credential`] for the length of a request and at rest only as its hash.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::credential::holds_secret;
use super::network::Network;
use super::scope::Scope;

/// A text is not an identifier: outside `[A-Za-z0-9._:-]{1,64}`, or a key that somebody put in the place of an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an id: 1 to 64 characters of A-Z a-z 0-9 . _ : -")]
pub struct InvalidId(pub String);

fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Accepts `[A-Za-z0-9._:-]{1,64}`, the alphabet in which no id can break out of a header, a path or a store key.
            /// A key is no id: ids are sent to stores and written to logs.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                if holds_secret(text) {
                    return Err(InvalidId("(a key)".to_owned()));
                }
                if is_id(text) { Ok(Self(text.into())) } else { Err(InvalidId(text.chars().take(80).collect())) }
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

id_type!(
    /// The stable id of a key (UUIDv7 when the gateway made it). Not a secret; safe in logs.
    KeyId
);
id_type!(
    /// The backend's user id: plan, limits and suspension belong to it.
    AccountId
);
id_type!(
    /// An organization of the backend.
    OrganizationId
);
id_type!(
    /// The id (or name) of a model or a dataset that a key is limited to. Compared exactly.
    ResourceId
);

/// A point in time, in milliseconds of the Unix epoch; RFC 3339 UTC outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds of the Unix epoch.
    pub const fn from_unix_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds of the Unix epoch.
    pub const fn unix_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds of the Unix epoch, rounded down.
    pub const fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// This time plus a number of seconds; saturates.
    pub const fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1000)))
    }

    /// Parses RFC 3339 with any offset.
    pub fn parse(text: &str) -> Result<Self, InvalidTimestamp> {
        let at =
            OffsetDateTime::parse(text, &Rfc3339).map_err(|_| InvalidTimestamp(text.chars().take(80).collect()))?;
        Ok(Self((at.unix_timestamp_nanos() / 1_000_000) as i64))
    }

    /// The UTC day this time falls on, as days since the epoch.
    pub const fn day(self) -> Day {
        Day(self.0.div_euclid(86_400_000) as i32)
    }
}

/// A text is not an RFC 3339 time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an RFC 3339 time such as 2027-01-31T23:59:59Z")]
pub struct InvalidTimestamp(pub String);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = i128::from(self.0) * 1_000_000;
        let text = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().and_then(|at| at.format(&Rfc3339).ok());
        f.write_str(text.as_deref().unwrap_or("0000-01-01T00:00:00Z"))
    }
}

impl TryFrom<String> for Timestamp {
    type Error = InvalidTimestamp;
    fn try_from(text: String) -> Result<Self, InvalidTimestamp> {
        Self::parse(&text)
    }
}

impl From<Timestamp> for String {
    fn from(at: Timestamp) -> String {
        at.to_string()
    }
}

/// A UTC calendar day, as days since the Unix epoch; `YYYY-MM-DD` outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(pub i32);

impl Day {
    /// Parses `YYYY-MM-DD`.
    pub fn parse(text: &str) -> Result<Self, InvalidTimestamp> {
        let bad = || InvalidTimestamp(text.chars().take(40).collect());
        if text.len() != 10 {
            return Err(bad());
        }
        Timestamp::parse(&format!("{text}T00:00:00Z")).map(Timestamp::day).map_err(|_| bad())
    }

    /// Midnight UTC at which the day begins.
    pub const fn start(self) -> Timestamp {
        Timestamp(self.0 as i64 * 86_400_000)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.start().to_string().get(..10).unwrap_or_default())
    }
}

/// Which upstream a key is for: production or sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// `sm_live_…`
    Live,
    /// `sm_test_…`
    Test,
}

impl Environment {
    /// `live` or `test`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Test => "test",
        }
    }

    /// A caller in `self` may give keys of `other`: live covers test, not the reverse.
    pub const fn covers(self, other: Self) -> bool {
        matches!((self, other), (Self::Live, _) | (Self::Test, Self::Test))
    }
}

/// A key as the store keeps it and the management API shows it (contract 3). Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Stable for life, also through a rotation.
    pub id: KeyId,
    /// For people; at most 200 characters.
    pub name: String,
    /// The first 12 characters of the secret.
    pub key_prefix: String,
    /// Live or test.
    pub environment: Environment,
    /// Whose plan and limits apply.
    pub account_id: AccountId,
    /// The organization the key is limited to.
    pub organization_id: Option<OrganizationId>,
    /// What the key may do, as given; wildcards are not expanded here.
    pub scopes: Vec<Scope>,
    /// Models the key is limited to; `None` is all.
    pub model_ids: Option<Vec<ResourceId>>,
    /// Datasets the key is limited to; `None` is all.
    pub dataset_ids: Option<Vec<ResourceId>>,
    /// Addresses that the key works from; `None` is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_addresses: Option<Vec<Network>>,
    /// From this instant on the key is refused.
    pub expires_at: Option<Timestamp>,
    /// Refused while true; can be undone.
    pub disabled: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When a member last changed.
    pub updated_at: Timestamp,
    /// The key or person that made it: a key id, `cli`, or `demo`.
    pub created_by: String,
    /// Set once the key is deleted; the record stays readable for `usage.retention`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Timestamp>,
}

/// The requests that an account may make in each window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct QuotaLimits {
    /// Requests per UTC minute.
    pub requests_per_minute: u32,
    /// Requests per UTC day.
    pub requests_per_day: u32,
}

/// All limits of a plan, or of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanLimits {
    /// Requests in each window.
    pub windows: QuotaLimits,
    /// Requests in flight at once; `None`: any number.
    pub concurrent_requests: Option<u32>,
}

/// Plan, limits of its own and suspension of one account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The backend's user id.
    pub id: AccountId,
    /// A name from `plans`; `None` is `default_plan`.
    pub plan: Option<String>,
    /// Limits of its own, for plans that are `custom`.
    pub requests_per_minute: Option<u32>,
    /// See `requests_per_minute`.
    pub requests_per_day: Option<u32>,
    /// Requests in flight at once, for plans that are `custom`; `None`: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent_requests: Option<u32>,
    /// All its keys are refused while true.
    pub suspended: bool,
}

impl Account {
    /// An account that nobody has set anything for.
    pub fn unset(id: AccountId) -> Self {
        Self {
            id,
            plan: None,
            requests_per_minute: None,
            requests_per_day: None,
            concurrent_requests: None,
            suspended: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_cannot_carry_what_would_break_a_header_or_a_store_key() {
        for bad in ["", "a b", "a/b", "{a}", "ä", "a\n", &"x".repeat(65)] {
            assert!(KeyId::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(ResourceId::parse("gpt-4.1:mini_x").unwrap().as_str(), "gpt-4.1:mini_x");
    }

    #[test]
    fn a_key_in_the_place_of_an_id_is_none_and_is_not_repeated() {
        let secret = "sm_live_EDiizzWw99APc5QtRZLmboR8jCGEw5RZ0eRX5J";
        for id in [secret, &format!("x.{secret}"), &secret[..20]] {
            assert_eq!(KeyId::parse(id).unwrap_err(), InvalidId("(a key)".to_owned()));
        }
        assert!(ResourceId::parse("sm_live_demo").is_ok());
    }

    #[test]
    fn times_are_rfc_3339_utc_whatever_offset_they_came_with() {
        let at = Timestamp::parse("2024-06-30T23:59:59+02:00").unwrap();
        assert_eq!(at.to_string(), "2024-06-30T21:59:59Z");
        assert_eq!(at.day().to_string(), "2024-06-30");
        assert_eq!(Day::parse("2024-02-29").unwrap().to_string(), "2024-02-29");
        assert!(Day::parse("2024-02-30").is_err());
        assert!(Timestamp::parse("2024-06-30").is_err());
    }
}
