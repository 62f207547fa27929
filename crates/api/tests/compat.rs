//! The compatibility APIs: by hand for every row of docs/compatibility.md, and with the vendors' own clients.

mod room;

use blackbox::{once, program, run, shared_folder, skip};
use room::{KEY, Room};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;

const POSTMARK: &str = "Content-Type: application/json\r\nX-Postmark-Server-Token: ";

impl Room {
    fn captured_content(&self, id: &str) -> String {
        self.get(&format!("/v1/sandbox/messages/{id}/content")).1.as_str().unwrap().to_owned()
    }

    fn postmark(&self, token: &str, path: &str, body: &Value) -> (u16, Value) {
        let lines = format!("{POSTMARK}{token}\r\n");
        self.request_with("POST", &format!("/compat/postmark{path}"), &lines, body.to_string().as_bytes())
    }
}

#[test]
fn resend_takes_its_shape_and_answers_in_it() {
    let room = Room::new();
    let mail = json!({
        "from": "Shop <a@example.com>", "to": ["b@example.net"], "cc": "c@example.net", "reply_to": ["d@example.com"],
        "subject": "Hello", "html": "<p>Hi</p>", "headers": {"X-A": "1"},
        "attachments": [{"filename": "a.bin", "content": {"type": "Buffer", "data": [1, 2, 255]}}],
    });
    let (status, sent) = room.post("/compat/resend/emails", &mail);
    assert_eq!(status, 200, "{sent}");
    room.until_captured(1);
    let content = room.captured_content(sent["id"].as_str().unwrap());
    for part in
        ["\r\nReply-To: d@example.com\r\n", "\r\nX-A: 1\r\n", "\r\nAQL/\r\n", "\r\nCc: c@example.net\r\n"]
    {
        assert!(content.contains(part), "{part} is missing in {content}");
    }
    let check = |body: Value, status: u16, name: &str, text: &str| {
        let (found, answer) = room.post("/compat/resend/emails", &body);
        assert_eq!(
            (found, &answer["statusCode"], &answer["name"]),
            (status, &json!(status), &json!(name)),
            "{answer}"
        );
        assert!(answer["message"].as_str().unwrap().contains(text), "{answer}");
    };
    let with = |field: &str, value: Value| {
        let mut body = mail.clone();
        body[field] = value;
        body
    };
    check(with("tags", json!([{"name": "a", "value": "b"}])), 422, "validation_error", "tags");
    check(with("template", json!({"id": "x"})), 422, "validation_error", "templates");
    check(with("topic_id", json!("x")), 422, "validation_error", "topic_id");
    check(
        with("attachments", json!([{"filename": "a", "path": "http://x"}])),
        422,
        "validation_error",
        "path",
    );
    check(with("from", json!("x@example.org")), 403, "validation_error", "application.from");
    check(json!({"from": "a@example.com"}), 422, "missing_required_field", "to");
    let (status, answer) =
        room.request("POST", "/compat/resend/emails", "pr_test_no", "application/json", b"{}");
    assert_eq!((status, &answer["name"]), (403, &json!("invalid_api_key")));
    let (status, answer) = room.request("POST", "/compat/resend/emails", "", "application/json", b"{}");
    assert_eq!((status, &answer["name"]), (401, &json!("missing_api_key")));
    let (status, answer) =
        room.request("POST", "/compat/resend/emails", room::READER, "application/json", b"{}");
    assert_eq!((status, &answer["name"]), (401, &json!("restricted_api_key")));
    assert_eq!(room.post("/compat/resend/domains", &json!({})).0, 404);
    // Strict: one bad message and none is sent.
    let (status, _) = room.post("/compat/resend/emails/batch", &json!([mail, with("to", json!("nobody"))]));
    assert_eq!(status, 422);
    let lines = format!("Authorization: Bearer {KEY}\r\nx-batch-validation: permissive\r\n");
    let body = json!([mail, with("to", json!("nobody"))]).to_string();
    let (status, answer) = room.request_with("POST", "/compat/resend/emails/batch", &lines, body.as_bytes());
    assert_eq!((status, &answer["errors"][0]["index"]), (200, &json!(1)), "{answer}");
    room.until_captured(2);
    let lines = format!("Authorization: Bearer {KEY}\r\nIdempotency-Key: x\r\n");
    let (status, answer) =
        room.request_with("POST", "/compat/resend/emails", &lines, mail.to_string().as_bytes());
    assert!(status == 400 && answer["message"].as_str().unwrap().contains("Idempotency-Key"), "{answer}");
    assert_eq!(room.relay().sandbox().len(), 2);
}

