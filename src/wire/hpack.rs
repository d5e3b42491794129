//! HPACK (RFC 7541), as far as reading goes: the fields of a block exactly as the peer wrote them.
//!
//! The library under HTTP/2 decodes for itself, and what it hands on is no longer what came: a fragment of `:path` is gone, and
//! so is an odd `:scheme`. Whoever must see the octets asks here. Judges nothing but the encoding, and whether that library can
//! read it ([`super::stand_in`]).

use std::collections::VecDeque;

use super::stand_in::{self, Fault, fault};

/// A block that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the field block is not HPACK")]
pub struct Malformed;

/// A field costs the table so much beside its octets (RFC 7541 section 4.1).
const OVERHEAD: usize = 32;

/// What a block is for the library that reads it next.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// A field has octets that none may have.
    pub is_unsound: bool,
    /// The block in which the library finds other fields in the place of those, if it is not the same.
    pub instead: Option<Vec<u8>>,
}

/// Name and value, and what the library has in their place.
#[derive(Debug)]
struct Entry {
    name: Box<[u8]>,
    value: Box<[u8]>,
    fault: Option<Fault>,
}

/// The decoder of one direction of a connection.
#[derive(Debug)]
pub struct Decoder {
    table: VecDeque<Entry>,
    size: usize,
    /// What the peer has chosen, and what it may choose.
    limit: usize,
    most: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    /// With a table of at most so many octets.
    pub const fn new(most: usize) -> Self {
        Self { table: VecDeque::new(), size: 0, limit: most, most, name: Vec::new(), value: Vec::new() }
    }

    /// Decodes one whole block; `on` is told of each field.
    pub fn decode(&mut self, block: &[u8], mut on: impl FnMut(&[u8], &[u8])) -> Result<Reading, Malformed> {
        let (mut rest, mut reading) = (block, Reading::default());
        // In front of the fields: the smallest of the sizes in between, and the one that holds (RFC 7541 section 4.2).
        let mut updates_left = 2_u32;
        while let Some(first) = rest.first() {
            let (start, mut written) = (block.len() - rest.len(), false);
            let is_update = matches!(first, 0x20..0x40);
            updates_left = if is_update { updates_left.checked_sub(1).ok_or(Malformed)? } else { 0 };
            match first {
                0x80.. => {
                    let index = integer(&mut rest, 7)?;
                    let (name, value) = self.entry(index)?;
                    reading.is_unsound |= self.fault(index).is_some();
                    on(name, value);
                }
                0x20..0x40 => {
                    self.limit = Some(integer(&mut rest, 5)?).filter(|limit| *limit <= self.most).ok_or(Malformed)?;
                    self.evict(0);
                }
                _ => {
                    let is_kept = first & 0x40 != 0;
                    let index = self.literal(&mut rest, if is_kept { 6 } else { 4 })?;
                    on(&self.name, &self.value);
                    let fault = fault(&self.name, &self.value);
                    reading.is_unsound |= fault.is_some();
                    let is_misnamed = self.fault(index) == Some(Fault::Name);
                    if fault.is_some() || is_misnamed {
                        let instead = reading.instead.get_or_insert_with(|| block[..start].to_vec());
                        let index = Some(index).filter(|index| *index != 0 && !is_misnamed);
                        let field = (&*self.name, &*self.value);
                        stand_in::literal(instead, *first, index, field, fault).ok_or(Malformed)?;
                        written = true;
                    }
                    if is_kept {
                        self.insert(fault);
                    }
                }
            }
            if let Some(instead) = reading.instead.as_mut().filter(|_| !written) {
                instead.extend_from_slice(&block[start..block.len() - rest.len()]);
            }
        }
        Ok(reading)
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), Malformed> {
        if let Some((name, value)) = STATIC.get(index.wrapping_sub(1)) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.dynamic(index).ok_or(Malformed)?;
        Ok((&entry.name, &entry.value))
    }

    fn dynamic(&self, index: usize) -> Option<&Entry> {
        index.checked_sub(STATIC.len() + 1).and_then(|i| self.table.get(i))
    }

    fn fault(&self, index: usize) -> Option<Fault> {
        self.dynamic(index).and_then(|entry| entry.fault)
    }

    /// Name and value, the name by reference where the peer wrote one: that is returned.
    fn literal(&mut self, block: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
        let index = integer(block, prefix)?;
        let (mut name, mut value) = (std::mem::take(&mut self.name), std::mem::take(&mut self.value));
        if index == 0 {
            text(block, &mut name)?;
        } else {
            name.clear();
            name.extend_from_slice(self.entry(index)?.0);
        }
        text(block, &mut value)?;
        (self.name, self.value) = (name, value);
        Ok(index)
    }

    fn insert(&mut self, fault: Option<Fault>) {
        let size = self.name.len() + self.value.len() + OVERHEAD;
        self.evict(size);
        if size <= self.limit {
            let (name, value) = (self.name.as_slice().into(), self.value.as_slice().into());
            self.table.push_front(Entry { name, value, fault });
            self.size += size;
        }
    }

    /// Makes room for so much.
    fn evict(&mut self, room: usize) {
        while self.size + room > self.limit {
            let Some(last) = self.table.pop_back() else { return };
            self.size -= last.name.len() + last.value.len() + OVERHEAD;
        }
    }
}

