//! `postrider spool`

use super::args::SpoolCommand;
use super::output::{self, Table};
use super::place::Place;
use super::{EXIT_FOUND_PROBLEMS, EXIT_OK};
use anyhow::Result;
use postrider_disk::{ReplayedRecord, inspect};
use postrider_model::codec::DecodeError;
use postrider_model::record::{Attempt, Backoff, Change, Chunk, Control, Deferral, Final, Kind, Message};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub(super) fn run(place: &Place, command: &SpoolCommand) -> Result<u8> {
    match command {
        SpoolCommand::Check => check(place),
        SpoolCommand::Stats { json } => stats(place, *json),
        SpoolCommand::Dump { kind } => dump(place, kind.as_deref()),
    }
}

fn directory(place: &Place) -> PathBuf {
    place.data_dir().join("spool")
}

fn check(place: &Place) -> Result<u8> {
    if place.client().get("/v1/health").is_ok() {
        eprintln!("A relay runs here: its newest records may look torn. To be sure, check while none runs.");
    }
    let (mut records, mut unknown) = (0_u64, 0_u64);
    let found = inspect(&directory(place), true, |record| {
        records += 1;
        if let Err(error) = described(record) {
            unknown += 1;
            output::print(&format!(
                "record {}: {} cannot be understood: {error}\n",
                record.lsn.0,
                kind_name(record.kind)
            ));
        }
    })?;
    for damage in &found.report.damages {
        let lsns = &damage.lsns;
        output::print(&format!(
            "segment {} from octet {}: {} (records {} to {})\n",
            damage.segment, damage.offset, damage.what, lsns.start, lsns.end
        ));
    }
    for (lsn, _) in &found.bad_bodies {
        output::print(&format!("record {}: its body is not what was written\n", lsn.0));
    }
    if let Some((segment, offset)) = found.report.torn {
        eprintln!(
            "segment {segment} from octet {offset}: a tail that was never synced; nothing was promised for it"
        );
    }
    let damages = found.report.damages_count + unknown + found.bad_bodies.len() as u64;
    let verdict = if damages == 0 { "no damage".to_owned() } else { format!("damages: {damages}") };
    output::print(&format!("{} segments, {records} records; {verdict}\n", found.segments.len()));
    Ok(if damages == 0 { EXIT_OK } else { EXIT_FOUND_PROBLEMS })
}

fn stats(place: &Place, as_json: bool) -> Result<u8> {
    let mut by_kind: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
    let found = inspect(&directory(place), false, |record| {
        let (count, octets) = by_kind.entry(kind_name(record.kind)).or_default();
        *count += 1;
        *octets += record.head.len() as u64 + u64::from(record.body_len);
    })?;
    let size: u64 = found.segments.iter().map(|segment| u64::from(segment.size)).sum();
    let live = place.client().get("/v1/spool").ok();
    if as_json {
        let kinds: BTreeMap<_, _> = by_kind
            .iter()
            .map(|(kind, (records, octets))| (*kind, json!({ "records": records, "bytes": octets })))
            .collect();
        output::print_json(&json!({
            "segments": found.segments.len(),
            "size_bytes": size,
            "kinds": kinds,
            "damages": found.report.damages_count,
            "running": live,
        }));
        return Ok(EXIT_OK);
    }
    output::print(&format!("{} segments, {size} octets\n\n", found.segments.len()));
    let mut table = Table::new(&["KIND", "RECORDS", "OCTETS"]);
    for (kind, (records, octets)) in &by_kind {
        table.row([(*kind).to_owned(), records.to_string(), octets.to_string()]);
    }
    table.print();
    if let Some(live) = live.as_ref().and_then(serde_json::Value::as_object) {
        output::print("\nThe running relay:\n");
        let mut table = Table::new(&[]);
        for (name, value) in live {
            table.row([name.replace('_', " "), value.to_string().trim_matches('"').to_owned()]);
        }
        output::print(table.text().trim_start_matches('\n'));
    }
    Ok(EXIT_OK)
}

fn dump(place: &Place, kind: Option<&str>) -> Result<u8> {
    let found = inspect(&directory(place), false, |record| {
        let name = kind_name(record.kind);
        if kind.is_some_and(|kind| kind != name) {
            return;
        }
        let text = described(record).unwrap_or_else(|error| format!("cannot be understood: {error}"));
        let copied = if record.copied { " (copied)" } else { "" };
        let body = if record.body_len > 0 { format!(" +{}", record.body_len) } else { String::new() };
        output::print(&format!(
            "{} shard {} {name}{copied}{body} {}\n",
            record.lsn.0,
            record.shard,
            output::printable(&text)
        ));
    })?;
    if found.report.damages_count > 0 {
        eprintln!("There is damage: see `postrider spool check`.");
    }
    Ok(EXIT_OK)
}

fn kind_name(kind: u8) -> &'static str {
    match Kind::try_from(kind) {
        Ok(Kind::Message) => "message",
        Ok(Kind::Chunk) => "chunk",
        Ok(Kind::Attempt) => "attempt",
        Ok(Kind::Deferral) => "deferral",
        Ok(Kind::Final) => "final",
        Ok(Kind::Control) => "control",
        Ok(Kind::Backoff) => "backoff",
        Ok(Kind::Change) => "change",
        Err(_) => "unknown",
    }
}

fn described(record: &ReplayedRecord<'_>) -> Result<String, DecodeError> {
    let head = record.head;
    Ok(match Kind::try_from(record.kind)? {
        Kind::Message => format!("{:?}", Message::decode(head)?),
        Kind::Chunk => format!("{:?}", Chunk::decode(head)?),
        Kind::Attempt => format!("{:?}", Attempt::decode(head)?),
        Kind::Deferral => format!("{:?}", Deferral::decode(head)?),
        Kind::Final => format!("{:?}", Final::decode(head)?),
        Kind::Control => format!("{:?}", Control::decode(head)?),
        Kind::Backoff => format!("{:?}", Backoff::decode(head)?),
        Kind::Change => format!("{:?}", Change::decode(head)?),
    })
}
