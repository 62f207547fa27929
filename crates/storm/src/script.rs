//! How a sink behaves: what it offers, its limits, and rules that spoil deliveries. Written in TOML.
//!
//! ```toml
//! seed = 7
//! [offer]
//! starttls = true
//! size = 10485760
//! [limit]
//! connections = 10            # further ones get 421
//! recipients = 100            # further ones of a transaction get 452
//! [[rule]]                    # the first rule that applies acts
//! at = "dot"                  # connect | ehlo | mail | rcpt | data | dot
//! domains = ["slow.test", "*.slow.test"]
//! delay_ms = 200
//! [[rule]]
//! at = "rcpt"
//! recipients = ["r0.*"]
//! probability = 0.1
//! reply = "451 4.3.0 try again"
//! [[rule]]
//! at = "dot"
//! first = 20                  # only the first 20 times
//! drop = "before"             # before: not taken | taken: taken, reply withheld | after: after the reply
//! ```

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use std::path::Path;

/// Most rules of a script: the rules a transaction has met are a set of bits.
pub const RULES_MAX: usize = 64;
/// Longest delay, milliseconds.
const DELAY_MAX_MS: u64 = 3_600_000;

/// A sink's behaviour. The default takes everything at once and offers what a modern server offers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// Seeds the probabilities.
    pub seed: u64,
    /// Host name in the greeting.
    pub hostname: Option<String>,
    /// What the reply to EHLO offers.
    pub offer: Offer,
    /// What is refused beyond a limit.
    pub limit: Limit,
    /// What is spoiled.
    #[serde(rename = "rule")]
    pub rules: Vec<Rule>,
}

/// Extensions offered.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "one switch per extension, as in the file")]
pub struct Offer {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 6152.
    pub eightbitmime: bool,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 3030, CHUNKING.
    pub chunking: bool,
    /// RFC 3030, BINARYMIME.
    pub binarymime: bool,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 2034.
    pub enhancedstatuscodes: bool,
    /// RFC 1870: the greatest size, octets; none when absent, enforced when not 0.
    pub size: Option<u64>,
    /// RFC 3207, with the certificate of [`Offer::certificate`] or a self-made one.
    pub starttls: bool,
    /// RFC 4954: PLAIN and LOGIN, any password is right.
    pub auth: bool,
    /// More EHLO lines, as they are.
    pub extra: Vec<String>,
    /// PEM file.
    pub certificate: Option<std::path::PathBuf>,
    /// PEM file.
    pub key: Option<std::path::PathBuf>,
}

impl Default for Offer {
    fn default() -> Offer {
        Offer {
            pipelining: true,
            eightbitmime: true,
            smtputf8: true,
            chunking: true,
            binarymime: false,
            dsn: true,
            enhancedstatuscodes: true,
            size: Some(0),
            starttls: false,
            auth: false,
            extra: Vec::new(),
            certificate: None,
            key: None,
        }
    }
}

/// Bounds of the sink. Absent ones do not limit.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limit {
    /// Open connections; further ones are told 421 and closed.
    pub connections: Option<usize>,
    /// New connections per second; further ones are told 421 and closed.
    pub connections_per_s: Option<f64>,
    /// Messages per second; further ones are told 421 at MAIL and closed.
    pub messages_per_s: Option<f64>,
    /// Messages per connection; then 421 at MAIL and closed.
    pub messages_per_connection: Option<u64>,
    /// Recipients per transaction; further ones are told 452.
    pub recipients: Option<usize>,
}

/// When a rule looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Before the greeting.
    Connect,
    /// EHLO or HELO.
    Ehlo,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA, or a first BDAT.
    Data,
    /// The end of the content.
    Dot,
}

/// When a rule closes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Drop {
    /// Instead of a reply; a message is not taken.
    Before,
    /// At the dot: the message is taken, then the connection closes without a reply. Elsewhere like `before`.
    Taken,
    /// After the reply.
    After,
}

/// One way to spoil a delivery.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Where it acts.
    pub at: Phase,
    /// Recipient domains it is for, `*` standing for any text; all when empty. At data and dot it is enough that
    /// one recipient matches; it cannot be used before RCPT.
    #[serde(default)]
    pub domains: Vec<String>,
    /// Whole recipient addresses, likewise.
    #[serde(default)]
    pub recipients: Vec<String>,
    /// Share of the cases, 0 to 1.
    #[serde(default = "always")]
    pub probability: f64,
    /// Acts only so many times.
    pub first: Option<u64>,
    /// Lets so many cases pass before it acts.
    #[serde(default)]
    pub after: u64,
    /// Waits before the reply.
    #[serde(default)]
    pub delay_ms: u64,
    /// Sends the reply one octet at a time with this pause between them.
    #[serde(default)]
    pub tarpit_ms: u64,
    /// Instead of the usual reply; several lines make a multi-line reply.
    pub reply: Option<String>,
    /// Instead of the usual reply, sent exactly so: for malformed and hostile replies.
    pub raw: Option<String>,
    /// Closes the connection.
    pub drop: Option<Drop>,
}