/// An integer whose first octet has so many bits for it (RFC 7541 section 5.1).
fn integer(block: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let most = (1_usize << prefix) - 1;
    let (first, mut rest) = block.split_first().ok_or(Malformed)?;
    let mut number = usize::from(*first) & most;
    if number == most {
        for shift in (0..=21).step_by(7) {
            let (octet, after) = rest.split_first().ok_or(Malformed)?;
            rest = after;
            number += usize::from(octet & 0x7f) << shift;
            if octet & 0x80 == 0 {
                *block = rest;
                return Ok(number);
            }
        }
        return Err(Malformed);
    }
    *block = rest;
    Ok(number)
}

/// A string, plain or in Huffman's code, in the place of what was in `to`.
fn text(block: &mut &[u8], to: &mut Vec<u8>) -> Result<(), Malformed> {
    let coded = block.first().ok_or(Malformed)? & 0x80 != 0;
    let length = integer(block, 7)?;
    let (octets, rest) = block.split_at_checked(length).ok_or(Malformed)?;
    *block = rest;
    to.clear();
    if coded {
        return unhuffman(octets, to);
    }
    to.extend_from_slice(octets);
    Ok(())
}

/// The code is canonical: of the codes of one length, each is one more than the one before, in the order of the symbols. So its
/// lengths alone say everything.
fn unhuffman(octets: &[u8], to: &mut Vec<u8>) -> Result<(), Malformed> {
    let (mut code, mut length) = (0_u32, 0_usize);
    for octet in octets {
        for bit in (0..8).rev() {
            code = code << 1 | u32::from(octet >> bit & 1);
            length += 1;
            let Some(row) = CODES.rows.get(length) else { return Err(Malformed) };
            let place = code.wrapping_sub(row.first);
            if place < row.count {
                let symbol = CODES.symbols[(row.start + place) as usize];
                // The end of a string is never written out.
                to.push(u8::try_from(symbol).map_err(|_| Malformed)?);
                (code, length) = (0, 0);
            }
        }
    }
    // What is left is padding: fewer than eight ones.
    if length < 8 && code == (1 << length) - 1 { Ok(()) } else { Err(Malformed) }
}

/// Codes of one length.
#[derive(Clone, Copy)]
struct Row {
    /// The first of them.
    first: u32,
    count: u32,
    /// Where their symbols begin.
    start: u32,
}

struct Codes {
    rows: [Row; 31],
    /// Shorter codes first.
    symbols: [u16; 257],
}

const CODES: Codes = codes();

const fn codes() -> Codes {
    let mut codes = Codes { rows: [Row { first: 0, count: 0, start: 0 }; 31], symbols: [0; 257] };
    let (mut length, mut code, mut place) = (1, 0, 0);
    while length < codes.rows.len() {
        code <<= 1;
        codes.rows[length].first = code;
        codes.rows[length].start = place;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                codes.symbols[place as usize] = symbol as u16;
                place += 1;
                code += 1;
            }
            symbol += 1;
        }
        codes.rows[length].count = place - codes.rows[length].start;
        length += 1;
    }
    codes
}

/// Bits of the code of each octet, and of the end (RFC 7541 appendix B).
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28,
    28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13,
    6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6,
    6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23,
    23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23,
    22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21,
    22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// RFC 7541 appendix A.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(decoder: &mut Decoder, hex: &str) -> Result<Vec<String>, Malformed> {
        let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        let octets: Vec<u8> =
            digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect();
        let mut fields = Vec::new();
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        decoder.decode(&octets, |name, value| fields.push(format!("{}: {}", text(name), text(value))))?;
        Ok(fields)
    }

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        // Appendix C.4: requests in Huffman's code that fill the table.
        let mut decoder = Decoder::new(4096);
        let first = decode(&mut decoder, "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff").unwrap();
        assert_eq!(first, [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"]);
        let second = decode(&mut decoder, "8286 84be 5886 a8eb 1064 9cbf").unwrap();
        assert_eq!(second[3..], [":authority: www.example.com", "cache-control: no-cache"]);
        let third = decode(&mut decoder, "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf").unwrap();
        assert_eq!(third[2..], [":path: /index.html", ":authority: www.example.com", "custom-key: custom-value"]);
        assert_eq!(decoder.size, 164);
        // Appendix C.6: answers with a table of 256 octets, so that fields are evicted.
        let mut decoder = Decoder::new(256);
        let first =
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad
                     1718 63c7 8f0b 97c8 e9ae 82ae 43d3";
        assert_eq!(decode(&mut decoder, first).unwrap()[3], "location: https://www.example.com");
        assert_eq!(decode(&mut decoder, "4883 640e ffc1 c0bf").unwrap()[0], ":status: 307");
        assert_eq!(decoder.size, 222);
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for bad in [
            "80",
            "be",
            "ff ff ff ff ff ff",
            "00",
            "00 05 61",
            "44 81 00",
            "44 84 ff ff ff ff",
            "3f e2 ff 03",
            "82 20",
            "20 82 20",
            "20 20 20 82",
        ] {
            assert_eq!(decode(&mut Decoder::new(4096), bad), Err(Malformed), "{bad}");
        }
        for good in ["20 82", "20 3f e1 1f 82"] {
            assert_eq!(decode(&mut Decoder::new(4096), good), Ok(vec![":method: GET".to_owned()]), "{good}");
        }
    }
}
