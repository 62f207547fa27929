//! `postrider key`, `postrider instance`, `postrider audit`

use super::application::{all, validity};
use super::args::{AuditCommand, InstanceCommand, KeyCommand};
use super::output::{self, Table, age, items, number, text};
use super::place::Place;
use super::{EXIT_FOUND_PROBLEMS, EXIT_OK};
use anyhow::Result;
use postrider_api::{Client, query};
use postrider_model::control::{Environment, KeyDraft};
use serde_json::{Value, json};

pub(super) fn keys(place: &Place, command: &KeyCommand) -> Result<u8> {
    let client = place.client();
    match command {
        KeyCommand::Create { name, app, live, test, scope, network, expires, json } => {
            let draft = KeyDraft {
                name: name.clone().unwrap_or_default(),
                application: app.clone(),
                environment: match (live, test) {
                    (true, _) => Some(Environment::Live),
                    (_, true) => Some(Environment::Test),
                    _ => None,
                },
                scopes: (!scope.is_empty()).then(|| scope.clone()),
                networks: network.clone(),
                expires_at: expires.clone(),
            };
            let created = client.post("/v1/keys", &json!(draft))?;
            if *json {
                output::print(&format!("{created}\n"));
            } else {
                output::print(&format!("{}\n", text(&created, "key")));
                eprintln!("Keep it now: only its hash is stored. Its id is {}.", text(&created, "id"));
            }
        }
        KeyCommand::List { json } => {
            let keys = all(&client, "/v1/keys")?;
            if *json {
                output::print_json(&Value::Array(keys));
            } else {
                key_table(&keys).print();
            }
        }
        KeyCommand::Revoke { id } => {
            let answer = client.delete(&format!("/v1/keys/{}", postrider_api::encoded(id)))?;
            output::print(&format!("revoked {}\n", text(&answer, "id")));
        }
    }
    Ok(EXIT_OK)
}

fn key_table(keys: &[Value]) -> Table {
    let mut table = Table::new(&["KEY", "BEGINS", "NAME", "APPLICATION", "SCOPES", "LAST USE", "STATE"]);
    for key in keys {
        let scopes: Vec<_> = items(key, "scopes").iter().filter_map(Value::as_str).collect();
        table.row([
            text(key, "id").to_owned(),
            format!("{}…", text(key, "hint")),
            text(key, "name").to_owned(),
            text(key, "application").to_owned(),
            output::shortened(&scopes.join(" "), 50),
            key["last_used_at"].as_str().map_or_else(|| "never".to_owned(), age),
            validity(key),
        ]);
    }
    table
}

pub(super) fn instance(place: &Place, command: &InstanceCommand) -> Result<u8> {
    let client = place.client();
    let (answer, as_json) = match command {
        InstanceCommand::Show { json } => (client.get("/v1/instance")?, *json),
        InstanceCommand::Live => (client.patch("/v1/instance", &json!({ "mode": "live" }))?, false),
        InstanceCommand::Sandbox => (client.patch("/v1/instance", &json!({ "mode": "sandbox" }))?, false),
    };
    if as_json {
        output::print_json(&answer);
    } else if answer["mode"] == "live" {
        output::print("live: applications send as their delivery modes say\n");
    } else {
        output::print(
            "sandbox: all mail of applications is captured; `postrider instance live` lets it out\n",
        );
    }
    Ok(EXIT_OK)
}

pub(super) fn audit(place: &Place, command: &AuditCommand) -> Result<u8> {
    let client = place.client();
    match command {
        AuditCommand::List { limit, target, json } => list(&client, *limit, target.as_deref(), *json),
        AuditCommand::Verify { json } => verify(&client, *json),
    }
}

fn list(client: &Client, limit: usize, target: Option<&str>, as_json: bool) -> Result<u8> {
    let mut pairs = vec![("limit", limit.to_string())];
    pairs.extend(target.map(|target| ("target", target.to_owned())));
    let page = client.get(&query("/v1/audit", pairs))?;
    if as_json {
        output::print_json(&page["items"]);
        return Ok(EXIT_OK);
    }
    let mut table = Table::new(&["ENTRY", "WHEN", "WHO", "WHAT", "TO WHAT"]);
    for entry in items(&page, "items") {
        table.row([
            number(entry, "seq").to_string(),
            text(entry, "at").to_owned(),
            text(entry, "actor").to_owned(),
            text(entry, "action").to_owned(),
            text(entry, "target").to_owned(),
        ]);
    }
    table.print();
    Ok(EXIT_OK)
}

fn verify(client: &Client, as_json: bool) -> Result<u8> {
    let report = client.get("/v1/audit/verify")?;
    let intact = report["intact"] == true;
    if as_json {
        output::print_json(&report);
    } else if intact {
        output::print(&format!(
            "intact: {} entries, each sealed by the next, and {} anchors that agree\nhead: {}\n",
            number(&report, "entries"),
            number(&report, "anchors"),
            text(&report, "head")
        ));
    } else {
        for problem in items(&report, "problems").iter().filter_map(Value::as_str) {
            output::print(&format!("{}\n", output::printable(problem)));
        }
    }
    Ok(if intact { EXIT_OK } else { EXIT_FOUND_PROBLEMS })
}
