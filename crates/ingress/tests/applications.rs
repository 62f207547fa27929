//! Applications by SMTP: who logs in, as whom it may send, whom that reaches, and how it is cut off.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use postrider_auth::{Directory, Verifier, encode_challenge};
use postrider_ingress::{Keeper, Session, SessionContext, Wants, example};
use postrider_model::control::{
    Application, ApplicationDraft, Change, Control, ControlParts, Credential, DeliveryDraft, InstanceMode,
    Tenant,
};
use postrider_model::snapshot::Listener;
use postrider_model::{ApplicationId, CredentialId, TenantId, Timestamp};
use postrider_spool::Ticket;
use std::sync::Arc;
use std::time::Duration;

const NOW: Timestamp = Timestamp::from_secs(1_795_526_426);

struct Client {
    session: Session,
    engine: Keeper,
    control: Arc<Control>,
    now: Timestamp,
}

fn control(delivery: DeliveryDraft) -> Control {
    let draft = ApplicationDraft {
        name: Some("shop".into()),
        from: Some(vec!["*@example.com".into()]),
        delivery: Some(delivery),
        ..ApplicationDraft::default()
    };
    let tenant = Tenant { id: TenantId::new(NOW, 1), name: "default".into(), created_at: NOW };
    let application = Application {
        id: ApplicationId::new(NOW, 1),
        tenant: tenant.id,
        settings: draft.create().unwrap(),
        version: 1,
        created_at: NOW,
        updated_at: NOW,
    };
    let credential = |number, username: &str, password: &str| Credential {
        id: CredentialId::new(NOW, number),
        application: application.id,
        username: username.into(),
        verifier: Verifier::new(password, &[7; 16], 4096).unwrap().to_string().into(),
        name: "".into(),
        created_at: NOW,
        expires_at: None,
        revoked_at: None,
    };
    Control::new(ControlParts {
        mode: InstanceMode::Live,
        tenants: vec![tenant],
        credentials: vec![credential(1, "shop-1", "old"), credential(2, "shop-2", "new")],
        applications: vec![application],
        keys: vec![],
    })
    .unwrap()
}

impl Client {
    /// At a sandbox listener, where AUTH is offered in clear.
    fn new(control: Control) -> Self {
        let (mut context, engine) = example(NOW);
        let sandbox = Listener { sandbox: true, legacy: None, ..Listener::clone(&context.listener) };
        let control = Arc::new(control);
        context = SessionContext {
            listener: Arc::new(sandbox),
            directory: directory(&control),
            control: control.clone(),
            ..context
        };
        let mut client = Client { session: Session::new(context), engine, control, now: NOW };
        assert!(client.replies().starts_with("220 "));
        assert!(client.say("EHLO c\r\n").contains("AUTH PLAIN LOGIN"));
        client
    }

    fn replies(&mut self) -> String {
        String::from_utf8(std::mem::take(self.session.output())).unwrap()
    }

    fn say(&mut self, input: impl AsRef<[u8]>) -> String {
        let mut input = input.as_ref();
        loop {
            let taken = self.session.receive(self.now, input, &mut self.engine);
            input = &input[taken..];
            if input.is_empty() {
                return self.replies();
            }
            assert_ne!(taken, 0, "it takes no more");
        }
    }

    fn log_in(&mut self, username: &str, password: &str) -> String {
        let response = encode_challenge(format!("\0{username}\0{password}").as_bytes());
        let told = self.say(format!("AUTH PLAIN {response}\r\n"));
        match self.session.take_auth_job() {
            None => told,
            Some(job) => {
                self.session.auth_verdict(self.now, job.verify());
                self.say("")
            }
        }
    }

    fn send(&mut self, from: &str, to: &[&str], header: &str) -> String {
        let mut said = self.say(format!("MAIL FROM:<{from}>\r\n"));
        for to in to {
            if said.starts_with("250 ") {
                said = self.say(format!("RCPT TO:<{to}>\r\n"));
            }
        }
        if !said.starts_with("250 ") {
            self.say("RSET\r\n");
            return said;
        }
        self.say("DATA\r\n");
        let said = self.say(format!("{header}\r\n\r\nhello\r\n.\r\n"));
        let Some(draft) = self.engine.drafts.last().filter(|_| said.is_empty()) else { return said };
        self.session.durable(self.now, Ticket(draft.message.number.0), Ok(()));
        self.say("")
    }

    fn change(&mut self, changes: &[Change]) -> bool {
        self.control = Arc::new(self.control.with(changes).unwrap());
        self.session.reconfigure(self.now, &self.control, &directory(&self.control), &mut self.engine)
    }

