//! `[control]`: how the daemon keeps the configuration.

use crate::diagnostic::Located;
use crate::model;
use crate::reader::TableReader;

/// `[control]`.
#[derive(Debug, Default)]
pub struct Control {
    /// `git`.
    pub git: Option<Located<bool>>,
}

impl Control {
    /// What it means.
    pub(crate) fn model(&self) -> model::Control {
        model::Control { git: self.git.as_ref().is_some_and(|git| git.value) }
    }
}

pub(crate) fn read(table: &mut TableReader<'_, '_>) -> Control {
    Control { git: table.boolean("git") }
}
