//! How does a change at run time become an edit of the running configuration's text?
//!
//! Only what is named changes: comments, order and spelling of the rest are kept. Whether the result makes sense is not asked
//! here: it is validated whole, like a file.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use toml::de::{DeTable, DeValue};
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

use crate::diagnostic::closest;
use crate::drain;
use crate::state::Overrides;

/// Most edits of one change.
pub const MOST_EDITS: usize = 1_000;
/// Most fields of one edit.
const MOST_FIELDS: usize = 100;
/// Deepest nesting of a field's value: the file has no field that is half as deep, and readers of TOML have limits.
const MOST_DEPTH: usize = 16;

/// One edit. Several make one change, which is put in force as a whole or not at all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// What to do.
    pub op: Operation,
    /// With what.
    pub kind: Kind,
    /// Its name; of a backend `POOL/NAME`.
    pub name: String,
    /// Fields as the file has them; a dot reaches into a table (`tcp.mss`), `null` takes a field away.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, Json>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Make it; there is none of that name.
    Add,
    /// Change fields of what is there.
    Set,
    /// Take it away.
    Remove,
}

/// What can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `[[vip]]`.
    Vip,
    /// `[[listener]]`.
    Listener,
    /// `[[pool]]`.
    Pool,
    /// `[[pool.backend]]`.
    Backend,
    /// `[[route]]`.
    Route,
}

impl Kind {
    /// The section's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vip => "vip",
            Self::Listener => "listener",
            Self::Pool => "pool",
            Self::Backend => "backend",
            Self::Route => "route",
        }
    }
}

/// Why the text can't be edited so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// A bug: the running text was valid.
    #[error("the running configuration cannot be read: {0}; weir apply a file")]
    Running(String),
    /// Nothing of that name.
    #[error("there is no {kind} {name}{}", suggestion.as_ref().map_or(String::new(), |near| format!("; did you mean {near}?")))]
    Missing {
        /// Of what.
        kind: &'static str,
        /// The name.
        name: String,
        /// A near one.
        suggestion: Option<String>,
    },
    /// A second one.
    #[error("there is a {kind} {name} already; change it with set, or choose another name")]
    Exists {
        /// Of what.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A backend without its pool.
    #[error("\"{0}\" names no backend; write POOL/NAME")]
    Unplaced(String),
    /// A field that can't be written.
    #[error("{kind} {name}: {field}: {reason}")]
    Field {
        /// Of what.
        kind: &'static str,
        /// Of which.
        name: String,
        /// Its name.
        field: String,
        /// Why not.
        reason: String,
    },
    /// An edit without effect.
    #[error("{kind} {name}: nothing to set; name a field as KEY=VALUE")]
    Nothing {
        /// Of what.
        kind: &'static str,
        /// Of which.
        name: String,
    },
    /// Too much at once.
    #[error("{given} {what} at once are too many; send at most {most}")]
    TooMany {
        /// So many.
        given: usize,
        /// Of what.
        what: &'static str,
        /// The limit.
        most: usize,
    },
}

/// A text between edits.
#[derive(Debug)]
pub struct Editor {
    document: DocumentMut,
}

impl Editor {
    /// An editor of the running text.
    pub fn new(text: &str) -> Result<Self, EditError> {
        let document =
            text.parse::<DocumentMut>().map_err(|error| EditError::Running(error.message().to_owned()))?;
        Ok(Self { document })
    }

    /// The text as it is now.
    pub fn text(&self) -> String {
        self.document.to_string()
    }

    /// Makes all edits, in order.
    pub fn apply(&mut self, edits: &[Edit]) -> Result<(), EditError> {
        if edits.len() > MOST_EDITS {
            return Err(EditError::TooMany { given: edits.len(), what: "edits", most: MOST_EDITS });
        }
        edits.iter().try_for_each(|edit| self.edit(edit))
    }