    fn application(&self) -> Application {
        Application::clone(self.control.applications().next().unwrap())
    }

    /// Recipients of the last message, those that are captured in brackets.
    fn recipients(&self) -> Vec<String> {
        let recipients = &self.engine.drafts.last().unwrap().message.recipients;
        let text = recipients.iter().map(|recipient| match recipient.captured {
            true => format!("[{}]", recipient.mailbox),
            false => recipient.mailbox.to_string(),
        });
        text.collect()
    }
}

fn directory(control: &Control) -> Arc<Directory> {
    Arc::new(Directory::of_control(control, None, [1; 32]).0.with_anyone())
}

#[test]
fn the_from_pair_must_be_allowed() {
    let mut client = Client::new(control(DeliveryDraft::Live));
    assert!(client.log_in("shop-1", "wrong").starts_with("535 5.7.8 "));
    assert!(client.log_in("shop-1", "old").starts_with("235 "));
    assert!(
        client.send("a@example.com", &["b@d.example"], "From: A <a@example.com>").starts_with("250 2.0.0 ")
    );
    assert_eq!(client.recipients(), ["b@d.example"]);
    let message = &client.engine.drafts.last().unwrap().message;
    assert_eq!(*message.account, client.application().id.to_string(), "the id outlives the name");

    let mut refused = |from: &str, header: &str, what: &str| {
        let said = client.send(from, &["b@d.example"], header);
        assert!(said.starts_with("550 5.7.1 ") && said.contains(what), "{from} {header}: {said}");
        assert!(said.contains("(rule application."), "{said}");
    };
    let envelope =
        "the envelope sender a@sub.example.com (rule application.from); it may send as *@example.com";
    refused("a@sub.example.com", "From: a@example.com", envelope);
    refused("a@example.com", "From: a@example.com, c@other.example", "the From header c@other.example");
    refused(
        "a@example.com",
        "From: a@example.com\r\nSender: x@other.example",
        "the Sender header x@other.example",
    );
    refused("", "From: a@example.com", "null reverse-path");
    assert_eq!(client.engine.drafts.len(), 1);

    let mut application = client.application();
    application.settings.null_sender = true;
    assert!(!client.change(&[Change::Application(application)]), "the session goes on");
    assert!(client.send("", &["b@d.example"], "From: a@example.com").starts_with("250 "));
    assert!(client.send("", &["b@d.example"], "From: a@other.example").starts_with("550 "));
}

#[test]
fn what_is_not_let_out_is_captured_and_never_refused() {
    let check = |mode, delivery, expected: &[&str]| {
        let control = control(delivery).with(&[Change::Mode(mode)]).unwrap();
        let mut client = Client::new(control);
        client.log_in("shop-1", "old");
        let said = client.send("a@example.com", &["b@d.example", "c@e.example"], "From: a@example.com");
        assert!(said.starts_with("250 "), "{said}");
        assert_eq!(client.recipients(), expected);
    };
    let both = ["[b@d.example]", "[c@e.example]"];
    check(InstanceMode::Live, DeliveryDraft::Live, &["b@d.example", "c@e.example"]);
    check(InstanceMode::Live, DeliveryDraft::Sandbox, &both);
    check(InstanceMode::Live, DeliveryDraft::Redirect("t@f.example".into()), &["t@f.example"]);
    check(
        InstanceMode::Live,
        DeliveryDraft::Only(vec!["*@d.example".into()]),
        &["b@d.example", "[c@e.example]"],
    );
    for delivery in [DeliveryDraft::Live, DeliveryDraft::Redirect("t@f.example".into())] {
        check(InstanceMode::Sandbox, delivery, &both);
    }
}

#[test]
fn a_redirected_message_says_for_whom_it_was() {
    let mut client = Client::new(control(DeliveryDraft::Redirect("t@f.example".into())));
    client.log_in("shop-1", "old");
    let all: Vec<_> = (0..70).map(|n| format!("b{n}@d.example")).collect();
    let to: Vec<_> = all.iter().map(String::as_str).collect();
    client.send("a@example.com", &to, "From: a@example.com");
    let draft = client.engine.drafts.last().unwrap();
    let content = String::from_utf8(client.engine.content(draft)).unwrap();
    assert!(content.contains("\r\nX-Postrider-Redirected-For:\r\n\t<b0@d.example>\r\n"), "{content}");
    assert!(content.contains("\t<b49@d.example>\r\n\tand 20 more\r\n"), "{content}");
}

