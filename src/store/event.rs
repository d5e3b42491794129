//! The audit trail: what happened to a key, as the store keeps it.
//!
//! An old gateway shows what a newer one wrote beside it, also an action that it has no name for.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::policy::key::Timestamp;

/// What happened to a key or an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Action {
    /// Made.
    Created,
    /// A member changed.
    Updated,
    /// Disabled.
    Disabled,
    /// Enabled again.
    Enabled,
    /// A new secret.
    Rotated,
    /// Deleted.
    Deleted,
    /// What a later version of the gateway did, in its words: the trail shows it all the same.
    Other(Arc<str>),
}

impl Action {
    /// As events and logs write it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Disabled => "disabled",
            Self::Enabled => "enabled",
            Self::Rotated => "rotated",
            Self::Deleted => "deleted",
            Self::Other(name) => name,
        }
    }
}

impl From<String> for Action {
    fn from(name: String) -> Self {
        let known = [Self::Created, Self::Updated, Self::Disabled, Self::Enabled, Self::Rotated, Self::Deleted];
        known.into_iter().find(|action| action.as_str() == name).unwrap_or_else(|| Self::Other(name.into()))
    }
}

impl From<Action> for String {
    fn from(action: Action) -> Self {
        action.as_str().to_owned()
    }
}

/// One line of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, by the clock of the process that did it.
    pub at: Timestamp,
    /// What.
    pub action: Action,
    /// A key id, or `cli`.
    pub by: String,
    /// The client address, or `cli`.
    pub from: String,
    /// The members that changed, if any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_of_a_later_version_is_read_and_written_in_its_own_words() {
        let text = r#"{"at":"2026-01-01T00:00:00Z","action":"quarantined","by":"cli","from":"cli"}"#;
        let event: Event = serde_json::from_str(text).unwrap();
        assert_eq!(event.action, Action::Other("quarantined".into()));
        assert_eq!(serde_json::to_string(&event).unwrap(), text);
        let known: Event = serde_json::from_str(&text.replace("quarantined", "rotated")).unwrap();
        assert_eq!(known.action, Action::Rotated);
    }
}
