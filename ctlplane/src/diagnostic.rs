//! What is wrong with a configuration file, and where?
//!
//! Every stage that reads the file adds to one [`Diagnostics`], so that the operator sees all errors at once. Rendered as
//! text with a caret under the place, or as JSON.

use std::collections::HashSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Most errors, most warnings and most notes that are told of one file.
const MOST_TOLD: usize = 100;
/// Most characters of a source line that a snippet shows.
const SNIPPET_COLUMNS: usize = 160;
/// Of them, those before the caret.
const SNIPPET_LEAD: usize = 60;
/// Most characters of a message, a label or a help: they quote the file's own values.
const MOST_WORDING: usize = 1_000;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file works, but probably not as meant.
    Warning,
    /// The file works as meant; what it means is easily overlooked.
    Note,
}

impl Severity {
    /// All of them, the worst first.
    const ALL: [Self; 3] = [Self::Error, Self::Warning, Self::Note];

    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error, warning or note.
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

    /// A note at a place.
    pub fn note(span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Note, ..Self::error(span, message) }
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

    /// Adds what there is.
    pub fn extend(&mut self, diagnostics: impl IntoIterator<Item = Diagnostic>) {
        self.list.extend(diagnostics);
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

impl Place<'_> {
    /// The part of the line around the mark, with the mark's indent and width in it.
    fn window(&self) -> (String, usize, usize) {
        let skipped = match self.text.char_indices().nth(SNIPPET_COLUMNS) {
            Some(_) => self.indent.saturating_sub(SNIPPET_LEAD),
            None => 0,
        };
        let mut rest = self.text.chars().skip(skipped);
        let shown: String = rest.by_ref().take(SNIPPET_COLUMNS).collect();
        let before = if skipped > 0 { "\u{2026}" } else { "" };
        let after = if rest.next().is_some() { "\u{2026}" } else { "" };
        let line = format!("{before}{}{after}", shown.replace('\t', " "));
        let indent = self.indent - skipped;
        let marked = self.width.min(SNIPPET_COLUMNS.saturating_sub(indent)).max(1);
        (line, indent + usize::from(skipped > 0), marked)
    }
}

/// The text, or its beginning where it is long.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(MOST_WORDING) {
        Some((end, _)) => format!("{}\u{2026}", text.get(..end).unwrap_or("")),
        None => text.to_owned(),
    }
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

    /// Machine-readable findings: each once, and of many the first, with a last one that counts the rest.
    pub fn reports(&self, diagnostics: &Diagnostics) -> Vec<Report> {
        let mut seen = HashSet::new();
        let mut list = diagnostics.sorted();
        list.retain(|d| seen.insert((d.severity, d.span, d.message.as_str())));
        let mut reports = Vec::new();
        let mut rest = Vec::new();
        for severity in Severity::ALL {
            let of_kind: Vec<_> = list.iter().filter(|d| d.severity == severity).collect();
            if let Some(first) = of_kind.get(MOST_TOLD) {
                let omitted = of_kind.len() - MOST_TOLD;
                rest.push((first.span, severity, omitted));
            }
        }
        let (mut errors, mut warnings, mut notes) = (0, 0, 0);
        for diagnostic in list {
            let count = match diagnostic.severity {
                Severity::Error => &mut errors,
                Severity::Warning => &mut warnings,
                Severity::Note => &mut notes,
            };
            *count += 1;
            if *count <= MOST_TOLD {
                reports.push(self.report(diagnostic));
            }
        }
        reports.extend(rest.into_iter().map(|(span, severity, omitted)| {
            let kind = severity.name();
            let plural = if omitted == 1 { "" } else { "s" };
            let message = format!("\u{2026} and {omitted} more {kind}{plural}");
            let summary = Diagnostic { severity, ..Diagnostic::error(span, message) };
            Report { snippet: String::new(), omitted, ..self.report(&summary) }
        }));
        reports
    }

    fn report(&self, diagnostic: &Diagnostic) -> Report {
        let place = self.place(diagnostic.span);
        Report {
            severity: diagnostic.severity,
            file: self.name.to_owned(),
            line: place.line,
            column: place.column,
            message: shortened(&diagnostic.message),
            label: shortened(&diagnostic.label),
            help: diagnostic.help.as_deref().map(shortened),
            related: diagnostic.related.as_ref().map(|(span, label)| {
                let place = self.place(*span);
                Related { line: place.line, column: place.column, label: shortened(label) }
            }),
            snippet: self.snippet(diagnostic),
            omitted: 0,
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
            let (line, indent, marked) = place.window();
            let pointer = mark.to_string().repeat(marked);
            let _ = writeln!(text, "{:>width$} | {line}", place.line);
            let under = format!("{:>width$} | {}{pointer} {}", "", " ".repeat(indent), shortened(label));
            let _ = writeln!(text, "{}", under.trim_end());
        }
        text
    }
}

