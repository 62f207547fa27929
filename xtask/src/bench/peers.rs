//! Debian's Postfix, Exim and OpenSMTPD as fast relays to one next hop, each with its own durability untouched.
//!
//! Where a default would only slow the comparison down (a look-up of the client's name, a pause between
//! deliveries, few deliveries at once) it is lifted, so that each shows what it can do. None of them logs to a
//! disk: there is no syslog in the room.

use super::relay::Site;
use super::workload::{PASSWORD, USER};
use anyhow::Result;
use enclosure::{Packages, Room, Running, User};
use std::path::Path;

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
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
";

pub(super) fn postfix(folder: &Path, packages: &Path, site: &Site<'_>) -> Result<Running> {
    let packages = Packages::unpack(
        &packages.join("postfix"),
        &["postfix", "sasl2-bin", "libsasl2-2", "libsasl2-modules", "libsasl2-modules-db"],
    )?;
    let users = [
        User { name: "postfix", id: 970, home: "/var/spool/postfix" },
        User { name: "postdrop", id: 971, home: "/nonexistent" },
    ];
    let room = Room::build(folder, &packages, &users)?;
    let tls_in = if site.workload.tls_in() {
        "smtpd_tls_security_level = may\nsmtpd_tls_cert_file = /etc/bench.crt\nsmtpd_tls_key_file = /etc/bench.key\n"
    } else {
        ""
    };
    let tls_out = if site.workload.tls_out() { "smtp_tls_security_level = encrypt\n" } else { "" };
    let auth = if site.workload.auth() {
        "smtpd_sasl_auth_enable = yes\nsmtpd_sasl_local_domain = relay.example.test\nsmtpd_tls_auth_only = yes\n\
         cyrus_sasl_config_path = /etc/postfix/sasl\n"
    } else {
        ""
    };
    let allowed = if site.workload.auth() { "" } else { "permit_mynetworks, " };
    room.write(
        "/etc/postfix/main.cf",
        format!(
            "compatibility_level = 3.6\nqueue_directory = /var/spool/postfix\ncommand_directory = /usr/sbin\n\
             daemon_directory = /usr/lib/postfix/sbin\nshlib_directory = /usr/lib/postfix\n\
             data_directory = /var/lib/postfix\nmail_owner = postfix\nsetgid_group = postdrop\n\
             inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmyhostname = relay.example.test\n\
             mydestination =\nlocal_recipient_maps =\nalias_maps =\nmynetworks = 127.0.0.0/8\n\
             smtpd_relay_restrictions = {allowed}permit_sasl_authenticated, reject\n\
             smtpd_peername_lookup = no\nsmtpd_client_connection_count_limit = 0\n\
             default_process_limit = 300\ndefault_destination_concurrency_limit = 50\n\
             initial_destination_concurrency = 20\nin_flow_delay = 0\nsmtp_dns_support_level = disabled\n\
             smtp_host_lookup = native\nrelayhost = [127.0.0.1]:{sink}\nmessage_size_limit = 52428800\n\
             {tls_in}{tls_out}{auth}",
            sink = site.sink.port(),
        ),
    )?;
    let listen = format!("{} inet n - n - - smtpd\n", site.relay);
    room.write("/etc/postfix/master.cf", listen + POSTFIX_MASTER)?;
    room.write(
        "/etc/postfix/sasl/smtpd.conf",
        "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN\n",
    )?;
    certificate(&room, site)?;
    let add_user = if site.workload.auth() {
        format!(
            "printf %s '{PASSWORD}' | saslpasswd2 -p -c -u relay.example.test {USER}\n\
             chown postfix /etc/sasldb2\n"
        )
    } else {
        String::new()
    };
    room.start(&format!(
        "mkdir -p /var/spool/postfix /var/lib/postfix\nchown postfix /var/lib/postfix\n{add_user}\
         postfix -c /etc/postfix check\n/usr/lib/postfix/sbin/master -c /etc/postfix &\nwait\n"
    ))
}

