//! How things are shown on a terminal.

use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Rows under headings, each column as wide as its widest cell.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(headings: &[&str]) -> Self {
        Table { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    pub(super) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    pub(super) fn print(&self) {
        print(&self.text());
    }
}

/// Writes to standard output; a reader that has gone, as with `| head`, is no error.
pub(super) fn print(text: &str) {
    if std::io::stdout().write_all(text.as_bytes()).is_err() {
        std::process::exit(0);
    }
}

pub(super) fn print_json(value: &Value) {
    print(&format!("{value:#}\n"));
}

/// No control characters: what a remote said is not for the terminal to obey.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The same, with line breaks and tabs kept.
pub(super) fn printable_lines(text: &str) -> String {
    let keep = |c: char| c == '\n' || c == '\t' || !c.is_control();
    text.chars().filter(|c| *c != '\r').map(|c| if keep(c) { c } else { '\u{fffd}' }).collect()
}

pub(super) fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// A string of a JSON object, or an empty one.
pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// A number of a JSON object, or 0.
pub(super) fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_default()
}

/// The list of a JSON object, or an empty one.
pub(super) fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// A time as the API prints it, from now: positive in the future.
fn seconds_from_now(timestamp: &str) -> Option<i64> {
    let then = timestamp.parse::<jiff::Timestamp>().ok()?.as_second();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some(then - i64::try_from(now).ok()?)
}

/// `3m`, for a time that has passed.
pub(super) fn age(timestamp: &str) -> String {
    seconds_from_now(timestamp).map_or_else(|| "?".to_owned(), |s| brief(s.min(0).unsigned_abs()))
}

/// `in 3m` or `now`.
pub(super) fn due(timestamp: &str) -> String {
    match seconds_from_now(timestamp) {
        Some(seconds) if seconds > 0 => format!("in {}", brief(seconds.unsigned_abs())),
        Some(_) => "now".to_owned(),
        None => "?".to_owned(),
    }
}

/// A length of time in its largest unit or two.
pub(super) fn brief(seconds: u64) -> String {
    let two = |big: u64, small: u64, names: (&str, &str)| match seconds / small % (big / small) {
        0 => format!("{}{}", seconds / big, names.0),
        rest if seconds / big < 10 => format!("{}{}{rest}{}", seconds / big, names.0, names.1),
        _ => format!("{}{}", seconds / big, names.0),
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => two(60, 1, ("m", "s")),
        3_600..86_400 => two(3_600, 60, ("h", "m")),
        _ => two(86_400, 3_600, ("d", "h")),
    }
}

/// A size in its largest unit.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes}"),
        10_000..10_000_000 => format!("{}k", bytes / 1_000),
        10_000_000..10_000_000_000 => format!("{}M", bytes / 1_000_000),
        _ => format!("{}G", bytes / 1_000_000_000),
    }
}

/// At most `max` characters.
pub(super) fn shortened(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// Asks a person who sits at the terminal; anyone else means yes by having typed the command.
pub(super) fn confirmed(question: &str) -> bool {
    if !std::io::stdin().is_terminal() {
        return true;
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Waits, for commands that look again and again.
pub(super) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_brief() {
        let check = |seconds, text: &str| assert_eq!(brief(seconds), text);
        check(0, "0s");
        check(59, "59s");
        check(60, "1m");
        check(90, "1m30s");
        check(3_599, "59m");
        check(5_400, "1h30m");
        check(86_400 * 3, "3d");
        check(86_400 * 3 + 7_200, "3d2h");
        check(86_400 * 30 + 7_200, "30d");
    }

    #[test]
    fn a_table_is_aligned_and_harmless() {
        let mut table = Table::new(&["A", "LONG"]);
        table.row(["é\u{1b}[31m".to_owned(), "x".to_owned()]);
        assert_eq!(table.text(), "A       LONG\né [31m  x\n");
    }
}
