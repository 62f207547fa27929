//! From TOML to values of the right kind, with their places; everything wrong is noted, nothing stops.

use super::problem::Problems;
use super::schema::{Key, Kind, ROOT, Table};
use super::value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value of the right kind.
#[derive(Clone, Debug)]
pub enum Value {
    /// A string or a word.
    Text(String),
    /// A number or a size.
    Number(u64),
    /// A length of time.
    Duration(Duration),
    /// True or false.
    Bool(bool),
    /// Several.
    List(Vec<Item>),
    /// A table.
    Table(Section),
    /// Tables in order.
    Tables(Vec<Section>),
}

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Item {
    /// The value.
    pub value: Value,
    /// Octets of the file.
    pub span: Range<usize>,
}

/// A table as it was written: only known keys, each of its kind.
#[derive(Clone, Debug)]
pub struct Section {
    /// Its description.
    pub table: &'static Table,
    /// Where it begins.
    pub span: Range<usize>,
    entries: BTreeMap<&'static str, Item>,
    /// Keys that were written but could not be read: already reported, so not also missing.
    broken: Vec<&'static str>,
}

impl Section {
    /// A table of which nothing was written.
    #[must_use]
    pub fn empty(table: &'static Table) -> Self {
        Section { table, span: 0..0, entries: BTreeMap::new(), broken: Vec::new() }
    }

    /// What was written at a key.
    #[must_use]
    pub fn item(&self, name: &str) -> Option<&Item> {
        debug_assert!(self.table.keys.iter().any(|key| key.name == name), "{} {name}", self.table.title);
        self.entries.get(name)
    }

    /// Where a key's value is, or else the table.
    #[must_use]
    pub fn span_of(&self, name: &str) -> &Range<usize> {
        self.item(name).map_or(&self.span, |item| &item.span)
    }

    /// A string and its place.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<(&str, &Range<usize>)> {
        match self.item(name) {
            Some(Item { value: Value::Text(text), span }) => Some((text, span)),
            _ => None,
        }
    }

    /// A number or a size.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.item(name)?.value {
            Value::Number(number) => Some(number),
            _ => None,
        }
    }

    /// A number that counts things in memory.
    #[must_use]
    pub fn count(&self, name: &str) -> Option<usize> {
        self.number(name).and_then(|number| usize::try_from(number).ok())
    }

    /// A length of time.
    #[must_use]
    pub fn duration(&self, name: &str) -> Option<Duration> {
        match self.item(name)?.value {
            Value::Duration(duration) => Some(duration),
            _ => None,
        }
    }

    /// True or false.
    #[must_use]
    pub fn bool(&self, name: &str) -> Option<bool> {
        match self.item(name)?.value {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// The values of a list.
    #[must_use]
    pub fn list(&self, name: &str) -> Option<&[Item]> {
        match &self.item(name)?.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// A table.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Section> {
        match &self.item(name)?.value {
            Value::Table(section) => Some(section),
            _ => None,
        }
    }

    /// Tables in order; none if none was written.
    #[must_use]
    pub fn tables(&self, name: &str) -> &[Section] {
        match self.item(name).map(|item| &item.value) {
            Some(Value::Tables(sections)) => sections,
            _ => &[],
        }
    }

    /// Notes an error if a key was not written.
    pub fn require(&self, name: &str, fix: &str, problems: &mut Problems) {
        if self.item(name).is_none() && !self.broken.contains(&name) {
            problems.error(&self.span, format!("{} has no `{name}`", self.table.title), fix);
        }
    }

    /// What `parse` makes of a string; an error is noted.
    pub fn parsed<T>(
        &self,
        name: &str,
        problems: &mut Problems,
        parse: impl Fn(&str) -> Result<T, value::Fix>,
    ) -> Option<T> {
        let (text, span) = self.text(name)?;
        noted(name, text, span, problems, parse)
    }

    /// What `parse` makes of each string of a list; errors are noted.
    pub fn parsed_list<T>(
        &self,
        name: &str,
        problems: &mut Problems,
        parse: impl Fn(&str) -> Result<T, value::Fix>,
    ) -> Vec<T> {
        let items = self.list(name).unwrap_or_default();
        items
            .iter()
            .filter_map(|item| match &item.value {
                Value::Text(text) => noted(name, text, &item.span, problems, &parse),
                _ => None,
            })
            .collect()
    }
}

fn noted<T>(
    name: &str,
    text: &str,
    span: &Range<usize>,
    problems: &mut Problems,
    parse: impl Fn(&str) -> Result<T, value::Fix>,
) -> Option<T> {
    match parse(text) {
        Ok(value) => Some(value),
        Err(fix) => {
            problems.error(span, format!("`{name}` cannot be {}", quoted(text)), fix);
            None
        }
    }
}

/// A value for a message: short, and without a password.
fn quoted(text: &str) -> String {
    let text = value::masked_url(text);
    let short: String = text.chars().take(60).collect();
    if short.len() < text.len() { format!("{short:?}…") } else { format!("{short:?}") }
}

/// Reads a whole file.
#[must_use]
pub(super) fn read(source: &str, problems: &mut Problems) -> Section {
    let (document, errors) = DeTable::parse_recoverable(source);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        problems.error(&span, error.message().trim(), "see https://toml.io for how TOML is written");
    }
    section(document.get_ref(), document.span(), &ROOT, problems)
}

