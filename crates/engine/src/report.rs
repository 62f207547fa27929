//! Verdicts that are bad news, and the DSNs that bring them (RFC 3461, RFC 3464).

use crate::Draft;
use crate::effect::{Effect, Loaded};
use crate::messages::MessageSlot;
use crate::outflow::{Settled, Settlement};
use crate::shard::{Job, Origin, Shard};
use crate::transaction::Open;
use bytes::Bytes;
use postrider_message::{Action, Reported};
use postrider_model::record::{self, Ordinals, Report, ReportKind};
use postrider_model::{
    BodyKind, Class, Encoding, EnhancedCode, Envelope, Notify, Outcome, RecipientParams, Reply, Terminal,
    Timestamp, Via,
};
use postrider_queue::RecipientSlot;
use smallvec::SmallVec;
use std::sync::Arc;

/// A recipient that failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) recipient: RecipientSlot,
    pub(crate) ordinal: u16,
    pub(crate) verdict: Terminal,
    pub(crate) reply: Reply,
    pub(crate) peer: Arc<str>,
}

/// A DSN in the making, while what it returns is read.
#[derive(Debug)]
pub(crate) struct ReportJob {
    pub(crate) message: MessageSlot,
    /// The message's envelope, once it is known.
    pub(crate) record: Option<Arc<record::Message>>,
    /// The content's start, once it is known.
    pub(crate) content: Option<SmallVec<[Bytes; 4]>>,
    pub(crate) subject: Subject,
}

/// What is reported.
#[derive(Debug)]
pub(crate) enum Subject {
    Failed(Vec<Failure>),
    Delayed(RecipientSlot),
}

impl Shard {
    /// These recipients have failed: a DSN where one is wanted, then their verdict.
    pub(crate) fn fail(
        &mut self,
        now: Timestamp,
        message: MessageSlot,
        record: Arc<record::Message>,
        content: Option<SmallVec<[Bytes; 4]>>,
        failures: Vec<Failure>,
    ) {
        let subject = Subject::Failed(failures);
        self.report(now, ReportJob { message, record: Some(record), content, subject });
    }

    /// A recipient's lifetime is over.
    pub(crate) fn expire(&mut self, now: Timestamp, recipient: RecipientSlot) {
        let last = self.replies.get(self.reply_of(recipient)).cloned();
        let reply = match &last {
            Some(said) => Reply::ours(
                554,
                EnhancedCode(5, 4, 7),
                &format!("Delivery time expired. The last answer was: {}", said.reply),
            ),
            None => Reply::ours(
                554,
                EnhancedCode(5, 4, 7),
                "Delivery time expired before the next hop could be reached",
            ),
        };
        self.settle_waiting(now, vec![recipient], Terminal::Expired, &reply);
    }

    pub(crate) fn settle_waiting(
        &mut self,
        now: Timestamp,
        recipients: Vec<RecipientSlot>,
        verdict: Terminal,
        reply: &Reply,
    ) {
        let mut by_message: Vec<(MessageSlot, Vec<Failure>)> = Vec::new();
        for recipient in recipients {
            let (message, ordinal) = self.place_of(recipient);
            let last = self.replies.get(self.reply_of(recipient)).cloned();
            let peer = last.map_or_else(|| "".into(), |said| (*said.peer).into());
            let failure = Failure { recipient, ordinal, verdict, reply: reply.clone(), peer };
            match by_message.last_mut().filter(|(known, _)| *known == message) {
                Some((_, failures)) => failures.push(failure),
                None => by_message.push((message, vec![failure])),
            }
        }
        for (message, failures) in by_message {
            let (record, content) = self.at_hand(message);
            let subject = Subject::Failed(failures);
            self.report(now, ReportJob { message, record, content, subject });
        }
    }

    fn at_hand(&self, message: MessageSlot) -> (Option<Arc<record::Message>>, Option<SmallVec<[Bytes; 4]>>) {
        match self.messages.get(message).and_then(|message| message.fresh.as_deref()) {
            Some(fresh) => (Some(fresh.record.clone()), Some(fresh.content.clone())),
            None => (None, None),
        }
    }

    /// A recipient has waited so long that its sender should know.
    pub(crate) fn warn(&mut self, now: Timestamp, recipient: RecipientSlot) {
        let (message, _) = self.place_of(recipient);
        let (record, content) = self.at_hand(message);
        self.report(now, ReportJob { message, record, content, subject: Subject::Delayed(recipient) });
    }

    /// When a recipient's sender is warned of delay; never if it does not want to know.
    pub(crate) fn warning_time(&self, record: &record::Message, ordinal: u16) -> Option<Timestamp> {
        let after = self.snapshot.delivery.delay_warning;
        let wanted = match record.recipients.get(usize::from(ordinal)).and_then(|recipient| recipient.notify)
        {
            Some(Notify::Never) => false,
            Some(Notify::On { delay, .. }) => delay,
            None => true,
        };
        let answerable = record.envelope.reverse_path.is_some() && record.report.is_none();
        (wanted && answerable && !after.is_zero()).then(|| record.due.unwrap_or(record.accepted_at) + after)
    }

