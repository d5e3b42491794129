//! Grammars of what stands on the wire itself, before or below HTTP. Pure: bytes in, a verdict out; no sockets, no clock.

pub mod proxy_header;
