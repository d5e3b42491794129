//! Listening sockets: one for each worker on the same address, refused when somebody else has it.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

const BACKLOG: i32 = 4096;

/// The public address could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error("{0} is taken: another process listens there. Stop it, or set another address in listen.public.address")]
    Taken(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, io::Error),
}

/// One socket for each worker, all on the same port.
#[derive(Debug)]
pub struct Listeners {
    /// The address, with the port that was given for 0.
    pub address: SocketAddr,
    /// The sockets.
    pub sockets: Vec<TcpListener>,
}

impl Listeners {
    /// Takes `address` for `count` workers.
    ///
    /// SO_REUSEPORT alone would let a second gateway of the same user join in silently; an exclusive test comes first.
    pub fn bind(address: SocketAddr, count: usize) -> Result<Self, BindError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => BindError::Taken(address),
            _ => BindError::Other(address, error),
        };
        drop(socket(address, false).map_err(failed)?);
        let first = socket(address, true).map_err(failed)?;
        let address = first.local_addr().map_err(failed)?;
        let mut sockets = vec![first];
        while sockets.len() < count {
            sockets.push(socket(address, true).map_err(failed)?);
        }
        Ok(Self { address, sockets })
    }
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for connections of its predecessor in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_workers_share_a_port_and_a_second_gateway_is_told() {
        let first = Listeners::bind(([127, 0, 0, 1], 0).into(), 3).unwrap();
        assert_eq!(first.sockets.len(), 3);
        assert!(matches!(Listeners::bind(first.address, 1), Err(BindError::Taken(_))));
        drop(first.sockets);
        assert!(Listeners::bind(first.address, 2).is_ok());
    }
}
