//! How do two configurations differ, in the words of the file?
//!
//! Both are read as plain TOML, so that every field of every section is seen, those of later releases too. Sections with a
//! name are compared by it, wherever they stand; the order of sections is not a difference.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::drain;
use crate::state::Overrides;

/// Most sections that are told.
const MOST_TOLD: usize = 1_000;
/// Most characters of a value that are told.
const MOST_SHOWN: usize = 200;
/// Fields whose values are nobody's business.
const SECRETS: [&str; 3] = ["hash_key", "password", "secret"];

/// Everything that differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differences {
    /// By kind and name.
    pub sections: Vec<Difference>,
    /// So many more are not told.
    #[serde(default)]
    pub omitted: usize,
}

/// One section that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// listener, pool, backend, route, port, …; of a section without a name that section's.
    pub kind: String,
    /// Its name; of a backend `POOL/NAME`.
    pub name: String,
    /// What became of it.
    pub change: Fate,
    /// Its fields that differ; of one that was added or removed all.
    pub fields: Vec<Field>,
}

/// What became of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It has other fields.
    Changed,
}

/// One field that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// With the tables that it is in: `tcp.mss`.
    pub field: String,
    /// Absent: it was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
    /// Absent: it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<String>,
}

impl Differences {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }

    /// A line per section.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.sections.iter().map(Difference::line).collect();
        if self.omitted > 0 {
            lines.push(format!("\u{2026} and {} more", self.omitted));
        }
        lines
    }
}

impl Difference {
    /// Which section.
    pub fn title(&self) -> String {
        if self.name.is_empty() { format!("[{}]", self.kind) } else { format!("{} {}", self.kind, self.name) }
    }

    /// In one line.
    pub fn line(&self) -> String {
        let mut line = match self.change {
            Fate::Added => format!("{} added", self.title()),
            Fate::Removed => return format!("{} removed", self.title()),
            Fate::Changed => format!("{}:", self.title()),
        };
        for (at, field) in self.fields.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let none = "(not set)";
            let (old, new) = (field.old.as_deref().unwrap_or(none), field.new.as_deref().unwrap_or(none));
            let _ = match self.change {
                Fate::Added if at == 0 => write!(line, ": {} {new}", field.field),
                Fate::Added => write!(line, "{comma} {} {new}", field.field),
                _ => write!(line, "{comma} {} {old} \u{2192} {new}", field.field),
            };
        }
        line
    }
}

/// A configuration to compare, with what was set at run time written in. Empty where the text is not TOML.
pub fn table(text: &str, overrides: &Overrides) -> Table {
    let mut table: Table = text.parse().unwrap_or_default();
    if overrides.is_empty() {
        return table;
    }
    for listener in array_of(&mut table, "listener") {
        let name = listener.get("name").and_then(Value::as_str).unwrap_or("");
        if let Some(state) = drain::listener(overrides, name) {
            listener.insert("state".to_owned(), state.name().into());
        }
    }
    for pool in array_of(&mut table, "pool") {
        let name = pool.get("name").and_then(Value::as_str).unwrap_or("").to_owned();
        let Some(set) = overrides.get(&name) else { continue };
        for backend in array_of(pool, "backend") {
            let name = backend.get("name").and_then(Value::as_str).unwrap_or("");
            let Some(entry) = set.get(name).copied() else { continue };
            if let Some(weight) = entry.weight {
                backend.insert("weight".to_owned(), i64::from(weight).into());
            }
            if let Some(state) = entry.state {
                backend.insert("state".to_owned(), state.name().into());
            }
        }
    }
    table
}

fn array_of<'t>(table: &'t mut Table, key: &str) -> impl Iterator<Item = &'t mut Table> {
    let array = table.get_mut(key).and_then(Value::as_array_mut);
    array.into_iter().flatten().filter_map(Value::as_table_mut)
}

