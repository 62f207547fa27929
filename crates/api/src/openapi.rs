//! The OpenAPI 3.1 document of the routes with which applications send, served at `/v1/openapi.json`.
//!
//! One table describes each operation; a test asks the router for each of them, and finds every route of it in
//! the table. The management routes are not in it yet.

use crate::emails::draft::RECIPIENTS_MAX;
use crate::emails::{BATCH_MAX, request};
use serde_json::{Map, Value, json};

/// What a request carries.
enum Body {
    None,
    Json(&'static str),
    List(&'static str),
    Mime,
}

/// What a success answers.
enum Answer {
    Json(&'static str),
    Mime,
    Text,
}

struct Operation {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    /// The key's scope; `None` needs no key.
    scope: Option<&'static str>,
    query: &'static [(&'static str, &'static str)],
    body: Body,
    status: u16,
    answer: Answer,
}

const fn operation(
    method: &'static str,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
) -> Operation {
    Operation {
        method,
        path,
        id,
        summary,
        scope: Some("emails:send"),
        query: &[],
        body: Body::None,
        status: 200,
        answer: Answer::Json("Object"),
    }
}

const OPERATIONS: &[Operation] = &[
    Operation {
        body: Body::Json("Email"),
        status: 202,
        answer: Answer::Json("Sent"),
        ..operation("post", "/v1/emails", "sendEmail", "Sends one message; answered once it is safe on disk.")
    },
    Operation {
        body: Body::List("Email"),
        status: 202,
        answer: Answer::Json("BatchAnswer"),
        ..operation(
            "post",
            "/v1/emails/batch",
            "sendBatch",
            "Sends several messages, each answered by itself.",
        )
    },
    Operation {
        query: &[
            ("from", "The reverse-path; the first From address if it is left out."),
            ("to", "Recipients with commas between; those of To, Cc and Bcc if it is left out."),
        ],
        body: Body::Mime,
        status: 202,
        answer: Answer::Json("Sent"),
        ..operation("post", "/v1/emails/raw", "sendRaw", "Sends a message that is MIME already.")
    },
    Operation {
        scope: Some("emails:read"),
        answer: Answer::Json("EmailState"),
        ..operation("get", "/v1/emails/{id}", "showEmail", "What waits of a message or was captured of it.")
    },
    Operation {
        body: Body::Json("Reschedule"),
        ..operation("patch", "/v1/emails/{id}", "rescheduleEmail", "Another time for what waits.")
    },
    operation("post", "/v1/emails/{id}/cancel", "cancelEmail", "What waits is never sent."),
    operation("post", "/v1/emails/{id}/retry", "retryEmail", "What waits is due now."),
    Operation {
        scope: Some("content:read"),
        query: &[
            ("recipient", "Part of a recipient."),
            ("sender", "Part of the reverse-path or the From field."),
            ("subject", "Part of the subject."),
            ("limit", "Messages of a page."),
            ("after", "The `next` of the page before."),
        ],
        ..operation("get", "/v1/sandbox/messages", "listCaptured", "Captured messages, the newest first.")
    },
    Operation {
        scope: Some("content:read"),
        ..operation("get", "/v1/sandbox/messages/{id}", "showCaptured", "A captured message.")
    },
    Operation {
        scope: Some("content:read"),
        ..operation("delete", "/v1/sandbox/messages/{id}", "deleteCaptured", "Deletes a captured message.")
    },
    Operation {
        scope: Some("content:read"),
        answer: Answer::Mime,
        ..operation(
            "get",
            "/v1/sandbox/messages/{id}/content",
            "readCaptured",
            "A captured message's content.",
        )
    },
    Operation {
        scope: None,
        answer: Answer::Text,
        ..operation("get", "/healthz", "health", "The process lives.")
    },
    Operation {
        scope: None,
        answer: Answer::Text,
        ..operation("get", "/readyz", "ready", "The relay takes mail.")
    },
    Operation { scope: None, ..operation("get", "/v1/openapi.json", "document", "This document.") },
];

/// The document.
pub(crate) fn document() -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = described(operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Postrider",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Sends mail. Every request but the last ones needs an API key of an application.",
            "license": { "name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "key": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas(),
        },
    })
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn described(operation: &Operation) -> Value {
    let json_of = |schema: Value| json!({ "application/json": { "schema": schema } });
    let content = match operation.answer {
        Answer::Json(schema) => json_of(reference(schema)),
        Answer::Mime => json!({ "message/rfc822": { "schema": { "type": "string" } } }),
        Answer::Text => json!({ "text/plain": { "schema": { "type": "string" } } }),
    };
    let mut responses = Map::new();
    responses
        .insert(operation.status.to_string(), json!({ "description": "It is done.", "content": content }));
    let problem = json!({ "application/problem+json": { "schema": reference("Problem") } });
    // A batch of which nothing could be taken answers as one of which something was, with another status.
    if operation.id == "sendBatch" {
        let either = json!({
            "application/json": { "schema": reference("BatchAnswer") },
            "application/problem+json": { "schema": reference("Problem") },
        });
        responses
            .insert("422".into(), json!({ "description": "Nothing could be taken.", "content": either }));
    }
    if operation.id == "ready" {
        let text = json!({ "text/plain": { "schema": { "type": "string" } } });
        responses
            .insert("503".into(), json!({ "description": "It takes none, and says why.", "content": text }));
    }
    responses.insert("default".into(), json!({ "description": "A problem (RFC 9457).", "content": problem }));
    let mut parameters: Vec<Value> = operation
        .query
        .iter()
        .map(|(name, about)| {
            let kind = if *name == "limit" {
                json!({ "type": "integer", "minimum": 1 })
            } else {
                json!({ "type": "string" })
            };
            json!({ "name": name, "in": "query", "description": about, "schema": kind })
        })
        .collect();
    if operation.path.contains("{id}") {
        parameters
            .push(json!({ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } }));
    }
    let mut out = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": responses,
    });
    match operation.scope {
        Some(scope) => out["description"] = json!(format!("The key needs the scope `{scope}`.")),
        None => out["security"] = json!([]),
    }
    let body = match operation.body {
        Body::None => None,
        Body::Json(schema) => Some(json_of(reference(schema))),
        Body::List(schema) => {
            let list =
                json!({ "type": "array", "items": reference(schema), "minItems": 1, "maxItems": BATCH_MAX });
            Some(json_of(list))
        }
        Body::Mime => Some(json!({ "message/rfc822": { "schema": { "type": "string" } } })),
    };
    if let Some(content) = body {
        out["requestBody"] = json!({ "required": true, "content": content });
    }
    out
}

