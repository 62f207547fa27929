//! The audit log: who did what to what, each entry sealed with the hash of the one before.

use crate::StoreError;
use crate::anchor::Anchor;
use crate::session::{Row, Session, Value};
use aws_lc_rs::digest;
use postrider_model::{TenantId, Timestamp};
use serde::Serialize;

/// Entries that a verification reads at once.
const STEP: u64 = 1_000;
/// What stands before the first entry.
const BEGINNING: &str = "";

/// An act to be recorded.
#[derive(Clone, Debug)]
pub struct Entry {
    actor: String,
    tenant: Option<TenantId>,
    action: &'static str,
    target: String,
    details: serde_json::Value,
}

impl Entry {
    /// `actor` did `action` (a noun and a verb: `application.create`) to `target`.
    pub fn new(actor: impl Into<String>, action: &'static str, target: impl Into<String>) -> Self {
        let details = serde_json::Value::Object(serde_json::Map::new());
        Entry { actor: actor.into(), tenant: None, action, target: target.into(), details }
    }

    /// Whose it is.
    #[must_use]
    pub fn of_tenant(self, tenant: TenantId) -> Self {
        Entry { tenant: Some(tenant), ..self }
    }

    /// What was changed. No secret.
    #[must_use]
    pub fn with(self, details: serde_json::Value) -> Self {
        Entry { details, ..self }
    }
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// Its place, from 1, without gaps.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// Whose.
    pub tenant: Option<String>,
    /// What: `application.create`.
    pub action: String,
    /// To what.
    pub target: String,
    /// What was changed, JSON.
    pub details: String,
    /// The hash of the entry before; empty for the first.
    pub previous: String,
    /// SHA-256 over all of this, in hexadecimal digits.
    pub hash: String,
}

/// A page of the log.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AuditPage {
    /// Entries, the newest first.
    pub items: Vec<Recorded>,
    /// The `before` of the next page.
    pub next: Option<u64>,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// Nothing is wrong.
    pub intact: bool,
    /// Entries read.
    pub entries: u64,
    /// Anchors outside the store that were compared.
    pub anchors: u64,
    /// The hash of the last entry.
    pub head: String,
    /// What is wrong, in sentences; the first of it.
    pub problems: Vec<String>,
}

/// Problems that a report lists.
const PROBLEMS_MAX: usize = 20;

impl Recorded {
    /// The hash over everything but the hash itself. Every part is preceded by its length, so that no two
    /// entries have the same octets.
    fn sealed(&self) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        let (seq, at) = (self.seq.to_string(), self.at.as_micros().to_string());
        let tenant = self.tenant.as_deref().unwrap_or_default();
        for part in
            [&self.previous, &seq, &at, &self.actor, tenant, &self.action, &self.target, &self.details]
        {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        context.finish().as_ref().iter().map(|octet| format!("{octet:02x}")).collect()
    }
}

const COLUMNS: &str = "seq, at, actor, tenant, action, target, details, previous, hash";

fn recorded(row: &mut Row) -> Result<Recorded, StoreError> {
    Ok(Recorded {
        seq: row.number()?,
        at: Timestamp::from_micros(row.number()?),
        actor: row.text()?,
        tenant: row.optional_text()?,
        action: row.text()?,
        target: row.text()?,
        details: row.text()?,
        previous: row.text()?,
        hash: row.text()?,
    })
}

/// The last entry.
pub(crate) fn head(session: &mut dyn Session) -> Result<Option<Recorded>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM audit ORDER BY seq DESC LIMIT 1");
    session.query(&sql, &[])?.pop().map(|mut row| recorded(&mut row)).transpose()
}

