//! Listening sockets: one at least for each worker on the same address, refused when somebody else has it.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

const BACKLOG: i32 = 4096;

/// The public address could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error(
        "{0} is taken: another process listens there. Stop it, take over from it (run --take-over), or set another address in \
         listen.public.address"
    )]
    Taken(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, io::Error),
}

/// One socket for each worker, or more, all on the same port.
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
        let mut listeners = Self { address: first.local_addr().map_err(failed)?, sockets: vec![first] };
        listeners.fill_up(count)?;
        Ok(listeners)
    }

    /// Sockets that another process had.
    pub fn inherit(address: SocketAddr, sockets: Vec<TcpListener>) -> Self {
        Self { address, sockets }
    }

    /// Adds sockets until there are `count`; there may be more. They get connections from now on, so somebody should accept soon.
    pub fn fill_up(&mut self, count: usize) -> Result<(), BindError> {
        while self.sockets.len() < count {
            self.sockets.push(socket(self.address, true).map_err(|error| BindError::Other(self.address, error))?);
        }
        Ok(())
    }

    /// The same sockets once more, for whoever takes them over.
    pub fn duplicate(&self) -> io::Result<Vec<TcpListener>> {
        self.sockets.iter().map(TcpListener::try_clone).collect()
    }

    /// Shares them out among so many workers: each socket has one that accepts, or its queue would be a trap.
    pub(super) fn share_out(self, workers: usize) -> Vec<Vec<TcpListener>> {
        let mut shares: Vec<Vec<TcpListener>> = (0..workers.max(1)).map(|_| Vec::new()).collect();
        let count = shares.len();
        for (index, socket) in self.sockets.into_iter().enumerate() {
            shares[index % count].push(socket);
        }
        shares
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

    #[test]
    fn inherited_sockets_are_made_up_to_the_number_of_workers_and_none_is_left_without_one() {
        let first = Listeners::bind(([127, 0, 0, 1], 0).into(), 2).unwrap();
        let mut more = Listeners::inherit(first.address, first.duplicate().unwrap());
        more.fill_up(3).unwrap();
        assert_eq!(more.sockets.len(), 3);
        let shares: Vec<usize> = more.share_out(2).iter().map(Vec::len).collect();
        assert_eq!(shares, [2, 1]);
        assert_eq!(first.share_out(1)[0].len(), 2);
    }
}
