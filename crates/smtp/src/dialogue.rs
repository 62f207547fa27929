//! Dialogues as text, for tests: what a client says and what a server must answer.
//!
//! ```text
//! # A comment. A dialogue begins with its name, a sentence:
//! == a bare LF never ends the data
//! @ listener submission      a setting; whoever runs the dialogue knows what it means
//! S: 220 …                   one line from the server; … at its end leaves the rest open
//! C: EHLO client.example     a line from the client; CRLF is added
//! S* 250 PIPELINING          a whole reply of any number of lines, one of which holds these words
//! S- 250 STARTTLS            a whole reply, none of whose lines holds these words
//! C> a\n.\n                  octets without CRLF added
//! C: {3000*x}                repeated text
//! C: AUTH PLAIN {base64:\0app1\0secret}
//! -                          what follows is another write
//! T                          the TLS handshake
//! W 300                      so many seconds pass
//! M body a\r\n               what the server must have made of the message
//! X                          the server closes
//!
//! &= login                   what follows is a block, up to the next == or &=
//! & login                    the steps of a block
//! ```
//!
//! Client lines without a server's line between them leave in one write. Escapes are `\r \n \t \0 \\ \{`
//! and `\xFF`. A dialogue can be run with its writes cut into pieces ([`Cut`]), and against anything that is
//! a [`Peer`]: a machine in memory, or a server over TCP.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// One dialogue.
#[derive(Clone, Debug)]
pub struct Dialogue {
    /// Its name.
    pub name: String,
    /// Where it begins, counted from 1.
    pub line: usize,
    /// `@` lines: key and value.
    pub settings: Vec<(String, String)>,
    steps: Vec<(usize, Step)>,
}

impl Dialogue {
    /// The value of a setting; empty if it was given without one.
    #[must_use]
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Octets of the longest write, as a bound for [`Cut::At`].
    #[must_use]
    pub fn longest_write(&self) -> usize {
        let size = |step: &Step| if let Step::Send(octets) = step { octets.len() } else { 0 };
        self.steps.iter().map(|(_, step)| size(step)).max().unwrap_or(0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Send(Vec<u8>),
    Line { text: String, open: bool },
    Reply { code: String, words: String, present: bool },
    Closed,
    StartTls,
    Wait(Duration),
    Message { what: String, value: Vec<u8> },
}

/// How writes are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Not.
    Whole,
    /// After every octet.
    Octets,
    /// Once, after so many octets.
    At(usize),
}

/// What a dialogue is run against.
pub trait Peer {
    /// Takes octets from the client.
    ///
    /// # Errors
    /// When they cannot be sent.
    fn send(&mut self, octets: &[u8]) -> Result<(), String>;

    /// Appends what the server said, waiting within bounds for at least an octet; false if it has closed, or
    /// says nothing.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&mut self, out: &mut Vec<u8>) -> Result<bool, String>;

    /// True if the server has closed, waiting for it within bounds.
    ///
    /// # Errors
    /// When that cannot be told.
    fn is_closed(&mut self) -> Result<bool, String>;

    /// Does the client's side of the handshake.
    ///
    /// # Errors
    /// When it fails.
    fn start_tls(&mut self) -> Result<(), String>;

    /// Lets time pass.
    ///
    /// # Errors
    /// Where time cannot be moved; such dialogues are best left out.
    fn wait(&mut self, time: Duration) -> Result<(), String>;

    /// Checks something of the last message that the server took.
    ///
    /// # Errors
    /// When it is otherwise.
    fn check_message(&mut self, what: &str, value: &[u8]) -> Result<(), String>;
}

/// Where a dialogue went otherwise than written.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The dialogue's name.
    pub name: String,
    /// The line in its file.
    pub line: usize,
    /// What was expected, and what came.
    pub what: String,
    /// What was said until then.
    pub transcript: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (line {}): {}\n{}", self.name, self.line, self.what, self.transcript)
    }
}

