//! Sending over HTTP: a real relay with its sandbox behind a real listener.

mod room;

use room::Room;
use serde_json::{Value, json};

fn hello() -> Value {
    json!({
        "from": "Shop <a@example.com>", "to": "b@example.net", "subject": "Hello", "html": "<p>Hi</p>",
    })
}

#[test]
fn a_message_is_answered_with_its_id_and_stands_in_the_sandbox() {
    let room = Room::new();
    let (status, sent) = room.post("/v1/emails", &hello());
    assert_eq!(status, 202, "{sent}");
    let id = sent["id"].as_str().unwrap();
    let listed = room.until_captured(1);
    assert_eq!(listed["items"][0]["id"], json!(id));
    assert_eq!(listed["items"][0]["subject"], json!("Hello"));
    assert_eq!(listed["items"][0]["recipients"], json!(["b@example.net"]));
    let content = room.get(&format!("/v1/sandbox/messages/{id}/content")).1;
    let content = content.as_str().unwrap();
    let received = "Received: from [127.0.0.1] ([127.0.0.1])\r\n\tby relay.example";
    assert!(content.starts_with(received), "{content}");
    assert!(content.contains(&format!("with HTTP id\r\n\t{id}")), "{content}");
    for field in
        ["\r\nDate: ", &format!("\r\nMessage-ID: <{id}@relay.example>"), "\r\nFrom: Shop <a@example.com>\r\n"]
    {
        assert!(content.contains(field), "{field} is missing in {content}");
    }
    let (status, shown) = room.get(&format!("/v1/emails/{id}"));
    assert_eq!((status, &shown["recipients"][0]["state"]), (200, &json!("captured")), "{shown}");
}

#[test]
fn bcc_gets_the_message_and_nobody_sees_it() {
    let room = Room::new();
    let mut body = hello();
    body["bcc"] = json!(["Secret <c@example.net>", "b@example.net"]);
    body["cc"] = json!("d@example.net, e@example.net");
    let (status, sent) = room.post("/v1/emails", &body);
    assert_eq!(status, 202, "{sent}");
    let listed = room.until_captured(1);
    let recipients = json!(["b@example.net", "d@example.net", "e@example.net", "c@example.net"]);
    assert_eq!(listed["items"][0]["recipients"], recipients, "each once");
    let id = sent["id"].as_str().unwrap();
    let content = room.get(&format!("/v1/sandbox/messages/{id}/content")).1.to_string();
    assert!(!content.contains("c@example.net") && !content.contains("Secret"), "{content}");
}