pub(super) fn exim(folder: &Path, packages: &Path, site: &Site<'_>) -> Result<Running> {
    let packages = Packages::unpack(&packages.join("exim"), &["exim4-base", "exim4-daemon-light"])?;
    let users = [User { name: "Debian-exim", id: 972, home: "/var/spool/exim4" }];
    let room = Room::build(folder, &packages, &users)?;
    let tls_in = if site.workload.tls_in() {
        "tls_advertise_hosts = *\ntls_certificate = /etc/bench.crt\ntls_privatekey = /etc/bench.key\n"
    } else {
        "tls_advertise_hosts =\n"
    };
    let tls_out = if site.workload.tls_out() {
        "hosts_require_tls = *\n  tls_verify_hosts =\n  tls_try_verify_hosts =\n"
    } else {
        "hosts_avoid_tls = *\n"
    };
    let (allowed, authenticator) = if site.workload.auth() {
        (
            "acl_rcpt:\n  accept authenticated = *\n  deny\n",
            format!(
                "begin authenticators\nplain:\n  driver = plaintext\n  public_name = PLAIN\n  server_prompts = :\n  \
                 server_set_id = $auth2\n  server_condition = ${{if and{{{{eq{{$auth2}}{{{USER}}}}}\
                 {{eq{{$auth3}}{{{PASSWORD}}}}}}}}}\n"
            ),
        )
    } else {
        ("acl_rcpt:\n  accept\n", String::new())
    };
    room.write(
        "/etc/exim4/exim4.conf",
        format!(
            "primary_hostname = relay.example.test\ndomainlist local_domains =\nlocal_interfaces = 127.0.0.1\n\
             daemon_smtp_ports = {relay}\nacl_smtp_rcpt = acl_rcpt\nacl_smtp_data = accept\nhost_lookup =\n\
             rfc1413_hosts =\nsmtp_accept_max = 1000\nsmtp_accept_queue_per_connection = 0\n\
             smtp_accept_max_per_connection = 0\nsmtp_connect_backlog = 1000\nqueue_run_max = 50\n\
             remote_max_parallel = 10\nmessage_size_limit = 50M\ndisable_ipv6 = true\n\
             log_selector = -all\nsplit_spool_directory = true\n{tls_in}\
             begin acl\n{allowed}\
             begin routers\nrelay:\n  driver = manualroute\n  route_list = * 127.0.0.1::{sink} byname\n  \
             transport = out\n  self = send\n\
             begin transports\nout:\n  driver = smtp\n  {tls_out}\
             begin retry\n* * F,2h,1m\n{authenticator}",
            relay = site.relay.port(),
            sink = site.sink.port(),
        ),
    )?;
    certificate(&room, site)?;
    room.start(
        "mkdir -p /var/spool/exim4 /var/log/exim4\nchown Debian-exim:Debian-exim /var/spool/exim4 /var/log/exim4\n\
         chown root:Debian-exim /etc/bench.key\nexim4 -bd -q5m &\nsleep 100000 &\nwait\n",
    )
}

pub(super) fn opensmtpd(folder: &Path, packages: &Path, site: &Site<'_>) -> Result<Running> {
    let packages = Packages::unpack(&packages.join("opensmtpd"), &["opensmtpd"])?;
    let users = [
        User { name: "opensmtpd", id: 973, home: "/var/lib/opensmtpd/empty" },
        User { name: "opensmtpq", id: 974, home: "/var/lib/opensmtpd/empty" },
    ];
    let room = Room::build(folder, &packages, &users)?;
    room.write(
        "/etc/smtpd.conf",
        format!(
            "listen on 127.0.0.1 port {relay} hostname relay.example.test\n\
             smtp max-message-size 50M\nsmtp limit max-mails 100000000\nmta limit session-mail-max 100000\n\
             mta limit max-conn-per-host 50\nmta limit max-conn-per-route 50\nmta limit max-conn-per-connector 50\n\
             mta limit max-conn-per-relay 50\nmta limit conn-delay-route 0\n\
             action \"out\" relay host smtp://127.0.0.1:{sink}\nmatch from any for any action \"out\"\n",
            relay = site.relay.port(),
            sink = site.sink.port(),
        ),
    )?;
    room.start(
        "mkdir -p /var/spool/smtpd /var/lib/opensmtpd/empty\nchown 0:0 /var/spool/smtpd\n\
         chmod 711 /var/spool/smtpd\nsmtpd -F -f /etc/smtpd.conf &\nwait\n",
    )
}

fn certificate(room: &Room, site: &Site<'_>) -> Result<()> {
    room.write("/etc/bench.crt", std::fs::read(site.certificate)?)?;
    room.write("/etc/bench.key", std::fs::read(site.key)?)
}

/// Makes a peer try everything that waits for its next hop.
pub(super) fn flush(running: &Running, command: &str) -> Result<()> {
    running.enter(command).map(drop)
}