fn schemas() -> Value {
    let text = || json!({ "type": "string" });
    let addresses = json!({
        "description": format!("An address or a list; each may hold several with commas. At most {RECIPIENTS_MAX} recipients in all."),
        "oneOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }, { "type": "null" }],
    });
    let pairs = json!({ "type": ["object", "null"], "additionalProperties": { "type": "string" } });
    let mut email = Map::new();
    for name in request::field_names() {
        let schema = match name {
            "to" | "cc" | "bcc" | "reply_to" => addresses.clone(),
            "headers" | "metadata" => pairs.clone(),
            "html" | "text" => json!({ "type": ["string", "null"] }),
            "stream" => json!({ "enum": ["transactional", "bulk", null] }),
            "scheduled_at" => json!({ "type": ["string", "null"], "format": "date-time" }),
            "attachments" => json!({ "type": "array", "items": reference("Attachment") }),
            "tags" => json!({ "type": "array", "maxItems": 0, "description": "Not supported yet." }),
            _ => text(),
        };
        email.insert(name.into(), schema);
    }
    let object = |properties: Value, required: &[&str]| json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false });
    json!({
        "Object": { "type": "object" },
        "Email": {
            "type": "object", "properties": email, "additionalProperties": false,
            "required": ["from"], "anyOf": [{ "required": ["html"] }, { "required": ["text"] }],
        },
        "Attachment": object(
            json!({
                "filename": text(),
                "content": { "type": "string", "contentEncoding": "base64" },
                "content_type": { "type": ["string", "null"] },
                "content_id": { "type": ["string", "null"] },
            }),
            &["content"],
        ),
        "Sent": object(json!({ "id": text() }), &["id"]),
        "BatchAnswer": object(
            json!({
                "data": {
                    "type": "array",
                    "items": { "anyOf": [reference("Sent"), object(json!({ "error": reference("Problem") }), &["error"])] },
                },
            }),
            &["data"],
        ),
        "Reschedule": object(json!({ "scheduled_at": { "type": "string", "format": "date-time" } }), &["scheduled_at"]),
        "EmailState": {
            "type": "object",
            "properties": {
                "id": text(), "status": { "enum": ["queued", "captured"] },
                "accepted_at": { "type": "string", "format": "date-time" }, "sender": text(),
                "recipients": { "type": "array", "items": { "type": "object", "required": ["address", "state"] } },
            },
            "required": ["id", "status", "accepted_at", "sender", "recipients"],
        },
        "Problem": {
            "type": "object",
            "properties": {
                "type": text(), "title": text(), "status": { "type": "integer" }, "detail": text(), "rule": text(),
                "errors": {
                    "type": "array",
                    "items": object(json!({ "field": text(), "detail": text() }), &["field", "detail"]),
                },
            },
            "required": ["type", "title", "status", "detail"],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_of_the_router_is_in_the_document() {
        let source = include_str!("public.rs");
        let mut found = 0;
        for line in source.lines().filter_map(|line| line.trim().strip_prefix(".route(\"")) {
            let (path, handlers) = line.split_once('"').unwrap();
            for method in ["get", "post", "patch", "delete", "put"] {
                if handlers.contains(&format!("{method}(")) {
                    let known = OPERATIONS.iter().any(|known| known.path == path && known.method == method);
                    assert!(known, "{method} {path} is not in the document");
                    found += 1;
                }
            }
        }
        assert_eq!(found, OPERATIONS.len(), "the document has a route that the router has not");
    }

    #[test]
    fn the_committed_document_is_up_to_date() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
        let made = serde_json::to_string_pretty(&document()).unwrap() + "\n";
        if std::env::var_os("POSTRIDER_UPDATE_DOCS").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(text == made, "docs/openapi.json is out of date: run with POSTRIDER_UPDATE_DOCS=1");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let text = document.to_string();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }
}
