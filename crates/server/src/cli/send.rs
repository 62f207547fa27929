//! `postrider send`

use super::output;
use super::place::Place;
use super::{EXIT_FAILED, EXIT_OK};
use crate::send::{Delivery, Draft, Failure, Login, TlsUse, advice, deliver};
use anyhow::{Context, Result};
use clap::Args;
use postrider_model::snapshot::Credentials;
use postrider_model::{Mailbox, Timestamp};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{IsTerminal, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where a relay that nobody has configured listens.
const SERVER_DEFAULT: &str = "127.0.0.1:2525";
const BODY_DEFAULT: &str = "Hello!\n\nThis message was sent by `postrider send`.\n";

const HELP: &str = "\
Examples:
  postrider send --to bob@example.net
  postrider send --from ada@example.com --to bob@example.net --subject 'Report' --attach report.pdf -v
  date | postrider send --to bob@example.net --body -
  postrider send --server mail.example.com:587 --user app1 --from app1@example.com --to bob@example.net";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct SendArgs {
    /// Recipient; repeat for several
    #[arg(long, required = true, value_name = "ADDRESS")]
    pub to: Vec<Mailbox>,
    /// Sender, in the envelope and in the header [default: postrider@ the relay's name]
    #[arg(long, value_name = "ADDRESS")]
    pub from: Option<Mailbox>,
    /// Subject
    #[arg(long, default_value = "Hello from Postrider")]
    pub subject: String,
    /// Text; - reads it from standard input
    #[arg(long)]
    pub body: Option<String>,
    /// Attach a file; repeat for several
    #[arg(long, value_name = "FILE")]
    pub attach: Vec<PathBuf>,
    /// Add a header field; repeat for several
    #[arg(long, value_name = "NAME: VALUE")]
    pub header: Vec<String>,
    /// Send this file as it is, instead of making a message; - reads standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["subject", "body", "attach", "header"])]
    pub raw: Option<PathBuf>,
    /// Use the null reverse-path, as bounces do
    #[arg(long)]
    pub null_sender: bool,
    /// Where to [default: the first listener of the running relay, or 127.0.0.1:2525]
    #[arg(long, value_name = "HOST:PORT")]
    pub server: Option<String>,
    /// Log in with this user name
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Password; better left out: then it is asked for
    #[arg(long, env = "POSTRIDER_PASSWORD", hide_env_values = true, requires = "user")]
    pub password: Option<String>,
    /// When to use TLS
    #[arg(long, value_enum, default_value_t = TlsUse::Auto)]
    pub tls: TlsUse,
    /// Take any certificate; always so on loopback
    #[arg(long)]
    pub insecure: bool,
    /// Speak LMTP
    #[arg(long)]
    pub lmtp: bool,
    /// EHLO name
    #[arg(long, value_name = "NAME")]
    pub ehlo: Option<String>,
    /// Show the dialogue
    #[arg(long, short)]
    pub verbose: bool,
}

pub(super) fn run(place: &Place, args: &SendArgs) -> Result<u8> {
    // The relay may be another one, and need not be ours: its absence is no error here.
    let health = place.client().get("/v1/health").ok();
    let hostname = health.as_ref().and_then(|health| health["hostname"].as_str()).unwrap_or("localhost");
    let server = args.server.clone().unwrap_or_else(|| listener_of(health.as_ref()));
    let from = match &args.from {
        Some(from) => from.clone(),
        None => format!("postrider@{hostname}").parse().context("give a sender: --from ADDRESS")?,
    };
    let loopback = is_loopback(&server);
    let login = match &args.user {
        None => None,
        Some(user) => {
            let password = match &args.password {
                Some(password) => password.clone(),
                None => super::password::asked(&format!("Password of {user}: "))?,
            };
            let credentials = Credentials { username: user.as_str().into(), password: password.into() };
            Some(Login { credentials, in_clear: loopback })
        }
    };
    let delivery = Delivery {
        server: &server,
        ehlo: args.ehlo.as_deref().unwrap_or(hostname),
        lmtp: args.lmtp,
        tls: args.tls,
        verify: !args.insecure && !loopback,
        login,
        from: (!args.null_sender).then_some(&from),
        to: &args.to,
        content: content(args, &from)?,
        verbose: args.verbose,
    };
    match deliver(&delivery) {
        Ok((reply, refused)) => {
            output::print(&format!("accepted by {server}: {reply}\n"));
            for (recipient, reply) in &refused {
                eprintln!("refused for {recipient}: {reply}");
                eprint!("{}", advised(advice(reply)));
            }
            if refused.is_empty() {
                eprint!("{}", next_step(health.as_ref(), args));
            }
            Ok(if refused.is_empty() { EXIT_OK } else { EXIT_FAILED })
        }
        Err(Failure::Refused { asked, reply }) => {
            eprintln!("{server} refused {asked}: {reply}");
            eprint!("{}", advised(advice(&reply)));
            Ok(EXIT_FAILED)
        }
        Err(Failure::Broken(error)) => {
            let running = health.is_some();
            let hint = if running || args.server.is_some() {
                ""
            } else {
                "; is a relay running? `postrider serve` starts one"
            };
            Err(error.context(format!("nothing was sent to {server}{hint}")))
        }
    }
}

