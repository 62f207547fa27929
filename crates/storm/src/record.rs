//! The two logs: lines of text, appended, that other tools and hand-made tests can read and write.
//!
//! The source's journal has one line per message and verdict, the sink's log one per recipient taken:
//!
//! ```text
//! storm-source 1 a.test,b.test
//! A 00000a0000000001 1000 1400 1900 2 -              acknowledged: 250 to the final dot
//! R 00000a0000000002 1000 1400 1900 2 - 451 4.3.0 no refused, with the reply
//! U 00000a0000000003 1000 1400 9000 2 1              the connection broke after the dot; recipient 1 was refused
//! storm-sink 1
//! D 00000a0000000001 0 ok 2100                       taken, 250 sent
//! B 00000a0000000001 0 ok 2100                       taken, the 250 withheld by the script
//! N 00000a0000000001 0 ok 2100                       seen whole, not taken (dropped after the dot)
//! F 2100 someone@example.test                        a recipient that is none of ours
//! T {"connections_max":20,…}                         totals at the end
//! ```
//!
//! Times are microseconds since 1970: MAIL sent, final dot sent, reply read.

use crate::id::{Id, push_decimal};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Octets gathered before a write to the file.
const FLUSH_BYTES: usize = 128 << 10;
/// Longest part of a reply that is kept, octets.
pub(crate) const REPLY_MAX: usize = 200;
const SOURCE_HEAD: &str = "storm-source 1 ";
const SINK_HEAD: &str = "storm-sink 1";

/// Microseconds since 1970.
#[must_use]
pub fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// The domain of a message's recipient: they are taken in turn over a whole run.
#[must_use]
pub fn domain_of(domains: &[String], id: Id, index: u16, recipients: u16) -> &str {
    let place = id.sequence().wrapping_mul(u64::from(recipients)).wrapping_add(u64::from(index));
    let count = domains.len().max(1) as u64;
    // Invariant: the remainder is below the length of the list.
    domains.get(usize::try_from(place % count).expect("a small index")).map_or("", String::as_str)
}

/// Where lines go: memory, or a file behind a buffer.
///
/// In one-process runs the log stays in memory, so that the relay's syncs do not also carry it to the disk.
#[derive(Debug, Default)]
pub struct Log {
    /// Lines not yet in the file; all of them when there is none.
    pub(crate) lines: Vec<u8>,
    file: Option<File>,
}

impl Log {
    /// A log that stays in memory.
    #[must_use]
    pub fn in_memory() -> Log {
        Log::default()
    }

