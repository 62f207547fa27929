//! Why something waits, in sentences (design P8).

use crate::lanes::Lane;
use crate::operate::{Explanation, LaneView, RecipientView, Totals};
use crate::replies::{ReplyRef, Said};
use crate::shard::Shard;
use postrider_model::Domain;
use postrider_model::snapshot::Target;
use postrider_queue::{DomainId, LaneId, Limit, RecipientSlot, Waiting};
use std::sync::Arc;

impl Shard {
    pub(crate) fn explain_domain(&self, domain: &Domain) -> Explanation {
        let mut explanation = Explanation {
            subject: domain.to_string(),
            recipient: None,
            route: None,
            lane: None,
            hosts: Vec::new(),
            source: None,
            because: Vec::new(),
            transcript: Vec::new(),
        };
        let Some((index, route)) = self.snapshot.route(domain, None) else {
            explanation.because.push(format!("No route leads to {domain}: its recipients are refused."));
            return explanation;
        };
        let known = self.find_route(index, domain);
        match known {
            None => {
                explanation
                    .because
                    .push(format!("Nothing is queued for {domain}; route {} would be used.", route.name));
            }
            Some(known) => {
                let view = self.queue.domain(known);
                explanation.because.push(format!("{} recipients are queued for {domain}.", view.recipients));
                if view.lane.is_none() && view.failures > 0 {
                    explanation
                        .because
                        .push(format!("Looking up its site failed {} times in a row.", view.failures));
                }
            }
        }
        self.describe_way(&mut explanation, index, known);
        explanation
    }

    pub(crate) fn explain_recipient(&self, view: RecipientView, recipient: RecipientSlot) -> Explanation {
        let entry = self.queue.recipient(recipient);
        let mut explanation = Explanation {
            subject: view.recipient.to_string(),
            because: self
                .queue
                .why(recipient)
                .map(|waiting| self.because(waiting, entry.as_ref().map_or(0, |entry| entry.attempts)))
                .unwrap_or_default(),
            recipient: Some(view),
            route: None,
            lane: None,
            hosts: Vec::new(),
            source: None,
            transcript: Vec::new(),
        };
        if let Some(reason) = self.suspended_because(recipient) {
            explanation.because = vec![reason];
        }
        if let Some(entry) = entry {
            let index = self.route_of(entry.domain).map(|(index, _)| index);
            self.describe_way(&mut explanation, index.unwrap_or(usize::MAX), Some(entry.domain));
        }
        explanation
    }

    fn describe_way(&self, explanation: &mut Explanation, route: usize, domain: Option<DomainId>) {
        if let Some(route) = self.route_at(route) {
            let kind = match &route.to {
                Target::Mx => "the domain's mail exchangers".to_owned(),
                Target::Hosts(hosts) => format!("{} configured hosts", hosts.len()),
                Target::Sandbox => "the sandbox".to_owned(),
            };
            explanation.route = Some(format!("{}: {kind}", route.name));
            let name = route.source.ehlo.as_ref().unwrap_or(&self.snapshot.hostname);
            let bound: Vec<_> = route.source.bind.iter().map(ToString::to_string).collect();
            let from = if bound.is_empty() { "any local address".to_owned() } else { bound.join(", ") };
            explanation.source = Some(format!("EHLO {name} from {from}"));
        }
        let lane = domain.and_then(|domain| self.queue.domain(domain).lane);
        if let Some((id, known)) = lane.and_then(|lane| self.lanes.get(lane).map(|known| (lane, known))) {
            explanation.lane = Some(self.lane_view(id, known));
            explanation.transcript = known.transcript.to_vec();
            explanation.hosts = known
                .plan
                .hosts
                .iter()
                .map(|host| {
                    let addresses: Vec<_> = host.addresses.iter().map(ToString::to_string).collect();
                    format!("{} {}", host.name, addresses.join(" ")).trim_end().to_owned()
                })
                .collect();
        }
    }

