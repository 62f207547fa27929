//! `postrider app`

use super::EXIT_OK;
use super::args::{AppCommand, AppSettings, CredentialCommand};
use super::output::{self, Table, age, confirmed, items, text};
use super::place::Place;
use anyhow::Result;
use postrider_api::{Client, query};
use postrider_model::control::{ApplicationDraft, DeliveryDraft};
use serde::Serialize;
use serde_json::{Value, json};

/// Items asked for at once.
const PAGE: usize = 1_000;

pub(super) fn run(place: &Place, command: &AppCommand) -> Result<u8> {
    let client = place.client();
    match command {
        AppCommand::Create { name, settings, json } => create(&client, name, settings, *json),
        AppCommand::List { json } => list(&client, *json),
        AppCommand::Show { app, json } => {
            let application = client.get(&path(app, ""))?;
            let credentials = client.get(&path(app, "/credentials"))?;
            show(&application, items(&credentials, "items"), *json);
            Ok(EXIT_OK)
        }
        AppCommand::Set { app, name, enabled, settings, json } => {
            let draft = ApplicationDraft { name: name.clone(), enabled: *enabled, ..draft(settings)? };
            let application = client.patch(&path(app, ""), &json!(draft))?;
            show(&application, &[], *json);
            Ok(EXIT_OK)
        }
        AppCommand::Revoke { app, yes, json } => revoke(&client, app, *yes, *json),
        AppCommand::Delete { app, yes } => {
            let question = format!("Delete {app} with its credentials and keys?");
            if !*yes && !confirmed(&question) {
                return Ok(EXIT_OK);
            }
            let answer = client.delete(&path(app, ""))?;
            output::print(&format!("deleted {}\n", text(&answer, "deleted")));
            Ok(EXIT_OK)
        }
        AppCommand::Credential { command } => credential(&client, command),
    }
}

fn path(app: &str, rest: &str) -> String {
    format!("/v1/applications/{}{rest}", postrider_api::encoded(app))
}

fn draft(settings: &AppSettings) -> Result<ApplicationDraft> {
    Ok(ApplicationDraft {
        name: None,
        owner: settings.owner.clone(),
        from: (!settings.from.is_empty()).then(|| settings.from.clone()),
        delivery: settings.delivery.as_deref().map(delivery).transpose()?,
        enabled: None,
        null_sender: settings.null_sender,
        message_size_max_bytes: settings.max_size.map(|size| (size > 0).then_some(size)),
        expires_at: settings.expires.clone().map(|text| (text != "never").then_some(text)),
    })
}

fn delivery(text: &str) -> Result<DeliveryDraft> {
    Ok(match text.split_once(':') {
        None if text == "live" => DeliveryDraft::Live,
        None if text == "sandbox" => DeliveryDraft::Sandbox,
        Some(("redirect", address)) => DeliveryDraft::Redirect(address.to_owned()),
        Some(("only", patterns)) => {
            DeliveryDraft::Only(patterns.split(',').map(|pattern| pattern.trim().to_owned()).collect())
        }
        _ => anyhow::bail!(
            "--delivery {text:?}: write live, sandbox, redirect:ADDRESS or only:PATTERN,PATTERN"
        ),
    })
}

/// What scripts are told of a new application, in this order.
#[derive(Serialize)]
struct Told<'a> {
    application: &'a Value,
    smtp: ToldSmtp<'a>,
    api_key: &'a Value,
}

#[derive(Serialize)]
struct ToldSmtp<'a> {
    host: &'a Value,
    port: &'a Value,
    security: &'a Value,
    username: &'a Value,
    password: &'a Value,
}

