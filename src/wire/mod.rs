//! What comes over a socket, judged octet by octet before anybody acts on it.
//!
//! Pure: octets in, verdicts out. Knows no socket, no route and no key.

pub mod answers;
pub mod frames;
pub mod heads;
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