    /// Goes on with a report, or reads what it lacks first.
    fn report(&mut self, now: Timestamp, mut job: ReportJob) {
        let Some(record) = job.record.clone() else {
            let position = self.messages.get(job.message).and_then(|message| message.position);
            return match position {
                Some(position) => {
                    let job = self.new_job(Job::Report(Box::new(job)));
                    self.effects.push_back(Effect::Load { job, position });
                }
                None => self.conclude(now, job, None),
            };
        };
        if !wants_report(&record, &job.subject) {
            return self.conclude(now, job, None);
        }
        // The header section stands in the first chunk of a message that has chunks.
        let first_chunk = self.messages.chunks(record.number).first().copied().flatten();
        match (record.chunks > 0, first_chunk, &job.content) {
            (true, Some(position), Some(content)) if !content.is_empty() => {
                job.content = Some(SmallVec::new());
                let job = self.new_job(Job::Report(Box::new(job)));
                self.effects.push_back(Effect::Load { job, position });
            }
            _ => self.conclude(now, job, Some(&record)),
        }
    }

    pub(crate) fn loaded_for_report(&mut self, now: Timestamp, mut job: ReportJob, loaded: Option<Loaded>) {
        let Some(Loaded { head, body }) = loaded else {
            // A damaged record must not keep its recipients from their verdict.
            job.content = Some(SmallVec::new());
            let record = job.record.clone();
            return self.conclude(now, job, record.as_deref());
        };
        match &job.record {
            Some(record) => {
                let record = record.clone();
                job.content = Some(SmallVec::from_iter([body]));
                self.conclude(now, job, Some(&record));
            }
            None => match record::Message::decode(&head) {
                Ok(record) => {
                    job.record = Some(Arc::new(record));
                    job.content = Some(SmallVec::from_iter([body]));
                    self.report(now, job);
                }
                Err(_) => self.conclude(now, job, None),
            },
        }
    }

    /// Writes the DSN, if there is one to write, and then the verdicts, so that a verdict in the log means
    /// that its report is there too.
    fn conclude(&mut self, now: Timestamp, job: ReportJob, record: Option<&record::Message>) {
        let content = job.content.unwrap_or_default();
        match job.subject {
            Subject::Failed(failures) => {
                // An act or a reload may have come between: only those still there get their verdict.
                let failures: Vec<_> = failures
                    .into_iter()
                    .filter(|f| self.is_alive(job.message, f.recipient, f.ordinal))
                    .collect();
                if let Some(record) = record {
                    let wanted: Vec<_> =
                        failures.iter().filter(|f| wants_failure(record, f.ordinal)).collect();
                    if !wanted.is_empty() {
                        let lines: Vec<_> =
                            wanted.iter().map(|f| line(f.ordinal, &f.reply, &f.peer, f.verdict)).collect();
                        self.send_report(now, record, &content, ReportKind::Failed, &lines);
                    }
                }
                self.give_verdicts(now, job.message, &failures);
            }
            Subject::Delayed(recipient) => {
                let Some(record) = record else { return };
                let (message, ordinal) = self.place_of(recipient);
                if message != job.message {
                    return;
                }
                let said = self.replies.get(self.reply_of(recipient)).cloned();
                let (reply, peer) = match &said {
                    Some(said) => (said.reply.clone(), &*said.peer),
                    None => {
                        let text = "The next hop could not be reached yet";
                        (Reply::ours(451, EnhancedCode(4, 4, 1), text), "")
                    }
                };
                let lines = [Line { ordinal, reply: &reply, peer, action: Action::Delayed }];
                self.send_report(now, record, &content, ReportKind::Delayed, &lines);
            }
        }
    }

    pub(crate) fn is_alive(&self, message: MessageSlot, recipient: RecipientSlot, ordinal: u16) -> bool {
        self.messages.recipients(message).any(|known| known == recipient)
            && self.place_of(recipient).1 == ordinal
    }

    fn give_verdicts(&mut self, now: Timestamp, message: MessageSlot, failures: &[Failure]) {
        let mut left: Vec<&Failure> = failures.iter().collect();
        while let Some(&first) = left.first() {
            let (same, rest): (Vec<&Failure>, Vec<&Failure>) = left
                .into_iter()
                .partition(|f| f.reply == first.reply && f.peer == first.peer && f.verdict == first.verdict);
            let group: Vec<_> = same.iter().map(|f| (f.recipient, f.ordinal)).collect();
            self.finish(now, message, &group, first.verdict, &first.reply, &first.peer);
            left = rest;
        }
    }

