//! A client that speaks SMTP in octets, and knows what it was promised.

use crate::ledger::{Ledger, MessageKey};
use postrider_spool::testing::Dice;
use std::collections::VecDeque;

/// What the next reply answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Greeting,
    Ehlo,
    Mail,
    Rcpt(usize),
    Data,
    End,
}

/// One client connection, sending messages one after the other.
#[derive(Debug)]
pub(crate) struct Client {
    /// Octets on their way to the relay.
    pub(crate) out: VecDeque<u8>,
    input: Vec<u8>,
    awaited: VecDeque<Awaited>,
    message: Option<(MessageKey, Vec<bool>)>,
    left: u32,
    body_size_max: u64,
    pub(crate) is_over: bool,
}

impl Client {
    pub(crate) fn new(left: u32, body_size_max: u64) -> Self {
        Client {
            out: VecDeque::new(),
            input: Vec::new(),
            awaited: VecDeque::from([Awaited::Greeting]),
            message: None,
            left,
            body_size_max,
            is_over: false,
        }
    }

    /// Takes what the relay said.
    pub(crate) fn hear(&mut self, said: &[u8], ledger: &mut Ledger, dice: &mut Dice) {
        self.input.extend_from_slice(said);
        while let Some(end) = memchr::memmem::find(&self.input, b"\r\n") {
            let line: Vec<u8> = self.input.drain(..end + 2).collect();
            assert!(line.len() >= 5, "a reply of {line:?}");
            if line[3] == b' ' {
                self.answered(line[0] == b'2' || line[0] == b'3', ledger, dice);
            }
            if self.is_over {
                return;
            }
        }
    }

    fn answered(&mut self, is_good: bool, ledger: &mut Ledger, dice: &mut Dice) {
        match self.awaited.pop_front() {
            None => self.is_over = true,
            Some(Awaited::Greeting) => {
                self.say("EHLO client.test\r\n");
                self.awaited.push_back(Awaited::Ehlo);
            }
            Some(Awaited::Ehlo) => self.begin(ledger, dice),
            Some(Awaited::Mail) => {}
            Some(Awaited::Rcpt(at)) => {
                if let Some((_, accepted)) = &mut self.message {
                    accepted[at] = is_good;
                }
            }
            Some(Awaited::Data) => {
                if is_good {
                    self.send_content(dice);
                    self.awaited.push_back(Awaited::End);
                } else {
                    self.message = None;
                    self.begin(ledger, dice);
                }
            }
            Some(Awaited::End) => {
                if let (true, Some((key, accepted))) = (is_good, self.message.take()) {
                    ledger.acknowledged(key, &accepted);
                }
                self.begin(ledger, dice);
            }
        }
    }

    fn begin(&mut self, ledger: &mut Ledger, dice: &mut Dice) {
        if self.left == 0 {
            self.say("QUIT\r\n");
            self.is_over = true;
            return;
        }
        self.left -= 1;
        let count = 1 + usize::try_from(dice.below(4)).unwrap_or(0);
        let (key, recipients) = ledger.new_message(count, dice);
        let mut text = format!("MAIL FROM:<{}>\r\n", Ledger::sender(key));
        for recipient in &recipients {
            text.push_str(&format!("RCPT TO:<{recipient}>\r\n"));
        }
        text.push_str("DATA\r\n");
        self.awaited.push_back(Awaited::Mail);
        self.awaited.extend((0..count).map(Awaited::Rcpt));
        self.awaited.push_back(Awaited::Data);
        self.message = Some((key, vec![false; count]));
        self.say(&text);
    }

    fn send_content(&mut self, dice: &mut Dice) {
        let Some((key, _)) = self.message else { return };
        let mut text = format!("From: a@sender.test\r\nSubject: {key}\r\n\r\n").into_bytes();
        let size = if dice.chance(60) { self.body_size_max } else { 1 + dice.below(3000) };
        while (text.len() as u64) < size {
            if dice.chance(20) {
                text.extend_from_slice(b"..stuffed\r\n");
            }
            text.extend_from_slice(b"0123456789abcdefghijklmnopqrstuvwxyz 0123456789abcdefghijklm\r\n");
        }
        text.extend_from_slice(b".\r\n");
        self.out.extend(text);
    }

    fn say(&mut self, text: &str) {
        self.out.extend(text.bytes());
    }
}
