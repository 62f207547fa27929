//! One transaction on its way: MAIL, RCPT, DATA or BDAT, the content, the end.

use crate::classify;
use crate::fit::{self, Fit, refusal};
use bytes::Bytes;
use postrider_engine::{Piece, Settled, Transaction};
use postrider_model::{Encoding, EnhancedCode, Ordinal, Outcome, Reply};
use postrider_smtp::client::{Client, Dialect, Extensions};
use postrider_smtp::reply::{RawReply, Violation};
use postrider_smtp::transform::{Part, Transform};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::fmt::Write as _;

/// Octets that wait in the output before more content is put there.
const BACKLOG_MAX: usize = 512 << 10;

/// A content of so many octets at most waits for leave to end, so that it goes out in one write with its end and the
/// next envelope. A longer one begins.
const WAITS_WHOLE_MAX: u64 = 64 << 10;

/// What is known of a recipient so far.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// RCPT has not been answered, perhaps not been sent.
    Waiting,
    /// RCPT was accepted.
    Accepted,
    /// Its outcome.
    Settled(Settled),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The content is gathered, to be turned into seven-bit lines.
    Gathering,
    /// Commands are being sent and answered.
    Envelope,
    /// The content is being sent.
    Content,
    /// The end of the content is in the output; its replies are awaited.
    Ending,
    /// No recipient is left; replies that are still due are read and passed over.
    Abandoned,
    /// Every recipient has its fate and every reply came.
    Finished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Mail,
    Rcpt,
    Data,
    Sent,
}

/// What the content's progress needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// This piece must be read.
    Asks(usize),
    /// Nothing, or something that comes by itself: room in the output, the attempt's mark, a reply.
    Waits,
}

/// A transaction and how far it has come.
#[derive(Debug)]
pub(crate) struct Sending {
    pub(crate) transaction: Transaction,
    pub(crate) stage: Stage,
    fit: Fit,
    fates: SmallVec<[(Ordinal, Fate); 4]>,
    step: Step,
    /// The first of `fates` for which RCPT was not sent.
    rcpt_next: usize,
    /// Waiting and accepted recipients.
    open: usize,
    accepted: usize,
    mail_accepted: bool,
    data_granted: bool,
    /// Replies that are due.
    awaited: usize,
    any_reply: bool,
    transform: Transform,
    /// Octets of the content as it is sent.
    content_size: u64,
    piece: usize,
    asked: Option<usize>,
    /// The place in all output at which the end of the content is complete.
    end_at: u64,
    /// The recipients that the server took before it said it would take no more.
    pub(crate) full_at: Option<usize>,
}

impl Sending {
    /// Prepares a transaction for at most `recipients_max` recipients; the others go back untried.
    pub(crate) fn new(transaction: Transaction, fit: Fit, recipients_max: usize) -> Self {
        let mut open = 0;
        let mut fates = SmallVec::with_capacity(transaction.ordinals.len());
        for &ordinal in &transaction.ordinals {
            let recipient = transaction.message.recipients.get(usize::from(ordinal));
            let fate = match recipient {
                // A transaction for a recipient that its message does not have is the engine's error.
                None => Fate::Settled(Settled::NotTried),
                Some(recipient) if recipient.mailbox.needs_smtputf8() && !fit.smtputf8() => {
                    Fate::Settled(Settled::Outcome(Outcome::Failed(refusal(
                        EnhancedCode(5, 6, 7),
                        "The address holds other than ASCII, and the next hop does not offer SMTPUTF8.",
                    ))))
                }
                Some(_) if open >= recipients_max => Fate::Settled(Settled::NotTried),
                Some(_) => {
                    open += 1;
                    Fate::Waiting
                }
            };
            fates.push((ordinal, fate));
        }
        // What is converted comes out stuffed.
        let encoding = if fit.converts { Encoding::Stuffed } else { transaction.message.encoding };
        let transform =
            if fit.chunking { Transform::for_bdat(encoding) } else { Transform::for_data(encoding) };
        Sending {
            content_size: transaction.message.content_size,
            transaction,
            stage: match open {
                0 => Stage::Finished,
                _ if fit.converts => Stage::Gathering,
                _ => Stage::Envelope,
            },
            fit,
            fates,
            step: Step::Mail,
            rcpt_next: 0,
            open,
            accepted: 0,
            mail_accepted: false,
            data_granted: false,
            awaited: 0,
            any_reply: false,
            transform,
            piece: 0,
            asked: None,
            end_at: 0,
            full_at: None,
        }
    }

    /// What became of each recipient. One without a fate, which cannot be in a finished transaction, goes
    /// back untried.
    pub(crate) fn into_outcomes(self) -> SmallVec<[(Ordinal, Settled); 4]> {
        let settled = |fate| match fate {
            Fate::Settled(settled) => settled,
            Fate::Waiting | Fate::Accepted => Settled::NotTried,
        };
        self.fates.into_iter().map(|(ordinal, fate)| (ordinal, settled(fate))).collect()
    }