#[test]
fn whoever_has_no_login_is_captured_at_a_sandbox_listener() {
    let mut client = Client::new(control(DeliveryDraft::Live));
    assert!(client.log_in("anyone", "anything").starts_with("235 "));
    assert!(client.send("a@b.example", &["b@d.example"], "From: a@b.example").starts_with("250 "));
    assert_eq!(client.recipients(), ["[b@d.example]"]);
}

#[test]
fn the_kill_switch_cuts_a_session_wherever_it_is() {
    let kill = |client: &mut Client| {
        let mut application = client.application();
        application.settings.enabled = false;
        client.change(&[Change::Application(application)])
    };
    // Between two messages.
    let mut client = Client::new(control(DeliveryDraft::Live));
    client.log_in("shop-1", "old");
    assert!(kill(&mut client));
    let said = client.replies();
    assert!(said.starts_with("421 4.7.0 Application shop is disabled (rule application.enabled)"), "{said}");
    assert_eq!(client.session.wants(), Wants::Close);

    // In the midst of one.
    let mut client = Client::new(control(DeliveryDraft::Live));
    client.log_in("shop-1", "old");
    client.say("MAIL FROM:<a@example.com>\r\nRCPT TO:<b@d.example>\r\nDATA\r\n");
    client.say("From: a@example.com\r\n\r\nhal");
    assert!(kill(&mut client));
    let said = client.replies();
    assert!(said.starts_with("421 4.7.0 "), "{said:?}");
    assert_eq!((client.session.wants(), client.engine.drafts.len()), (Wants::Close, 0));

    // One whose 250 is owed gets it first.
    let mut client = Client::new(control(DeliveryDraft::Live));
    client.log_in("shop-1", "old");
    client.say("MAIL FROM:<a@example.com>\r\nRCPT TO:<b@d.example>\r\nDATA\r\n");
    assert_eq!(client.say("From: a@example.com\r\n\r\nhi\r\n.\r\n"), "");
    assert!(kill(&mut client));
    assert_eq!(client.replies(), "");
    client.session.durable(client.now, Ticket(1), Ok(()));
    let said = client.replies();
    assert!(said.starts_with("250 2.0.0 ") && said.contains("\r\n421 4.7.0 "), "{said}");

    // New ones are refused, and told why only after the right password.
    let mut client = Client::new((*client.control).clone());
    assert!(client.log_in("shop-1", "wrong").starts_with("535 5.7.8 "));
    let said = client.log_in("shop-1", "old");
    assert!(said.starts_with("525 5.7.13 Application shop is disabled"), "{said}");
}

#[test]
fn a_revoked_login_ends_its_own_sessions_only() {
    let sessions = ["shop-1", "shop-2"].map(|username| {
        let mut client = Client::new(control(DeliveryDraft::Live));
        let password = if username == "shop-1" { "old" } else { "new" };
        assert!(client.log_in(username, password).starts_with("235 "));
        client
    });
    let [mut old, mut new] = sessions;
    let credential = old.control.login("shop-1").unwrap().credential.clone();
    let revoked = [Change::Credential(Credential { revoked_at: Some(NOW), ..credential })];
    assert!(old.change(&revoked));
    assert!(!new.change(&revoked));
    assert!(new.send("a@example.com", &["b@d.example"], "From: a@example.com").starts_with("250 "));
    let mut again = Client::new((*old.control).clone());
    assert!(again.log_in("shop-1", "old").starts_with("535 5.7.8 "), "not even at a sandbox listener");
}

#[test]
fn what_ends_by_itself_ends_for_sessions_too() {
    let mut client = Client::new(control(DeliveryDraft::Live));
    client.log_in("shop-1", "old");
    let mut application = client.application();
    application.settings.expires_at = Some(NOW + Duration::from_secs(60));
    application.settings.message_size_max_bytes = Some(2_000);
    assert!(!client.change(&[Change::Application(application)]));
    let said = client.say("MAIL FROM:<a@example.com> SIZE=2001\r\n");
    assert!(said.starts_with("552 5.3.4 Application shop may send messages of 2000 octets"), "{said}");
    let long = format!("From: a@example.com\r\nX: {}", "x".repeat(2_000));
    assert!(client.send("a@example.com", &["b@d.example"], &long).starts_with("552 5.3.4 "));
    client.now = NOW + Duration::from_secs(60);
    let said = client.say("MAIL FROM:<a@example.com>\r\n");
    assert!(said.starts_with("550 5.7.1 Application shop expired at 2026-11-24T13:21:26.000Z"), "{said}");
}