fn section(
    document: &DeTable<'_>,
    span: Range<usize>,
    table: &'static Table,
    problems: &mut Problems,
) -> Section {
    let mut section = Section { span, ..Section::empty(table) };
    for (name, entry) in document {
        match table.keys.iter().find(|key| key.name == name.get_ref().as_ref()) {
            None => {
                let fix = suggestion(name.get_ref(), table);
                let what = format!("unknown key `{}` in {}", name.get_ref(), table.title);
                problems.error(&name.span(), what, fix);
            }
            Some(key) => match item(entry, key.name, key.kind, problems) {
                Some(item) => {
                    section.entries.insert(key.name, item);
                }
                None => section.broken.push(key.name),
            },
        }
    }
    section
}

/// The nearest known key, the table where the key belongs, or all keys.
fn suggestion(written: &str, table: &'static Table) -> String {
    let nearest = table
        .keys
        .iter()
        .map(|key| (strsim::damerau_levenshtein(written, key.name), key))
        .filter(|(distance, key)| *distance <= 1 + key.name.len() / 4)
        .min_by_key(|(distance, _)| *distance);
    if let Some((_, key)) = nearest {
        return format!("did you mean `{}`?", key.name);
    }
    let mut homes = Vec::new();
    homes_of(written, &ROOT, &mut homes);
    if homes.is_empty() {
        let names: Vec<_> = table.keys.iter().map(|key| key.name).collect();
        return format!("known here: {}", names.join(", "));
    }
    format!("`{written}` belongs in {}", homes.join(" or "))
}

fn homes_of(written: &str, table: &'static Table, homes: &mut Vec<&'static str>) {
    for key in table.keys {
        if key.name == written {
            homes.push(table.title);
        }
        if let Kind::Table(inner) | Kind::Tables(inner) = key.kind {
            homes_of(written, inner, homes);
        }
    }
}

fn item(
    entry: &Spanned<DeValue<'_>>,
    name: &'static str,
    kind: Kind,
    problems: &mut Problems,
) -> Option<Item> {
    let span = entry.span();
    let value = match (kind, entry.get_ref()) {
        (Kind::List(inner), DeValue::Array(array)) => {
            Value::List(array.iter().filter_map(|entry| item(entry, name, *inner, problems)).collect())
        }
        // One value where several may stand.
        (Kind::List(inner), _) => Value::List(vec![item(entry, name, *inner, problems)?]),
        (Kind::Table(inner), DeValue::Table(table)) => {
            Value::Table(section(table, span.clone(), inner, problems))
        }
        (Kind::Tables(inner), DeValue::Array(array)) => Value::Tables(
            array
                .iter()
                .filter_map(|entry| match entry.get_ref() {
                    DeValue::Table(table) => Some(section(table, entry.span(), inner, problems)),
                    _ => {
                        problems.error(&entry.span(), format!("`{name}` is a list of tables"), inner.title);
                        None
                    }
                })
                .collect(),
        ),
        (kind, value) => match scalar(kind, value) {
            Ok(value) => value,
            Err(fix) => {
                problems.error(&span, format!("`{name}` cannot be {}", described(kind, value)), fix);
                return None;
            }
        },
    };
    Some(Item { value, span })
}

fn scalar(kind: Kind, value: &DeValue<'_>) -> Result<Value, value::Fix> {
    match (kind, value) {
        (Kind::Text(_) | Kind::Secret(_), DeValue::String(text)) if !text.trim().is_empty() => {
            Ok(Value::Text(text.to_string()))
        }
        (Kind::Choice(words), DeValue::String(text)) if words.contains(&text.as_ref()) => {
            Ok(Value::Text(text.to_string()))
        }
        (Kind::Number { min, max }, DeValue::Integer(number)) => {
            within(number.as_str().parse().ok(), min, max, |number| number.to_string()).map(Value::Number)
        }
        (Kind::Size { min, max }, DeValue::Integer(number)) => {
            within(number.as_str().parse().ok(), min, max, value::size_text).map(Value::Number)
        }
        (Kind::Size { min, max }, DeValue::String(text)) => {
            within(Some(value::size(text)?), min, max, value::size_text).map(Value::Number)
        }
        (Kind::Duration { min_s, max_s }, DeValue::String(text)) => {
            let duration = value::duration(text)?;
            let (min, max) = (Duration::from_secs(min_s), Duration::from_secs(max_s));
            if duration < min || duration > max {
                let (min, max) = (value::duration_text(min), value::duration_text(max));
                return Err(format!("between {min} and {max}"));
            }
            Ok(Value::Duration(duration))
        }
        (Kind::Duration { .. }, DeValue::Integer(number)) => Err(format!("say the unit: \"{number}s\"")),
        (Kind::Bool, DeValue::Boolean(value)) => Ok(Value::Bool(*value)),
        (kind, _) => Err(wanted(kind)),
    }
}

fn within(number: Option<u64>, min: u64, max: u64, text: impl Fn(u64) -> String) -> Result<u64, value::Fix> {
    number
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| format!("between {} and {}", text(min), text(max)))
}

fn wanted(kind: Kind) -> String {
    match kind {
        Kind::Text(form) | Kind::Secret(form) => format!("write a string: {form}"),
        Kind::Choice(words) => format!("one of {}", words.join(", ")),
        Kind::Number { min, max } => format!("write a whole number between {min} and {max}"),
        Kind::Size { .. } => "write a size, such as \"50 MiB\"".to_owned(),
        Kind::Duration { .. } => "write a length of time, such as \"1h30m\"".to_owned(),
        Kind::Bool => "write true or false".to_owned(),
        Kind::List(inner) => wanted(*inner),
        Kind::Table(table) | Kind::Tables(table) => {
            let names: Vec<_> = table.keys.iter().map(|key: &Key| key.name).collect();
            format!("write a table with {}", names.join(", "))
        }
    }
}

fn described(kind: Kind, value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(_) if matches!(kind, Kind::Secret(_)) => "this string".to_owned(),
        DeValue::String(text) => quoted(text),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
