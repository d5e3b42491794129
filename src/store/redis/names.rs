//! The names of everything the store keeps in Redis, and which slot of a cluster each belongs to.
//!
//! The schema itself is described in [`super`]. Ids are restricted to `[A-Za-z0-9._:-]`, so none of them can hold a brace and
//! move a name to another slot.

use crate::policy::key::KeyId;
use crate::policy::quota::Subject;

/// Slots of a cluster.
pub(super) const SLOTS: u16 = 16_384;
/// Usage is spread over so many hash tags.
const PARTITIONS: u16 = 64;

/// Names under one `store.prefix`.
#[derive(Debug, Clone)]
pub(super) struct Names {
    prefix: String,
}

/// One of the parts that usage is spread over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Partition(u16);

impl Partition {
    pub(super) fn of(key: &KeyId) -> Self {
        Self(crc16(key.as_str().as_bytes()) % PARTITIONS)
    }
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What the names of keys, secrets and accounts begin with; changes of them are pushed.
    pub(super) fn registry(&self) -> String {
        format!("{}{{reg}}:", self.prefix)
    }

    /// What recall markers begin with; they are pushed too.
    pub(super) fn recalls(&self) -> String {
        format!("{}rc:", self.prefix)
    }

    /// A name of the registry that is never pushed.
    pub(super) fn aux(&self, name: &str) -> String {
        format!("{}aux{{reg}}:{name}", self.prefix)
    }

    pub(super) fn ledger(&self, subject: &Subject) -> String {
        format!("{}rl:{{{}}}", self.prefix, subject.as_str())
    }

    pub(super) fn recall(&self, subject: &Subject) -> String {
        format!("{}rc:{{{}}}", self.prefix, subject.as_str())
    }

    /// A name that never exists. A call that names it besides others is refused by a cluster for as long as its slot is being moved
    /// from one server to another (TRYAGAIN), when a script would find only some of what belongs together.
    pub(super) fn never(base: &str) -> String {
        format!("{base}never")
    }

    /// What the names of a partition begin with.
    pub(super) fn usage(&self, partition: Partition) -> String {
        format!("{}u:{{u{:02}}}:", self.prefix, partition.0)
    }

    pub(super) fn idempotency(&self, name: &[u8; 32]) -> String {
        format!("{}idem:{{{}}}", self.prefix, blake3::Hash::from_bytes(*name).to_hex())
    }

    /// Where changes are published for those whom the server lets not track names.
    pub(super) fn channel(&self) -> String {
        format!("{}changes", self.prefix)
    }
}

/// The slot of a name: of what stands between its first braces, if anything does (Redis cluster specification, "hash tags").
pub(super) fn slot(name: &str) -> u16 {
    let tag = name.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    crc16(tag.filter(|tag| !tag.is_empty()).unwrap_or(name).as_bytes()) % SLOTS
}

/// CRC-16/XMODEM: polynomial 0x1021, initially zero.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(
            crc ^ (u16::from(*byte) << 8),
            |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::{key_id, subject};

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(slot("foo"), 12_182);
        assert_eq!(slot("a{foo}b{bar}"), slot("foo"));
        assert_eq!(slot("{}foo"), crc16(b"{}foo") % SLOTS);
    }

    #[test]
    fn names_that_one_script_touches_share_a_slot() {
        let names = Names::new("sm:");
        assert_eq!(names.registry(), "sm:{reg}:");
        assert_eq!(slot(&names.registry()), slot(&names.aux("rev")));
        let subject = subject("a1");
        assert_eq!(names.ledger(&subject), "sm:rl:{account:live:a1}");
        assert_eq!(slot(&names.ledger(&subject)), slot(&names.recall(&subject)));
        assert!(names.usage(Partition::of(&key_id("k1"))).starts_with("sm:u:{u"));
    }
}
