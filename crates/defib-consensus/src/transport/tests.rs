use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Receiver;
use nix::sys::eventfd::EventFd;

use super::*;
use crate::test_tls::certificates;

const PATIENCE: Duration = Duration::from_secs(20);

/// Who connected, if anybody was let in.
type Accepted = Option<(u64, Box<Connection>)>;

struct Side {
    connector: Connector,
    events: Receiver<TransportEvent>,
}

fn side(tls: &PeerTls) -> Side {
    let (sender, events) = crossbeam_channel::bounded(16);
    Side { connector: Connector::new(tls.clone(), sender, Arc::new(EventFd::new().unwrap())), events }
}

/// `from` dials `to`; answers what each side saw.
fn connect(
    tls: &BTreeMap<u64, PeerTls>,
    from: &PeerTls,
    to: u64,
    expected: u64,
) -> (Result<Box<Connection>, String>, Accepted) {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let (client, server) = (side(from), side(&tls[&to]));
    let address = listener.local_addr().unwrap().to_string();
    client.connector.dial(expected, PeerAddress { address, server_name: format!("replica-{expected}") });
    let (socket, from) = listener.accept().unwrap();
    server.connector.accept(socket, from);
    let dialed = match client.events.recv_timeout(PATIENCE).unwrap() {
        TransportEvent::Dialed { result, .. } => result,
        TransportEvent::Accepted { .. } => panic!("it dialed"),
    };
    drop(server.connector);
    let accepted = match server.events.recv_timeout(PATIENCE) {
        Ok(TransportEvent::Accepted { peer, connection }) => Some((peer, connection)),
        _ => None,
    };
    (dialed, accepted)
}

/// Runs both sides until `count` messages arrived.
fn exchange(from: &mut Connection, outbox: &mut Outbox, to: &mut Connection, count: usize) -> Vec<Bytes> {
    let mut messages = Vec::new();
    for _ in 0..10_000_000 {
        from.flush(outbox).unwrap();
        to.read(&mut messages).unwrap();
        if messages.len() >= count {
            return messages;
        }
    }
    panic!("only {} of {count} messages arrived", messages.len());
}

#[test]
fn peers_recognise_each_other_and_messages_arrive_in_order() {
    let tls = certificates(&[1, 2]);
    let (dialed, accepted) = connect(&tls, &tls[&1], 2, 2);
    let (mut out, (peer, mut inbound)) = (dialed.unwrap(), accepted.unwrap());
    assert_eq!(peer, 1);
    let mut outbox = Outbox::default();
    let sent: Vec<Bytes> = (0..500_usize).map(|number| vec![b'x'; number * 40].into()).collect();
    for message in &sent {
        assert!(outbox.push(message.clone()));
    }
    assert_eq!(exchange(&mut out, &mut outbox, &mut inbound, 500), sent);
}

#[test]
fn a_snapshot_lets_ordinary_messages_pass() {
    let tls = certificates(&[1, 2]);
    let (dialed, accepted) = connect(&tls, &tls[&1], 2, 2);
    let (mut out, (_, mut inbound)) = (dialed.unwrap(), accepted.unwrap());
    let mut outbox = Outbox::default();
    let snapshot = Bytes::from(vec![7; 20 << 20]);
    assert!(outbox.push_snapshot(snapshot.clone()));
    assert!(!outbox.push_snapshot(snapshot.clone()), "one at a time");
    assert!(!out.flush(&mut outbox).unwrap(), "more than the socket takes at once");
    outbox.push(Bytes::from_static(b"heartbeat"));
    let messages = exchange(&mut out, &mut outbox, &mut inbound, 2);
    assert_eq!(messages[0], "heartbeat");
    assert_eq!(messages[1].len(), snapshot.len());
    assert!(messages[1] == snapshot);
}

#[test]
fn a_stranger_is_refused() {
    let tls = certificates(&[1, 2]);
    let strangers = certificates(&[1, 2]);
    let (_, accepted) = connect(&tls, &strangers[&1], 2, 2);
    assert!(accepted.is_none(), "its authority is unknown");
}