/// One finding with its place worked out: what `--json` and the API give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Error, warning or note.
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
    /// Not 0: this is no finding, but stands for so many that are not told.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: usize,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// How many findings of that severity the reports stand for.
pub fn count(reports: &[Report], severity: Severity) -> usize {
    reports.iter().filter(|report| report.severity == severity).map(|report| report.omitted.max(1)).sum()
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
            (true, Severity::Note) => ("\x1b[1m", "\x1b[1;36m", "\x1b[0m"),
        };
        let kind = self.severity.name();
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
    let [errors, warnings, notes] = Severity::ALL.map(|severity| {
        let number = count(reports, severity);
        (number, format!("{number} {}{}", severity.name(), if number == 1 { "" } else { "s" }))
    });
    if !reports.is_empty() {
        let notes = if notes.0 > 0 { format!(", {}", notes.1) } else { String::new() };
        let _ = writeln!(text, "{}, {}{notes}", errors.1, warnings.1);
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
    fn identical_findings_are_told_once_and_of_many_the_first() {
        let source = Source { name: "f", text: &"x\n".repeat(300) };
        let mut diagnostics = Diagnostics::default();
        for at in 0..250 {
            let span = Span { start: 2 * at, end: 2 * at + 1 };
            diagnostics.push(Diagnostic::error(span, "bad"));
            diagnostics.push(Diagnostic::error(span, "bad"));
        }
        diagnostics.push(Diagnostic::warning(Span::default(), "odd"));
        for _ in 0..2 {
            diagnostics.push(Diagnostic::note(Span::default(), "odd"));
        }
        let reports = source.reports(&diagnostics);
        assert_eq!(reports.len(), 103);
        let last = &reports[102];
        assert_eq!((last.message.as_str(), last.omitted), ("\u{2026} and 150 more errors", 150));
        assert!(render(&reports, false).ends_with("250 errors, 1 warning, 1 note\n"));
        assert!(render(&reports, false).contains("\nnote: odd\n"));
    }

    #[test]
    fn snippets_of_long_lines_show_what_is_around_the_caret() {
        let text = format!("{}\u{e9}BAD{}", "a".repeat(5_000), "b".repeat(5_000));
        let source = Source { name: "f", text: &text };
        for (span, marked) in [(5_002..5_005, 3), (5_002..10_000, 99)] {
            let mut diagnostics = Diagnostics::default();
            diagnostics.push(Diagnostic::error(span.into(), "x".repeat(50_000)).label("here"));
            let report = &source.reports(&diagnostics)[0];
            assert!(report.message.chars().count() <= MOST_WORDING + 1 && report.column == 5_002);
            let lines: Vec<Vec<char>> = report.snippet.lines().map(|l| l.chars().collect()).collect();
            assert!(lines.iter().all(|line| line.len() < 180), "{}", report.snippet);
            let caret = lines[1].iter().position(|c| *c == '^').unwrap();
            assert_eq!(lines[0][caret..caret + 3], ['B', 'A', 'D']);
            assert!(lines[1].iter().filter(|c| **c == '^').count().abs_diff(marked) <= 1);
        }
    }

    #[test]
    fn suggestions_are_near_or_none() {
        assert_eq!(closest("adress", ["address", "weight"]), Some("address"));
        assert_eq!(closest("zzz", ["address", "weight"]), None);
        assert_eq!(closest("Pool", ["pool"]), Some("pool"));
    }
}
