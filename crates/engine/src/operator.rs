//! The operator's questions and acts.
//!
//! What is asked of many recipients is done in steps, so that a question about ten million never stops the
//! mail. What can be told from memory (domain, account, age, state, last reply) is; only for what passes is
//! the envelope read back from the log.

use crate::effect::{Effect, Loaded};
use crate::messages::MessageSlot;
use crate::operate::{
    Act, ActView, Filter, RecipientView, Request, Response, SuspensionView, address_matches, domain_matches,
};
use crate::replies::ReplyRef;
use crate::shard::{Job, NewRecord, Shard};
use postrider_model::codec::DecodeError;
use postrider_model::record::{self, ChangeTo, Kind, Ordinals};
use postrider_model::snapshot::CAPTURE_ROUTE;
use postrider_model::{EnhancedCode, MessageNo, Reply, Terminal, Timestamp};
use postrider_queue::{Batch, LaneId, RecipientSlot, Waiting};
use rustc_hash::FxHashSet;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// Names a question of the operator; comes back with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QuestionId(pub u64);

/// Messages looked at in one step.
const STEP_MESSAGES_MAX: usize = 20_000;
/// Envelopes being read at once for one walk.
const READS_MAX: usize = 64;
/// Candidates gathered in one pass.
const CANDIDATES_MAX: usize = 1_024;
/// Recipients in an answer.
const LIST_MAX: usize = 10_000;
/// Acts whose progress is remembered after their end.
const ENDED_ACTS_MAX: usize = 64;

/// What the operator has under way.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    walks: VecDeque<Walk>,
    suspensions: Vec<Suspension>,
    ended: VecDeque<ActView>,
    /// The highest number of an act in the log.
    pub(crate) last_number: u64,
    /// Recipients that a suspension took out of the queue.
    stopped: FxHashSet<RecipientSlot>,
}

impl Operator {
    /// A recipient is kept back by a suspension, not held.
    pub(crate) fn has_stopped(&self, recipient: RecipientSlot) -> bool {
        self.stopped.contains(&recipient)
    }

    /// Standing rules, for the checkpoint.
    pub(crate) fn standing(&self) -> impl Iterator<Item = (u64, Timestamp, Act, Filter)> + '_ {
        self.suspensions
            .iter()
            .map(|s| (s.number, s.at, Act::Suspend { reason: s.reason.clone() }, s.filter.clone()))
    }

    pub(crate) fn suspend(&mut self, number: u64, at: Timestamp, reason: String, filter: Filter) {
        if !self.suspensions.iter().any(|known| known.number == number) {
            self.suspensions.push(Suspension { number, at, reason, filter });
        }
    }

    /// A recipient is gone.
    pub(crate) fn forget(&mut self, recipient: RecipientSlot) {
        if !self.stopped.is_empty() {
            self.stopped.remove(&recipient);
        }
    }

    pub(crate) fn is_sweeping(&self) -> bool {
        self.walks.iter().any(|walk| walk.reading < READS_MAX)
    }
}

/// A standing rule.
#[derive(Clone, Debug)]
struct Suspension {
    number: u64,
    at: Timestamp,
    reason: String,
    filter: Filter,
}

/// A walk over the messages that wait, in the order of their numbers, in passes.
#[derive(Debug)]
struct Walk {
    id: u64,
    purpose: Purpose,
    filter: Filter,
    /// Messages after this number are still to be looked at.
    after: Option<MessageNo>,
    /// Messages up to this number were there when the walk began.
    up_to: MessageNo,
    pass: Pass,
    /// Candidates of the pass that are still to be read, the lowest last.
    candidates: Vec<MessageNo>,
    reading: usize,
    view: ActView,
}

#[derive(Debug)]
enum Pass {
    /// Looking at messages from this slot on for the lowest numbers that may match.
    Gathering { slot: u32, lowest: BinaryHeap<MessageNo>, overflowed: bool },
    /// Reading the candidates.
    Reading { overflowed: bool },
}

#[derive(Debug)]
enum Purpose {
    List { question: QuestionId, limit: usize, found: Vec<RecipientView>, explain: bool },
    Act(Act),
}

/// An envelope is being read for a walk.
#[derive(Debug)]
pub(crate) struct Reading {
    walk: u64,
    message: MessageSlot,
    number: MessageNo,
}

