//! The dialogues of `tests/dialogues`, against a session in memory; each whole and octet by octet, those with
//! `@ split` also cut once at every octet of their writes.
//!
//! Settings: `@ listener NAME` (see [`stage`]); `@ client ADDRESS`; `@ limit NAME NUMBER`; `@ whole` where
//! cutting writes would make another dialogue; `@ memory` where only memory can do it (time, limits).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use postrider_auth::Directory;
use postrider_ingress::{
    Keeper, Session, SessionContext, SessionTls, TlsInfo, UNDER_TLS, Wants, example, stage,
};
use postrider_model::{Notify, Timestamp};
use postrider_smtp::dialogue::{Cut, Dialogue, Peer, parse, run};
use postrider_spool::Ticket;
use std::time::Duration;

const NOW: Timestamp = Timestamp::from_secs(1_795_526_426);
/// The state of TLS in which a listener's sessions begin.
fn tls_of(listener: &str) -> SessionTls {
    if listener == "submissions" {
        SessionTls::Active(TlsInfo { version: "TLSv1.3".into(), cipher: "TLS_AES_256_GCM_SHA384".into() })
    } else if UNDER_TLS.contains(&listener) {
        SessionTls::Offered
    } else {
        SessionTls::Unavailable
    }
}

fn context(dialogue: &Dialogue) -> (SessionContext, Keeper) {
    let (context, engine) = example(NOW);
    let snapshot = stage(NOW);
    let name = dialogue.setting("listener").unwrap_or("relay");
    let listener = snapshot.listeners.iter().find(|listener| &*listener.name == name);
    let mut listener = (**listener.unwrap_or_else(|| panic!("no listener {name}"))).clone();
    for (_, limit) in dialogue.settings.iter().filter(|(key, _)| key == "limit") {
        let (name, number) = limit.split_once(' ').unwrap();
        let number: usize = number.parse().unwrap();
        let limits = &mut listener.limits;
        match name {
            "recipients" => limits.recipients_max = number,
            "messages" => limits.messages_max = number,
            "size" => limits.message_size_max_bytes = number as u64,
            "junk" => limits.junk_commands_max = number,
            "errors" => limits.errors_max = number,
            "line" => limits.line_size_max_bytes = number,
            "text-line" => limits.text_line_size_max_bytes = number,
            other => panic!("no limit {other}"),
        }
    }
    let directory = if listener.sandbox {
        Directory::anyone()
    } else {
        Directory::of_accounts(&snapshot.accounts, [1; 32]).unwrap()
    };
    let client = dialogue.setting("client").unwrap_or("127.0.0.1");
    let context = SessionContext {
        snapshot: snapshot.into(),
        listener: listener.into(),
        directory: directory.into(),
        peer: (client.parse::<std::net::IpAddr>().unwrap(), 4711).into(),
        tls: tls_of(name),
        ..context
    };
    (context, engine)
}

struct Memory {
    session: Session,
    engine: Keeper,
    now: Timestamp,
    input: Vec<u8>,
    greeted: bool,
    next_ticket: usize,
}

impl Memory {
    fn new(dialogue: &Dialogue) -> Self {
        let (context, engine) = context(dialogue);
        let greeted = dialogue.setting("early").is_none();
        Memory {
            session: Session::new(context),
            engine,
            now: NOW,
            input: Vec::new(),
            greeted,
            next_ticket: 0,
        }
    }

    /// Lets the session go on as long as it only waits for what the rest of the relay does.
    fn settle(&mut self) {
        loop {
            let taken = self.session.receive(self.now, &self.input, &mut self.engine);
            self.input.drain(..taken);
            if let Some(job) = self.session.take_auth_job() {
                self.session.auth_verdict(self.now, job.verify());
            } else if self.next_ticket < self.engine.drafts.len() {
                let ticket = Ticket(self.engine.drafts[self.next_ticket].message.number.0);
                self.next_ticket += 1;
                self.session.durable(self.now, ticket, Ok(()));
            } else {
                return;
            }
        }
    }
}

impl Peer for Memory {
    fn send(&mut self, octets: &[u8]) -> Result<(), String> {
        if self.session.wants() == Wants::StartTls {
            return Err("octets in the place of the handshake".to_owned());
        }
        if self.session.wants() != Wants::Close {
            self.input.extend_from_slice(octets);
            self.settle();
        }
        Ok(())
    }

    fn read(&mut self, out: &mut Vec<u8>) -> Result<bool, String> {
        self.greeted = true;
        let says = !self.session.output().is_empty();
        out.append(self.session.output());
        Ok(says)
    }

