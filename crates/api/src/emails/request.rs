//! The body of `POST /v1/emails`, and what every compatibility API is mapped to.

use crate::problem::{FieldError, Problem};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::fmt;

/// One message to be sent. Flat, as Resend has it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EmailRequest {
    /// `Shop <a@example.com>`; one of the application's From addresses.
    pub(crate) from: String,
    /// Recipients that everybody sees.
    pub(crate) to: Addresses,
    /// The same.
    pub(crate) cc: Addresses,
    /// Recipients that nobody sees.
    pub(crate) bcc: Addresses,
    /// Where answers go.
    pub(crate) reply_to: Addresses,
    /// Plain text.
    pub(crate) subject: String,
    /// HTML; a text part is made from it unless `text` is given.
    pub(crate) html: Option<String>,
    /// Plain text; `""` leaves the text part out.
    pub(crate) text: Option<String>,
    /// Further header fields.
    pub(crate) headers: Headers,
    /// Files.
    pub(crate) attachments: Vec<AttachmentRequest>,
    /// `transactional` or `bulk`.
    pub(crate) stream: Option<String>,
    /// Not before this time, RFC 3339.
    pub(crate) scheduled_at: Option<String>,
    /// Names and values by which messages are found again.
    pub(crate) tags: Vec<Tag>,
    /// Kept with the message and given back.
    pub(crate) metadata: Headers,
}

/// One text or several. Each may list several addresses with commas between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses(pub(crate) Vec<String>);

/// Names and values in their order; a JSON object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub(crate) Vec<(Box<str>, Box<str>)>);

/// A file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AttachmentRequest {
    /// Its name.
    pub(crate) filename: String,
    /// Its octets in base64.
    pub(crate) content: String,
    /// Its media type; by the name if it is left out.
    pub(crate) content_type: Option<String>,
    /// Shown within the HTML as `cid:…`.
    pub(crate) content_id: Option<String>,
}

/// A name and a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tag {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Addresses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address or a list of addresses")
            }

            fn visit_str<E>(self, text: &str) -> Result<Addresses, E> {
                Ok(Addresses(vec![text.to_owned()]))
            }

            fn visit_unit<E>(self) -> Result<Addresses, E> {
                Ok(Addresses::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Addresses, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = seq.next_element()? {
                    texts.push(text);
                }
                Ok(Addresses(texts))
            }
        }
        deserializer.deserialize_any(Texts)
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_unit<E>(self) -> Result<Headers, E> {
                Ok(Headers::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut pairs = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, String>()? {
                    pairs.push((name.into(), value.into()));
                }
                Ok(Headers(pairs))
            }
        }
        deserializer.deserialize_any(Pairs)
    }
}

/// What may stand in a field of JSON.
#[derive(Clone, Copy)]
enum Shape {
    Text,
    Texts,
    Pairs,
    List(&'static [(&'static str, Shape)]),
}

const FIELDS: &[(&str, Shape)] = &[
    ("from", Shape::Text),
    ("to", Shape::Texts),
    ("cc", Shape::Texts),
    ("bcc", Shape::Texts),
    ("reply_to", Shape::Texts),
    ("subject", Shape::Text),
    ("html", Shape::Text),
    ("text", Shape::Text),
    ("headers", Shape::Pairs),
    (
        "attachments",
        Shape::List(&[
            ("filename", Shape::Text),
            ("content", Shape::Text),
            ("content_type", Shape::Text),
            ("content_id", Shape::Text),
        ]),
    ),
    ("stream", Shape::Text),
    ("scheduled_at", Shape::Text),
    ("tags", Shape::List(&[("name", Shape::Text), ("value", Shape::Text)])),
    ("metadata", Shape::Pairs),
];

/// A request that is an object: by itself, serde would take a list of its fields as well.
pub(crate) struct Object(pub(crate) EmailRequest);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object, A::Error> {
                EmailRequest::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// The names of the fields.
pub(crate) fn field_names() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().map(|(name, _)| *name)
}

