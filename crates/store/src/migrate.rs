//! Brings a database to the tables of this version.

use crate::StoreError;
use crate::session::{Session, Value, transaction};

/// One change of the tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Migration {
    /// From 1, without gaps.
    pub(crate) version: u64,
    /// What it is about.
    pub(crate) name: &'static str,
    /// Statements of one engine.
    pub(crate) sql: &'static str,
}

/// Runs what has not been run, each in a transaction of its own.
///
/// # Errors
/// When the database does not answer, or was made by a newer version, which must not be written to.
pub(crate) fn migrate(
    session: &mut dyn Session,
    migrations: &[Migration],
    now: u64,
) -> Result<(), StoreError> {
    let known = "CREATE TABLE IF NOT EXISTS migration \
                 (version INTEGER PRIMARY KEY, name TEXT NOT NULL, at INTEGER NOT NULL) STRICT";
    session.script(known)?;
    let mut rows = session.query("SELECT COALESCE(MAX(version), 0) FROM migration", &[])?;
    let done = rows.first_mut().map_or(Ok(0), crate::session::Row::number)?;
    let newest = migrations.last().map_or(0, |migration| migration.version);
    if done > newest {
        return Err(StoreError::Unavailable(format!(
            "the database is at version {done}, made by a newer postrider; this one knows {newest}. Run the \
             newer one, or restore a copy from before it"
        )));
    }
    for migration in migrations.iter().filter(|migration| migration.version > done) {
        transaction(session, |session| {
            session.script(migration.sql)?;
            let values = [migration.version.into(), migration.name.into(), Value::from(now)];
            session.execute("INSERT INTO migration (version, name, at) VALUES (?1, ?2, ?3)", &values)?;
            Ok(())
        })?;
        tracing::info!(
            version = migration.version,
            name = migration.name,
            "the store's tables were brought up"
        );
    }
    Ok(())
}
