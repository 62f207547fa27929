//! The source sends straight to the sink, which stands for a relay that delivers at once.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::time::Duration;
use storm::check::{Known, Report, check};
use storm::script::Script;
use storm::sink::{Options, Remains, Sink};
use storm::source::{self, Counts, Plan, Security};

struct Went {
    report: Report,
    counts: Counts,
    trouble: Option<String>,
    remains: Remains,
}

/// Sends a plan to a sink with this script and accounts.
fn send(script: &str, options: impl FnOnce(Options) -> Options, plan: impl FnOnce(Plan) -> Plan) -> Went {
    let script = Script::parse(script).unwrap();
    let sink = Sink::start(options(Options { script, ..Options::on_loopback() })).unwrap();
    let plan = plan(Plan { patience: Duration::from_secs(10), ..Plan::to(sink.address()) });
    let outcome = source::run(&plan).unwrap();
    let remains = sink.stop();
    let report = check(&outcome.journal, &remains.log, &Known::default()).unwrap();
    Went { report, counts: outcome.counts, trouble: outcome.trouble, remains }
}

fn plainly(script: &str, plan: impl FnOnce(Plan) -> Plan) -> Went {
    send(script, |options| options, plan)
}

fn assert_all(went: &Went, recipients: u64) {
    assert!(went.report.holds(), "{:?}", went.report);
    assert_eq!((went.report.delivered, went.report.lost), (recipients, 0));
    assert_eq!(went.trouble, None);
}

#[test]
fn everything_sent_arrives_whole() {
    let went = plainly("", |plan| plan.messages(500).sessions(8));
    assert_all(&went, 500);
    assert_eq!(went.report.acceptance.count, 500);
    assert_eq!(went.report.end_to_end.count, 500);
}

#[test]
fn several_recipients_and_threads_are_all_counted() {
    let domains: Vec<String> = ["a.test", "b.test", "c.test"].map(str::to_owned).to_vec();
    let went =
        plainly("", |plan| Plan { recipients: 7, threads: 2, domains, ..plan.messages(101).sessions(6) });
    assert_all(&went, 707);
    assert_eq!(went.report.by_domain.len(), 3);
    assert_eq!(went.remains.totals.connections_max, 6);
}

#[test]
fn a_large_message_arrives_whole() {
    assert_all(&plainly("", |plan| Plan { size: 3_000_000, ..plan.messages(6).sessions(2) }), 6);
}

#[test]
fn without_pipelining_nothing_changes_but_the_pace() {
    assert_all(
        &plainly("", |plan| Plan { pipelining: false, recipients: 3, ..plan.messages(40).sessions(3) }),
        120,
    );
    assert_all(&plainly("offer.pipelining = false", |plan| plan.messages(40).sessions(3)), 40);
}

#[test]
fn bdat_carries_the_same_message() {
    assert_all(&plainly("", |plan| Plan { bdat: true, ..plan.messages(40).sessions(3) }), 40);
    let stepwise = |plan: Plan| Plan { bdat: true, pipelining: false, size: 200_000, ..plan.messages(20) };
    assert_all(&plainly("", stepwise), 20);
    assert_all(&plainly("offer.chunking = false", |plan| Plan { bdat: true, ..plan.messages(20) }), 20);
}

#[test]
fn starttls_and_auth_come_before_each_connections_only_message() {
    let auth = Some(("user".to_owned(), "secret".to_owned()));
    let went = plainly("offer = { starttls = true, auth = true }", |plan| Plan {
        security: Security::StartTls,
        auth,
        per_connection: Some(1),
        ..plan.messages(30).sessions(4)
    });
    assert_all(&went, 30);
    // A session that connects while the last messages are in hand finds none left.
    assert!((30..=33).contains(&went.counts.connections), "{}", went.counts.connections);
}

#[test]
fn tls_from_the_first_octet_carries_large_messages_too() {
    let tls = |options: Options| Options { implicit_tls: true, ..options };
    let went = send("", tls, |plan| Plan {
        security: Security::Implicit,
        size: 300_000,
        ..plan.messages(12).sessions(3)
    });
    assert_all(&went, 12);
}

#[test]
fn starttls_is_demanded_when_asked_for() {
    let went = plainly("", |plan| Plan {
        security: Security::StartTls,
        patience: Duration::from_millis(200),
        ..plan.messages(3)
    });
    assert_eq!((went.counts.acknowledged, went.counts.unsent), (0, 3));
    assert!(went.trouble.is_some());
}

#[test]
fn lmtp_answers_for_each_recipient_and_the_source_reads_one() {
    // The source speaks SMTP and takes the first reply; the second ends the connection as unasked words.
    let lmtp = |options: Options| Options { lmtp: true, ..options };
    assert_all(&send("", lmtp, |plan| plan.messages(5)), 5);
}

#[test]
fn refusals_are_journaled_with_their_reply_and_nothing_is_owed() {
    let script = "[[rule]]\nat = 'rcpt'\nreply = '550 5.1.1 nobody'\nfirst = 10\n";
    let went = plainly(script, |plan| plan.messages(50).sessions(4));
    assert_all(&went, 40);
    assert_eq!(went.report.refused, 10);
    assert_eq!(went.report.refusals["550 5.1.1 nobody"], 10);
    let script = "[[rule]]\nat = 'mail'\nreply = '451 4.3.0 later'\nfirst = 3\n";
    let went = plainly(script, |plan| Plan { pipelining: false, ..plan.messages(9) });
    assert_all(&went, 6);
}

