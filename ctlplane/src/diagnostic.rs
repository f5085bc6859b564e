//! What is wrong with a configuration file, and where?
//!
//! Every stage that reads the file adds to one [`Diagnostics`], so that the operator sees all errors at once. Rendered as
//! text with a caret under the place, or as JSON.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Bytes `start..end` of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl From<std::ops::Range<usize>> for Span {
    fn from(range: std::ops::Range<usize>) -> Self {
        Self { start: range.start, end: range.end }
    }
}

/// A value and where it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub span: Span,
}

impl<T> Located<T> {
    /// A value at a place.
    pub fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }

    /// The same place with another value.
    pub fn map<U>(self, with: impl FnOnce(T) -> U) -> Located<U> {
        Located { value: with(self.value), span: self.span }
    }
}

/// Whether a file with this can be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file works, but probably not as meant.
    Warning,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong, with the offending value.
    pub message: String,
    /// Where.
    pub span: Span,
    /// Written beside the caret; may be empty.
    pub label: String,
    /// The other place that this one contradicts.
    pub related: Option<(Span, String)>,
    /// What to do.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error at a place.
    pub fn error(span: Span, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            span,
            label: String::new(),
            related: None,
            help: None,
        }
    }

    /// A warning at a place.
    pub fn warning(span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(span, message) }
    }

    /// Text beside the caret.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// What to do.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The other place.
    pub fn related(mut self, span: Span, label: impl Into<String>) -> Self {
        self.related = Some((span, label.into()));
        self
    }
}

/// All findings of one file.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Adds one.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.list.push(diagnostic);
    }

    /// Number of errors.
    pub fn errors(&self) -> usize {
        self.list.iter().filter(|d| d.severity == Severity::Error).count()
    }

    /// Findings in the order of the file.
    pub fn sorted(&self) -> Vec<&Diagnostic> {
        let mut list: Vec<_> = self.list.iter().collect();
        list.sort_by_key(|d| (d.span.start, d.span.end));
        list
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// A file's name and text: what turns spans into lines and columns.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// As the operator named it.
    pub name: &'a str,
    /// All of it.
    pub text: &'a str,
}

struct Place<'a> {
    line: usize,
    column: usize,
    text: &'a str,
    /// Characters before the marked part, and in it (at least 1).
    indent: usize,
    width: usize,
}

impl<'a> Source<'a> {
    fn place(&self, span: Span) -> Place<'a> {
        let mut start = span.start.min(self.text.len());
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        let before = self.text.get(..start).unwrap_or("");
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let rest = self.text.get(line_start..).unwrap_or("");
        let text = rest.split('\n').next().unwrap_or("").trim_end_matches('\r');
        let indent = before.get(line_start..).unwrap_or("").chars().count();
        let marked = text.get(start - line_start..).unwrap_or("");
        let length = span.end.saturating_sub(start);
        let width = marked.char_indices().take_while(|(at, _)| *at < length).count().max(1);
        Place { line: before.matches('\n').count() + 1, column: indent + 1, text, indent, width }
    }

    /// Machine-readable findings.
    pub fn reports(&self, diagnostics: &Diagnostics) -> Vec<Report> {
        diagnostics.sorted().into_iter().map(|diagnostic| self.report(diagnostic)).collect()
    }

    fn report(&self, diagnostic: &Diagnostic) -> Report {
        let place = self.place(diagnostic.span);
        Report {
            severity: diagnostic.severity,
            file: self.name.to_owned(),
            line: place.line,
            column: place.column,
            message: diagnostic.message.clone(),
            label: diagnostic.label.clone(),
            help: diagnostic.help.clone(),
            related: diagnostic.related.as_ref().map(|(span, label)| {
                let place = self.place(*span);
                Related { line: place.line, column: place.column, label: label.clone() }
            }),
            snippet: self.snippet(diagnostic),
        }
    }

    fn snippet(&self, diagnostic: &Diagnostic) -> String {
        let mut marks = vec![(self.place(diagnostic.span), '^', diagnostic.label.as_str())];
        if let Some((span, label)) = &diagnostic.related {
            marks.push((self.place(*span), '-', label.as_str()));
        }
        let width = marks.iter().map(|(place, ..)| place.line.to_string().len()).max().unwrap_or(1);
        let mut text = String::new();
        for (place, mark, label) in marks {
            let line = place.text.replace('\t', " ");
            let pointer = mark.to_string().repeat(place.width);
            let _ = writeln!(text, "{:>width$} | {line}", place.line);
            let under = format!("{:>width$} | {}{pointer} {label}", "", " ".repeat(place.indent));
            let _ = writeln!(text, "{}", under.trim_end());
        }
        text
    }
}

/// One finding with its place worked out: what `--json` and the API give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Error or warning.
    pub severity: Severity,
    /// File name as given.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// Beside the caret.
    pub label: String,
    /// What to do.
    pub help: Option<String>,
    /// The other place.
    pub related: Option<Related>,
    /// The line with its caret.
    pub snippet: String,
}

/// The other place of a [`Report`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Related {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What it is.
    pub label: String,
}

impl Report {
    /// The finding as text, coloured for a terminal if asked.
    pub fn render(&self, colour: bool) -> String {
        let (bold, tint, off) = match (colour, self.severity) {
            (false, _) => ("", "", ""),
            (true, Severity::Error) => ("\x1b[1m", "\x1b[1;31m", "\x1b[0m"),
            (true, Severity::Warning) => ("\x1b[1m", "\x1b[1;33m", "\x1b[0m"),
        };
        let kind = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let mut text = format!("{tint}{kind}{off}{bold}: {}{off}\n", self.message);
        let _ = writeln!(text, " --> {}:{}:{}", self.file, self.line, self.column);
        text.push_str(&self.snippet);
        if let Some(help) = &self.help {
            let _ = writeln!(text, " = help: {help}");
        }
        text
    }
}

/// Renders all, and a closing count.
pub fn render(reports: &[Report], colour: bool) -> String {
    let mut text = String::new();
    for report in reports {
        text.push_str(&report.render(colour));
        text.push('\n');
    }
    let errors = reports.iter().filter(|r| r.severity == Severity::Error).count();
    let warnings = reports.len() - errors;
    let count = |number: usize, noun: &str| format!("{number} {noun}{}", if number == 1 { "" } else { "s" });
    if !reports.is_empty() {
        let _ = writeln!(text, "{}, {}", count(errors, "error"), count(warnings, "warning"));
    }
    text
}

/// The candidate that was probably meant.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count().max(word.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters_and_survive_any_span() {
        let source = Source { name: "f", text: "a = 1\n\u{e9}\u{e9} = \"x\"\r\n" };
        let place = source.place(Span { start: 6, end: 10 });
        assert_eq!((place.line, place.column, place.width, place.text), (2, 1, 2, "\u{e9}\u{e9} = \"x\""));
        for start in 0..30 {
            for end in 0..30 {
                source.place(Span { start, end });
            }
        }
    }

    #[test]
    fn suggestions_are_near_or_none() {
        assert_eq!(closest("adress", ["address", "weight"]), Some("address"));
        assert_eq!(closest("zzz", ["address", "weight"]), None);
        assert_eq!(closest("Pool", ["pool"]), Some("pool"));
    }
}
