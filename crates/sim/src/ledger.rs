//! What the world knows: who was promised what, what the log says, and what arrived.

use postrider_model::record::{self, Kind, ReportKind};
use postrider_model::{Terminal, Timestamp};
use postrider_spool::testing::Dice;
use std::collections::BTreeMap;

/// A message as the clients number them.
pub(crate) type MessageKey = u64;

/// What is known of a recipient.
#[derive(Clone, Debug, Default)]
struct Fate {
    acknowledged: bool,
    copies: u32,
}

/// What the durable log says of a recipient.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) attempts: u16,
    pub(crate) due: Option<Timestamp>,
    pub(crate) terminal: Option<Terminal>,
}

/// The books.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    messages: u64,
    fates: BTreeMap<String, Fate>,
    /// By message number and ordinal.
    pub(crate) logged: BTreeMap<(u64, u16), Logged>,
    /// Addresses of a logged message.
    addresses: BTreeMap<u64, Vec<String>>,
    /// Failure reports in the log, by the message they are about.
    reports: BTreeMap<u64, Vec<u16>>,
    /// Messages that are reports.
    is_report: BTreeMap<u64, bool>,
    /// Copies that may be too many: two per connection at each crash, and what sites took without saying so.
    pub(crate) allowance: u64,
    pub(crate) crashes: u64,
    pub(crate) seed: u64,
}

impl Ledger {
    pub(crate) fn new(seed: u64) -> Self {
        Ledger { seed, ..Ledger::default() }
    }

    pub(crate) fn new_message(&mut self, count: usize, dice: &mut Dice) -> (MessageKey, Vec<String>) {
        self.messages += 1;
        let key = self.messages;
        let recipients: Vec<String> = (0..count)
            .map(|at| {
                let domain = match dice.below(8) {
                    0 => "sandbox.test".to_owned(),
                    n => format!("d{n}.test"),
                };
                format!("m{key}r{at}@{domain}")
            })
            .collect();
        for recipient in &recipients {
            self.fates.insert(recipient.clone(), Fate::default());
        }
        (key, recipients)
    }

    pub(crate) fn sender(key: MessageKey) -> String {
        format!("s{key}@sender.test")
    }

    /// The relay said 250 to the message.
    pub(crate) fn acknowledged(&mut self, key: MessageKey, accepted: &[bool]) {
        let prefix = format!("m{key}r");
        for (at, _) in accepted.iter().enumerate().filter(|(_, accepted)| **accepted) {
            let start = format!("{prefix}{at}@");
            for (_, fate) in
                self.fates.range_mut(start.clone()..).take_while(|(address, _)| address.starts_with(&start))
            {
                fate.acknowledged = true;
            }
        }
    }

    /// A site has a message for a recipient.
    pub(crate) fn arrived(&mut self, address: &str) {
        if let Some(fate) = self.fates.get_mut(address) {
            fate.copies += 1;
        }
    }