#[test]
fn every_wrong_field_is_named_and_nothing_is_sent() {
    let room = Room::new();
    let body = json!({
        "from": "Shop <a@example.com>\r\nBcc: x@example.org", "to": ["b@example.net", "nobody"],
        "subject": "a\u{2028}b", "text": "x", "headers": {"Bcc": "x@example.org", "X-A": "a\u{85}"},
        "attachments": [{"filename": "a.txt", "content": "%%%"}],
    });
    let (status, problem) = room.post("/v1/emails", &body);
    assert_eq!(status, 422, "{problem}");
    let fields: Vec<_> =
        problem["errors"].as_array().unwrap().iter().map(|e| e["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["from", "to[1]", "attachments[0].content", "subject", "headers.Bcc", "headers.X-A"]);
    let check = |body: Value, wanted: u16, text: &str| {
        let (status, problem) = room.post("/v1/emails", &body);
        assert_eq!(status, wanted, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(text), "{problem}");
    };
    check(json!({}), 422, "from: is missing");
    check(json!([]), 400, "must be a JSON object");
    check(json!({"form": "x"}), 422, "form: is not known here");
    let with = |field: &str, value: Value| {
        let mut body = hello();
        body[field] = value;
        body
    };
    check(with("to", json!([])), 422, "name at least one recipient");
    check(with("from", json!("x@example.org")), 403, "may not send with the From header x@example.org");
    check(with("tags", json!([{"name": "a", "value": "b"}])), 422, "not supported yet");
    check(with("stream", json!("news")), 422, "there is no such stream");
    let many: Vec<_> = (0..1_001).map(|n| format!("r{n}@example.net")).collect();
    check(with("to", json!(many)), 422, "more than 1000 recipients");
    let (_, problem) = room.post("/v1/emails", &with("from", json!("x@example.org")));
    assert_eq!(problem["rule"], json!("application.from"));
    assert_eq!(room.relay().sandbox().len(), 0);
}

#[test]
fn a_batch_is_answered_entry_by_entry() {
    let room = Room::new();
    let mut wrong = hello();
    wrong["to"] = json!("nobody");
    let mut foreign = hello();
    foreign["from"] = json!("x@example.org");
    let (status, answer) =
        room.post("/v1/emails/batch", &json!([hello(), wrong, foreign, {"x": 1}, hello()]));
    assert_eq!(status, 202, "{answer}");
    let data = answer["data"].as_array().unwrap();
    assert!(data[0]["id"].as_str().unwrap().starts_with("msg_") && data[4]["id"].is_string());
    assert_eq!(data[1]["error"]["errors"][0]["field"], json!("to"));
    assert_eq!(data[2]["error"]["rule"], json!("application.from"));
    assert_eq!(data[3]["error"]["status"], json!(422));
    room.until_captured(2);
    let thousand = vec![hello(); 1_000];
    let (status, answer) = room.post("/v1/emails/batch", &json!(thousand));
    assert_eq!(status, 202);
    let ids: std::collections::HashSet<_> =
        answer["data"].as_array().unwrap().iter().map(|entry| entry["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 1_000);
    assert_eq!(room.post("/v1/emails/batch", &json!(vec![hello(); 1_001])).0, 400);
    assert_eq!(room.post("/v1/emails/batch", &json!([])).0, 400);
    assert_eq!(room.post("/v1/emails/batch", &json!([{"x": 1}])).0, 422);
}

#[test]
fn keys_are_asked_for_and_open_what_they_may() {
    let room = Room::new();
    let check = |key: &str, wanted: (u16, &str)| {
        let (status, problem) =
            room.request("POST", "/v1/emails", key, "application/json", hello().to_string().as_bytes());
        assert_eq!((status, problem["type"].as_str().unwrap()), wanted, "{problem}");
    };
    check("", (401, "urn:postrider:problem:unauthorized"));
    check("pr_test_nobody", (401, "urn:postrider:problem:unauthorized"));
    check(&"x".repeat(5_000), (401, "urn:postrider:problem:unauthorized"));
    check(room::READER, (403, "urn:postrider:problem:forbidden"));
    check(room::ELSEWHERE, (403, "urn:postrider:problem:forbidden"));
    check(room::DISABLED, (403, "urn:postrider:problem:forbidden"));
    let (status, problem) = room.request("POST", "/v1/emails", room::KEY, "text/plain", b"hi");
    assert_eq!((status, &problem["status"]), (415, &json!(415)));
    assert_eq!(room.get("/v1/nothing").0, 404);
    assert_eq!(room.request("PUT", "/v1/emails", room::KEY, "application/json", b"{}").0, 405);
    assert_eq!(room.request("GET", "/healthz", "", "", b"").0, 200);
    assert_eq!(room.request("GET", "/readyz", "", "", b"").0, 200);
}

#[test]
fn one_application_sees_nothing_of_another() {
    let room = Room::new();
    let id = room.post("/v1/emails", &hello()).1["id"].as_str().unwrap().to_owned();
    room.until_captured(1);
    for path in [
        format!("/v1/emails/{id}"),
        format!("/v1/sandbox/messages/{id}"),
        format!("/v1/sandbox/messages/{id}/content"),
    ] {
        assert_eq!(room.request("GET", &path, room::KEY, "", b"").0, 200, "{path}");
        assert_eq!(room.request("GET", &path, room::OTHER, "", b"").0, 404, "{path}");
    }
    for act in ["cancel", "retry"] {
        assert_eq!(room.request("POST", &format!("/v1/emails/{id}/{act}"), room::OTHER, "", b"").0, 404);
        assert_eq!(
            room.request("POST", &format!("/v1/emails/{id}/{act}"), room::KEY, "", b"").0,
            409,
            "captured"
        );
    }
    assert_eq!(room.request("DELETE", &format!("/v1/sandbox/messages/{id}"), room::OTHER, "", b"").0, 404);
    let (_, listed) = room.request("GET", "/v1/sandbox/messages", room::OTHER, "", b"");
    assert_eq!(listed["items"], json!([]));
    assert_eq!(room.get("/v1/emails/msg_nonsense").0, 404);
    assert_eq!(room.get("/v1/emails/msg_00000000-0000-7000-8000-000000000000").0, 404);
}

#[test]
fn a_scheduled_message_waits_and_can_be_cancelled() {
    let room = Room::new();
    let mut body = hello();
    body["scheduled_at"] = json!("2126-01-01T00:00:00Z");
    let (status, problem) = room.post("/v1/emails", &body);
    assert_eq!(status, 422, "further than a message may wait: {problem}");
    let in_an_hour = room.in_an_hour();
    body["scheduled_at"] = json!(in_an_hour);
    let (status, sent) = room.post("/v1/emails", &body);
    assert_eq!(status, 202, "{sent}");
    let id = sent["id"].as_str().unwrap();
    let (_, shown) = room.get(&format!("/v1/emails/{id}"));
    assert_eq!(shown["recipients"][0]["state"], json!("scheduled"), "{shown}");
    assert_eq!(shown["recipients"][0]["due"].as_str().unwrap()[..19], in_an_hour[..19]);
    let (status, problem) = room.request(
        "PATCH",
        &format!("/v1/emails/{id}"),
        room::KEY,
        "application/json",
        br#"{"scheduled_at":"yesterday"}"#,
    );
    assert_eq!(status, 422, "{problem}");
    let (status, changed) = room.request("POST", &format!("/v1/emails/{id}/cancel"), room::KEY, "", b"");
    assert_eq!((status, &changed["cancelled"]), (200, &json!(1)), "{changed}");
    assert_eq!(room.get(&format!("/v1/emails/{id}")).0, 404);
    let (_, sent) = room.post("/v1/emails", &body);
    let id = sent["id"].as_str().unwrap();
    let now = br#"{"scheduled_at":"2020-01-01T00:00:00Z"}"#;
    let (status, changed) =
        room.request("PATCH", &format!("/v1/emails/{id}"), room::KEY, "application/json", now);
    assert_eq!(status, 200, "{changed}");
    let listed = room.until_captured(1);
    assert_eq!(listed["items"][0]["id"], json!(id));
}

#[test]
fn a_large_attachment_arrives_whole() {
    use base64::Engine as _;
    let room = Room::new();
    let octets: Vec<u8> =
        (0..2_000_000u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    let mut body = hello();
    let base64 = base64::engine::general_purpose::STANDARD.encode(&octets);
    body["attachments"] = json!([{"filename": "big.bin", "content": base64}]);
    let (status, sent) = room.post("/v1/emails", &body);
    assert_eq!(status, 202, "{sent}");
    room.until_captured(1);
    let content = room.get(&format!("/v1/sandbox/messages/{}/content", sent["id"].as_str().unwrap())).1;
    let content: String = content.as_str().unwrap().replace("\r\n", "");
    assert!(content.contains(&base64));
}

#[test]
fn a_message_that_is_mime_already_passes_the_checks_of_submission() {
    let room = Room::new();
    let raw = |path: &str, content: &str| {
        room.request("POST", path, room::KEY, "message/rfc822", content.as_bytes())
    };
    let mail = "From: a@example.com\r\nTo: B <b@example.net>, c@example.net\r\nBcc: d@example.net\r\n\r\n.dot\r\n.\r\nend";
    let (status, sent) = raw("/v1/emails/raw", mail);
    assert_eq!(status, 202, "{sent}");
    let listed = room.until_captured(1);
    assert_eq!(listed["items"][0]["recipients"], json!(["b@example.net", "c@example.net", "d@example.net"]));
    let content = room.get(&format!("/v1/sandbox/messages/{}/content", sent["id"].as_str().unwrap())).1;
    let content = content.as_str().unwrap();
    assert!(content.ends_with("\r\n\r\n.dot\r\n.\r\nend\r\n") && !content.contains("Bcc"), "{content}");
    assert!(content.contains("\r\nDate: ") && content.contains("\r\nMessage-ID: <msg_"), "{content}");
    let check = |path: &str, content: &str, wanted: u16, text: &str| {
        let (status, problem) = raw(path, content);
        assert_eq!(status, wanted, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(text), "{problem}");
    };
    check(
        "/v1/emails/raw",
        "From: a@example.com\r\nTo: b@example.net\r\n\r\na\nb\r\n",
        422,
        "CR or LF alone",
    );
    check("/v1/emails/raw", "From: a@example.com\nTo: b@example.net\n\nb\n", 422, "bare LF");
    check("/v1/emails/raw", "From: a@example.com\r\n\r\nb\r\n", 422, "at least one recipient");
    check("/v1/emails/raw?to=b@example.net", "To: x\r\n\r\nb\r\n", 422, "no From header field");
    check("/v1/emails/raw", "From: x@example.org\r\nTo: b@example.net\r\n\r\nb\r\n", 403, "application.from");
    let forged = "From: x@example.org\r\nTo: b@example.net\r\n\r\nb\r\n";
    check("/v1/emails/raw?from=a@example.com", forged, 403, "From header x@example.org");
    check("/v1/emails/raw?to=nobody", "From: a@example.com\r\n\r\nb\r\n", 422, "to");
    check("/v1/emails/raw?cc=b@example.net", mail, 400, "cc");
    let (status, sent) = raw("/v1/emails/raw?from=bounces@example.com&to=e@example.net,e@example.net", mail);
    assert_eq!(status, 202, "{sent}");
    let listed = room.until_captured(2);
    assert_eq!(listed["items"][0]["recipients"], json!(["e@example.net"]));
    assert_eq!(listed["items"][0]["sender"], json!("bounces@example.com"));
}

#[test]
fn the_document_is_served_and_every_operation_of_it_is_there() {
    let room = Room::new();
    let (status, document) = room.request("GET", "/v1/openapi.json", "", "", b"");
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.0")));
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let path = path.replace("{id}", "msg_nobody");
            let (status, answer) = room.request(&method.to_uppercase(), &path, "", "", b"");
            let wanted = if operation.get("security").is_some() { 200 } else { 401 };
            assert_eq!(status, wanted, "{method} {path}: {answer}");
        }
    }
}
