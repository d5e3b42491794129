//! The JSON bodies of the management API: parsed into types that cannot be wrong, or refused with every bad member named.
//!
//! Content-Type is not consulted. Members that only the gateway sets are ignored, so that a client may send back what it was
//! given; any other unknown member is refused, because a misspelt limit that is ignored would be no limit. The command line
//! builds the same JSON from its arguments and goes through the same door. Whether the caller may do it is [`super::grant`].

use serde_json::{Map, Value, json};

use super::problem::{BadMember, ManagementError, quoted};
use crate::policy::credential::holds_secret;
use crate::policy::key::{AccountId, Environment, KeyRecord, OrganizationId, ResourceId, Timestamp};
use crate::policy::network::Network;
use crate::policy::scope::Scope;

/// Bytes of a body at most; the transport stops reading there.
pub const BODY_LIMIT: usize = 64 * 1024;
/// Contract 3.
const NAME_CHARS: usize = 200;
const SCOPES: usize = 100;
const ELEMENTS: usize = 100;
/// A century: any later expiry is a mistake for none.
const EXPIRES_IN_DAYS: i64 = 36_500;
/// The last millisecond that RFC 3339 can write.
const LAST_MILLISECOND: i64 = 253_402_300_799_999;

/// Members of an answer that only the gateway sets. Accepted and ignored.
const READ_ONLY: [&str; 12] = [
    "id",
    "key",
    "key_prefix",
    "plan",
    "created_at",
    "updated_at",
    "last_used_at",
    "created_by",
    "previous",
    "deleted_at",
    "limits",
    "acknowledged",
];

/// What to do with a member of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<T> {
    /// Not named: stays.
    Leave,
    /// `null`: taken away.
    Clear,
    /// A new value.
    Set(T),
}

impl<T> Change<T> {
    fn value(self) -> Option<T> {
        match self {
            Self::Set(value) => Some(value),
            Self::Leave | Self::Clear => None,
        }
    }
}

/// What `null` means in an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nulls {
    /// PATCH: take the limit away.
    Clear,
    /// PUT: leave the member as it is; clients that send whole objects mean nothing by it.
    Leave,
}

/// The body of a creation. `None` is inherited from the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// For people.
    pub name: String,
    /// What it may do; absent or empty is `None`.
    pub scopes: Option<Vec<Scope>>,
    /// Models it is limited to.
    pub model_ids: Option<Vec<ResourceId>>,
    /// Datasets it is limited to.
    pub dataset_ids: Option<Vec<ResourceId>>,
    /// Addresses it works from.
    pub allowed_addresses: Option<Vec<Network>>,
    /// The organization it is limited to.
    pub organization_id: Option<OrganizationId>,
    /// When it expires.
    pub expires_at: Option<Timestamp>,
    /// Live or test.
    pub environment: Option<Environment>,
    /// The account it is for; another than the caller's own is for those who may name one ([`super::grant`]).
    pub account_id: Option<AccountId>,
}

/// The body of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// `name`
    pub name: Option<String>,
    /// `scopes`, replacing the old list.
    pub scopes: Option<Vec<Scope>>,
    /// `model_ids`, replacing the old list.
    pub model_ids: Change<Vec<ResourceId>>,
    /// `dataset_ids`, replacing the old list.
    pub dataset_ids: Change<Vec<ResourceId>>,
    /// `allowed_addresses`, replacing the old list.
    pub allowed_addresses: Change<Vec<Network>>,
    /// `expires_at`
    pub expires_at: Change<Timestamp>,
    /// `disabled`
    pub disabled: Option<bool>,
}

impl Changes {
    /// Only switches the key on or off.
    pub const fn switch(disabled: bool) -> Self {
        Self {
            name: None,
            scopes: None,
            model_ids: Change::Leave,
            dataset_ids: Change::Leave,
            allowed_addresses: Change::Leave,
            expires_at: Change::Leave,
            disabled: Some(disabled),
        }
    }

    /// Takes power away and does nothing else: needs no grant of the caller's own.
    pub fn only_disables(&self) -> bool {
        *self == Self::switch(true)
    }
}

impl NewKey {
    /// Validates a creation. `scopes_required`: at `base_path`, not for the published client.
    pub fn from_members(
        members: Map<String, Value>,
        now: Timestamp,
        scopes_required: bool,
    ) -> Result<Self, ManagementError> {
        let mut members = Members { rest: members, bad: Vec::new() };
        let name = members.read("name", name).value();
        if name.is_none() && !members.is_bad("name") {
            members.refuse("name", "required");
        }
        let scopes = members.read("scopes", scopes).value().filter(|scopes| !scopes.is_empty());
        if scopes.is_none() && scopes_required && !members.is_bad("scopes") {
            members.refuse("scopes", "at least one scope is required");
        }
        let model_ids = members.read("model_ids", ids).value();
        let dataset_ids = members.read("dataset_ids", ids).value();
        let allowed_addresses = members.read("allowed_addresses", networks).value();
        let organization_id = members.read("organization_id", organization).value();
        let environment = members.read("environment", environment).value();
        let days = members.read("expires_in_days", days).value();
        let at = members.read("expires_at", |member, value, bad| expiry(member, value, now, bad)).value();
        if days.is_some() && at.is_some() {
            members.refuse("expires_in_days", "give this or expires_at, not both");
            members.refuse("expires_at", "give this or expires_in_days, not both");
        }
        let account_id = members.read("account_id", account).value();
        // A key is born enabled; ignoring `true` would leave a key open that somebody believes shut.
        if members.read("disabled", boolean).value() == Some(true) {
            members.refuse("disabled", "a key is created enabled; disable it afterwards");
        }
        let expires_at = at.or_else(|| days.map(|days| now.plus_seconds(days * 86_400)));
        members.finish(|| {
            let name = name?;
            Some(Self {
                name,
                scopes,
                model_ids,
                dataset_ids,
                allowed_addresses,
                organization_id,
                expires_at,
                environment,
                account_id,
            })
        })
    }
}

