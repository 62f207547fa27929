//! Plain streams, listeners and dialling, over loopback.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use bytes::BytesMut;
use common::{End, Pair, dial, dial_admitted};
use mio::Poll;
use mio::net::{UnixListener, UnixStream};
use postrider_net::{
    AttemptError, DialError, DialOptions, DialOutcome, Guard, RaceLimits, ReadOutcome, Refusal, Stream,
    WriteOutcome, listen,
};
use std::io::IoSlice;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// An address where nobody listens.
fn deserted() -> SocketAddr {
    TcpListener::bind(loopback(0)).unwrap().local_addr().unwrap()
}

#[test]
fn slices_leave_in_one_write_and_arrive_in_order() {
    let mut pair = Pair::tcp();
    let slices = [IoSlice::new(b"MAIL "), IoSlice::new(b""), IoSlice::new(b"FROM:<>\r\n")];
    assert_eq!(pair.client.write_vectored(&slices).unwrap(), WriteOutcome::Written(14));
    pair.until(|pair| pair.server_read == b"MAIL FROM:<>\r\n").unwrap();
}

#[test]
fn both_kinds_of_buffer_take_the_same() {
    let mut pair = Pair::tcp();
    pair.send(End::Client, b"first");
    pair.until(|pair| pair.server_read == b"first").unwrap();
    let mut buffer = BytesMut::from(&b"before "[..]);
    assert_eq!(pair.server.read_into(&mut buffer, 64).unwrap(), ReadOutcome::WouldBlock);
    assert_eq!(&buffer[..], b"before ");
    pair.send(End::Client, b"second");
    let outcome = loop {
        // Without waiting for the event: reads ask the kernel until events are reported.
        match pair.server.read_into(&mut buffer, 64).unwrap() {
            ReadOutcome::WouldBlock => pair.until(|pair| !pair.server_read.is_empty()).unwrap(),
            outcome => break outcome,
        }
        if pair.server_read == b"firstsecond" {
            return;
        }
    };
    assert_eq!(outcome, ReadOutcome::Data(6));
    assert_eq!(&buffer[..], b"before second");
}

#[test]
fn a_peer_that_does_not_read_blocks_the_writer_and_no_more() {
    let mut pair = Pair::tcp();
    let chunk = [b'x'; 65_536];
    let mut sent = 0;
    while let WriteOutcome::Written(n) = pair.client.write(&chunk).unwrap() {
        sent += n;
    }
    assert!(sent > 0);
    pair.until(|pair| pair.server_read.len() == sent).unwrap();
    pair.send(End::Client, b"and on");
    pair.until(|pair| pair.server_read.len() == sent + 6).unwrap();
}

#[test]
fn the_end_of_a_stream_behind_its_last_octets_is_seen() {
    let mut pair = Pair::tcp();
    pair.send(End::Client, b"QUIT\r\n");
    pair.client.close();
    pair.until(|pair| pair.server_read == b"QUIT\r\n").unwrap();
    loop {
        match pair.server.read_into(&mut Vec::new(), 64).unwrap() {
            ReadOutcome::Closed => break,
            ReadOutcome::WouldBlock => {
                pair.until(|pair| pair.server.peer_address().is_some()).unwrap();
            }
            ReadOutcome::Data(_) => panic!("nothing more was sent"),
        }
    }
}

#[test]
fn a_unix_socket_is_a_stream_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lmtp");
    let listener = UnixListener::bind(&path).unwrap();
    let client = Stream::connect_unix(&path).unwrap();
    let server: UnixStream = listener.accept().unwrap().0;
    let mut pair = Pair::of(Poll::new().unwrap(), client, Stream::from_unix(server));
    assert_eq!(pair.client.peer_address(), None);
    pair.send(End::Client, b"LHLO relay\r\n");
    pair.until(|pair| pair.server_read == b"LHLO relay\r\n").unwrap();
    assert!(Stream::connect_unix(&directory.path().join("none")).is_err());
}

#[test]
fn shards_share_a_port_and_get_every_connection_between_them() {
    let listeners = listen(loopback(0), 3).unwrap();
    let address = listeners[0].address();
    assert!(listeners.iter().all(|listener| listener.address() == address));
    let clients: Vec<_> = (0..30).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    let mut accepted = 0;
    for listener in &listeners {
        while let Some((stream, peer)) = listener.accept().unwrap() {
            assert_eq!(stream.peer_address(), Some(peer));
            accepted += 1;
        }
    }
    assert_eq!(accepted, clients.len());
}

#[test]
fn a_port_that_somebody_has_is_not_shared_in_silence() {
    let first = listen(loopback(0), 2).unwrap();
    let error = listen(first[0].address(), 2).unwrap_err().to_string();
    assert!(error.contains("another Postrider"), "{error}");
    let address = first[0].address();
    // A connection that lingers does not keep a restarted relay from its port.
    let client = std::net::TcpStream::connect(address).unwrap();
    drop(first);
    listen(address, 2).unwrap();
    drop(client);
}

