//! Mail servers that we did not write: Debian's Postfix, Exim and Dovecot, as they are packaged.

use crate::site::{Site, packages, until};
use anyhow::Result;
use enclosure::{Room, Running, User};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

/// A server listens within this time of its start.
const START: Duration = Duration::from_secs(30);
/// Mail is in the mailbox within this time.
const ARRIVAL: Duration = Duration::from_secs(30);

const POSTFIX_MASTER: &str = "\
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
";

/// A running server. It ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    /// Where it takes mail.
    pub address: SocketAddr,
    /// Its processes and files.
    pub room: Running,
    maildir: &'static str,
}

impl Server {
    /// All messages in all mailboxes whose content has these octets.
    #[must_use]
    pub fn received(&self, part: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        collect(&self.room.room.path(self.maildir), &mut |path| {
            if let Ok(content) = fs::read(path)
                && content.windows(part.len()).any(|window| window == part)
            {
                found.push(content);
            }
        });
        found
    }

    /// The one message with these octets, waited for.
    #[track_caller]
    #[must_use]
    pub fn receives(&self, part: &str) -> Vec<u8> {
        until(&format!("{part:?} arrives"), ARRIVAL, || self.received(part.as_bytes()).pop())
    }

    /// Waits until it listens.
    #[track_caller]
    fn wait(self) -> Server {
        until("a server listens", START, || TcpStream::connect(self.address).ok());
        self
    }

    /// What it logged.
    #[must_use]
    pub fn log(&self) -> String {
        let maillog = fs::read_to_string(self.room.room.path("/var/log/maillog")).unwrap_or_default();
        let mainlog = fs::read_to_string(self.room.room.path("/var/log/exim4/mainlog")).unwrap_or_default();
        maillog + &mainlog + &self.room.output()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of the server at {}\n{}", self.address, self.log());
        }
    }
}

fn collect(folder: &std::path::Path, see: &mut impl FnMut(&PathBuf)) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            // What is still being written is in tmp.
            if !path.ends_with("tmp") {
                collect(&path, see);
            }
        } else {
            see(&path);
        }
    }
}

/// Postfix at this address: takes mail for these domains (any user but `nobody`) into mailboxes, and hands
/// everything else to the next hop, if there is one.
///
/// # Errors
/// It cannot be unpacked or started here.
pub fn postfix(site: &Site, address: SocketAddr, domains: &str, next: Option<SocketAddr>) -> Result<Server> {
    postfix_with(site, address, domains, next, "")
}

