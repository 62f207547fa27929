//! A receiving site: speaks SMTP in octets, and is as good or bad as its seed makes it.

use postrider_spool::testing::Dice;

/// How bad a site is, of a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manners {
    pub(crate) refuses_connections: u64,
    pub(crate) greets_with_421: u64,
    pub(crate) defers: u64,
    pub(crate) rejects: u64,
    pub(crate) drops: u64,
    pub(crate) drops_after_the_dot: u64,
    pub(crate) pipelining: bool,
}

/// What came of a transaction at the site.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Recipients that the site has the message for.
    pub(crate) recipients: Vec<String>,
    /// The reverse-path.
    pub(crate) sender: String,
}

/// One connection at a site.
#[derive(Debug)]
pub(crate) struct SiteSession {
    manners: Manners,
    input: Vec<u8>,
    in_data: bool,
    sender: String,
    recipients: Vec<String>,
    /// What it says.
    pub(crate) out: Vec<u8>,
    /// It closes once this was said.
    pub(crate) closes: bool,
    /// It had the message and said nothing.
    pub(crate) dropped_after_the_dot: u64,
}

impl SiteSession {
    pub(crate) fn new(manners: Manners, dice: &mut Dice) -> Self {
        let throttles = dice.chance(manners.greets_with_421);
        SiteSession {
            manners,
            input: Vec::new(),
            in_data: false,
            sender: String::new(),
            recipients: Vec::new(),
            out: if throttles {
                b"421 4.7.0 too many connections\r\n".to_vec()
            } else {
                b"220 site.test ESMTP\r\n".to_vec()
            },
            closes: throttles,
            dropped_after_the_dot: 0,
        }
    }

    /// Takes octets from the relay; gives the messages that the site has now.
    pub(crate) fn hear(&mut self, octets: &[u8], dice: &mut Dice) -> Vec<Taken> {
        self.input.extend_from_slice(octets);
        let mut taken = Vec::new();
        while !self.closes {
            let end: &[u8] = if self.in_data { b"\r\n.\r\n" } else { b"\r\n" };
            let Some(at) = memchr::memmem::find(&self.input, end) else { break };
            let text: Vec<u8> = self.input.drain(..at + end.len()).collect();
            if self.in_data {
                self.in_data = false;
                check_content(&text);
                taken.extend(self.end_of_data(dice));
            } else {
                let line = String::from_utf8_lossy(&text).trim_end().to_owned();
                self.command(&line, dice);
            }
        }
        taken
    }

    fn command(&mut self, line: &str, dice: &mut Dice) {
        if dice.chance(self.manners.drops) {
            self.closes = true;
            return;
        }
        let address = || line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        let reply = match verb.as_str() {
            "EHLO" if self.manners.pipelining => "250-site.test\r\n250-PIPELINING\r\n250 8BITMIME",
            "EHLO" | "HELO" | "RSET" => "250 ok",
            "MAIL" => {
                self.sender = address();
                self.recipients.clear();
                "250 ok"
            }
            "RCPT" if dice.chance(self.manners.rejects) => "550 5.1.1 no such user",
            "RCPT" if dice.chance(self.manners.defers) => "450 4.2.1 not now",
            "RCPT" => {
                self.recipients.push(address());
                "250 ok"
            }
            "DATA" if self.recipients.is_empty() => "503 5.5.1 no recipients",
            "DATA" => {
                self.in_data = true;
                // The content's first line may be the end of it.
                self.input.splice(..0, *b"\r\n");
                "354 go"
            }
            "QUIT" => {
                self.closes = true;
                "221 bye"
            }
            _ => panic!("the relay said {line:?}"),
        };
        self.out.extend_from_slice(reply.as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    fn end_of_data(&mut self, dice: &mut Dice) -> Option<Taken> {
        let taken = Taken {
            recipients: std::mem::take(&mut self.recipients),
            sender: std::mem::take(&mut self.sender),
        };
        if dice.chance(self.manners.defers / 2) {
            self.out.extend_from_slice(b"451 4.3.0 later\r\n");
            return None;
        }
        if dice.chance(self.manners.rejects / 4) {
            self.out.extend_from_slice(b"554 5.6.0 not that\r\n");
            return None;
        }
        if dice.chance(self.manners.drops_after_the_dot) {
            self.closes = true;
            self.dropped_after_the_dot += taken.recipients.len() as u64;
        } else {
            self.out.extend_from_slice(b"250 2.0.0 taken\r\n");
        }
        Some(taken)
    }
}

/// What we send is CRLF-clean and dot-stuffed.
fn check_content(text: &[u8]) {
    for (at, octet) in text.iter().enumerate() {
        match octet {
            b'\r' => assert_eq!(text.get(at + 1), Some(&b'\n'), "a bare CR at {at}"),
            b'\n' => assert_eq!(text.get(at.wrapping_sub(1)), Some(&b'\r'), "a bare LF at {at}"),
            _ => {}
        }
    }
}
