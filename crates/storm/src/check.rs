//! Exact accounting: what the relay acknowledged against what arrived.

use crate::id::{Id, parse_address};
use crate::latency::Percentiles;
use crate::record::{self, Content, How, Sent, Taken, Totals, Verdict};
use anyhow::Context;
use rustc_hash::{FxHashMap, FxHashSet};
use serde::Serialize;
use std::collections::BTreeMap;

/// Recipients named per kind of finding; all are counted.
const NAMED_MAX: usize = 20;
/// Domains with figures of their own; beyond that only the whole is reported.
const GROUPS_MAX: usize = 100;
/// How much a delivery may seem to precede its final dot, microseconds: source and sink read one clock, but the
/// dot's time is read before it is written.
const CLOCK_SLACK_US: u64 = 1000;

/// What is known beside the two logs.
#[derive(Debug, Default)]
pub struct Known {
    /// Recipients the relay still holds.
    pub queued: FxHashSet<(Id, u16)>,
    /// Connections the relay had open at each crash, summed over crashes: each may cost two copies.
    pub open_connections: u64,
}

impl Known {
    /// Reads a relay's list of queued recipients: a JSON array of addresses, of objects with the address under
    /// `recipient` or `address`, or an object that holds such an array under `recipients`. Other addresses than
    /// storm's are passed over.
    ///
    /// # Errors
    /// Not JSON of that form.
    pub fn read_queued(&mut self, json: &str) -> anyhow::Result<()> {
        let value: serde_json::Value = serde_json::from_str(json).context("the relay's state is not JSON")?;
        let list = value.get("recipients").unwrap_or(&value).as_array();
        for entry in list.context("the relay's state has no array of recipients")? {
            let named = entry.get("recipient").or_else(|| entry.get("address")).unwrap_or(entry);
            let address = named.as_str().context("an entry without an address")?;
            self.queued.extend(parse_address(address.as_bytes()));
        }
        Ok(())
    }
}

/// What came out.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Messages with a verdict.
    pub messages: u64,
    /// Of these acknowledged.
    pub acknowledged: u64,
    /// Of these refused.
    pub refused: u64,
    /// Verdicts unknown since the connection broke.
    pub unknown: u64,
    /// Recipients of acknowledged messages.
    pub recipients: u64,
    /// Of these delivered at least once.
    pub delivered: u64,
    /// Of these not delivered but still queued.
    pub queued: u64,
    /// Of these neither: the promise broken.
    pub lost: u64,
    /// The first of them.
    pub lost_recipients: Vec<String>,
    /// Copies beyond the first of a recipient, copies that the source or the script asked for not counted.
    pub duplicates: u64,
    /// The most that crashes excuse.
    pub duplicates_allowed: u64,
    /// The first of them.
    pub duplicate_recipients: Vec<String>,
    /// Copies that were asked for: the source sent again, or the sink withheld its reply.
    pub copies_expected: u64,
    /// Deliveries with a changed body.
    pub damaged: u64,
    /// Deliveries of another message than the envelope's.
    pub crossed: u64,
    /// The first damaged or crossed ones.
    pub damaged_recipients: Vec<String>,
    /// Recipients delivered whose message has the verdict unknown.
    pub delivered_unknown: u64,
    /// Recipients delivered although the message or recipient was refused.
    pub delivered_refused: u64,
    /// Recipients delivered that no journal line names.
    pub delivered_unheard_of: u64,
    /// States in an impossible order: two acknowledgements, a delivery before its dot, times that run backwards.
    pub disordered: u64,
    /// The first of them.
    pub disordered_recipients: Vec<String>,
    /// From the first MAIL to the last acknowledgement or delivery, seconds.
    pub span_s: f64,
    /// Recipients accepted and delivered per second of that span.
    pub relayed_per_s: f64,
    /// Messages acknowledged per second, from the first MAIL to the last acknowledgement.
    pub accepted_per_s: f64,
    /// Recipients delivered per second, from the first delivery to the last.
    pub drained_per_s: f64,
    /// MAIL to the final reply.
    pub acceptance: Percentiles,
    /// The final dot to its reply.
    pub dot_to_reply: Percentiles,
    /// MAIL to the first delivery.
    pub end_to_end: Percentiles,
    /// The same by recipient domain, when there are several.
    pub by_domain: BTreeMap<String, Group>,
    /// Share of the relay's attempts that the sink put off.
    pub deferral_share: f64,
    /// The sink's totals.
    pub sink: Totals,
    /// The first replies of refused messages, each with its count.
    pub refusals: BTreeMap<String, u64>,
}

