//! How long each phase may take (RFC 5321 §4.5.3.2).

use postrider_smtp::client::Command;
use std::time::Duration;

/// A TLS handshake; no RFC says.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(60);
/// A block of content, or any other octets, to be taken by the connection (§4.5.3.2.5).
pub(crate) const WRITE: Duration = Duration::from_secs(3 * 60);
/// The reply to QUIT: after it nothing is at stake.
pub(crate) const QUIT: Duration = Duration::from_secs(5);
/// Our own disk or log to bring a piece or a mark.
pub(crate) const OURSELVES: Duration = Duration::from_secs(5 * 60);

/// The reply to a command, from when it was sent or the reply before it came.
pub(crate) fn reply_to(command: Command) -> Duration {
    let minutes = |m: u64| Duration::from_secs(m * 60);
    match command {
        // §4.5.3.2.1 to §4.5.3.2.3; what they do not name takes as long.
        Command::Greeting
        | Command::Ehlo
        | Command::Helo
        | Command::StartTls
        | Command::Auth
        | Command::Mail
        | Command::Rcpt
        | Command::Rset => minutes(5),
        // §4.5.3.2.4
        Command::Data => minutes(2),
        // §4.5.3.2.5: a chunk is a block of content.
        Command::Bdat => minutes(3),
        // §4.5.3.2.6: too short a wait makes copies.
        Command::End => minutes(10),
        Command::Quit => QUIT,
    }
}