    /// A log that is appended to a file, made if absent.
    ///
    /// # Errors
    /// The file cannot be opened for appending.
    pub fn append_to(path: &Path) -> anyhow::Result<Log> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot open {} for appending", path.display()))?;
        Ok(Log { lines: Vec::new(), file: Some(file) })
    }

    /// Another writer of the same file, with a buffer of its own; lines never mix.
    pub(crate) fn sibling(&self) -> std::io::Result<Log> {
        Ok(Log { lines: Vec::new(), file: self.file.as_ref().map(File::try_clone).transpose()? })
    }

    /// Call after each line.
    pub(crate) fn line_ended(&mut self) {
        self.lines.push(b'\n');
        if self.file.is_some() && self.lines.len() >= FLUSH_BYTES {
            self.flush();
        }
    }

    /// Hands what is gathered to the operating system; it then outlives this process, not the machine.
    pub(crate) fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            if let Err(error) = file.write_all(&self.lines) {
                // A checker without its log proves nothing; stopping would hide what was measured so far.
                eprintln!("storm: cannot write the log, its accounting is incomplete: {error}");
            }
            self.lines.clear();
        }
    }

    pub(crate) fn source_head(&mut self, domains: &[String]) {
        self.lines.extend_from_slice(SOURCE_HEAD.as_bytes());
        self.lines.extend_from_slice(domains.join(",").as_bytes());
        self.line_ended();
    }

    pub(crate) fn sink_head(&mut self) {
        self.lines.extend_from_slice(SINK_HEAD.as_bytes());
        self.line_ended();
    }

    pub(crate) fn sent(&mut self, sent: &Sent<'_>) {
        let out = &mut self.lines;
        out.push(match sent.verdict {
            Verdict::Acknowledged => b'A',
            Verdict::Refused => b'R',
            Verdict::Unknown => b'U',
        });
        out.push(b' ');
        out.extend_from_slice(&sent.id.hex());
        for number in [sent.start_us, sent.dot_us, sent.end_us, u64::from(sent.recipients)] {
            out.push(b' ');
            push_decimal(out, number);
        }
        out.push(b' ');
        for (nth, index) in sent.refused.iter().enumerate() {
            if nth > 0 {
                out.push(b',');
            }
            push_decimal(out, u64::from(*index));
        }
        if sent.refused.is_empty() {
            out.push(b'-');
        }
        if !sent.reply.is_empty() {
            out.push(b' ');
            out.extend(sent.reply.iter().take(REPLY_MAX).map(|octet| match octet {
                b' '..=b'~' => *octet,
                _ => b'?',
            }));
        }
        self.line_ended();
    }

    pub(crate) fn taken(&mut self, taken: &Taken) {
        let out = &mut self.lines;
        out.extend_from_slice(match taken.how {
            How::Replied => b"D ",
            How::Withheld => b"B ",
            How::Dropped => b"N ",
        });
        out.extend_from_slice(&taken.id.hex());
        out.push(b' ');
        push_decimal(out, u64::from(taken.index));
        out.extend_from_slice(match taken.content {
            Content::Whole => b" ok ",
            Content::Damaged => b" damaged ",
            Content::Crossed => b" crossed ",
        });
        push_decimal(out, taken.at_us);
        self.line_ended();
    }

    pub(crate) fn foreign(&mut self, at_us: u64, address: &[u8]) {
        self.lines.extend_from_slice(b"F ");
        push_decimal(&mut self.lines, at_us);
        self.lines.push(b' ');
        self.lines.extend(address.iter().take(REPLY_MAX).filter(|octet| octet.is_ascii_graphic()));
        self.line_ended();
    }

    pub(crate) fn totals(&mut self, totals: &Totals) {
        self.lines.extend_from_slice(b"T ");
        // Invariant: a struct of numbers has a JSON form.
        self.lines.extend_from_slice(&serde_json::to_vec(totals).expect("numbers as JSON"));
        self.line_ended();
        self.flush();
    }
}

/// What the relay said of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A 2xx to the final dot: the relay is responsible for it.
    Acknowledged,
    /// A 4xx or 5xx to it, or to what comes before the content.
    Refused,
    /// The connection broke between the final dot and its reply: it may or may not be delivered.
    Unknown,
}

/// One verdict on one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent<'a> {
    /// The message.
    pub id: Id,
    /// What became of it.
    pub verdict: Verdict,
    /// When MAIL was sent.
    pub start_us: u64,
    /// When the final dot was sent; 0 when it never was.
    pub dot_us: u64,
    /// When the verdict was known.
    pub end_us: u64,
    /// Recipients it was addressed to.
    pub recipients: u16,
    /// Indexes of those refused at RCPT.
    pub refused: std::borrow::Cow<'a, [u16]>,
    /// The refusing reply, cut to a bounded length; empty otherwise.
    pub reply: &'a [u8],
}

/// How the sink took a recipient's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// 250 was sent.
    Replied,
    /// Taken, but the script closed the connection before the reply: another copy is to be expected.
    Withheld,
    /// Not taken: the script closed the connection after the dot.
    Dropped,
}

/// What the content looked like on arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// As sent.
    Whole,
    /// Changed on its way.
    Damaged,
    /// A whole message, under the envelope of another one.
    Crossed,
}

