//! Take-over: a gateway hands its listening sockets to the one that replaces it, so that no connection is refused or lost.
//!
//! The queue of a listening socket belongs to the socket, not to a process: what the old one has not accepted, the new one does.
//! Every socket is handed over and kept, also when the new process has fewer workers: one that is closed would take its queue along.
//!
//! ```text
//! new ─▶ old   seeme-gateway take-over 1
//! old ─▶ new   sockets 4 127.0.0.1:9901, and then each of them with one octet: the doorway, the admin socket, the public ones
//! new ─▶ old   serving
//! old ─▶ new   draining        or withdrawn, when it has waited too long and goes on by itself
//! old ─▶ new   the end of the stream: its process is gone
//! ```
//!
//! The doorway is a Unix socket with an abstract name made of the public address: it lives where that address lives (the network
//! namespace), leaves no file, and only a process of the same user gets through. Everything here blocks, for a bounded time.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, UnixListener, UnixStream};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use rustix::process::geteuid;

const HELLO: &str = "seeme-gateway take-over 1";
const SERVING: &str = "serving";
const DRAINING: &str = "draining";
const WITHDRAWN: &str = "withdrawn";
/// No line is longer.
const LINE: usize = 128;
/// More sockets than any machine has workers.
const SOCKETS: usize = 4096;
/// How long the new process waits for each answer of the old one.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the old process waits until the new one serves: that may be waiting for its store.
const PATIENCE_WITH_A_START: Duration = Duration::from_secs(60);

/// Why the sockets were not taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// The address is taken and nobody answers at the doorway.
    #[error(
        "{0} is taken, and whoever listens there does not hand it over: another program, another user, an older build, or a \
         gateway that already ends. Stop it first, or set another address in listen.public.address"
    )]
    NotOffered(SocketAddr),
    /// Somebody else's doorway.
    #[error("whoever offers {0} is of another user (uid {1}): its sockets are not taken. Stop it first")]
    Foreign(SocketAddr, u32),
    /// The other side does not answer, or not what was expected.
    #[error("the gateway on {0} did not hand its sockets over: {1}. It serves on; stop it first, or try again")]
    Failed(SocketAddr, io::Error),
    /// The other side has given up waiting.
    #[error("the gateway on {0} waited too long for this one to serve, and goes on by itself")]
    Withdrawn(SocketAddr),
}

/// What a process listens on.
#[derive(Debug)]
pub struct Sockets {
    /// Where others ask for all of this.
    pub doorway: UnixListener,
    /// The operators' listener.
    pub admin: TcpListener,
    /// The public ones.
    pub public: Vec<TcpListener>,
}

/// Sockets that were taken over, and the line to the process that had them.
#[derive(Debug)]
pub struct Inherited {
    /// They are ours now, and the other's too until it is told that they are served.
    pub sockets: Sockets,
    /// Where operators reach the other.
    pub admin: SocketAddr,
    /// To the other process.
    pub link: Link,
}

/// From the new process to the old one.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    stream: UnixStream,
}

/// Somebody at the doorway who may have the sockets.
#[derive(Debug)]
pub struct Successor(UnixStream);

/// The doorway to the process that listens on `address`.
pub fn doorway(address: SocketAddr) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&name(address)?)
}

fn name(address: SocketAddr) -> io::Result<net::SocketAddr> {
    net::SocketAddr::from_abstract_name(format!("seeme-gateway/{address}"))
}

/// Asks whoever listens on `address` for its sockets. `None`: nobody offers them.
pub fn ask(address: SocketAddr) -> Result<Option<Inherited>, TakeOverError> {
    let failed = |error| TakeOverError::Failed(address, error);
    let stream = match name(address).and_then(|name| UnixStream::connect_addr(&name)) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let peer = socket_peercred(&stream).map_err(|error| failed(error.into()))?;
    if peer.uid != geteuid() {
        return Err(TakeOverError::Foreign(address, peer.uid.as_raw()));
    }
    receive(stream, address).map(Some).map_err(failed)
}

