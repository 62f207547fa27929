//! A client's command line as a value (RFC 5321 §4.1.1 and the extensions we offer).
//!
//! Parsed once, here; what comes out cannot be wrong. An error says what was wrong and what to write instead,
//! because its reader is often a person with a new device.

use crate::xtext;
use postrider_model::{
    AddressError, BodyKind, EnhancedCode, Envelope, Mailbox, Notify, RecipientParams, Reply, Ret,
};
use thiserror::Error;

/// Parameters of one MAIL or RCPT; more are refused.
const PARAMETERS_MAX: usize = 16;
/// Octets of ENVID (RFC 3461 §4.4).
const ENVID_SIZE_MAX: usize = 100;
/// Octets of ORCPT (RFC 3461 §4.2).
const ORCPT_SIZE_MAX: usize = 500;
/// Octets of a HELO name that are kept; a domain has no more (RFC 5321 §4.5.3.1.2).
const HELLO_SIZE_MAX: usize = 255;
/// Octets of a client's words that are repeated in a reply.
const ECHO_SIZE_MAX: usize = 40;

/// What the parser must know of the session.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'s> {
    /// EHLO or LHLO was given, so that parameters may be used (RFC 5321 §4.1.1.1).
    pub extended: bool,
    /// The transaction was begun with SMTPUTF8 (RFC 6531 §3.4).
    pub smtputf8: bool,
    /// REQUIRETLS is offered now (RFC 8689 §2: only under TLS).
    pub requiretls: bool,
    /// An address may stand without its angle brackets, as old devices send it.
    pub lenient: bool,
    /// The domain that `RCPT TO:<postmaster>` means (RFC 5321 §4.5.1).
    pub hostname: &'s str,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'l> {
    /// HELO and the client's name.
    Helo(&'l str),
    /// EHLO and the client's name.
    Ehlo(&'l str),
    /// LHLO (RFC 2033 §4.1) and the client's name.
    Lhlo(&'l str),
    /// MAIL.
    Mail(Mail),
    /// RCPT.
    Rcpt(RecipientParams),
    /// DATA.
    Data,
    /// BDAT (RFC 3030 §2).
    Bdat {
        /// Octets that follow the line.
        size_bytes: u64,
        /// They end the content.
        last: bool,
    },
    /// RSET.
    Rset,
    /// NOOP; its argument means nothing.
    Noop,
    /// HELP.
    Help,
    /// VRFY.
    Vrfy,
    /// QUIT.
    Quit,
    /// STARTTLS (RFC 3207 §4).
    StartTls,
    /// AUTH (RFC 4954 §4); the initial response is still in base64.
    Auth {
        /// The SASL mechanism, as written.
        mechanism: &'l str,
        /// The initial response, `=` if it is empty.
        initial: Option<&'l str>,
    },
    /// XCLIENT.
    Xclient(Xclient),
}

/// What MAIL carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mail {
    /// The envelope it begins.
    pub envelope: Envelope,
    /// SIZE (RFC 1870), the client's own estimate.
    pub size_bytes: Option<u64>,
}

/// What a trusted proxy says of the client behind it. `Some("")` says that it is known to be unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xclient {
    /// NAME.
    pub name: Option<Box<str>>,
    /// ADDR.
    pub address: Option<std::net::IpAddr>,
    /// PORT.
    pub port: Option<u16>,
    /// HELO.
    pub helo: Option<Box<str>>,
    /// LOGIN.
    pub login: Option<Box<str>>,
}

/// Why a line is no command. The client is at fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CommandError {
    /// Controls or broken UTF-8.
    #[error("A command is printable text; this line holds control characters or broken UTF-8")]
    NotText,
    /// No verb we know.
    #[error("Unknown command {0}; HELP lists what can be used")]
    Unknown(Box<str>),
    /// A verb that we know and never serve.
    #[error("{0} is not served here")]
    NotServed(&'static str),
    /// The verb is right, what follows is not.
    #[error("Syntax: {0}")]
    Syntax(&'static str),
    /// A reverse-path that is none.
    #[error("The sender address is wrong: {0}")]
    Sender(AddressError),
    /// A forward-path that is none.
    #[error("The recipient address is wrong: {0}")]
    Recipient(AddressError),
    /// A source route (RFC 5321 appendix C), which we never follow.
    #[error("Source routes are not followed; name the mailbox alone")]
    SourceRoute,
    /// An address beyond ASCII without SMTPUTF8.
    #[error("This address needs the SMTPUTF8 parameter on MAIL")]
    NeedsSmtpUtf8,
    /// A parameter we did not offer.
    #[error("Parameter {0} is not known or not offered here")]
    UnknownParameter(Box<str>),
    /// A parameter after HELO.
    #[error("Parameters may be used after EHLO, not after HELO")]
    NotExtended,
    /// A parameter with a wrong value.
    #[error("Parameter {0}")]
    Parameter(&'static str),
    /// A parameter given twice.
    #[error("Parameter {0} is given twice")]
    Repeated(&'static str),
    /// More than a line should have.
    #[error("More than 16 parameters")]
    TooManyParameters,
}

impl CommandError {
    /// The reply that tells the client.
    #[must_use]
    pub fn reply(&self) -> Reply {
        let (code, enhanced) = match self {
            CommandError::NotText => (500, EnhancedCode(5, 5, 2)),
            CommandError::Unknown(_) => (500, EnhancedCode(5, 5, 1)),
            CommandError::NotServed(_) => (502, EnhancedCode(5, 5, 1)),
            CommandError::Sender(_) => (501, EnhancedCode(5, 1, 7)),
            CommandError::Recipient(_) => (501, EnhancedCode(5, 1, 3)),
            CommandError::SourceRoute => (553, EnhancedCode(5, 1, 3)),
            CommandError::NeedsSmtpUtf8 => (553, EnhancedCode(5, 6, 7)),
            CommandError::UnknownParameter(_) | CommandError::NotExtended => (555, EnhancedCode(5, 5, 4)),
            CommandError::Syntax(_)
            | CommandError::Parameter(_)
            | CommandError::Repeated(_)
            | CommandError::TooManyParameters => (501, EnhancedCode(5, 5, 4)),
        };
        Reply::ours(code, enhanced, &self.to_string())
    }
}

/// Reads a line without its line ending.
///
/// # Errors
/// When it is no command, or one that its rules do not allow.
pub fn parse<'l>(line: &'l [u8], rules: &Rules<'_>) -> Result<Command<'l>, CommandError> {
    let text = std::str::from_utf8(line).map_err(|_| CommandError::NotText)?;
    if line.iter().any(|&b| b < b' ' || b == 0x7f) {
        return Err(CommandError::NotText);
    }
    let text = text.trim_end_matches(' ');
    let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
    let mut upper = [0u8; 8];
    if verb.len() > upper.len() {
        return Err(CommandError::Unknown(echo(verb)));
    }
    upper[..verb.len()].copy_from_slice(verb.as_bytes());
    upper.make_ascii_uppercase();
    match &upper[..verb.len()] {
        b"MAIL" => mail(rest, rules),
        b"RCPT" => rcpt(rest, rules),
        b"DATA" => bare(rest, Command::Data, "DATA"),
        b"BDAT" => bdat(rest),
        b"RSET" => bare(rest, Command::Rset, "RSET"),
        b"NOOP" => Ok(Command::Noop),
        b"QUIT" => bare(rest, Command::Quit, "QUIT"),
        b"EHLO" => hello(rest, "EHLO your.host.name").map(Command::Ehlo),
        b"HELO" => hello(rest, "HELO your.host.name").map(Command::Helo),
        b"LHLO" => hello(rest, "LHLO your.host.name").map(Command::Lhlo),
        b"STARTTLS" => bare(rest, Command::StartTls, "STARTTLS"),
        b"AUTH" => auth(rest),
        b"XCLIENT" => xclient(rest),
        b"HELP" => Ok(Command::Help),
        b"VRFY" if rest.is_empty() => Err(CommandError::Syntax("VRFY address")),
        b"VRFY" => Ok(Command::Vrfy),
        b"EXPN" => Err(CommandError::NotServed("EXPN")),
        b"ETRN" => Err(CommandError::NotServed("ETRN")),
        b"TURN" => Err(CommandError::NotServed("TURN")),
        b"SEND" | b"SOML" | b"SAML" => Err(CommandError::NotServed("Sending to terminals")),
        _ => Err(CommandError::Unknown(echo(verb))),
    }
}

/// True if a line opens an HTTP request: a browser or a proxy was tricked into talking to us.
#[must_use]
pub fn is_http(line: &[u8]) -> bool {
    let verb = line.split(|&b| b == b' ').next().unwrap_or_default();
    let verbs: [&[u8]; 8] = [b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"DELETE", b"PATCH"];
    verbs.contains(&verb) && line.len() > verb.len()
}

fn echo(word: &str) -> Box<str> {
    let mut end = word.len().min(ECHO_SIZE_MAX);
    while !word.is_char_boundary(end) {
        end -= 1;
    }
    word[..end].into()
}

fn bare<'l>(rest: &str, command: Command<'l>, syntax: &'static str) -> Result<Command<'l>, CommandError> {
    if rest.is_empty() { Ok(command) } else { Err(CommandError::Syntax(syntax)) }
}

/// The client's name. Hosts give all sorts of names here; it is text for the trace field and no identity, so
/// that only what could not stand in a trace field is refused.
fn hello<'l>(rest: &'l str, syntax: &'static str) -> Result<&'l str, CommandError> {
    let name = rest.trim_start_matches(' ');
    let fits = !name.is_empty() && name.len() <= HELLO_SIZE_MAX;
    if fits && name.bytes().all(|b| b.is_ascii_graphic() && !b"()<>;,\"\\@".contains(&b)) {
        return Ok(name);
    }
    Err(CommandError::Syntax(syntax))
}

fn bdat<'l>(rest: &str) -> Result<Command<'l>, CommandError> {
    let syntax = || CommandError::Syntax("BDAT octets [LAST]");
    let (size, flag) = rest.split_once(' ').unwrap_or((rest, ""));
    let last = flag.eq_ignore_ascii_case("LAST");
    if !flag.is_empty() && !last {
        return Err(syntax());
    }
    Ok(Command::Bdat { size_bytes: number(size).ok_or_else(syntax)?, last })
}

/// A number of at most 20 digits (RFC 1870 §4, RFC 3030 §4.2) that fits.
fn number(text: &str) -> Option<u64> {
    let digits = (1..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

fn auth(rest: &str) -> Result<Command<'_>, CommandError> {
    let mut words = rest.split(' ').filter(|word| !word.is_empty());
    match (words.next(), words.next(), words.next()) {
        (Some(mechanism), initial, None) => Ok(Command::Auth { mechanism, initial }),
        _ => Err(CommandError::Syntax("AUTH mechanism [response in base64]")),
    }
}

fn mail<'l>(rest: &'l str, rules: &Rules<'_>) -> Result<Command<'l>, CommandError> {
    const SYNTAX: CommandError = CommandError::Syntax("MAIL FROM:<address>");
    let (path, parameters) = path(rest, "FROM:", rules, &SYNTAX)?;
    let mut mail = Mail::default();
    mail_parameters(parameters, rules, &mut mail)?;
    if !path.is_empty() {
        mail.envelope.reverse_path =
            Some(mailbox(path, mail.envelope.smtputf8).map_err(CommandError::of_sender)?);
    }
    Ok(Command::Mail(mail))
}

fn rcpt<'l>(rest: &'l str, rules: &Rules<'_>) -> Result<Command<'l>, CommandError> {
    const SYNTAX: CommandError = CommandError::Syntax("RCPT TO:<address>");
    let (path, parameters) = path(rest, "TO:", rules, &SYNTAX)?;
    let mailbox = if path.eq_ignore_ascii_case("postmaster") {
        format!("{path}@{}", rules.hostname).parse().map_err(CommandError::Recipient)?
    } else if path.is_empty() {
        return Err(SYNTAX);
    } else {
        mailbox(path, rules.smtputf8)?
    };
    let mut recipient = RecipientParams::from(mailbox);
    rcpt_parameters(parameters, rules, &mut recipient)?;
    Ok(Command::Rcpt(recipient))
}

impl CommandError {
    /// The same fault, in a reverse-path.
    fn of_sender(self) -> Self {
        match self {
            CommandError::Recipient(error) => CommandError::Sender(error),
            other => other,
        }
    }
}

fn mailbox(path: &str, smtputf8: bool) -> Result<Mailbox, CommandError> {
    if path.starts_with('@') {
        return Err(CommandError::SourceRoute);
    }
    if !smtputf8 && !path.is_ascii() {
        return Err(CommandError::NeedsSmtpUtf8);
    }
    path.parse().map_err(CommandError::Recipient)
}

/// Splits `FROM:<path> parameters`. White space after the colon is wrong and common, and changes no meaning.
fn path<'l>(
    rest: &'l str,
    keyword: &str,
    rules: &Rules<'_>,
    syntax: &CommandError,
) -> Result<(&'l str, &'l str), CommandError> {
    let fails = || syntax.clone();
    let head = rest.get(..keyword.len()).ok_or_else(fails)?;
    if !head.eq_ignore_ascii_case(keyword) {
        return Err(fails());
    }
    let rest = rest[keyword.len()..].trim_start_matches(' ');
    let Some(inner) = rest.strip_prefix('<') else {
        let word = rest.split(' ').next().unwrap_or_default();
        return if rules.lenient && !word.is_empty() {
            Ok((word, &rest[word.len()..]))
        } else {
            Err(fails())
        };
    };
    let end = end_of_path(inner).ok_or_else(fails)?;
    let parameters = &inner[end + 1..];
    if !parameters.is_empty() && !parameters.starts_with(' ') {
        return Err(fails());
    }
    Ok((&inner[..end], parameters))
}

/// The index of the `>` that is not inside a quoted local part.
fn end_of_path(inner: &str) -> Option<usize> {
    if !inner.starts_with('"') {
        return memchr::memchr(b'>', inner.as_bytes());
    }
    let mut quoted = false;
    let mut escaped = false;
    for (i, b) in inner.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some(i),
            _ => {}
        }
    }
    None
}

/// Goes through `KEY=VALUE` and `KEY`, each at most once.
fn parameters<'l>(
    text: &'l str,
    rules: &Rules<'_>,
    mut take: impl FnMut(&'l str, Option<&'l str>) -> Result<(), CommandError>,
) -> Result<(), CommandError> {
    for (i, word) in text.split(' ').filter(|word| !word.is_empty()).enumerate() {
        if !rules.extended {
            return Err(CommandError::NotExtended);
        }
        if i == PARAMETERS_MAX {
            return Err(CommandError::TooManyParameters);
        }
        let (key, value) = word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
        take(key, value)?;
    }
    Ok(())
}

fn once(seen: &mut u8, bit: u8, name: &'static str) -> Result<(), CommandError> {
    if *seen & 1 << bit != 0 {
        return Err(CommandError::Repeated(name));
    }
    *seen |= 1 << bit;
    Ok(())
}

fn mail_parameters(text: &str, rules: &Rules<'_>, mail: &mut Mail) -> Result<(), CommandError> {
    let mut seen = 0u8;
    let envelope = &mut mail.envelope;
    parameters(text, rules, |key, value| {
        let is = |name: &str| key.eq_ignore_ascii_case(name);
        let value_is = |word: &str| value.is_some_and(|value| value.eq_ignore_ascii_case(word));
        if is("SIZE") {
            once(&mut seen, 0, "SIZE")?;
            let size = value.and_then(number);
            mail.size_bytes = Some(size.ok_or(CommandError::Parameter("SIZE is a number of octets"))?);
        } else if is("BODY") {
            once(&mut seen, 1, "BODY")?;
            envelope.body = match value {
                _ if value_is("7BIT") => BodyKind::SevenBit,
                _ if value_is("8BITMIME") => BodyKind::EightBitMime,
                _ if value_is("BINARYMIME") => BodyKind::BinaryMime,
                _ => return Err(CommandError::Parameter("BODY is 7BIT, 8BITMIME or BINARYMIME")),
            };
        } else if is("SMTPUTF8") {
            once(&mut seen, 2, "SMTPUTF8")?;
            flag(value, "SMTPUTF8 takes no value")?;
            envelope.smtputf8 = true;
        } else if is("RET") {
            once(&mut seen, 3, "RET")?;
            envelope.ret = match value {
                _ if value_is("FULL") => Some(Ret::Full),
                _ if value_is("HDRS") => Some(Ret::Headers),
                _ => return Err(CommandError::Parameter("RET is FULL or HDRS")),
            };
        } else if is("ENVID") {
            once(&mut seen, 4, "ENVID")?;
            let envid = value.filter(|v| (1..=ENVID_SIZE_MAX).contains(&v.len()) && xtext::is_valid(v));
            let wrong = CommandError::Parameter("ENVID is xtext of at most 100 octets");
            envelope.envid = Some(envid.ok_or(wrong)?.into());
        } else if is("AUTH") {
            // RFC 4954 §5: whoever submitted the message first. We pass on nobody's word for it.
            once(&mut seen, 5, "AUTH")?;
            if !value.is_some_and(|v| v == "<>" || (!v.is_empty() && xtext::is_valid(v))) {
                return Err(CommandError::Parameter("AUTH is <> or a mailbox in xtext"));
            }
        } else if is("REQUIRETLS") && rules.requiretls {
            once(&mut seen, 6, "REQUIRETLS")?;
            flag(value, "REQUIRETLS takes no value")?;
            envelope.requires_tls = true;
        } else {
            return Err(CommandError::UnknownParameter(echo(key)));
        }
        Ok(())
    })
}

fn flag(value: Option<&str>, wrong: &'static str) -> Result<(), CommandError> {
    if value.is_none() { Ok(()) } else { Err(CommandError::Parameter(wrong)) }
}

fn rcpt_parameters(
    text: &str,
    rules: &Rules<'_>,
    recipient: &mut RecipientParams,
) -> Result<(), CommandError> {
    let mut seen = 0u8;
    parameters(text, rules, |key, value| {
        if key.eq_ignore_ascii_case("NOTIFY") {
            once(&mut seen, 0, "NOTIFY")?;
            let wrong = CommandError::Parameter("NOTIFY is NEVER or of SUCCESS, FAILURE, DELAY with commas");
            recipient.notify = Some(value.and_then(notify).ok_or(wrong)?);
        } else if key.eq_ignore_ascii_case("ORCPT") {
            once(&mut seen, 1, "ORCPT")?;
            let wrong = CommandError::Parameter("ORCPT is type;address in xtext, at most 500 octets");
            let orcpt = value.filter(|v| is_orcpt(v, rules.smtputf8)).ok_or(wrong)?;
            recipient.orcpt = Some(orcpt.into());
        } else {
            return Err(CommandError::UnknownParameter(echo(key)));
        }
        Ok(())
    })
}

fn notify(value: &str) -> Option<Notify> {
    if value.eq_ignore_ascii_case("NEVER") {
        return Some(Notify::Never);
    }
    let (mut success, mut failure, mut delay) = (false, false, false);
    for word in value.split(',') {
        let wanted = match word {
            _ if word.eq_ignore_ascii_case("SUCCESS") => &mut success,
            _ if word.eq_ignore_ascii_case("FAILURE") => &mut failure,
            _ if word.eq_ignore_ascii_case("DELAY") => &mut delay,
            _ => return None,
        };
        if std::mem::replace(wanted, true) {
            return None;
        }
    }
    Some(Notify::On { success, failure, delay })
}

/// `addr-type;xtext`; with SMTPUTF8 the address may be UTF-8 as it is (RFC 6533 §3).
fn is_orcpt(value: &str, smtputf8: bool) -> bool {
    let Some((kind, address)) = value.split_once(';') else { return false };
    let atom = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    value.len() <= ORCPT_SIZE_MAX
        && !kind.is_empty()
        && kind.bytes().all(atom)
        && !address.is_empty()
        && if smtputf8 { xtext::is_valid_utf8(address) } else { xtext::is_valid(address) }
}

fn xclient<'l>(rest: &str) -> Result<Command<'l>, CommandError> {
    const WRONG: CommandError = CommandError::Syntax(
        "XCLIENT NAME=, ADDR=, PORT=, PROTO=, HELO=, LOGIN=, DESTADDR= or DESTPORT= and xtext",
    );
    let mut found = Xclient::default();
    let mut count = 0;
    for word in rest.split(' ').filter(|word| !word.is_empty()) {
        count += 1;
        let (key, value) = word.split_once('=').ok_or(WRONG)?;
        let value = xtext::decode(value).ok_or(WRONG)?;
        let is = |name: &str| key.eq_ignore_ascii_case(name);
        let known =
            !value.eq_ignore_ascii_case("[UNAVAILABLE]") && !value.eq_ignore_ascii_case("[TEMPUNAVAIL]");
        let text = || if known { value.as_str().into() } else { Box::from("") };
        if is("NAME") {
            found.name = Some(text());
        } else if is("HELO") {
            let usable = hello(&value, "").unwrap_or_default();
            found.helo = Some(if known { usable.into() } else { Box::from("") });
        } else if is("LOGIN") {
            found.login = Some(text());
        } else if is("ADDR") && known {
            let bare = value
                .get(..5)
                .filter(|tag| tag.eq_ignore_ascii_case("ipv6:"))
                .map_or(&*value, |_| &value[5..]);
            found.address = Some(bare.parse().map_err(|_| WRONG)?);
        } else if is("PORT") && known {
            found.port = Some(value.parse().map_err(|_| WRONG)?);
        } else if !["ADDR", "PORT", "PROTO", "DESTADDR", "DESTPORT"].iter().any(|name| is(name)) {
            return Err(WRONG);
        }
    }
    if count == 0 { Err(WRONG) } else { Ok(Command::Xclient(found)) }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
