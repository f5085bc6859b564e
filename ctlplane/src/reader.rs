//! How does one TOML table become typed fields, with every mistake collected?
//!
//! A [`TableReader`] hands out fields by name and type; what is left at [`TableReader::finish`] was unknown. No error stops it.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Diagnostic, Diagnostics, Located, Span, closest};

/// Reads one table.
pub(crate) struct TableReader<'a, 'd> {
    what: String,
    span: Span,
    entries: BTreeMap<String, (Span, &'a Spanned<DeValue<'a>>)>,
    known: Vec<&'static str>,
    diagnostics: &'d mut Diagnostics,
}

fn span_of<T>(value: &Spanned<T>) -> Span {
    value.span().into()
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

impl<'a, 'd> TableReader<'a, 'd> {
    /// A reader of `table`; `what` names it in messages, `span` is its place.
    pub(crate) fn new(
        what: &str,
        table: &'a DeTable<'a>,
        span: Span,
        diagnostics: &'d mut Diagnostics,
    ) -> Self {
        let entries =
            table.iter().map(|(key, value)| (key.get_ref().to_string(), (span_of(key), value))).collect();
        Self { what: what.to_owned(), span, entries, known: Vec::new(), diagnostics }
    }

    /// Where the table stands.
    pub(crate) fn span(&self) -> Span {
        self.span
    }

    /// Where the findings go.
    pub(crate) fn diagnostics(&mut self) -> &mut Diagnostics {
        self.diagnostics
    }

    /// Takes a field, whatever its type; gives the place of its key too.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<(Span, &'a Spanned<DeValue<'a>>)> {
        self.known.push(name);
        self.entries.remove(name)
    }

    fn wrong_type(&mut self, name: &str, value: &Spanned<DeValue<'_>>, expected: &str) {
        let found = type_name(value.get_ref());
        self.diagnostics.push(
            Diagnostic::error(span_of(value), format!("{name} is {found}, expected {expected}"))
                .label(format!("expected {expected}")),
        );
    }

    /// An optional string.
    pub(crate) fn string(&mut self, name: &'static str, expected: &str) -> Option<Located<String>> {
        let (_, value) = self.take(name)?;
        match value.get_ref() {
            DeValue::String(text) => Some(Located::new(text.to_string(), span_of(value))),
            _ => {
                self.wrong_type(name, value, expected);
                None
            }
        }
    }

    /// Reports a required field as missing, unless it was there (perhaps wrong).
    pub(crate) fn require(&mut self, name: &'static str, example: &str) {
        if !self.entries.contains_key(name) {
            let message = format!("{} has no {name}", self.what);
            self.diagnostics.push(
                Diagnostic::error(self.span, message)
                    .label(format!("{name} is missing"))
                    .help(format!("add: {name} = {example}")),
            );
        }
    }

    /// An optional string that `parse` understands; `expected` completes "expected ...".
    pub(crate) fn parsed<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let text = self.string(name, expected)?;
        self.parse_one(name, &text, expected, &parse)
    }

    fn parse_one<T>(
        &mut self,
        name: &str,
        text: &Located<String>,
        expected: &str,
        parse: &impl Fn(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        match parse(&text.value) {
            Ok(value) => Some(Located::new(value, text.span)),
            Err(error) => {
                self.diagnostics.push(
                    Diagnostic::error(text.span, format!("{name}: {error}"))
                        .help(format!("write {expected}")),
                );
                None
            }
        }
    }

    /// An optional array of strings that `parse` understands; absent is empty.
    pub(crate) fn parsed_list<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<Located<T>> {
        let Some((_, value)) = self.take(name) else { return Vec::new() };
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(name, value, "an array of strings");
            return Vec::new();
        };
        let mut list = Vec::new();
        for element in array.iter() {
            match element.get_ref() {
                DeValue::String(text) => {
                    let text = Located::new(text.to_string(), span_of(element));
                    list.extend(self.parse_one(name, &text, expected, &parse));
                }
                _ => self.wrong_type(name, element, expected),
            }
        }
        list
    }

    /// An optional string or array of strings that `parse` understands; absent is empty.
    pub(crate) fn parsed_one_or_many<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<Located<T>> {
        let is_one =
            matches!(self.entries.get(name).map(|(_, value)| value.get_ref()), Some(DeValue::String(_)));
        if is_one {
            return self.parsed(name, expected, parse).into_iter().collect();
        }
        self.parsed_list(name, expected, parse)
    }

    /// A string that was taken before.
    pub(crate) fn string_of(
        &mut self,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        expected: &str,
    ) -> Option<Located<String>> {
        match value.get_ref() {
            DeValue::String(text) => Some(Located::new(text.to_string(), span_of(value))),
            _ => {
                self.wrong_type(name, value, expected);
                None
            }
        }
    }

    /// All fields that were not asked for yet: of a table whose names the file chooses. In the order of the file.
    pub(crate) fn rest(&mut self) -> Vec<(Located<String>, &'a Spanned<DeValue<'a>>)> {
        let entries = std::mem::take(&mut self.entries);
        let mut rest: Vec<_> =
            entries.into_iter().map(|(name, (key, value))| (Located::new(name, key), value)).collect();
        rest.sort_by_key(|(name, _)| name.span.start);
        rest
    }

    /// An optional word out of a closed set.
    pub(crate) fn word<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&'static str, T)],
        not_built: &[&'static str],
    ) -> Option<Located<T>> {
        let list = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let text = self.string(name, &format!("one of {list}"))?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text.value) {
            return Some(Located::new(*value, text.span));
        }
        let diagnostic = if not_built.contains(&text.value.as_str()) {
            Diagnostic::error(text.span, format!("{name} \"{}\" is not built yet", text.value))
                .help(format!("use one of {list}"))
        } else {
            let near = closest(&text.value, words.iter().map(|(word, _)| *word));
            let mut diagnostic =
                Diagnostic::error(text.span, format!("{name} \"{}\" is unknown", text.value))
                    .help(format!("use one of {list}"));
            if let Some(near) = near {
                diagnostic = diagnostic.label(format!("did you mean \"{near}\"?"));
            }
            diagnostic
        };
        self.diagnostics.push(diagnostic);
        None
    }

    /// An optional integer within bounds, both inclusive.
    pub(crate) fn integer(
        &mut self,
        name: &'static str,
        least: u32,
        most: u32,
        unit: &str,
    ) -> Option<Located<u32>> {
        let (_, value) = self.take(name)?;
        self.integer_of(name, value, least, most, unit)
    }

    /// Reads an integer that was taken before.
    pub(crate) fn integer_of(
        &mut self,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        least: u32,
        most: u32,
        unit: &str,
    ) -> Option<Located<u32>> {
        let span = span_of(value);
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong_type(name, value, "an integer");
            return None;
        };
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        let inside = number.and_then(|n| u32::try_from(n).ok()).filter(|n| (least..=most).contains(n));
        if inside.is_none() {
            let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
            self.diagnostics.push(
                Diagnostic::error(span, format!("{name} = {} is out of range", integer.as_str()))
                    .help(format!("use {least} to {most}{unit}")),
            );
        }
        inside.map(|number| Located::new(number, span))
    }

    /// An optional boolean.
    pub(crate) fn boolean(&mut self, name: &'static str) -> Option<Located<bool>> {
        let (_, value) = self.take(name)?;
        match value.get_ref() {
            DeValue::Boolean(boolean) => Some(Located::new(*boolean, span_of(value))),
            _ => {
                self.wrong_type(name, value, "true or false");
                None
            }
        }
    }

    /// An optional sub-table, given to `read`; `example` is one as it may be written.
    pub(crate) fn table(
        &mut self,
        name: &'static str,
        what: &str,
        example: &str,
        read: impl FnOnce(&mut TableReader<'a, '_>),
    ) {
        let Some((key, value)) = self.take(name) else { return };
        let DeValue::Table(table) = value.get_ref() else {
            let found = type_name(value.get_ref());
            self.diagnostics.push(
                Diagnostic::error(span_of(value), format!("{name} is {found}, expected a table"))
                    .label("expected a table")
                    .help(format!("write {example}")),
            );
            return;
        };
        let span = table_span(key, value);
        let mut reader = TableReader::new(what, table, span, self.diagnostics);
        read(&mut reader);
        reader.finish();
    }

    /// An optional array of tables `[[name]]`, each given to `read`.
    pub(crate) fn tables<T>(
        &mut self,
        name: &'static str,
        what: &str,
        mut read: impl FnMut(&mut TableReader<'a, '_>) -> T,
    ) -> Vec<T> {
        let Some((key, value)) = self.take(name) else { return Vec::new() };
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(name, value, &format!("an array of tables, written [[{what}]]"));
            return Vec::new();
        };
        let mut list = Vec::new();
        for element in array.iter() {
            let DeValue::Table(table) = element.get_ref() else {
                self.wrong_type(name, element, &format!("a table, written [[{what}]]"));
                continue;
            };
            let span = table_span(key, element);
            let title = match table.get("name").map(Spanned::get_ref) {
                Some(DeValue::String(name)) => format!("{what} \"{name}\""),
                _ => what.to_owned(),
            };
            let mut reader = TableReader::new(&title, table, span, self.diagnostics);
            list.push(read(&mut reader));
            reader.finish();
        }
        list
    }

    /// A reader of an inner table that was taken by hand; its [`TableReader::finish`] is the caller's.
    pub(crate) fn inside<'s>(
        &'s mut self,
        what: &str,
        table: &'a DeTable<'a>,
        key: Span,
    ) -> TableReader<'a, 's> {
        TableReader::new(what, table, key, self.diagnostics)
    }

    /// Which of these fields are there, with the place of their key.
    pub(crate) fn places(&self, names: &[&'static str]) -> Vec<(&'static str, Span)> {
        names.iter().filter_map(|name| self.entries.get(*name).map(|(key, _)| (*name, *key))).collect()
    }

    /// How many elements an array has, right or wrong ones; `None` where there is no array.
    pub(crate) fn array_length(&self, name: &str) -> Option<usize> {
        match self.entries.get(name).map(|(_, value)| value.get_ref()) {
            Some(DeValue::Array(array)) => Some(array.len()),
            _ => None,
        }
    }

    /// Refuses a field that belongs elsewhere.
    pub(crate) fn misplaced(&mut self, name: &'static str, message: &str, remedy: &str) {
        if let Some((key, _)) = self.entries.remove(name) {
            self.diagnostics.push(Diagnostic::error(key, message.to_owned()).help(remedy.to_owned()));
        }
    }

    /// Refuses a section or field of a later release.
    pub(crate) fn not_built(&mut self, name: &'static str, remedy: &str) {
        if let Some((key, _)) = self.entries.remove(name) {
            self.diagnostics
                .push(Diagnostic::error(key, format!("{name} is not built yet")).help(remedy.to_owned()));
        }
    }

    /// Reports what nobody asked for.
    pub(crate) fn finish(&mut self) {
        for (name, (key, _)) in std::mem::take(&mut self.entries) {
            let mut diagnostic = Diagnostic::error(key, format!("unknown field {name} in {}", self.what));
            if let Some(near) = closest(&name, self.known.iter().copied()) {
                diagnostic = diagnostic.label(format!("did you mean {near}?"));
            }
            let known = self.known.join(", ");
            self.diagnostics.push(diagnostic.help(format!("known here: {known}")));
        }
    }
}

/// A table's place: its header, or its key where it is written inline.
fn table_span(key: Span, value: &Spanned<DeValue<'_>>) -> Span {
    let span = span_of(value);
    if span.start == span.end { key } else { span }
}