#[test]
fn postmark_takes_its_shape_and_answers_in_it() {
    let room = Room::new();
    let mail = json!({
        "From": "Shop <a@example.com>", "To": "b@example.net, \"C, D\" <c@example.net>", "Bcc": "e@example.net",
        "Subject": "Hello", "HtmlBody": "<p>Hi</p>", "TextBody": "Hi", "ReplyTo": "d@example.com",
        "Headers": [{"Name": "X-A", "Value": "1"}], "TrackOpens": false, "TrackLinks": "None",
        "MessageStream": "outbound",
        "Attachments": [{"Name": "l.png", "Content": "AQL/", "ContentType": "image/png", "ContentID": "cid:l.png"}],
    });
    let (status, sent) = room.postmark(KEY, "/email", &mail);
    assert_eq!((status, &sent["ErrorCode"], &sent["Message"]), (200, &json!(0), &json!("OK")), "{sent}");
    assert_eq!(sent["To"], mail["To"]);
    let listed = room.until_captured(1);
    assert_eq!(listed["items"][0]["recipients"], json!(["b@example.net", "c@example.net", "e@example.net"]));
    let content = room.captured_content(sent["MessageID"].as_str().unwrap());
    assert!(content.contains("Content-ID: <l.png>\r\n") && content.contains("\r\nX-A: 1\r\n"), "{content}");
    let check = |token: &str, body: Value, status: u16, code: u16, text: &str| {
        let (found, answer) = room.postmark(token, "/email", &body);
        assert_eq!((found, &answer["ErrorCode"]), (status, &json!(code)), "{answer}");
        assert!(answer["Message"].as_str().unwrap().contains(text), "{answer}");
    };
    let with = |field: &str, value: Value| {
        let mut body = mail.clone();
        body[field] = value;
        body
    };
    check("nobody", mail.clone(), 401, 10, "API key");
    check(KEY, with("From", json!("x@example.org")), 422, 400, "application.from");
    check(KEY, with("To", json!("nobody")), 422, 300, "to");
    check(KEY, with("TrackOpens", json!(true)), 422, 300, "TrackOpens");
    check(KEY, with("Tag", json!("x")), 422, 300, "Tag");
    check(KEY, with("Metadata", json!({"a": "b"})), 422, 300, "Metadata");
    check(KEY, with("InlineCss", json!(true)), 422, 300, "InlineCss");
    check(KEY, with("MessageStream", json!("other")), 422, 300, "MessageStream");
    for path in ["/email/withTemplate", "/email/batchWithTemplates"] {
        let (status, answer) = room.postmark(KEY, path, &json!({}));
        assert_eq!((status, &answer["ErrorCode"]), (422, &json!(1101)));
    }
    // The vendor's test token: checked, never sent.
    let (status, answer) = room.postmark("POSTMARK_API_TEST", "/email", &mail);
    assert_eq!((status, &answer["Message"]), (200, &json!("Test job accepted")), "{answer}");
    let (status, answers) = room.postmark(KEY, "/email/batch", &json!([mail, with("To", json!("nobody"))]));
    assert_eq!(
        (status, &answers[0]["ErrorCode"], &answers[1]["ErrorCode"]),
        (200, &json!(0), &json!(300)),
        "{answers}"
    );
    room.until_captured(2);
    assert_eq!(room.postmark(KEY, "/email/batch", &json!(vec![mail; 501])).1["ErrorCode"], json!(410));
    assert_eq!(room.relay().sandbox().len(), 2);
}

