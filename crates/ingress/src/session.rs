//! The session: the server's events, decided upon.

use crate::Pressure;
use crate::acceptance::{Acceptance, Origin, Submitted};
use crate::authentication::Authentication;
use crate::identity::{AuthHint, Identity, refusal_of_nobody};
use crate::patience::Patience;
use postrider_auth::Directory;
use postrider_engine::{Intake, Refusal};
use postrider_message::{HeaderScan, TraceProtocol};
use postrider_model::control::Control;
use postrider_model::snapshot::{Listener, Protocol};
use postrider_model::{EnhancedCode, IdCipher, Mailbox, RecipientParams, Reply, Snapshot, Timestamp};
use postrider_smtp::command::{Mail, Xclient};
use postrider_smtp::server::{Event, OUTPUT_SIZE_MAX, Offer, Server, Tls};
use postrider_spool::Ticket;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// What TLS agreed on, for the trace field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsInfo {
    /// `TLSv1.3`.
    pub version: Box<str>,
    /// `TLS_AES_256_GCM_SHA384`.
    pub cipher: Box<str>,
}

/// TLS at the start of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionTls {
    /// There is no certificate.
    Unavailable,
    /// STARTTLS can be offered.
    Offered,
    /// The handshake came first.
    Active(TlsInfo),
}

/// What a session must know.
#[derive(Clone, Debug)]
pub struct SessionContext {
    /// The configuration, for the whole session.
    pub snapshot: Arc<Snapshot>,
    /// Who may send what; [`Session::reconfigure`] brings a newer one.
    pub control: Arc<Control>,
    /// Where the client connected.
    pub listener: Arc<Listener>,
    /// Credentials; for a sandbox listener one that also admits anyone ([`Directory::with_anyone`]).
    pub directory: Arc<Directory>,
    /// Makes the ids that clients are told.
    pub ids: IdCipher,
    /// The client, as PROXY named it if it did.
    pub peer: SocketAddr,
    /// The address it connected to.
    pub local: SocketAddr,
    /// TLS.
    pub tls: SessionTls,
    /// Random and new for every session.
    pub seed: u64,
    /// When the session begins.
    pub now: Timestamp,
}

impl SessionContext {
    /// Missing fields are added, and Bcc is taken out.
    pub(crate) fn is_submission(&self) -> bool {
        self.listener.protocol.is_submission() || self.listener.sandbox
    }

    pub(crate) fn tls_info(&self) -> Option<&TlsInfo> {
        match &self.tls {
            SessionTls::Active(info) => Some(info),
            _ => None,
        }
    }

    fn offer(&self) -> Offer {
        let limits = &self.listener.limits;
        let legacy = self.listener.legacy.is_some();
        let knows_accounts = self.listener.sandbox || !self.directory.is_empty();
        let mechanisms = if knows_accounts { self.directory.mechanisms() } else { &[] };
        Offer {
            hostname: self.snapshot.hostname.as_str().into(),
            lmtp: self.listener.protocol == Protocol::Lmtp,
            tls: match self.tls {
                SessionTls::Unavailable => Tls::Unavailable,
                SessionTls::Offered => Tls::Offered,
                SessionTls::Active(_) => Tls::Active,
            },
            mechanisms: mechanisms.iter().map(|mechanism| mechanism.name()).collect(),
            auth_in_clear: legacy || self.listener.sandbox,
            xclient: self.listener.xclient.iter().any(|net| net.contains(self.peer.ip())),
            lenient: legacy,
            message_size_max_bytes: limits.message_size_max_bytes,
            recipients_max: limits.recipients_max,
            messages_max: limits.messages_max,
            line_size_max_bytes: limits.line_size_max_bytes,
            text_line_size_max_bytes: limits.text_line_size_max_bytes,
            junk_commands_max: limits.junk_commands_max,
            errors_max: limits.errors_max,
        }
    }
}