#[test]
fn one_refused_recipient_of_several_is_not_owed() {
    let script =
        "[[rule]]\nat = 'rcpt'\nrecipients = ['r1.*']\nreply = \"450-4.2.0 come\\n450 4.2.0 again\"\n";
    let went = plainly(script, |plan| Plan { recipients: 3, ..plan.messages(10).sessions(2) });
    assert_all(&went, 20);
    assert_eq!(went.report.acknowledged, 10);
    assert_eq!(went.remains.totals.deferred, 10);
}

#[test]
fn a_connection_dropped_after_the_dot_leaves_the_verdict_unknown() {
    let script = "[[rule]]\nat = 'dot'\nfirst = 5\ndrop = 'before'\n";
    let went = plainly(script, |plan| plan.messages(40).sessions(2));
    assert!(went.report.holds());
    assert_eq!((went.report.unknown, went.report.delivered, went.report.delivered_unknown), (5, 35, 0));
    let script = "[[rule]]\nat = 'dot'\nfirst = 5\ndrop = 'taken'\n";
    let went = plainly(script, |plan| Plan { retry_lost: true, ..plan.messages(40).sessions(2) });
    assert_all(&went, 40);
    assert_eq!((went.report.copies_expected, went.report.duplicates), (5, 0));
}

#[test]
fn a_limit_of_connections_is_told_with_421_and_waited_out() {
    let went = plainly("limit.connections = 2", |plan| plan.messages(200).sessions(5));
    assert_all(&went, 200);
    assert_eq!(went.remains.totals.connections_max, 2);
    assert!(went.remains.totals.deferred > 0 && went.remains.totals.deferral_share() < 1.0);
}

#[test]
fn a_worn_out_connection_is_replaced() {
    let went = plainly("limit.messages_per_connection = 10", |plan| plan.messages(35));
    assert_all(&went, 35);
    assert_eq!(went.counts.connections, 4);
}

#[test]
fn recipients_beyond_the_limit_get_452() {
    let went = plainly("limit.recipients = 4", |plan| Plan { recipients: 6, ..plan.messages(3) });
    assert_all(&went, 12);
    assert_eq!(went.remains.totals.deferred, 6);
}

#[test]
fn delays_and_tarpits_hold_the_reply_back() {
    let script = "[[rule]]\nat = 'dot'\ndomains = ['slow.test']\ndelay_ms = 40\n\
                  [[rule]]\nat = 'rcpt'\ndomains = ['tar.test']\ntarpit_ms = 2\n";
    let domains: Vec<String> = ["quick.test", "slow.test", "tar.test"].map(str::to_owned).to_vec();
    let went = plainly(script, |plan| Plan { domains, ..plan.messages(30).sessions(6) });
    assert_all(&went, 30);
    let p50 = |domain: &str| went.report.by_domain[domain].acceptance.p50_us;
    assert!(p50("slow.test") >= 40_000, "{}", p50("slow.test"));
    // The reply has 14 octets, each but the first after its pause.
    assert!(p50("tar.test") >= 26_000, "{}", p50("tar.test"));
    assert!(went.report.by_domain["quick.test"].acceptance.count == 10);
}

#[test]
fn hostile_replies_end_the_connection_and_lose_nothing() {
    let script = "[[rule]]\nat = 'rcpt'\nfirst = 4\nraw = \"\\u0000\\u0007nonsense\\n250\\n\"\n";
    let went = plainly(script, |plan| plan.messages(20).sessions(2));
    assert_all(&went, 20);
}

#[test]
fn a_rate_is_kept() {
    let went = plainly("", |plan| Plan { rate: Some(200.0), ..plan.messages(60).sessions(10) });
    assert_all(&went, 60);
    assert!(went.report.span_s >= 0.25, "60 messages at 200/s took {} s", went.report.span_s);
}

#[test]
fn a_duration_bounds_the_run() {
    let duration = Some(Duration::from_millis(150));
    let went = plainly("", |plan| Plan { messages: None, duration, ..plan.sessions(3) });
    assert!(went.report.holds() && went.report.delivered > 0);
    assert_eq!((went.counts.unsent, went.trouble), (0, None));
}

#[test]
fn a_relay_that_is_away_is_an_outcome_with_its_reason() {
    let sink = Sink::start(Options::on_loopback()).unwrap();
    let address = sink.address();
    drop(sink.stop());
    let outcome =
        source::run(&Plan { patience: Duration::from_millis(100), ..Plan::to(address).messages(5) }).unwrap();
    assert_eq!(outcome.counts.unsent, 5);
    assert!(outcome.trouble.is_some() && outcome.counts.broken > 1);
}

#[test]
fn logs_in_files_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, log) = (folder.path().join("journal"), folder.path().join("log"));
    let sink = Sink::start(Options { log: Some(log.clone()), ..Options::on_loopback() }).unwrap();
    let plan = Plan { journal: Some(journal.clone()), ..Plan::to(sink.address()).messages(300).sessions(5) };
    source::run(&plan).unwrap();
    assert!(sink.stop().log.is_empty());
    let (journal, log) = (std::fs::read(journal).unwrap(), std::fs::read(log).unwrap());
    let report = check(&journal, &log, &Known::default()).unwrap();
    assert!(report.holds() && report.delivered == 300);
}
