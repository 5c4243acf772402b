//! Connections that have not said yet what they speak: neither the preface of HTTP/2 as a whole, nor anything that is no part of it.
//!
//! They are counted apart from the others, and have a time in all, however they spend it: a peer that connects and says nothing, one
//! byte, or half of the preface takes no place of those that speak. Where there are too many, the one that has waited longest goes.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// What a client of HTTP/2 begins with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Those that wait, oldest first.
#[derive(Debug)]
pub(crate) struct Openings {
    silent: Mutex<Silent>,
    silent_max: usize,
    limit: Duration,
}

#[derive(Debug, Default)]
struct Silent {
    next: u64,
    waiting: BTreeMap<u64, CancellationToken>,
}

impl Openings {
    /// `silent_max` of them wait at once, for `limit` each.
    pub(crate) fn new(silent_max: usize, limit: Duration) -> Self {
        Self { silent: Mutex::default(), silent_max: silent_max.max(1), limit }
    }

    /// Waits until the peer has said what it speaks. Answers the connection with all that was said; `None`: it went, ran out of time, or
    /// had to make room.
    pub(crate) async fn open(
        &self,
        mut stream: TcpStream,
    ) -> Option<impl AsyncRead + AsyncWrite + Send + Unpin + use<>> {
        let (place, evicted) = self.enter();
        let opened = tokio::select! {
            () = evicted.cancelled() => None,
            said = tokio::time::timeout(self.limit, opening(&mut stream)) => said.ok().flatten(),
        };
        self.waiting().waiting.remove(&place);
        let said = opened?;
        let (read, write) = stream.into_split();
        Some(tokio::io::join(Cursor::new(said).chain(read), write))
    }

    fn enter(&self) -> (u64, CancellationToken) {
        let mut silent = self.waiting();
        if silent.waiting.len() >= self.silent_max
            && let Some((_, oldest)) = silent.waiting.pop_first()
        {
            oldest.cancel();
        }
        let (place, evicted) = (silent.next, CancellationToken::new());
        silent.next += 1;
        silent.waiting.insert(place, evicted.clone());
        (place, evicted)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Silent> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads until it is no beginning of the preface any more. `None`: nothing more comes.
async fn opening(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut said = [0; PREFACE.len()];
    let mut length = 0;
    while PREFACE.starts_with(&said[..length]) && length < PREFACE.len() {
        match stream.read(&mut said[length..]).await {
            Ok(0) | Err(_) => return None,
            Ok(more) => length += more,
        }
    }
    Some(said[..length].to_vec())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn what_is_no_beginning_of_the_preface_opens_at_once_and_a_part_of_it_does_not() {
        let mut get: &[u8] = b"GET / HTTP/1.1\r\n";
        assert_eq!(opening(&mut get).await.as_deref(), Some(b"GET / HTTP/1.1\r\n".as_slice()));
        let mut post: &[u8] = b"P";
        assert_eq!(opening(&mut post).await, None, "it may be either, and ends");
        let (mut client, mut server) = tokio::io::duplex(64);
        for byte in PREFACE {
            client.write_all(&[*byte]).await.unwrap();
        }
        client.write_all(b"more").await.unwrap();
        assert_eq!(opening(&mut server).await.as_deref(), Some(PREFACE.as_slice()));
        let (mut client, mut server) = tokio::io::duplex(64);
        client.write_all(b"POST").await.unwrap();
        assert_eq!(opening(&mut server).await.as_deref(), Some(b"POST".as_slice()));
    }

    #[tokio::test]
    async fn whatever_trickles_in_does_not_prolong_its_time() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let openings = Openings::new(2, Duration::from_millis(300));
        let trickling = async {
            // More than its time, at any pace.
            for byte in PREFACE.iter().take(20) {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let _ = client.write_all(&[*byte]).await;
            }
        };
        let (opened, ()) = tokio::join!(openings.open(server), trickling);
        assert!(opened.is_none());
        assert!(openings.waiting().waiting.is_empty());
    }

    #[tokio::test]
    async fn the_one_that_has_waited_longest_makes_room() {
        let openings = Openings::new(2, Duration::from_secs(60));
        let (_, first) = openings.enter();
        let (second, is_second) = openings.enter();
        let (_, is_third) = openings.enter();
        assert!(first.is_cancelled() && !is_second.is_cancelled());
        openings.waiting().waiting.remove(&second);
        openings.enter();
        assert!(!is_third.is_cancelled(), "there was room");
    }
}