impl Changes {
    /// Validates an update. `present`: the key as it is, where what it has for life may be named too.
    pub fn from_members(
        members: Map<String, Value>,
        now: Timestamp,
        nulls: Nulls,
        present: Option<&KeyRecord>,
    ) -> Result<Self, ManagementError> {
        let mut members = Members { rest: members, bad: Vec::new() };
        if nulls == Nulls::Leave {
            members.rest.retain(|_, value| !value.is_null());
        }
        let changes = Self {
            name: members.read_kept("name", name),
            scopes: members.read_kept("scopes", scopes),
            model_ids: members.read("model_ids", ids),
            dataset_ids: members.read("dataset_ids", ids),
            allowed_addresses: members.read("allowed_addresses", networks),
            expires_at: members.read("expires_at", |member, value, bad| expiry(member, value, now, bad)),
            disabled: members.read_kept("disabled", boolean),
        };
        if changes.scopes.as_ref().is_some_and(Vec::is_empty) {
            members.refuse("scopes", "at least one scope is required");
        }
        // These belong to the key for life. A client that sends the whole object back means nothing by them; one that sends
        // another value must not believe that it was taken.
        for (fixed, value) in present.into_iter().flat_map(|present| {
            [
                ("organization_id", json!(present.organization_id)),
                ("environment", json!(present.environment)),
                ("account_id", json!(present.account_id)),
            ]
        }) {
            if members.rest.shift_remove(fixed).is_some_and(|named| named != value) {
                members.refuse(fixed, "belongs to a key for life; create another key");
            }
        }
        if members.rest.shift_remove("expires_in_days").is_some() {
            members.refuse("expires_in_days", "only when a key is created; use expires_at");
        }
        members.finish(|| Some(changes))
    }
}

/// The members of a body that are not read yet, and what was wrong so far.
struct Members {
    rest: Map<String, Value>,
    bad: Vec<BadMember>,
}

impl Members {
    fn refuse(&mut self, member: &str, reason: &'static str) {
        self.bad.push(BadMember::new(member, reason));
    }

    fn is_bad(&self, member: &str) -> bool {
        self.bad.iter().any(|bad| bad.member.split('[').next() == Some(member))
    }

    /// Takes a member out. What is bad about it is remembered, and then the value does not matter: [`Self::finish`] refuses.
    fn read<T>(
        &mut self,
        member: &str,
        parse: impl FnOnce(&str, &Value, &mut Vec<BadMember>) -> Option<T>,
    ) -> Change<T> {
        match self.rest.shift_remove(member) {
            None => Change::Leave,
            Some(Value::Null) => Change::Clear,
            Some(value) => parse(member, &value, &mut self.bad).map_or(Change::Leave, Change::Set),
        }
    }

    /// A member that a key cannot be without.
    fn read_kept<T>(
        &mut self,
        member: &'static str,
        parse: impl FnOnce(&str, &Value, &mut Vec<BadMember>) -> Option<T>,
    ) -> Option<T> {
        match self.read(member, parse) {
            Change::Leave => None,
            Change::Set(value) => Some(value),
            Change::Clear => {
                self.refuse(member, "cannot be null");
                None
            }
        }
    }

    /// Refuses what is left over, and everything if anything was bad.
    fn finish<T>(mut self, value: impl FnOnce() -> Option<T>) -> Result<T, ManagementError> {
        for member in self.rest.keys().filter(|member| !READ_ONLY.contains(&member.as_str())) {
            self.bad.push(BadMember::new(quoted(member), "unknown member"));
        }
        match value() {
            Some(value) if self.bad.is_empty() => Ok(value),
            _ => Err(ManagementError::InvalidBody(self.bad)),
        }
    }
}

fn text<'a>(member: &str, value: &'a Value, bad: &mut Vec<BadMember>) -> Option<&'a str> {
    let text = value.as_str();
    if text.is_none() {
        bad.push(BadMember::new(member, "must be a string"));
    }
    // Everything here is stored in clear: a secret in the wrong place would stay readable for ever.
    if text.is_some_and(holds_secret) {
        bad.push(BadMember::new(member, "holds what looks like a key; secrets do not belong here"));
        return None;
    }
    text
}