    /// A record is durable, as far as anybody was told or a replay found.
    pub(crate) fn durable(&mut self, kind: u8, head: &[u8], replayed: bool) {
        let seed = self.seed;
        let Ok(kind) = Kind::try_from(kind) else { panic!("seed {seed}: a record of kind {kind}") };
        match kind {
            Kind::Message => {
                let message = record::Message::decode(head).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                if let Some(report) = &message.report {
                    assert!(message.envelope.reverse_path.is_none(), "seed {seed}: a report with a sender");
                    assert!(
                        !self.is_report.get(&report.of.0).copied().unwrap_or(false),
                        "seed {seed}: a report on a report"
                    );
                    if report.kind == ReportKind::Failed && !replayed {
                        self.reports.entry(report.of.0).or_default().extend(&report.ordinals);
                    }
                }
                self.is_report.insert(message.number.0, message.report.is_some());
                let addresses = message.recipients.iter().map(|r| r.mailbox.to_string()).collect();
                self.addresses.insert(message.number.0, addresses);
                for ordinal in (0u16..).take(message.recipients.len()) {
                    self.logged.entry((message.number.0, ordinal)).or_default();
                }
            }
            Kind::Deferral => {
                let deferral = record::Deferral::decode(head).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                for ordinal in deferral.ordinals {
                    let logged = self.logged.entry((deferral.number.0, ordinal)).or_default();
                    if !replayed {
                        assert_eq!(logged.terminal, None, "seed {seed}: deferred after its verdict");
                        assert_eq!(
                            logged.attempts + 1,
                            deferral.attempts,
                            "seed {seed}: attempts do not count up"
                        );
                    }
                    (logged.attempts, logged.due) = (deferral.attempts, Some(deferral.due));
                }
            }
            Kind::Final => {
                let done = record::Final::decode(head).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                for ordinal in done.ordinals {
                    let logged = self.logged.entry((done.number.0, ordinal)).or_default();
                    match logged.terminal {
                        None => logged.terminal = Some(done.terminal),
                        Some(before) => {
                            assert!(
                                replayed,
                                "seed {seed}: {}/{ordinal} has a second verdict",
                                done.number.0
                            );
                            assert_eq!(before, done.terminal, "seed {seed}: another verdict");
                        }
                    }
                }
            }
            Kind::Change => {
                let change = record::Change::decode(head).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                if let record::ChangeTo::Due(due) = change.to {
                    for ordinal in change.ordinals {
                        self.logged.entry((change.number.0, ordinal)).or_default().due = Some(due);
                    }
                }
            }
            Kind::Chunk | Kind::Attempt | Kind::Control | Kind::Backoff => {}
        }
    }

    /// Recipients whose message is durable and who have no verdict.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (&(u64, u16), &Logged)> {
        self.logged.iter().filter(|(_, logged)| logged.terminal.is_none())
    }

    /// Everything has drained: the promises.
    pub(crate) fn settle(&self) {
        let seed = self.seed;
        let mut verdicts: BTreeMap<&str, Terminal> = BTreeMap::new();
        for ((number, ordinal), logged) in &self.logged {
            let address = self.addresses.get(number).and_then(|a| a.get(usize::from(*ordinal)));
            if let (Some(address), Some(terminal)) = (address, logged.terminal) {
                verdicts.insert(address, terminal);
            }
        }
        let mut extra = 0;
        for (address, fate) in &self.fates {
            let verdict = verdicts.get(address.as_str());
            if fate.acknowledged {
                let verdict =
                    verdict.unwrap_or_else(|| panic!("seed {seed}: {address} was acknowledged and is lost"));
                if matches!(verdict, Terminal::Delivered(_)) {
                    assert!(fate.copies >= 1, "seed {seed}: {address} is called delivered and never arrived");
                }
            }
            extra += u64::from(fate.copies.saturating_sub(1));
            if let Some(verdict) = verdict
                && !matches!(verdict, Terminal::Delivered(_))
            {
                // It arrived though we say it did not: only doubt explains that.
                extra += u64::from(fate.copies.min(1));
            }
        }
        assert!(extra <= self.allowance, "seed {seed}: {extra} copies too many, {} allowed", self.allowance);
        self.check_reports();
    }

    fn check_reports(&self) {
        let seed = self.seed;
        for ((number, ordinal), logged) in &self.logged {
            let failed = matches!(logged.terminal, Some(Terminal::Bounced | Terminal::Expired));
            let is_report = self.is_report.get(number).copied().unwrap_or(false);
            let reports =
                self.reports.get(number).map_or(0, |of| of.iter().filter(|o| *o == ordinal).count());
            if failed && !is_report && self.crashes == 0 {
                assert_eq!(reports, 1, "seed {seed}: {number}/{ordinal} failed with {reports} reports");
            }
            assert!(!is_report || reports == 0, "seed {seed}: a report on a report");
        }
    }

    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.messages, self.fates.values().filter(|fate| fate.acknowledged).count() as u64)
    }
}
