//! The words of the command line.

use super::acts::{FilterArgs, ListArgs};
use super::place::Place;
use super::send::SendArgs;
use crate::serve::ServeArgs;
use clap::{Args, Parser, Subcommand};

const HELP: &str = "\
Examples:
  postrider serve                                   a relay on 127.0.0.1:2525 whose sandbox keeps all mail
  postrider send --to bob@example.net               a first mail
  postrider sandbox show                            what became of it
  postrider app create shop --from '*@example.com'  an application with a login and an API key
  postrider queue list --domain example.net         what waits for a domain
  postrider explain bob@example.net                 why it waits

Exit codes: 0 done; 1 failed or refused; 2 wrong arguments; 3 no relay runs; 4 problems found (config check,
spool check).";

/// An SMTP relay that accepts mail durably, delivers it at the pace of each receiver, and shows what became of it
#[derive(Debug, Parser)]
#[command(name = "postrider", version, after_help = HELP, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub(super) place: Place,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the relay
    Serve(ServeArgs),
    /// See and change what waits
    Queue {
        #[command(subcommand)]
        command: QueueCommand,
    },
    /// Say why a recipient, an address or a domain waits
    Explain(ExplainArgs),
    /// Read the mail that a sandbox route kept
    Sandbox {
        #[command(subcommand)]
        command: SandboxCommand,
    },
    /// Make, see and change applications: the systems that may send
    App {
        #[command(subcommand)]
        command: AppCommand,
    },
    /// Make, see and revoke API keys
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// See and change whether mail of applications may leave
    Instance {
        #[command(subcommand)]
        command: InstanceCommand,
    },
    /// Read and verify the log of all changes
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Send a message by SMTP and show what the server says
    Send(SendArgs),
    /// Check and show the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Look into the log on disk
    Spool {
        #[command(subcommand)]
        command: SpoolCommand,
    },
    /// Watch the lanes of the running relay
    Top(TopArgs),
    /// Make the verifier of a password, for `password = …` of an account
    Password(PasswordArgs),
    /// Read configuration and certificates again
    ///
    /// An invalid change is refused whole: the relay goes on with what it has. The same as SIGHUP, but says
    /// what came of it.
    Reload,
    /// Show the version
    Version,
}

const QUEUE_HELP: &str = "\
Filters: all that are given must match. Acts need at least one, or --all.

Examples:
  postrider queue list --domain example.net --reply 421
  postrider queue retry --recipient '*@example.net'
  postrider queue cancel --sender newsletter@example.com --older-than 2d --notify
  postrider queue move --to backup --domain '*.example.net'
  postrider queue suspend --domain example.net --reason 'their server is being moved'
  postrider queue resume 3";