impl Shard {
    /// The highest number of an act in the log; further ones must be higher.
    #[must_use]
    pub fn last_act(&self) -> u64 {
        self.operator.last_number
    }

    /// Takes a question; the answer comes as [`Effect::Answer`]. `number` names the act, if it is one; it is
    /// the same on every shard and higher than any before.
    pub fn ask(&mut self, now: Timestamp, question: QuestionId, number: u64, request: Request) {
        let response = match request {
            Request::List { filter, limit, after } => {
                let after = match after.as_deref().map(|id| self.open_id(id)).transpose() {
                    Ok(after) => after.map(|(number, _)| number),
                    Err(error) => return self.answer(question, Response::Error(error)),
                };
                let filter =
                    if filter == Filter::default() { Filter { all: true, ..filter } } else { filter };
                return self.start_list(question, filter, limit.min(LIST_MAX), after, false);
            }
            Request::Show { id } => {
                return self.start_list(
                    question,
                    Filter { ids: vec![id], ..Filter::default() },
                    LIST_MAX,
                    None,
                    false,
                );
            }
            Request::Explain { target } => return self.explain(question, target),
            Request::Act { act, filter } => self.begin_act(now, number, act, filter),
            Request::Progress { number } => self.progress(number),
            Request::Suspensions => Response::Suspensions(
                self.operator
                    .suspensions
                    .iter()
                    .map(|s| SuspensionView {
                        number: s.number,
                        at: s.at,
                        reason: s.reason.clone(),
                        filter: s.filter.clone(),
                    })
                    .collect(),
            ),
            Request::Lanes => Response::Lanes(self.lane_views()),
            Request::Totals => Response::Totals(self.current_totals()),
        };
        self.answer(question, response);
    }

    fn answer(&mut self, question: QuestionId, response: Response) {
        self.effects.push_back(Effect::Answer { question, response });
    }

    fn open_id(&self, id: &str) -> Result<(MessageNo, Option<u16>), String> {
        let fail = |error: postrider_model::IdError| format!("{id}: {error}");
        if id.starts_with("msg_") {
            let number = id.parse().and_then(|id| self.cipher.open_message(id)).map_err(fail)?;
            Ok((number, None))
        } else {
            let (number, ordinal) = id.parse().and_then(|id| self.cipher.open_recipient(id)).map_err(fail)?;
            Ok((number, Some(ordinal)))
        }
    }

    fn start_list(
        &mut self,
        question: QuestionId,
        filter: Filter,
        limit: usize,
        after: Option<MessageNo>,
        explain: bool,
    ) {
        let purpose = Purpose::List { question, limit, found: Vec::new(), explain };
        self.start_walk(question.0 | 1 << 63, purpose, filter, after);
    }

    fn start_walk(&mut self, id: u64, purpose: Purpose, filter: Filter, after: Option<MessageNo>) {
        let mut walk = Walk {
            id,
            purpose,
            after,
            up_to: MessageNo(u64::MAX),
            pass: Pass::Gathering { slot: 0, lowest: BinaryHeap::new(), overflowed: false },
            candidates: Vec::new(),
            reading: 0,
            view: ActView { number: id, total: self.queue.len() as u64, ..ActView::default() },
            filter,
        };
        if !walk.filter.ids.is_empty() {
            // Ids lead to their messages; nothing has to be gathered.
            let mut numbers: Vec<_> =
                walk.filter.ids.iter().filter_map(|id| self.open_id(id).ok()).map(|(n, _)| n).collect();
            numbers.sort_unstable_by(|a, b| b.cmp(a));
            numbers.dedup();
            walk.candidates = numbers;
            walk.pass = Pass::Reading { overflowed: false };
        }
        self.operator.walks.push_back(walk);
    }

    /// One step of what the operator has under way; false when there is nothing to do now.
    pub(crate) fn sweep(&mut self, now: Timestamp) -> bool {
        if self.is_loading() {
            // Whom it does not meet now it would miss; acts keep their order.
            return false;
        }
        let Some(at) = self.operator.walks.iter().position(|walk| walk.reading < READS_MAX) else {
            return false;
        };
        let Some(mut walk) = self.operator.walks.remove(at) else { return false };
        let mut more = true;
        for _ in 0..READS_MAX {
            more = more && self.step(now, &mut walk);
            if !more || walk.reading >= READS_MAX || matches!(walk.pass, Pass::Gathering { .. }) {
                break;
            }
        }
        if more {
            self.operator.walks.push_back(walk);
        } else {
            self.end_walk(walk);
        }
        true
    }

