//! A load generator: connections that send without a pause, or at a rate, and write down what became of each request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::http::{Connection, Response};
use super::key::Key;
use super::request::Request;
use super::stand::Gateway;

/// Before a gateway that did not answer is tried again.
const PAUSE: Duration = Duration::from_millis(5);
/// A thread that waits for its turn looks up so often.
const NAP: Duration = Duration::from_millis(20);
/// Of a thread: there may be two thousand.
const STACK: usize = 256 * 1024;

/// What will be sent, where to, and how fast.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    gateways: Vec<SocketAddr>,
    keys: Vec<(String, String)>,
    target: String,
    connections: usize,
    rate: Option<f64>,
    fresh: bool,
}

/// One request, as the client saw it.
#[derive(Debug, Clone)]
pub(crate) struct Shot {
    /// Which of the gateways.
    pub(crate) gateway: usize,
    /// Which of the keys.
    pub(crate) key: usize,
    /// Before its first octet was written.
    pub(crate) sent: Instant,
    /// After its answer was read, or missed.
    pub(crate) answered: Instant,
    /// None: there was no answer, or not all of it.
    pub(crate) answer: Option<Answer>,
}

/// What is kept of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Limit, remaining and reset of the window that is told.
    pub(crate) window: Option<[i64; 3]>,
    pub(crate) retry_after: Option<i64>,
    /// The member `code` of a refusal.
    pub(crate) code: Option<String>,
}

/// A load that is being sent.
#[derive(Debug)]
pub(crate) struct Running {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Vec<Shot>>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// All use this key; none: each connection uses all of them in turn.
    aim: AtomicUsize,
    /// Requests begun.
    begun: AtomicUsize,
    /// Connections that were opened, and those that could not be.
    opened: AtomicUsize,
    refused: AtomicUsize,
    most: usize,
}

const EVERY_KEY: usize = usize::MAX;

impl Load {
    /// Over these gateways in turn.
    pub(crate) fn on(gateways: &[&Gateway]) -> Self {
        Self {
            gateways: gateways.iter().map(|gateway| gateway.public).collect(),
            keys: Vec::new(),
            target: "/echo/x?bytes=2".to_owned(),
            connections: 30,
            rate: None,
            fresh: false,
        }
    }

    /// With these keys.
    pub(crate) fn keys<'k>(mut self, keys: impl IntoIterator<Item = &'k Key>) -> Self {
        self.keys = keys.into_iter().map(|key| (key.id.clone(), key.secret.clone())).collect();
        self
    }

    /// With keys that nobody has made.
    pub(crate) fn secrets(mut self, secrets: Vec<String>) -> Self {
        self.keys = secrets.into_iter().map(|secret| (String::new(), secret)).collect();
        self
    }

    /// Asks for this instead of a small echo.
    pub(crate) fn target(mut self, target: &str) -> Self {
        self.target = target.to_owned();
        self
    }

    pub(crate) fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// So many a second, over all connections, whatever the answers take; without it each connection sends as soon as it can.
    pub(crate) fn rate(mut self, per_second: f64) -> Self {
        self.rate = Some(per_second);
        self
    }

    /// Each request on a connection of its own.
    pub(crate) fn fresh(mut self) -> Self {
        self.fresh = true;
        self
    }

    /// Sends so many requests and returns when all are answered.
    pub(crate) fn send(&self, requests: usize) -> Vec<Shot> {
        self.begin(requests).join()
    }

    /// Sends for so long.
    pub(crate) fn send_for(&self, time: Duration) -> Vec<Shot> {
        let running = self.start();
        std::thread::sleep(time);
        running.stop()
    }

    /// Sends until it is told to stop.
    pub(crate) fn start(&self) -> Running {
        self.begin(usize::MAX)
    }

    fn begin(&self, most: usize) -> Running {
        let (stop, aim) = (AtomicBool::new(false), AtomicUsize::new(EVERY_KEY));
        let [begun, opened, refused] = [(); 3].map(|()| AtomicUsize::new(0));
        let shared = Arc::new(Shared { stop, aim, begun, opened, refused, most });
        let start = Instant::now();
        let thread = |index| {
            let (load, shared) = (self.clone(), shared.clone());
            let builder = std::thread::Builder::new().stack_size(STACK);
            builder.spawn(move || load.connection(index, start, &shared)).unwrap()
        };
        Running { threads: (0..self.connections).map(thread).collect(), shared }
    }

    /// The life of one connection; of one after the other, where gateways go away.
    fn connection(&self, index: usize, start: Instant, shared: &Shared) -> Vec<Shot> {
        let mut requests = vec![None; self.keys.len()];
        let mut shots = Vec::new();
        let mut gateway = index % self.gateways.len();
        let mut open: Option<Connection> = None;
        for turn in 0.. {
            if let Some(rate) = self.rate {
                let due = start + Duration::from_secs_f64((turn * self.connections + index) as f64 / rate);
                while Instant::now() < due && !shared.stop.load(Ordering::Relaxed) {
                    std::thread::sleep(NAP.min(due.saturating_duration_since(Instant::now())));
                }
            }
            if shared.stop.load(Ordering::Relaxed) {
                break;
            }
            let dial = || {
                Connection::try_open(self.gateways[gateway]).inspect(|_| {
                    shared.opened.fetch_add(1, Ordering::Relaxed);
                })
            };
            let connection = match open.take().map_or_else(dial, Ok) {
                Ok(connection) => open.insert(connection),
                Err(_) => {
                    shared.refused.fetch_add(1, Ordering::Relaxed);
                    gateway = (gateway + 1) % self.gateways.len();
                    std::thread::sleep(PAUSE);
                    continue;
                }
            };
            let number = shared.begun.fetch_add(1, Ordering::Relaxed);
            if number >= shared.most {
                break;
            }
            let aim = shared.aim.load(Ordering::Acquire);
            let key = if aim == EVERY_KEY { number % self.keys.len() } else { aim };
            let bytes = requests[key].get_or_insert_with(|| {
                Request::new(self.gateways[0], "GET", &self.target).token(&self.keys[key].1).bytes()
            });
            let sent = Instant::now();
            let answer = connection.try_send(&*bytes).and_then(|()| connection.try_response("GET"));
            let answer = answer.ok().filter(|response| response.complete);
            let closes = answer.as_ref().is_none_or(|answer| answer.head.all("connection").contains(&"close"));
            let answer = answer.map(|answer| Answer::of(&answer));
            shots.push(Shot { gateway, key, sent, answered: Instant::now(), answer });
            if closes || self.fresh {
                open = None;
            }
        }
        shots
    }
}

