//! An event loop that is moved by hand: what happens in one round does not depend on who is fast.

use crate::event_loop::EventLoop;
use crate::timers::Owner;
use crate::turns::Turn;
use crate::{Relay, RelayConfig};
use mio::Events;
use postrider_ingress::example;
use postrider_model::Timestamp;
use postrider_model::snapshot::{Host, NextHop, Scheme, Target};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
/// A short turn, so that what the sockets hold is more.
const SHORT: Turn = Turn { of: 1, rounds: 2, octets: 32 << 10 };

struct World {
    relay: Relay,
    event_loop: EventLoop,
    events: Events,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

/// A peer of the relay that waits for nothing.
struct Peer(TcpStream);

impl Peer {
    fn new(stream: TcpStream) -> Peer {
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        Peer(stream)
    }

    fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    /// Writes until the sockets are full; how many octets they took.
    fn fill(&mut self) -> usize {
        let line = [&[b'x'; 998][..], b"\r\n"].concat();
        let block = line.repeat(64);
        let mut filled = 0;
        loop {
            match self.0.write(&block[filled % line.len()..]) {
                Ok(written) => filled += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return filled,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn heard(&mut self) -> String {
        let mut octets = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => octets.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        String::from_utf8(octets).unwrap()
    }
}

impl World {
    fn new(next_hop: SocketAddr) -> World {
        let dir = tempfile::tempdir().unwrap();
        let mut snapshot = (*example(Timestamp::default()).0.snapshot).clone();
        Arc::make_mut(&mut snapshot.listeners[0]).address = "127.0.0.1:0".parse().unwrap();
        let hop = NextHop { scheme: Scheme::Smtp, host: Host::Address(next_hop), credentials: None };
        Arc::make_mut(&mut snapshot.routes[0]).to = Target::Hosts(vec![hop]);
        let config = RelayConfig {
            shards: 1,
            segment_size_bytes: 4 << 20,
            ..RelayConfig::new(Arc::new(snapshot), dir.path())
        };
        let (relay, mut event_loops) = Relay::assemble(config).unwrap();
        let mut event_loop = event_loops.remove(0);
        event_loop.turns.whole = SHORT;
        let address = relay.addresses()[0].1;
        World { relay, event_loop, events: Events::with_capacity(64), address, _dir: dir }
    }

    fn round(&mut self) {
        // Somebody rings, so that a round never waits.
        self.event_loop.inbox.ring();
        assert!(self.event_loop.go_round(&mut self.events));
    }

    /// Rounds until something is there.
    fn until<T>(&mut self, mut what: impl FnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            self.round();
            if let Some(found) = what() {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not come");
        }
    }

    fn until_heard(&mut self, peer: &mut Peer, wanted: &str) {
        let mut heard = String::new();
        self.until(|| {
            heard.push_str(&peer.heard());
            heard.contains(wanted).then_some(())
        });
    }

    fn client(&mut self) -> Peer {
        let mut client = Peer::new(TcpStream::connect(self.address).unwrap());
        self.until_heard(&mut client, "220 ");
        client.say("EHLO client.example\r\n");
        self.until_heard(&mut client, "250 ");
        client
    }

    fn begin_message(&mut self, client: &mut Peer) {
        client.say("MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n");
        self.until_heard(client, "354 ");
    }

    /// Those who have another turn.
    fn again(&self) -> Vec<Owner> {
        self.event_loop.turns.again.iter().copied().collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.relay.stop(Duration::ZERO);
    }
}

#[test]
fn a_client_that_sends_without_end_has_a_turn_like_the_others() {
    let mut world = World::new("127.0.0.1:1".parse().unwrap());
    let (mut fast, mut other) = (world.client(), world.client());
    world.begin_message(&mut fast);
    fast.say("Subject: x\r\n\r\n");
    let filled = fast.fill();
    assert!(filled > 3 * crate::outbound::READ_MAX, "the sockets hold {filled} octets, more than a turn");
    other.say("NOOP\r\n");
    world.round();
    assert!(other.heard().starts_with("250 "), "the other client has its answer in the same round");
    assert!(matches!(world.again()[..], [Owner::Session { .. }]), "{:?}", world.again());
    // Nothing comes, but the turn does: the rest is taken in rounds.
    world.until(|| (fast.fill() > 0).then_some(()));
}

#[test]
fn a_connection_with_much_to_send_has_a_turn_like_the_others() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut world = World::new(listener.local_addr().unwrap());
    let (mut client, mut other) = (world.client(), world.client());
    world.begin_message(&mut client);
    client.say("Subject: x\r\n\r\n");
    for _ in 0..25 {
        client.say(&"A line that is as long as most lines of most messages are.\r\n".repeat(1_000));
        world.round();
        world.round();
    }
    client.say(".\r\n");
    let mut server = world.until(|| listener.accept().ok().map(|(stream, _)| Peer::new(stream)));
    server.say("220 mx\r\n");
    world.until_heard(&mut server, "EHLO");
    server.say("250-mx\r\n250 PIPELINING\r\n");
    world.until_heard(&mut server, "DATA\r\n");
    // The answer to the content comes when its mark and the message are safe.
    world.until_heard(&mut client, "250 ");
    server.say("250 ok\r\n250 ok\r\n354 go\r\n");
    let mut waited = false;
    let mut content = 0;
    let begun = Instant::now();
    while content < 1_500_000 {
        other.say("RSET\r\n");
        world.round();
        let turns = world.again();
        waited |= matches!(turns[..], [Owner::Connection { .. }]);
        assert!(other.heard().starts_with("250 "), "the other client has its answer in the same round");
        content += server.heard().len();
        assert!(begun.elapsed() < PATIENCE, "{content} octets came");
    }
    assert!(waited, "a turn is shorter than the message");
}