/// What a session waits for. Whatever it is, output that is there is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// More input.
    Read,
    /// The output to be written, before it takes more input.
    Write,
    /// A ticket, a verdict on a password, or time to pass. Do not read; keep what was read. Afterwards call
    /// [`Session::receive`] with it.
    Blocked,
    /// Write the output, begin the TLS handshake as the server with nothing of what was read, then call
    /// [`Session::tls_started`].
    StartTls,
    /// Write the output, then close.
    Close,
}

/// What a session takes without TLS and without a transaction, buffers of its replies and its socket included.
const SESSION_SIZE_BYTES: usize = 8 << 10;
/// What TLS adds.
const TLS_SIZE_BYTES: usize = 24 << 10;

/// One client's session.
pub struct Session {
    pub(crate) context: SessionContext,
    pub(crate) server: Server,
    pub(crate) identity: Identity,
    pub(crate) authentication: Authentication,
    pub(crate) patience: Patience,
    pub(crate) acceptance: Option<Acceptance>,
    submitted: Option<Submitted>,
    scan: HeaderScan,
    helo: Box<str>,
    reverse_name: Option<Box<str>>,
    client: Box<str>,
    /// Octets of the last message.
    usual_size: usize,
    greeting_is_unsent: bool,
    pub(crate) pressure: Pressure,
    /// Why the session ends as soon as nothing of it is under way.
    pub(crate) ending: Option<Reply>,
    nothing: Vec<u8>,
}

impl Session {
    /// Begins a session; the greeting is in the output.
    #[must_use]
    pub fn new(context: SessionContext) -> Self {
        let server = Server::new(context.offer());
        let identity = Identity::by_address(&context.listener, context.peer.ip());
        let is_known = !matches!(identity, Identity::Nobody);
        let greet_delay = if is_known { Duration::ZERO } else { context.listener.limits.greet_delay };
        Session {
            identity,
            client: context.peer.ip().to_canonical().to_string().into(),
            patience: Patience::new(context.now, greet_delay),
            server,
            context,
            authentication: Authentication::default(),
            acceptance: None,
            submitted: None,
            scan: HeaderScan::new(),
            helo: Box::default(),
            reverse_name: None,
            usual_size: 0,
            greeting_is_unsent: true,
            pressure: Pressure::None,
            ending: None,
            nothing: Vec::new(),
        }
    }

    /// Takes input from its front and gives how many octets were taken; keep the rest and give it again with
    /// what follows it. Call it only when [`Session::wants`] is `Read`, or after what it waited for.
    pub fn receive(&mut self, now: Timestamp, input: &[u8], intake: &mut impl Intake) -> usize {
        if self.greeting_is_unsent && !input.is_empty() && self.is_early() {
            return input.len();
        }
        let mut taken = 0;
        while !self.patience.delays_replies() {
            let errors = self.server.errors();
            let (consumed, event) = self.server.receive(&input[taken..]);
            taken += consumed;
            if consumed > 0 {
                self.patience.took_input(now, consumed, self.server.is_in_content());
            }
            let pauses = event.is_pause();
            self.decide(now, event, intake);
            self.slow_down(now, errors);
            if pauses {
                break;
            }
        }
        taken
    }

    /// Replies to be written. Whoever writes them removes them. Empty while replies are held back.
    pub fn output(&mut self) -> &mut Vec<u8> {
        if self.patience.delays_replies() { &mut self.nothing } else { self.server.output() }
    }

