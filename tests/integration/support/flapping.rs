//! A backend that can be killed and come back on its address, and that remembers what it received across its lives.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::http::find;

/// What a request takes: some are under way whenever it is killed.
const WORK: Duration = Duration::from_millis(3);

/// The backend, alive or not.
#[derive(Debug)]
pub(crate) struct Flapping {
    pub(crate) address: SocketAddr,
    life: Option<Life>,
    received: Arc<Mutex<Vec<(String, String)>>>,
}

/// From a start to a kill.
#[derive(Debug)]
struct Life {
    listener: Socket,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Flapping {
    /// Alive.
    pub(crate) fn start() -> Self {
        let listener = listen(([127, 0, 0, 1], 0).into());
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut backend = Self { address, life: None, received: Arc::default() };
        backend.live(listener);
        backend
    }

    /// The port is closed and so is every connection, with a reset for those whose request was not read.
    pub(crate) fn kill(&mut self) {
        let Some(life) = self.life.take() else { return };
        // Wakes the thread that accepts; closes the port with the last handle.
        let _ = life.listener.shutdown(std::net::Shutdown::Both);
        for stream in life.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Back on the same address.
    pub(crate) fn revive(&mut self) {
        self.kill();
        let listener = listen(self.address);
        self.live(listener);
    }

    /// Method and target of everything it has received whole.
    pub(crate) fn received(&self) -> Vec<(String, String)> {
        self.received.lock().unwrap().clone()
    }

    fn live(&mut self, listener: Socket) {
        let (accepting, open) = (listener.try_clone().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let (streams, received) = (open.clone(), self.received.clone());
        std::thread::spawn(move || {
            while let Ok((socket, _)) = accepting.accept() {
                let stream = TcpStream::from(socket);
                let _ = stream.set_nodelay(true);
                streams.lock().unwrap().push(stream.try_clone().unwrap());
                let received = received.clone();
                std::thread::spawn(move || serve(stream, &received));
            }
        });
        self.life = Some(Life { listener, open });
    }
}

impl Drop for Flapping {
    fn drop(&mut self) {
        self.kill();
    }
}

fn listen(address: SocketAddr) -> Socket {
    // A port in TIME_WAIT is free; the thread of the life before may hold it for a moment.
    for _ in 0..1000 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        if socket.bind(&address.into()).is_ok() && socket.listen(1024).is_ok() {
            return socket;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{address} stays taken");
}

/// Answers whole requests, of known length, one after the other.
fn serve(mut stream: TcpStream, received: &Mutex<Vec<(String, String)>>) {
    let (mut ahead, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    loop {
        let end = loop {
            let whole = find(&ahead, b"\r\n\r\n").map(|end| end + 4 + length(&ahead[..end]));
            if let Some(end) = whole.filter(|end| ahead.len() >= *end) {
                break end;
            }
            match stream.read(&mut buffer) {
                Ok(read) if read > 0 => ahead.extend_from_slice(&buffer[..read]),
                _ => return,
            }
        };
        let request: Vec<u8> = ahead.drain(..end).collect();
        let text = String::from_utf8_lossy(&request).into_owned();
        let mut words = text.split(' ').map(str::to_owned);
        received.lock().unwrap().push((words.next().unwrap(), words.next().unwrap()));
        std::thread::sleep(WORK);
        if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
            return;
        }
    }
}

fn length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0)
}