    /// True while the walk goes on.
    fn step(&mut self, now: Timestamp, walk: &mut Walk) -> bool {
        match &mut walk.pass {
            Pass::Gathering { slot, lowest, overflowed } => {
                let quick = Quick::new(now, &walk.filter);
                let start = *slot;
                let mut end = self.messages.slot_end();
                for (looked, (at, message)) in self.messages.starting_at(start).enumerate() {
                    if looked == STEP_MESSAGES_MAX {
                        end = at.0;
                        break;
                    }
                    let in_range =
                        walk.after.is_none_or(|after| message.number > after) && message.number <= walk.up_to;
                    if in_range && quick.matches_any(self, at) {
                        lowest.push(message.number);
                        if lowest.len() > CANDIDATES_MAX {
                            lowest.pop();
                            *overflowed = true;
                        }
                    }
                }
                *slot = end;
                if end >= self.messages.slot_end() {
                    let mut candidates = std::mem::take(lowest).into_sorted_vec();
                    let overflowed = *overflowed;
                    candidates.reverse();
                    walk.candidates = candidates;
                    walk.pass = Pass::Reading { overflowed };
                }
                true
            }
            Pass::Reading { overflowed } => {
                let overflowed = *overflowed;
                let is_full =
                    matches!(&walk.purpose, Purpose::List { limit, found, .. } if found.len() >= *limit);
                if walk.candidates.is_empty() || is_full {
                    if walk.reading > 0 {
                        // The answers to come go on with it.
                        walk.candidates.clear();
                        // It must not be stepped in vain meanwhile.
                        walk.reading += READS_MAX;
                        return true;
                    }
                    if is_full || !overflowed {
                        return false;
                    }
                    walk.pass = Pass::Gathering { slot: 0, lowest: BinaryHeap::new(), overflowed: false };
                    return true;
                }
                let Some(number) = walk.candidates.pop() else { return false };
                walk.after = walk.after.max(Some(number));
                let Some(slot) = self.messages.find(number) else { return true };
                let Some(message) = self.messages.get(slot) else { return true };
                match (message.fresh.as_deref(), message.position) {
                    (Some(fresh), _) => {
                        let record = fresh.record.clone();
                        self.look(now, walk, slot, &record);
                    }
                    (None, Some(position)) => {
                        walk.reading += 1;
                        let reading = Reading { walk: walk.id, message: slot, number };
                        let job = self.new_job(Job::Operator(reading));
                        self.effects.push_back(Effect::Load { job, position });
                    }
                    (None, None) => {}
                }
                true
            }
        }
    }

    pub(crate) fn loaded_for_operator(&mut self, now: Timestamp, reading: &Reading, loaded: Option<Loaded>) {
        let Some(at) = self.operator.walks.iter().position(|walk| walk.id == reading.walk) else { return };
        let Some(mut walk) = self.operator.walks.remove(at) else { return };
        if walk.reading > READS_MAX {
            walk.reading -= READS_MAX;
        }
        walk.reading -= 1;
        let still_there = self.messages.get(reading.message).is_some_and(|m| m.number == reading.number);
        if let (true, Some(loaded)) = (still_there, loaded)
            && let Ok(record) = record::Message::decode(&loaded.head)
        {
            self.look(now, &mut walk, reading.message, &record);
        }
        self.operator.walks.push_back(walk);
    }

    /// Looks at the recipients of a message whose envelope is known.
    fn look(&mut self, now: Timestamp, walk: &mut Walk, slot: MessageSlot, record: &record::Message) {
        let quick = Quick::new(now, &walk.filter);
        let recipients: Vec<_> = self.messages.recipients(slot).collect();
        let mut matching = Vec::new();
        for recipient in recipients {
            walk.view.scanned += 1;
            if quick.matches(self, slot, recipient) && self.matches_record(&walk.filter, recipient, record) {
                matching.push(recipient);
            }
        }
        match &mut walk.purpose {
            Purpose::List { found, limit, .. } => {
                let mut views: Vec<_> =
                    matching.into_iter().filter_map(|recipient| self.view(recipient, record)).collect();
                views.sort_by_key(|view| view.order);
                views.truncate(limit.saturating_sub(found.len()));
                found.append(&mut views);
            }
            Purpose::Act(act) => {
                let act = act.clone();
                walk.view.changed += self.apply(now, &act, slot, record, &matching);
            }
        }
    }