impl Running {
    /// From now on all requests use this key; what is under way does not.
    pub(crate) fn aim(&self, key: usize) {
        self.shared.aim.store(key, Ordering::Release);
    }

    /// Requests begun so far.
    pub(crate) fn begun(&self) -> usize {
        self.shared.begun.load(Ordering::Relaxed)
    }

    /// Connections that were opened so far.
    pub(crate) fn opened(&self) -> usize {
        self.shared.opened.load(Ordering::Relaxed)
    }

    /// Connections that could not be opened so far.
    pub(crate) fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Waits for what is under way.
    pub(crate) fn stop(self) -> Vec<Shot> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    fn join(mut self) -> Vec<Shot> {
        let threads = std::mem::take(&mut self.threads);
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shot {
    /// 0: no answer.
    pub(crate) fn status(&self) -> u16 {
        self.answer.as_ref().map_or(0, |answer| answer.status)
    }

    /// From its first octet to the last of its answer.
    pub(crate) fn took(&self) -> Duration {
        self.answered - self.sent
    }

    pub(crate) fn is_admitted(&self) -> bool {
        (200..300).contains(&self.status())
    }
}

impl Answer {
    fn of(response: &Response) -> Self {
        let number = |name: &str| response.header(name)?.parse().ok();
        let window = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"].map(number);
        let refused = response.status() >= 400 && response.header("content-type") == Some("application/problem+json");
        Self {
            status: response.status(),
            window: match window {
                [Some(limit), Some(remaining), Some(reset)] => Some([limit, remaining, reset]),
                _ => None,
            },
            retry_after: number("retry-after"),
            code: refused.then(|| response.code()),
        }
    }
}

/// How many came with each status, in order: `[(200, 60), (429, 940)]`. 0 stands for no answer.
pub(crate) fn statuses(shots: &[Shot]) -> Vec<(u16, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    for shot in shots {
        *counts.entry(shot.status()).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

/// How many came with one of these statuses.
pub(crate) fn count(shots: &[Shot], wanted: impl Fn(u16) -> bool) -> usize {
    shots.iter().filter(|shot| wanted(shot.status())).count()
}

/// The value that so many percent of them do not exceed.
pub(crate) fn percentile(mut values: Vec<Duration>, percent: usize) -> Duration {
    values.sort_unstable();
    values.get((values.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
}

/// Prints a line for each second: what came, and how long the middle and the slow end took.
pub(crate) fn print_seconds(name: &str, shots: &[Shot]) {
    let Some(start) = shots.iter().map(|shot| shot.sent).min() else { return };
    let mut seconds = std::collections::BTreeMap::<u64, Vec<Shot>>::new();
    for shot in shots {
        seconds.entry((shot.sent - start).as_secs()).or_default().push(shot.clone());
    }
    for (second, shots) in seconds {
        let times = |percent| percentile(shots.iter().map(Shot::took).collect(), percent);
        println!("{name}, second {second}: {:?}, p50 {:.1?}, p99 {:.1?}", statuses(&shots), times(50), times(99));
    }
}