/// Adds an entry; gives it sealed.
pub(crate) fn append(
    session: &mut dyn Session,
    entry: &Entry,
    at: Timestamp,
) -> Result<Recorded, StoreError> {
    let before = head(session)?;
    let (seq, previous) = before.map_or((0, BEGINNING.to_owned()), |before| (before.seq, before.hash));
    let clean = |text: &str| text.replace('\0', "\u{fffd}");
    let mut entry = Recorded {
        seq: seq + 1,
        at,
        actor: clean(&entry.actor),
        tenant: entry.tenant.map(|tenant| tenant.to_string()),
        action: entry.action.to_owned(),
        target: clean(&entry.target),
        details: entry.details.to_string(),
        previous,
        hash: String::new(),
    };
    entry.hash = entry.sealed();
    let sql = format!("INSERT INTO audit ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)");
    let values = [
        entry.seq.into(),
        at.as_micros().into(),
        entry.actor.as_str().into(),
        entry.tenant.as_deref().into(),
        entry.action.as_str().into(),
        entry.target.as_str().into(),
        entry.details.as_str().into(),
        entry.previous.as_str().into(),
        entry.hash.as_str().into(),
    ];
    session.execute(&sql, &values)?;
    Ok(entry)
}

/// Entries before a place, the newest first; those of one target or tenant if it is given.
pub(crate) fn page(
    session: &mut dyn Session,
    before: Option<u64>,
    target: Option<&str>,
    tenant: Option<TenantId>,
    limit: usize,
) -> Result<AuditPage, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM audit WHERE seq < ?1 AND (?2 IS NULL OR target = ?2) \
         AND (?3 IS NULL OR tenant = ?3) ORDER BY seq DESC LIMIT ?4"
    );
    let before = before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
    let tenant = tenant.map(|tenant| tenant.to_string());
    let values = [Value::Int(before), target.into(), tenant.into(), (limit as u64 + 1).into()];
    let mut rows = session.query(&sql, &values)?;
    let mut items = rows.iter_mut().map(recorded).collect::<Result<Vec<_>, _>>()?;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|entry| entry.seq);
    Ok(AuditPage { items, next })
}

/// Reads the whole log and says what does not hold.
pub(crate) fn verify(session: &mut dyn Session, anchors: &[Anchor]) -> Result<AuditReport, StoreError> {
    let mut report =
        AuditReport { intact: true, entries: 0, anchors: 0, head: String::new(), problems: Vec::new() };
    let mut wrong = |text: String| {
        if report.problems.len() < PROBLEMS_MAX {
            report.problems.push(text);
        }
    };
    let sql = format!("SELECT {COLUMNS} FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2");
    let (mut last, mut previous, mut entries) = (0, BEGINNING.to_owned(), 0);
    let mut waiting = anchors.iter().peekable();
    loop {
        let mut rows = session.query(&sql, &[Value::from(last), STEP.into()])?;
        if rows.is_empty() {
            break;
        }
        for row in &mut rows {
            let entry = recorded(row)?;
            if entry.seq != last + 1 {
                wrong(format!("between entries {last} and {} some are missing", entry.seq));
            }
            if entry.previous != previous {
                wrong(format!("entry {} does not follow from the one before it", entry.seq));
            }
            if entry.sealed() != entry.hash {
                wrong(format!("entry {} was changed: its hash is another", entry.seq));
            }
            while let Some(anchor) = waiting.next_if(|anchor| anchor.seq <= entry.seq) {
                if anchor.seq == entry.seq && anchor.hash != entry.hash {
                    wrong(format!(
                        "entry {} is not the one that was anchored on {}: the log was rewritten",
                        entry.seq, anchor.day
                    ));
                }
            }
            (last, previous) = (entry.seq, entry.hash);
            entries += 1;
        }
    }
    for anchor in waiting {
        wrong(format!(
            "entry {}, which was anchored on {}, is missing: the log was cut off",
            anchor.seq, anchor.day
        ));
    }
    report.intact = report.problems.is_empty();
    (report.entries, report.head, report.anchors) = (entries, previous, anchors.len() as u64);
    Ok(report)
}