fn always() -> f64 {
    1.0
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// Unknown keys, values out of range, or a rule for recipients before they are known.
    pub fn parse(text: &str) -> anyhow::Result<Script> {
        let script: Script = toml::from_str(text)?;
        ensure!(script.rules.len() <= RULES_MAX, "more than {RULES_MAX} rules");
        for (number, rule) in script.rules.iter().enumerate() {
            rule.check().with_context(|| format!("rule {}", number + 1))?;
        }
        Ok(script)
    }

    /// Reads a script from a file.
    ///
    /// # Errors
    /// As [`Script::parse`], or the file cannot be read.
    pub fn read(path: &Path) -> anyhow::Result<Script> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Script::parse(&text).with_context(|| format!("in {}", path.display()))
    }
}

impl Rule {
    fn check(&self) -> anyhow::Result<()> {
        let early = matches!(self.at, Phase::Connect | Phase::Ehlo | Phase::Mail);
        ensure!(
            !early || self.domains.is_empty() && self.recipients.is_empty(),
            "recipients are not known yet at {:?}",
            self.at
        );
        ensure!((0.0..=1.0).contains(&self.probability), "probability is a share from 0 to 1");
        ensure!(
            self.delay_ms <= DELAY_MAX_MS && self.tarpit_ms <= DELAY_MAX_MS,
            "a delay is at most an hour"
        );
        if let Some(reply) = &self.reply {
            for line in reply.lines() {
                let code = line.get(..3).filter(|code| code.bytes().all(|octet| octet.is_ascii_digit()));
                if code.is_none() || !reply.starts_with(&line[..3]) {
                    bail!(
                        "each line of a reply begins with the same three digits: {line:?}; use `raw` otherwise"
                    );
                }
            }
        }
        ensure!(self.reply.is_none() || self.raw.is_none(), "either `reply` or `raw`");
        Ok(())
    }

    /// True when the rule is for this recipient.
    #[must_use]
    pub fn is_for(&self, address: &str) -> bool {
        let domain = address.rsplit_once('@').map_or("", |(_, domain)| domain);
        let all = self.domains.is_empty() && self.recipients.is_empty();
        all || self.domains.iter().any(|pattern| matches(pattern.as_bytes(), domain.as_bytes()))
            || self.recipients.iter().any(|pattern| matches(pattern.as_bytes(), address.as_bytes()))
    }

    /// The reply in wire form, if the rule has one of its own.
    #[must_use]
    pub fn reply_on_the_wire(&self) -> Option<Vec<u8>> {
        if let Some(raw) = &self.raw {
            return Some(raw.as_bytes().to_vec());
        }
        let reply = self.reply.as_deref()?;
        let count = reply.lines().count();
        let mut out = Vec::with_capacity(reply.len() + 2 * count);
        for (number, line) in reply.lines().enumerate() {
            let (code, text) = line.split_at(3);
            out.extend_from_slice(code.as_bytes());
            out.push(if number + 1 < count { b'-' } else { b' ' });
            out.extend_from_slice(text.trim_start_matches([' ', '-']).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        Some(out)
    }
}

/// A pattern in which `*` stands for any text, without regard to case.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let Some(star) = memchr::memchr(b'*', pattern) else {
        return pattern.eq_ignore_ascii_case(text);
    };
    let (head, tail) = (&pattern[..star], &pattern[star + 1..]);
    text.len() >= head.len()
        && text[..head.len()].eq_ignore_ascii_case(head)
        && (head.len()..=text.len()).any(|at| matches(tail, &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_whole() {
        let script = Script::parse(
            "seed = 3\n[offer]\nstarttls = true\n[limit]\nconnections = 10\n\
             [[rule]]\nat = 'rcpt'\ndomains = ['*.test']\nreply = '450 4.2.0 greylisted'\nfirst = 2\n",
        )
        .unwrap();
        assert!(script.offer.starttls && script.offer.pipelining);
        assert_eq!(script.rules[0].reply_on_the_wire().unwrap(), b"450 4.2.0 greylisted\r\n");
        assert!(script.rules[0].is_for("a@b.TEST") && !script.rules[0].is_for("a@test.example"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, named) in [
            ("[[rule]]\nat = 'mail'\ndomains = ['x']\n", "not known yet"),
            ("[[rule]]\nat = 'dot'\nprobability = 2.0\n", "share"),
            ("[[rule]]\nat = 'dot'\nreply = 'no'\n", "three digits"),
            ("[offer]\npipelinning = true\n", "pipelinning"),
        ] {
            let error = format!("{:#}", Script::parse(text).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn several_lines_become_one_reply() {
        let rule = Script::parse("[[rule]]\nat='dot'\nreply=\"550 5.7.1 first\\n550 last\"\n")
            .unwrap()
            .rules
            .remove(0);
        assert_eq!(rule.reply_on_the_wire().unwrap(), b"550-5.7.1 first\r\n550 last\r\n");
    }

    #[test]
    fn a_star_stands_for_any_text() {
        assert!(
            matches(b"*", b"")
                && matches(b"a*c", b"abc")
                && matches(b"*.x", b"q.X")
                && !matches(b"a*c", b"ab")
        );
    }
}