    /// NOTIFY and ORCPT went with RCPT.
    pub(crate) fn passed_dsn(&self) -> bool {
        self.fit.passes_dsn()
    }

    /// Waits for all of the content and turns it into seven-bit lines; then the envelope can go.
    pub(crate) fn gather(&mut self, offered: &Extensions) -> Pumped {
        let mut content: SmallVec<[Bytes; 4]> = SmallVec::new();
        for (i, piece) in self.transaction.pieces.iter().enumerate() {
            match piece {
                Piece::Memory(bytes) => content.push(bytes.clone()),
                Piece::Log { .. } if self.asked == Some(i) => return Pumped::Waits,
                Piece::Log { .. } => {
                    self.asked = Some(i);
                    self.piece = i;
                    return Pumped::Asks(i);
                }
            }
        }
        (self.piece, self.asked) = (0, None);
        let converted = fit::convert(&content, self.transaction.message.encoding).and_then(|converted| {
            let size = converted.pieces.iter().map(|piece| piece.len() as u64).sum();
            fit::check_size(size, offered).map(|()| (converted, size))
        });
        match converted {
            Ok((converted, size)) => {
                self.transaction.pieces = converted.pieces.into_iter().map(Piece::Memory).collect();
                self.content_size = size;
                self.stage = Stage::Envelope;
            }
            Err(reply) => {
                self.settle_open(Outcome::Failed(reply));
                self.stage = Stage::Finished;
            }
        }
        Pumped::Waits
    }

    /// Sends what may be sent of the envelope, and goes on to the content when all of it was granted.
    pub(crate) fn drive_envelope(&mut self, client: &mut Client, pipelining: bool) {
        while self.open > 0 && (pipelining || self.awaited == 0) && self.send_step(client) {}
        if self.awaited > 0 {
            return;
        }
        if self.open == 0 {
            self.abandon(client);
        } else if self.step == Step::Sent && (self.data_granted || self.fit.chunking) {
            self.stage = Stage::Content;
        }
    }

    /// Sends the next command of the envelope; false when there is none.
    fn send_step(&mut self, client: &mut Client) -> bool {
        let message = &self.transaction.message;
        match self.step {
            Step::Mail => {
                client.mail(
                    message.envelope.reverse_path.as_ref(),
                    &self.fit.params(message, self.content_size),
                );
                self.awaited += 1;
                self.step = Step::Rcpt;
            }
            Step::Rcpt => {
                let rest = self.fates[self.rcpt_next..].iter();
                let Some(skip) = rest.clone().position(|(_, fate)| matches!(fate, Fate::Waiting)) else {
                    self.step = Step::Data;
                    return true;
                };
                let at = self.rcpt_next + skip;
                // Invariant: `new` settled what the message does not have.
                let recipient = &message.recipients[usize::from(self.fates[at].0)];
                let dsn = self.fit.passes_dsn();
                let orcpt = recipient.orcpt.as_deref().filter(|_| dsn);
                let orcpt = orcpt.map(|orcpt| orcpt_for(orcpt, self.fit.smtputf8()));
                client.rcpt(&recipient.mailbox, recipient.notify.filter(|_| dsn), orcpt.as_deref());
                self.awaited += 1;
                self.rcpt_next = at + 1;
            }
            Step::Data => {
                if !self.fit.chunking {
                    client.data();
                    self.awaited += 1;
                }
                self.step = Step::Sent;
            }
            Step::Sent => return false,
        }
        true
    }

    /// No recipient is left: leaves the transaction as RFC 2920 §3.1 asks.
    fn abandon(&mut self, client: &mut Client) {
        self.stage = Stage::Finished;
        if self.data_granted {
            // The server waits for content although it accepted nobody: an empty one, which it must refuse.
            client.end(1);
            self.awaited += 1;
            self.stage = Stage::Abandoned;
        } else if self.mail_accepted {
            client.rset();
        }
    }

    /// Takes the reply to MAIL.
    pub(crate) fn on_mail(&mut self, reply: RawReply<'_>) -> Result<(), Violation> {
        self.replied();
        match reply.code() / 100 {
            2 => self.mail_accepted = true,
            4 | 5 => self.settle_open(outcome(reply)),
            _ => return Err(Violation::Senseless),
        }
        Ok(())
    }

