//! What statements need of an engine.

use crate::StoreError;

/// A value of a column. Whole numbers have 64 bits in every engine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Int(i64),
    Text(String),
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Value::Int(number)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Value::Int(i64::from(truth))
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<&str> for Value {
    /// Text without NUL, which one of the engines cannot store.
    fn from(text: &str) -> Self {
        Value::Text(if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text.to_owned() })
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        if text.contains('\0') { Value::from(text.as_str()) } else { Value::Text(text) }
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

/// A row of an answer, read from its first column on.
#[derive(Debug)]
pub(crate) struct Row {
    values: std::vec::IntoIter<Value>,
}

impl Row {
    pub(crate) fn new(values: Vec<Value>) -> Self {
        Row { values: values.into_iter() }
    }

    fn next(&mut self) -> Result<Value, StoreError> {
        self.values.next().ok_or_else(|| StoreError::Damaged("a column is missing".to_owned()))
    }

    pub(crate) fn int(&mut self) -> Result<i64, StoreError> {
        match self.next()? {
            Value::Int(number) => Ok(number),
            other => Err(StoreError::Damaged(format!("{other:?} is no number"))),
        }
    }

    pub(crate) fn number(&mut self) -> Result<u64, StoreError> {
        let number = self.int()?;
        u64::try_from(number).map_err(|_| StoreError::Damaged(format!("{number} is negative")))
    }

    pub(crate) fn optional_number(&mut self) -> Result<Option<u64>, StoreError> {
        match self.next()? {
            Value::Null => Ok(None),
            Value::Int(number) => Ok(u64::try_from(number).ok()),
            other @ Value::Text(_) => Err(StoreError::Damaged(format!("{other:?} is no number"))),
        }
    }

    pub(crate) fn text(&mut self) -> Result<String, StoreError> {
        match self.next()? {
            Value::Text(text) => Ok(text),
            other => Err(StoreError::Damaged(format!("{other:?} is no text"))),
        }
    }

    pub(crate) fn optional_text(&mut self) -> Result<Option<String>, StoreError> {
        match self.next()? {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            other @ Value::Int(_) => Err(StoreError::Damaged(format!("{other:?} is no text"))),
        }
    }

    /// A text that is read as what it stands for.
    pub(crate) fn parsed<T: std::str::FromStr>(&mut self) -> Result<T, StoreError>
    where
        T::Err: std::fmt::Display,
    {
        let text = self.text()?;
        text.parse().map_err(|error| StoreError::Damaged(format!("{text:?}: {error}")))
    }
}

/// A connection to an engine. Statements are written with `?N`.
pub(crate) trait Session {
    /// Runs a statement; gives how many rows it changed.
    fn execute(&mut self, sql: &str, values: &[Value]) -> Result<u64, StoreError>;

    /// Runs a query whose answer is small enough to be held.
    fn query(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Row>, StoreError>;

    /// Runs statements without values, such as table definitions.
    fn script(&mut self, sql: &str) -> Result<(), StoreError>;

    /// Begins a transaction that writes.
    fn begin(&mut self) -> Result<(), StoreError>;

    /// Makes what was done since [`Session::begin`] durable.
    fn commit(&mut self) -> Result<(), StoreError>;

    /// Undoes what was done since [`Session::begin`]; nothing to be done if there was nothing begun.
    fn roll_back(&mut self);
}

/// Runs `work` in a transaction: all of it, or nothing.
pub(crate) fn transaction<T>(
    session: &mut dyn Session,
    work: impl FnOnce(&mut dyn Session) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    session.begin()?;
    let done = work(session).and_then(|value| session.commit().map(|()| value));
    if done.is_err() {
        session.roll_back();
    }
    done
}
