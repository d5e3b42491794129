//! The scripts, and one call of one of them as it goes to a server.
//!
//! A script is named by its SHA-1; a server that does not know it (a restart, `SCRIPT FLUSH`, a new master) gets the whole text in
//! the same call. Nothing here decides where a call goes: that is [`super::client`].

use std::sync::LazyLock;

use redis::{Cmd, ToRedisArgs};

/// A Lua script and its name.
pub(super) struct Script {
    text: String,
    sha: String,
}

impl Script {
    fn new(parts: &[&str]) -> Self {
        let text = parts.concat();
        let sha = redis::Script::new(&text).get_hash().to_owned();
        Self { text, sha }
    }
}

/// Declares scripts; those of the registry begin with its prelude.
macro_rules! scripts {
    ($($name:ident = $($file:literal)+;)*) => {
        $(pub(super) static $name: LazyLock<Script> = LazyLock::new(|| Script::new(&[$(include_str!($file)),+]));)*
    };
}

scripts! {
    BY_SECRET = "lua/registry.lua" "lua/by_secret.lua";
    BY_ID = "lua/registry.lua" "lua/by_id.lua";
    PAGE = "lua/registry.lua" "lua/page.lua";
    PUT = "lua/registry.lua" "lua/put.lua";
    ROW = "lua/registry.lua" "lua/row.lua";
    ACCOUNTS = "lua/registry.lua" "lua/accounts.lua";
    PUT_ACCOUNT = "lua/registry.lua" "lua/put_account.lua";
    EVENTS = "lua/registry.lua" "lua/events.lua";
    REPLICAS = "lua/registry.lua" "lua/replicas.lua";
    USED = "lua/registry.lua" "lua/used.lua";
    SWEEP = "lua/registry.lua" "lua/sweep.lua";
    SCHEMA = "lua/registry.lua" "lua/schema.lua";
    LEASE = "lua/lease.lua";
    RECALL = "lua/recall.lua";
    FLUSH = "lua/flush.lua";
    USAGE = "lua/usage.lua";
    DROP_USAGE = "lua/drop_usage.lua";
    IDEMPOTENCY = "lua/idempotency.lua";
}

/// One call of a script. All its names are in one slot.
pub(super) struct Invocation {
    script: &'static Script,
    keys: Vec<String>,
    arguments: Vec<Vec<u8>>,
}

impl Invocation {
    pub(super) fn new(script: &'static Script, keys: Vec<String>) -> Self {
        Self { script, keys, arguments: Vec::new() }
    }

    pub(super) fn arg(mut self, argument: impl ToRedisArgs) -> Self {
        argument.write_redis_args(&mut self.arguments);
        self
    }

    /// The slot that decides which master it goes to.
    pub(super) fn slot(&self) -> u16 {
        self.keys.first().map_or(0, |key| super::names::slot(key))
    }

    /// The script by its name.
    pub(super) fn short(&self) -> Cmd {
        self.command("EVALSHA", &self.script.sha)
    }

    /// The script in full, for a server that does not know it.
    pub(super) fn whole(&self) -> Cmd {
        self.command("EVAL", &self.script.text)
    }

    fn command(&self, verb: &str, script: &str) -> Cmd {
        let mut command = redis::cmd(verb);
        command.arg(script).arg(self.keys.len()).arg(&self.keys).arg(&self.arguments);
        command
    }
}
