//! A listening post between two servers: what each said, octet for octet.

use memchr::memmem;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Passes connections on to a server and keeps what went both ways. Of use only for sessions in clear.
#[derive(Clone, Debug)]
pub struct Tap {
    /// Where to connect instead of to the server.
    pub address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
}

/// One connection.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// What the client sent.
    pub client: Vec<u8>,
    /// What the server sent.
    pub server: Vec<u8>,
}

/// A message's content as it stood on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// By BDAT; by DATA otherwise.
    pub by_bdat: bool,
    /// The MAIL command before it.
    pub mail: String,
    /// The content; of DATA without the final dot and what was added for transparency.
    pub octets: Vec<u8>,
}

impl Tap {
    /// Listens at the first address and passes on to the second.
    #[must_use]
    pub fn between(address: SocketAddr, server: SocketAddr) -> Tap {
        let listener = TcpListener::bind(address).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let tap = Tap { address, calls: calls.clone() };
        thread::spawn(move || {
            for client in listener.incoming() {
                // A server that is away ends the connection, as it would without us.
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(server)) else { continue };
                let number = {
                    let mut calls = calls.lock().unwrap();
                    calls.push(Call::default());
                    calls.len() - 1
                };
                let (to_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                pass(client, to_server, calls.clone(), number, |call| &mut call.client);
                pass(server, to_client, calls.clone(), number, |call| &mut call.server);
            }
        });
        tap
    }

    /// All connections so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// The contents that were sent so far and hold these octets.
    #[must_use]
    pub fn contents(&self, part: &str) -> Vec<Content> {
        let mut found: Vec<_> = self.calls().iter().flat_map(|call| contents(&call.client)).collect();
        found.retain(|content| memmem::find(&content.octets, part.as_bytes()).is_some());
        found
    }
}

fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    calls: Arc<Mutex<Vec<Call>>>,
    number: usize,
    side: fn(&mut Call) -> &mut Vec<u8>,
) {
    thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            side(&mut calls.lock().unwrap()[number]).extend_from_slice(&buffer[..count]);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// The contents in a client's half of a conversation whose transactions all went well.
fn contents(mut said: &[u8]) -> Vec<Content> {
    let mut found = Vec::new();
    let mut mail = String::new();
    let mut chunks = Vec::new();
    while let Some(end) = memmem::find(said, b"\r\n") {
        let line = String::from_utf8_lossy(&said[..end]).into_owned();
        said = &said[end + 2..];
        let words: Vec<_> = line.split(' ').collect();
        match words[0].to_ascii_uppercase().as_str() {
            "MAIL" => {
                mail.clone_from(&line);
                chunks.clear();
            }
            "BDAT" => {
                let size: usize = words[1].parse().unwrap();
                let Some(chunk) = said.get(..size) else { break };
                chunks.extend_from_slice(chunk);
                said = &said[size..];
                if words.get(2).is_some_and(|word| word.eq_ignore_ascii_case("LAST")) {
                    let octets = std::mem::take(&mut chunks);
                    found.push(Content { by_bdat: true, mail: mail.clone(), octets });
                }
            }
            "DATA" => {
                let Some(octets) = unstuffed(&mut said) else { break };
                found.push(Content { by_bdat: false, mail: mail.clone(), octets });
            }
            _ => {}
        }
    }
    found
}

fn unstuffed(said: &mut &[u8]) -> Option<Vec<u8>> {
    let mut octets = Vec::new();
    loop {
        let end = memmem::find(said, b"\r\n")? + 2;
        let (line, rest) = said.split_at(end);
        *said = rest;
        if line == b".\r\n" {
            return Some(octets);
        }
        octets.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_found_in_a_conversation() {
        let found = contents(
            b"EHLO a\r\nMAIL FROM:<a@b> BODY=BINARYMIME\r\nRCPT TO:<c@d>\r\nBDAT 4\r\n\r\n.\nBDAT 2 LAST\r\nxy\
              MAIL FROM:<>\r\nRCPT TO:<c@d>\r\nDATA\r\n..one\r\ntwo\r\n.\r\nQUIT\r\n",
        );
        let [first, second] = &found[..] else { panic!("{found:?}") };
        assert!(first.by_bdat && first.mail.ends_with("BINARYMIME") && first.octets == b"\r\n.\nxy");
        assert!(!second.by_bdat && second.octets == b".one\r\ntwo\r\n");
    }
}
