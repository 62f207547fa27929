//! `postrider queue`

use super::acts::{FilterArgs, ListArgs, order};
use super::args::QueueCommand;
use super::output::{self, Table, age, due, items, number, size, text};
use super::place::Place;
use super::{EXIT_FAILED, EXIT_OK};
use postrider_api::{Order, query};
use postrider_engine::operate::{Act, Filter};
use serde_json::Value;

/// Recipients fetched at once.
const PAGE: usize = 1_000;

pub(super) fn run(place: &Place, command: &QueueCommand) -> anyhow::Result<u8> {
    let act = |verb: &str, act: Act, args: &FilterArgs| {
        order(place, verb, &Order { act, filter: args.filter() }, args.json)
    };
    match command {
        QueueCommand::List(args) => list(place, args),
        QueueCommand::Show { id, json } => show(place, id, *json),
        QueueCommand::Retry(args) => act("retry", Act::Retry, args),
        QueueCommand::Hold(args) => act("hold", Act::Hold, args),
        QueueCommand::Release(args) => act("release", Act::Release, args),
        QueueCommand::Cancel { filter, notify, yes } => {
            let question = "Cancelled mail is never sent. Go on?";
            if filter.filter() != Filter::default() && !yes && !output::confirmed(question) {
                return Ok(EXIT_FAILED);
            }
            act("cancel", Act::Cancel { notify: *notify }, filter)
        }
        QueueCommand::Move { filter, to } => act("move", Act::Move { route: to.clone() }, filter),
        QueueCommand::Suspend { filter, reason } => {
            act("suspend", Act::Suspend { reason: reason.clone() }, filter)
        }
        QueueCommand::Resume { number, all: _, json } => {
            let act = Act::Resume { number: *number };
            order(place, "resume", &Order { act, filter: Filter::default() }, *json)
        }
        QueueCommand::Suspensions { json } => suspensions(place, *json),
    }
}

fn list(place: &Place, args: &ListArgs) -> anyhow::Result<u8> {
    let client = place.client();
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    let mut found: Vec<Value> = Vec::new();
    let mut next: Option<String> = None;
    let more = loop {
        let mut pairs = args.filter.pairs();
        pairs.push(("limit", PAGE.min(limit - found.len()).to_string()));
        pairs.extend(next.take().map(|id| ("after", id)));
        let page = client.get(&query("/v1/queue", pairs))?;
        found.extend_from_slice(items(&page, "items"));
        next = page["next"].as_str().map(str::to_owned);
        if next.is_none() || found.len() >= limit {
            break next.is_some();
        }
    };
    if args.filter.json {
        output::print_json(&Value::Array(found));
        return Ok(EXIT_OK);
    }
    if found.is_empty() {
        eprintln!("Nothing waits that matches.");
        return Ok(EXIT_OK);
    }
    let mut table =
        Table::new(&["RECIPIENT ID", "AGE", "SIZE", "STATE", "TRIES", "NEXT", "FROM", "TO", "LAST REPLY"]);
    for recipient in &found {
        table.row(row(recipient));
    }
    table.print();
    if more {
        eprintln!("There are more: --limit 0 lists all.");
    }
    Ok(EXIT_OK)
}

fn row(recipient: &Value) -> [String; 9] {
    let next = match text(recipient, "state") {
        "held" => "–".to_owned(),
        _ => due(text(recipient, "due")),
    };
    let sender = recipient["sender"].as_str().unwrap_or("<>");
    [
        text(recipient, "id").to_owned(),
        age(text(recipient, "accepted_at")),
        size(number(recipient, "size")),
        text(recipient, "state").to_owned(),
        number(recipient, "attempts").to_string(),
        next,
        output::shortened(sender, 30),
        output::shortened(text(recipient, "recipient"), 40),
        output::shortened(text(recipient, "last_reply"), 60),
    ]
}

fn show(place: &Place, id: &str, as_json: bool) -> anyhow::Result<u8> {
    let found = place.client().get(&format!("/v1/queue/{id}"))?;
    if as_json {
        output::print_json(&found["items"]);
        return Ok(EXIT_OK);
    }
    for (index, recipient) in items(&found, "items").iter().enumerate() {
        if index > 0 {
            output::print("\n");
        }
        output::print(&described(recipient));
    }
    Ok(EXIT_OK)
}

/// A recipient, one fact on each line.
pub(super) fn described(recipient: &Value) -> String {
    let mut table = Table::new(&[]);
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            table.row([format!("{name}:"), value]);
        }
    };
    let when = |key: &str| text(recipient, key).to_owned();
    fact("recipient", format!("{}  {}", text(recipient, "recipient"), text(recipient, "id")));
    fact("message", text(recipient, "message").to_owned());
    fact("from", recipient["sender"].as_str().unwrap_or("<>").to_owned());
    fact("brought by", text(recipient, "account").to_owned());
    fact("class", text(recipient, "class").to_owned());
    fact("route", text(recipient, "route").to_owned());
    fact("size", format!("{} octets", number(recipient, "size")));
    fact("accepted", format!("{} ({} ago)", when("accepted_at"), age(&when("accepted_at"))));
    fact("expires", format!("{} ({})", when("expires_at"), due(&when("expires_at"))));
    fact("state", text(recipient, "state").to_owned());
    fact("attempts", number(recipient, "attempts").to_string());
    fact("next attempt", format!("{} ({})", when("due"), due(&when("due"))));
    fact("last reply", text(recipient, "last_reply").to_owned());
    fact("said by", text(recipient, "last_peer").to_owned());
    if recipient["in_doubt"] == true {
        fact("in doubt", "the last attempt's outcome is unknown: a copy may have arrived".to_owned());
    }
    table.text().trim_start_matches('\n').to_owned()
}

fn suspensions(place: &Place, as_json: bool) -> anyhow::Result<u8> {
    let found = place.client().get("/v1/suspensions")?;
    if as_json {
        output::print_json(&found["items"]);
        return Ok(EXIT_OK);
    }
    let found = items(&found, "items");
    if found.is_empty() {
        eprintln!("Nothing is suspended.");
        return Ok(EXIT_OK);
    }
    let mut table = Table::new(&["NUMBER", "SINCE", "WHOM", "WHY"]);
    for suspension in found {
        table.row([
            number(suspension, "number").to_string(),
            format!("{} ago", age(text(suspension, "at"))),
            filter_text(&suspension["filter"]),
            text(suspension, "reason").to_owned(),
        ]);
    }
    table.print();
    Ok(EXIT_OK)
}

fn filter_text(filter: &Value) -> String {
    let Some(filter) = filter.as_object() else { return String::new() };
    let parts: Vec<_> = filter
        .iter()
        .filter_map(|(name, value)| match value {
            Value::String(text) => Some(format!("{name}={text}")),
            Value::Number(number) => Some(format!("{name}={number}")),
            Value::Bool(true) => Some(name.clone()),
            Value::Array(ids) if !ids.is_empty() => Some(format!("{} ids", ids.len())),
            _ => None,
        })
        .collect();
    parts.join(" ")
}
