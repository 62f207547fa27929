//! What is wrong with a configuration, where, and what to do about it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It works, but probably not as meant.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// Octets of the file.
    pub span: Range<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do; may be empty.
    pub fix: String,
}

/// All that is wrong with one file.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    file: PathBuf,
    source: String,
    list: Vec<Problem>,
}

impl Problems {
    /// For a file with this text.
    #[must_use]
    pub fn new(file: &Path, source: &str) -> Self {
        Problems { file: file.to_owned(), source: source.to_owned(), list: Vec::new() }
    }

    /// Notes an error.
    pub fn error(&mut self, span: &Range<usize>, what: impl Into<String>, fix: impl Into<String>) {
        self.note(Severity::Error, span, what.into(), fix.into());
    }

    /// Notes a warning.
    pub fn warning(&mut self, span: &Range<usize>, what: impl Into<String>, fix: impl Into<String>) {
        self.note(Severity::Warning, span, what.into(), fix.into());
    }

    fn note(&mut self, severity: Severity, span: &Range<usize>, what: String, fix: String) {
        self.list.push(Problem { severity, span: span.clone(), what, fix });
        self.list.sort_by_key(|problem| problem.span.start);
    }

    /// True if anything forbids the configuration.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// In the order of the file.
    #[must_use]
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// How many of one severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.list.iter().filter(|problem| problem.severity == severity).count()
    }

    /// One line for each warning, for the log at start.
    pub fn warnings(&self) -> impl Iterator<Item = String> + '_ {
        self.list.iter().filter(|problem| problem.severity == Severity::Warning).map(|problem| {
            let (line, column) = self.position(problem.span.start);
            format!("{}:{line}:{column}: {}; {}", self.file.display(), problem.what, problem.fix)
        })
    }

    /// Line and column, both from 1; a column counts characters.
    #[must_use]
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let before = &self.source[..floor_boundary(&self.source, offset)];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |text| text.chars().count()) + 1;
        (line, column)
    }
}

fn floor_boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// Each problem as `FILE:LINE:COLUMN: error: …`, with the line, a mark under it and the fix.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.list {
            let (line, column) = self.position(problem.span.start);
            let severity = match problem.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            let place = if self.source.is_empty() { String::new() } else { format!(":{line}:{column}") };
            writeln!(f, "{}{place}: {severity}: {}", self.file.display(), problem.what)?;
            if let Some(text) = self.source.lines().nth(line - 1).filter(|text| !text.trim().is_empty()) {
                let room = text.chars().count().saturating_sub(column - 1).max(1);
                let marked = self.source.get(problem.span.clone()).unwrap_or_default();
                let marks = marked.lines().next().unwrap_or_default().chars().count().clamp(1, room);
                writeln!(f, "{line:>5} | {}", shown(text))?;
                writeln!(f, "      | {}{}", " ".repeat(column - 1), "^".repeat(marks))?;
            }
            if !problem.fix.is_empty() {
                writeln!(f, "      = {}", problem.fix)?;
            }
        }
        Ok(())
    }
}

/// A line as it may be shown on a terminal: no control characters, and no secret.
fn shown(line: &str) -> String {
    let clean: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match clean.find("password") {
        Some(at) => match clean[at..].find('=') {
            Some(equals) => format!("{} …", &clean[..=at + equals]),
            None => clean,
        },
        None => clean,
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_shown_with_its_line_and_a_mark() {
        let source = "hostname = \"é\"\nadress = 1\n";
        let mut problems = Problems::new(Path::new("a.toml"), source);
        problems.error(&(16..22), "unknown key `adress`", "did you mean `address`?");
        assert_eq!(
            problems.to_string(),
            "a.toml:2:1: error: unknown key `adress`\n    2 | adress = 1\n      | ^^^^^^\n      \
             = did you mean `address`?\n"
        );
    }

    #[test]
    fn a_password_is_not_shown() {
        let source = "password = \"hunter2\"\n";
        let mut problems = Problems::new(Path::new("a.toml"), source);
        problems.error(&(11..20), "a plain password", "");
        assert!(!problems.to_string().contains("hunter2"), "{problems}");
    }
}