    fn matches_record(&self, filter: &Filter, recipient: RecipientSlot, record: &record::Message) -> bool {
        let (_, ordinal) = self.place_of(recipient);
        let Some(params) = record.recipients.get(usize::from(ordinal)) else { return false };
        filter.sender.as_deref().is_none_or(|p| address_matches(p, record.envelope.reverse_path.as_ref()))
            && filter.recipient.as_deref().is_none_or(|p| address_matches(p, Some(&params.mailbox)))
            && (filter.ids.is_empty()
                || filter.ids.iter().any(|id| match self.open_id(id) {
                    Ok((number, None)) => number == record.number,
                    Ok((number, Some(of))) => number == record.number && of == ordinal,
                    Err(_) => false,
                }))
    }

    fn end_walk(&mut self, walk: Walk) {
        match walk.purpose {
            Purpose::List { question, found, explain: false, .. } => {
                self.answer(question, Response::Recipients(found));
            }
            Purpose::List { question, found, .. } => {
                let explanations = found
                    .into_iter()
                    .filter_map(|view| {
                        let ordinals = Ordinals::from_slice(&[view.order.1]);
                        let recipient = self.folded(MessageNo(view.order.0), &ordinals).pop()?;
                        Some(self.explain_recipient(view, recipient))
                    })
                    .collect();
                self.answer(question, Response::Explanations(explanations));
            }
            Purpose::Act(_) => {
                let mut view = walk.view;
                view.done = true;
                view.scanned = view.total.max(view.scanned);
                view.total = view.scanned;
                self.operator.ended.push_back(view);
                if self.operator.ended.len() > ENDED_ACTS_MAX {
                    self.operator.ended.pop_front();
                }
            }
        }
    }

    fn progress(&self, number: u64) -> Response {
        let walking = self.operator.walks.iter().find(|walk| walk.id == number).map(|walk| walk.view.clone());
        let ended = || self.operator.ended.iter().find(|view| view.number == number).cloned();
        match walking.or_else(ended) {
            Some(view) => Response::Acted(view),
            None => Response::Error(format!(
                "No act {number} is known; only the last {ENDED_ACTS_MAX} are remembered"
            )),
        }
    }

    fn begin_act(&mut self, now: Timestamp, number: u64, act: Act, filter: Filter) -> Response {
        if let Err(error) = self.check_act(&act, &filter) {
            return Response::Error(error);
        }
        // One shard's record speaks for all: every shard folds it.
        if self.index == 0 {
            let act = encode_act(&act, &filter);
            let record = record::Control { number, at: now, act: act.into() };
            self.append(NewRecord::urgent(Kind::Control, |head| record.encode(head)));
        }
        self.take_act(now, number, act, filter)
    }

    fn take_act(&mut self, now: Timestamp, number: u64, act: Act, filter: Filter) -> Response {
        let done = ActView { number, done: true, ..ActView::default() };
        match act {
            Act::Suspend { reason } => {
                self.operator.suspend(number, now, reason, filter);
                Response::Acted(done)
            }
            Act::Resume { number } => {
                self.operator.suspensions.retain(|s| number.is_some_and(|number| s.number != number));
                for recipient in std::mem::take(&mut self.operator.stopped) {
                    self.queue.unpark(now, recipient);
                }
                Response::Acted(done)
            }
            act => {
                if act == Act::Retry {
                    self.retry_lanes(now, &filter);
                }
                self.start_walk(number, Purpose::Act(act), filter, None);
                if let Some(walk) = self.operator.walks.back_mut() {
                    walk.up_to = MessageNo(u64::MAX);
                }
                self.progress(number)
            }
        }
    }