fn create(client: &Client, name: &str, settings: &AppSettings, as_json: bool) -> Result<u8> {
    let draft = ApplicationDraft { name: Some(name.to_owned()), ..draft(settings)? };
    let created = client.post("/v1/applications", &json!(draft))?;
    let smtp = &created["smtp"];
    if as_json {
        let told = Told {
            application: &created["application"]["id"],
            smtp: ToldSmtp {
                host: &smtp["host"],
                port: &smtp["port"],
                security: &smtp["security"],
                username: &smtp["username"],
                password: &smtp["password"],
            },
            api_key: &created["api_key"]["key"],
        };
        output::print(&format!("{}\n", serde_json::to_string(&told)?));
        return Ok(EXIT_OK);
    }
    output::print(&format!("created {}\n\n", text(&created["application"], "id")));
    smtp_table(smtp).print();
    output::print(&format!("API key:   {}\n\n", text(&created["api_key"], "key")));
    output::print("Keep password and key now: they are stored as hashes only and not shown again.\n");
    Ok(EXIT_OK)
}

fn smtp_table(smtp: &Value) -> Table {
    let place = match (smtp["host"].as_str(), smtp["port"].as_u64()) {
        (Some(host), Some(port)) => format!("{host}:{port} ({})", security(text(smtp, "security"))),
        _ => "no listener offers a login; add one with `tls`".to_owned(),
    };
    let mut table = Table::new(&[]);
    table.row(["SMTP:".to_owned(), place]);
    table.row(["user:".to_owned(), text(smtp, "username").to_owned()]);
    table.row(["password:".to_owned(), text(smtp, "password").to_owned()]);
    table
}

fn security(word: &str) -> &str {
    match word {
        "starttls" => "STARTTLS",
        "tls" => "TLS from the start",
        _ => "in clear, on this machine only",
    }
}

/// Every page of a list.
pub(super) fn all(client: &Client, route: &str) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let mut pairs = vec![("limit", PAGE.to_string())];
        pairs.extend(after.take().map(|after| ("after", after)));
        let page = client.get(&query(route, pairs))?;
        found.extend(items(&page, "items").iter().cloned());
        match page["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => return Ok(found),
        }
    }
}

fn list(client: &Client, as_json: bool) -> Result<u8> {
    let applications = all(client, "/v1/applications")?;
    if as_json {
        output::print_json(&Value::Array(applications));
        return Ok(EXIT_OK);
    }
    if applications.is_empty() {
        eprintln!("There is no application. `postrider app create shop --from '*@example.com'` makes one.");
        return Ok(EXIT_OK);
    }
    let mut table = Table::new(&["APPLICATION", "NAME", "FROM", "DELIVERY", "STATE", "CHANGED", "OWNER"]);
    for application in &applications {
        table.row([
            text(application, "id").to_owned(),
            text(application, "name").to_owned(),
            output::shortened(&joined(application, "from"), 40),
            output::shortened(&delivery_text(&application["delivery"]), 30),
            if application["enabled"] == true { "enabled" } else { "disabled" }.to_owned(),
            age(text(application, "updated_at")),
            output::shortened(text(application, "owner"), 30),
        ]);
    }
    table.print();
    Ok(EXIT_OK)
}