/// One recipient's message at the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The message, by the recipient's address.
    pub id: Id,
    /// Which of its recipients.
    pub index: u16,
    /// Taken or not.
    pub how: How,
    /// Whole or not.
    pub content: Content,
    /// When the reply was sent or the connection closed.
    pub at_us: u64,
}

/// What the sink counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Connections accepted in all.
    pub connections: u64,
    /// Most open at once.
    pub connections_max: u64,
    /// Recipients taken.
    pub taken: u64,
    /// Recipients of others than storm taken.
    pub foreign: u64,
    /// Attempts put off: a 4xx reply or a 421 instead of a greeting.
    pub deferred: u64,
    /// Commands or contents refused with 5xx.
    pub refused: u64,
    /// Connections closed by the script.
    pub dropped: u64,
}

impl Totals {
    /// Share of attempts that were put off, 0 to 1.
    #[must_use]
    pub fn deferral_share(&self) -> f64 {
        let all = self.deferred + self.taken + self.refused;
        if all == 0 { 0.0 } else { self.deferred as f64 / all as f64 }
    }
}

/// Calls `each` with every verdict of a source's journal and returns the run's domains.
///
/// # Errors
/// A line that is not of this format, named by its number. A cut last line is an error too: the source writes
/// whole lines.
pub fn read_source<'a>(journal: &'a [u8], mut each: impl FnMut(Sent<'a>)) -> anyhow::Result<Vec<String>> {
    let mut domains = Vec::new();
    for (number, line) in lines(journal)? {
        if let Some(list) = line.strip_prefix(SOURCE_HEAD) {
            let list: Vec<String> = list.split(',').map(str::to_owned).collect();
            if !domains.is_empty() && domains != list {
                bail!("line {number}: another run with other domains; check each journal by itself");
            }
            domains = list;
            continue;
        }
        each(sent(line).with_context(|| format!("line {number} is not of a source's journal: {line:?}"))?);
    }
    if domains.is_empty() {
        bail!("not a source's journal: it does not begin with {SOURCE_HEAD:?}");
    }
    Ok(domains)
}

fn sent(line: &str) -> Option<Sent<'_>> {
    let mut parts = line.splitn(8, ' ');
    let verdict = match parts.next()? {
        "A" => Verdict::Acknowledged,
        "R" => Verdict::Refused,
        "U" => Verdict::Unknown,
        _ => return None,
    };
    let id = Id::parse(parts.next()?.as_bytes())?;
    let mut number = || parts.next()?.parse().ok();
    let (start_us, dot_us, end_us): (u64, u64, u64) = (number()?, number()?, number()?);
    let recipients = parts.next()?.parse().ok()?;
    let refused = match parts.next()? {
        "-" => Vec::new(),
        list => list.split(',').map(str::parse).collect::<Result<_, _>>().ok()?,
    };
    let reply = parts.next().unwrap_or_default().as_bytes();
    Some(Sent { id, verdict, start_us, dot_us, end_us, recipients, refused: refused.into(), reply })
}

/// Calls `each` with every recipient of a sink's log; returns the totals (summed over restarts of the sink) and
/// the number of foreign recipients.
///
/// # Errors
/// A line that is not of this format, named by its number.
pub fn read_sink(log: &[u8], mut each: impl FnMut(Taken)) -> anyhow::Result<(Totals, u64)> {
    let mut totals = Totals::default();
    let mut foreign = 0;
    for (number, line) in lines(log)? {
        if number == 1 && line != SINK_HEAD {
            bail!("not a sink's log: it does not begin with {SINK_HEAD:?}");
        }
        match line.as_bytes().first() {
            Some(b's') if line == SINK_HEAD => {}
            Some(b'F') => foreign += 1,
            Some(b'T') => {
                let more: Totals =
                    serde_json::from_str(&line[2..]).with_context(|| format!("line {number}"))?;
                totals.connections += more.connections;
                totals.connections_max = totals.connections_max.max(more.connections_max);
                totals.taken += more.taken;
                totals.foreign += more.foreign;
                totals.deferred += more.deferred;
                totals.refused += more.refused;
                totals.dropped += more.dropped;
            }
            _ => {
                each(taken(line).with_context(|| format!("line {number} is not of a sink's log: {line:?}"))?);
            }
        }
    }
    Ok((totals, foreign))
}

