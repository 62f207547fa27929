use super::*;
use postrider_model::control::{
    Application, ApplicationDraft, ApplicationSettings, Credential, DeliveryMode, InstanceMode, Violations,
};
use postrider_model::{ApplicationId, CredentialId};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const START_S: u64 = 1_795_526_426;

fn registry(dir: &Path) -> Registry {
    Registry::start(dir, || Timestamp::from_secs(START_S), |_| {}).unwrap()
}

fn settings(name: &str) -> ApplicationSettings {
    let draft = ApplicationDraft {
        name: Some(name.into()),
        from: Some(vec!["*@example.com".into()]),
        ..ApplicationDraft::default()
    };
    draft.create().unwrap()
}

fn application(control: &Control, now: Timestamp, number: u128, name: &str) -> Application {
    Application {
        id: ApplicationId::new(now, number),
        tenant: control.tenants().next().unwrap().id,
        settings: settings(name),
        version: 1,
        created_at: now,
        updated_at: now,
    }
}

fn credential(application: &Application, number: u128, username: &str) -> Credential {
    Credential {
        id: CredentialId::new(application.created_at, number),
        application: application.id,
        username: username.into(),
        verifier: "scram-sha-256:4096:…".into(),
        name: "".into(),
        created_at: application.created_at,
        expires_at: None,
        revoked_at: None,
    }
}

fn create(registry: &Registry, number: u128, name: &'static str) -> Result<ApplicationId, StoreError> {
    let act = registry.act(move |control, now| {
        let application = application(control, now, number, name);
        let (id, credential) = (application.id, credential(&application, number, &format!("{name}-1")));
        let entry = Entry::new("operator", "application.create", id.to_string());
        Ok(Act {
            changes: vec![Change::Application(application), Change::Credential(credential)],
            entries: vec![entry],
            answer: id,
        })
    });
    act.wait()
}

#[test]
fn what_was_answered_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let before = registry(dir.path());
    let id = create(&before, 1, "shop").unwrap();
    let live = before.act(|control, now| {
        let mut shop = Application::clone(control.applications().next().unwrap());
        shop.settings.delivery = DeliveryMode::Redirect("test@example.com".parse().unwrap());
        shop.settings.expires_at = Some(now);
        shop.settings.message_size_max_bytes = Some(5_000);
        let changes = vec![Change::Mode(InstanceMode::Live), Change::Application(shop)];
        Ok(Act { changes, entries: vec![], answer: () })
    });
    live.wait().unwrap();
    let parts = before.current().parts();
    drop(before);
    let after = registry(dir.path());
    assert_eq!(after.current().parts(), parts);
    assert_eq!(after.current().login("shop-1").unwrap().application.id, id);
    assert_eq!(after.current().mode(), InstanceMode::Live);
}

#[test]
fn an_invalid_change_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(dir.path());
    create(&registry, 1, "shop").unwrap();
    let before = registry.current().parts();
    let error = create(&registry, 2, "shop").unwrap_err();
    assert!(matches!(&error, StoreError::Refused(Violations(all)) if all[0].field == "name"), "{error}");
    let refused = registry.act(|control, now| {
        let other = application(control, now, 3, "other");
        let twice = credential(&other, 3, "shop-1");
        let changes = vec![Change::Application(other), Change::Credential(twice)];
        Ok(Act { changes, entries: vec![Entry::new("x", "application.create", "y")], answer: () })
    });
    assert!(matches!(refused.wait(), Err(StoreError::Refused(_))));
    assert_eq!(registry.current().parts(), before);
    assert_eq!(registry.audit(None, None, None, 10).wait().unwrap().items.len(), 2, "tenant and shop");
}

#[test]
fn mail_goes_on_with_the_last_answer_when_the_database_is_no_database() {
    let dir = tempfile::tempdir().unwrap();
    let before = registry(dir.path());
    create(&before, 1, "shop").unwrap();
    let parts = before.current().parts();
    drop(before);
    let path = dir.path().join(FILE_NAME);
    let good = std::fs::read(&path).unwrap();
    for name in ["control.db-wal", "control.db-shm"] {
        let _ = std::fs::remove_file(dir.path().join(name));
    }
    std::fs::write(&path, vec![0x55; 8_192]).unwrap();
    let during = registry(dir.path());
    assert_eq!(during.current().parts(), parts);
    assert!(matches!(create(&during, 2, "late"), Err(StoreError::Unavailable(_))));
    assert!(matches!(during.verify_audit().wait(), Err(StoreError::Unavailable(_))));
    // Back again: the next change opens it.
    std::fs::write(&path, good).unwrap();
    create(&during, 2, "late").unwrap();
    assert_eq!(during.current().applications().count(), 2);
}