    fn check_act(&self, act: &Act, filter: &Filter) -> Result<(), String> {
        if *filter == Filter::default() && !matches!(act, Act::Resume { .. }) {
            return Err("Say which recipients: give a filter, or all".into());
        }
        for id in &filter.ids {
            self.open_id(id)?;
        }
        if let Some(state) = filter.state.as_deref()
            && !State::ALL.iter().any(|known| known.name() == state)
        {
            return Err(format!(
                "{state} is no state; there are ready, scheduled, deferred, held and sending"
            ));
        }
        if let Act::Move { route } = act
            && route != CAPTURE_ROUTE
            && !self.snapshot.routes.iter().any(|known| &*known.name == route.as_str())
        {
            let names: Vec<_> = self.snapshot.routes.iter().map(|route| &*route.name).collect();
            return Err(format!("There is no route {route}; there are {}", names.join(", ")));
        }
        Ok(())
    }

    pub(crate) fn replay_control(&mut self, control: &record::Control) -> Result<(), DecodeError> {
        let (act, filter) = decode_act(&control.act)?;
        self.operator.last_number = self.operator.last_number.max(control.number);
        if let Act::Suspend { .. } | Act::Resume { .. } = act {
            self.take_act(control.at, control.number, act, filter);
        }
        // Other acts have written what they changed, recipient by recipient.
        Ok(())
    }

    /// Applies an act to recipients of a message; gives how many it changed.
    fn apply(
        &mut self,
        now: Timestamp,
        act: &Act,
        slot: MessageSlot,
        record: &record::Message,
        recipients: &[RecipientSlot],
    ) -> u64 {
        let mut changed: Vec<(RecipientSlot, u16)> = Vec::new();
        for &recipient in recipients {
            let (_, ordinal) = self.place_of(recipient);
            let Some(state) = self.state(recipient) else { continue };
            let captured =
                record.recipients.get(usize::from(ordinal)).is_some_and(|recipient| recipient.captured);
            // What is being sent cannot be called back; its outcome will tell.
            let applies = match (act, state) {
                (_, State::Sending) | (Act::Hold | Act::Retry | Act::Schedule { .. }, State::Held) => false,
                (Act::Release, state) => state == State::Held,
                // What was accepted for the sandbox has no other way.
                (Act::Move { .. }, _) if captured => false,
                _ => true,
            };
            if applies {
                changed.push((recipient, ordinal));
            }
        }
        if changed.is_empty() {
            return 0;
        }
        let to = match act {
            Act::Hold => ChangeTo::Held,
            Act::Release => ChangeTo::Released,
            Act::Retry => ChangeTo::Due(now),
            Act::Schedule { at_us } => ChangeTo::Due(Timestamp::from_micros(*at_us)),
            Act::Move { route } => ChangeTo::Route(route.as_str().into()),
            Act::Cancel { notify } => {
                let reply = Reply::ours(554, EnhancedCode(5, 7, 0), "Cancelled by the operator");
                if *notify {
                    let recipients = changed.iter().map(|(recipient, _)| *recipient).collect();
                    self.settle_waiting(now, recipients, Terminal::Cancelled, &reply);
                } else {
                    self.finish(now, slot, &changed, Terminal::Cancelled, &reply, "");
                }
                return changed.len() as u64;
            }
            Act::Suspend { .. } | Act::Resume { .. } => return 0,
        };
        for (recipient, _) in &changed {
            match &to {
                ChangeTo::Held => self.queue.park(*recipient),
                ChangeTo::Released => {
                    self.queue.unpark(now, *recipient);
                }
                ChangeTo::Due(due) => {
                    self.queue.set_due(now, *recipient, *due);
                }
                ChangeTo::Route(name) => self.reroute(now, *recipient, name),
            }
        }
        let ordinals: Ordinals = changed.iter().map(|(_, ordinal)| *ordinal).collect();
        let record = record::Change { number: record.number, ordinals, to };
        self.append(NewRecord::riding(Kind::Change, |head| record.encode(head)));
        changed.len() as u64
    }

    /// Holds one recipient, in the log too.
    pub(crate) fn hold(&mut self, recipient: RecipientSlot) {
        let (slot, ordinal) = self.place_of(recipient);
        let Some(number) = self.messages.get(slot).map(|message| message.number) else { return };
        self.queue.park(recipient);
        let record =
            record::Change { number, ordinals: Ordinals::from_slice(&[ordinal]), to: ChangeTo::Held };
        self.append(NewRecord::riding(Kind::Change, |head| record.encode(head)));
    }

