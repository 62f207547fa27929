//! What one message costs a session that is kept: MAIL, RCPT and DATA in one write, the content, the hand-over
//! and the reply when it is durable.

use crate::Path;
use postrider_engine::{Draft, Intake, Refusal};
use postrider_ingress::example;
use postrider_model::{MessageNo, Timestamp};
use postrider_spool::Ticket;
use std::hint::black_box;

const NOW: Timestamp = Timestamp::from_secs(1_795_526_426);
/// Octets that one read brings.
const READ_SIZE: usize = 16 << 10;
/// The usual message.
pub const SMALL: usize = 4 << 10;
/// One with a picture, in one record.
pub const LARGE: usize = 100_000;
/// One that streams to the log in chunks.
pub const VERY_LARGE: usize = 1 << 20;

/// An engine that drops what it is given at once, so that only the session is measured.
struct Sink(u64);

impl Intake for Sink {
    fn begin(&mut self, _: Timestamp, _: u64) -> Result<MessageNo, Refusal> {
        self.0 += 1;
        Ok(MessageNo(self.0))
    }
    fn chunk(&mut self, _: MessageNo, _: u32, content: bytes::Bytes) -> Result<(), Refusal> {
        drop(black_box(content));
        Ok(())
    }
    fn submit(&mut self, _: Timestamp, draft: Draft) -> Result<Ticket, Refusal> {
        Ok(Ticket(black_box(draft).message.number.0))
    }
    fn abandon(&mut self, _: MessageNo) {}
}

/// A session that takes messages of `SIZE` octets.
pub struct Session<const SIZE: usize> {
    session: postrider_ingress::Session,
    engine: Sink,
    content: Vec<u8>,
}

impl<const SIZE: usize> Path for Session<SIZE> {
    const NAME: &'static str = "session_per_message";
    const ITEMS: u32 = 1;

    fn ready() -> Self {
        let (mut context, _) = example(NOW);
        let mut listener = (*context.listener).clone();
        listener.limits.messages_max = usize::MAX;
        context.listener = listener.into();
        let mut session = postrider_ingress::Session::new(context);
        session.output().clear();
        let mut engine = Sink(0);
        session.receive(NOW, b"EHLO client.example\r\n", &mut engine);
        session.output().clear();
        Session { session, engine, content: content(SIZE) }
    }

    fn step(&mut self) {
        let Session { session, engine, content } = self;
        let envelope =
            b"MAIL FROM:<sender@example.com> BODY=8BITMIME\r\nRCPT TO:<recipient@example.net>\r\nDATA\r\n";
        assert_eq!(session.receive(NOW, envelope, engine), envelope.len());
        session.output().clear();
        let mut rest = &content[..];
        while !rest.is_empty() {
            rest = &rest[session.receive(NOW, &rest[..rest.len().min(READ_SIZE)], engine)..];
        }
        session.durable(NOW, Ticket(engine.0), Ok(()));
        session.receive(NOW, b"", engine);
        assert!(session.output().starts_with(b"250 "));
        session.output().clear();
    }
}

fn content(size: usize) -> Vec<u8> {
    let mut content = b"From: Sender <sender@example.com>\r\nTo: Recipient <recipient@example.net>\r\n\
        Subject: A message of the usual size\r\nDate: Tue, 24 Nov 2026 13:20:26 +0000\r\n\
        Message-ID: <0123456789@example.com>\r\nMIME-Version: 1.0\r\n\
        Content-Type: text/plain; charset=utf-8\r\n\r\n"
        .to_vec();
    while content.len() < size {
        content.extend_from_slice(
            b"The quick brown fox jumps over the lazy dog, and then the dog sleeps on.\r\n",
        );
    }
    content.extend_from_slice(b".\r\n");
    content
}
