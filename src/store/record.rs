//! Records and accounts as JSON, such that gateways of several versions can share a store.
//!
//! A row may have members that a later version wrote. They are not in the types, so whoever writes a record back must put them in
//! again: [`merge_unknown`]. The data path knows nothing of this.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::StoreError;

pub(super) fn to_json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    // Cannot fail for these types; were it to, the row could not be read back either.
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt(error.to_string()))
}

pub(super) fn from_json<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Corrupt(format!("a damaged {what} row: {error}")))
}

/// What to store in the place of `stored`: `new`, and those members of `stored` that this version does not know.
///
/// Unknown is what does not survive being read and written by this version. So a member that `new` leaves out because it says
/// nothing (`deleted_at`) does not come back. Members of members are not looked at.
pub(super) fn merge_unknown<T>(what: &str, stored: &str, new: &T) -> Result<String, StoreError>
where
    T: Serialize + DeserializeOwned,
{
    let mut merged = members(new)?;
    let known = members(&from_json::<T>(what, stored)?)?;
    for (name, value) in from_json::<Map<String, Value>>(what, stored)? {
        if !known.contains_key(&name) && !merged.contains_key(&name) {
            merged.insert(name, value);
        }
    }
    to_json(&merged)
}

fn members<T: Serialize>(value: &T) -> Result<Map<String, Value>, StoreError> {
    match serde_json::to_value(value) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(StoreError::Corrupt("a record that is no JSON object".to_owned())),
        Err(error) => Err(StoreError::Corrupt(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::key::{Account, KeyRecord};
    use crate::store::contract::{CREATED, account_id, at, record};

    /// A row as a later version left it.
    fn with(value: &impl Serialize, name: &str, member: Value) -> String {
        let mut members = members(value).unwrap();
        members.insert(name.to_owned(), member);
        to_json(&members).unwrap()
    }

    #[test]
    fn unknown_members_survive_and_known_ones_are_the_new_records() {
        let mut new = record("k1", "a1");
        let stored = with(&new, "allowed_hours", serde_json::json!(["8-18", { "deep": null }]));
        (new.name, new.model_ids, new.allowed_addresses) = ("renamed".into(), None, None);
        let merged = merge_unknown("key", &stored, &new).unwrap();
        assert_eq!(merged, with(&new, "allowed_hours", serde_json::json!(["8-18", { "deep": null }])));
        assert_eq!(from_json::<KeyRecord>("key", &merged).unwrap(), new);
    }

    #[test]
    fn a_member_that_the_new_record_leaves_out_does_not_come_back() {
        let alive = record("k1", "a1");
        let deleted = KeyRecord { deleted_at: Some(at(CREATED)), ..alive.clone() };
        let merged = merge_unknown("key", &to_json(&deleted).unwrap(), &alive).unwrap();
        assert_eq!(merged, to_json(&alive).unwrap());
    }

    #[test]
    fn a_row_that_cannot_be_read_is_not_written_over() {
        let new = Account::unset(account_id("a1"));
        for damaged in ["", "[]", "{}", r#"{"id":"a/b"}"#] {
            let outcome = merge_unknown("account", damaged, &new);
            assert!(matches!(outcome, Err(StoreError::Corrupt(_))), "{damaged}: {outcome:?}");
        }
    }
}