/// How `new` differs from `old`.
pub fn between(old: &Table, new: &Table) -> Differences {
    let mut list = List::default();
    let empty = Value::Table(Table::new());
    for key in keys(old, new) {
        let (before, after) = (old.get(key), new.get(key));
        if before == after {
            continue;
        }
        if is_named(before) && is_named(after) {
            list.named(key, "", array(before), array(after));
            continue;
        }
        match (before.unwrap_or(&empty), after.unwrap_or(&empty)) {
            (Value::Table(before), Value::Table(after)) => list.section(key, "", Some(before), Some(after)),
            _ => {
                let field = Field { field: key.to_owned(), old: before.map(shown), new: after.map(shown) };
                list.push(key, "", Fate::Changed, vec![field]);
            }
        }
    }
    list.differences
}

#[derive(Default)]
struct List {
    differences: Differences,
}

impl List {
    fn push(&mut self, kind: &str, name: &str, change: Fate, fields: Vec<Field>) {
        if self.differences.sections.len() == MOST_TOLD {
            self.differences.omitted += 1;
            return;
        }
        let difference = Difference { kind: kind.to_owned(), name: name.to_owned(), change, fields };
        self.differences.sections.push(difference);
    }

    /// Two arrays of tables with names.
    fn named(&mut self, kind: &str, inside: &str, old: &[Value], new: &[Value]) {
        let (before, after) = (by_name(old), by_name(new));
        let names = before.keys().chain(after.keys().filter(|name| !before.contains_key(*name)));
        for name in names {
            let (old, new) = (before.get(name).copied(), after.get(name).copied());
            if old != new {
                let full = if inside.is_empty() { name.clone() } else { format!("{inside}/{name}") };
                self.section(kind, &full, old, new);
            }
        }
    }

    /// One section, its backends as sections of their own.
    fn section(&mut self, kind: &str, name: &str, old: Option<&Table>, new: Option<&Table>) {
        let none = Table::new();
        let (before, after) = (old.unwrap_or(&none), new.unwrap_or(&none));
        let change = match (old, new) {
            (None, _) => Fate::Added,
            (_, None) => Fate::Removed,
            _ => Fate::Changed,
        };
        let inner = |table: &Table| -> Vec<Value> {
            if kind == "pool" { array(table.get("backend")).to_vec() } else { Vec::new() }
        };
        let (backends_before, backends_after) = (inner(before), inner(after));
        let mut fields = Vec::new();
        for key in keys(before, after) {
            let skipped = (key == "name" && (!name.is_empty() || old.is_some() == new.is_some()))
                || (kind == "pool" && key == "backend");
            if !skipped {
                compare(key, before.get(key), after.get(key), &mut fields);
            }
        }
        if !fields.is_empty() || change != Fate::Changed {
            self.push(kind, name, change, fields);
        }
        if backends_before != backends_after {
            self.named("backend", name, &backends_before, &backends_after);
        }
    }
}

fn keys<'t>(old: &'t Table, new: &'t Table) -> Vec<&'t str> {
    let only_new = new.keys().filter(|key| !old.contains_key(*key));
    old.keys().chain(only_new).map(String::as_str).collect()
}