    /// Takes the reply to the oldest unanswered RCPT.
    pub(crate) fn on_rcpt(&mut self, reply: RawReply<'_>) -> Result<(), Violation> {
        self.replied();
        // After MAIL was refused nobody waits; the server's complaints about order are passed over.
        let Some(at) = self.fates.iter().position(|(_, fate)| matches!(fate, Fate::Waiting)) else {
            return Ok(());
        };
        let fate = match reply.code() / 100 {
            2 => {
                self.accepted += 1;
                Fate::Accepted
            }
            4 | 5 if self.accepted > 0 && classify::is_full(reply) => {
                self.full_at.get_or_insert(self.accepted);
                Fate::Settled(Settled::NotTried)
            }
            4 | 5 => Fate::Settled(Settled::Outcome(outcome(reply))),
            _ => return Err(Violation::Senseless),
        };
        self.open -= usize::from(matches!(fate, Fate::Settled(_)));
        self.fates[at].1 = fate;
        Ok(())
    }

    /// Takes the reply to DATA.
    pub(crate) fn on_data(&mut self, reply: RawReply<'_>) -> Result<(), Violation> {
        self.replied();
        match reply.code() {
            354 => self.data_granted = true,
            400..=599 => self.settle_open(outcome(reply)),
            _ => return Err(Violation::Senseless),
        }
        Ok(())
    }

    /// Takes the reply to a BDAT that was not the last.
    pub(crate) fn on_bdat(&mut self, reply: RawReply<'_>) -> Result<(), Violation> {
        self.replied();
        match reply.code() / 100 {
            2 => Ok(()),
            4 | 5 => {
                self.settle_open(outcome(reply));
                Ok(())
            }
            _ => Err(Violation::Senseless),
        }
    }

    /// Takes the reply to the end of the content: for all accepted recipients, or with LMTP for the next
    /// one. A 2xx means that the server has taken responsibility.
    pub(crate) fn on_end(&mut self, reply: RawReply<'_>, dialect: Dialect) -> Result<(), Violation> {
        self.replied();
        if self.open > 0 {
            if !matches!(reply.code() / 100, 2 | 4 | 5) {
                return Err(Violation::Senseless);
            }
            match dialect {
                Dialect::Smtp => self.settle_open(outcome(reply)),
                Dialect::Lmtp => self.settle_next(outcome(reply)),
            }
        }
        if self.awaited == 0 {
            self.stage = Stage::Finished;
        }
        Ok(())
    }

    /// Puts content into the output until it is full, a piece is missing, or the end is reached; the end
    /// itself only when it may go.
    pub(crate) fn pump(&mut self, client: &mut Client, pipelining: bool) -> Pumped {
        if self.open == 0 {
            // A chunk was refused. The rest is not sent.
            if self.awaited == 0 {
                self.abandon(client);
            }
            return Pumped::Waits;
        }
        if !self.transaction.may_end && self.content_size <= WAITS_WHOLE_MAX && self.is_at_hand() {
            return Pumped::Waits;
        }
        // How many replies the last chunk has after a refused one is not clear in LMTP, so there each chunk
        // waits for the reply to the one before.
        let ahead = pipelining && client.dialect() == Dialect::Smtp;
        while self.piece < self.transaction.pieces.len() {
            if client.output().len() > BACKLOG_MAX || self.fit.chunking && !ahead && self.awaited > 0 {
                return Pumped::Waits;
            }
            let Piece::Memory(_) = self.transaction.pieces[self.piece] else {
                if self.asked == Some(self.piece) {
                    return Pumped::Waits;
                }
                self.asked = Some(self.piece);
                return Pumped::Asks(self.piece);
            };
            if self.fit.chunking {
                self.send_chunk(client);
            } else {
                self.send_piece(client);
            }
            if self.stage == Stage::Ending {
                return Pumped::Waits;
            }
        }
        if self.transaction.may_end && (ahead || self.awaited == 0) {
            if self.fit.chunking {
                client.bdat(0, true, self.end_replies(client));
            } else {
                self.transform.finish(|part| {
                    if let Part::Insert(bytes) = part {
                        client.content_insert(bytes);
                    }
                });
                client.end(self.end_replies(client));
            }
            self.ended(client);
        }
        Pumped::Waits
    }

    /// No piece has to be read.
    fn is_at_hand(&self) -> bool {
        self.transaction.pieces.iter().all(|piece| matches!(piece, Piece::Memory(_)))
    }

    /// The next piece by DATA.
    fn send_piece(&mut self, client: &mut Client) {
        let Piece::Memory(bytes) = &self.transaction.pieces[self.piece] else { return };
        self.transform.piece(bytes, |part| match part {
            Part::Keep(range) if range.len() == bytes.len() => client.content(bytes.clone()),
            Part::Keep(range) => client.content(bytes.slice(range)),
            Part::Insert(inserted) => client.content_insert(inserted),
        });
        self.release_piece();
        self.piece += 1;
    }

