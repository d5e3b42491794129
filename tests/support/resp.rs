//! A small RESP2 client: commands, their replies as they came, and MONITOR. Independent of the client that the product uses.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longer than any command of a test takes: reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// `+OK` and the like.
    Status(String),
    /// `-ERR …`, without the minus.
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
    List(Vec<Reply>),
}

/// A connection to a server.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn open(port: u16) -> io::Result<Self> {
        Self::open_at("127.0.0.1", port)
    }

    pub(crate) fn open_at(host: &str, port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((host, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a command and reads its reply.
    pub(crate) fn command(&mut self, words: &[impl AsRef<[u8]>]) -> io::Result<Reply> {
        self.send(words)?;
        self.reply()
    }

    /// Sends a command; its reply comes when it is asked for.
    pub(crate) fn send(&mut self, words: &[impl AsRef<[u8]>]) -> io::Result<()> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            let word = word.as_ref();
            bytes.extend(format!("${}\r\n", word.len()).bytes());
            bytes.extend(word);
            bytes.extend(b"\r\n");
        }
        self.stream.get_mut().write_all(&bytes)
    }

    /// The next reply.
    pub(crate) fn reply(&mut self) -> io::Result<Reply> {
        let line = self.line()?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| not_resp(&line))?;
        let number = || rest.parse::<i64>().map_err(|_| not_resp(&line));
        Ok(match kind {
            "+" => Reply::Status(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Integer(number()?),
            "$" => match usize::try_from(number()?) {
                Ok(length) => self.bulk(length)?,
                Err(_) => Reply::Nil,
            },
            "*" => match usize::try_from(number()?) {
                Ok(length) => Reply::List((0..length).map(|_| self.reply()).collect::<io::Result<_>>()?),
                Err(_) => Reply::Nil,
            },
            _ => return Err(not_resp(&line)),
        })
    }

    fn bulk(&mut self, length: usize) -> io::Result<Reply> {
        let mut bytes = vec![0; length + 2];
        self.stream.read_exact(&mut bytes)?;
        bytes.truncate(length);
        Ok(Reply::Bulk(bytes))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\r\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.len() - 2);
        Ok(String::from_utf8_lossy(&line).into_owned())
    }
}

fn not_resp(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not RESP: {line:?}"))
}

impl Reply {
    /// As `redis-cli` prints it into a pipe: a line an element, nothing for nil.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Status(text) | Self::Error(text) => text.clone(),
            Self::Integer(number) => number.to_string(),
            Self::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Nil => String::new(),
            Self::List(list) => list.iter().map(Self::text).collect::<Vec<_>>().join("\n"),
        }
    }

    /// The elements of a list; none of anything else.
    pub(crate) fn list(&self) -> &[Self] {
        match self {
            Self::List(list) => list,
            _ => &[],
        }
    }

    /// The integer, or the number that the text spells.
    pub(crate) fn number(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            other => other.text().parse().ok(),
        }
    }
}

/// Sees every command that a server executes, as `MONITOR` tells it.
#[derive(Debug)]
pub(crate) struct Monitor {
    watching: Connection,
    marking: Connection,
    marks: usize,
}

impl Monitor {
    /// Both connections may do anything.
    pub(super) fn new(mut watching: Connection, marking: Connection) -> Self {
        assert_eq!(watching.command(&["MONITOR"]).unwrap(), Reply::Status("OK".to_owned()));
        Self { watching, marking, marks: 0 }
    }

    /// What was executed since the last call, up to now: `1339518083.1 [0 127.0.0.1:60866] "get" "x"` (`lua` for the address of
    /// what a script calls). Complete: it marks the end with a command of its own and reads until it sees that.
    pub(crate) fn lines(&mut self) -> Vec<String> {
        self.marks += 1;
        let mark = format!("end of lines {}", self.marks);
        self.marking.command(&["ECHO", &mark]).unwrap();
        let mut lines = Vec::new();
        loop {
            match self.watching.reply().unwrap() {
                Reply::Status(line) if line.contains(&mark) => return lines,
                Reply::Status(line) => lines.push(line),
                other => panic!("not a line of MONITOR: {other:?}"),
            }
        }
    }
}