    fn edit(&mut self, edit: &Edit) -> Result<(), EditError> {
        if edit.fields.len() > MOST_FIELDS {
            return Err(EditError::TooMany { given: edit.fields.len(), what: "fields", most: MOST_FIELDS });
        }
        let root: &mut dyn TableLike = self.document.as_table_mut();
        if edit.kind != Kind::Backend {
            return edit_in(root, edit, &edit.name);
        }
        let (pool, backend) = match edit.name.split_once('/') {
            Some((pool, backend)) if !pool.is_empty() && !backend.is_empty() => (pool, backend),
            _ => return Err(EditError::Unplaced(edit.name.clone())),
        };
        let (parent, _) = find(root, "pool", pool)?;
        edit_in(parent, edit, backend)
    }

    /// Writes weights and states that were set at run time into their backends. Unknown ones are left out.
    pub fn write_overrides(&mut self, overrides: &Overrides) {
        for listener in tables(self.document.as_table_mut(), "listener") {
            if let Some(state) = name_of(listener).and_then(|name| drain::listener(overrides, name)) {
                put(listener, "state", state.name().into());
            }
        }
        for pool in tables(self.document.as_table_mut(), "pool") {
            let Some(set) = name_of(pool).and_then(|name| overrides.get(name)).cloned() else { continue };
            for backend in tables(pool, "backend") {
                let Some(entry) = name_of(backend).and_then(|name| set.get(name)).copied() else { continue };
                if let Some(weight) = entry.weight {
                    put(backend, "weight", i64::from(weight).into());
                }
                if let Some(state) = entry.state {
                    put(backend, "state", state.name().into());
                }
            }
        }
    }
}

fn name_of(table: &dyn TableLike) -> Option<&str> {
    table.get("name").and_then(Item::as_str)
}

/// The tables of an array of tables, however it is written.
fn tables<'t>(parent: &'t mut dyn TableLike, key: &str) -> Vec<&'t mut dyn TableLike> {
    match parent.get_mut(key) {
        Some(Item::ArrayOfTables(array)) => {
            array.iter_mut().map(|table| table as &mut dyn TableLike).collect()
        }
        Some(Item::Value(Value::Array(array))) => {
            let inline = array.iter_mut().filter_map(Value::as_inline_table_mut);
            inline.map(|table| table as &mut dyn TableLike).collect()
        }
        _ => Vec::new(),
    }
}

/// The table of that name, and its place.
fn find<'t>(
    parent: &'t mut dyn TableLike,
    kind: &'static str,
    name: &str,
) -> Result<(&'t mut dyn TableLike, usize), EditError> {
    let tables = tables(parent, kind);
    let place = tables.iter().position(|table| name_of(*table) == Some(name));
    let missing = |names: Vec<&str>| EditError::Missing {
        kind,
        name: name.to_owned(),
        suggestion: closest(name, names).map(str::to_owned),
    };
    let Some(place) = place else {
        return Err(missing(tables.iter().filter_map(|table| name_of(*table)).collect()));
    };
    tables.into_iter().nth(place).map(|table| (table, place)).ok_or_else(|| missing(Vec::new()))
}

fn edit_in(parent: &mut dyn TableLike, edit: &Edit, name: &str) -> Result<(), EditError> {
    let kind = edit.kind.name();
    let qualified = |error: EditError| match error {
        EditError::Missing { kind: "backend", suggestion, .. } => {
            let pool = edit.name.split('/').next().unwrap_or("");
            let suggestion = suggestion.map(|near| format!("{pool}/{near}"));
            EditError::Missing { kind, name: edit.name.clone(), suggestion }
        }
        other => other,
    };
    match edit.op {
        Operation::Remove if edit.fields.is_empty() => {
            let (_, place) = find(parent, kind, name).map_err(qualified)?;
            match parent.get_mut(kind) {
                Some(Item::ArrayOfTables(array)) => drop(array.remove(place)),
                Some(Item::Value(Value::Array(array))) => drop_inline(array, name),
                _ => {}
            }
            Ok(())
        }
        Operation::Remove => {
            let field = edit.fields.keys().next().cloned().unwrap_or_default();
            let reason = "remove takes no fields; set KEY= takes a field away".to_owned();
            Err(EditError::Field { kind, name: edit.name.clone(), field, reason })
        }
        Operation::Set => {
            if edit.fields.is_empty() {
                return Err(EditError::Nothing { kind, name: edit.name.clone() });
            }
            let (table, _) = find(parent, kind, name).map_err(qualified)?;
            set_fields(table, edit)
        }
        Operation::Add => {
            if find(parent, kind, name).is_ok() {
                return Err(EditError::Exists { kind, name: edit.name.clone() });
            }
            if edit.fields.contains_key("name") {
                let reason = "the name is given already; leave this out".to_owned();
                return Err(EditError::Field {
                    kind,
                    name: edit.name.clone(),
                    field: "name".to_owned(),
                    reason,
                });
            }
            add(parent, edit, name)
        }
    }
}