fn receive(mut stream: UnixStream, address: SocketAddr) -> io::Result<Inherited> {
    set_patience(&stream, PATIENCE)?;
    say(&mut stream, HELLO)?;
    let line = hear(&mut stream)?;
    let offer = line.strip_prefix("sockets ").and_then(|rest| rest.split_once(' '));
    let offer = offer.and_then(|(count, admin)| Some((count.parse::<usize>().ok()?, admin.parse().ok()?)));
    let Some((count @ 3..=SOCKETS, admin)) = offer else { return Err(io::Error::other(format!("it said {line:?}"))) };
    let mut all = (0..count).map(|_| receive_socket(&stream));
    let mut next = || all.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()));
    let (doorway, admin_socket) = (next()?.into(), next()?.into());
    let public = all.map(|socket| socket.map(TcpListener::from)).collect::<io::Result<_>>()?;
    let sockets = Sockets { doorway, admin: admin_socket, public };
    Ok(Inherited { sockets, admin, link: Link { address, stream } })
}

impl Link {
    /// Tells the other process that its sockets are served, so that it ends. An `Ok` means that they are ours alone, or will be
    /// when it has drained; also when it has died meanwhile.
    pub fn serving(&mut self) -> Result<(), TakeOverError> {
        match say(&mut self.stream, SERVING).and_then(|()| hear(&mut self.stream)).as_deref() {
            Ok(WITHDRAWN) => Err(TakeOverError::Withdrawn(self.address)),
            Ok(DRAINING) => Ok(()),
            Ok(other) => {
                tracing::warn!(
                    other,
                    "the gateway before this one said something unexpected; it may serve on beside us"
                );
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "the gateway before this one did not say that it drains");
                Ok(())
            }
        }
    }

    /// Waits for the end of the other process.
    pub fn wait_for_the_end(mut self) -> io::Result<()> {
        self.stream.set_read_timeout(None)?;
        io::copy(&mut self.stream, &mut io::sink()).map(drop)
    }
}

impl Successor {
    /// Who is at the doorway: `Err` unless it is of our own user and asks for what we know how to give.
    pub fn greet(mut stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        set_patience(&stream, PATIENCE)?;
        let peer = socket_peercred(&stream)?;
        if peer.uid != geteuid() {
            return Err(io::Error::other(format!("user {} may not have the sockets", peer.uid.as_raw())));
        }
        match hear(&mut stream)?.as_str() {
            HELLO => Ok(Self(stream)),
            other => Err(io::Error::other(format!("it said {other:?}"))),
        }
    }

    /// Hands it the sockets. They stay open here too.
    pub fn give(&mut self, sockets: &Sockets) -> io::Result<()> {
        let first = [sockets.doorway.as_fd(), sockets.admin.as_fd()];
        let all = first.into_iter().chain(sockets.public.iter().map(AsFd::as_fd));
        say(&mut self.0, &format!("sockets {} {}", 2 + sockets.public.len(), sockets.admin.local_addr()?))?;
        all.into_iter().try_for_each(|socket| send_socket(&self.0, socket))
    }

    /// Waits until it serves; `false`: it ended before, or takes too long and is told so.
    pub fn serves(&mut self) -> bool {
        let said = self.0.set_read_timeout(Some(PATIENCE_WITH_A_START)).and_then(|()| hear(&mut self.0));
        let serves = said.is_ok_and(|line| line == SERVING);
        // Whoever is gone needs not be told.
        let _ = say(&mut self.0, if serves { DRAINING } else { WITHDRAWN });
        serves
    }
}

fn set_patience(stream: &UnixStream, patience: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))
}

fn say(stream: &mut UnixStream, line: &str) -> io::Result<()> {
    stream.write_all(format!("{line}\n").as_bytes())
}

/// One line, octet by octet: what comes after it may carry sockets, which an ordinary read would lose.
fn hear(stream: &mut UnixStream) -> io::Result<String> {
    let (mut line, mut octet) = (Vec::new(), [0]);
    loop {
        stream.read_exact(&mut octet).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "it does not answer"),
            _ => error,
        })?;
        match octet[0] {
            b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            _ if line.len() == LINE => return Err(io::Error::other("it says too much")),
            octet => line.push(octet),
        }
    }
}