/// Times of one domain's recipients.
#[derive(Debug, Default, Serialize)]
pub struct Group {
    /// MAIL to the final reply.
    pub acceptance: Percentiles,
    /// MAIL to the first delivery.
    pub end_to_end: Percentiles,
}

impl Report {
    /// True when nothing was lost, damaged or misrouted, copies stay within what crashes excuse, and states
    /// follow each other in a possible order.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.lost == 0
            && self.damaged == 0
            && self.crossed == 0
            && self.disordered == 0
            && self.delivered_unheard_of == 0
            && self.duplicates <= self.duplicates_allowed
    }
}

#[derive(Default)]
struct Message {
    verdict: Option<Verdict>,
    /// Times it was sent in whole without a known verdict.
    unknown: u32,
    start_us: u64,
    dot_us: u64,
    end_us: u64,
    recipients: u16,
    refused: Vec<u16>,
}

#[derive(Default)]
struct Delivery {
    first_us: u64,
    taken: u32,
    withheld: u32,
}

/// Joins a source's journal and a sink's log.
///
/// # Errors
/// A log that is not of its format.
pub fn check(journal: &[u8], log: &[u8], known: &Known) -> anyhow::Result<Report> {
    let mut report = Report { duplicates_allowed: 2 * known.open_connections, ..Report::default() };
    let mut messages = FxHashMap::<Id, Message>::default();
    let domains = record::read_source(journal, |sent| report.note_sent(sent, &mut messages))
        .context("in the journal")?;
    let mut deliveries = FxHashMap::<(Id, u16), Delivery>::default();
    let (totals, _) = record::read_sink(log, |taken| report.note_taken(taken, &mut deliveries))
        .context("in the sink's log")?;
    report.sink = totals;
    report.deferral_share = totals.deferral_share();
    report.join(&messages, &deliveries, &domains, known);
    Ok(report)
}

fn name(list: &mut Vec<String>, id: Id, index: u16, what: &str) {
    if list.len() < NAMED_MAX {
        let hex = String::from_utf8_lossy(&id.hex()).into_owned();
        list.push(if what.is_empty() {
            format!("r{index}.{hex}")
        } else {
            format!("r{index}.{hex}: {what}")
        });
    }
}

impl Report {
    fn note_sent(&mut self, sent: Sent<'_>, messages: &mut FxHashMap<Id, Message>) {
        let message = messages.entry(sent.id).or_default();
        let backwards = sent.start_us > sent.end_us || sent.dot_us > sent.end_us;
        let again = message.verdict.is_some_and(|earlier| earlier != Verdict::Unknown);
        if backwards || again {
            self.disordered += 1;
            let what = if again { "a verdict after a final one" } else { "times run backwards" };
            name(&mut self.disordered_recipients, sent.id, 0, what);
        }
        if sent.verdict == Verdict::Unknown {
            message.unknown += 1;
        }
        if message.verdict.is_none() {
            message.start_us = sent.start_us;
            message.dot_us = sent.dot_us;
        }
        if sent.verdict == Verdict::Refused && self.refusals.len() < NAMED_MAX {
            *self.refusals.entry(String::from_utf8_lossy(sent.reply).into_owned()).or_default() += 1;
        }
        message.verdict = Some(sent.verdict);
        message.end_us = sent.end_us;
        message.recipients = sent.recipients;
        message.refused = sent.refused.into_owned();
    }