#[test]
fn a_certificate_that_is_no_replicas_is_refused() {
    let tls = certificates(&[1, 2]);
    let mut nobody = tls.clone();
    for side in nobody.values_mut() {
        side.identify = Arc::new(|_| None);
    }
    let (dialed, accepted) = connect(&nobody, &tls[&1], 2, 2);
    assert!(accepted.is_none());
    drop(dialed);
}

#[test]
fn whoever_answers_in_anothers_place_is_refused() {
    let tls = certificates(&[1, 2, 3]);
    let (dialed, _) = connect(&tls, &tls[&1], 3, 2);
    let error = dialed.unwrap_err();
    assert!(error.contains("not valid for name") || error.contains("NotValidForName"), "{error}");
}

#[test]
fn plain_garbage_is_refused() {
    let tls = certificates(&[1]);
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let server = side(&tls[&1]);
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let (socket, from) = listener.accept().unwrap();
    server.connector.accept(socket, from);
    let Side { connector, events } = server;
    drop(connector);
    assert!(events.recv_timeout(PATIENCE).is_err(), "the handshake's thread ends without an event");
}

/// One place, and what was said of those that got none.
struct OnePlace {
    place: Arc<()>,
    refused: Mutex<Vec<String>>,
}

impl Doorkeeper for OnePlace {
    fn place(&self, _: IpAddr) -> Option<Box<dyn Send>> {
        (Arc::strong_count(&self.place) == 1).then(|| Box::new(self.place.clone()) as Box<dyn Send>)
    }
    fn refused(&self, _: SocketAddr, why: &dyn fmt::Display) {
        self.refused.lock().unwrap().push(why.to_string());
    }
}

#[test]
fn whoever_begins_handshakes_and_ends_none_gets_no_further_place() {
    let mut tls = certificates(&[1, 2]);
    let door = Arc::new(OnePlace { place: Arc::new(()), refused: Mutex::default() });
    tls.get_mut(&2).unwrap().doorkeeper = door.clone();
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let server = side(&tls[&2]);
    let come = || {
        let client = TcpStream::connect(address).unwrap();
        let (socket, from) = listener.accept().unwrap();
        server.connector.accept(socket, from);
        client
    };
    let silent = come();
    let mut refused = come();
    refused.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(refused.read(&mut [0]).unwrap(), 0, "its connection is closed without a word");
    let said = door.refused.lock().unwrap().clone();
    assert!(said.len() == 1 && said[0].contains("too many handshakes"), "{said:?}");
    // The first one goes, and there is room for a peer.
    drop(silent);
    while Arc::strong_count(&door.place) > 1 {
        std::thread::yield_now();
    }
    let (client, expected) = (side(&tls[&1]), 2);
    let peer = PeerAddress { address: address.to_string(), server_name: "replica-2".into() };
    client.connector.dial(expected, peer);
    let (socket, from) = listener.accept().unwrap();
    server.connector.accept(socket, from);
    let Ok(TransportEvent::Accepted { peer, .. }) = server.events.recv_timeout(PATIENCE) else {
        panic!("a peer is let in: {:?}", door.refused.lock().unwrap())
    };
    assert_eq!(peer, 1);
}

#[test]
fn a_full_outbox_drops_the_oldest() {
    let mut outbox = Outbox::default();
    let message = Bytes::from(vec![1; 10 << 20]);
    assert!(outbox.push(message.clone()) && outbox.push(message.clone()) && outbox.push(message.clone()));
    assert!(!outbox.push(Bytes::from(vec![2; 10 << 20])));
    let mut buffer = Vec::new();
    let mut frames = Vec::new();
    while outbox.next_frames(&mut buffer) {
        frames.push(buffer[outbox::FRAME_HEADER]);
    }
    assert_eq!(frames, [1, 1, 2]);
    assert!(outbox.is_empty() && !outbox.clear());
}

#[test]
fn a_busy_port_is_a_clear_error() {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let error = listen(listener.local_addr().unwrap()).unwrap_err().to_string();
    assert!(error.contains("is another replica running there"), "{error}");
}
