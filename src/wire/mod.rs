//! What comes over a socket, judged octet by octet before anybody acts on it.
//!
//! Pure: octets in, verdicts out. Knows no socket, no route and no key.

pub mod answers;
pub mod frames;
pub mod heads;
mod held;
mod host;
pub mod hpack;
pub mod http1;
pub mod proxy_header;
pub mod sieve;
mod stand_in;

pub use host::is_host;

/// Members of a set of octets.
const fn table(members: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut at = 0;
    while at < members.len() {
        table[members[at] as usize] = true;
        at += 1;
    }
    table
}

/// `tchar` of RFC 9110 section 5.6.2.
const fn is_token(byte: u8) -> bool {
    const TABLE: [bool; 256] = table(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz");
    TABLE[byte as usize]
}

/// What a field value may hold, blanks included: all but controls (RFC 9110 section 5.5).
const fn is_field_octet(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// The same of a whole value, eight octets at a time: every request has a dozen of them.
fn is_field_value(value: &[u8]) -> bool {
    let (words, rest) = value.as_chunks();
    let controls = words.iter().fold(0, |controls, word| controls | controls_in(u64::from_ne_bytes(*word)));
    // Some may be a tab.
    (controls == 0 || words.as_flattened().iter().all(|byte| is_field_octet(*byte)))
        && rest.iter().all(|byte| is_field_octet(*byte))
}

/// What `Content-Length` is (RFC 9110 section 8.6).
fn is_length(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_digit)
}

/// Not zero if any octet of the word is below a space or DEL ("Bit Twiddling Hacks", Determine if a word has a byte less than n).
const fn controls_in(word: u64) -> u64 {
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    let below_space = word.wrapping_sub(EACH * 0x20) & !word;
    let other_than_del = word ^ (EACH * 0x7f);
    (below_space | (other_than_del.wrapping_sub(EACH) & !other_than_del)) & (EACH << 7)
}