    /// The last that was said about a recipient: to itself, or else to its domain or lane, where a look-up or a
    /// connection fails before anything is tried for single recipients.
    pub(crate) fn said_last(&self, recipient: RecipientSlot) -> Option<&Arc<Said>> {
        let own = self.queue.recipient(recipient).and_then(|entry| self.replies.get(ReplyRef(entry.reply)));
        own.or_else(|| match self.queue.why(recipient)? {
            Waiting::DnsBackoff { reply, .. } => self.replies.get(ReplyRef(reply)),
            Waiting::Lane { lane, limit: Limit::Backoff, .. } => {
                self.replies.get(ReplyRef(self.queue.lane(lane).reply))
            }
            _ => None,
        })
    }

    fn because(&self, waiting: Waiting, attempts: u16) -> Vec<String> {
        let said = |reply: u32| match self.replies.get(crate::replies::ReplyRef(reply)) {
            Some(said) => format!(" The last answer was: {}", said.reply),
            None => String::new(),
        };
        vec![match waiting {
            Waiting::Held => "It is held until `postrider queue release`.".to_owned(),
            Waiting::Due(due) if attempts == 0 => format!("It is scheduled for {due}."),
            Waiting::Due(due) => format!("Its last attempt failed; the next one is due at {due}."),
            Waiting::Dns => "The site of its domain is being looked up.".to_owned(),
            Waiting::DnsBackoff { until, failures, reply } => format!(
                "The site of its domain could not be looked up, {failures} times in a row; the next try is at {until}.{}",
                said(reply)
            ),
            Waiting::Suspended | Waiting::DomainSuspended | Waiting::FlowSuspended => {
                "It is suspended until `postrider queue resume`.".to_owned()
            }
            Waiting::Outcome(_) => "It is being sent.".to_owned(),
            Waiting::Verdict => "Its verdict is being written.".to_owned(),
            Waiting::Lane { lane, limit, until } => {
                let until = until.map(|until| format!(" until {until}")).unwrap_or_default();
                format!("{}{until}.{}", limit_sentence(limit), said(self.queue.lane(lane).reply))
            }
        }]
    }

    pub(crate) fn lane_view(&self, lane: LaneId, known: &Lane) -> LaneView {
        let view = self.queue.lane(lane);
        LaneView {
            key: (*known.key).into(),
            ready: u64::from(view.ready),
            parked: u64::from(view.parked),
            in_flight: u64::from(view.in_flight),
            connections: view.connections,
            window: view.window,
            limit: (view.limit != Limit::None).then(|| limit_sentence(view.limit).to_owned()),
            backoff_until: view.backoff_until,
            failures: view.failures,
            last_reply: known.last_reply.clone(),
            delivered: known.delivered,
            deferred: known.deferred,
        }
    }

    pub(crate) fn lane_views(&self) -> Vec<LaneView> {
        let mut views: Vec<_> = self.lanes.iter().map(|(id, lane)| self.lane_view(id, lane)).collect();
        views.sort_by(|a, b| a.key.cmp(&b.key));
        views
    }

    pub(crate) fn current_totals(&self) -> Totals {
        let mut totals = self.totals.clone();
        totals.messages = self.messages.len() as u64;
        totals.recipients = self.queue.len() as u64;
        for lane in self.queue.lanes() {
            totals.ready += u64::from(lane.ready + lane.stalled);
            totals.in_flight += u64::from(lane.in_flight);
        }
        // They are counted among the parked by the lanes.
        totals.loading = self.unloaded();
        totals.held = self.queue.held_count() as u64;
        totals.parked =
            totals.recipients - (totals.ready + totals.in_flight + totals.held).min(totals.recipients);
        totals
    }
}

fn limit_sentence(limit: Limit) -> &'static str {
    match limit {
        Limit::None => "It waits for its turn in the lane",
        Limit::Connections => "The lane has as many connections as are configured",
        Limit::Window => "The site has shown how many connections it takes, and these are in use",
        Limit::ConnectionRate => "The lane may not open more connections yet",
        Limit::MessageRate => "The lane may not send more messages yet",
        Limit::Slots => "Other shards use the site's connections",
        Limit::ConnectionsMax => "The relay has as many connections open as are configured",
        Limit::Backoff => "The site does not answer and is left alone",
        Limit::Suspended => "The lane is suspended until `postrider queue resume`",
    }
}