    fn is_closed(&mut self) -> Result<bool, String> {
        Ok(self.session.wants() == Wants::Close && self.session.output().is_empty())
    }

    fn start_tls(&mut self) -> Result<(), String> {
        if self.session.wants() != Wants::StartTls {
            return Err(format!("the session wants {:?}, no handshake", self.session.wants()));
        }
        let info = TlsInfo { version: "TLSv1.3".into(), cipher: "TLS_AES_256_GCM_SHA384".into() };
        self.session.tls_started(self.now, info);
        Ok(())
    }

    fn wait(&mut self, time: Duration) -> Result<(), String> {
        self.now = self.now + time;
        self.session.timeout(self.now, &mut self.engine);
        self.settle();
        Ok(())
    }

    fn check_message(&mut self, what: &str, value: &[u8]) -> Result<(), String> {
        if what == "count" {
            let count = self.engine.drafts.len().to_string();
            return if count.as_bytes() == value {
                Ok(())
            } else {
                Err(format!("{count} messages were taken"))
            };
        }
        let draft = self.engine.drafts.last().ok_or("no message was taken")?;
        let message = &draft.message;
        let content = self.engine.content(draft);
        assert_eq!(content.len() as u64, message.content_size, "the size in the record");
        let (header, body) = content.split_at(message.header_size as usize);
        let holds = |part: &[u8], whole: &[u8]| whole.windows(part.len()).any(|window| window == part);
        let (fits, found) = match what {
            "body" => (body == value, body.to_vec()),
            "header" => (holds(value, header), header.to_vec()),
            "no-header" => (!holds(value, header), header.to_vec()),
            _ => {
                let found = match what {
                    "from" => {
                        message.envelope.reverse_path.as_ref().map_or(String::new(), ToString::to_string)
                    }
                    "to" => {
                        message.recipients.iter().map(|to| to.mailbox.as_str()).collect::<Vec<_>>().join(" ")
                    }
                    "account" => message.account.to_string(),
                    "client" => message.client.to_string(),
                    "encoding" => format!("{:?}", message.encoding),
                    "eight-bit" => message.eight_bit.to_string(),
                    "utf8-header" => message.utf8_header.to_string(),
                    "envelope" => format!(
                        "{:?} {:?} {} {}",
                        message.envelope.body,
                        message.envelope.ret,
                        message.envelope.envid.as_deref().unwrap_or("-"),
                        message.envelope.smtputf8,
                    ),
                    "notify" => match message.recipients[0].notify {
                        None => "-".to_owned(),
                        Some(Notify::Never) => "never".to_owned(),
                        Some(Notify::On { success, failure, delay }) => {
                            format!("{success} {failure} {delay}")
                        }
                    },
                    "orcpt" => message.recipients[0].orcpt.as_deref().unwrap_or("-").to_owned(),
                    other => return Err(format!("nothing is known of {other}")),
                };
                (found.as_bytes() == value, found.into_bytes())
            }
        };
        if fits { Ok(()) } else { Err(format!("{what} is `{}`", found.escape_ascii())) }
    }
}

/// Runs a file of dialogues and gives their number.
fn check(file: &str, text: &str) -> usize {
    let dialogues = parse(text).unwrap_or_else(|error| panic!("{file}: {error}"));
    for dialogue in &dialogues {
        let mut cuts = vec![Cut::Whole];
        if dialogue.setting("whole").is_none() {
            cuts.push(Cut::Octets);
        }
        if dialogue.setting("split").is_some() {
            cuts.extend((1..dialogue.longest_write()).map(Cut::At));
        }
        for cut in cuts {
            let mut memory = Memory::new(dialogue);
            if let Err(failure) = run(dialogue, cut, &mut memory) {
                panic!("{file}: {failure}");
            }
        }
    }
    dialogues.len()
}

macro_rules! dialogues {
    ($($name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                let text = include_str!(concat!("dialogues/", stringify!($name), ".txt"));
                assert!(check(stringify!($name), text) > 0);
            }
        )*

        #[test]
        fn there_are_as_many_exchanges_as_promised() {
            let texts = [$(include_str!(concat!("dialogues/", stringify!($name), ".txt")),)*];
            let count: usize = texts.iter().map(|text| parse(text).unwrap().len()).sum();
            assert!(count >= 150, "{count} exchanges");
        }
    };
}

dialogues! {
    hello, commands, end_of_data, bdat, starttls, auth, open_relay, identity, content, limits, lmtp, xclient,
    extensions,
}
