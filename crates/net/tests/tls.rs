//! Streams under TLS, both ends ours, over loopback.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{End, Pair, StreamErrorAt, client_tls, server_tls};
use postrider_model::snapshot::{TlsFiles, TlsLevel};
use postrider_net::{
    CertificateError, CertificateStore, ClientTls, PeerCertificate, ReadOutcome, SelfSigned, ServerTls,
    StreamError, TlsInfo, TlsState, WriteOutcome,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

fn handshake(
    pair: &mut Pair,
    server: &ServerTls,
    client: &ClientTls,
    level: TlsLevel,
    host: &str,
) -> Result<(TlsInfo, TlsInfo), (StreamErrorAt, StreamError)> {
    pair.server.start_tls_server(server, 0).unwrap();
    pair.client.start_tls_client(client, level, host, 0).unwrap();
    assert_eq!(pair.client.tls_state(), TlsState::Handshaking);
    pair.until(|pair| {
        pair.client.tls_state() == TlsState::Established && pair.server.tls_state() == TlsState::Established
    })?;
    // The server's tickets reach the client, so that it can resume.
    pair.send(End::Server, b"220 ready\r\n");
    pair.until(|pair| pair.client_read == b"220 ready\r\n")?;
    pair.client_read.clear();
    Ok((pair.client.tls_info().unwrap(), pair.server.tls_info().unwrap()))
}

#[test]
fn a_handshake_tells_what_was_negotiated_and_the_next_one_resumes() {
    let certificate = SelfSigned::new("mx.example.com").unwrap();
    let (server, client) = (server_tls(&certificate), client_tls(&[]));
    for resumed in [false, true] {
        let mut pair = Pair::tcp();
        let (ours, theirs) =
            handshake(&mut pair, &server, &client, TlsLevel::Opportunistic, "mx.example.com").unwrap();
        assert_eq!(ours.version, "TLSv1.3");
        assert!(ours.cipher.starts_with("TLS_"), "{}", ours.cipher);
        assert_eq!(ours.certificate, PeerCertificate::NotChecked);
        assert_eq!((ours.resumed, theirs.resumed), (resumed, resumed));
        assert_eq!(theirs.server_name.as_deref(), Some("mx.example.com"));
        assert_eq!(theirs.certificate, PeerCertificate::None);
    }
}

#[test]
fn a_session_of_one_shard_or_level_is_not_resumed_at_another() {
    let certificate = SelfSigned::new("mx.example.com").unwrap();
    let (server, client) = (server_tls(&certificate), client_tls(&[&certificate]));
    let resumed = |client: &ClientTls, level| {
        let mut pair = Pair::tcp();
        handshake(&mut pair, &server, client, level, "mx.example.com").unwrap().0.resumed
    };
    assert!(!resumed(&client, TlsLevel::Encrypted));
    assert!(!resumed(&client, TlsLevel::Verified));
    assert!(!resumed(&client.for_shard(), TlsLevel::Encrypted));
    assert!(resumed(&client, TlsLevel::Encrypted));
}

#[test]
fn much_data_passes_both_ways_whole() {
    let certificate = SelfSigned::new("mx.example.com").unwrap();
    let mut pair = Pair::tcp();
    handshake(&mut pair, &server_tls(&certificate), &client_tls(&[]), TlsLevel::Encrypted, "mx.example.com")
        .unwrap();
    let body: Vec<u8> = (0..3_000_000u32).map(|i| i.to_le_bytes()[(i % 3) as usize]).collect();
    pair.send(End::Client, &body);
    pair.send(End::Server, &body);
    pair.until(|pair| pair.server_read.len() == body.len() && pair.client_read.len() == body.len()).unwrap();
    assert!(pair.server_read == body && pair.client_read == body);
}

#[test]
fn the_end_is_told_under_tls() {
    let certificate = SelfSigned::new("mx.example.com").unwrap();
    let mut pair = Pair::tcp();
    handshake(&mut pair, &server_tls(&certificate), &client_tls(&[]), TlsLevel::Encrypted, "mx.example.com")
        .unwrap();
    pair.send(End::Client, b"QUIT\r\n");
    pair.client.close();
    pair.until(|pair| pair.server_read == b"QUIT\r\n").unwrap();
    let mut rest = Vec::new();
    assert_eq!(pair.server.read_into(&mut rest, 100).unwrap(), ReadOutcome::Closed);
    // The other direction still works, and says its own end.
    pair.send(End::Server, b"221 bye\r\n");
    pair.server.close();
    pair.until(|pair| pair.client_read == b"221 bye\r\n").unwrap();
    assert_eq!(pair.client.read_into(&mut rest, 100).unwrap(), ReadOutcome::Closed);
}

#[test]
fn a_close_notify_right_behind_the_last_data_is_seen_before_the_connection_ends() {
    let certificate = SelfSigned::new("mx.example.com").unwrap();
    let listener = postrider_net::listen("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.certificate.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let address = listener.address();
    let client = std::thread::spawn(move || {
        let name = "mx.example.com".try_into().unwrap();
        let session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let tcp = std::net::TcpStream::connect(address).unwrap();
        let mut stream = rustls::StreamOwned::new(session, tcp);
        stream.conn.complete_io(&mut stream.sock).unwrap();
        stream.conn.writer().write_all(b"QUIT\r\n").unwrap();
        stream.conn.send_close_notify();
        stream.conn.complete_io(&mut stream.sock).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    });
    let mut poll = mio::Poll::new().unwrap();
    let (mut server, _) = loop {
        if let Some(accepted) = listener.accept().unwrap() {
            break accepted;
        }
    };
    server.register(poll.registry(), mio::Token(1)).unwrap();
    server.start_tls_server(&server_tls(&certificate), 0).unwrap();
    let (mut events, mut read) = (mio::Events::with_capacity(4), Vec::new());
    loop {
        match server.read_into(&mut read, 8_192).unwrap() {
            ReadOutcome::Data(_) => {}
            ReadOutcome::Closed => break,
            ReadOutcome::WouldBlock => {
                poll.poll(&mut events, Some(common::PATIENCE)).unwrap();
                assert!(!events.is_empty(), "the end was missed");
                events.iter().for_each(|event| server.handle_event(event));
            }
        }
    }
    assert_eq!(read, b"QUIT\r\n");
    assert_eq!(server.write(b"221 bye\r\n").unwrap(), WriteOutcome::Written(9));
    server.close();
    assert_eq!(client.join().unwrap(), "221 bye\r\n");
}

#[test]
fn a_connection_that_began_in_clear_goes_on_under_tls() {
    let certificate = SelfSigned::new("mx.example.com").unwrap();
    let mut pair = Pair::tcp();
    pair.send(End::Server, b"220 mx.example.com\r\n");
    pair.send(End::Client, b"STARTTLS\r\n");
    pair.until(|pair| pair.server_read == b"STARTTLS\r\n" && !pair.client_read.is_empty()).unwrap();
    pair.server_read.clear();
    pair.client_read.clear();
    pair.send(End::Server, b"220 go on\r\n");
    pair.until(|pair| pair.client_read == b"220 go on\r\n").unwrap();
    pair.client_read.clear();
    handshake(&mut pair, &server_tls(&certificate), &client_tls(&[]), TlsLevel::Encrypted, "mx.example.com")
        .unwrap();
    let twice = pair.server.start_tls_server(&server_tls(&certificate), 0);
    assert!(matches!(twice, Err(StreamError::AlreadyTls)));
    pair.send(End::Client, b"EHLO relay\r\n");
    pair.until(|pair| pair.server_read == b"EHLO relay\r\n").unwrap();
}

#[test]
fn what_came_in_clear_is_never_taken_for_what_came_under_tls() {
    let certificate = SelfSigned::new("mx.example.com").unwrap();
    let mut pair = Pair::tcp();
    pair.send(End::Client, b"STARTTLS\r\nMAIL FROM:<injected@example.com>\r\n");
    pair.until(|pair| pair.server_read.len() > 10).unwrap();
    let unread = pair.server_read.len() - "STARTTLS\r\n".len();
    let refused = pair.server.start_tls_server(&server_tls(&certificate), unread);
    assert!(matches!(refused, Err(StreamError::PlaintextBeforeTls(34))), "{refused:?}");
}

#[test]
fn clear_text_in_place_of_a_handshake_ends_the_session() {
    let certificate = SelfSigned::new("mx.example.com").unwrap();
    let mut pair = Pair::tcp();
    pair.server.start_tls_server(&server_tls(&certificate), 0).unwrap();
    pair.send(End::Client, b"MAIL FROM:<injected@example.com>\r\n");
    let (end, error) = pair.until(|_| false).unwrap_err();
    assert!(matches!((&end, &error), (StreamErrorAt::Server, StreamError::Tls(_))), "{error}");
    assert!(pair.server_read.is_empty());
}

#[test]
fn a_handshake_behind_a_proxy_header_begins_with_what_was_read() {
    let certificate = SelfSigned::new("mx.example.com").unwrap();
    let mut pair = Pair::tcp();
    let header = b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 465\r\n";
    pair.send(End::Client, header);
    pair.client.start_tls_client(&client_tls(&[]), TlsLevel::Encrypted, "mx.example.com", 0).unwrap();
    pair.until(|pair| pair.server_read.len() > header.len()).unwrap();
    let read = std::mem::take(&mut pair.server_read);
    pair.server.start_tls_server_behind_proxy(&server_tls(&certificate), &read[header.len()..]).unwrap();
    pair.until(|pair| pair.server.tls_state() == TlsState::Established).unwrap();
    pair.send(End::Client, b"EHLO client\r\n");
    pair.until(|pair| pair.server_read == b"EHLO client\r\n").unwrap();
}

#[test]
fn verified_means_a_known_authority_and_the_right_name() {
    let certificate = SelfSigned::new("mx.example.com").unwrap();
    let server = server_tls(&certificate);
    let check = |client: &ClientTls, host: &str| {
        let mut pair = Pair::tcp();
        handshake(&mut pair, &server, client, TlsLevel::Verified, host)
    };
    let trusting = client_tls(&[&certificate]);
    assert_eq!(check(&trusting, "mx.example.com").unwrap().0.certificate, PeerCertificate::Verified);
    assert_eq!(check(&trusting, "mx.example.com.").unwrap().0.certificate, PeerCertificate::Verified);
    let (end, error) = check(&trusting, "other.example.com").unwrap_err();
    assert_eq!(end, StreamErrorAt::Client);
    assert!(matches!(error, StreamError::Tls(rustls::Error::InvalidCertificate(_))), "{error}");
    let (_, error) = check(&client_tls(&[]), "mx.example.com").unwrap_err();
    assert!(matches!(error, StreamError::Tls(rustls::Error::InvalidCertificate(_))), "{error}");
}

#[test]
fn an_odd_host_name_is_no_reason_to_send_in_clear() {
    let certificate = SelfSigned::new("mx.example.com").unwrap();
    let server = server_tls(&certificate);
    let mut pair = Pair::tcp();
    let (_, theirs) =
        handshake(&mut pair, &server, &client_tls(&[]), TlsLevel::Encrypted, "mail host.example").unwrap();
    assert_eq!(theirs.server_name, None);
    let mut pair = Pair::tcp();
    let refused = pair.client.start_tls_client(&client_tls(&[]), TlsLevel::Verified, "mail host.example", 0);
    assert!(matches!(refused, Err(StreamError::ServerName(_))));
}

fn write_pair(directory: &Path, name: &str, hosts: &str) -> TlsFiles {
    let pair = SelfSigned::new(hosts).unwrap();
    let files = TlsFiles {
        certificate: directory.join(format!("{name}.crt")),
        key: directory.join(format!("{name}.key")),
    };
    std::fs::write(&files.certificate, pair.certificate).unwrap();
    std::fs::write(&files.key, pair.key).unwrap();
    files
}

/// True if the server shows a certificate for `host` to a client that asks for `host`.
fn names(server: &ServerTls, host: &str, trusted: &Path) -> bool {
    let client = ClientTls::new(&[trusted.to_owned()]).unwrap();
    let mut pair = Pair::tcp();
    handshake(&mut pair, server, &client, TlsLevel::Verified, host).is_ok()
}

#[test]
fn the_certificate_is_chosen_by_the_name_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let files: Vec<_> =
        ["a.example", "b.example"].iter().map(|host| write_pair(directory.path(), host, host)).collect();
    let server = ServerTls::new(Arc::new(CertificateStore::load(files.clone()).unwrap())).unwrap();
    assert!(names(&server, "a.example", &files[0].certificate));
    assert!(names(&server, "b.example", &files[1].certificate));
    assert!(!names(&server, "c.example", &files[0].certificate));
}

#[test]
fn certificates_are_replaced_under_a_living_session() {
    let directory = tempfile::tempdir().unwrap();
    let files = write_pair(directory.path(), "server", "old.example");
    let server = ServerTls::new(Arc::new(CertificateStore::load(vec![files.clone()]).unwrap())).unwrap();
    let mut pair = Pair::tcp();
    handshake(&mut pair, &server, &client_tls(&[]), TlsLevel::Encrypted, "old.example").unwrap();

    write_pair(directory.path(), "server", "new.example");
    server.certificates().reload().unwrap();
    assert!(names(&server, "new.example", &files.certificate));
    pair.send(End::Client, b"NOOP\r\n");
    pair.until(|pair| pair.server_read == b"NOOP\r\n").unwrap();

    // A mistake changes nothing.
    std::fs::write(&files.certificate, "not PEM").unwrap();
    assert!(matches!(server.certificates().reload(), Err(CertificateError::NoCertificate(_))));
    let client = client_tls(&[]);
    handshake(&mut Pair::tcp(), &server, &client, TlsLevel::Encrypted, "new.example").unwrap();
}

#[test]
fn what_is_wrong_with_certificate_files_is_told_by_file() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) =
        (write_pair(directory.path(), "a", "a.example"), write_pair(directory.path(), "b", "b.example"));
    let check = |certificate: &Path, key: &Path, expected: &str| {
        let files = TlsFiles { certificate: certificate.into(), key: key.into() };
        let error = CertificateStore::load(vec![files]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&a.certificate, &b.key, "b.key: not the key of the certificate in");
    check(&a.key, &a.key, "a.key: no certificate in this file");
    check(&a.certificate, &a.certificate, "a.crt: ");
    check(&directory.path().join("none"), &a.key, "none: ");
    assert!(matches!(CertificateStore::load(Vec::new()), Err(CertificateError::Empty)));
}