fn drop_inline(array: &mut Array, name: &str) {
    array.retain(|value| value.as_inline_table().is_none_or(|table| name_of(table) != Some(name)));
}

fn add(parent: &mut dyn TableLike, edit: &Edit, name: &str) -> Result<(), EditError> {
    let kind = edit.kind.name();
    if let Some(Item::Value(Value::Array(array))) = parent.get_mut(kind) {
        let mut inline = InlineTable::new();
        inline.insert("name", name.into());
        set_fields(&mut inline, edit)?;
        array.push(inline);
        return Ok(());
    }
    let mut table = Table::new();
    table.insert("name", Item::Value(name.into()));
    set_fields(&mut table, edit)?;
    if let Some(Item::ArrayOfTables(array)) = parent.get_mut(kind) {
        array.push(table);
        return Ok(());
    }
    let mut array = ArrayOfTables::new();
    array.push(table);
    parent.insert(kind, Item::ArrayOfTables(array));
    Ok(())
}

fn set_fields(table: &mut dyn TableLike, edit: &Edit) -> Result<(), EditError> {
    for (field, value) in &edit.fields {
        set_field(table, field, value).map_err(|reason| EditError::Field {
            kind: edit.kind.name(),
            name: edit.name.clone(),
            field: field.clone(),
            reason,
        })?;
    }
    Ok(())
}

fn set_field(table: &mut dyn TableLike, field: &str, value: &Json) -> Result<(), String> {
    let (outer, last) = match field.rsplit_once('.') {
        Some((outer, last)) => (Some(outer), last),
        None => (None, field),
    };
    if field.split('.').any(str::is_empty) {
        return Err("a field has no empty part; write KEY or TABLE.KEY".to_owned());
    }
    if field.split('.').count() > MOST_DEPTH {
        return Err(format!("it has more than {MOST_DEPTH} parts; write KEY or TABLE.KEY"));
    }
    let mut inner = table;
    for part in outer.into_iter().flat_map(|outer| outer.split('.')) {
        if inner.get(part).is_none() {
            if value.is_null() {
                return Ok(());
            }
            inner.insert(part, Item::Value(InlineTable::new().into()));
        }
        let item = inner.get_mut(part).and_then(Item::as_table_like_mut);
        inner = item.ok_or_else(|| format!("{part} is no table"))?;
    }
    if value.is_null() {
        inner.remove(last);
        return Ok(());
    }
    put(inner, last, to_toml(value, MOST_DEPTH)?);
    Ok(())
}

/// Writes a value where the old one stood, with the old one's space and comment around it.
fn put(table: &mut dyn TableLike, key: &str, mut value: Value) {
    match table.get_mut(key) {
        Some(Item::Value(old)) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        _ => {
            table.insert(key, Item::Value(value));
        }
    }
}