/// The same, with lines put at the end of `main.cf`, where they count.
///
/// # Errors
/// It cannot be unpacked or started here.
pub fn postfix_with(
    site: &Site,
    address: SocketAddr,
    domains: &str,
    next: Option<SocketAddr>,
    settings: &str,
) -> Result<Server> {
    let packages = packages("postfix", &["postfix", "libsasl2-2", "libsasl2-modules"])?;
    let users = [
        User { name: "postfix", id: 970, home: "/nonexistent" },
        User { name: "postdrop", id: 971, home: "/nonexistent" },
        User { name: "box", id: 969, home: "/nonexistent" },
    ];
    let room = Room::build(&site.path(&format!("postfix-{}", address.ip())), &packages, &users)?;
    let (certificate, key) = site.certificate(&["postfix.example.net"]);
    room.write("/etc/cert.pem", fs::read(certificate)?)?;
    room.write("/etc/key.pem", fs::read(key)?)?;
    let relay = match next {
        Some(next) => format!("relayhost = [{}]:{}\nrelay_domains = static:all\n", next.ip(), next.port()),
        None => String::new(),
    };
    room.write(
        "/etc/postfix/main.cf",
        format!(
            "compatibility_level = 3.6\nqueue_directory = /var/spool/postfix\ncommand_directory = /usr/sbin\n\
             daemon_directory = /usr/lib/postfix/sbin\nshlib_directory = /usr/lib/postfix\n\
             data_directory = /var/lib/postfix\nmail_owner = postfix\nsetgid_group = postdrop\n\
             maillog_file = /var/log/maillog\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n\
             myhostname = postfix.example.net\nmydestination =\nlocal_recipient_maps =\nalias_maps =\n\
             mynetworks = 127.0.0.0/8\nsmtpd_relay_restrictions = permit_mynetworks, reject\n\
             smtpd_recipient_restrictions = check_recipient_access inline:{{{{nobody@{first} = 550 5.1.1 no such user}}, {{busy@{first} = 450 4.2.1 busy}}}}, permit\n\
             smtpd_peername_lookup = no\nsmtp_host_lookup = native\nsmtp_dns_support_level = disabled\n\
             message_size_limit = 52428800\nmailbox_size_limit = 0\nvirtual_mailbox_limit = 0\n\
             virtual_mailbox_domains = {domains}\nvirtual_mailbox_base = /mail\n\
             virtual_mailbox_maps = static:all/\nvirtual_uid_maps = static:969\nvirtual_gid_maps = static:969\n\
             virtual_minimum_uid = 100\nsmtpd_tls_security_level = may\n\
             smtpd_tls_cert_file = /etc/cert.pem\nsmtpd_tls_key_file = /etc/key.pem\nsmtpd_tls_received_header = yes\n\
             smtp_tls_security_level = may\nminimal_backoff_time = 2s\nqueue_run_delay = 2s\n{relay}{settings}",
            first = domains.split([',', ' ']).next().unwrap_or_default(),
        ),
    )?;
    room.write("/etc/postfix/master.cf", format!("{address} inet n - n - - smtpd\n{POSTFIX_MASTER}"))?;
    let room = room.start(
        "mkdir -p /var/spool/postfix /var/lib/postfix\nchown postfix /var/lib/postfix\nchown box:box /mail\n\
         postfix -c /etc/postfix check\n/usr/lib/postfix/sbin/master -c /etc/postfix &\nwait\n",
    )?;
    Ok(Server { address, room, maildir: "/mail" }.wait())
}

/// Exim at this address: takes mail for these domains (any user but `nobody`) into mailboxes.
///
/// # Errors
/// It cannot be unpacked or started here.
pub fn exim(site: &Site, address: SocketAddr, domains: &str) -> Result<Server> {
    exim_with(site, address, domains, None, "smtputf8_advertise_hosts = *\n")
}

/// The same, with more main settings; everything else goes to the next hop, if there is one.
///
/// # Errors
/// It cannot be unpacked or started here.
pub fn exim_with(
    site: &Site,
    address: SocketAddr,
    domains: &str,
    next: Option<SocketAddr>,
    settings: &str,
) -> Result<Server> {
    let packages = packages("exim", &["exim4-base", "exim4-daemon-light"])?;
    let users = [
        User { name: "Debian-exim", id: 972, home: "/nonexistent" },
        User { name: "box", id: 969, home: "/nonexistent" },
    ];
    let room = Room::build(&site.path(&format!("exim-{}", address.ip())), &packages, &users)?;
    let (certificate, key) = site.certificate(&["exim.example.net"]);
    room.write("/etc/cert.pem", fs::read(certificate)?)?;
    room.write("/etc/key.pem", fs::read(key)?)?;
    let router = next.map_or_else(String::new, |next| {
        format!(
            "next:\n  driver = manualroute\n  route_list = * {}::{} byname\n  transport = out\n  self = send\n",
            next.ip(),
            next.port()
        )
    });
    room.write(
        "/etc/exim4/exim4.conf",
        format!(
            "primary_hostname = exim.example.net\ndomainlist local_domains = {domains}\n\
             local_interfaces = {ip}\ndaemon_smtp_ports = {port}\nacl_smtp_rcpt = acl_rcpt\n\
             acl_smtp_data = accept\nhost_lookup =\nrfc1413_hosts =\nmessage_size_limit = 50M\n\
             disable_ipv6 = true\ntls_advertise_hosts = *\ntls_certificate = /etc/cert.pem\n\
             tls_privatekey = /etc/key.pem\nchunking_advertise_hosts = *\n{settings}\
             begin acl\nacl_rcpt:\n  deny local_parts = nobody\n       message = no such user\n  \
             accept domains = +local_domains\n  {others}\n\
             begin routers\nboxes:\n  driver = accept\n  domains = +local_domains\n  transport = box\n\
             {router}begin transports\nout:\n  driver = smtp\nbox:\n  driver = appendfile\n  directory = /mail/box\n  \
             maildir_format\n  create_directory\n  user = box\n  group = box\n  delivery_date_add\n  \
             envelope_to_add\n  return_path_add\n\
             begin retry\n* * F,2h,1m\n",
            ip = address.ip(),
            port = address.port(),
            others = if next.is_some() { "accept" } else { "deny" },
        ),
    )?;
    let room = room.start(
        "mkdir -p /var/spool/exim4 /var/log/exim4\nchown Debian-exim:Debian-exim /var/spool/exim4 /var/log/exim4\n\
         chown root:Debian-exim /etc/key.pem /etc/exim4/exim4.conf\nchmod 640 /etc/key.pem /etc/exim4/exim4.conf\n\
         chown box:box /mail\nexim4 -bd -q1m &\nsleep 100000 &\nwait\n",
    )?;
    Ok(Server { address, room, maildir: "/mail" }.wait())
}

