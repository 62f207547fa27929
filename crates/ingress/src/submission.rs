//! A message that comes whole, from the API: the same acceptance as at the end of DATA, without a session.

use crate::Pressure;
use crate::acceptance::{Acceptance, CHUNK_SIZE, Origin, Submitted};
use crate::identity::Identity;
use crate::session::SessionContext;
use postrider_engine::{Intake, Refusal};
use postrider_message::{HeaderScan, TraceProtocol, lines};
use postrider_model::control::{Application, Environment};
use postrider_model::snapshot::SessionLimits;
use postrider_model::{Class, EnhancedCode, Envelope, Mailbox, Reply, Timestamp};
use postrider_smtp::data::ContentNotes;
use postrider_spool::Ticket;
use std::net::IpAddr;
use std::sync::Arc;

/// A whole message, as a way in other than SMTP hands it over.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Comes back with the answer.
    pub tag: u64,
    /// Who sends it.
    pub application: Arc<Application>,
    /// What the key was made for with which it came.
    pub environment: Environment,
    /// Whence it came.
    pub client: IpAddr,
    /// Reverse-path and what the content needs.
    pub envelope: Envelope,
    /// Everybody who gets it.
    pub recipients: Vec<Mailbox>,
    /// The content.
    pub content: Content,
    /// Its priority.
    pub class: Class,
    /// It does not leave before; `None` is at once.
    pub due: Option<Timestamp>,
}

/// What became of a [`Submission`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The submission's.
    pub tag: u64,
    /// The message's id, once the message is durable; or the reply that SMTP would have given.
    pub result: Result<Box<str>, Reply>,
}

/// Takes answers, several at once, on the thread that has them.
pub type Answers = Arc<dyn Fn(Vec<Settled>) + Send + Sync>;

/// Content in its stored form (CRLF, dot-stuffed), with what was seen of it.
#[derive(Clone, Debug)]
pub struct Content {
    octets: Vec<u8>,
    notes: ContentNotes,
}

impl Content {
    /// What `message::compose` made.
    #[must_use]
    pub fn composed(octets: Vec<u8>) -> Self {
        let notes = ContentNotes {
            size_bytes: octets.len() as u64,
            bare_line_end: false,
            nul: false,
            eight_bit: !octets.is_ascii(),
            line_too_long: false,
            ends_in_crlf: true,
        };
        Content { octets, notes }
    }

    /// A MIME message as its sender wrote it, not dot-stuffed. What is wrong with its octets is noted here and
    /// judged when it is handed over, as at the end of DATA.
    #[must_use]
    pub fn written(octets: &[u8]) -> Self {
        let line_max = SessionLimits::default().text_line_size_max_bytes;
        let mut stored = lines::stuff(octets).into_owned();
        let ends_in_crlf = octets.ends_with(b"\r\n");
        if !ends_in_crlf {
            // Text is lines: the last one gets its end too.
            stored.extend_from_slice(b"\r\n");
        }
        let bare = |at: usize| match octets[at] {
            b'\r' => octets.get(at + 1) != Some(&b'\n'),
            _ => at == 0 || octets[at - 1] != b'\r',
        };
        let notes = ContentNotes {
            size_bytes: stored.len() as u64,
            bare_line_end: memchr::memchr2_iter(b'\r', b'\n', octets).any(bare),
            nul: memchr::memchr(0, octets).is_some(),
            eight_bit: !octets.is_ascii(),
            line_too_long: octets.split(|b| *b == b'\n').any(|line| line.len() >= line_max),
            ends_in_crlf: true,
        };
        Content { octets: stored, notes }
    }

    /// Octets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.octets.len()
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }
}

/// A message that was handed over: its answer waits for the ticket.
#[derive(Clone, Debug)]
pub struct HandedOver {
    /// Becomes durable, or is lost.
    pub ticket: Ticket,
    /// The message's id.
    pub id: Box<str>,
}

/// Takes whole messages for one way in, one after the other.
#[derive(Debug)]
pub struct Desk {
    context: SessionContext,
    scan: HeaderScan,
}

impl Desk {
    /// `context` is that of the way in: its listener's limits count, and its peer is set from each submission.
    #[must_use]
    pub fn new(context: SessionContext) -> Self {
        Desk { context, scan: HeaderScan::new() }
    }

    /// Hands a whole message to the engine, by the same checks as at the end of DATA.
    ///
    /// # Errors
    /// The reply that SMTP would give: 5xx for what may not be, 4xx for what cannot be now.
    pub fn submit(
        &mut self,
        now: Timestamp,
        submission: Submission,
        intake: &mut impl Intake,
    ) -> Result<HandedOver, Reply> {
        let Submission {
            application, environment, client, envelope, recipients, content, class, due, ..
        } = submission;
        self.context.peer.set_ip(client);
        let (context, scan) = (&self.context, &mut self.scan);
        // The application as it is now: its kill switch counts from the moment it is thrown.
        let Some(application) = context.control.application(application.id) else {
            return Err(Reply::ours(550, EnhancedCode(5, 7, 1), "The application does not exist any more"));
        };
        let identity = Identity::of_key(Arc::clone(application), environment);
        let size_bytes = content.notes.size_bytes;
        identity.allows_submission(now, &envelope, size_bytes)?;
        let number = intake.begin(now, size_bytes).map_err(|Refusal(reply)| reply)?;
        let mut acceptance = Acceptance::new(number, envelope, Some(size_bytes));
        acceptance.set_time(class, due.filter(|due| *due > now));
        for recipient in recipients {
            let reverse_path = acceptance.envelope().reverse_path.as_ref();
            let admitted =
                identity.admit(&context.control, &context.snapshot, reverse_path, recipient.into())?;
            acceptance.add(admitted);
        }
        let address = client.to_canonical().to_string();
        let helo = match client.to_canonical() {
            IpAddr::V4(_) => format!("[{address}]"),
            IpAddr::V6(_) => format!("[IPv6:{address}]"),
        };
        let origin = Origin {
            context,
            identity: &identity,
            helo: &helo,
            reverse_name: None,
            client: &address,
            protocol: TraceProtocol::Http,
            authenticated: true,
        };
        if content.octets.len() <= CHUNK_SIZE {
            acceptance.take_whole(content.octets, scan);
        } else {
            for piece in content.octets.chunks(CHUNK_SIZE) {
                acceptance.take(now, piece, (CHUNK_SIZE, Pressure::None), scan, &origin, intake);
            }
        }
        let Submitted { ticket, id } =
            acceptance.finish(now, false, &content.notes, scan, &origin, intake)?;
        Ok(HandedOver { ticket, id })
    }
}
