//! Ids of requests and traces, and the `traceparent` that carries them on (W3C Trace Context).
//!
//! Unique and cheap: no system call and no allocation a request. They guard nothing; whoever guesses one gains nothing.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderValue};

use crate::policy::headers::TRACEPARENT;

/// 32 hexadecimal digits: a request id, or a trace id.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Id([u8; 32]);

impl Id {
    /// Its digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// As a header value.
    pub fn to_value(self) -> HeaderValue {
        HeaderValue::from_bytes(&self.0).unwrap_or(HeaderValue::from_static("-"))
    }

    /// `traceparent` with this trace and, as the parent, the second half of a request's id.
    pub fn to_traceparent(self, request: Self) -> HeaderValue {
        let mut text = *b"00-................................-................-01";
        text[3..35].copy_from_slice(&self.0);
        text[36..52].copy_from_slice(&request.0[16..]);
        HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("-"))
    }

    /// The trace id of a well-formed `traceparent`, of which there may be one only.
    pub fn inherited(headers: &HeaderMap) -> Option<Self> {
        let mut fields = headers.get_all(TRACEPARENT).iter();
        let (value, None) = (fields.next()?.to_str().ok()?, fields.next()) else { return None };
        let hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut parts = value.split('-');
        let (version, trace, parent) = (parts.next()?, parts.next()?, parts.next()?);
        let known = version.len() == 2 && hex(version) && version != "ff";
        let fits = trace.len() == 32 && hex(trace) && trace.bytes().any(|b| b != b'0');
        (known && fits && parent.len() == 16 && hex(parent)).then(|| trace.as_bytes().try_into().ok().map(Self))?
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Makes ids.
#[derive(Debug)]
pub struct IdSource {
    random: u64,
    count: AtomicU64,
}

impl IdSource {
    /// Seeds itself once from the operating system.
    pub fn new() -> Self {
        let mut seed = [0; 8];
        // Without randomness the ids of several gateways may coincide; nothing else depends on it.
        let _ = getrandom::fill(&mut seed);
        Self { random: u64::from_le_bytes(seed), count: AtomicU64::new(1) }
    }

    /// A new id, never all zero in either half.
    pub fn next(&self) -> Id {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let mut digits = [0; 32];
        // Spread, so that neighbours do not look alike; both halves are one-to-one with the counter, so they never repeat.
        write_hex(&mut digits[..16], spread(count ^ self.random));
        write_hex(&mut digits[16..], spread(count.wrapping_add(self.random.rotate_left(32))).max(1));
        Id(digits)
    }
}

impl Default for IdSource {
    fn default() -> Self {
        Self::new()
    }
}

/// The finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn spread(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

fn write_hex(out: &mut [u8], value: u64) {
    for (i, digit) in out.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(value >> (60 - 4 * i)) as usize & 15];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_goes_on_and_anything_malformed_starts_a_new_one() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let inherited = |values: &[&str]| {
            let fields = values.iter().map(|v| (TRACEPARENT, HeaderValue::from_str(v).unwrap()));
            Id::inherited(&fields.collect())
        };
        let good = format!("00-{trace}-b7ad6b7169203331-01");
        let id = inherited(&[&good]).unwrap();
        assert_eq!(id.as_str(), trace);
        let request = IdSource::new().next();
        let carried = id.to_traceparent(request);
        assert_eq!(carried.to_str().unwrap(), format!("00-{trace}-{}-01", &request.as_str()[16..]));
        for bad in
            ["", "00-xyz", &good.to_uppercase(), &good.replace("00-", "ff-"), &good.replace(trace, &"0".repeat(32))]
        {
            assert_eq!(inherited(&[bad]), None, "{bad}");
        }
        assert_eq!(inherited(&[&good, &good]), None);
    }

    #[test]
    fn ids_do_not_repeat() {
        let source = IdSource::new();
        let mut seen: Vec<String> = (0..1000).map(|_| source.next().as_str().to_owned()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 1000);
    }
}