fn advised(advice: Option<&str>) -> String {
    advice.map(|advice| format!("What to do: {advice}.\n")).unwrap_or_default()
}

/// What to do next, said once a first mail has gone to a relay with a sandbox.
fn next_step(health: Option<&Value>, args: &SendArgs) -> String {
    let sandbox = health.is_some_and(|health| {
        output::items(health, "listeners").iter().any(|listener| listener["sandbox"] == true)
    });
    match (sandbox && args.server.is_none(), std::io::stderr().is_terminal()) {
        (true, true) => "See it with `postrider sandbox show`.\n".to_owned(),
        _ => String::new(),
    }
}

/// The listener of the running relay that a client would use.
fn listener_of(health: Option<&Value>) -> String {
    let listeners = health.map_or(&[][..], |health| output::items(health, "listeners"));
    let usable = |listener: &&Value| matches!(listener["protocol"].as_str(), Some("smtp" | "submission"));
    let Some(address) = listeners.iter().find(usable).and_then(|listener| listener["address"].as_str())
    else {
        return SERVER_DEFAULT.to_owned();
    };
    match address.parse::<SocketAddr>() {
        // What listens everywhere is reached here.
        Ok(any) if any.ip().is_unspecified() => match any {
            SocketAddr::V4(_) => format!("127.0.0.1:{}", any.port()),
            SocketAddr::V6(_) => format!("[::1]:{}", any.port()),
        },
        _ => address.to_owned(),
    }
}

fn is_loopback(server: &str) -> bool {
    let ip = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    host == "localhost" || ip(host) || ip(server)
}

fn content(args: &SendArgs, from: &Mailbox) -> Result<Vec<u8>> {
    if let Some(path) = &args.raw {
        let raw = if path.as_os_str() == "-" {
            let mut raw = Vec::new();
            std::io::stdin().read_to_end(&mut raw)?;
            raw
        } else {
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?
        };
        return Ok(postrider_message::lines::clean(&raw).into_owned());
    }
    let body = match args.body.as_deref() {
        Some("-") => {
            let mut body = String::new();
            std::io::stdin().read_to_string(&mut body).context("the text is not UTF-8; use --attach")?;
            body
        }
        Some(body) => body.to_owned(),
        None => BODY_DEFAULT.to_owned(),
    };
    for header in &args.header {
        let name = header.split_once(':').map(|(name, _)| name);
        if !name.is_some_and(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic())) {
            anyhow::bail!("--header {header:?} is no header field: write 'Name: value'");
        }
    }
    let mut attachments = Vec::new();
    for path in &args.attach {
        let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        attachments.push((name.unwrap_or_else(|| "attachment".to_owned()), content));
    }
    let mut random = [0; 12];
    aws_lc_rs::rand::fill(&mut random).ok().context("the system has no randomness")?;
    let unique = random.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let draft = Draft {
        from,
        to: &args.to,
        subject: &args.subject,
        body: &body,
        headers: &args.header,
        attachments: &attachments,
        now: Timestamp::from_secs(now),
        unique: &unique,
    };
    Ok(draft.compose())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_running_relays_listener_is_the_default() {
        let check = |listeners: Value, expected: &str| {
            assert_eq!(listener_of(Some(&json!({ "listeners": listeners }))), expected);
        };
        check(json!([]), SERVER_DEFAULT);
        check(json!([{"protocol": "lmtp", "address": "127.0.0.1:24"}]), SERVER_DEFAULT);
        check(json!([{"protocol": "smtp", "address": "0.0.0.0:25"}]), "127.0.0.1:25");
        check(json!([{"protocol": "submission", "address": "[::]:587"}]), "[::1]:587");
        check(json!([{"protocol": "smtp", "address": "192.0.2.1:25"}]), "192.0.2.1:25");
        assert_eq!(listener_of(None), SERVER_DEFAULT);
    }

    #[test]
    fn loopback_is_known_in_all_its_forms() {
        for server in ["localhost", "localhost:25", "127.0.0.1:2525", "127.0.0.9", "[::1]:25", "::1"] {
            assert!(is_loopback(server), "{server}");
        }
        for server in ["example.com:25", "192.0.2.1", "[2001:db8::1]:25"] {
            assert!(!is_loopback(server), "{server}");
        }
    }
}