    /// The sender asked to hear of success and the next hop will not say so (RFC 3461 §5.2.2).
    pub(crate) fn report_success(
        &mut self,
        now: Timestamp,
        open: &Open,
        delivered: &Ordinals,
        settlement: &Settlement,
    ) {
        let wants = |ordinal: &u16| {
            let recipient = open.record.recipients.get(usize::from(*ordinal));
            matches!(recipient.and_then(|r| r.notify), Some(Notify::On { success: true, .. }))
        };
        if !may_report(&open.record) || !delivered.iter().any(wants) {
            return;
        }
        let outcome = |ordinal: u16| settlement.outcomes.iter().find(|(known, _)| *known == ordinal);
        let lines: Vec<_> = delivered
            .iter()
            .filter(|ordinal| wants(ordinal))
            .filter_map(|&ordinal| match outcome(ordinal) {
                Some((_, Settled::Outcome(Outcome::Delivered(reply)))) => {
                    Some(line(ordinal, reply, &settlement.peer, Terminal::Delivered(settlement.via)))
                }
                _ => None,
            })
            .collect();
        let record = open.record.clone();
        self.send_report(now, &record, &open.content, ReportKind::Delivered, &lines);
    }

    /// Writes a DSN and puts it in the queue like any message, ahead of the verdicts it reports.
    fn send_report(
        &mut self,
        now: Timestamp,
        record: &record::Message,
        content: &[Bytes],
        kind: ReportKind,
        lines: &[Line<'_>],
    ) {
        let Some(sender) = record.envelope.reverse_path.clone() else { return };
        if self.snapshot.route(sender.domain(), None).is_none() {
            // Nobody can be told; the verdict itself is in the log and the event journal.
            return;
        }
        let number = self.new_number();
        let recipients: Vec<_> = lines
            .iter()
            .filter_map(|line| {
                let params = record.recipients.get(usize::from(line.ordinal))?;
                Some(Reported { params, action: line.action, reply: line.reply, peer: line.peer, at: now })
            })
            .collect();
        let id = self.cipher.message(now, number).to_string();
        let boundary: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
        let built = postrider_message::Report {
            message: record,
            message_id: &self.cipher.message(record.accepted_at, record.number).to_string(),
            recipients: &recipients,
            content,
            host: &self.snapshot.hostname,
            id: &id,
            boundary: &boundary,
            at: now,
        }
        .build();
        let Some(built) = built else { return };
        let utf8 = built.utf8_header || sender.needs_smtputf8();
        let message = record::Message {
            number,
            accepted_at: now,
            expires_at: now + self.snapshot.delivery.expire,
            class: Class::Transactional,
            account: record.account.clone(),
            client: "".into(),
            envelope: Envelope {
                reverse_path: None,
                body: if built.eight_bit { BodyKind::EightBitMime } else { BodyKind::SevenBit },
                smtputf8: utf8,
                ..Envelope::default()
            },
            recipients: vec![RecipientParams { notify: Some(Notify::Never), ..sender.into() }],
            encoding: Encoding::Stuffed,
            eight_bit: built.eight_bit,
            utf8_header: built.utf8_header,
            header_size: built.header_size,
            content_size: built.size,
            chunks: 0,
            held: false,
            sent_at_once: false,
            due: None,
            report: Some(Report {
                of: record.number,
                kind,
                ordinals: lines.iter().map(|line| line.ordinal).collect(),
            }),
        };
        let content = built.pieces.into_iter().collect();
        self.submit_as(Draft { message, content }, Origin::Engine);
    }

    /// The sender of a recipient was warned; once is enough.
    pub(crate) fn no_more_warnings(&mut self, recipient: RecipientSlot) {
        self.queue.clear_warning(recipient);
    }
}

/// A recipient's part of a DSN.
#[derive(Clone, Copy)]
struct Line<'a> {
    ordinal: u16,
    reply: &'a Reply,
    peer: &'a str,
    action: Action,
}

fn line<'a>(ordinal: u16, reply: &'a Reply, peer: &'a str, verdict: Terminal) -> Line<'a> {
    let action = match verdict {
        Terminal::Delivered(Via::Lmtp) => Action::Delivered,
        Terminal::Delivered(Via::Mx | Via::Smarthost) => Action::Relayed,
        Terminal::Expired => Action::Expired,
        Terminal::Bounced
        | Terminal::Cancelled
        | Terminal::Suppressed
        | Terminal::Dropped
        | Terminal::Captured => Action::Failed,
    };
    Line { ordinal, reply, peer, action }
}

fn may_report(record: &record::Message) -> bool {
    record.envelope.reverse_path.is_some() && record.report.is_none()
}

fn wants_failure(record: &record::Message, ordinal: u16) -> bool {
    let notify = record.recipients.get(usize::from(ordinal)).and_then(|recipient| recipient.notify);
    may_report(record)
        && match notify {
            None => true,
            Some(Notify::Never) => false,
            Some(Notify::On { failure, .. }) => failure,
        }
}

fn wants_report(record: &record::Message, subject: &Subject) -> bool {
    match subject {
        Subject::Failed(failures) => failures.iter().any(|failure| wants_failure(record, failure.ordinal)),
        Subject::Delayed(_) => may_report(record),
    }
}
