//! The nouns of the control plane as rows.

use crate::StoreError;
use crate::session::{Row, Session, Value};
use postrider_model::control::{
    ApiKey, Application, ApplicationSettings, Change, ControlParts, Credential, InstanceMode, Tenant,
};
use postrider_model::{KeyId, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

const MODE: &str = "mode";

/// Reads everything.
pub(crate) fn load(session: &mut dyn Session) -> Result<ControlParts, StoreError> {
    let mode = session.query("SELECT value FROM setting WHERE name = ?1", &[MODE.into()])?.pop();
    let mode = match mode.map(|mut row| row.text()).transpose()?.as_deref() {
        None | Some("sandbox") => InstanceMode::Sandbox,
        Some("live") => InstanceMode::Live,
        Some(other) => return Err(StoreError::Damaged(format!("{other:?} is no mode of an instance"))),
    };
    let all = |session: &mut dyn Session, sql| session.query(sql, &[]);
    Ok(ControlParts {
        mode,
        tenants: each(all(session, "SELECT id, name, created_at FROM tenant ORDER BY id")?, tenant)?,
        applications: each(
            all(
                session,
                "SELECT id, tenant, name, owner, senders, delivery, enabled, null_sender, message_size_max, \
                 expires_at, version, created_at, updated_at FROM application ORDER BY id",
            )?,
            application,
        )?,
        credentials: each(
            all(
                session,
                "SELECT id, application, username, verifier, name, created_at, expires_at, revoked_at \
                 FROM credential ORDER BY id",
            )?,
            credential,
        )?,
        keys: each(
            all(
                session,
                "SELECT id, tenant, application, name, environment, hash, hint, scopes, networks, created_at, \
                 expires_at, revoked_at FROM api_key ORDER BY id",
            )?,
            api_key,
        )?,
    })
}

fn each<T>(
    mut rows: Vec<Row>,
    read: impl Fn(&mut Row) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    rows.iter_mut().map(read).collect()
}

fn tenant(row: &mut Row) -> Result<Tenant, StoreError> {
    Ok(Tenant { id: row.parsed()?, name: row.text()?.into(), created_at: time(row)? })
}

fn application(row: &mut Row) -> Result<Application, StoreError> {
    Ok(Application {
        id: row.parsed()?,
        tenant: row.parsed()?,
        settings: ApplicationSettings {
            name: row.text()?.into(),
            owner: row.text()?.into(),
            from: json(row)?,
            delivery: json(row)?,
            enabled: row.int()? != 0,
            null_sender: row.int()? != 0,
            message_size_max_bytes: row.optional_number()?,
            expires_at: optional_time(row)?,
        },
        version: row.number()?,
        created_at: time(row)?,
        updated_at: time(row)?,
    })
}

fn credential(row: &mut Row) -> Result<Credential, StoreError> {
    Ok(Credential {
        id: row.parsed()?,
        application: row.parsed()?,
        username: row.text()?.into(),
        verifier: row.text()?.into(),
        name: row.text()?.into(),
        created_at: time(row)?,
        expires_at: optional_time(row)?,
        revoked_at: optional_time(row)?,
    })
}

fn api_key(row: &mut Row) -> Result<ApiKey, StoreError> {
    Ok(ApiKey {
        id: row.parsed()?,
        tenant: row.parsed()?,
        application: match row.optional_text()? {
            None => None,
            Some(text) => Some(text.parse().map_err(|error| StoreError::Damaged(format!("{error}")))?),
        },
        name: row.text()?.into(),
        environment: json(row)?,
        hash: row.parsed()?,
        hint: row.text()?.into(),
        scopes: json(row)?,
        networks: json(row)?,
        created_at: time(row)?,
        expires_at: optional_time(row)?,
        revoked_at: optional_time(row)?,
    })
}

fn time(row: &mut Row) -> Result<Timestamp, StoreError> {
    row.number().map(Timestamp::from_micros)
}

fn optional_time(row: &mut Row) -> Result<Option<Timestamp>, StoreError> {
    Ok(row.optional_number()?.map(Timestamp::from_micros))
}

fn micros(time: Option<Timestamp>) -> Value {
    time.map(Timestamp::as_micros).into()
}

/// Lists and modes are columns of JSON: they are read and written whole, and never searched.
fn json<T: DeserializeOwned>(row: &mut Row) -> Result<T, StoreError> {
    let text = row.text()?;
    serde_json::from_str(&text).map_err(|error| StoreError::Damaged(format!("{text:?}: {error}")))
}

fn text_of(value: &impl Serialize) -> Result<Value, StoreError> {
    serde_json::to_string(value).map(Value::Text).map_err(|error| StoreError::Damaged(error.to_string()))
}

/// Writes a change.
pub(crate) fn write(session: &mut dyn Session, change: &Change) -> Result<(), StoreError> {
    match change {
        Change::Mode(mode) => {
            let sql = "INSERT INTO setting (name, value) VALUES (?1, ?2) \
                       ON CONFLICT (name) DO UPDATE SET value = excluded.value";
            session.execute(sql, &[MODE.into(), mode.name().into()])?;
        }
        Change::Tenant(tenant) => {
            let sql = "INSERT INTO tenant (id, name, created_at) VALUES (?1, ?2, ?3) \
                       ON CONFLICT (id) DO UPDATE SET name = excluded.name";
            let values =
                [tenant.id.to_string().into(), (&*tenant.name).into(), micros(Some(tenant.created_at))];
            session.execute(sql, &values)?;
        }
        Change::Application(application) => write_application(session, application)?,
        Change::RemoveApplication(id) => {
            let id = [Value::from(id.to_string())];
            session.execute("DELETE FROM credential WHERE application = ?1", &id)?;
            session.execute("DELETE FROM api_key WHERE application = ?1", &id)?;
            session.execute("DELETE FROM application WHERE id = ?1", &id)?;
        }
        Change::Credential(credential) => write_credential(session, credential)?,
        Change::Key(key) => write_key(session, key)?,
    }
    Ok(())
}

fn write_application(session: &mut dyn Session, application: &Application) -> Result<(), StoreError> {
    let sql = "INSERT INTO application (id, tenant, name, owner, senders, delivery, enabled, null_sender, \
               message_size_max, expires_at, version, created_at, updated_at) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) \
               ON CONFLICT (id) DO UPDATE SET name = excluded.name, owner = excluded.owner, \
               senders = excluded.senders, delivery = excluded.delivery, enabled = excluded.enabled, \
               null_sender = excluded.null_sender, message_size_max = excluded.message_size_max, \
               expires_at = excluded.expires_at, version = excluded.version, updated_at = excluded.updated_at";
    let settings = &application.settings;
    let values = [
        application.id.to_string().into(),
        application.tenant.to_string().into(),
        (&*settings.name).into(),
        (&*settings.owner).into(),
        text_of(&settings.from)?,
        text_of(&settings.delivery)?,
        settings.enabled.into(),
        settings.null_sender.into(),
        settings.message_size_max_bytes.into(),
        micros(settings.expires_at),
        application.version.into(),
        micros(Some(application.created_at)),
        micros(Some(application.updated_at)),
    ];
    session.execute(sql, &values).map(drop)
}

fn write_credential(session: &mut dyn Session, credential: &Credential) -> Result<(), StoreError> {
    let sql = "INSERT INTO credential (id, application, username, verifier, name, created_at, expires_at, \
               revoked_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
               ON CONFLICT (id) DO UPDATE SET name = excluded.name, expires_at = excluded.expires_at, \
               revoked_at = excluded.revoked_at";
    let values = [
        credential.id.to_string().into(),
        credential.application.to_string().into(),
        (&*credential.username).into(),
        (&*credential.verifier).into(),
        (&*credential.name).into(),
        micros(Some(credential.created_at)),
        micros(credential.expires_at),
        micros(credential.revoked_at),
    ];
    session.execute(sql, &values).map(drop)
}

fn write_key(session: &mut dyn Session, key: &ApiKey) -> Result<(), StoreError> {
    let sql = "INSERT INTO api_key (id, tenant, application, name, environment, hash, hint, scopes, networks, \
               created_at, expires_at, revoked_at) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) \
               ON CONFLICT (id) DO UPDATE SET name = excluded.name, scopes = excluded.scopes, \
               networks = excluded.networks, expires_at = excluded.expires_at, \
               revoked_at = excluded.revoked_at";
    let values = [
        key.id.to_string().into(),
        key.tenant.to_string().into(),
        key.application.map(|id| id.to_string()).into(),
        (&*key.name).into(),
        text_of(&key.environment)?,
        key.hash.to_string().into(),
        (&*key.hint).into(),
        text_of(&key.scopes)?,
        text_of(&key.networks)?,
        micros(Some(key.created_at)),
        micros(key.expires_at),
        micros(key.revoked_at),
    ];
    session.execute(sql, &values).map(drop)
}

/// When keys were last used, as far as it has been written down.
pub(crate) fn key_uses(session: &mut dyn Session) -> Result<BTreeMap<KeyId, Timestamp>, StoreError> {
    let sql = "SELECT id, last_used_at FROM api_key WHERE last_used_at IS NOT NULL";
    let mut rows = session.query(sql, &[])?;
    rows.iter_mut().map(|row| Ok((row.parsed()?, time(row)?))).collect()
}

/// Writes down when a key was last used.
pub(crate) fn write_key_use(session: &mut dyn Session, key: KeyId, at: Timestamp) -> Result<(), StoreError> {
    let sql = "UPDATE api_key SET last_used_at = ?2 WHERE id = ?1";
    session.execute(sql, &[key.to_string().into(), micros(Some(at))]).map(drop)
}
