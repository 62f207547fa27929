//! One SMTP dialogue over a blocking socket.

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use postrider_auth as auth;
use postrider_model::snapshot::{Credentials, TlsLevel};
use postrider_model::{BodyKind, Mailbox, Reply};
use postrider_net::ClientTls;
use postrider_smtp::client::{Client, Command, Dialect, Event, MailParams};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For a person who waits; RFC 5321's five and ten minutes are for queues.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// Lines of an AUTH exchange.
const AUTH_STEPS_MAX: usize = 8;

/// When to use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TlsUse {
    /// STARTTLS if offered; under TLS from the start on port 465
    Auto,
    /// Never
    None,
    /// STARTTLS, or nothing is sent
    Starttls,
    /// TLS from the first octet
    Implicit,
}

/// Name and password.
#[derive(Debug)]
pub(crate) struct Login {
    pub(crate) credentials: Credentials,
    /// Taken even in clear: the server is on this machine.
    pub(crate) in_clear: bool,
}

/// All that a dialogue needs.
#[derive(Debug)]
pub(crate) struct Delivery<'a> {
    pub(crate) server: &'a str,
    pub(crate) ehlo: &'a str,
    pub(crate) lmtp: bool,
    pub(crate) tls: TlsUse,
    /// Certificates are checked.
    pub(crate) verify: bool,
    pub(crate) login: Option<Login>,
    pub(crate) from: Option<&'a Mailbox>,
    pub(crate) to: &'a [Mailbox],
    /// With CRLF, not dot-stuffed.
    pub(crate) content: Vec<u8>,
    /// Print each line.
    pub(crate) verbose: bool,
}

