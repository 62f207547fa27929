//! SQLite: opening, and statements as it takes them.

use crate::StoreError;
use crate::migrate::Migration;
use crate::session::{Row, Session, Value};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, ToSql, params_from_iter};
use std::path::Path;
use std::time::Duration;

/// How long a statement waits for another process that has the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements kept prepared.
const STATEMENTS_MAX: usize = 64;

/// The changes of the tables, in order. What has been released is never edited.
pub(crate) const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "control plane", sql: include_str!("0001_control_plane.sql") },
    Migration { version: 2, name: "audit log", sql: include_str!("0002_audit_log.sql") },
];

/// A connection to a database file.
pub(crate) struct Sqlite(Connection);

impl Sqlite {
    /// Opens or makes the file.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        restrict(path).map_err(|error| unavailable_file(path, &error))?;
        let connection = Connection::open(path).map_err(|error| unavailable_file(path, &error))?;
        // Each commit is synced: a change that was answered is there after a power cut.
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
                 PRAGMA trusted_schema = OFF; PRAGMA journal_size_limit = 16777216;",
            )
            .map_err(|error| unavailable_file(path, &error))?;
        Sqlite::prepared(connection)
    }

    /// Opens the file for reading only.
    pub(crate) fn open_reader(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(path, flags).map_err(|error| unavailable_file(path, &error))?;
        Sqlite::prepared(connection)
    }

    fn prepared(connection: Connection) -> Result<Self, StoreError> {
        connection.busy_timeout(BUSY_TIMEOUT).map_err(|error| unavailable(&error))?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        Ok(Sqlite(connection))
    }

    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Sqlite(Connection::open_in_memory().unwrap())
    }
}

/// The file holds verifiers and hashes: it is its owner's alone.
fn restrict(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path).map(drop)
}

fn unavailable(error: &rusqlite::Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

fn unavailable_file(path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unavailable(format!("{}: {error}", path.display()))
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Int(number) => ValueRef::Integer(*number),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
}

fn value(column: ValueRef<'_>) -> Value {
    match column {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Int(number),
        ValueRef::Real(number) => Value::Text(number.to_string()),
        ValueRef::Text(text) | ValueRef::Blob(text) => {
            Value::Text(String::from_utf8_lossy(text).into_owned())
        }
    }
}

impl Session for Sqlite {
    fn execute(&mut self, sql: &str, values: &[Value]) -> Result<u64, StoreError> {
        let mut statement = self.0.prepare_cached(sql).map_err(|error| unavailable(&error))?;
        let changed = statement.execute(params_from_iter(values)).map_err(|error| unavailable(&error))?;
        Ok(changed as u64)
    }

    fn query(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Row>, StoreError> {
        let mut statement = self.0.prepare_cached(sql).map_err(|error| unavailable(&error))?;
        let columns = statement.column_count();
        let mut rows = statement.query(params_from_iter(values)).map_err(|error| unavailable(&error))?;
        let mut answer = Vec::new();
        while let Some(row) = rows.next().map_err(|error| unavailable(&error))? {
            let cells = (0..columns).map(|column| row.get_ref(column).map(value));
            answer.push(Row::new(cells.collect::<Result<_, _>>().map_err(|error| unavailable(&error))?));
        }
        Ok(answer)
    }

    fn script(&mut self, sql: &str) -> Result<(), StoreError> {
        self.0.execute_batch(sql).map_err(|error| unavailable(&error))
    }

    fn begin(&mut self) -> Result<(), StoreError> {
        self.script("BEGIN IMMEDIATE")
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        self.script("COMMIT")
    }

    fn roll_back(&mut self) {
        if !self.0.is_autocommit()
            && let Err(error) = self.script("ROLLBACK")
        {
            tracing::error!(%error, "a transaction could not be undone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::migrate;

    /// Every definition in the database, without what differs by writing only.
    fn definitions(sqlite: &mut Sqlite) -> Vec<String> {
        let sql = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name";
        let mut rows = sqlite.query(sql, &[]).unwrap();
        let text = |row: &mut Row| {
            let words = row.text().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
            words.replace("( ", "(").replace(" )", ")")
        };
        rows.iter_mut().map(text).collect()
    }

    #[test]
    fn all_migrations_in_order_equal_the_fresh_schema() {
        let mut migrated = Sqlite::in_memory();
        migrate(&mut migrated, MIGRATIONS, 0).unwrap();
        let mut fresh = Sqlite::in_memory();
        fresh.script(include_str!("schema.sql")).unwrap();
        assert_eq!(definitions(&mut migrated), definitions(&mut fresh));
    }

    #[test]
    fn migrations_run_once_and_a_newer_database_is_refused() {
        let mut sqlite = Sqlite::in_memory();
        migrate(&mut sqlite, &MIGRATIONS[..1], 5).unwrap();
        migrate(&mut sqlite, MIGRATIONS, 6).unwrap();
        migrate(&mut sqlite, MIGRATIONS, 7).unwrap();
        let mut rows = sqlite.query("SELECT version, at FROM migration ORDER BY version", &[]).unwrap();
        let done: Vec<_> = rows.iter_mut().map(|row| (row.int().unwrap(), row.int().unwrap())).collect();
        assert_eq!(done, [(1, 5), (2, 6)]);
        let error = migrate(&mut sqlite, &MIGRATIONS[..1], 8).unwrap_err().to_string();
        assert!(error.contains("made by a newer postrider"), "{error}");
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let mut sqlite = Sqlite::in_memory();
        let broken = Migration { version: 1, name: "x", sql: "CREATE TABLE a (b INTEGER); CREATE TABEL c;" };
        assert!(migrate(&mut sqlite, &[broken], 0).is_err());
        assert!(sqlite.query("SELECT * FROM a", &[]).is_err());
        migrate(&mut sqlite, MIGRATIONS, 0).unwrap();
    }
}
