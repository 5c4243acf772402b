//! A TCP line that a test can spoil: cut with a reset, silence (packets vanish, nobody is told), slow down, heal; and that can be
//! laid to another server, as an address is that fails over.
//!
//! Silence is made by no longer writing, and soon no longer reading: bytes wait here and in the kernel's buffers and flow on when
//! the line heals, as they would be sent again after a real partition. It runs on a thread of its own, so that a test may block its runtime.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result};
use carillon_servers::free_port;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

/// Chunks that are read and not written yet.
const UNDER_WAY_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    state: State,
    /// The port of the server.
    target: u16,
    /// Added to each chunk, in each direction.
    delay: Duration,
    /// Connections of an older generation are reset.
    generation: u64,
    /// Connections made before this one are silent.
    silent_before: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Silent(Towards),
    Refusing,
    Closed,
}

/// Which way bytes vanish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Towards {
    /// What clients send does not arrive; new connections are not made.
    Server,
    /// What the server answers does not arrive.
    Client,
    /// Neither.
    Both,
}

impl State {
    const fn swallows(self, way: Towards) -> bool {
        match self {
            Self::Silent(Towards::Both) => true,
            Self::Silent(towards) => {
                matches!((towards, way), (Towards::Server, Towards::Server) | (Towards::Client, Towards::Client))
            }
            Self::Open | Self::Refusing | Self::Closed => false,
        }
    }
}

/// A line from a port of its own to a server.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    line: watch::Sender<Line>,
    /// Connections made so far.
    made: Arc<AtomicU64>,
}

impl Proxy {
    /// A healthy line to a port of this machine.
    ///
    /// # Errors
    /// If no port is free.
    pub fn to(target: u16) -> Result<Self> {
        let port = free_port()?;
        let open = Line { state: State::Open, target, delay: Duration::ZERO, generation: 0, silent_before: 0 };
        let (line, seen) = watch::channel(open);
        let (ready, is_ready) = mpsc::channel();
        let made = Arc::new(AtomicU64::new(0));
        let counts = Arc::clone(&made);
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
                let _ = ready.send(());
                accept(listener, seen, &counts).await;
                Ok(())
            })
        };
        std::thread::Builder::new()
            .name("proxy".into())
            .spawn(move || {
                let outcome: std::io::Result<()> = run();
                if let Err(error) = outcome {
                    eprintln!("a proxy of the tests failed: {error}");
                }
            })
            .context("cannot start a thread")?;
        is_ready.recv().context("the proxy did not start")?;
        Ok(Self { port, line, made })
    }

    /// Where clients connect.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Resets every connection, and each new one until [`Proxy::heal`].
    pub fn cut(&self) {
        self.change(|line| {
            line.state = State::Refusing;
            line.generation += 1;
        });
    }

    /// Resets every connection; new ones are welcome.
    pub fn reset_connections(&self) {
        self.change(|line| line.generation += 1);
    }

    /// Leads to another port of this machine from now on; what stands is reset.
    pub fn lay_to(&self, target: u16) {
        self.change(|line| {
            line.target = target;
            line.generation += 1;
        });
    }

    /// Nothing gets through any more in either direction, and nobody is told.
    pub fn silence(&self) {
        self.silence_towards(Towards::Both);
    }

    /// Nothing gets through any more that way, and nobody is told.
    pub fn silence_towards(&self, way: Towards) {
        self.change(|line| line.state = State::Silent(way));
    }

    /// The connections that stand fall silent for good, as by a firewall that has forgotten them; new ones are welcome.
    pub fn silence_connections(&self) {
        let made = self.made.load(Ordering::Acquire);
        self.change(|line| line.silent_before = made);
    }

    /// Delays each chunk of bytes, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.change(|line| line.delay = delay);
    }

    /// Healthy again.
    pub fn heal(&self) {
        self.change(|line| {
            line.state = State::Open;
            line.silent_before = 0;
            line.delay = Duration::ZERO;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Line)) {
        self.line.send_modify(change);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.change(|line| {
            line.state = State::Closed;
            line.generation += 1;
        });
    }
}

async fn accept(listener: TcpListener, mut line: watch::Receiver<Line>, made: &AtomicU64) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            closed = line.wait_for(|line| line.state == State::Closed) => {
                drop(closed);
                return;
            }
        };
        if let Ok((client, _)) = accepted {
            let number = made.fetch_add(1, Ordering::AcqRel);
            tokio::spawn(carry(client, line.clone(), number));
        }
    }
}