#[test]
fn sendgrid_takes_its_shape_and_answers_in_it() {
    let room = Room::new();
    let mail = json!({
        "personalizations": [
            {"to": [{"email": "b@example.net", "name": "B, \"b\""}], "headers": {"X-B": "2"}},
            {"to": [{"email": "c@example.net"}], "bcc": [{"email": "d@example.net"}], "subject": "Other"},
        ],
        "from": {"email": "a@example.com", "name": "Shop"}, "reply_to": {"email": "r@example.com"},
        "subject": "Hello", "headers": {"X-A": "1"},
        "content": [{"type": "text/plain", "value": "Hi"}, {"type": "text/html", "value": "<p>Hi</p>"}],
        "attachments": [{"content": "AQL/", "filename": "a.bin", "type": "application/x-a", "disposition": "attachment"}],
        "tracking_settings": {"click_tracking": {"enable": false, "enable_text": false}},
    });
    let (status, answer) = room.post("/compat/sendgrid/v3/mail/send", &mail);
    assert_eq!((status, answer), (202, json!("")));
    let listed = room.until_captured(2);
    let subjects: Vec<_> =
        listed["items"].as_array().unwrap().iter().map(|m| m["subject"].as_str().unwrap()).collect();
    assert!(subjects.contains(&"Hello") && subjects.contains(&"Other"), "{listed}");
    let of_b = listed["items"].as_array().unwrap().iter().find(|m| m["subject"] == "Hello").unwrap();
    let content = room.captured_content(of_b["id"].as_str().unwrap());
    for part in [
        "\r\nTo: \"B, \\\"b\\\"\" <b@example.net>\r\n",
        "\r\nX-A: 1\r\n",
        "\r\nX-B: 2\r\n",
        "application/x-a",
    ] {
        assert!(content.contains(part), "{part} is missing in {content}");
    }
    let check = |body: Value, status: u16, field: Value, text: &str| {
        let (found, answer) = room.post("/compat/sendgrid/v3/mail/send", &body);
        let error = &answer["errors"][0];
        assert_eq!((found, &error["field"]), (status, &field), "{answer}");
        assert!(error["message"].as_str().unwrap().contains(text), "{answer}");
    };
    let with = |field: &str, value: Value| {
        let mut body = mail.clone();
        body[field] = value;
        body
    };
    check(with("template_id", json!("d-1")), 400, json!("template_id"), "templates");
    check(with("categories", json!(["a"])), 400, json!("categories"), "history");
    check(with("asm", json!({"group_id": 1})), 400, json!("asm"), "not supported");
    check(
        with("tracking_settings", json!({"open_tracking": {"enable": true}})),
        400,
        json!("tracking_settings.open_tracking"),
        "tracked",
    );
    check(with("personalizations", json!([])), 400, json!("personalizations"), "1 to 1000");
    check(
        with("content", json!([{"type": "text/calendar", "value": "x"}])),
        400,
        json!("content[0].type"),
        "text/plain",
    );
    check(with("from", json!({"email": "x@example.org"})), 403, Value::Null, "application.from");
    let (status, answer) =
        room.request("POST", "/compat/sendgrid/v3/mail/send", "", "application/json", b"{}");
    assert_eq!((status, answer["errors"].as_array().unwrap().len()), (401, 1));
    let (status, answer) = room.post(
        "/compat/sendgrid/v3/mail/send",
        &with("mail_settings", json!({"sandbox_mode": {"enable": true}})),
    );
    assert_eq!((status, answer), (200, json!("")));
    assert_eq!(room.relay().sandbox().len(), 2, "nothing of what was refused or only checked was sent");
}

/// Node and the folder of its packages.
fn node() -> anyhow::Result<(PathBuf, PathBuf)> {
    let (node, npm) = (program("node", "nodejs")?, program("npm", "npm")?);
    let folder = shared_folder("npm-vendors");
    once(&folder.join("installed"), || {
        let mut install = Command::new(npm);
        install.args(["install", "--no-audit", "--no-fund", "--ignore-scripts"]);
        install.args(["resend@6", "postmark@4", "@sendgrid/mail@8"]).arg("--prefix").arg(&folder);
        let answer = run(&mut install);
        anyhow::ensure!(answer.succeeded, "{}", answer.text);
        Ok(())
    })?;
    Ok((node, folder.join("node_modules")))
}

/// Python and the folder of its packages.
fn python() -> anyhow::Result<(PathBuf, PathBuf)> {
    let python = program("python3", "python3")?;
    if !run(Command::new(&python).args(["-m", "pip", "--version"])).succeeded {
        blackbox::install(&["python3-pip"])?;
    }
    let folder = shared_folder("pypi-vendors");
    once(&folder.join("installed"), || {
        let mut install = Command::new(&python);
        install
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
            .arg(&folder);
        install.args(["resend>=2,<3", "sendgrid>=6,<7", "postmark-python>=0.4,<0.5"]);
        let answer = run(&mut install);
        anyhow::ensure!(answer.succeeded, "{}", answer.text);
        Ok(())
    })?;
    Ok((python, folder))
}

