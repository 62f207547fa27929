//! `postrider top`

use super::EXIT_OK;
use super::args::TopArgs;
use super::output::{self, Table, due, items, number, text};
use super::place::Place;
use serde_json::Value;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Cursor to the first place, clear what follows.
const HOME_AND_CLEAR: &str = "\x1b[H\x1b[J";

pub(super) fn run(place: &Place, args: &TopArgs) -> anyhow::Result<u8> {
    let client = place.client();
    let mut before: Option<(Instant, Value)> = None;
    loop {
        let at = Instant::now();
        let (totals, lanes) = (client.get("/v1/totals")?, client.get("/v1/lanes")?);
        let health = client.get("/v1/health")?;
        let rates = before.as_ref().map(|(then, earlier)| (at - *then, earlier));
        let page = page(&health, &totals, rates, items(&lanes, "items"), args.lanes);
        if args.once {
            output::print(&page);
            return Ok(EXIT_OK);
        }
        output::print(&format!("{HOME_AND_CLEAR}{page}"));
        before = Some((at, totals));
        let interval = Duration::try_from_secs_f64(args.interval).unwrap_or(Duration::from_secs(1));
        output::pause(interval.clamp(Duration::from_millis(100), Duration::from_secs(3600)));
    }
}

fn page(
    health: &Value,
    totals: &Value,
    before: Option<(Duration, &Value)>,
    lanes: &[Value],
    lanes_max: usize,
) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} · postrider {} · {} · up {}",
        text(health, "hostname"),
        text(health, "version"),
        text(health, "status"),
        output::brief(number(health, "uptime_s"))
    );
    let _ = writeln!(
        out,
        "waiting: {} recipients of {} messages ({} ready, {} parked, {} held, {} in flight)",
        number(totals, "recipients"),
        number(totals, "messages"),
        number(totals, "ready"),
        number(totals, "parked"),
        number(totals, "held"),
        number(totals, "in_flight")
    );
    let rate = |key: fn(&Value) -> u64| match before {
        Some((elapsed, earlier)) => {
            let count = key(totals).saturating_sub(key(earlier));
            let hundred = u128::from(count) * 100_000 / elapsed.as_millis().max(1);
            format!(" ({}.{:02}/s)", hundred / 100, hundred % 100)
        }
        None => String::new(),
    };
    let finished = |totals: &Value| {
        totals["terminal"].as_object().map_or(0, |all| all.values().filter_map(Value::as_u64).sum())
    };
    let _ = writeln!(
        out,
        "accepted: {} messages{} · finished: {} recipients{} · deferred: {} times",
        number(totals, "accepted"),
        rate(|totals| number(totals, "accepted")),
        finished(totals),
        rate(finished),
        number(totals, "deferred")
    );
    if let Some(terminal) = totals["terminal"].as_object() {
        for (name, count) in terminal {
            let _ = write!(out, "  {name}: {count}");
        }
        out.push('\n');
    }
    out.push('\n');
    out.push_str(&lane_table(lanes, lanes_max));
    out
}

fn lane_table(lanes: &[Value], lanes_max: usize) -> String {
    if lanes.is_empty() {
        return "no lanes: nothing has been sent yet\n".to_owned();
    }
    let mut lanes: Vec<_> = lanes.iter().collect();
    let waiting = |lane: &Value| number(lane, "ready") + number(lane, "parked") + number(lane, "in_flight");
    lanes.sort_by_key(|lane| std::cmp::Reverse(waiting(lane)));
    let mut table =
        Table::new(&["LANE", "READY", "PARKED", "FLIGHT", "CONN", "DONE", "DEFERRED", "LIMIT", "LAST REPLY"]);
    let hidden = lanes.len().saturating_sub(lanes_max);
    for lane in lanes.into_iter().take(lanes_max) {
        let limit = match lane["backoff_until"].as_str() {
            Some(until) => format!("backs off, {}", due(until)),
            None => text(lane, "limit").to_owned(),
        };
        table.row([
            output::shortened(text(lane, "key"), 40),
            number(lane, "ready").to_string(),
            number(lane, "parked").to_string(),
            number(lane, "in_flight").to_string(),
            format!("{}/{}", number(lane, "connections"), number(lane, "window")),
            number(lane, "delivered").to_string(),
            number(lane, "deferred").to_string(),
            output::shortened(&limit, 40),
            output::shortened(text(lane, "last_reply"), 50),
        ]);
    }
    let mut out = table.text();
    if hidden > 0 {
        let _ = writeln!(out, "and {hidden} more");
    }
    out
}
