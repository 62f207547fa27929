use super::*;
use std::net::IpAddr;

fn now() -> Timestamp {
    Timestamp::from_secs(1_795_526_426)
}

fn draft(name: &str, from: &[&str]) -> ApplicationDraft {
    ApplicationDraft {
        name: Some(name.to_owned()),
        from: Some(from.iter().map(|&from| from.to_owned()).collect()),
        ..ApplicationDraft::default()
    }
}

fn application(number: u128, delivery: DeliveryDraft) -> Application {
    let draft = ApplicationDraft { delivery: Some(delivery), ..draft("shop", &["*@example.com"]) };
    Application {
        id: ApplicationId::new(now(), number),
        tenant: TenantId::new(now(), 1),
        settings: draft.create().unwrap(),
        version: 1,
        created_at: now(),
        updated_at: now(),
    }
}

fn parts(mode: InstanceMode) -> ControlParts {
    let application = application(1, DeliveryDraft::Live);
    let tenant = Tenant { id: application.tenant, name: "default".into(), created_at: now() };
    let credential = Credential {
        id: CredentialId::new(now(), 1),
        application: application.id,
        username: "shop-1".into(),
        verifier: "".into(),
        name: "".into(),
        created_at: now(),
        expires_at: None,
        revoked_at: None,
    };
    let key = ApiKey {
        id: KeyId::new(now(), 1),
        tenant: tenant.id,
        application: Some(application.id),
        name: "".into(),
        environment: Environment::Live,
        hash: KeyHash([1; 32]),
        hint: "pr_live_ab".into(),
        scopes: Scopes::OF_AN_APPLICATION,
        networks: vec!["10.0.0.0/8".parse().unwrap()],
        created_at: now(),
        expires_at: Some(now() + std::time::Duration::from_secs(60)),
        revoked_at: None,
    };
    ControlParts {
        mode,
        tenants: vec![tenant],
        applications: vec![application],
        credentials: vec![credential],
        keys: vec![key],
    }
}

#[test]
fn what_is_wrong_is_named_by_its_field() {
    let check = |draft: ApplicationDraft, fields: &[&str]| {
        let violations = draft.create().unwrap_err();
        let named: Vec<_> = violations.0.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(named, fields, "{violations}");
    };
    check(ApplicationDraft::default(), &["name", "from"]);
    check(draft("", &["*@example.com"]), &["name"]);
    check(draft(" shop", &["*@example.com"]), &["name"]);
    check(draft("a\r\nb", &["*@example.com"]), &["name"]);
    check(draft("shop", &[]), &["from"]);
    check(draft("shop", &["*"]), &["from"]);
    check(draft("shop", &["*@example.com", "example.com", "*@*.x y"]), &["from[1]", "from[2]"]);
    let mut wrong = draft("shop", &["*@example.com"]);
    wrong.delivery = Some(DeliveryDraft::Redirect("nobody".into()));
    wrong.message_size_max_bytes = Some(Some(1));
    wrong.expires_at = Some(Some("tomorrow".into()));
    check(wrong.clone(), &["delivery.redirect", "message_size_max_bytes", "expires_at"]);
    wrong.delivery = Some(DeliveryDraft::Only(vec![]));
    check(wrong, &["delivery.only", "message_size_max_bytes", "expires_at"]);
    assert!(draft("Büro 2", &["*@example.com", "*@*.example.com", "a@example.org"]).create().is_ok());

    let key = KeyDraft {
        scopes: Some(vec!["emails:send".into(), "everything".into()]),
        networks: vec!["10.0.0.0/33".into()],
        ..KeyDraft::default()
    };
    let violations = key.check().unwrap_err().to_string();
    assert!(violations.starts_with("scopes[1]: there is no scope \"everything\"; there are emails:send, "));
    assert!(violations.contains("; networks[0]: "), "{violations}");
}

#[test]
fn a_change_touches_only_what_it_names() {
    let before = draft("shop", &["*@example.com"]).create().unwrap();
    let change = ApplicationDraft { enabled: Some(false), ..ApplicationDraft::default() };
    let after = change.change(&before).unwrap();
    assert_eq!(after, ApplicationSettings { enabled: false, ..before.clone() });
    let change = ApplicationDraft { from: Some(vec!["nobody".into()]), ..ApplicationDraft::default() };
    assert!(change.change(&before).is_err());
}

#[test]
fn nothing_leaves_an_instance_in_the_sandbox_nor_by_a_test_key() {
    let check = |mode, delivery, environment, recipient: &str, leaves: &str| {
        let control = Control::new(parts(mode)).unwrap();
        let application = application(1, delivery);
        let gate = control.gate(&application, environment, &recipient.parse().unwrap());
        let gate = match gate {
            Gate::Open => "open".to_owned(),
            Gate::Captured => "captured".to_owned(),
            Gate::Redirected(to) => to.to_string(),
        };
        assert_eq!(gate, leaves);
    };
    use Environment::{Live as Key, Test};
    let only = || DeliveryDraft::Only(vec!["*@example.org".into()]);
    check(InstanceMode::Sandbox, DeliveryDraft::Live, Key, "a@example.net", "captured");
    check(
        InstanceMode::Sandbox,
        DeliveryDraft::Redirect("a@b.example".into()),
        Key,
        "a@c.example",
        "captured",
    );
    check(InstanceMode::Live, DeliveryDraft::Live, Test, "a@example.net", "captured");
    check(InstanceMode::Live, DeliveryDraft::Live, Key, "a@example.net", "open");
    check(InstanceMode::Live, DeliveryDraft::Sandbox, Key, "a@example.net", "captured");
    check(
        InstanceMode::Live,
        DeliveryDraft::Redirect("a@b.example".into()),
        Key,
        "a@c.example",
        "a@b.example",
    );
    check(InstanceMode::Live, only(), Key, "a@example.org", "open");
    check(InstanceMode::Live, only(), Key, "a@sub.example.org", "captured");
}

