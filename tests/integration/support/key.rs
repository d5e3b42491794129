//! Keys, made by the command line as an operator makes them.

use serde_json::Value;

use super::stand::Stand;

/// A key with its secret.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) account: String,
    /// The object as it was printed.
    pub(crate) object: Value,
}

/// A key to be made; on an account of its own unless told otherwise.
#[derive(Debug)]
pub(crate) struct NewKey<'s> {
    stand: &'s Stand,
    account: String,
    arguments: Vec<String>,
    scoped: bool,
}

impl<'s> NewKey<'s> {
    pub(super) fn new(stand: &'s Stand, account: String) -> Self {
        Self { stand, account, arguments: Vec::new(), scoped: false }
    }

    fn option(mut self, name: &str, value: &str) -> Self {
        self.arguments.extend([name.to_owned(), value.to_owned()]);
        self
    }

    pub(crate) fn account(mut self, id: &str) -> Self {
        self.account = id.to_owned();
        self
    }

    /// On an account of its own that is on this plan.
    pub(crate) fn plan(self, plan: &str) -> Self {
        self.stand.cli(&["accounts", "set", &self.account, "--plan", plan]).expect_success();
        self
    }

    pub(crate) fn scope(mut self, scope: &str) -> Self {
        self.scoped = true;
        self.option("--scope", scope)
    }

    pub(crate) fn model(self, id: &str) -> Self {
        self.option("--model-id", id)
    }

    pub(crate) fn dataset(self, id: &str) -> Self {
        self.option("--dataset-id", id)
    }

    pub(crate) fn organization(self, id: &str) -> Self {
        self.option("--organization-id", id)
    }

    pub(crate) fn environment(self, name: &str) -> Self {
        self.option("--environment", name)
    }

    pub(crate) fn expires_at(self, time: &str) -> Self {
        self.option("--expires-at", time)
    }

    pub(crate) fn create(mut self) -> Key {
        if !self.scoped {
            self = self.scope("models:read");
        }
        let mut arguments = vec!["keys", "create", "--json", "--name", "test key", "--account", &self.account];
        arguments.extend(self.arguments.iter().map(String::as_str));
        let object = self.stand.cli(&arguments).expect_success().json();
        Key::of(object)
    }
}

impl Key {
    /// From a key object with its secret.
    pub(crate) fn of(object: Value) -> Self {
        let text = |name: &str| object[name].as_str().unwrap_or_else(|| panic!("no {name} in {object}")).to_owned();
        Self { id: text("id"), secret: text("key"), account: text("account_id"), object }
    }
}
