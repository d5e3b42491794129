//! What comes over a socket, judged octet by octet before anybody acts on it.
//!
//! Pure: octets in, verdicts out. Knows no socket, no route and no key.

pub mod frames;
pub mod heads;
mod host;
pub mod hpack;
pub mod http1;
pub mod proxy_header;

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