#[test]
fn the_node_clients_of_the_vendors_work_as_they_are() {
    const SCRIPT: &str = "
const assert = require('node:assert');
const base = process.env.BASE, key = process.env.KEY;
(async () => {
  const { Resend } = require('resend');
  const resend = new Resend(key);
  const mail = { from: 'Shop <a@example.com>', to: 'b@example.net', subject: 'Resend', html: '<p>Hi</p>',
    replyTo: 'r@example.com', attachments: [{ filename: 'a.txt', content: Buffer.from('hello') }] };
  let answer = await resend.emails.send(mail);
  assert.strictEqual(answer.error, null); assert.match(answer.data.id, /^msg_/);
  answer = await resend.batch.send([mail, mail]);
  assert.strictEqual(answer.data.data.length, 2);
  answer = await resend.emails.send({ ...mail, from: 'x@example.org' });
  assert.strictEqual(answer.error.name, 'validation_error');
  answer = await resend.emails.send({ ...mail, tags: [{ name: 'a', value: 'b' }] });
  assert.match(answer.error.message, /tags/);

  const postmark = require('postmark');
  const client = new postmark.ServerClient(key, { requestHost: new URL(base).host + '/compat/postmark', useHttps: false });
  const letter = { From: 'a@example.com', To: 'b@example.net', Subject: 'Postmark', TextBody: 'Hi' };
  let sent = await client.sendEmail(letter);
  assert.strictEqual(sent.ErrorCode, 0);
  sent = await client.sendEmailBatch([letter, { ...letter, To: 'nobody' }]);
  assert.deepStrictEqual(sent.map(one => one.ErrorCode), [0, 300]);
  await assert.rejects(client.sendEmail({ ...letter, From: 'x@example.org' }), error => error.code === 400);
  await assert.rejects(client.sendEmailWithTemplate({ From: 'a@example.com', To: 'b@example.net', TemplateId: 1, TemplateModel: {} }), error => error.code === 1101);

  const sendgrid = require('@sendgrid/mail');
  sendgrid.setApiKey(key);
  sendgrid.client.setDefaultRequest('baseUrl', base + '/compat/sendgrid/');
  const [response] = await sendgrid.send({ from: 'a@example.com', to: ['b@example.net', 'c@example.net'], subject: 'SendGrid', text: 'Hi' });
  assert.strictEqual(response.statusCode, 202); assert.match(response.headers['x-message-id'], /^msg_/);
  await assert.rejects(sendgrid.send({ from: 'x@example.org', to: 'b@example.net', subject: 's', text: 't' }), error => error.code === 403);
})().catch(error => { console.error(error); process.exit(1); });
";
    let (node, modules) = match node() {
        Ok(found) => found,
        Err(why) => skip!("{why:#}"),
    };
    let room = Room::new();
    let base = format!("http://{}", room.address());
    let mut command = Command::new(node);
    command.env("NODE_PATH", modules).env("BASE", &base).env("KEY", KEY);
    // The Resend client asks for it when it is loaded.
    command.env("RESEND_BASE_URL", format!("{base}/compat/resend"));
    run(command.args(["-e", SCRIPT])).must_succeed("the vendors' Node clients");
    room.until_captured(6);
}

#[test]
fn the_python_clients_of_the_vendors_work_as_they_are() {
    const SCRIPT: &str = "
import base64, os, urllib.error
base, key = os.environ['BASE'], os.environ['KEY']
def refused(call, say):
    try:
        call()
    except Exception as error:
        text = str(error) + str(getattr(error, 'body', '')) + str(getattr(error, 'error_code', ''))
        assert say in text, text
    else:
        raise AssertionError('not refused')

import resend
resend.api_key = key
mail = {'from': 'Shop <a@example.com>', 'to': ['b@example.net'], 'subject': 'Resend', 'html': '<p>Hi</p>',
        'attachments': [{'filename': 'a.txt', 'content': list(b'hello')}]}
assert resend.Emails.send(mail)['id'].startswith('msg_')
assert len(resend.Batch.send([mail, mail])['data']) == 2
refused(lambda: resend.Emails.send({**mail, 'from': 'x@example.org'}), 'application.from')

import postmark.sync
with postmark.sync.ServerClient(key, base_url=base + '/compat/postmark') as client:
    letter = {'sender': 'a@example.com', 'to': 'b@example.net', 'subject': 'Postmark', 'text_body': 'Hi'}
    assert client.outbound.send(letter).message_id
    refused(lambda: client.outbound.send({**letter, 'sender': 'x@example.org'}), 'application.from')

from sendgrid import SendGridAPIClient
from sendgrid.helpers.mail import Mail, Attachment, FileContent, FileName, FileType, Disposition
message = Mail(from_email='a@example.com', to_emails=['b@example.net'], subject='SendGrid', html_content='<p>Hi</p>')
message.attachment = Attachment(FileContent(base64.b64encode(b'hello').decode()), FileName('a.txt'), FileType('text/plain'), Disposition('attachment'))
client = SendGridAPIClient(key, host=base + '/compat/sendgrid')
assert client.send(message).status_code == 202
refused(lambda: client.send(Mail(from_email='x@example.org', to_emails='b@example.net', subject='s', html_content='t')), 'application.from')
";
    let (python, modules) = match python() {
        Ok(found) => found,
        Err(why) => skip!("{why:#}"),
    };
    let room = Room::new();
    let base = format!("http://{}", room.address());
    let mut command = Command::new(python);
    command.env("PYTHONPATH", modules).env("BASE", &base).env("KEY", KEY);
    command.env("RESEND_API_URL", format!("{base}/compat/resend"));
    run(command.args(["-c", SCRIPT])).must_succeed("the vendors' Python clients");
    room.until_captured(5);
}