fn to_toml(json: &Json, depth: usize) -> Result<Value, String> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(format!("it is nested more than {MOST_DEPTH} deep; write less in one field"));
    };
    match json {
        Json::Null => Err("null is only for a whole field, which it takes away".to_owned()),
        Json::Bool(boolean) => Ok((*boolean).into()),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Ok(integer.into()),
            (None, Some(float)) if number.is_f64() => Ok(float.into()),
            _ => Err(format!("{number} is too large")),
        },
        Json::String(text) => Ok(text.as_str().into()),
        Json::Array(list) => {
            list.iter().map(|value| to_toml(value, depth)).collect::<Result<Array, _>>().map(Value::Array)
        }
        Json::Object(map) => {
            let mut table = InlineTable::new();
            for (key, value) in map {
                table.insert(key, to_toml(value, depth)?);
            }
            Ok(table.into())
        }
    }
}

/// `KEY=VALUE` of a command line. The value is TOML, or a plain word that need not be quoted; an empty one takes the field away.
pub fn parse_argument(argument: &str) -> Result<(String, Json), String> {
    let Some((key, text)) = argument.split_once('=').filter(|(key, _)| !key.is_empty()) else {
        return Err(format!("\"{argument}\" is not KEY=VALUE"));
    };
    if text.is_empty() {
        return Ok((key.to_owned(), Json::Null));
    }
    match text.parse::<Value>() {
        Ok(value) => Ok((key.to_owned(), to_json(&value, text))),
        Err(error) if text.starts_with(['"', '\'', '[', '{']) => {
            Err(format!("the value of {key} is not TOML: {}", error.message()))
        }
        Err(_) => Ok((key.to_owned(), Json::String(text.to_owned()))),
    }
}

fn to_json(value: &Value, text: &str) -> Json {
    match value {
        Value::String(string) => Json::String(string.value().clone()),
        Value::Integer(integer) => (*integer.value()).into(),
        Value::Float(float) => (*float.value()).into(),
        Value::Boolean(boolean) => (*boolean.value()).into(),
        Value::Datetime(_) => Json::String(text.to_owned()),
        Value::Array(array) => array.iter().map(|value| to_json(value, text)).collect(),
        Value::InlineTable(table) => {
            table.iter().map(|(key, value)| (key.to_owned(), to_json(value, text))).collect()
        }
    }
}

/// Where in an edited text the fields of these edits are, each with the argument that put it there.
pub fn places(text: &str, edits: &[Edit]) -> Vec<(Range<usize>, String)> {
    let (document, _) = DeTable::parse_recoverable(text);
    let root = document.get_ref();
    let mut list = Vec::new();
    for edit in edits.iter().filter(|edit| edit.op != Operation::Remove) {
        let found = match (edit.kind, edit.name.split_once('/')) {
            (Kind::Backend, Some((pool, backend))) => {
                named(root, "pool", pool).and_then(|pool| named(pool, "backend", backend))
            }
            _ => named(root, edit.kind.name(), &edit.name),
        };
        let Some(table) = found else { continue };
        for (field, value) in &edit.fields {
            if let Some(range) = place(table, field) {
                list.push((range, format!("{field}={}", shown(value))));
            }
        }
        if let Some(range) = place(table, "name") {
            list.push((range, edit.name.clone()));
        }
    }
    list
}

fn shown(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Null => String::new(),
        other => other.to_string(),
    }
}

fn named<'t>(parent: &'t DeTable<'t>, key: &str, name: &str) -> Option<&'t DeTable<'t>> {
    let DeValue::Array(array) = parent.get(key)?.get_ref() else { return None };
    array.iter().find_map(|element| match element.get_ref() {
        DeValue::Table(table) => match table.get("name")?.get_ref() {
            DeValue::String(text) if text == name => Some(table),
            _ => None,
        },
        _ => None,
    })
}

/// From the field's key to the end of its value.
fn place(table: &DeTable<'_>, field: &str) -> Option<Range<usize>> {
    let (first, rest) = match field.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (field, None),
    };
    let (key, value) = table.iter().find(|(key, _)| key.get_ref() == first)?;
    match (value.get_ref(), rest) {
        (DeValue::Table(inner), Some(rest)) => place(inner, rest),
        _ => Some(key.span().start..value.span().end.max(key.span().end)),
    }
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