#[test]
fn the_next_address_is_tried_when_one_refuses() {
    let listener = TcpListener::bind(loopback(0)).unwrap();
    let address = listener.local_addr().unwrap();
    let outcome = dial(&mut Poll::new().unwrap(), vec![deserted(), address], &DialOptions::default());
    let DialOutcome::Connected(connected) = outcome else { panic!("{outcome:?}") };
    assert_eq!(connected.address, address);
    assert_eq!(Some(connected.local), connected.stream.local_address());
}

#[test]
fn a_dial_without_success_names_every_address_and_its_error() {
    let addresses = vec![deserted(), deserted()];
    let outcome = dial(&mut Poll::new().unwrap(), addresses.clone(), &DialOptions::default());
    let DialOutcome::Failed(errors) = outcome else { panic!("{outcome:?}") };
    assert_eq!(errors.iter().map(|error| error.address).collect::<Vec<_>>(), addresses);
    assert!(errors.iter().all(|error| !error.error.is_ours()), "{errors:?}");
    let DialOutcome::Failed(errors) = dial(&mut Poll::new().unwrap(), vec![], &DialOptions::default()) else {
        panic!("connected to nobody");
    };
    assert!(errors.is_empty());
}

/// An address that never answers: its listener's queue is full, so that the kernel drops what comes.
fn silent() -> (SocketAddr, Vec<std::net::TcpStream>, socket2::Socket) {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&loopback(0).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let (mut queued, patience) = (Vec::new(), Duration::from_millis(100));
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, patience) {
        queued.push(stream);
    }
    (address, queued, listener)
}

#[test]
fn a_silent_address_is_overtaken_by_the_next() {
    let (silent, _queued, _listener) = silent();
    let listener = TcpListener::bind(loopback(0)).unwrap();
    let address = listener.local_addr().unwrap();
    let outcome = dial(&mut Poll::new().unwrap(), vec![silent, address], &DialOptions::default());
    let DialOutcome::Connected(connected) = outcome else { panic!("{outcome:?}") };
    assert_eq!(connected.address, address);
}

#[test]
fn a_silent_address_is_given_up_after_its_time() {
    let (silent, _queued, _listener) = silent();
    let limits = RaceLimits { attempt_timeout: Duration::from_millis(50), ..RaceLimits::default() };
    let options = DialOptions { limits, ..DialOptions::default() };
    let DialOutcome::Failed(errors) = dial(&mut Poll::new().unwrap(), vec![silent], &options) else {
        panic!("connected to a full queue")
    };
    assert!(matches!(errors[..], [DialError { error: AttemptError::TimedOut(_), .. }]), "{errors:?}");
}

#[test]
fn a_source_that_we_do_not_have_is_our_fault() {
    let listener = TcpListener::bind(loopback(0)).unwrap();
    let address = listener.local_addr().unwrap();
    let fails = |bind: &str| {
        let options = DialOptions { bind: vec![bind.parse().unwrap()], ..DialOptions::default() };
        match dial(&mut Poll::new().unwrap(), vec![address], &options) {
            DialOutcome::Failed(mut errors) => errors.remove(0).error,
            DialOutcome::Connected(connected) => panic!("{connected:?}"),
        }
    };
    assert!(matches!(fails("192.0.2.77"), AttemptError::Bind { .. }));
    assert!(fails("192.0.2.77").is_ours());
    assert!(matches!(fails("2001:db8::1"), AttemptError::NoSource(false)));
}

#[test]
fn a_source_that_we_have_is_used() {
    let listener = TcpListener::bind(loopback(0)).unwrap();
    let options = DialOptions { bind: vec!["127.0.0.9".parse().unwrap()], ..DialOptions::default() };
    let outcome = dial(&mut Poll::new().unwrap(), vec![listener.local_addr().unwrap()], &options);
    let DialOutcome::Connected(connected) = outcome else { panic!("{outcome:?}") };
    assert_eq!(connected.local.ip().to_string(), "127.0.0.9");
}

#[test]
fn what_the_guard_admits_is_dialled() {
    let listener = TcpListener::bind(loopback(0)).unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(Guard::default().admit(address).unwrap_err().refusal, Refusal::Loopback);
    let guard = Guard::new(Vec::new(), vec!["127.0.0.0/8".parse().unwrap()]);
    let candidates = vec![guard.admit(address).unwrap()];
    let outcome = dial_admitted(&mut Poll::new().unwrap(), candidates, &DialOptions::default());
    assert!(matches!(outcome, DialOutcome::Connected(_)));
}
