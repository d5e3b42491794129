//! A network of its own, joined to this one by a pair of virtual interfaces: what is dropped there is answered by nobody, not even
//! with a reset. Linux only, and only for whoever may make one.

use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

/// Removes everything when the pipe ends, however the test process goes away.
const REMOVE: &str = "trap '' HUP; read word; ip link del \"$2\"; ip netns del \"$1\"";

/// A namespace with one address that can be reached from here. Removed when dropped, or with the test process.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
    address: String,
    remover: Child,
    /// Held open for as long as it may live.
    leash: Option<ChildStdin>,
}

impl Namespace {
    /// Or why there is none.
    pub(crate) fn create() -> Result<Self, String> {
        static COUNT: AtomicU16 = AtomicU16::new(0);
        // Process ids differ between all who test on this machine at once.
        let number = std::process::id() as u16 ^ (COUNT.fetch_add(1, Ordering::Relaxed) << 13);
        let (name, link, peer) = (format!("seeme-{number}"), format!("sm{number}a"), format!("sm{number}b"));
        // Of 198.18.0.0/15, which is for tests of networks: a /30 of its own.
        let [high, low] = (number & 0x7fff).to_be_bytes();
        let at = |host: u8| format!("198.{}.{}.{}", 18 + (high >> 6), (high << 2) | (low >> 6), (low << 2) | host);
        let (here, there) = (at(1), at(2));
        run(&["ip", "netns", "add", &name])?;
        let mut remover = Command::new("sh")
            .args(["-c", REMOVE, "sh", &name, &link])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| error.to_string())?;
        let leash = remover.stdin.take();
        let namespace = Self { name: name.clone(), address: there.clone(), remover, leash };
        run(&["ip", "link", "add", &link, "type", "veth", "peer", "name", &peer, "netns", &name])?;
        run(&["ip", "addr", "add", &format!("{here}/30"), "dev", &link])?;
        run(&["ip", "link", "set", &link, "up"])?;
        run(&["ip", "-n", &name, "addr", "add", &format!("{there}/30"), "dev", &peer])?;
        run(&["ip", "-n", &name, "link", "set", "lo", "up"])?;
        run(&["ip", "-n", &name, "link", "set", &peer, "up"])?;
        // Whether packets can be dropped at all is better known before anything depends on it.
        namespace.iptables("-L", "INPUT", &[])?;
        Ok(namespace)
    }

    /// Where servers in it are reached.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// What a program and its arguments follow to run in it.
    pub(crate) fn prefix(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }

    /// From now on it neither hears from here nor is heard.
    pub(crate) fn cut_off(&self) {
        self.rules("-A");
    }

    /// Undoes [`Self::cut_off`].
    pub(crate) fn join_again(&self) {
        self.rules("-D");
    }

    fn rules(&self, what: &str) {
        for (chain, side) in [("INPUT", "-d"), ("OUTPUT", "-s")] {
            self.iptables(what, chain, &[side, &self.address, "-j", "DROP"]).unwrap();
        }
    }

    fn iptables(&self, what: &str, chain: &str, rule: &[&str]) -> Result<(), String> {
        run(&[&self.prefix()[..], &["iptables", "-w", what, chain], rule].concat())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.leash.take());
        let _ = self.remover.wait();
    }
}

fn run(words: &[&str]) -> Result<(), String> {
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{}: {error}", words.join(" "))),
    }
}
