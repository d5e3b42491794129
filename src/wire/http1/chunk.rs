//! The grammar of a chunked body, extensions and trailers included (RFC 9112 section 7.1), over any split of reads.
//!
//! Sizes are hexadecimal digits and nothing else; lines end in CRLF and in nothing else; extensions and trailers are bounded,
//! for they are read before anybody has asked for them.

use super::{Fault, is_field_octet, is_token};

/// Digits of a chunk size.
const DIGITS: u8 = 16;
/// Octets of all extensions of a body; hyper stops at twice as much.
const EXTENSIONS: usize = 8 * 1024;
/// Octets and fields of trailers for which hyper has room.
const TRAILERS: usize = 16 * 1024;
const TRAILER_FIELDS: usize = 100;

/// A chunked body on its way.
#[derive(Debug)]
pub(super) struct Chunks {
    at: At,
    /// Of the chunk: its size, then what is left of it.
    left: u64,
    digits: u8,
    extensions: usize,
    trailers: usize,
    fields: usize,
    limits: (usize, usize),
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Size,
    /// A blank came: only an extension may follow.
    BeforeExtension,
    ExtensionName,
    InExtensionName,
    AfterExtensionName,
    ExtensionValue,
    InExtensionToken,
    InQuotes,
    QuotedPair,
    AfterValue,
    SizeEnd,
    Data,
    DataReturn,
    DataEnd,
    Trailer,
    InTrailerName,
    InTrailerValue,
    TrailerEnd,
    LastEnd,
    Done,
}

impl Chunks {
    /// The first octet is that of the first size. `limits`: octets and fields of the trailers.
    pub(super) fn new((octets, fields): (usize, usize)) -> Self {
        let limits = (octets.min(TRAILERS), fields.min(TRAILER_FIELDS));
        Self { at: At::Size, left: 0, digits: 0, extensions: 0, trailers: 0, fields: 0, limits }
    }

    /// Whether the body has ended.
    pub(super) fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// Follows the body; how many of these octets belong to it. An error comes with how many of them were good.
    pub(super) fn advance(&mut self, octets: &[u8]) -> Result<usize, (usize, Fault)> {
        let mut at = 0;
        while at < octets.len() && self.at != At::Done {
            if self.at == At::Data {
                let here = self.left.min((octets.len() - at) as u64);
                self.left -= here;
                at += here as usize;
                if self.left == 0 {
                    self.at = At::DataReturn;
                }
                continue;
            }
            self.at = self.step(octets[at]).map_err(|fault| (at, fault))?;
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<At, Fault> {
        match self.at {
            At::Size => self.size(byte),
            At::SizeEnd if byte == b'\n' => Ok(self.size_ended()),
            At::DataReturn if byte == b'\r' => Ok(At::DataEnd),
            At::DataEnd if byte == b'\n' => Ok(At::Size),
            At::SizeEnd | At::DataReturn | At::DataEnd => Err(Fault::Malformed("Malformed chunk")),
            At::Trailer | At::InTrailerName | At::InTrailerValue | At::TrailerEnd | At::LastEnd => self.trailer(byte),
            _ => self.extension(byte),
        }
    }

    fn size(&mut self, byte: u8) -> Result<At, Fault> {
        const BAD: Fault = Fault::Malformed("Malformed chunk size");
        let Some(digit) = (byte as char).to_digit(16) else {
            return match byte {
                _ if self.digits == 0 => Err(BAD),
                b'\r' => Ok(At::SizeEnd),
                b';' => Ok(At::ExtensionName),
                b' ' | b'\t' => Ok(At::BeforeExtension),
                _ => Err(BAD),
            };
        };
        self.digits += 1;
        self.left = self.left << 4 | u64::from(digit);
        if self.digits > DIGITS || self.left > i64::MAX as u64 { Err(BAD) } else { Ok(At::Size) }
    }

    fn size_ended(&mut self) -> At {
        self.digits = 0;
        if self.left == 0 { At::Trailer } else { At::Data }
    }

    /// `*( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] )`
    fn extension(&mut self, byte: u8) -> Result<At, Fault> {
        const BAD: Fault = Fault::Malformed("Malformed chunk extension");
        self.extensions += 1;
        if self.extensions > EXTENSIONS {
            return Err(Fault::Malformed("Chunk extensions too long"));
        }
        let is_blank = matches!(byte, b' ' | b'\t');
        Ok(match (self.at, byte) {
            (At::ExtensionName, _) if is_token(byte) => At::InExtensionName,
            (At::InExtensionName, _) if is_token(byte) => At::InExtensionName,
            (At::ExtensionValue | At::InExtensionToken, _) if is_token(byte) => At::InExtensionToken,
            (At::InExtensionName | At::AfterExtensionName, b'=') => At::ExtensionValue,
            (At::ExtensionValue, b'"') => At::InQuotes,
            (At::InQuotes, b'"') => At::AfterValue,
            (At::InQuotes, b'\\') => At::QuotedPair,
            (At::InQuotes | At::QuotedPair, _) if is_field_octet(byte) => At::InQuotes,
            (
                At::BeforeExtension
                | At::InExtensionName
                | At::AfterExtensionName
                | At::InExtensionToken
                | At::AfterValue,
                b';',
            ) => At::ExtensionName,
            (At::InExtensionName | At::InExtensionToken | At::AfterValue, b'\r') => At::SizeEnd,
            (At::InExtensionName, _) if is_blank => At::AfterExtensionName,
            (At::InExtensionToken | At::AfterValue, _) if is_blank => At::BeforeExtension,
            (At::BeforeExtension | At::ExtensionName | At::AfterExtensionName | At::ExtensionValue, _) if is_blank => {
                self.at
            }
            _ => return Err(BAD),
        })
    }

    fn trailer(&mut self, byte: u8) -> Result<At, Fault> {
        self.trailers += 1;
        if self.trailers > self.limits.0 {
            return Err(Fault::TooLarge);
        }
        Ok(match (self.at, byte) {
            (At::Trailer, b'\r') => At::LastEnd,
            (At::LastEnd, b'\n') => At::Done,
            (At::Trailer, _) if is_token(byte) => {
                self.fields += 1;
                if self.fields > self.limits.1 {
                    return Err(Fault::TooLarge);
                }
                At::InTrailerName
            }
            (At::InTrailerName, _) if is_token(byte) => At::InTrailerName,
            (At::InTrailerName, b':') => At::InTrailerValue,
            (At::InTrailerValue, b'\r') => At::TrailerEnd,
            (At::InTrailerValue, _) if is_field_octet(byte) => At::InTrailerValue,
            (At::TrailerEnd, b'\n') => At::Trailer,
            _ => return Err(Fault::Malformed("Malformed trailer")),
        })
    }
}
