//! The settings in other forms: effective values, JSON schema, reference page.

use super::Settings;
use super::read::{Section, Value};
use super::schema::{Key, Kind, ROOT, Table};
use super::value;
use postrider_model::snapshot::Target;
use serde_json::{Map, json};
use std::fmt::Write as _;

/// Effective values as TOML; with `changed_only` only what differs from the defaults. Secrets are masked.
#[must_use]
pub fn effective(written: &Section, settings: &Settings, changed_only: bool) -> String {
    let mut out = String::new();
    if !changed_only {
        let hostname = toml_string(settings.snapshot.hostname.as_str());
        if written.item("hostname").is_none() {
            let _ = writeln!(out, "hostname = {hostname}  # the machine's name");
        }
        if written.item("data_dir").is_none() {
            let data_dir = toml_string(&settings.data_dir.display().to_string());
            let _ = writeln!(out, "data_dir = {data_dir}");
        }
    }
    table(written, "", changed_only, &mut out);
    if !changed_only {
        implied(written, settings, &mut out);
    }
    out.trim_start().to_owned()
}

/// What is there without being written: the sandbox of a relay that nobody has configured.
fn implied(written: &Section, settings: &Settings, out: &mut String) {
    if written.tables("listener").is_empty() {
        for listener in &settings.snapshot.listeners {
            let _ = write!(
                out,
                "\n# No [[listener]] is written, so that this one is there:\n[[listener]]\nname = \"{}\"\n\
                 address = \"{}\"\nsandbox = {}\n",
                listener.name, listener.address, listener.sandbox
            );
        }
    }
    if written.tables("route").is_empty()
        && settings.snapshot.routes.iter().all(|route| route.to == Target::Sandbox)
    {
        out.push_str(
            "\n# No [[route]] is written, so that this one is there:\n[[route]]\ndomains = [\"*\"]\n\
             to = [\"sandbox\"]\n",
        );
    }
}

fn table(section: &Section, path: &str, changed_only: bool, out: &mut String) {
    for key in section.table.keys {
        if matches!(key.kind, Kind::Table(_) | Kind::Tables(_)) {
            continue;
        }
        let text = section.item(key.name).map(|item| shown(&item.value, key.kind));
        match text {
            Some(text) if !(changed_only && text == default_text(key)) => {
                let _ = writeln!(out, "{} = {text}", key.name);
            }
            None if !changed_only && !key.default.is_empty() => {
                let _ = writeln!(out, "{} = {}  # default", key.name, key.default);
            }
            _ => {}
        }
    }
    for key in section.table.keys {
        let path = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
        match key.kind {
            Kind::Table(inner) => {
                let empty = Section::empty(inner);
                let written = section.table(key.name);
                // A table that turns something on is shown only if it is written.
                let optional = inner.keys.iter().all(|key| key.default.is_empty());
                if written.is_some() || (!changed_only && !optional) {
                    nested(written.unwrap_or(&empty), &format!("[{path}]"), &path, changed_only, out);
                }
            }
            Kind::Tables(_) => {
                for inner in section.tables(key.name) {
                    nested(inner, &format!("[[{path}]]"), &path, changed_only, out);
                }
            }
            _ => {}
        }
    }
}

fn nested(section: &Section, title: &str, path: &str, changed_only: bool, out: &mut String) {
    let mut body = String::new();
    table(section, path, changed_only, &mut body);
    if !body.is_empty() {
        let _ = write!(out, "\n{title}\n{body}");
    }
}

/// The default written in the same way as a value of the file would be.
fn default_text(key: &Key) -> String {
    key.default.to_owned()
}

fn shown(value: &Value, kind: Kind) -> String {
    match (value, kind) {
        (Value::Text(_), Kind::Secret(_)) => "\"…\"".to_owned(),
        (Value::Text(text), _) => toml_string(&value::masked_url(text)),
        (Value::Number(bytes), Kind::Size { .. }) => format!("\"{}\"", value::size_text(*bytes)),
        (Value::Number(number), _) => number.to_string(),
        (Value::Duration(duration), _) => format!("\"{}\"", value::duration_text(*duration)),
        (Value::Bool(value), _) => value.to_string(),
        (Value::List(items), Kind::List(inner)) => {
            let items: Vec<_> = items.iter().map(|item| shown(&item.value, *inner)).collect();
            format!("[{}]", items.join(", "))
        }
        (Value::List(_) | Value::Table(_) | Value::Tables(_), _) => String::new(),
    }
}