fn taken(line: &str) -> Option<Taken> {
    let mut parts = line.split(' ');
    let how = match parts.next()? {
        "D" => How::Replied,
        "B" => How::Withheld,
        "N" => How::Dropped,
        _ => return None,
    };
    let id = Id::parse(parts.next()?.as_bytes())?;
    let index = parts.next()?.parse().ok()?;
    let content = match parts.next()? {
        "ok" => Content::Whole,
        "damaged" => Content::Damaged,
        "crossed" => Content::Crossed,
        _ => return None,
    };
    let at_us = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some(Taken { id, index, how, content, at_us })
}

/// Lines with their numbers from 1, empty ones and `#` comments left out.
fn lines(text: &[u8]) -> anyhow::Result<impl Iterator<Item = (usize, &str)>> {
    let text = std::str::from_utf8(text).context("a log is ASCII text")?;
    Ok(text
        .lines()
        .enumerate()
        .map(|(at, line)| (at + 1, line))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_reads_back_as_written() {
        let mut log = Log::in_memory();
        log.source_head(&["a.test".into(), "b.test".into()]);
        let first = Sent {
            id: Id::new(1, 2),
            verdict: Verdict::Refused,
            start_us: 10,
            dot_us: 0,
            end_us: 30,
            recipients: 3,
            refused: vec![0, 2].into(),
            reply: b"550 5.7.1 no",
        };
        log.sent(&first);
        let second =
            Sent { verdict: Verdict::Acknowledged, refused: vec![].into(), reply: b"", ..first.clone() };
        log.sent(&second);
        let mut seen = Vec::new();
        let domains = read_source(&log.lines, |sent| seen.push(sent)).unwrap();
        assert_eq!(seen, [first, second]);
        assert_eq!(domains, ["a.test", "b.test"]);
    }

    #[test]
    fn a_sink_log_reads_back_as_written() {
        let mut log = Log::in_memory();
        log.sink_head();
        let taken = Taken { id: Id(7), index: 3, how: How::Withheld, content: Content::Crossed, at_us: 99 };
        log.taken(&taken);
        log.foreign(5, b"x@y\r\nD");
        log.totals(&Totals { connections_max: 4, deferred: 1, taken: 3, ..Totals::default() });
        let mut seen = Vec::new();
        let (totals, foreign) = read_sink(&log.lines, |taken| seen.push(taken)).unwrap();
        assert_eq!((seen, foreign, totals.connections_max), (vec![taken], 1, 4));
        assert!((totals.deferral_share() - 0.25).abs() < 1e-9);
    }

    #[test]
    fn a_hostile_reply_cannot_make_a_line_of_its_own() {
        let mut log = Log::in_memory();
        log.source_head(&["a.test".into()]);
        log.sent(&Sent {
            id: Id(1),
            verdict: Verdict::Refused,
            start_us: 1,
            dot_us: 1,
            end_us: 1,
            recipients: 1,
            refused: vec![].into(),
            reply: &[b"550 x\nA 0000000000000001 1 1 1 1 -".as_slice(), &[b'y'; 500]].concat(),
        });
        let mut count = 0;
        read_source(&log.lines, |_| count += 1).unwrap();
        assert_eq!(count, 1);
        assert!(log.lines.len() < 400);
    }

    #[test]
    fn other_text_is_refused_with_its_line() {
        assert!(read_source(b"hello\n", |_| ()).is_err());
        let error = read_source(b"storm-source 1 a\nA 12 1 1\n", |_| ()).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
        assert!(read_sink(b"storm-source 1 a\n", |_| ()).is_err());
    }
}