impl EmailRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// With every field that is of the wrong kind or not known.
    pub(crate) fn read(body: &[u8]) -> Result<Self, Problem> {
        match serde_json::from_slice(body) {
            Ok(Object(request)) => Ok(request),
            Err(error) => Err(match serde_json::from_slice::<Value>(body) {
                Ok(value) => diagnosis(&value, &error),
                Err(error) => Problem::bad_request(format!("the body is not JSON: {error}")),
            }),
        }
    }

    /// Reads one entry of a batch.
    pub(crate) fn of_value(value: &Value) -> Result<Self, Problem> {
        Object::deserialize(value).map(|Object(request)| request).map_err(|error| diagnosis(value, &error))
    }
}

/// What is wrong with a JSON value that is no request.
fn diagnosis(value: &Value, error: &serde_json::Error) -> Problem {
    let mut errors = Vec::new();
    match value {
        Value::Object(_) => examine("", value, FIELDS, &mut errors),
        _ => return Problem::bad_request("the body must be a JSON object"),
    }
    if errors.is_empty() { Problem::bad_request(error.to_string()) } else { Problem::invalid(errors) }
}

fn examine(prefix: &str, value: &Value, fields: &[(&str, Shape)], errors: &mut Vec<FieldError>) {
    let Value::Object(object) = value else {
        return errors.push(FieldError::new(prefix, "must be an object"));
    };
    for (name, value) in object {
        let at = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let Some((_, shape)) = fields.iter().find(|(known, _)| known == name) else {
            let known: Vec<_> = fields.iter().map(|(known, _)| *known).collect();
            errors.push(FieldError::new(at, format!("is not known here; there are {}", known.join(", "))));
            continue;
        };
        match (shape, value) {
            (Shape::Text, Value::String(_)) => {}
            (Shape::Text, Value::Null)
                if matches!(
                    &**name,
                    "html" | "text" | "stream" | "scheduled_at" | "content_type" | "content_id"
                ) => {}
            (Shape::Text, _) => errors.push(FieldError::new(at, "must be a text")),
            (Shape::Texts, Value::String(_) | Value::Null) => {}
            (Shape::Texts, Value::Array(items)) if items.iter().all(Value::is_string) => {}
            (Shape::Texts, _) => {
                errors.push(FieldError::new(at, "must be an address or a list of addresses"));
            }
            (Shape::Pairs, Value::Null) => {}
            (Shape::Pairs, Value::Object(pairs)) => {
                for (key, _) in pairs.iter().filter(|(_, value)| !value.is_string()) {
                    errors.push(FieldError::new(format!("{at}.{key}"), "must be a text"));
                }
            }
            (Shape::Pairs, _) => errors.push(FieldError::new(at, "must be an object of texts")),
            (Shape::List(fields), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    examine(&format!("{at}[{index}]"), item, fields, errors);
                }
            }
            (Shape::List(_), _) => errors.push(FieldError::new(at, "must be a list of objects")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wrong(body: &Value) -> Vec<(String, String)> {
        let problem = EmailRequest::read(body.to_string().as_bytes()).unwrap_err();
        problem.errors.into_iter().map(|error| (error.field, error.detail)).collect()
    }

    #[test]
    fn one_address_or_several_and_null_are_read() {
        let body = br#"{"from":"a@b","to":"c@d","cc":["e@f","g@h"],"bcc":null,"html":null,"headers":{"B":"1","A":"2"}}"#;
        let request = EmailRequest::read(body).unwrap();
        assert_eq!(request.to.0, ["c@d"]);
        assert_eq!(request.cc.0, ["e@f", "g@h"]);
        assert_eq!(request.headers.0, [("B".into(), "1".into()), ("A".into(), "2".into())]);
    }

    #[test]
    fn every_wrong_field_is_named() {
        let body = json!({
            "from": 1, "to": [1], "form": "x", "headers": {"A": 1}, "attachments": [{"name": "x"}, 7], "text": null,
        });
        let mut fields: Vec<_> = wrong(&body).into_iter().map(|(field, _)| field).collect();
        fields.sort();
        assert_eq!(fields, ["attachments[0].name", "attachments[1]", "form", "from", "headers.A", "to"]);
        assert_eq!(
            wrong(&json!({"to": 1})),
            [("to".into(), "must be an address or a list of addresses".into())]
        );
        let problem = EmailRequest::read(b"{").unwrap_err();
        assert_eq!(problem.status, axum::http::StatusCode::BAD_REQUEST);
    }
}