    /// All pieces at hand as one chunk by BDAT, the last one if it is and may be.
    fn send_chunk(&mut self, client: &mut Client) {
        let mut parts: SmallVec<[Bytes; 8]> = SmallVec::new();
        while let Some(Piece::Memory(bytes)) = self.transaction.pieces.get(self.piece) {
            self.transform.piece(bytes, |part| match part {
                Part::Keep(range) => parts.push(bytes.slice(range)),
                Part::Insert(inserted) => parts.push(Bytes::from_static(inserted)),
            });
            self.release_piece();
            self.piece += 1;
        }
        let size: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let last = self.transaction.may_end && self.piece == self.transaction.pieces.len();
        if size == 0 && !last {
            return;
        }
        client.bdat(size, last, self.end_replies(client));
        for part in parts {
            client.content(part);
        }
        if last {
            self.ended(client);
        } else {
            self.awaited += 1;
        }
    }

    /// A piece that was read for us is held by the output alone from now on.
    fn release_piece(&mut self) {
        if self.asked == Some(self.piece) {
            self.transaction.pieces[self.piece] = Piece::Memory(Bytes::new());
        }
    }

    fn end_replies(&self, client: &Client) -> usize {
        match client.dialect() {
            Dialect::Smtp => 1,
            Dialect::Lmtp => self.accepted,
        }
    }

    fn ended(&mut self, client: &Client) {
        self.awaited += self.end_replies(client);
        self.end_at = client.output().queued_in_all();
        self.stage = Stage::Ending;
    }

    /// The end of the content has been written to the connection, so the server may have the message.
    pub(crate) fn is_end_written(&self, client: &Client) -> bool {
        self.stage == Stage::Ending && client.output().written_in_all() >= self.end_at
    }

    /// The piece that was asked for and has not come.
    pub(crate) fn awaited_piece(&self) -> Option<usize> {
        let asked = self.asked.filter(|&asked| asked == self.piece)?;
        matches!(self.transaction.pieces.get(asked)?, Piece::Log { .. }).then_some(asked)
    }

    /// Takes a piece that was asked for.
    pub(crate) fn take_piece(&mut self, piece: usize, bytes: Bytes) {
        if self.asked == Some(piece) && self.piece == piece {
            self.transaction.pieces[piece] = Piece::Memory(bytes);
        }
    }

    /// Nothing of it was sent.
    pub(crate) fn is_unsent(&self) -> bool {
        self.step == Step::Mail
    }

    /// No reply to this transaction has come.
    pub(crate) fn is_unanswered(&self) -> bool {
        !self.any_reply
    }

    /// Gives all recipients without a fate this one.
    pub(crate) fn settle_rest(&mut self, settled: Settled) {
        let open = self.fates.iter_mut().filter(|(_, fate)| !matches!(fate, Fate::Settled(_)));
        // The last one takes the value, so that a message for one recipient copies no reply.
        let mut left = self.open;
        let mut settled = Some(settled);
        for (_, fate) in open {
            left = left.saturating_sub(1);
            let taken = if left == 0 { settled.take() } else { settled.clone() };
            *fate = Fate::Settled(taken.unwrap_or(Settled::NotTried));
        }
        self.open = 0;
    }

    /// Gives the next recipient that waits for an answer this one.
    pub(crate) fn settle_next(&mut self, outcome: Outcome) {
        let wanted = self.stage == Stage::Ending;
        let open = self.fates.iter_mut().find(|(_, fate)| match fate {
            Fate::Accepted => wanted,
            Fate::Waiting => !wanted,
            Fate::Settled(_) => false,
        });
        if let Some((_, fate)) = open {
            *fate = Fate::Settled(Settled::Outcome(outcome));
            self.open -= 1;
        }
    }

    fn settle_open(&mut self, outcome: Outcome) {
        self.settle_rest(Settled::Outcome(outcome));
    }

    fn replied(&mut self) {
        self.any_reply = true;
        self.awaited = self.awaited.saturating_sub(1);
    }
}

/// ORCPT for a server without SMTPUTF8: what is not ASCII as `\x{HEX}` (RFC 6533 §3).
fn orcpt_for(orcpt: &str, smtputf8: bool) -> Cow<'_, str> {
    if smtputf8 || orcpt.is_ascii() {
        return orcpt.into();
    }
    let mut out = String::with_capacity(orcpt.len() * 2);
    for c in orcpt.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\x{{{:X}}}", u32::from(c));
        }
    }
    out.into()
}

/// A reply as the outcome of what it answers.
pub(crate) fn outcome(reply: RawReply<'_>) -> Outcome {
    let reply: Reply = reply.to_reply();
    match reply.code() / 100 {
        2 => Outcome::Delivered(reply),
        5 => Outcome::Failed(reply),
        _ => Outcome::Deferred(reply),
    }
}