#[test]
fn an_audit_log_that_was_touched_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let day = std::sync::Arc::new(AtomicU64::new(START_S));
    let clock = {
        let day = day.clone();
        move || Timestamp::from_secs(day.load(Ordering::Relaxed))
    };
    let registry = Registry::start(dir.path(), clock, |_| {}).unwrap();
    create(&registry, 1, "shop").unwrap();
    create(&registry, 2, "crm").unwrap();
    day.fetch_add(86_400, Ordering::Relaxed);
    create(&registry, 3, "erp").unwrap();
    let report = registry.verify_audit().wait().unwrap();
    assert_eq!((report.intact, report.entries, report.anchors), (true, 4, 2), "{report:?}");
    let page = registry.audit(None, None, None, 3).wait().unwrap();
    assert_eq!((page.items[0].seq, page.items.len(), page.next), (4, 3, Some(2)));
    let rest = registry.audit(page.next, None, None, 3).wait().unwrap();
    assert_eq!((rest.items[0].seq, rest.next), (1, None));
    drop(registry);

    let path = dir.path().join(FILE_NAME);
    let tamper = |sql: &str| {
        let mut database = Sqlite::open(&path).unwrap();
        assert!(database.script("UPDATE audit SET actor = 'nobody'").is_err(), "append-only");
        assert!(database.script("DELETE FROM audit").is_err(), "append-only");
        database.script("DROP TRIGGER audit_is_never_changed; DROP TRIGGER audit_is_never_deleted;").unwrap();
        database.script(sql).unwrap();
        let anchors = Anchors::new(dir.path()).read().unwrap();
        let report = audit::verify(&mut database, &anchors).unwrap();
        database.script("DROP TABLE audit").unwrap();
        assert!(!report.intact);
        report.problems
    };
    let good = std::fs::read(&path).unwrap();
    let restore = || std::fs::write(&path, &good).unwrap();
    let check = |sql: &str, says: &str| {
        restore();
        let problems = tamper(sql);
        assert!(problems.iter().any(|problem| problem.contains(says)), "{sql}: {problems:?}");
    };
    check("UPDATE audit SET actor = 'nobody' WHERE seq = 2", "entry 2 was changed");
    check("DELETE FROM audit WHERE seq = 2", "between entries 1 and 3");
    check("DELETE FROM audit WHERE seq = 4", "entry 4, which was anchored on 2026-11-25, is missing");

    // Rewritten as a whole, with hashes that fit.
    restore();
    let mut database = Sqlite::open(&path).unwrap();
    database.script("DROP TRIGGER audit_is_never_deleted; DELETE FROM audit;").unwrap();
    for n in 0..4 {
        let entry = Entry::new("somebody else", "application.create", format!("app_{n}"));
        audit::append(&mut database, &entry, Timestamp::from_secs(START_S + n)).unwrap();
    }
    assert!(audit::verify(&mut database, &[]).unwrap().intact, "the chain itself holds");
    let report = audit::verify(&mut database, &Anchors::new(dir.path()).read().unwrap()).unwrap();
    assert!(report.problems[0].contains("was rewritten"), "{report:?}");
}

#[test]
fn uses_of_keys_are_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let before = registry(dir.path());
    let key = before.act(|control, now| {
        let key = postrider_model::control::ApiKey {
            id: KeyId::new(now, 1),
            tenant: control.tenants().next().unwrap().id,
            application: None,
            name: "".into(),
            environment: postrider_model::control::Environment::Test,
            hash: postrider_model::control::KeyHash([7; 32]),
            hint: "pr_test_abcd".into(),
            scopes: postrider_model::control::Scopes::ALL,
            networks: vec!["10.0.0.0/8".parse().unwrap()],
            created_at: now,
            expires_at: None,
            revoked_at: None,
        };
        Ok(Act { changes: vec![Change::Key(key.clone())], entries: vec![], answer: key.id })
    });
    let key = key.wait().unwrap();
    before.note_use(key, Timestamp::from_secs(START_S + 5));
    let parts = before.current().parts();
    drop(before);
    let after = registry(dir.path());
    assert_eq!(after.last_use(key), Some(Timestamp::from_secs(START_S + 5)));
    assert_eq!(after.current().parts(), parts);
}

/// Prints what a change costs beside many applications. The bound is generous: it is to notice a change that
/// reads or writes everything, not to measure.
#[test]
fn one_change_beside_many_applications_is_quick() {
    let count: u128 = if std::env::var_os("POSTRIDER_TEST_LONG").is_some() { 10_000 } else { 1_000 };
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(dir.path());
    let many = registry.act(move |control, now| {
        let mut changes = Vec::new();
        for number in 0..count {
            let application = application(control, now, number, &format!("app {number}"));
            changes.push(Change::Credential(credential(&application, number, &format!("app{number}"))));
            changes.insert(changes.len() - 1, Change::Application(application));
        }
        Ok(Act { changes, entries: vec![], answer: () })
    });
    many.wait().unwrap();
    let started = Instant::now();
    create(&registry, count + 1, "one more").unwrap();
    let took = started.elapsed();
    println!("a change beside {count} applications: {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}
