//! The PROXY header of a connection, read off the socket before anything else; its grammar is [`crate::wire::proxy_header`].

use std::io;
use std::net::IpAddr;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::wire::proxy_header::{self, LONGEST};

/// Takes the header off `stream` and not an octet more: what stands behind it is the client's own. Returns the client that it names;
/// `None`: the peer speaks for itself.
pub(super) async fn receive(stream: &mut TcpStream) -> io::Result<Option<IpAddr>> {
    let mut header = vec![0; LONGEST];
    let mut taken = 0;
    loop {
        let seen = taken + stream.peek(&mut header[taken..]).await?;
        if seen == taken {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let found =
            proxy_header::parse(&header[..seen]).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        // As long as it is not whole, all that came belongs to it.
        let length = found.map_or(seen, |header| header.length);
        stream.read_exact(&mut header[taken..length]).await?;
        taken = length;
        if let Some(found) = found {
            return Ok(found.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        sender.set_nodelay(true).unwrap();
        (sender, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn what_stands_behind_the_header_is_left_on_the_socket() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2\r\n";
        for pieces in [vec![&line[..]], line.chunks(1).collect(), line.chunks(30).collect()] {
            let (mut sender, mut receiver) = pair().await;
            let receiving = tokio::spawn(async move { (receive(&mut receiver).await, receiver) });
            let (last, before) = pieces.split_last().unwrap();
            for piece in before {
                sender.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            sender.write_all(&[last, &b"GET / HTTP/1.1\r\n"[..]].concat()).await.unwrap();
            let (client, mut receiver) = receiving.await.unwrap();
            assert_eq!(client.unwrap(), Some("192.0.2.1".parse().unwrap()));
            let mut behind = [0; 16];
            receiver.read_exact(&mut behind).await.unwrap();
            assert_eq!(&behind, b"GET / HTTP/1.1\r\n");
        }
    }

    #[tokio::test]
    async fn anything_else_and_an_early_end_are_errors() {
        for (bytes, kind) in [
            (&b"GET / HTTP/1.1\r\n"[..], io::ErrorKind::InvalidData),
            (b"PROXY TCP4 192.0.2.1", io::ErrorKind::UnexpectedEof),
            (b"", io::ErrorKind::UnexpectedEof),
        ] {
            let (mut sender, mut receiver) = pair().await;
            sender.write_all(bytes).await.unwrap();
            drop(sender);
            assert_eq!(receive(&mut receiver).await.unwrap_err().kind(), kind);
        }
    }
}