    fn note_taken(&mut self, taken: Taken, deliveries: &mut FxHashMap<(Id, u16), Delivery>) {
        let what = match taken.content {
            Content::Whole => "",
            Content::Damaged => "damaged",
            Content::Crossed => "another message's content",
        };
        self.damaged += u64::from(taken.content == Content::Damaged);
        self.crossed += u64::from(taken.content == Content::Crossed);
        if taken.content != Content::Whole {
            name(&mut self.damaged_recipients, taken.id, taken.index, what);
        }
        if taken.how == How::Dropped {
            return;
        }
        let delivery = deliveries.entry((taken.id, taken.index)).or_default();
        if delivery.taken == 0 || taken.at_us < delivery.first_us {
            delivery.first_us = taken.at_us;
        }
        delivery.taken += 1;
        delivery.withheld += u32::from(taken.how == How::Withheld);
    }

    fn join(
        &mut self,
        messages: &FxHashMap<Id, Message>,
        deliveries: &FxHashMap<(Id, u16), Delivery>,
        domains: &[String],
        known: &Known,
    ) {
        let mut times = Times::default();
        // In the order of ids, so that the findings named are the same each time.
        let mut ids: Vec<&Id> = messages.keys().collect();
        ids.sort_unstable();
        for id in ids {
            let message = &messages[id];
            self.messages += 1;
            match message.verdict {
                Some(Verdict::Acknowledged) => {
                    self.acknowledged += 1;
                    times.accepted(message);
                }
                Some(Verdict::Refused) => self.refused += 1,
                Some(Verdict::Unknown) | None => self.unknown += 1,
            }
            for index in 0..message.recipients {
                self.join_recipient(*id, index, message, deliveries.get(&(*id, index)), known);
                if message.is_owed(index) {
                    let domain = record::domain_of(domains, *id, index, message.recipients);
                    times.recipient(message, deliveries.get(&(*id, index)), domain, domains.len());
                }
            }
        }
        for ((id, index), delivery) in deliveries {
            times.delivered(delivery);
            if messages.get(id).is_none_or(|message| *index >= message.recipients) {
                self.delivered_unheard_of += 1;
            }
        }
        times.report(self);
    }

    fn join_recipient(
        &mut self,
        id: Id,
        index: u16,
        message: &Message,
        delivery: Option<&Delivery>,
        known: &Known,
    ) {
        let owed = message.is_owed(index);
        self.recipients += u64::from(owed);
        let Some(delivery) = delivery else {
            if owed && known.queued.contains(&(id, index)) {
                self.queued += 1;
            } else if owed {
                self.lost += 1;
                name(&mut self.lost_recipients, id, index, "");
            }
            return;
        };
        self.delivered += u64::from(owed);
        if !owed {
            match message.verdict {
                Some(Verdict::Unknown) => self.delivered_unknown += 1,
                _ => self.delivered_refused += 1,
            }
        }
        // Each time the source did not hear the verdict and each reply that the sink withheld may cost a copy.
        let again =
            if message.verdict == Some(Verdict::Unknown) { message.unknown - 1 } else { message.unknown };
        let copies = u64::from(delivery.taken - 1);
        let expected = copies.min(u64::from(again + delivery.withheld));
        self.copies_expected += expected;
        self.duplicates += copies - expected;
        if copies > expected {
            name(&mut self.duplicate_recipients, id, index, &format!("{} copies", delivery.taken));
        }
        if message.dot_us > delivery.first_us + CLOCK_SLACK_US || message.dot_us == 0 {
            self.disordered += 1;
            name(&mut self.disordered_recipients, id, index, "delivered before its final dot");
        }
    }
}

impl Message {
    /// True when the relay owes this recipient a delivery.
    fn is_owed(&self, index: u16) -> bool {
        self.verdict == Some(Verdict::Acknowledged) && !self.refused.contains(&index)
    }
}

/// Times gathered for the percentiles and rates.
#[derive(Default)]
struct Times {
    acceptance: Vec<u64>,
    dot_to_reply: Vec<u64>,
    end_to_end: Vec<u64>,
    groups: BTreeMap<String, (Vec<u64>, Vec<u64>)>,
    first_start_us: Option<u64>,
    last_ack_us: u64,
    first_delivery_us: Option<u64>,
    last_delivery_us: u64,
    deliveries: u64,
}

