//! Whose turn it is within a lane: first the class, then the flow, then the oldest.
//!
//! A more urgent class goes first, but whatever goes ahead of a waiting class saves up a reserved share for
//! it. Flows of a class share by deficit round robin: a flow sends until it has spent its quantum, and what
//! it overspends it owes. Costs are in KiB, with a base for the round trips and the recipients.

use crate::arena::Arena;
use crate::names::Names;
use crate::table::{ClassQueue, Flow, Lane, Line};

/// What a flow of weight 1 may send in a turn: about seven messages of 4 KiB.
const QUANTUM: i64 = 64;
/// What a transaction costs beside its octets.
const COST_BASE: i64 = 4;

/// The cost of a transaction with content of this size.
pub(crate) fn cost(size_kib: u16, recipients: usize) -> i64 {
    COST_BASE + i64::from(size_kib) + i64::try_from(recipients).unwrap_or(i64::MAX - i64::from(u32::MAX))
}

/// The class whose turn it is, if any has something to send.
pub(crate) fn class(lane: &Lane) -> Option<usize> {
    let first = lane.classes.iter().position(|class| class.ready > 0)?;
    let owed = |class: &ClassQueue| class.ready > 0 && class.credit > 0;
    Some(lane.classes.iter().rposition(owed).filter(|&class| class > first).unwrap_or(first))
}

/// Notes that a class has sent: those that waited meanwhile save up their reserved share.
pub(crate) fn spend_class(lane: &mut Lane, sent: usize, cost: i64, shares_per_mille: [u32; 2]) {
    for (index, class) in lane.classes.iter_mut().enumerate().skip(1) {
        if class.ready == 0 {
            class.credit = class.credit.min(0);
        } else if sent < index {
            class.credit += cost * i64::from(shares_per_mille[index - 1]);
        }
        if sent == index && class.credit > 0 {
            // What it sends while nothing more urgent waits is not held against it.
            class.credit -= cost * 1000;
        }
    }
}

/// Lets a line take turns.
pub(crate) fn join(class: &mut ClassQueue, lines: &mut Arena<Line>, line: u32) {
    class.ring.push_back(lines, line);
    class.lines += 1;
    lines[line].in_ring = true;
    lines[line].deficit = lines[line].deficit.min(0);
}

/// Takes a line out of the round.
pub(crate) fn leave(class: &mut ClassQueue, lines: &mut Arena<Line>, flows: &Names<Flow>, line: u32) {
    let was_first = class.ring.front() == Some(line);
    class.ring.remove(lines, line);
    class.lines -= 1;
    lines[line].in_ring = false;
    if was_first && let Some(first) = class.ring.front() {
        top_up(lines, flows, first, 1);
    }
}

/// The line whose turn it is. Costs at most three rounds over the lines, however large the debts.
pub(crate) fn line(class: &mut ClassQueue, lines: &mut Arena<Line>, flows: &Names<Flow>) -> Option<u32> {
    let first = class.ring.front()?;
    if lines[first].deficit > 0 {
        return Some(first);
    }
    match next_turn(class, lines, flows) {
        Ok(line) => Some(line),
        Err(turns_needed) => {
            // All owe more than a turn: the turns that nobody could use pass at once, and the next round
            // finds one. No line is passed over without its turn, or it would lose share with each round.
            for _ in 0..class.lines {
                class.ring.rotate(lines);
                top_up(lines, flows, class.ring.front()?, turns_needed - 1);
            }
            next_turn(class, lines, flows).ok().or(class.ring.front())
        }
    }
}

/// Gives lines their turn until one may send; after a whole round the turns that the first one needs.
fn next_turn(class: &mut ClassQueue, lines: &mut Arena<Line>, flows: &Names<Flow>) -> Result<u32, i64> {
    let mut turns_needed = i64::MAX;
    for _ in 0..class.lines {
        class.ring.rotate(lines);
        let Some(line) = class.ring.front() else { break };
        top_up(lines, flows, line, 1);
        let debt = -lines[line].deficit;
        if debt < 0 {
            return Ok(line);
        }
        turns_needed = turns_needed.min(debt / quantum(flows, lines[line].flow) + 1);
    }
    Err(turns_needed)
}

fn top_up(lines: &mut Arena<Line>, flows: &Names<Flow>, line: u32, turns: i64) {
    let quantum = quantum(flows, lines[line].flow);
    lines[line].deficit += quantum * turns;
}

fn quantum(flows: &Names<Flow>, flow: u32) -> i64 {
    QUANTUM * i64::from(flows[flow].weight.max(1))
}