    /// Sends a recipient by the route of this name.
    pub(crate) fn reroute(&mut self, now: Timestamp, recipient: RecipientSlot, route: &str) {
        let Some(entry) = self.queue.recipient(recipient) else { return };
        let name: Box<str> = self.queue.domain(entry.domain).name.into();
        let route = self.lanes.route_number(route);
        let domain = self.queue.intern_domain(route, &name);
        self.queue.move_to(now, recipient, domain);
    }

    /// Lanes that back off and serve what an operator wants retried are tried at once.
    fn retry_lanes(&mut self, now: Timestamp, filter: &Filter) {
        let lanes: Vec<_> = self.lanes.iter().map(|(lane, _)| lane).collect();
        let meant: Option<FxHashSet<LaneId>> = filter.domain.as_deref().map(|pattern| {
            let domains = self.queue.domains().map(|domain| self.queue.domain(domain));
            domains
                .filter(|domain| domain.name.parse().is_ok_and(|name| domain_matches(pattern, &name)))
                .filter_map(|domain| domain.lane)
                .collect()
        });
        for lane in lanes {
            if meant.as_ref().is_none_or(|meant| meant.contains(&lane)) {
                self.queue.end_backoff(now, lane);
            }
        }
    }

    /// Takes what is suspended out of a batch; `None` if nothing is left.
    pub(crate) fn stop_suspended(
        &mut self,
        now: Timestamp,
        _lane: LaneId,
        mut batch: Batch,
        record: &record::Message,
    ) -> Option<Batch> {
        if self.operator.suspensions.is_empty() {
            return Some(batch);
        }
        let suspensions = std::mem::take(&mut self.operator.suspensions);
        let slot = MessageSlot(batch.message);
        batch.recipients.retain(|&mut recipient| {
            let stopped = suspensions.iter().any(|suspension| {
                Quick::new(now, &suspension.filter).matches(self, slot, recipient)
                    && self.matches_record(&suspension.filter, recipient, record)
            });
            if stopped {
                self.queue.park(recipient);
                self.operator.stopped.insert(recipient);
            }
            !stopped
        });
        self.operator.suspensions = suspensions;
        if batch.recipients.is_empty() { None } else { Some(batch) }
    }

    /// The suspension that keeps a recipient back.
    pub(crate) fn suspended_because(&self, recipient: RecipientSlot) -> Option<String> {
        if !self.operator.stopped.contains(&recipient) {
            return None;
        }
        let reasons: Vec<_> =
            self.operator.suspensions.iter().map(|s| format!("{} ({})", s.number, s.reason)).collect();
        let standing = reasons.join(", ");
        Some(format!("A suspension keeps it back until `postrider queue resume`; standing are: {standing}."))
    }

    fn view(&self, recipient: RecipientSlot, record: &record::Message) -> Option<RecipientView> {
        let entry = self.queue.recipient(recipient)?;
        let params = record.recipients.get(usize::from(entry.ordinal))?;
        let said = self.said_last(recipient);
        let route = self.route_name(entry.domain);
        Some(RecipientView {
            order: (record.number.0, entry.ordinal),
            id: self.cipher.recipient(record.accepted_at, record.number, entry.ordinal),
            message: self.cipher.message(record.accepted_at, record.number),
            state: self.state(recipient)?.name(),
            recipient: params.mailbox.clone(),
            sender: record.envelope.reverse_path.clone(),
            account: record.account.clone(),
            class: record.class,
            route: route.into(),
            size: record.content_size,
            accepted_at: record.accepted_at,
            expires_at: record.expires_at,
            attempts: entry.attempts,
            due: entry.due,
            last_reply: said.map(|said| said.reply.clone()),
            last_peer: said.filter(|said| !said.peer.is_empty()).map(|said| said.peer.clone()),
            in_doubt: self.replies.get(ReplyRef(entry.reply)).is_some_and(|said| said.in_doubt),
        })
    }