fn joined(value: &Value, key: &str) -> String {
    items(value, key).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

fn delivery_text(delivery: &Value) -> String {
    match (delivery["redirect"].as_str(), delivery.as_str()) {
        (Some(address), _) => format!("redirected to {address}"),
        (None, Some(word)) => word.to_owned(),
        (None, None) => format!("only {}", joined(delivery, "only")),
    }
}

fn show(application: &Value, credentials: &[Value], as_json: bool) {
    if as_json {
        let mut shown = application.clone();
        if !credentials.is_empty() {
            shown["credentials"] = Value::Array(credentials.to_vec());
        }
        return output::print_json(&shown);
    }
    let mut table = Table::new(&[]);
    let state = if application["enabled"] == true { "enabled" } else { "disabled" };
    let or_none = |key: &str, none: &str| match &application[key] {
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => none.to_owned(),
    };
    for (name, value) in [
        ("application:", text(application, "id").to_owned()),
        ("name:", text(application, "name").to_owned()),
        ("owner:", or_none("owner", "nobody is named")),
        ("state:", state.to_owned()),
        ("may send as:", joined(application, "from")),
        ("delivery:", delivery_text(&application["delivery"])),
        (
            "null sender:",
            if application["null_sender"] == true { "allowed" } else { "not allowed" }.to_owned(),
        ),
        ("octets at most:", or_none("message_size_max_bytes", "as the listener says")),
        ("expires:", or_none("expires_at", "never")),
        (
            "changed:",
            format!("{} ago, version {}", age(text(application, "updated_at")), application["version"]),
        ),
    ] {
        table.row([name.to_owned(), value]);
    }
    output::print(table.text().trim_start_matches('\n'));
    if !credentials.is_empty() {
        output::print("\n");
        credential_table(credentials).print();
    }
}

fn revoke(client: &Client, app: &str, yes: bool, as_json: bool) -> Result<u8> {
    let question = format!("Cut {app} off now, and revoke all its credentials and keys?");
    if !yes && !confirmed(&question) {
        return Ok(EXIT_OK);
    }
    let answer = client.post(&path(app, "/revoke"), &json!({}))?;
    if as_json {
        output::print_json(&answer);
    } else {
        output::print(&format!(
            "{} is cut off; {} credentials and {} keys were revoked\n",
            text(&answer, "application"),
            answer["credentials_revoked"],
            answer["keys_revoked"]
        ));
    }
    Ok(EXIT_OK)
}

fn credential(client: &Client, command: &CredentialCommand) -> Result<u8> {
    match command {
        CredentialCommand::Create { app, name, expires, json } => {
            let body = json!({ "name": name.clone().unwrap_or_default(), "expires_at": expires });
            let smtp = client.post(&path(app, "/credentials"), &body)?;
            if *json {
                output::print(&format!("{smtp}\n"));
            } else {
                smtp_table(&smtp).print();
                output::print(
                    "\nKeep the password now: it is stored as a verifier only and not shown again.\n",
                );
            }
        }
        CredentialCommand::List { app, json } => {
            let page = client.get(&path(app, "/credentials"))?;
            if *json {
                output::print_json(&page["items"]);
            } else {
                credential_table(items(&page, "items")).print();
            }
        }
        CredentialCommand::Revoke { app, credential } => {
            let rest = format!("/credentials/{}", postrider_api::encoded(credential));
            let answer = client.delete(&path(app, &rest))?;
            output::print(&format!("revoked {}\n", text(&answer, "username")));
        }
    }
    Ok(EXIT_OK)
}

fn credential_table(credentials: &[Value]) -> Table {
    let mut table = Table::new(&["CREDENTIAL", "USER", "NAME", "AGE", "STATE"]);
    for credential in credentials {
        table.row([
            text(credential, "id").to_owned(),
            text(credential, "username").to_owned(),
            text(credential, "name").to_owned(),
            age(text(credential, "created_at")),
            validity(credential),
        ]);
    }
    table
}

/// `valid`, `revoked`, or until when.
pub(super) fn validity(value: &Value) -> String {
    match (value["revoked_at"].as_str(), value["expires_at"].as_str()) {
        (Some(_), _) => "revoked".to_owned(),
        (None, Some(end)) => format!("until {end}"),
        (None, None) => "valid".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivery_modes_are_written_on_the_command_line() {
        let check = |text: &str, mode: DeliveryDraft| assert_eq!(delivery(text).unwrap(), mode);
        check("live", DeliveryDraft::Live);
        check("sandbox", DeliveryDraft::Sandbox);
        check("redirect:a@example.com", DeliveryDraft::Redirect("a@example.com".into()));
        check(
            "only:*@a.example, b@c.example",
            DeliveryDraft::Only(vec!["*@a.example".into(), "b@c.example".into()]),
        );
        assert!(delivery("hold").unwrap_err().to_string().contains("write live, sandbox, redirect:ADDRESS"));
    }
}
