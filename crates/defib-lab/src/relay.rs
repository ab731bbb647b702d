//! A switch between agents and replicas, in user space: relays for TCP and UDP that can be cut, slowed and made lossy
//! without root and without network namespaces.
//!
//! A cut is silence, as of a switch that died: datagrams vanish, connections stall, and nobody is told by a
//! FIN or an RST.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Sources that a UDP relay keeps apart at once.
const SOURCES_MAX: usize = 512;
/// Delayed datagrams that are under way at once in one direction; more are dropped, as a full queue drops them.
const DELAYED_MAX: usize = 4096;

/// What the switch does to traffic, in both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Nothing passes.
    pub cut: bool,
    /// Everything takes so much longer.
    pub delay: Duration,
    /// Of a thousand datagrams so many vanish.
    pub loss_per_mille: u32,
    /// Nothing passes of what comes from this address, nor back to it.
    pub cut_off: Option<IpAddr>,
    /// Somebody between forges: before each datagram to the target goes the same one with another content, which
    /// whoever has no key can't make right.
    pub forged: bool,
}

impl Weather {
    fn cuts(&self, source: SocketAddr) -> bool {
        self.cut || self.cut_off == Some(source.ip())
    }
}

/// Sets the weather of all relays that were opened on it.
#[derive(Debug, Clone)]
pub struct Switch(Arc<watch::Sender<Weather>>);

impl Default for Switch {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Weather::default())))
    }
}

impl Switch {
    /// Changes the weather at once.
    pub fn set(&self, weather: Weather) {
        self.0.send_replace(weather);
    }

    /// Lets nothing pass any more.
    pub fn cut(&self) {
        self.set(Weather { cut: true, ..Weather::default() });
    }

    /// Good weather.
    pub fn heal(&self) {
        self.set(Weather::default());
    }
}

/// An open relay; closed when dropped.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// Opens a relay for connections to `target`. Where nobody listens there, connections are closed at once.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn tcp(target: SocketAddr, switch: &Switch) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let weather = switch.0.subscribe();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, source)) => {
                            connections.spawn(connection(stream, source, target, weather.clone()));
                        }
                        Err(error) => {
                            tracing::warn!(%error, "relay can't accept");
                            sleep(Duration::from_millis(10)).await;
                        }
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { address, _tasks: tasks })
    }

    /// Opens a relay for datagrams to `target` and their answers.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn udp(target: SocketAddr, switch: &Switch) -> io::Result<Self> {
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        let address = front.local_addr()?;
        let weather = switch.0.subscribe();
        let mut tasks = JoinSet::new();
        tasks.spawn(datagrams(front, target, weather));
        Ok(Self { address, _tasks: tasks })
    }
}