/// Reads a file of dialogues.
///
/// # Errors
/// What is wrong in which line.
pub fn parse(text: &str) -> Result<Vec<Dialogue>, String> {
    let mut dialogues: Vec<Dialogue> = Vec::new();
    let mut blocks: BTreeMap<&str, Vec<(usize, Step)>> = BTreeMap::new();
    let mut block: Option<&str> = None;
    let mut same_write = false;
    for (i, line) in text.lines().enumerate() {
        let number = i + 1;
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix("== ") {
            let dialogue =
                Dialogue { name: name.to_owned(), line: number, settings: Vec::new(), steps: Vec::new() };
            dialogues.push(dialogue);
            (block, same_write) = (None, false);
            continue;
        }
        let wrong = |what: &str| format!("line {number}: {what}: {line}");
        let (tag, rest) = line.split_once(' ').unwrap_or((line, ""));
        if tag == "&=" {
            (block, same_write) = (Some(rest), false);
            blocks.insert(rest, Vec::new());
            continue;
        }
        let included = if tag == "&" {
            Some(blocks.get(rest).cloned().ok_or_else(|| wrong("no such block"))?)
        } else {
            None
        };
        let steps = match (block, dialogues.last_mut()) {
            (Some(name), _) => blocks.entry(name).or_default(),
            (None, Some(dialogue)) if tag == "@" => {
                let (key, value) = rest.split_once(' ').unwrap_or((rest, ""));
                dialogue.settings.push((key.to_owned(), value.trim().to_owned()));
                continue;
            }
            (None, Some(dialogue)) => &mut dialogue.steps,
            (None, None) => return Err(wrong("no dialogue has begun (== name)")),
        };
        if let Some(included) = included {
            steps.extend(included);
            same_write = false;
        } else if tag == "-" {
            same_write = false;
        } else {
            let step = parse_step(tag, rest).map_err(|what| wrong(&what))?;
            match (&step, steps.last_mut()) {
                (Step::Send(more), Some((_, Step::Send(octets)))) if same_write => {
                    octets.extend_from_slice(more);
                }
                _ => steps.push((number, step)),
            }
            same_write = tag.starts_with('C');
        }
    }
    Ok(dialogues)
}

fn parse_step(tag: &str, rest: &str) -> Result<Step, String> {
    let reply = |present| {
        let (code, words) = rest.split_once(' ').unwrap_or((rest, ""));
        Step::Reply { code: code.to_owned(), words: words.to_owned(), present }
    };
    Ok(match tag {
        "C:" => {
            let mut octets = unescape(rest)?;
            octets.extend_from_slice(b"\r\n");
            Step::Send(octets)
        }
        "C>" => Step::Send(unescape(rest)?),
        "S:" => match rest.strip_suffix('…') {
            Some(start) => Step::Line { text: start.trim_end().to_owned(), open: true },
            None => Step::Line { text: rest.to_owned(), open: false },
        },
        "S*" => reply(true),
        "S-" => reply(false),
        "X" => Step::Closed,
        "T" => Step::StartTls,
        "W" => Step::Wait(Duration::from_secs(rest.parse().map_err(|_| "not a number of seconds")?)),
        "M" => {
            let (what, value) = rest.split_once(' ').unwrap_or((rest, ""));
            Step::Message { what: what.to_owned(), value: unescape(value)? }
        }
        _ => return Err("unknown line".to_owned()),
    })
}

fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['\\', '{']) {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at..];
        if let Some(inner) = rest.strip_prefix('{') {
            let end = inner.find('}').ok_or("a { is not closed")?;
            expand(&inner[..end], &mut out)?;
            rest = &inner[end + 1..];
            continue;
        }
        let mut escaped = rest[1..].chars();
        match escaped.next() {
            Some('r') => out.push(b'\r'),
            Some('n') => out.push(b'\n'),
            Some('t') => out.push(b'\t'),
            Some('0') => out.push(0),
            Some('x') => {
                let digits = rest.get(2..4).ok_or("\\x needs two digits")?;
                out.push(u8::from_str_radix(digits, 16).map_err(|_| "\\x needs two hexadecimal digits")?);
                escaped = rest[4..].chars();
            }
            Some(c @ ('\\' | '{')) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            _ => return Err("an unknown escape".to_owned()),
        }
        rest = escaped.as_str();
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

fn expand(inner: &str, out: &mut Vec<u8>) -> Result<(), String> {
    if let Some(plain) = inner.strip_prefix("base64:") {
        out.extend_from_slice(BASE64_STANDARD.encode(unescape(plain)?).as_bytes());
        return Ok(());
    }
    let (count, text) = inner.split_once('*').ok_or("{ } holds base64:text or count*text")?;
    let count: usize = count.parse().map_err(|_| "not a count")?;
    let octets = unescape(text)?;
    out.extend(std::iter::repeat_n(octets, count).flatten());
    Ok(())
}

/// Runs a dialogue.
///
/// # Errors
/// At the first thing that is not as written.
pub fn run(dialogue: &Dialogue, cut: Cut, peer: &mut impl Peer) -> Result<(), Failure> {
    let mut run = Run { peer, cut, unread: Vec::new(), transcript: String::new() };
    for (line, step) in &dialogue.steps {
        run.step(step).map_err(|what| Failure {
            name: dialogue.name.clone(),
            line: *line,
            what: format!("{what} ({cut:?})"),
            transcript: run.transcript.clone(),
        })?;
    }
    Ok(())
}

struct Run<'p, P> {
    peer: &'p mut P,
    cut: Cut,
    unread: Vec<u8>,
    transcript: String,
}

