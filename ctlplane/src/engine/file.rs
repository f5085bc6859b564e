//! How does what is in force stand to the operator's file, and how does it get there?

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::apply::{Candidate, Manner};
use super::{Change, Compared, Engine, EngineError, check};
use crate::changes::difference::{self, Differences};
use crate::changes::edit::Editor;
use crate::drain;
use crate::state::{Override, Overrides};
use crate::validate::{self, Files};

impl Engine {
    /// How what is in force differs from the operator's file, a line each.
    pub fn drift(&self) -> Vec<String> {
        let mut drift = Vec::new();
        let path = self.options.config.display();
        match fs::read_to_string(&self.options.config) {
            Ok(text) if *text == *self.state.applied => {}
            Ok(_) => drift
                .push(format!("{path} differs from the applied configuration; weir apply puts it in force")),
            Err(error) => drift.push(format!("{path} cannot be read: {error}")),
        }
        drift.extend(validate::differences(&self.state.bodies));
        drift.extend(self.edited());
        drift.extend(drain::told(&self.state.overrides));
        for (pool, backends) in self.state.overrides.iter().filter(|(pool, _)| drain::is_pool(pool)) {
            for (backend, Override { weight, state }) in backends {
                let weight = weight.map(|weight| format!("weight {weight}"));
                let state = state.map(|state| format!("state {}", state.name()));
                let set: Vec<String> = weight.into_iter().chain(state).collect();
                drift.push(format!("{pool}/{backend} was set to {} at run time", set.join(", ")));
            }
        }
        drift
    }

    /// How the running text differs from the applied one.
    fn edited(&self) -> Vec<String> {
        let (applied, config) = (&self.state.applied, &self.state.config);
        if Arc::ptr_eq(applied, config) || applied == config {
            return Vec::new();
        }
        let mut compared = self.compared.borrow_mut();
        if let Some(Compared { old, new, lines }) = compared.as_ref()
            && Arc::ptr_eq(old, applied)
            && Arc::ptr_eq(new, config)
        {
            return lines.clone();
        }
        let none = Overrides::new();
        let lines =
            difference::between(&difference::table(applied, &none), &difference::table(config, &none))
                .lines();
        *compared = Some(Compared { old: applied.clone(), new: config.clone(), lines: lines.clone() });
        lines
    }

    /// How what is in force differs from the operator's file as it is now.
    pub fn differences_from_file(&self) -> Result<Differences, EngineError> {
        let text = self.read_file()?;
        let before = difference::table(&text, &Overrides::new());
        let now = difference::table(&self.state.config, &self.state.overrides);
        Ok(difference::between(&before, &now))
    }

    fn read_file(&self) -> Result<String, EngineError> {
        let path = self.options.config.clone();
        fs::read_to_string(&path).map_err(|source| EngineError::Read { path, source })
    }

    /// Applies the operator's file as it is now.
    pub fn apply_file(&mut self, manner: &Manner) -> Result<Change, EngineError> {
        let text = self.read_file()?;
        let name = self.options.config.display().to_string();
        self.apply_as(&text, &name, manner)
    }

    /// The running text with what was set at run time written in.
    pub fn running_text(&self) -> Result<Arc<str>, EngineError> {
        if self.state.overrides.is_empty() {
            return Ok(self.state.config.clone());
        }
        let mut editor = Editor::new(&self.state.config)?;
        editor.write_overrides(&self.state.overrides);
        Ok(editor.text().into())
    }

    /// Writes what is in force to the operator's file, which then is what was applied.
    pub fn save(&mut self, force: bool) -> Result<Change, EngineError> {
        let text = self.running_text()?;
        let on_disk = match fs::read_to_string(&self.options.config) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if force => {
                tracing::warn!(
                    "{} cannot be read: {error}; it is overwritten",
                    self.options.config.display()
                );
                None
            }
            Err(source) => return Err(EngineError::Read { path: self.options.config.clone(), source }),
        };
        let is_ours = |disk: &String| **disk == *self.state.applied || **disk == *text;
        if !force && on_disk.as_ref().is_some_and(|disk| !is_ours(disk)) {
            return Err(EngineError::FileChanged { path: self.options.config.clone() });
        }
        let mut files = Files::kept(&self.state.bodies);
        let name = self.options.config.display().to_string();
        let (model, warnings) = check(&text, &name, &self.options.machine, &mut files)?;
        if on_disk.is_none_or(|disk| *disk != *text) {
            replace(&self.options.config, text.as_bytes())?;
        }
        let mut state = self.state.clone();
        state.config = self.shared(&text);
        state.applied = state.config.clone();
        // the node is not in the file
        state.overrides = drain::with_node_of(Overrides::new(), &self.state.overrides);
        self.settle(Candidate { state, model, warnings }, &Manner::default())
    }

    /// Puts the applied text in force again, without what was changed at run time since.
    pub fn discard(&mut self, manner: &Manner) -> Result<Change, EngineError> {
        self.expect(manner)?;
        let (applied, bodies) = (self.state.applied.clone(), self.state.bodies.clone());
        let candidate = self.candidate(&applied, &bodies, Overrides::new(), "the applied configuration")?;
        self.settle(candidate, manner)
    }
}

/// Writes a file as a whole or not at all; mode and owner stay.
fn replace(path: &Path, content: &[u8]) -> Result<(), EngineError> {
    // a link stays one
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut temporary = target.clone().into_os_string();
    temporary.push(format!(".new-{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let error = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| EngineError::Write { action, path, source }
    };
    let write = || {
        let before = fs::metadata(&target).ok();
        match fs::remove_file(&temporary) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(error("remove", &temporary)(source));
            }
            _ => {}
        }
        let mut options = OpenOptions::new();
        // the hash key is a secret until it is known who may read it
        let options = options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&temporary).map_err(error("write", &temporary))?;
        file.write_all(content).map_err(error("write", &temporary))?;
        if let Some(before) = before {
            let now = file.metadata().map_err(error("look at", &temporary))?;
            if (now.uid(), now.gid()) != (before.uid(), before.gid()) {
                fchown(&file, Some(before.uid()), Some(before.gid()))
                    .map_err(error("keep the owner of", &target))?;
            }
            let mode = fs::Permissions::from_mode(before.mode() & 0o7777);
            file.set_permissions(mode).map_err(error("keep the mode of", &target))?;
        } else {
            let mode = fs::Permissions::from_mode(0o640);
            file.set_permissions(mode).map_err(error("set the mode of", &target))?;
        }
        file.sync_all().map_err(error("sync", &temporary))?;
        fs::rename(&temporary, &target).map_err(error("replace", &target))?;
        let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or_else(|| Path::new("."));
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(error("sync the directory of", &target))
    };
    write().inspect_err(|_| {
        let _gone = fs::remove_file(&temporary);
    })
}
