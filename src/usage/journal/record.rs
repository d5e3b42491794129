//! The records of the journal, and how each is one line: its CRC32 in eight hexadecimal digits, a space, JSON.
//!
//! Lines, because a record that was torn off by a kill then has no end, while one that was damaged has: behind a damaged length
//! nothing could be told apart any more. And because people can read them.

use std::io::{self, Write};

use serde::de::Error as _;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::policy::credential::KeyHash;
use crate::policy::key::{Day, KeyId, Timestamp};
use crate::store::{Counted, UsageCount};
use crate::usage::counts::Piece;

/// The first line. Another number says that records, or the order of [`Name`](crate::usage::counts::Name), mean something else.
pub(super) const MAGIC: &[u8] = b"seeme-gateway usage journal 1\n";
/// The first line without the number.
pub(super) const ANY_VERSION: &[u8] = b"seeme-gateway usage journal ";

/// One step.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    /// From here on this replica counts; the last number it has used, and the size of its batches.
    Life { replica: String, sequence: u64, size: usize },
    /// It counted this.
    Counted(Piece),
    /// Everything that it counted and that had no number got one at this time: this and the following.
    Frozen { sequence: u64, at: i64 },
    /// The store has this batch.
    Confirmed { replica: String, sequence: u64 },
}

/// Appends a record as a line.
pub(super) fn write(record: &Record, line: &mut Vec<u8>) -> io::Result<()> {
    let start = line.len();
    line.extend_from_slice(b"00000000 ");
    serde_json::to_writer(&mut *line, record)?;
    let crc = crc32fast::hash(&line[start + 9..]);
    write!(&mut line[start..start + 8], "{crc:08x}")?;
    line.push(b'\n');
    Ok(())
}

/// Reads a line, without its end; `None` when it is damaged.
pub(super) fn read(line: &[u8]) -> Option<Record> {
    let (crc, json) = (line.get(..8)?, line.get(9..)?);
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?, 16).ok()?;
    if line[8] != b' ' || crc != crc32fast::hash(json) {
        return None;
    }
    serde_json::from_slice(json).ok()
}

/// Rows of words and numbers.
impl Serialize for Piece {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut piece = serializer.serialize_struct("Piece", 2)?;
        piece.serialize_field("counts", &Rows(&self.counts))?;
        piece.serialize_field("used", &Rows(&self.last_used))?;
        piece.end()
    }
}

struct Rows<'a, T>(&'a [T]);

impl Serialize for Rows<'_, UsageCount> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|count| {
            let (kind, name, class) = count.counted.words();
            (count.key_id.as_str(), count.day.0, kind, name, class, count.count)
        }))
    }
}

impl Serialize for Rows<'_, (KeyHash, Timestamp)> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|(secret, at)| (secret.to_hex(), at.unix_millis())))
    }
}

#[derive(Deserialize)]
struct Read {
    counts: Vec<(String, i32, String, String, String, u64)>,
    used: Vec<(String, i64)>,
}

impl<'de> Deserialize<'de> for Piece {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = Read::deserialize(deserializer)?;
        let counts = read.counts.into_iter().map(|(key, day, kind, name, class, count)| {
            let key_id = KeyId::parse(&key).map_err(D::Error::custom)?;
            let counted = Counted::from_words(&kind, &name, &class);
            let counted = counted.ok_or_else(|| D::Error::custom("nothing that is counted"))?;
            Ok(UsageCount { key_id, day: Day(day), counted, count })
        });
        let used = read.used.into_iter().map(|(secret, at)| {
            let hash = blake3::Hash::from_hex(secret).map_err(D::Error::custom)?;
            Ok((KeyHash(*hash.as_bytes()), Timestamp::from_unix_millis(at)))
        });
        let counts = counts.collect::<Result<_, D::Error>>()?;
        Ok(Self { counts, last_used: used.collect::<Result<_, D::Error>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::scope::Scope;
    use crate::store::StatusClass;

    fn piece() -> Record {
        let count = |counted, count| UsageCount { key_id: KeyId::parse("k1").unwrap(), day: Day(-3), counted, count };
        Record::Counted(Piece {
            counts: vec![
                count(Counted::Endpoint("GET /\"a\"/{b}\n".into(), StatusClass::ClientGone), u64::MAX),
                count(Counted::Scope(Scope::parse("*").unwrap()), 1),
            ],
            last_used: vec![(KeyHash([7; 32]), Timestamp::from_unix_millis(-5))],
        })
    }

    #[test]
    fn a_record_is_one_line_and_comes_back_as_it_was() {
        let life = Record::Life { replica: "r".into(), sequence: 9, size: 3 };
        let frozen = Record::Frozen { sequence: 10, at: 5 };
        for record in [life, piece(), frozen, Record::Confirmed { replica: "r".into(), sequence: 10 }] {
            let mut line = b"before\n".to_vec();
            write(&record, &mut line).unwrap();
            let line = line.strip_prefix(b"before\n").unwrap().strip_suffix(b"\n").unwrap();
            assert!(!line.contains(&b'\n'));
            assert_eq!(read(line), Some(record));
        }
    }

    #[test]
    fn no_bit_of_a_record_can_change_unnoticed() {
        let mut line = Vec::new();
        write(&piece(), &mut line).unwrap();
        line.pop();
        for bit in 0..line.len() * 8 {
            let mut damaged = line.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // The case of a hexadecimal digit is no damage.
            assert!(read(&damaged).is_none() || damaged[..8].eq_ignore_ascii_case(&line[..8]), "bit {bit}");
        }
        for length in 0..line.len() {
            assert!(read(&line[..length]).is_none(), "{length} bytes");
        }
    }
}