#[test]
fn an_application_sends_only_as_whom_it_may_and_while_it_may() {
    let mut shop = application(1, DeliveryDraft::Live);
    let may = |shop: &Application, from: &str| shop.may_send_as(Writer::From, from.parse().ok().as_ref());
    assert_eq!(may(&shop, "a@example.com"), Ok(()));
    let denied = may(&shop, "a@sub.example.com").unwrap_err();
    assert_eq!(denied.rule(), "application.from");
    let text = denied.to_string();
    assert!(text.starts_with(
        "Application shop may not send with the From header a@sub.example.com (rule application.from); it may \
         send as *@example.com."
    ));
    assert!(matches!(shop.may_send_as(Writer::Envelope, None), Err(Denied::NullSender { .. })));
    assert_eq!(shop.may_send(now()), Ok(()));
    shop.settings.expires_at = Some(now());
    assert!(matches!(shop.may_send(now()), Err(Denied::Expired { .. })));
    shop.settings.enabled = false;
    assert!(matches!(shop.may_send(now()), Err(Denied::Disabled { .. })));
    shop.settings.message_size_max_bytes = Some(2_000);
    assert!(shop.may_send_size(2_000).is_ok() && shop.may_send_size(2_001).is_err());
}

#[test]
fn a_key_is_taken_from_its_networks_until_it_ends() {
    let (inside, outside): (IpAddr, IpAddr) = ("10.1.2.3".parse().unwrap(), "192.0.2.1".parse().unwrap());
    let mut parts = parts(InstanceMode::Live);
    let control = Control::new(parts.clone()).unwrap();
    let hash = KeyHash([1; 32]);
    assert!(control.key(&hash, inside, now()).is_ok());
    assert_eq!(control.key(&hash, outside, now()).unwrap_err(), KeyRefusal::Network(outside));
    assert_eq!(control.key(&KeyHash([2; 32]), inside, now()).unwrap_err(), KeyRefusal::Unknown);
    let later = now() + std::time::Duration::from_secs(60);
    assert_eq!(control.key(&hash, inside, later).unwrap_err(), KeyRefusal::Expired);
    parts.keys[0].revoked_at = Some(now());
    assert_eq!(Control::new(parts).unwrap().key(&hash, inside, now()).unwrap_err(), KeyRefusal::Unknown);
}

#[test]
fn what_does_not_fit_together_is_refused_whole() {
    let check = |change: &dyn Fn(&mut ControlParts), field: &str| {
        let mut parts = parts(InstanceMode::Live);
        change(&mut parts);
        let violations = Control::new(parts).unwrap_err();
        assert_eq!(violations.0[0].field, field);
    };
    check(&|parts| parts.tenants.clear(), "tenant");
    check(
        &|parts| {
            let twin = Application { id: ApplicationId::new(now(), 2), ..parts.applications[0].clone() };
            parts.applications.push(twin);
        },
        "name",
    );
    check(
        &|parts| {
            let twin = Credential { id: CredentialId::new(now(), 2), ..parts.credentials[0].clone() };
            parts.credentials.push(twin);
        },
        "username",
    );
    check(&|parts| parts.keys.push(ApiKey { id: KeyId::new(now(), 2), ..parts.keys[0].clone() }), "hash");
    check(&|parts| parts.credentials[0].application = ApplicationId::new(now(), 9), "application");
}

#[test]
fn scopes_are_text_outside() {
    let scopes = Scopes::OF_AN_APPLICATION;
    assert_eq!(scopes.to_string(), "emails:send, emails:read, content:read");
    assert!(scopes.are_within(Scopes::ALL) && !Scopes::ALL.are_within(scopes));
    assert_eq!(Scopes::ALL.iter().count(), Scope::ALL.len());
}

#[test]
fn a_change_reaches_the_logins_of_its_application() {
    let control = Control::new(parts(InstanceMode::Live)).unwrap();
    let mut shop = Application::clone(control.applications().next().unwrap());
    shop.settings.enabled = false;
    shop.settings.name = "store".into();
    let after = control.with(&[Change::Application(shop.clone())]).unwrap();
    assert!(!after.login("shop-1").unwrap().application.settings.enabled);
    assert!(control.login("shop-1").unwrap().application.settings.enabled, "the old one is as it was");
    assert!(after.application_named(shop.tenant, "shop").is_none());
    assert_eq!(after.application_named(shop.tenant, "store").unwrap().id, shop.id);
    let gone = after.with(&[Change::RemoveApplication(shop.id)]).unwrap();
    assert!(gone.login("shop-1").is_none() && gone.keys().count() == 0);
    assert_eq!(Control::new(after.parts()).unwrap().parts(), after.parts());
}