    fn explain(&mut self, question: QuestionId, target: String) {
        if target.starts_with("rcp_") || target.starts_with("msg_") {
            if let Err(error) = self.open_id(&target) {
                return self.answer(question, Response::Error(error));
            }
            return self.start_list(
                question,
                Filter { ids: vec![target], ..Filter::default() },
                100,
                None,
                true,
            );
        }
        if target.contains('@') {
            if let Err(error) = target.parse::<postrider_model::Mailbox>() {
                return self.answer(question, Response::Error(format!("{target}: {error}")));
            }
            let filter = Filter { recipient: Some(target), ..Filter::default() };
            return self.start_list(question, filter, 10, None, true);
        }
        let response = match target.parse::<postrider_model::Domain>() {
            Err(error) => Response::Error(format!("{target}: {error}")),
            Ok(domain) => Response::Explanations(vec![self.explain_domain(&domain)]),
        };
        self.answer(question, response);
    }
}

/// A recipient's state, as the operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    Scheduled,
    Deferred,
    Held,
    Sending,
}

impl State {
    const ALL: [State; 5] = [State::Ready, State::Scheduled, State::Deferred, State::Held, State::Sending];

    pub(crate) fn name(self) -> &'static str {
        match self {
            State::Ready => "ready",
            State::Scheduled => "scheduled",
            State::Deferred => "deferred",
            State::Held => "held",
            State::Sending => "sending",
        }
    }
}

impl Shard {
    pub(crate) fn state(&self, recipient: RecipientSlot) -> Option<State> {
        Some(match self.queue.why(recipient)? {
            Waiting::Held => State::Held,
            Waiting::Due(_) if self.queue.recipient(recipient).is_some_and(|entry| entry.attempts == 0) => {
                State::Scheduled
            }
            Waiting::Due(_) => State::Deferred,
            Waiting::Outcome(_) | Waiting::Verdict => State::Sending,
            Waiting::Dns
            | Waiting::DnsBackoff { .. }
            | Waiting::Suspended
            | Waiting::DomainSuspended
            | Waiting::FlowSuspended
            | Waiting::Lane { .. } => State::Ready,
        })
    }
}

/// A filter's part that memory can answer, made ready.
struct Quick {
    domain: Option<String>,
    account: Option<String>,
    accepted_before: Option<Timestamp>,
    reply: Option<String>,
    state: Option<String>,
    nothing: bool,
}

impl Quick {
    fn new(now: Timestamp, filter: &Filter) -> Self {
        Quick {
            domain: filter.domain.as_deref().map(str::to_ascii_lowercase),
            account: filter.account.clone(),
            accepted_before: filter.older_than_s.map(|s| now - Duration::from_secs(s)),
            reply: filter.reply.as_deref().map(str::to_lowercase),
            state: filter.state.clone(),
            nothing: *filter == Filter::default(),
        }
    }

    fn matches_any(&self, shard: &Shard, slot: MessageSlot) -> bool {
        shard.messages.recipients(slot).any(|recipient| self.matches(shard, slot, recipient))
    }

    fn matches(&self, shard: &Shard, slot: MessageSlot, recipient: RecipientSlot) -> bool {
        if self.nothing {
            return false;
        }
        let Some(entry) = shard.queue.recipient(recipient) else { return false };
        let said = || shard.said_last(recipient).map(|said| said.reply.to_string().to_lowercase());
        self.domain
            .as_deref()
            .is_none_or(|pattern| name_matches(pattern, shard.queue.domain(entry.domain).name))
            && self.account.as_deref().is_none_or(|account| shard.queue.flow_name(entry.flow) == account)
            && self.accepted_before.is_none_or(|before| {
                shard.messages.get(slot).is_some_and(|message| message.accepted_at() <= before)
            })
            && self
                .state
                .as_deref()
                .is_none_or(|state| shard.state(recipient).is_some_and(|s| s.name() == state))
            && self.reply.as_deref().is_none_or(|text| said().is_some_and(|said| said.contains(text)))
    }
}

/// As [`domain_matches`], for the queue's names, which are normalised.
fn name_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => name.ends_with(suffix) && suffix.starts_with('.'),
        None => name == pattern,
    }
}

/// An act and its filter as the log keeps them.
pub(crate) fn encode_act(act: &Act, filter: &Filter) -> Vec<u8> {
    // Invariant: both are plain data, which JSON can always say.
    serde_json::to_vec(&(act, filter)).unwrap_or_default()
}

pub(crate) fn decode_act(bytes: &[u8]) -> Result<(Act, Filter), DecodeError> {
    serde_json::from_slice(bytes).map_err(|_| DecodeError::Invalid("act"))
}