impl<P: Peer> Run<'_, P> {
    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Send(octets) => self.send(octets),
            Step::Line { text, open } => {
                let found = self.line()?;
                let fits = if *open { found.starts_with(text.as_str()) } else { found == *text };
                if fits { Ok(()) } else { Err(format!("expected `{text}`, found `{found}`")) }
            }
            Step::Reply { code, words, present } => self.reply(code, words, *present),
            Step::Closed if !self.unread.is_empty() => {
                Err(format!("expected nothing more, found `{}`", self.unread.escape_ascii()))
            }
            Step::Closed if self.peer.is_closed()? => Ok(()),
            Step::Closed => Err("expected the server to close".to_owned()),
            Step::StartTls => self.peer.start_tls(),
            Step::Wait(time) => self.peer.wait(*time),
            Step::Message { what, value } => self.peer.check_message(what, value),
        }
    }

    fn send(&mut self, octets: &[u8]) -> Result<(), String> {
        let shown = &octets[..octets.len().min(200)];
        self.transcript.push_str(&format!("C: {}\n", shown.escape_ascii()));
        match self.cut {
            Cut::Whole => self.peer.send(octets),
            Cut::Octets => octets.chunks(1).try_for_each(|octet| self.peer.send(octet)),
            Cut::At(at) => {
                let (head, tail) = octets.split_at(at.min(octets.len()));
                self.peer.send(head)?;
                if tail.is_empty() { Ok(()) } else { self.peer.send(tail) }
            }
        }
    }

    fn line(&mut self) -> Result<String, String> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.unread[..end]).into_owned();
                self.unread.drain(..end + 2);
                self.transcript.push_str(&format!("S: {line}\n"));
                return Ok(line);
            }
            if !self.peer.read(&mut self.unread)? {
                return Err(format!("expected a line, found silence after `{}`", self.unread.escape_ascii()));
            }
        }
    }

    fn reply(&mut self, code: &str, words: &str, present: bool) -> Result<(), String> {
        let mut found = false;
        loop {
            let line = self.line()?;
            if !line.starts_with(code) {
                return Err(format!("expected a reply {code}, found `{line}`"));
            }
            found |= line.contains(words);
            if line.as_bytes().get(3) != Some(&b'-') {
                break;
            }
        }
        match (found, present) {
            (false, true) => Err(format!("expected `{words}` in the reply")),
            (true, false) => Err(format!("expected no `{words}` in the reply")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers every write with what it got.
    struct Echo {
        said: Vec<u8>,
        writes: usize,
    }

    impl Peer for Echo {
        fn send(&mut self, octets: &[u8]) -> Result<(), String> {
            self.said.extend_from_slice(octets);
            self.writes += 1;
            Ok(())
        }
        fn read(&mut self, out: &mut Vec<u8>) -> Result<bool, String> {
            let says = !self.said.is_empty();
            out.append(&mut self.said);
            Ok(says)
        }
        fn is_closed(&mut self) -> Result<bool, String> {
            Ok(false)
        }
        fn start_tls(&mut self) -> Result<(), String> {
            Err("no TLS".to_owned())
        }
        fn wait(&mut self, _: Duration) -> Result<(), String> {
            Ok(())
        }
        fn check_message(&mut self, _: &str, _: &[u8]) -> Result<(), String> {
            Ok(())
        }
    }

    fn check(text: &str, cut: Cut, writes: usize, expected: Result<(), &str>) {
        let dialogue = parse(&format!("== it is so\n{text}")).unwrap().remove(0);
        let mut echo = Echo { said: Vec::new(), writes: 0 };
        let found = run(&dialogue, cut, &mut echo).map_err(|failure| failure.what);
        match expected {
            Ok(()) => assert_eq!(found, Ok(()), "{text}"),
            Err(part) => assert!(found.as_ref().is_err_and(|what| what.contains(part)), "{text}: {found:?}"),
        }
        assert_eq!(echo.writes, writes, "{text}");
    }

    #[test]
    fn dialogues_are_run_as_written() {
        check("C: a\nC: b\nS: a\nS: b", Cut::Whole, 1, Ok(()));
        check("C: a\n-\nC: b\nS: a\nS: b", Cut::Whole, 2, Ok(()));
        check("C: ab\nS: a…", Cut::At(1), 2, Ok(()));
        check("C: ab\nS: a…", Cut::Octets, 4, Ok(()));
        check("C> 250-x\\r\\n250 y\\r\\n\nS* 250 y", Cut::Whole, 1, Ok(()));
        check("C> 250-x\\r\\n250 y\\r\\n\nS- 250 y", Cut::Whole, 1, Err("expected no `y`"));
        check("C: {3*ab}{base64:\\0}\\x41\\\\\\{\nS: abababAA==A\\{", Cut::Whole, 1, Ok(()));
        check("C: a\nS: b", Cut::Whole, 1, Err("expected `b`, found `a`"));
        check("S: b", Cut::Whole, 0, Err("silence"));
        check("C: a\nX", Cut::Whole, 1, Err("expected the server to close"));
    }

    #[test]
    fn a_block_is_said_wherever_it_is_named() {
        let dialogues = parse("&= twice\nC: a\nS: a\n== x\n@ k v\n& twice\n& twice").unwrap();
        let mut echo = Echo { said: Vec::new(), writes: 0 };
        run(&dialogues[0], Cut::Whole, &mut echo).unwrap();
        assert_eq!((echo.writes, dialogues[0].setting("k")), (2, Some("v")));
    }

    #[test]
    fn what_is_no_dialogue_says_where() {
        let check = |text: &str, start: &str| {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(start), "{error}");
        };
        check("C: a", "line 1: no dialogue has begun");
        check("== a\nQ: a", "line 2: unknown line");
        check("== a\n\nC: \\q", "line 3: an unknown escape");
        check("== a\n& b", "line 2: no such block");
        check("== a\nC: {3", "line 2: a { is not closed");
    }
}