async fn carry(mut client: TcpStream, mut line: watch::Receiver<Line>, number: u64) {
    let Line { generation, target, .. } = *line.borrow();
    // In silence the other side is not even reached.
    if line.wait_for(|line| !line.state.swallows(Towards::Server)).await.is_err()
        || line.borrow().state == State::Refusing
    {
        return reset(&client);
    }
    let mut server = match TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, target))).await {
        Ok(server) if line.borrow().generation == generation => server,
        _ => return reset(&client),
    };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let was_cut = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let both = async {
            tokio::join!(
                pump(from_client, to_server, Towards::Server, line.clone(), number),
                pump(from_server, to_client, Towards::Client, line.clone(), number)
            )
        };
        let mut line = line.clone();
        tokio::select! {
            _ = both => false,
            _ = line.wait_for(|line| line.generation != generation) => true,
        }
    };
    if was_cut {
        reset(&client);
        reset(&server);
    }
}

/// Carries one direction to its end. What is read is under way for as long as the delay says, whatever follows it.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Towards,
    mut line: watch::Receiver<Line>,
    number: u64,
) {
    let (sent, mut under_way) = tokio::sync::mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY_MAX);
    let seen = line.clone();
    let read = async move {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count) = from.read(&mut bytes).await {
            let arrives = Instant::now() + seen.borrow().delay;
            if sent.send((arrives, bytes[..count].to_vec())).await.is_err() || count == 0 {
                return;
            }
        }
    };
    let write = async move {
        while let Some((arrives, bytes)) = under_way.recv().await {
            tokio::time::sleep_until(arrives).await;
            if line.wait_for(|line| !line.state.swallows(way) && number >= line.silent_before).await.is_err() {
                return;
            }
            if bytes.is_empty() {
                let _ = to.shutdown().await;
                return;
            }
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::pin!(write);
    tokio::select! {
        () = read => write.await,
        () = &mut write => {}
    }
}

/// Lets the close that follows be a reset instead of an orderly end.
fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Redis;
    use crate::resp::RespClient;

    #[tokio::test]
    async fn a_line_can_be_silenced_cut_and_healed() {
        let redis = Redis::start().await.unwrap();
        let proxy = Proxy::to(redis.port()).unwrap();
        let mut client = RespClient::connect(proxy.port()).unwrap();
        assert_eq!(client.command(&["PING"]).unwrap().text(), Some("PONG"));

        proxy.silence_towards(Towards::Client);
        client.send(&["SET", "arrived", "1"]).unwrap();
        crate::wait_until("what was sent to arrive", Duration::from_secs(5), || {
            let arrived = redis.command(&["GET", "arrived"]).unwrap();
            std::future::ready(if arrived.text() == Some("1") { Ok(()) } else { Err("it has not") })
        })
        .await
        .unwrap();
        proxy.silence_towards(Towards::Server);
        assert_eq!(client.receive().unwrap().text(), Some("OK"), "the answer passes once that way is open");
        proxy.silence();
        let (answer, answered) = mpsc::channel();
        std::thread::spawn(move || {
            let outcome = client.command(&["PING"]).map(|reply| reply.text().map(str::to_owned));
            let _ = answer.send(outcome);
            client
        });
        assert!(answered.recv_timeout(Duration::from_millis(100)).is_err(), "nothing gets through");
        proxy.heal();
        let reply = answered.recv_timeout(Duration::from_secs(5)).unwrap().unwrap();
        assert_eq!(reply.as_deref(), Some("PONG"), "and nothing is lost");

        let mut client = RespClient::connect(proxy.port()).unwrap();
        client.command(&["PING"]).unwrap();
        proxy.cut();
        assert!(client.command(&["PING"]).is_err());
        assert!(RespClient::connect(proxy.port()).and_then(|mut client| client.command(&["PING"])).is_err());
        proxy.heal();
        RespClient::connect(proxy.port()).unwrap().command(&["PING"]).unwrap();
    }

    #[tokio::test]
    async fn a_line_can_be_laid_to_another_server() {
        let servers = [Redis::start().await.unwrap(), Redis::start().await.unwrap()];
        servers[1].command(&["SET", "name", "second"]).unwrap();
        let proxy = Proxy::to(servers[0].port()).unwrap();
        let mut client = RespClient::connect(proxy.port()).unwrap();
        client.command(&["PING"]).unwrap();
        proxy.lay_to(servers[1].port());
        assert!(client.command(&["PING"]).is_err(), "what stood is reset");
        let mut client = RespClient::connect(proxy.port()).unwrap();
        assert_eq!(client.command(&["GET", "name"]).unwrap().text(), Some("second"));
    }
}