fn array(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// An array of tables, or nothing.
fn is_named(value: Option<&Value>) -> bool {
    match value {
        None => true,
        Some(Value::Array(array)) => array.iter().all(Value::is_table),
        Some(_) => false,
    }
}

/// Sections by name; one without, by its number, and of two alike the later one with a number too.
fn by_name(array: &[Value]) -> BTreeMap<String, &Table> {
    let mut map = BTreeMap::new();
    for (at, table) in array.iter().enumerate().filter_map(|(at, value)| Some((at, value.as_table()?))) {
        let name = table.get("name").and_then(Value::as_str);
        let mut name = name.map_or_else(|| format!("#{}", at + 1), str::to_owned);
        if map.contains_key(&name) {
            name = format!("{name} #{}", at + 1);
        }
        map.insert(name, table);
    }
    map
}

fn compare(field: &str, old: Option<&Value>, new: Option<&Value>, fields: &mut Vec<Field>) {
    if old == new {
        return;
    }
    if let (Some(Value::Table(before)), Some(Value::Table(after))) = (old, new) {
        for key in keys(before, after) {
            compare(&format!("{field}.{key}"), before.get(key), after.get(key), fields);
        }
        return;
    }
    let secret = SECRETS.iter().any(|secret| field.rsplit('.').next() == Some(secret));
    let shown = |value: &Value| if secret { "(secret)".to_owned() } else { shown(value) };
    fields.push(Field { field: field.to_owned(), old: old.map(shown), new: new.map(shown) });
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST_SHOWN).collect();
    if text.chars().nth(MOST_SHOWN).is_some() { format!("{clean}\u{2026}") } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Admin, Override};

    fn lines(old: &str, new: &str) -> Vec<String> {
        between(&table(old, &Overrides::new()), &table(new, &Overrides::new())).lines()
    }

    const OLD: &str = "[dataplane]\nworkers = 1\nhash_key = \"a\"\n[[listener]]\nname = \"web\"\nport = 80\ntcp = { mss = 1400, sack = true }\n\
        [[pool]]\nname = \"app\"\nslots = 251\n[[pool.backend]]\nname = \"one\"\naddress = \"a\"\n[[pool.backend]]\nname = \"two\"\naddress = \"b\"\n";

    #[test]
    fn differences_are_told_in_the_words_of_the_file() {
        assert!(lines(OLD, OLD).is_empty());
        let new = OLD.replace("port = 80", "port = \"80-89\"").replace("mss = 1400, ", "");
        assert_eq!(
            lines(OLD, &new),
            ["listener web: port 80 \u{2192} 80-89, tcp.mss 1400 \u{2192} (not set)"]
        );
        let new =
            OLD.replace("name = \"two\"\naddress = \"b\"", "name = \"three\"\naddress = \"c\"\nweight = 3");
        assert_eq!(
            lines(OLD, &new),
            ["backend app/two removed", "backend app/three added: address c, weight 3"]
        );
        let new = OLD.replace("workers = 1", "workers = 2").replace("\"a\"\n[[l", "\"b\"\n[[l");
        let told = "[dataplane]: hash_key (secret) \u{2192} (secret), workers 1 \u{2192} 2";
        assert_eq!(lines(OLD, &new), [told]);
        assert_eq!(lines("", "[[vip]]\nname = \"v\"\naddress = \"x\"\n"), ["vip v added: address x"]);
        let twice = lines("", "[[pool]]\nname = \"p\"\n[[pool.backend]]\nname = \"b\"\naddress = \"x\"\n");
        assert_eq!(twice, ["pool p added", "backend p/b added: address x"]);
        let routes = lines("[[route]]\npath = \"/a\"\n", "[[route]]\npath = \"/b\"\n");
        assert_eq!(routes, ["route #1: path /a \u{2192} /b"]);
    }

    #[test]
    fn the_order_of_sections_is_no_difference_but_that_of_values_is() {
        assert!(
            lines("[[vip]]\nname=\"a\"\n[[vip]]\nname=\"b\"\n", "[[vip]]\nname=\"b\"\n[[vip]]\nname=\"a\"\n")
                .is_empty()
        );
        assert_eq!(lines("a = [1, 2]", "a = [2, 1]").len(), 1);
    }

    #[test]
    fn what_was_set_at_run_time_counts() {
        let mut overrides = Overrides::new();
        let entry = Override { weight: Some(7), state: Some(Admin::Drain) };
        overrides.entry("app".to_owned()).or_default().insert("one".to_owned(), entry);
        let told = between(&table(OLD, &Overrides::new()), &table(OLD, &overrides)).lines();
        assert_eq!(told, ["backend app/one: state (not set) \u{2192} drain, weight (not set) \u{2192} 7"]);
    }

    #[test]
    fn many_are_counted() {
        let text: String = (0..1_010).map(|n| format!("[[vip]]\nname = \"v{n}\"\n")).collect();
        let differences = between(&Table::new(), &table(&text, &Overrides::new()));
        assert_eq!((differences.sections.len(), differences.omitted), (1_000, 10));
        assert_eq!(differences.lines().last().unwrap(), "\u{2026} and 10 more");
    }
}