#[derive(Debug, Subcommand)]
#[command(after_help = QUEUE_HELP)]
pub(super) enum QueueCommand {
    /// List recipients that wait, the oldest first
    List(ListArgs),
    /// Show one message or recipient
    Show {
        /// msg_… or rcp_…
        id: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Try again now, whatever the schedule says
    Retry(FilterArgs),
    /// Do not send until released
    Hold(FilterArgs),
    /// End a hold
    Release(FilterArgs),
    /// Never send
    Cancel {
        #[command(flatten)]
        filter: FilterArgs,
        /// Tell the senders by a delivery status notification
        #[arg(long)]
        notify: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Send by another route
    Move {
        #[command(flatten)]
        filter: FilterArgs,
        /// The route's name
        #[arg(long, value_name = "ROUTE")]
        to: String,
    },
    /// Stop what matches, also what comes later, until it is resumed
    Suspend {
        #[command(flatten)]
        filter: FilterArgs,
        /// Why, for whoever finds it
        #[arg(long)]
        reason: String,
    },
    /// End suspensions
    Resume {
        /// The suspension's number, as `queue suspensions` shows it
        #[arg(required_unless_present = "all")]
        number: Option<u64>,
        /// End all
        #[arg(long)]
        all: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List suspensions
    Suspensions {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  postrider explain bob@example.net\n  postrider explain example.net\n  \
                        postrider explain rcp_0198…")]
pub(super) struct ExplainArgs {
    /// A recipient id, an address or a domain
    pub target: String,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum SandboxCommand {
    /// List captured messages, the newest first
    List(SandboxListArgs),
    /// Show a message; without an id the newest
    Show {
        /// msg_…
        id: Option<String>,
        /// Only the content, octet for octet
        #[arg(long)]
        raw: bool,
        /// As JSON, without the content
        #[arg(long, conflicts_with = "raw")]
        json: bool,
    },
    /// Delete messages
    Delete {
        /// msg_…
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Delete all messages
    Clear,
}

#[derive(Debug, Args)]
pub(super) struct SandboxListArgs {
    /// Only with this in the reverse-path or the From field
    #[arg(long, value_name = "TEXT")]
    pub from: Option<String>,
    /// Only with this in a recipient
    #[arg(long, value_name = "TEXT")]
    pub to: Option<String>,
    /// Only with this in the subject
    #[arg(long, value_name = "TEXT")]
    pub subject: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 50)]
    pub limit: usize,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

const APP_HELP: &str = "\
Examples:
  postrider app create shop --from '*@example.com'
  postrider app create scanner --from scan@example.com --owner 'facilities' --expires 2027-12-31T00:00:00Z
  postrider app set shop --from '*@example.com' --from '*@*.example.com'
  postrider app set shop --delivery redirect:test@example.com
  postrider app credential create shop --name 'after the rotation'
  postrider app revoke shop";

#[derive(Debug, Subcommand)]
#[command(after_help = APP_HELP)]
pub(super) enum AppCommand {
    /// Make an application, with a login for SMTP and an API key, which are told once
    Create {
        /// What it is called
        name: String,
        #[command(flatten)]
        settings: AppSettings,
        /// As JSON, on one line
        #[arg(long)]
        json: bool,
    },
    /// List applications
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show an application and its credentials
    Show {
        /// Its name or id (app_…)
        app: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Change an application; takes effect at once, also for sessions that are open
    Set {
        /// Its name or id (app_…)
        app: String,
        /// Another name
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Whether it may send at all
        #[arg(long, value_name = "BOOL")]
        enabled: Option<bool>,
        #[command(flatten)]
        settings: AppSettings,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Cut an application off: disable it, revoke its credentials and keys, end its sessions
    Revoke {
        /// Its name or id (app_…)
        app: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete an application with its credentials and keys
    Delete {
        /// Its name or id (app_…)
        app: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Further logins of an application, so that one can follow another without a gap
    Credential {
        #[command(subcommand)]
        command: CredentialCommand,
    },
}

/// What can be set of an application.
#[derive(Debug, Args)]
pub(super) struct AppSettings {
    /// As whom it may send: an address, *@example.com, or *@*.example.com for subdomains; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub from: Vec<String>,
    /// Who answers for it
    #[arg(long, value_name = "TEXT")]
    pub owner: Option<String>,
    /// Where its mail goes once the instance is live: live, sandbox, redirect:ADDRESS, only:PATTERN,PATTERN
    #[arg(long, value_name = "MODE")]
    pub delivery: Option<String>,
    /// It may send with the null reverse-path <>
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub null_sender: Option<bool>,
    /// Size of a message at most, such as "10 MiB"; 0 for what the listener says
    #[arg(long, value_name = "SIZE", value_parser = crate::config::value::size)]
    pub max_size: Option<u64>,
    /// When it ends, such as 2027-12-31T00:00:00Z; or never
    #[arg(long, value_name = "TIME")]
    pub expires: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum CredentialCommand {
    /// Make a login; the others stay valid
    Create {
        /// The application's name or id (app_…)
        app: String,
        /// What it is called
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// When it ends, such as 2027-12-31T00:00:00Z
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
        /// As JSON, on one line
        #[arg(long)]
        json: bool,
    },
    /// List logins
    List {
        /// The application's name or id (app_…)
        app: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a login; its sessions are cut off
    Revoke {
        /// The application's name or id (app_…)
        app: String,
        /// The user name or id (crd_…)
        credential: String,
    },
}

const KEY_HELP: &str = "\
Examples:
  postrider key create --app shop
  postrider key create --app shop --scope emails:send --network 192.0.2.0/24 --live
  postrider key create --name deploy --scope applications:write --scope applications:read";

#[derive(Debug, Subcommand)]
#[command(after_help = KEY_HELP)]
pub(super) enum KeyCommand {
    /// Make a key, which is told once
    Create {
        /// What it is called
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// The application it stands for; without one it manages the tenant
        #[arg(long, value_name = "APP")]
        app: Option<String>,
        /// For real mail, whatever the instance is in now
        #[arg(long, conflicts_with = "test")]
        live: bool,
        /// For tests: nothing sent with it ever leaves
        #[arg(long)]
        test: bool,
        /// What it may do, such as emails:send; may be repeated
        #[arg(long, value_name = "SCOPE")]
        scope: Vec<String>,
        /// Whence it may be used, such as 192.0.2.0/24; may be repeated
        #[arg(long, value_name = "NETWORK")]
        network: Vec<String>,
        /// When it ends, such as 2027-12-31T00:00:00Z
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
        /// As JSON, on one line
        #[arg(long)]
        json: bool,
    },
    /// List keys
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key
    Revoke {
        /// Its id (key_…)
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum InstanceCommand {
    /// Show whether mail of applications may leave
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Let mail of applications leave, each as its delivery mode says
    Live,
    /// Capture all mail of applications that is accepted from now on
    Sandbox,
}

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// List changes, the newest first
    List {
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// Only those of this id, such as app_…
        #[arg(long, value_name = "ID")]
        target: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether the log is whole: every entry sealed by the next, and the anchors outside the store agree
    Verify {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say everything that is wrong with the configuration file
    Check {
        /// The file, if not given with --config
        file: Option<std::path::PathBuf>,
    },
    /// Print the JSON schema of the configuration file, for editors
    Schema,
    /// Print the settings in effect; secrets are masked
    Show {
        /// Only what differs from the defaults
        #[arg(long)]
        changed: bool,
    },
    /// Print the reference of all settings, as Markdown
    #[command(hide = true)]
    Reference,
}

#[derive(Debug, Subcommand)]
pub(super) enum SpoolCommand {
    /// Verify every record and every body; nothing is changed
    ///
    /// Best while no relay runs: the newest records of a running one may look torn.
    Check,
    /// Figures: files, records by kind, and those of the running relay
    Stats {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print every record, oldest first, one on a line
    Dump {
        /// Only records of this kind: message, chunk, attempt, deferral, final, control, backoff, change
        #[arg(long)]
        kind: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Seconds between refreshes
    #[arg(long, short, default_value_t = 1.0)]
    pub interval: f64,
    /// Show once and end
    #[arg(long)]
    pub once: bool,
    /// Lanes shown
    #[arg(long, default_value_t = 20)]
    pub lanes: usize,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  postrider password\n  pass show relay/app1 | postrider password --stdin"
)]
pub(super) struct PasswordArgs {
    /// Read the password from standard input instead of asking
    #[arg(long)]
    pub stdin: bool,
    /// Rounds of PBKDF2: more make guessing and logging in slower
    #[arg(long, default_value_t = postrider_auth::ITERATIONS_DEFAULT)]
    pub iterations: u32,
}
