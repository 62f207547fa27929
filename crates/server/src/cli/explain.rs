//! `postrider explain`

use super::EXIT_OK;
use super::args::ExplainArgs;
use super::output::{self, due, items, number, printable, text};
use super::place::Place;
use postrider_api::query;
use serde_json::Value;
use std::fmt::Write as _;

pub(super) fn run(place: &Place, args: &ExplainArgs) -> anyhow::Result<u8> {
    let found = place.client().get(&query("/v1/explain", [("target", args.target.clone())]))?;
    if args.json {
        output::print_json(&found["items"]);
        return Ok(EXIT_OK);
    }
    for explanation in items(&found, "items") {
        output::print(&explained(explanation));
    }
    Ok(EXIT_OK)
}

fn explained(explanation: &Value) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", printable(text(explanation, "subject")));
    for cause in items(explanation, "because") {
        let _ = writeln!(out, "  because {}", printable(cause.as_str().unwrap_or_default()));
    }
    let mut fact = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(out, "  {name:<12} {}", printable(value));
        }
    };
    fact("route", text(explanation, "route"));
    fact("source", text(explanation, "source"));
    let hosts: Vec<_> = items(explanation, "hosts").iter().filter_map(Value::as_str).collect();
    fact("hosts", &hosts.join(", "));
    let lane = &explanation["lane"];
    if !lane.is_null() {
        fact("lane", &lane_text(lane));
        fact("limit", text(lane, "limit"));
        if let Some(until) = lane["backoff_until"].as_str() {
            fact("backs off", &format!("until {until} ({})", due(until)));
        }
        fact("last reply", text(lane, "last_reply"));
    }
    let recipient = &explanation["recipient"];
    if !recipient.is_null() {
        fact("state", text(recipient, "state"));
        let attempts = number(recipient, "attempts");
        fact(
            "attempts",
            &format!("{attempts}, next {} ({})", text(recipient, "due"), due(text(recipient, "due"))),
        );
        fact("last reply", text(recipient, "last_reply"));
    }
    let transcript = items(explanation, "transcript");
    if !transcript.is_empty() {
        out.push_str("  last conversation:\n");
        for line in transcript {
            let _ = writeln!(out, "    {}", printable(line.as_str().unwrap_or_default()));
        }
    }
    out
}

fn lane_text(lane: &Value) -> String {
    format!(
        "{}: {} ready, {} parked, {} in flight; {} of {} connections",
        text(lane, "key"),
        number(lane, "ready"),
        number(lane, "parked"),
        number(lane, "in_flight"),
        number(lane, "connections"),
        number(lane, "window")
    )
}