impl Times {
    fn accepted(&mut self, message: &Message) {
        self.acceptance.push(message.end_us.saturating_sub(message.start_us));
        self.dot_to_reply.push(message.end_us.saturating_sub(message.dot_us));
        let first = self.first_start_us.get_or_insert(message.start_us);
        *first = message.start_us.min(*first);
        self.last_ack_us = self.last_ack_us.max(message.end_us);
    }

    fn recipient(&mut self, message: &Message, delivery: Option<&Delivery>, domain: &str, domains: usize) {
        let through = delivery.map(|delivery| delivery.first_us.saturating_sub(message.start_us));
        self.end_to_end.extend(through);
        if (2..=GROUPS_MAX).contains(&domains) {
            let group = match self.groups.get_mut(domain) {
                Some(group) => group,
                None => self.groups.entry(domain.to_owned()).or_default(),
            };
            group.0.push(message.end_us.saturating_sub(message.start_us));
            group.1.extend(through);
        }
    }

    fn delivered(&mut self, delivery: &Delivery) {
        let first = self.first_delivery_us.get_or_insert(delivery.first_us);
        *first = delivery.first_us.min(*first);
        self.last_delivery_us = self.last_delivery_us.max(delivery.first_us);
        self.deliveries += 1;
    }

    fn report(self, report: &mut Report) {
        let start = self.first_start_us.unwrap_or(0);
        let end = self.last_ack_us.max(self.last_delivery_us);
        let seconds = |from: u64, to: u64| (to.saturating_sub(from)).max(1) as f64 / 1e6;
        report.span_s = if self.first_start_us.is_some() { seconds(start, end) } else { 0.0 };
        if report.span_s > 0.0 {
            report.relayed_per_s = report.delivered as f64 / report.span_s;
            report.accepted_per_s = report.acknowledged as f64 / seconds(start, self.last_ack_us);
        }
        if let Some(first) = self.first_delivery_us {
            report.drained_per_s = self.deliveries as f64 / seconds(first, self.last_delivery_us);
        }
        report.acceptance = Percentiles::of(self.acceptance);
        report.dot_to_reply = Percentiles::of(self.dot_to_reply);
        report.end_to_end = Percentiles::of(self.end_to_end);
        report.by_domain = self
            .groups
            .into_iter()
            .map(|(domain, (acceptance, end_to_end))| {
                let (acceptance, end_to_end) = (Percentiles::of(acceptance), Percentiles::of(end_to_end));
                (domain, Group { acceptance, end_to_end })
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "storm-source 1 a.test\n";

    /// Source lines, sink lines, what is known; then the findings that are not zero.
    fn findings(source: &str, sink: &str, known: &Known) -> (bool, Vec<(&'static str, u64)>) {
        let journal = format!("{HEAD}{source}");
        let log = format!("storm-sink 1\n{sink}");
        let report = check(journal.as_bytes(), log.as_bytes(), known).unwrap();
        let all = [
            ("delivered", report.delivered),
            ("queued", report.queued),
            ("lost", report.lost),
            ("duplicates", report.duplicates),
            ("expected", report.copies_expected),
            ("damaged", report.damaged),
            ("crossed", report.crossed),
            ("unknown", report.delivered_unknown),
            ("refused", report.delivered_refused),
            ("unheard", report.delivered_unheard_of),
            ("disordered", report.disordered),
        ];
        (report.holds(), all.into_iter().filter(|(_, count)| *count > 0).collect())
    }

    const ACKED: &str = "A 0000010000000001 100 200 300 1 -\n";
    const ARRIVED: &str = "D 0000010000000001 0 ok 400\n";

    #[test]
    fn what_was_acknowledged_and_arrived_is_delivered() {
        assert_eq!(findings(ACKED, ARRIVED, &Known::default()), (true, vec![("delivered", 1)]));
    }

    #[test]
    fn what_was_acknowledged_and_is_nowhere_is_lost() {
        assert_eq!(findings(ACKED, "", &Known::default()), (false, vec![("lost", 1)]));
        assert_eq!(
            findings(ACKED, "N 0000010000000001 0 ok 400\n", &Known::default()),
            (false, vec![("lost", 1)])
        );
    }

    #[test]
    fn what_the_relay_still_holds_is_not_lost() {
        let mut known = Known::default();
        known.read_queued(r#"[{"recipient":"r0.0000010000000001@a.test"}, "else@a.test"]"#).unwrap();
        assert_eq!(findings(ACKED, "", &known), (true, vec![("queued", 1)]));
        known.queued.clear();
        known.read_queued(r#"{"recipients":["R0.0000010000000001@a.test"]}"#).unwrap();
        assert_eq!(findings(ACKED, "", &known), (true, vec![("queued", 1)]));
    }

    #[test]
    fn one_lost_recipient_of_three_is_seen() {
        let source = "A 0000010000000001 100 200 300 3 1\n";
        let sink = "D 0000010000000001 0 ok 400\n";
        assert_eq!(findings(source, sink, &Known::default()), (false, vec![("delivered", 1), ("lost", 1)]));
    }

    #[test]
    fn copies_are_bounded_by_what_crashes_excuse() {
        let twice = format!("{ARRIVED}{ARRIVED}{ARRIVED}");
        let found = vec![("delivered", 1), ("duplicates", 2)];
        assert_eq!(findings(ACKED, &twice, &Known::default()), (false, found.clone()));
        let known = Known { open_connections: 1, ..Known::default() };
        assert_eq!(findings(ACKED, &twice, &known), (true, found));
    }

    #[test]
    fn copies_that_were_asked_for_are_no_duplicates() {
        let withheld = format!("B 0000010000000001 0 ok 350\n{ARRIVED}");
        assert_eq!(
            findings(ACKED, &withheld, &Known::default()),
            (true, vec![("delivered", 1), ("expected", 1)])
        );
        let resent = format!("U 0000010000000001 10 20 30 1 -\n{ACKED}");
        let twice = format!("{ARRIVED}{ARRIVED}");
        assert_eq!(
            findings(&resent, &twice, &Known::default()),
            (true, vec![("delivered", 1), ("expected", 1)])
        );
    }

    #[test]
    fn damage_and_mixing_up_are_seen() {
        let damaged = "D 0000010000000001 0 damaged 400\n";
        assert_eq!(
            findings(ACKED, damaged, &Known::default()),
            (false, vec![("delivered", 1), ("damaged", 1)])
        );
        let crossed = "D 0000010000000001 0 crossed 400\n";
        assert_eq!(
            findings(ACKED, crossed, &Known::default()),
            (false, vec![("delivered", 1), ("crossed", 1)])
        );
    }

    #[test]
    fn deliveries_without_acknowledgement_are_told_apart() {
        let unknown = "U 0000010000000001 100 200 300 1 -\n";
        assert_eq!(findings(unknown, ARRIVED, &Known::default()), (true, vec![("unknown", 1)]));
        let refused = "R 0000010000000001 100 200 300 1 - 451 4.3.0 no\n";
        assert_eq!(findings(refused, ARRIVED, &Known::default()), (true, vec![("refused", 1)]));
        assert_eq!(findings("", ARRIVED, &Known::default()), (false, vec![("unheard", 1)]));
    }

    #[test]
    fn impossible_orders_are_seen() {
        let late = "A 0000010000000001 5000 6000 7000 1 -\n";
        assert_eq!(
            findings(late, ARRIVED, &Known::default()),
            (false, vec![("delivered", 1), ("disordered", 1)])
        );
        let twice = format!("{ACKED}{ACKED}");
        assert_eq!(
            findings(&twice, ARRIVED, &Known::default()),
            (false, vec![("delivered", 1), ("disordered", 1)])
        );
    }

    #[test]
    fn times_are_grouped_by_domain() {
        let journal = "storm-source 1 a.test,b.test\nA 0000010000000000 100 200 300 2 -\n";
        let log = "storm-sink 1\nD 0000010000000000 0 ok 400\nD 0000010000000000 1 ok 900\n";
        let report = check(journal.as_bytes(), log.as_bytes(), &Known::default()).unwrap();
        assert_eq!(report.by_domain["a.test"].end_to_end.p50_us, 300);
        assert_eq!(report.by_domain["b.test"].end_to_end.p50_us, 800);
        assert_eq!(report.acceptance.p50_us, 200);
        assert_eq!(report.dot_to_reply.p50_us, 100);
    }
}
