//! What stands behind the gateway: the sample backend in this process, or a server that follows a script.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::http::find;

/// The sample backend on a thread of its own.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sample {
    pub(crate) fn start() -> Self {
        let listener = listen();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    _ = seeme_gateway::cli::sample_backend::serve(listener, std::future::pending()) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().unwrap().join();
    }
}

/// A server that does with each connection what the script says, and remembers what it received.
#[derive(Debug)]
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    connections: AtomicUsize,
    requests: Mutex<Vec<Received>>,
    closing: AtomicBool,
}

/// A request as a scripted server received it.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    /// The head with its empty line.
    pub(crate) head: String,
    /// The body as it came over the wire, its chunking included.
    pub(crate) body: Vec<u8>,
}

/// The server's end of one connection.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    ahead: Vec<u8>,
    lost: bool,
    seen: Arc<Seen>,
}

impl Scripted {
    /// `script` runs for each connection, on a thread of its own; the connection closes when it returns.
    pub(crate) fn start(script: impl Fn(&mut Wire) + Send + Sync + 'static) -> Self {
        let listener = listen();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let (script, shared) = (Arc::new(script), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.closing.load(Ordering::Acquire) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                shared.connections.fetch_add(1, Ordering::AcqRel);
                let mut wire = Wire { stream, ahead: Vec::new(), lost: false, seen: shared.clone() };
                let script = script.clone();
                std::thread::spawn(move || script(&mut wire));
            }
        });
        Self { address, seen }
    }

    /// Answers every request with these bytes, on connections that stay open.
    pub(crate) fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |wire| {
            while wire.request().is_some() {
                wire.send(&answer);
            }
        })
    }

    /// Reads a request, says that it is there, and then when its connection has ended.
    pub(crate) fn never_answering() -> (Self, mpsc::Receiver<()>, mpsc::Receiver<bool>) {
        let (gone, noticed) = mpsc::channel();
        let (arrived, there) = mpsc::channel();
        let ends = Mutex::new((arrived, gone));
        let upstream = Self::start(move |wire| {
            if wire.request().is_some() {
                let ends = ends.lock().unwrap();
                let _ = ends.0.send(());
                let _ = ends.1.send(wire.is_closed_by_gateway());
            }
        });
        (upstream, there, noticed)
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::Acquire)
    }

    /// What was received so far.
    pub(crate) fn requests(&self) -> Vec<Received> {
        self.seen.requests.lock().unwrap().clone()
    }
}

/// With room for hundreds of connections that come at once: the standard library's queue takes 128.
fn listen() -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(4096).unwrap();
    socket.into()
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.seen.closing.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
    }
}

impl Wire {
    /// The head of the next request; none when the connection ends before.
    pub(crate) fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.ahead, b"\r\n\r\n") {
                let head: Vec<u8> = self.ahead.drain(..end + 4).collect();
                return Some(String::from_utf8_lossy(&head).into_owned());
            }
            if !self.fill().unwrap_or(false) {
                return None;
            }
        }
    }

    /// The next request, whole; none when the connection ends before.
    pub(crate) fn request(&mut self) -> Option<Received> {
        let head = self.head()?;
        let body = self.body(&head)?;
        let received = Received { head, body };
        self.seen.requests.lock().unwrap().push(received.clone());
        Some(received)
    }

    fn body(&mut self, head: &str) -> Option<Vec<u8>> {
        let lower = head.to_ascii_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        if lower.contains("transfer-encoding: chunked") {
            return self.chunked_body();
        }
        self.take(length.unwrap_or(0))
    }

    fn chunked_body(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size = usize::from_str_radix(line.trim().split(';').next()?, 16).ok()?;
            body.extend(line.bytes());
            if size == 0 {
                loop {
                    let trailer = self.line()?;
                    body.extend(trailer.bytes());
                    if trailer == "\r\n" {
                        return Some(body);
                    }
                }
            }
            body.extend(self.take(size + 2)?);
        }
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.ahead, b"\r\n") {
                let line: Vec<u8> = self.ahead.drain(..end + 2).collect();
                return Some(String::from_utf8_lossy(&line).into_owned());
            }
            if !self.fill().ok()? {
                return None;
            }
        }
    }

    /// Exactly so many bytes.
    pub(crate) fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.ahead.len() < count {
            if !self.fill().ok()? {
                return None;
            }
        }
        Some(self.ahead.drain(..count).collect())
    }

    /// A gateway that has gone away is no failure of the server.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.lost |= self.stream.write_all(bytes.as_ref()).is_err();
    }

    /// Whether what was sent last found nobody.
    pub(crate) fn is_closed(&self) -> bool {
        self.lost
    }

    /// Ends its half of the connection, and still listens.
    pub(crate) fn end_sending(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Reads to the end of the connection; true when it ended, false when it stayed open too long.
    pub(crate) fn is_closed_by_gateway(&mut self) -> bool {
        loop {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return true,
                Err(error) => return !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
            }
        }
    }

    /// Keeps the connection open and takes nothing from it, for so long or until the gateway has closed it.
    pub(crate) fn wait_without_reading(&self, limit: Duration) {
        self.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let start = std::time::Instant::now();
        let mut byte = [0];
        // What was sent stays where it is: a peek only tells of the end.
        while start.elapsed() < limit
            && !matches!(self.stream.peek(&mut byte), Ok(0))
            && self.stream.take_error().is_ok_and(|e| e.is_none())
        {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn fill(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 64 * 1024];
        let read = self.stream.read(&mut buffer)?;
        self.ahead.extend_from_slice(&buffer[..read]);
        Ok(read > 0)
    }
}

impl Received {
    /// All values of a field.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }
}