    /// The greeting waits in the output. Input that is there already is given to [`Session::receive`] before
    /// the greeting is written: whoever speaks first is no client of SMTP.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.greeting_is_unsent && self.server.output_size() > 0
    }

    /// What the session waits for.
    #[must_use]
    pub fn wants(&self) -> Wants {
        if self.patience.delays_replies() || self.waits_for_us() {
            Wants::Blocked
        } else if self.server.is_closed() {
            Wants::Close
        } else if self.server.is_blocked() {
            Wants::StartTls
        } else if self.server.output_size() > OUTPUT_SIZE_MAX {
            Wants::Write
        } else {
            Wants::Read
        }
    }

    /// What became of the ticket that [`Intake::submit`] gave. Call [`Session::receive`] after it with what
    /// input there is.
    pub fn durable(&mut self, now: Timestamp, ticket: Ticket, fate: Result<(), Refusal>) {
        if self.submitted.as_ref().is_none_or(|submitted| submitted.ticket != ticket) {
            return;
        }
        let Some(submitted) = self.submitted.take() else { return };
        match fate {
            Ok(()) => self.server.accept_content(&*submitted.id),
            Err(Refusal(reply)) => self.server.refuse_content(&reply),
        }
        self.note_progress(now);
        self.stop_if_idle();
    }

    /// Octets of memory that it holds, roughly.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let tls = if self.context.tls_info().is_some() { TLS_SIZE_BYTES } else { 0 };
        SESSION_SIZE_BYTES + tls + self.acceptance.as_ref().map_or(0, Acceptance::size_bytes)
    }

    /// Says how short memory is, from now on; without any left, hands on what the session holds, or drops it.
    pub fn set_pressure(&mut self, now: Timestamp, pressure: Pressure, intake: &mut impl Intake) {
        self.pressure = pressure;
        if pressure == Pressure::Sheds {
            let Session { context, server, identity, acceptance, scan, helo, reverse_name, client, .. } =
                self;
            let Some(acceptance) = acceptance else { return };
            let origin = origin(context, server, identity, helo, reverse_name.as_deref(), client);
            acceptance.shed(now, scan, &origin, intake);
        }
    }

    /// The handshake is done. What was said before it is forgotten.
    pub fn tls_started(&mut self, now: Timestamp, info: TlsInfo) {
        self.context.tls = SessionTls::Active(info);
        self.server.tls_started();
        self.helo = Box::default();
        self.identity = Identity::by_address(&self.context.listener, self.context.peer.ip());
        self.note_progress(now);
    }

    /// The server is about to stop: ends the session (`421`) now or after the message that is on its way.
    pub fn shutdown(&mut self) {
        self.ending =
            Some(Reply::ours(421, EnhancedCode(4, 3, 2), "The server is about to stop; try again later"));
        self.stop_if_idle();
    }

    /// Takes a newer answer to who may send what. A client that may not send any more is cut off: what it had
    /// not finished is forgotten, a message whose ticket is awaited is still answered first. True if so.
    pub fn reconfigure(
        &mut self,
        now: Timestamp,
        control: &Arc<Control>,
        directory: &Arc<Directory>,
        intake: &mut impl Intake,
    ) -> bool {
        self.context.control = Arc::clone(control);
        self.context.directory = Arc::clone(directory);
        let Identity::Application(login) = &self.identity else { return false };
        let current = control.login(&login.credential.username);
        let current = current.filter(|current| current.credential.id == login.credential.id);
        let reason = match current {
            Some(current) if current.is_valid(now) => {
                current.application.may_send(now).err().map(|denied| denied.to_string())
            }
            _ => Some(format!("The credential {} is not valid any more", login.credential.username)),
        };
        match (reason, current) {
            (None, Some(current)) => {
                self.identity = Identity::Application(Arc::clone(current));
                false
            }
            (reason, _) => {
                let text = reason.unwrap_or_default();
                self.forget_transaction(intake);
                self.identity = Identity::Nobody;
                self.ending = Some(Reply::ours(421, EnhancedCode(4, 7, 0), &text));
                self.stop_if_idle();
                true
            }
        }
    }

    /// The connection is gone. What the client had not finished is forgotten; a message whose ticket is
    /// awaited stays accepted.
    pub fn disconnected(&mut self, intake: &mut impl Intake) {
        self.forget_transaction(intake);
        self.authentication.cancel();
    }

    /// The client's address and port, as PROXY or XCLIENT named them.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.context.peer
    }

    /// What the client called itself; empty before it did.
    #[must_use]
    pub fn helo(&self) -> &str {
        &self.helo
    }

    /// The account, or the listener whose clients need none; empty while the client is nobody.
    #[must_use]
    pub fn account(&self) -> &str {
        self.identity.name()
    }

    /// Messages accepted so far.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.server.messages()
    }

    /// The client has done its part.
    pub(crate) fn waits_for_us(&self) -> bool {
        self.submitted.is_some() || self.authentication.is_running()
    }

    fn decide(&mut self, now: Timestamp, event: Event<'_>, intake: &mut impl Intake) {
        match event {
            Event::NeedInput | Event::Blocked => return,
            Event::Closed => self.forget_transaction(intake),
            Event::Hello(name) => {
                self.helo = name.into();
                self.forget_transaction(intake);
            }
            Event::Mail(mail) => self.mail(now, mail, intake),
            Event::Recipient(recipient) => self.recipient(recipient),
            Event::Content(octets) => return self.content(now, &octets, intake),
            Event::ChunkEnd => self.chunk_end(intake),
            Event::ContentEnd { by_chunks } => self.content_end(now, by_chunks, intake),
            Event::Reset => self.forget_transaction(intake),
            Event::StartTls | Event::Mistake => {}
            Event::Auth { mechanism, initial } => self.begin_auth(now, mechanism, initial.as_deref()),
            Event::AuthResponse(response) => self.continue_auth(now, &response),
            Event::AuthCancelled => self.authentication.cancel(),
            Event::Xclient(client) => self.xclient(client),
        }
        self.note_progress(now);
        self.stop_if_idle();
    }

    fn mail(&mut self, now: Timestamp, mail: Mail, intake: &mut impl Intake) {
        if let Identity::Nobody = self.identity {
            let reply = refusal_of_nobody(&self.context.listener, self.context.peer.ip(), self.auth_hint());
            return self.server.refuse(&reply);
        }
        if let Err(reply) = self.identity.allows_mail(now, &mail) {
            return self.server.refuse(&reply);
        }
        match intake.begin(now, mail.size_bytes.unwrap_or(0)) {
            Ok(number) => {
                self.acceptance = Some(Acceptance::new(number, mail.envelope, mail.size_bytes));
                self.server.accept_mail();
            }
            Err(Refusal(reply)) => self.server.refuse(&reply),
        }
    }

    fn auth_hint(&self) -> AuthHint {
        let offer = self.server.offer();
        match offer.tls {
            _ if offer.mechanisms.is_empty() => AuthHint::Never,
            Tls::Active => AuthHint::Now,
            _ if offer.auth_in_clear => AuthHint::Now,
            Tls::Offered => AuthHint::AfterTls,
            Tls::Unavailable => AuthHint::Never,
        }
    }

    fn recipient(&mut self, recipient: RecipientParams) {
        let Session { identity, context, acceptance, .. } = &mut *self;
        let Some(acceptance) = acceptance else { return self.lost_transaction() };
        let reverse_path: Option<&Mailbox> = acceptance.envelope().reverse_path.as_ref();
        match identity.admit(&context.control, &context.snapshot, reverse_path, recipient) {
            Ok(admitted) => {
                acceptance.add(admitted);
                self.server.accept_recipient();
            }
            Err(reply) => self.server.refuse(&reply),
        }
    }

    /// The server asks about a transaction that we do not have, which is our own fault.
    fn lost_transaction(&mut self) {
        self.server.refuse(&Reply::ours(451, EnhancedCode(4, 3, 0), "The transaction was lost; begin again"));
    }

    fn content(&mut self, now: Timestamp, octets: &[u8], intake: &mut impl Intake) {
        let Session { context, server, identity, acceptance, scan, helo, reverse_name, client, .. } = self;
        let Some(acceptance) = acceptance else { return };
        if server.notes().size_bytes > context.listener.limits.message_size_max_bytes {
            return acceptance.refuse(server.too_large(), intake);
        }
        if let Err(reply) = identity.allows_size(server.notes().size_bytes) {
            return acceptance.refuse(reply, intake);
        }
        let origin = origin(context, server, identity, helo, reverse_name.as_deref(), client);
        acceptance.take(now, octets, (self.usual_size, self.pressure), scan, &origin, intake);
    }

    fn chunk_end(&mut self, intake: &mut impl Intake) {
        let Some(acceptance) = &self.acceptance else { return self.lost_transaction() };
        match acceptance.refusal().cloned() {
            None => self.server.accept_chunk(),
            Some(reply) => {
                self.forget_transaction(intake);
                self.server.refuse(&reply);
            }
        }
    }

    fn content_end(&mut self, now: Timestamp, by_chunks: bool, intake: &mut impl Intake) {
        let Some(acceptance) = self.acceptance.take() else { return self.lost_transaction() };
        let Session { context, server, identity, scan, helo, reverse_name, client, .. } = self;
        let notes = *server.notes();
        let origin = origin(context, server, identity, helo, reverse_name.as_deref(), client);
        match acceptance.finish(now, by_chunks, &notes, scan, &origin, intake) {
            Ok(submitted) => {
                self.usual_size = usize::try_from(notes.size_bytes).unwrap_or(0);
                self.submitted = Some(submitted);
            }
            Err(reply) => self.server.refuse_content(&reply),
        }
    }

    fn xclient(&mut self, client: Xclient) {
        let login = client.login.filter(|login| !login.is_empty());
        let identity = login.as_deref().and_then(|login| Identity::by_name(&self.context, login));
        if let (Some(login), None) = (&login, &identity) {
            let text = format!("XCLIENT LOGIN={login}: there is no such account");
            return self.server.refuse(&Reply::ours(550, EnhancedCode(5, 7, 1), &text));
        }
        let ip = client.address.unwrap_or_else(|| self.context.peer.ip());
        let port = client.port.unwrap_or_else(|| self.context.peer.port());
        self.context.peer = SocketAddr::new(ip, port);
        self.client = ip.to_canonical().to_string().into();
        if let Some(name) = client.name {
            self.reverse_name = (!name.is_empty()).then_some(name);
        }
        if let Some(helo) = client.helo {
            self.helo = helo;
        }
        let authenticated = identity.is_some();
        self.identity = identity.unwrap_or_else(|| Identity::by_address(&self.context.listener, ip));
        self.server.accept_xclient(authenticated);
    }

    fn forget_transaction(&mut self, intake: &mut impl Intake) {
        if let Some(mut acceptance) = self.acceptance.take() {
            acceptance.abandon(intake);
        }
    }

    /// Input was there before our greeting was sent: no client of SMTP does that (RFC 5321 §3.1).
    fn is_early(&mut self) -> bool {
        self.greeting_is_unsent = false;
        if self.server.output().is_empty() {
            return false;
        }
        self.server.output().clear();
        self.server.refuse_and_close(&Reply::ours(
            554,
            EnhancedCode(5, 5, 0),
            "Wait for the greeting before you speak",
        ));
        true
    }

    fn stop_if_idle(&mut self) {
        if let Some(reply) = &self.ending
            && self.acceptance.is_none()
            && self.submitted.is_none()
            && !self.server.is_closed()
        {
            self.server.refuse_and_close(reply);
        }
    }

    /// The client's address, for those who log it.
    #[must_use]
    pub fn client(&self) -> IpAddr {
        self.context.peer.ip()
    }
}

fn origin<'s>(
    context: &'s SessionContext,
    server: &Server,
    identity: &'s Identity,
    helo: &'s str,
    reverse_name: Option<&'s str>,
    client: &'s str,
) -> Origin<'s> {
    let protocol = match (server.offer().lmtp, server.is_extended()) {
        (true, _) => TraceProtocol::Lmtp,
        (false, true) => TraceProtocol::Esmtp,
        (false, false) => TraceProtocol::Smtp,
    };
    Origin {
        context,
        identity,
        helo,
        reverse_name,
        client,
        protocol,
        authenticated: server.is_authenticated(),
    }
}

/// `client.example[192.0.2.1]:4711 as app1, TLSv1.3`
impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let helo = if self.helo.is_empty() { "unknown" } else { &self.helo };
        write!(f, "{helo}[{}]:{}", self.client, self.context.peer.port())?;
        if !self.account().is_empty() {
            write!(f, " as {}", self.account())?;
        }
        if let Some(tls) = self.context.tls_info() {
            write!(f, ", {}", tls.version)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({self})")
    }
}