async fn passable(client: SocketAddr, weather: &mut watch::Receiver<Weather>) {
    // The sender lives as long as the switch; when it is gone, nothing passes any more.
    if weather.wait_for(|weather| !weather.cuts(client)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn connection(
    client: TcpStream,
    source: SocketAddr,
    target: SocketAddr,
    mut weather: watch::Receiver<Weather>,
) {
    passable(source, &mut weather).await;
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // A process that was killed takes down both directions; one that only closed its half may still read.
    tokio::join!(
        pump(source, from_client, to_server, weather.clone()),
        pump(source, from_server, to_client, weather)
    );
}

async fn pump(
    client: SocketAddr,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await;
        passable(client, &mut weather).await;
        let delay = weather.borrow().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        match read {
            Ok(count @ 1..) => {
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            Ok(0) | Err(_) => {
                let _ = to.shutdown().await;
                return;
            }
        }
    }
}

/// A small generator of its own, so that a lossy run can be repeated.
fn lost(state: &mut u64, per_mille: u32) -> bool {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % 1000 < u64::from(per_mille)
}

async fn datagrams(front: Arc<UdpSocket>, target: SocketAddr, weather: watch::Receiver<Weather>) {
    let mut sources: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut answers = JoinSet::new();
    let mut later = JoinSet::new();
    let mut chance = 0x9e37_79b9_7f4a_7c15;
    let mut buffer = vec![0; 2048];
    loop {
        while later.try_join_next().is_some() {}
        let Ok((count, source)) = front.recv_from(&mut buffer).await else { continue };
        let now = *weather.borrow();
        if now.cuts(source) || lost(&mut chance, now.loss_per_mille) {
            continue;
        }
        let back = match sources.get(&source) {
            Some(back) => Arc::clone(back),
            None => {
                if sources.len() >= SOURCES_MAX {
                    sources.clear();
                    answers.abort_all();
                }
                let Ok(back) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { continue };
                if back.connect(target).await.is_err() {
                    continue;
                }
                let back = Arc::new(back);
                sources.insert(source, Arc::clone(&back));
                answers.spawn(answers_to(source, Arc::clone(&back), Arc::clone(&front), weather.clone()));
                back
            }
        };
        if now.forged
            && let Some((last, rest)) = buffer[..count].split_last()
        {
            let _ = back.send(&[rest, &[!last]].concat()).await;
        }
        if now.delay.is_zero() {
            // Where nobody listens, the datagram is lost, as on any network.
            let _ = back.send(&buffer[..count]).await;
        } else if later.len() < DELAYED_MAX {
            let datagram = buffer[..count].to_vec();
            later.spawn(async move {
                sleep(now.delay).await;
                let _ = back.send(&datagram).await;
            });
        }
    }
}

async fn answers_to(
    source: SocketAddr,
    back: Arc<UdpSocket>,
    front: Arc<UdpSocket>,
    weather: watch::Receiver<Weather>,
) {
    let mut later = JoinSet::new();
    let mut chance = 0x2545_f491_4f6c_dd1d ^ u64::from(source.port());
    let mut buffer = vec![0; 2048];
    loop {
        while later.try_join_next().is_some() {}
        // An error tells that an earlier datagram met nobody; each is told once.
        let Ok(count) = back.recv(&mut buffer).await else { continue };
        let now = *weather.borrow();
        if now.cuts(source) || lost(&mut chance, now.loss_per_mille) {
            continue;
        }
        if now.delay.is_zero() {
            let _ = front.send_to(&buffer[..count], source).await;
        } else if later.len() < DELAYED_MAX {
            let (datagram, front) = (buffer[..count].to_vec(), Arc::clone(&front));
            later.spawn(async move {
                sleep(now.delay).await;
                let _ = front.send_to(&datagram, source).await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(20);
    /// Long enough that what passes at all has passed; a machine that is slower makes these tests weaker, never red.
    const WHILE: Duration = Duration::from_millis(100);

    async fn echo_tcp() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        address
    }

    async fn echo_udp() -> SocketAddr {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            while let Ok((count, source)) = socket.recv_from(&mut buffer).await {
                socket.send_to(&buffer[..count], source).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn a_cut_connection_stalls_without_an_end_and_goes_on_when_healed() {
        let switch = Switch::default();
        let relay = Relay::tcp(echo_tcp().await, &switch).await.unwrap();
        let mut stream = TcpStream::connect(relay.address).await.unwrap();
        let mut buffer = [0; 4];
        stream.write_all(b"ping").await.unwrap();
        timeout(SOON, stream.read_exact(&mut buffer)).await.unwrap().unwrap();
        switch.cut();
        stream.write_all(b"pong").await.unwrap();
        assert!(timeout(WHILE, stream.read_exact(&mut buffer)).await.is_err(), "data passed a cut");
        switch.heal();
        timeout(SOON, stream.read_exact(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer, b"pong");
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_seen_only_while_there_is_a_way() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let switch = Switch::default();
        let relay = Relay::tcp(listener.local_addr().unwrap(), &switch).await.unwrap();
        let mut stream = TcpStream::connect(relay.address).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.read_exact(&mut [0; 1]).await.unwrap();
        switch.cut();
        drop(server);
        let mut buffer = [0; 1];
        assert!(timeout(WHILE, stream.read(&mut buffer)).await.is_err(), "an end passed a cut");
        switch.heal();
        assert!(matches!(timeout(SOON, stream.read(&mut buffer)).await.unwrap(), Ok(0) | Err(_)));
    }

    #[tokio::test]
    async fn datagrams_pass_both_ways_and_vanish_in_a_cut() {
        let switch = Switch::default();
        let relay = Relay::udp(echo_udp().await, &switch).await.unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut buffer = [0; 4];
        socket.send_to(b"one", relay.address).await.unwrap();
        timeout(SOON, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
        switch.cut();
        socket.send_to(b"two", relay.address).await.unwrap();
        assert!(timeout(WHILE, socket.recv_from(&mut buffer)).await.is_err(), "a datagram passed a cut");
        switch.set(Weather { delay: Duration::from_millis(5), ..Weather::default() });
        socket.send_to(b"six", relay.address).await.unwrap();
        timeout(SOON, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer[..3], b"six", "what was cut must not come later");
    }

    #[tokio::test]
    async fn one_source_is_cut_off_and_the_others_are_not() {
        let switch = Switch::default();
        let relay = Relay::udp(echo_udp().await, &switch).await.unwrap();
        let off = IpAddr::from([127, 0, 0, 2]);
        let [cut, other] = [UdpSocket::bind((off, 0)).await, UdpSocket::bind("127.0.0.1:0").await];
        let (cut, other) = (cut.unwrap(), other.unwrap());
        switch.set(Weather { cut_off: Some(off), ..Weather::default() });
        let mut buffer = [0; 4];
        cut.send_to(b"one", relay.address).await.unwrap();
        other.send_to(b"two", relay.address).await.unwrap();
        timeout(SOON, other.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert!(timeout(WHILE, cut.recv_from(&mut buffer)).await.is_err(), "a datagram passed a cut");
        switch.heal();
        cut.send_to(b"six", relay.address).await.unwrap();
        timeout(SOON, cut.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer[..3], b"six");
    }

    #[tokio::test]
    async fn a_forged_datagram_goes_before_the_true_one() {
        let switch = Switch::default();
        let relay = Relay::udp(echo_udp().await, &switch).await.unwrap();
        switch.set(Weather { forged: true, ..Weather::default() });
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.send_to(&[1, 2, 3], relay.address).await.unwrap();
        let mut buffer = [0; 4];
        for wanted in [[1, 2, 252], [1, 2, 3]] {
            let (count, _) = timeout(SOON, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
            assert_eq!(buffer[..count], wanted);
        }
    }

    #[test]
    fn loss_is_about_what_was_asked_for() {
        let mut state = 7;
        let count = (0..100_000).filter(|_| lost(&mut state, 50)).count();
        assert!((4_000..6_000).contains(&count), "{count}");
        assert!((0..1000).all(|_| !lost(&mut state, 0)) && (0..1000).all(|_| lost(&mut state, 1000)));
    }
}
