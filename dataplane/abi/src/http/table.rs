//! How does an HTTP table become bytes, and bytes a table whose references all lead somewhere?

use std::collections::HashMap;

use zerocopy::{FromBytes, IntoBytes};

use super::{
    ConditionRecord, EditRecord, HttpRecord, PageRecord, RateRecord, RouteRecord, SplitRecord, Stretch,
};
use crate::image::{
    SnapshotError, TableImage, TableKind, TableRef, records, table_name, unseal, wrong_length,
};
use crate::record::Address;

/// One listener of protocol `http`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpTable {
    /// Head; its counts are set by [`HttpTable::encode`].
    pub head: HttpRecord,
    /// Rate limits; routes name them by number.
    pub rates: Vec<RateRecord>,
    /// Routes, in the order of the file.
    pub routes: Vec<RouteRecord>,
    /// Conditions of the routes.
    pub conditions: Vec<ConditionRecord>,
    /// Pools of the routes.
    pub splits: Vec<SplitRecord>,
    /// Changes that routes make.
    pub edits: Vec<EditRecord>,
    /// Bodies of the proxy's own responses.
    pub pages: Vec<PageRecord>,
    /// Methods: stretches of the arena.
    pub words: Vec<Stretch>,
    /// Prefixes of clients.
    pub prefixes: Vec<Address>,
    /// Numbers of rate limits.
    pub numbers: Vec<u16>,
    /// All text.
    pub arena: Vec<u8>,
}

impl HttpTable {
    /// The table's bytes.
    pub fn encode(&self) -> TableImage {
        let head = HttpRecord {
            rates: self.rates.len() as u32,
            routes: self.routes.len() as u32,
            conditions: self.conditions.len() as u32,
            splits: self.splits.len() as u32,
            edits: self.edits.len() as u32,
            pages: self.pages.len() as u32,
            words: self.words.len() as u32,
            prefixes: self.prefixes.len() as u32,
            numbers: self.numbers.len() as u32,
            arena: self.arena.len() as u32,
            ..self.head
        };
        let parts = [
            head.as_bytes(),
            self.rates.as_bytes(),
            self.routes.as_bytes(),
            self.conditions.as_bytes(),
            self.splits.as_bytes(),
            self.edits.as_bytes(),
            self.pages.as_bytes(),
            self.words.as_bytes(),
            self.prefixes.as_bytes(),
            self.numbers.as_bytes(),
            self.arena.as_slice(),
        ];
        TableImage::seal(TableKind::Http, &parts.concat())
    }

    /// Verifies a private copy. That its pools exist is checked by the reader of the whole root.
    pub fn parse(reference: &TableRef, bytes: &[u8]) -> Result<Self, SnapshotError> {
        let content = unseal(TableKind::Http, reference, bytes)?;
        let length = || wrong_length(reference, bytes);
        let (head, rest) = HttpRecord::read_from_prefix(content).map_err(|_| length())?;
        let (rates, rest) = records(rest, head.rates as usize).ok_or_else(length)?;
        let (routes, rest) = records(rest, head.routes as usize).ok_or_else(length)?;
        let (conditions, rest) = records(rest, head.conditions as usize).ok_or_else(length)?;
        let (splits, rest) = records(rest, head.splits as usize).ok_or_else(length)?;
        let (edits, rest) = records(rest, head.edits as usize).ok_or_else(length)?;
        let (pages, rest) = records(rest, head.pages as usize).ok_or_else(length)?;
        let (words, rest) = records(rest, head.words as usize).ok_or_else(length)?;
        let (prefixes, rest) = records(rest, head.prefixes as usize).ok_or_else(length)?;
        let (numbers, arena) = records(rest, head.numbers as usize).ok_or_else(length)?;
        if arena.len() != head.arena as usize {
            return Err(length());
        }
        let arena = arena.to_vec();
        let table =
            Self { head, rates, routes, conditions, splits, edits, pages, words, prefixes, numbers, arena };
        table.check(&table_name(reference.id))?;
        Ok(table)
    }

    /// Bytes of the arena; none where the stretch leaves it, which a parsed table's don't.
    pub fn bytes(&self, stretch: Stretch) -> &[u8] {
        part(&self.arena, stretch).unwrap_or_default()
    }

    /// Text of the arena; none where it is not UTF-8, which a parsed table's is but for bodies.
    pub fn text(&self, stretch: Stretch) -> &str {
        std::str::from_utf8(self.bytes(stretch)).unwrap_or_default()
    }

    /// Each pool that the table names, as often as it does.
    pub fn pools(&self) -> impl Iterator<Item = u32> {
        let none = crate::record::NO_INDEX;
        let mirrors = self.routes.iter().map(|route| route.mirror_pool).filter(move |pool| *pool != none);
        let default = Some(self.head.default_pool).filter(|pool| *pool != none);
        default.into_iter().chain(self.splits.iter().map(|split| split.pool)).chain(mirrors)
    }
}

/// Elements of an array; `None` where the stretch leaves it.
pub(super) fn part<T>(array: &[T], stretch: Stretch) -> Option<&[T]> {
    let end = stretch.first.checked_add(stretch.count)?;
    array.get(stretch.first as usize..end as usize)
}

impl Stretch {
    /// These elements of an array of the table, which a parsed table has.
    pub fn of<T>(self, array: &[T]) -> &[T] {
        part(array, self).unwrap_or_default()
    }
}

/// Puts text into an arena, the same text once.
#[derive(Debug, Default)]
pub struct Arena {
    bytes: Vec<u8>,
    known: HashMap<Box<[u8]>, Stretch>,
}

impl Arena {
    /// Where the text is.
    pub fn put(&mut self, text: impl AsRef<[u8]>) -> Stretch {
        let text = text.as_ref();
        if text.is_empty() {
            return Stretch::default();
        }
        if let Some(stretch) = self.known.get(text) {
            return *stretch;
        }
        let stretch = Stretch { first: self.bytes.len() as u32, count: text.len() as u32 };
        self.bytes.extend_from_slice(text);
        self.known.insert(text.into(), stretch);
        stretch
    }

    /// All of it.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