/// A Dovecot and where its mailboxes are read. Any user has the password [`crate::PASSWORD`].
#[derive(Debug)]
pub struct Dovecot {
    /// LMTP.
    pub server: Server,
    /// IMAP.
    pub imap: SocketAddr,
    /// POP3.
    pub pop3: SocketAddr,
}

/// Dovecot with LMTP, IMAP and POP3 on free ports of this host.
///
/// # Errors
/// It cannot be unpacked or started here.
pub fn dovecot(site: &Site, host: u8) -> Result<Dovecot> {
    let packages = packages("dovecot", &["dovecot-core", "dovecot-imapd", "dovecot-pop3d", "dovecot-lmtpd"])?;
    let users = [
        User { name: "dovecot", id: 974, home: "/nonexistent" },
        User { name: "dovenull", id: 975, home: "/nonexistent" },
        User { name: "box", id: 969, home: "/nonexistent" },
    ];
    let room = Room::build(&site.path("dovecot"), &packages, &users)?;
    let (lmtp, imap, pop3) = (site.free(host), site.free(host), site.free(host));
    let listener = |name: &str, address: SocketAddr| {
        format!(
            "  inet_listener {name} {{\n    address = {}\n    port = {}\n  }}\n",
            address.ip(),
            address.port()
        )
    };
    room.write(
        "/etc/dovecot/dovecot.conf",
        format!(
            "protocols = imap pop3 lmtp\nbase_dir = /run/dovecot\nlisten = {ip}\nlog_path = /var/log/maillog\n\
             ssl = no\ndisable_plaintext_auth = no\nauth_mechanisms = plain login\n\
             mail_location = maildir:/mail/%Lu\nmail_uid = 969\nmail_gid = 969\nfirst_valid_uid = 100\n\
             mail_save_crlf = yes\ndefault_login_user = dovenull\ndefault_internal_user = dovecot\n\
             passdb {{\n  driver = static\n  args = password={password}\n}}\n\
             userdb {{\n  driver = static\n  args = uid=969 gid=969 home=/mail/%Lu allow_all_users=yes\n}}\n\
             service lmtp {{\n{lmtp_at}}}\nservice imap-login {{\n  inet_listener imaps {{\n    port = 0\n  }}\n{imap_at}}}\n\
             service pop3-login {{\n  inet_listener pop3s {{\n    port = 0\n  }}\n{pop3_at}}}\n",
            ip = lmtp.ip(),
            password = crate::PASSWORD,
            lmtp_at = listener("lmtp", lmtp),
            imap_at = listener("imap", imap),
            pop3_at = listener("pop3", pop3),
        ),
    )?;
    let room = room.start(
        "mkdir -p /run/dovecot /var/lib/dovecot\nchown box:box /mail\ndovecot -F -c /etc/dovecot/dovecot.conf &\nwait\n",
    )?;
    let server = Server { address: lmtp, room, maildir: "/mail" }.wait();
    until("Dovecot's IMAP listens", START, || TcpStream::connect(imap).ok());
    until("Dovecot's POP3 listens", START, || TcpStream::connect(pop3).ok());
    Ok(Dovecot { server, imap, pop3 })
}