fn send_socket(stream: &UnixStream, socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let sockets = [socket];
    control.push(SendAncillaryMessage::ScmRights(&sockets));
    sendmsg(stream, &[IoSlice::new(b"s")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_socket(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut octet = [0];
    recvmsg(stream, &mut [IoSliceMut::new(&mut octet)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let sockets = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    sockets.ok_or_else(|| io::Error::other("it sent no socket"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn listen() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    /// A process with two public sockets, as far as this file is concerned.
    fn sockets() -> (SocketAddr, Sockets) {
        let (first, second) = (listen(), listen());
        let address = first.local_addr().unwrap();
        (address, Sockets { doorway: doorway(address).unwrap(), admin: listen(), public: vec![first, second] })
    }

    /// Hands over to one process, and tells whether that serves.
    fn hand_over(sockets: Sockets) -> std::thread::JoinHandle<bool> {
        std::thread::spawn(move || {
            let (stream, _) = sockets.doorway.accept().unwrap();
            let mut successor = Successor::greet(stream).unwrap();
            successor.give(&sockets).unwrap();
            successor.serves()
        })
    }

    #[test]
    fn a_connection_that_waits_in_the_queue_is_accepted_by_the_new_process() {
        let (address, sockets) = sockets();
        let admin = sockets.admin.local_addr().unwrap();
        let second = sockets.public[1].local_addr().unwrap();
        let waiting = [TcpStream::connect(address).unwrap(), TcpStream::connect(second).unwrap()];
        let old = hand_over(sockets);
        let mut inherited = ask(address).unwrap().unwrap();
        assert_eq!((inherited.admin, inherited.sockets.public.len()), (admin, 2));
        inherited.link.serving().unwrap();
        assert!(old.join().unwrap());
        for (socket, client) in inherited.sockets.public.iter().zip(&waiting) {
            assert_eq!(socket.accept().unwrap().1, client.local_addr().unwrap());
        }
        assert_eq!(inherited.sockets.admin.local_addr().unwrap(), admin);
        inherited.link.wait_for_the_end().unwrap();

        // The doorway came along: the next one finds it.
        let sockets = inherited.sockets;
        let second = hand_over(sockets);
        ask(address).unwrap().unwrap().link.serving().unwrap();
        assert!(second.join().unwrap());
    }

    #[test]
    fn a_new_process_that_ends_before_it_serves_changes_nothing() {
        let (address, sockets) = sockets();
        let old = hand_over(sockets);
        drop(ask(address).unwrap().unwrap());
        assert!(!old.join().unwrap());
    }

    #[test]
    fn a_new_process_that_comes_too_late_is_told() {
        let (address, sockets) = sockets();
        let old = std::thread::spawn(move || {
            let (stream, _) = sockets.doorway.accept().unwrap();
            let mut successor = Successor::greet(stream).unwrap();
            successor.give(&sockets).unwrap();
            say(&mut successor.0, WITHDRAWN).unwrap();
        });
        let mut inherited = ask(address).unwrap().unwrap();
        old.join().unwrap();
        // Also when there is nobody left to tell that we serve.
        assert!(matches!(inherited.link.serving(), Err(TakeOverError::Withdrawn(_)) | Ok(())));
    }

    #[test]
    fn where_nobody_offers_sockets_there_are_none_and_nonsense_is_told() {
        let address = listen().local_addr().unwrap();
        assert!(ask(address).unwrap().is_none());
        let foreign = doorway(address).unwrap();
        let other = std::thread::spawn(move || {
            let (mut stream, _) = foreign.accept().unwrap();
            say(&mut stream, "HTTP/1.1 400 Bad Request").unwrap();
        });
        let error = ask(address).unwrap_err();
        assert!(error.to_string().contains("400 Bad Request"), "{error}");
        other.join().unwrap();
    }
}