fn toml_string(text: &str) -> String {
    // JSON's escapes are TOML's, too.
    serde_json::Value::from(text).to_string()
}

/// A JSON schema (draft 2020-12) for editors.
#[must_use]
pub fn json_schema() -> serde_json::Value {
    let mut schema = object_schema(&ROOT);
    schema.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".to_owned(), json!("Postrider configuration"));
    serde_json::Value::Object(schema)
}

fn object_schema(table: &Table) -> Map<String, serde_json::Value> {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in table.keys {
        let mut schema = kind_schema(key.kind);
        schema.insert("description".to_owned(), json!(key.about));
        if let Some(default) = default_json(key) {
            schema.insert("default".to_owned(), default);
        }
        if key.about.contains("Required.") {
            required.push(key.name);
        }
        properties.insert(key.name.to_owned(), serde_json::Value::Object(schema));
    }
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("description".to_owned(), json!(table.about));
    schema.insert("properties".to_owned(), serde_json::Value::Object(properties));
    schema.insert("required".to_owned(), json!(required));
    schema.insert("additionalProperties".to_owned(), json!(false));
    schema
}

fn default_json(key: &Key) -> Option<serde_json::Value> {
    // Every default is also JSON: strings, numbers, booleans and lists of them.
    serde_json::from_str(key.default).ok()
}

fn kind_schema(kind: Kind) -> Map<String, serde_json::Value> {
    let value = match kind {
        Kind::Text(_) => json!({"type": "string", "minLength": 1}),
        Kind::Secret("verifier") => json!({"type": "string", "pattern": "^scram-sha-256:"}),
        Kind::Secret(_) => json!({"type": "string", "minLength": 1, "writeOnly": true}),
        Kind::Choice(words) => json!({"enum": words}),
        Kind::Number { min, max } => json!({"type": "integer", "minimum": min, "maximum": max}),
        Kind::Size { min, max } => json!({
            "oneOf": [
                {"type": "string", "pattern": "^[0-9]+ *[A-Za-z]*$"},
                {"type": "integer", "minimum": min, "maximum": max},
            ]
        }),
        Kind::Duration { .. } => json!({"type": "string", "pattern": "^([0-9]+ *(ms|s|m|min|h|d|w) *)+$"}),
        Kind::Bool => json!({"type": "boolean"}),
        Kind::List(inner) => {
            let inner = serde_json::Value::Object(kind_schema(*inner));
            json!({"oneOf": [inner, {"type": "array", "items": inner}]})
        }
        Kind::Table(inner) => serde_json::Value::Object(object_schema(inner)),
        Kind::Tables(inner) => json!({"type": "array", "items": object_schema(inner)}),
    };
    match value {
        serde_json::Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The settings as a page of Markdown, one table for each table of the file.
#[must_use]
pub fn reference() -> String {
    let mut out = String::new();
    reference_table(&ROOT, &mut out);
    out
}

fn reference_table(table: &Table, out: &mut String) {
    let _ = write!(out, "## {}\n\n{}\n\n", table.title, table.about);
    out.push_str("| key | kind | default | meaning |\n|---|---|---|---|\n");
    for key in table.keys {
        let default = if key.default.is_empty() { "–".to_owned() } else { format!("`{}`", key.default) };
        let _ = writeln!(
            out,
            "| `{}` | {} | {default} | {} |",
            key.name,
            kind_text(key.kind),
            key.about.replace('|', "\\|")
        );
    }
    out.push('\n');
    for key in table.keys {
        if let Kind::Table(inner) | Kind::Tables(inner) = key.kind {
            reference_table(inner, out);
        }
    }
}

fn kind_text(kind: Kind) -> String {
    match kind {
        Kind::Text(form) | Kind::Secret(form) => form.to_owned(),
        Kind::Choice(words) => {
            words.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", ")
        }
        Kind::Number { min, max } => format!("number, {min} to {max}"),
        Kind::Size { min, max } => format!("size, {} to {}", value::size_text(min), value::size_text(max)),
        Kind::Duration { min_s, max_s } => {
            let text = |secs| value::duration_text(std::time::Duration::from_secs(secs));
            format!("time, {} to {}", text(min_s), text(max_s))
        }
        Kind::Bool => "true or false".to_owned(),
        Kind::List(inner) => format!("list of {}", kind_text(*inner)),
        Kind::Table(_) => "table, see below".to_owned(),
        Kind::Tables(_) => "tables, see below".to_owned(),
    }
}