/// Why the message was not taken.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server said no.
    Refused {
        /// What it was asked.
        asked: String,
        /// What it said.
        reply: Reply,
    },
    /// There was no dialogue, or it broke off.
    Broken(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Broken(error.into())
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

struct Dialogue {
    /// Only `None` while STARTTLS turns one into the other.
    stream: Option<Stream>,
    client: Client,
    input: Vec<u8>,
    verbose: bool,
    shown: usize,
}

/// Hands the message over; gives the server's last reply and the recipients it refused.
pub(crate) fn deliver(delivery: &Delivery<'_>) -> Result<(Reply, Vec<(Mailbox, Reply)>), Failure> {
    let (host, port) = split_server(delivery.server)?;
    let socket = connect(&host, port)?;
    let dialect = if delivery.lmtp { Dialect::Lmtp } else { Dialect::Smtp };
    let mut dialogue = Dialogue {
        stream: Some(Stream::Plain(socket)),
        client: Client::new(dialect, delivery.ehlo),
        input: Vec::new(),
        verbose: delivery.verbose,
        shown: 0,
    };
    let level = if delivery.verify { TlsLevel::Verified } else { TlsLevel::Encrypted };
    let implicit = delivery.tls == TlsUse::Implicit || (delivery.tls == TlsUse::Auto && port == 465);
    if implicit {
        dialogue.start_tls(&host, level)?;
        dialogue.client.tls_started();
    }
    dialogue.ready("to greet")?;
    let wants_starttls = !implicit && delivery.tls != TlsUse::None;
    if wants_starttls && dialogue.client.extensions().starttls {
        dialogue.client.starttls();
        match dialogue.event()? {
            Event::StartTls => {}
            _ => return Err(dialogue.refused("STARTTLS")),
        }
        dialogue.start_tls(&host, level)?;
        dialogue.client.tls_started();
        dialogue.ready("EHLO")?;
    } else if delivery.tls == TlsUse::Starttls {
        return Err(anyhow!("the server does not offer STARTTLS; --tls none would send in clear").into());
    }
    if let Some(login) = &delivery.login {
        dialogue.log_in(login)?;
    }
    let result = dialogue.transaction(delivery);
    dialogue.client.quit();
    // The message is decided; whether the server says goodbye is not interesting.
    let _ = dialogue.event();
    result
}

impl Dialogue {
    /// The next event, after all output is written.
    fn event(&mut self) -> Result<Event, Failure> {
        self.show();
        self.write()?;
        loop {
            let mut rest = self.input.as_slice();
            let before = rest.len();
            let event = self.client.next(&mut rest).context("the server does not speak SMTP as it should")?;
            let used = before - rest.len();
            self.input.drain(..used);
            self.show();
            if event != Event::NeedInput {
                return Ok(event);
            }
            // The answer to the greeting is EHLO, made by the client itself.
            self.write()?;
            self.read()?;
        }
    }

    fn write(&mut self) -> Result<(), Failure> {
        while !self.client.output().is_empty() {
            let slices: Vec<_> = self.client.output().slices().take(64).map(IoSlice::new).collect();
            let written = match self.stream.as_mut().context("no stream")? {
                Stream::Plain(stream) => stream.write_vectored(&slices),
                Stream::Tls(stream) => stream.write_vectored(&slices),
            };
            match written.context("the connection broke while sending")? {
                0 => return Err(anyhow!("the server closed the connection").into()),
                written => self.client.advance(written),
            }
        }
        match self.stream.as_mut().context("no stream")? {
            Stream::Plain(stream) => stream.flush()?,
            Stream::Tls(stream) => stream.flush()?,
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), Failure> {
        let mut buffer = [0; 8192];
        let read = match self.stream.as_mut().context("no stream")? {
            Stream::Plain(stream) => stream.read(&mut buffer),
            Stream::Tls(stream) => stream.read(&mut buffer),
        };
        match read {
            Ok(0) => Err(anyhow!("the server closed the connection").into()),
            Ok(read) => {
                self.input.extend_from_slice(&buffer[..read]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let asked = self.client.awaited().map_or("", Command::name);
                Err(anyhow!("no reply to {asked} within {} s", REPLY_TIMEOUT.as_secs()).into())
            }
            Err(error) => Err(anyhow!(error).context("the connection broke").into()),
        }
    }

    fn show(&mut self) {
        if self.verbose {
            let transcript = self.client.transcript().text();
            eprint!("{}", transcript.get(self.shown..).unwrap_or_default());
            self.shown = transcript.len();
        }
    }

    fn refused(&self, asked: impl Into<String>) -> Failure {
        Failure::Refused { asked: asked.into(), reply: self.client.reply().to_reply() }
    }

    fn ready(&mut self, asked: &str) -> Result<(), Failure> {
        match self.event()? {
            Event::Ready => Ok(()),
            _ => Err(self.refused(asked)),
        }
    }

    fn reply(&mut self) -> Result<u16, Failure> {
        match self.event()? {
            Event::Reply { code, .. } => Ok(code),
            _ => Err(self.refused("to stay")),
        }
    }

    fn start_tls(&mut self, host: &str, level: TlsLevel) -> Result<(), Failure> {
        let Some(Stream::Plain(mut socket)) = self.stream.take() else {
            return Err(anyhow!("TLS runs already").into());
        };
        let config = ClientTls::new(&[])?.rustls_config(level);
        let name = ServerName::try_from(host.to_owned()).context("the server's name is no host name")?;
        let mut connection = ClientConnection::new(Arc::clone(&config), name)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).with_context(|| {
                format!("the TLS handshake with {host} failed; --insecure takes any certificate")
            })?;
        }
        let version = connection.protocol_version().and_then(|version| version.as_str().map(str::to_owned));
        self.client.note(&version.unwrap_or_else(|| "TLS".to_owned()));
        self.stream = Some(Stream::Tls(Box::new(StreamOwned::new(connection, socket))));
        Ok(())
    }

    fn log_in(&mut self, login: &Login) -> Result<(), Failure> {
        let offered = self.client.extensions().auth;
        let protected = login.in_clear || matches!(self.stream, Some(Stream::Tls(_)));
        let names =
            [(offered.scram_sha_256, "SCRAM-SHA-256"), (offered.plain, "PLAIN"), (offered.login, "LOGIN")];
        let names = names.into_iter().filter_map(|(offered, name)| offered.then_some(name));
        let mechanism = auth::Client::choose(names, protected).with_context(|| {
            if offered.any {
                "the server offers only logins that would show the password in clear; use TLS"
            } else {
                "the server offers no login here (perhaps only under TLS); leave out --user"
            }
        })?;
        let mut nonce = [0; 18];
        aws_lc_rs::rand::fill(&mut nonce).ok().context("the system has no randomness")?;
        let mut exchange = auth::Client::new(mechanism, login.credentials.clone(), nonce, None);
        let initial = exchange.initial().map(|response| auth::encode_challenge(&response));
        self.client.auth(mechanism.name(), initial.as_deref());
        for _ in 0..AUTH_STEPS_MAX {
            match self.reply()? {
                334 => {
                    let challenge = auth::decode_response(self.client.reply().text())?;
                    let response = exchange.step(&challenge)?;
                    self.client.auth_line(&auth::encode_challenge(&response));
                }
                235 => return Ok(exchange.accepted()?),
                _ => return Err(self.refused(format!("AUTH {mechanism}"))),
            }
        }
        Err(anyhow!("the login does not come to an end").into())
    }

    fn transaction(&mut self, delivery: &Delivery<'_>) -> Result<(Reply, Vec<(Mailbox, Reply)>), Failure> {
        let offered = self.client.extensions();
        let smtputf8 = delivery.from.is_some_and(Mailbox::needs_smtputf8)
            || delivery.to.iter().any(Mailbox::needs_smtputf8);
        if smtputf8 && !offered.smtputf8 {
            return Err(anyhow!("an address is not ASCII, and the server does not offer SMTPUTF8").into());
        }
        let eight_bit = offered.eight_bit_mime && !delivery.content.is_ascii();
        let params = MailParams {
            size: offered.size.map(|_| delivery.content.len() as u64),
            body: eight_bit.then_some(BodyKind::EightBitMime),
            smtputf8,
            ..MailParams::default()
        };
        self.client.mail(delivery.from, &params);
        let sender = delivery.from.map_or("", Mailbox::as_str);
        if self.reply()? / 100 != 2 {
            return Err(self.refused(format!("MAIL FROM:<{sender}>")));
        }
        let mut refused = Vec::new();
        for recipient in delivery.to {
            self.client.rcpt(recipient, None, None);
            if self.reply()? / 100 != 2 {
                refused.push((recipient.clone(), self.client.reply().to_reply()));
            }
        }
        if refused.len() == delivery.to.len() {
            return Err(self.refused(format!("RCPT TO:<{}>", delivery.to[delivery.to.len() - 1])));
        }
        self.client.data();
        if self.reply()? != 354 {
            return Err(self.refused("DATA"));
        }
        let stuffed = postrider_message::lines::stuff(&delivery.content).into_owned();
        let ends_line = stuffed.is_empty() || stuffed.ends_with(b"\r\n");
        self.client.content(Bytes::from(stuffed));
        if !ends_line {
            self.client.content_insert(b"\r\n");
        }
        let replies = if delivery.lmtp { delivery.to.len() - refused.len() } else { 1 };
        self.client.end(replies);
        for _ in 0..replies {
            if self.reply()? / 100 != 2 {
                return Err(self.refused("to take the message"));
            }
        }
        Ok((self.client.reply().to_reply(), refused))
    }
}

/// `host:port`, `[::1]:port`, or a host alone for port 25.
fn split_server(server: &str) -> anyhow::Result<(String, u16)> {
    let unbracketed = |host: &str| host.trim_start_matches('[').trim_end_matches(']').to_owned();
    if server.parse::<IpAddr>().is_ok() || server.ends_with(']') {
        return Ok((unbracketed(server), 25));
    }
    match server.rsplit_once(':') {
        Some((host, port)) => {
            let port = port.parse().ok().with_context(|| format!("no port: {port:?}; write HOST:PORT"))?;
            Ok((unbracketed(host), port))
        }
        None => Ok((server.to_owned(), 25)),
    }
}

fn connect(host: &str, port: u16) -> anyhow::Result<TcpStream> {
    let addresses: Vec<_> =
        (host, port).to_socket_addrs().with_context(|| format!("cannot find {host}"))?.collect();
    let mut last = None;
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
                stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = Some(anyhow!(error).context(format!("cannot connect to {address}"))),
        }
    }
    match last {
        Some(error) => Err(error),
        None => bail!("{host} has no address"),
    }
}
