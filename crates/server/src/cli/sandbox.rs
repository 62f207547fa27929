//! `postrider sandbox`

use super::args::{SandboxCommand, SandboxListArgs};
use super::output::{self, Table, age, items, number, printable_lines, size, text};
use super::place::Place;
use super::{EXIT_FAILED, EXIT_OK};
use postrider_api::{Client, query};
use serde_json::Value;
use std::io::Write;

pub(super) fn run(place: &Place, command: &SandboxCommand) -> anyhow::Result<u8> {
    let client = place.client();
    match command {
        SandboxCommand::List(args) => list(&client, args),
        SandboxCommand::Show { id, raw, json } => show(&client, id.as_deref(), *raw, *json),
        SandboxCommand::Delete { ids } => {
            for id in ids {
                client.delete(&format!("/v1/sandbox/messages/{id}"))?;
                output::print(&format!("deleted {id}\n"));
            }
            Ok(EXIT_OK)
        }
        SandboxCommand::Clear => {
            let answer = client.delete("/v1/sandbox/messages")?;
            output::print(&format!("deleted {} messages\n", number(&answer, "deleted")));
            Ok(EXIT_OK)
        }
    }
}

fn newest(client: &Client) -> anyhow::Result<Value> {
    Ok(client.get("/v1/sandbox/messages?limit=1")?["items"][0].take())
}

fn list(client: &Client, args: &SandboxListArgs) -> anyhow::Result<u8> {
    let mut pairs = vec![("limit", args.limit.to_string())];
    for (name, value) in [("sender", &args.from), ("recipient", &args.to), ("subject", &args.subject)] {
        pairs.extend(value.clone().map(|value| (name, value)));
    }
    let page = client.get(&query("/v1/sandbox/messages", pairs))?;
    if args.json {
        output::print_json(&page["items"]);
        return Ok(EXIT_OK);
    }
    let messages = items(&page, "items");
    if messages.is_empty() {
        eprintln!("The sandbox is empty. `postrider send --to bob@example.net` sends a first mail.");
        return Ok(EXIT_OK);
    }
    let mut table = Table::new(&["MESSAGE ID", "AGE", "SIZE", "FROM", "TO", "SUBJECT"]);
    for message in messages {
        let from = Some(text(message, "sender")).filter(|from| !from.is_empty()).unwrap_or("<>");
        table.row([
            text(message, "id").to_owned(),
            age(text(message, "accepted_at")),
            size(number(message, "size")),
            output::shortened(from, 30),
            output::shortened(&recipients(message), 40),
            output::shortened(text(message, "subject"), 60),
        ]);
    }
    table.print();
    Ok(EXIT_OK)
}

fn recipients(message: &Value) -> String {
    let to: Vec<_> = items(message, "recipients").iter().filter_map(Value::as_str).collect();
    match to.as_slice() {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

fn show(client: &Client, id: Option<&str>, raw: bool, as_json: bool) -> anyhow::Result<u8> {
    let message = match id {
        Some(id) => client.get(&format!("/v1/sandbox/messages/{id}"))?,
        None => newest(client)?,
    };
    if message.is_null() {
        eprintln!("The sandbox is empty. `postrider send --to bob@example.net` sends a first mail.");
        return Ok(EXIT_FAILED);
    }
    if as_json {
        output::print_json(&message);
        return Ok(EXIT_OK);
    }
    let id = text(&message, "id");
    let content = client.get_bytes(&format!("/v1/sandbox/messages/{id}/content"))?;
    if raw {
        std::io::stdout().write_all(&content)?;
        return Ok(EXIT_OK);
    }
    let to: Vec<_> = items(&message, "recipients").iter().filter_map(Value::as_str).collect();
    let mut envelope = Table::new(&[]);
    envelope.row(["captured:".to_owned(), format!("{id}, {} ago", age(text(&message, "accepted_at")))]);
    envelope.row(["envelope from:".to_owned(), format!("<{}>", text(&message, "sender"))]);
    envelope.row(["envelope to:".to_owned(), to.join(", ")]);
    output::print(envelope.text().trim_start_matches('\n'));
    output::print(&format!("\n{}", printable_lines(&String::from_utf8_lossy(&content))));
    Ok(EXIT_OK)
}