fn name(member: &str, value: &Value, bad: &mut Vec<BadMember>) -> Option<String> {
    let name = text(member, value, bad)?;
    let reason = if name.trim().is_empty() {
        "must not be empty"
    } else if name.chars().count() > NAME_CHARS {
        "at most 200 characters"
    } else if name.chars().any(char::is_control) {
        "must not contain control characters"
    } else {
        return Some(name.to_owned());
    };
    bad.push(BadMember::new(member, reason));
    None
}

/// A list of texts, each parsed; what is named twice is kept once.
fn list<T: PartialEq>(
    member: &str,
    value: &Value,
    bad: &mut Vec<BadMember>,
    (limit, too_many): (usize, &'static str),
    parse: impl Fn(&str) -> Result<T, &'static str>,
) -> Option<Vec<T>> {
    let Some(elements) = value.as_array() else {
        bad.push(BadMember::new(member, "must be a list of strings"));
        return None;
    };
    if elements.len() > limit {
        bad.push(BadMember::new(member, too_many));
        return None;
    }
    let mut parsed = Vec::with_capacity(elements.len());
    for (index, element) in elements.iter().enumerate() {
        let element_name = format!("{member}[{index}]");
        match text(&element_name, element, bad).map(&parse) {
            Some(Ok(one)) if parsed.contains(&one) => {}
            Some(Ok(one)) => parsed.push(one),
            Some(Err(reason)) => bad.push(BadMember::new(element_name, reason)),
            None => {}
        }
    }
    Some(parsed)
}

fn scopes(member: &str, value: &Value, bad: &mut Vec<BadMember>) -> Option<Vec<Scope>> {
    list(member, value, bad, (SCOPES, "at most 100 scopes"), |text| {
        Scope::parse(text)
            .map_err(|_| "not a scope: write family:action, family:* or * in lower case, such as models:read")
    })
}

const NOT_AN_ID: &str = "not an id: 1 to 64 characters of A-Z a-z 0-9 . _ : -";

fn ids(member: &str, value: &Value, bad: &mut Vec<BadMember>) -> Option<Vec<ResourceId>> {
    limit(member, value, bad, "at most 100 ids", |text| ResourceId::parse(text).map_err(|_| NOT_AN_ID))
}

fn networks(member: &str, value: &Value, bad: &mut Vec<BadMember>) -> Option<Vec<Network>> {
    limit(member, value, bad, "at most 100 networks", |text| {
        Network::parse(text).map_err(|_| "not an address or a network such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32")
    })
}

/// A list that a key is limited to. Empty would be nothing, and is more likely a mistake for all.
fn limit<T: PartialEq>(
    member: &str,
    value: &Value,
    bad: &mut Vec<BadMember>,
    too_many: &'static str,
    parse: impl Fn(&str) -> Result<T, &'static str>,
) -> Option<Vec<T>> {
    let limit = list(member, value, bad, (ELEMENTS, too_many), parse)?;
    if value.as_array().is_some_and(Vec::is_empty) {
        bad.push(BadMember::new(member, "must not be empty; null or absent is all"));
        return None;
    }
    Some(limit)
}

fn organization(member: &str, value: &Value, bad: &mut Vec<BadMember>) -> Option<OrganizationId> {
    let id = OrganizationId::parse(text(member, value, bad)?).ok();
    id.or_else(|| {
        bad.push(BadMember::new(member, NOT_AN_ID));
        None
    })
}

fn account(member: &str, value: &Value, bad: &mut Vec<BadMember>) -> Option<AccountId> {
    let id = AccountId::parse(text(member, value, bad)?).ok();
    id.or_else(|| {
        bad.push(BadMember::new(member, NOT_AN_ID));
        None
    })
}

fn environment(member: &str, value: &Value, bad: &mut Vec<BadMember>) -> Option<Environment> {
    match value.as_str() {
        Some("live") => Some(Environment::Live),
        Some("test") => Some(Environment::Test),
        _ => {
            bad.push(BadMember::new(member, "must be \"live\" or \"test\""));
            None
        }
    }
}

fn boolean(member: &str, value: &Value, bad: &mut Vec<BadMember>) -> Option<bool> {
    value.as_bool().or_else(|| {
        bad.push(BadMember::new(member, "must be true or false"));
        None
    })
}

fn days(member: &str, value: &Value, bad: &mut Vec<BadMember>) -> Option<i64> {
    value.as_i64().filter(|days| (1..=EXPIRES_IN_DAYS).contains(days)).or_else(|| {
        bad.push(BadMember::new(member, "must be a whole number of days from 1 to 36500"));
        None
    })
}

fn expiry(member: &str, value: &Value, now: Timestamp, bad: &mut Vec<BadMember>) -> Option<Timestamp> {
    let at = Timestamp::parse(text(member, value, bad)?).ok().filter(|at| at.unix_millis() <= LAST_MILLISECOND);
    let reason = match at {
        None => "not an RFC 3339 time such as 2027-01-31T23:59:59Z",
        Some(at) if at <= now => "is in the past",
        Some(at) => return Some(at),
    };
    bad.push(BadMember::new(member, reason));
    None
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
