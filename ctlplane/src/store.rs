//! Where does the state live between two lives of the daemon?
//!
//! `STATE_DIR/INSTANCE/state.json` is the commit point; it names the larger files by the hash of their content. Each is
//! written to a temporary file, synced, renamed, and the directory synced, so a crash leaves the old state or the new one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::history::{Entry, History};
use crate::state::{Bodies, Confirm, Indices, Overrides, State};

/// Version of the files.
const SCHEMA: u32 = 2;
/// Texts, and sets of bodies, whose hashes are remembered: in force, applied, waiting for a confirmation.
const MOST_CACHED: usize = 3;

/// The directory of one instance.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    /// Files named by content that this process wrote or read.
    known: BTreeSet<String>,
    /// Hashes of the texts at hand.
    texts: VecDeque<(Arc<str>, String)>,
    /// Hashes of the bodies at hand.
    bodies: VecDeque<(Arc<Bodies>, BTreeMap<String, String>)>,
    saved_indices: Option<(u64, String)>,
    is_untidy: bool,
}

/// Why the state cannot be read or kept. Nothing is ever dropped silently.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}{}", path.display(), remedy(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not what was written.
    #[error(
        "{} is corrupt: {reason}; restore it from a backup, or move it away to start again from the --config file (runtime \
         weights and drains are then lost)",
        path.display()
    )]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// How.
        reason: String,
    },
    /// Of a later release.
    #[error("{} has schema {found}, this program reads {SCHEMA}; start the release that wrote it", path.display())]
    Schema {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
}

/// What the operator can do where a file can't be written, to follow the system's words; empty where it is not known.
pub fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "; make room on its file system and try again",
        io::ErrorKind::QuotaExceeded => {
            "; raise the quota of weir-ctlplane's user, or make room, and try again"
        }
        io::ErrorKind::FileTooLarge => {
            "; raise the limit of file sizes (ulimit -f, LimitFSIZE=) and try again"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; mount its file system writable and try again",
        io::ErrorKind::PermissionDenied => "; give weir-ctlplane's user the right to it and try again",
        _ => "",
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    generation: u64,
    config: String,
    indices: String,
    overrides: Overrides,
    /// Hashes of bodies, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    bodies: BTreeMap<String, String>,
    /// Where it is not `config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    applied: Option<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    number: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pending: Vec<Entry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    confirm: Option<ConfirmBody>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfirmBody {
    deadline_unix_ms: u64,
    number: u64,
    config: String,
    bodies: BTreeMap<String, String>,
    overrides: Overrides,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    schema: u32,
    checksum: String,
    body: Body,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn hash_name(hash: u64) -> String {
    format!("{hash:016x}")
}

impl Store {
    /// Opens, and makes where needed, the directory.
    pub fn open(directory: PathBuf) -> Result<Self, StoreError> {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(&directory).map_err(|source| {
            StoreError::Io { action: "make the directory", path: directory.clone(), source }
        })?;
        Ok(Self {
            directory,
            known: BTreeSet::new(),
            texts: VecDeque::new(),
            bodies: VecDeque::new(),
            saved_indices: None,
            is_untidy: true,
        })
    }

    /// Where everything is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn state_path(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    /// The kept state; `None` on the very first start.
    pub fn load(&mut self) -> Result<Option<State>, StoreError> {
        let path = self.state_path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { action: "read", path, source }),
        };
        let corrupt = |reason: String| StoreError::Corrupt { path: path.clone(), reason };
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| corrupt(error.to_string()))?;
        match value.get("schema").and_then(serde_json::Value::as_u64) {
            // the first one has less in it
            Some(found) if (1..=u64::from(SCHEMA)).contains(&found) => {}
            Some(found) => return Err(StoreError::Schema { path, found }),
            None => return Err(corrupt("it has no schema number".to_owned())),
        }
        let envelope: Envelope = serde_json::from_value(value).map_err(|error| corrupt(error.to_string()))?;
        if checksum(&envelope.body, &path)? != envelope.checksum {
            return Err(corrupt("its checksum does not match".to_owned()));
        }
        let body = envelope.body;
        let config = self.text(&body.config)?;
        let applied = match &body.applied {
            Some(hash) => self.text(hash)?,
            None => config.clone(),
        };
        let name = format!("indices-{}.json", body.indices);
        let indices = self.read_hashed(&name, &body.indices)?;
        let indices: Indices = serde_json::from_slice(&indices).map_err(|error| StoreError::Corrupt {
            path: self.directory.join(name),
            reason: error.to_string(),
        })?;
        let confirm = match body.confirm {
            Some(confirm) => Some(Confirm {
                deadline_unix_ms: confirm.deadline_unix_ms,
                number: confirm.number,
                config: self.text(&confirm.config)?,
                bodies: self.bodies(&confirm.bodies)?,
                overrides: confirm.overrides,
            }),
            None => None,
        };
        self.saved_indices = Some((indices.revision, body.indices));
        Ok(Some(State {
            generation: body.generation,
            config,
            applied,
            bodies: self.bodies(&body.bodies)?,
            overrides: body.overrides,
            indices: indices.into(),
            number: body.number,
            pending: body.pending.into_iter().map(Arc::new).collect(),
            confirm,
        }))
    }

    /// Keeps `state`; writes the larger files only where they are not there yet.
    pub fn save(&mut self, state: &State) -> Result<(), StoreError> {
        let config = self.keep_text(&state.config)?;
        let applied = self.keep_text(&state.applied)?;
        let indices = self.keep_indices(&state.indices)?;
        let bodies = self.keep_bodies(&state.bodies)?;
        let confirm = match &state.confirm {
            Some(confirm) => Some(ConfirmBody {
                deadline_unix_ms: confirm.deadline_unix_ms,
                number: confirm.number,
                config: self.keep_text(&confirm.config)?,
                bodies: self.keep_bodies(&confirm.bodies)?,
                overrides: confirm.overrides.clone(),
            }),
            None => None,
        };
        let path = self.state_path();
        let body = Body {
            generation: state.generation,
            applied: (applied != config).then_some(applied),
            config,
            indices,
            overrides: state.overrides.clone(),
            bodies,
            number: state.number,
            pending: state.pending.iter().map(|entry| Entry::clone(entry)).collect(),
            confirm,
        };
        let envelope = Envelope { schema: SCHEMA, checksum: checksum(&body, &path)?, body };
        self.write(&path, to_json(&envelope, &path)?.as_bytes())
    }

    /// The hash of a text, which names it in history.
    pub fn hash_of(&mut self, text: &Arc<str>) -> String {
        if let Some((_, hash)) = self.texts.iter().find(|(known, _)| Arc::ptr_eq(known, text)) {
            return hash.clone();
        }
        let hash = hash_name(xxh3_64(text.as_bytes()));
        self.texts.push_back((text.clone(), hash.clone()));
        if self.texts.len() > MOST_CACHED {
            self.texts.pop_front();
        }
        hash
    }

    /// A text by its hash.
    pub fn text(&mut self, hash: &str) -> Result<Arc<str>, StoreError> {
        if let Some((text, _)) = self.texts.iter().find(|(_, known)| known == hash) {
            return Ok(text.clone());
        }
        let name = format!("config-{hash}.toml");
        let text = String::from_utf8(self.read_hashed(&name, hash)?).map_err(|error| {
            StoreError::Corrupt { path: self.directory.join(name), reason: error.to_string() }
        })?;
        Ok(text.into())
    }

    /// What files held, by the hashes of their contents.
    pub fn bodies(&mut self, hashes: &BTreeMap<String, String>) -> Result<Arc<Bodies>, StoreError> {
        let mut bodies = Bodies::new();
        for (path, hash) in hashes {
            bodies.insert(path.clone(), self.read_hashed(&format!("body-{hash}"), hash)?.into());
        }
        Ok(bodies.into())
    }

    /// Keeps a text under its hash.
    pub fn keep_text(&mut self, text: &Arc<str>) -> Result<String, StoreError> {
        let hash = self.hash_of(text);
        self.keep(format!("config-{hash}.toml"), text.as_bytes())?;
        Ok(hash)
    }

    /// Keeps what files held; their hashes by path.
    pub fn keep_bodies(&mut self, bodies: &Arc<Bodies>) -> Result<BTreeMap<String, String>, StoreError> {
        if let Some((_, hashes)) = self.bodies.iter().find(|(known, _)| Arc::ptr_eq(known, bodies)) {
            return Ok(hashes.clone());
        }
        let mut hashes = BTreeMap::new();
        for (path, content) in &**bodies {
            let hash = hash_name(xxh3_64(content));
            self.keep(format!("body-{hash}"), content)?;
            hashes.insert(path.clone(), hash);
        }
        self.bodies.push_back((bodies.clone(), hashes.clone()));
        if self.bodies.len() > MOST_CACHED {
            self.bodies.pop_front();
        }
        Ok(hashes)
    }

    fn keep_indices(&mut self, indices: &Indices) -> Result<String, StoreError> {
        if let Some((revision, hash)) = &self.saved_indices
            && *revision == indices.revision
        {
            return Ok(hash.clone());
        }
        let text = to_json(indices, &self.directory.join("indices"))?;
        let hash = hash_name(xxh3_64(text.as_bytes()));
        self.keep(format!("indices-{hash}.json"), text.as_bytes())?;
        self.saved_indices = Some((indices.revision, hash.clone()));
        self.is_untidy = true;
        Ok(hash)
    }

    /// What this process did not see is written, also over what is there: it may be damaged.
    fn keep(&mut self, name: String, content: &[u8]) -> Result<(), StoreError> {
        if !self.known.contains(&name) {
            self.write(&self.directory.join(&name), content)?;
            self.known.insert(name);
            self.is_untidy = true;
        }
        Ok(())
    }

    fn read_hashed(&mut self, name: &str, hash: &str) -> Result<Vec<u8>, StoreError> {
        let path = self.directory.join(name);
        let content = fs::read(&path).map_err(|source| StoreError::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        if hash_name(xxh3_64(&content)) != hash {
            let reason = "its content does not match its name".to_owned();
            return Err(StoreError::Corrupt { path, reason });
        }
        self.known.insert(name.to_owned());
        Ok(content)
    }

    /// Whether there may be files that nobody needs.
    pub fn is_untidy(&self) -> bool {
        self.is_untidy
    }

    /// Removes the files that neither `state`, which is the one that was saved last, nor history needs. Failing to harms nobody.
    pub fn tidy(&mut self, state: &State, history: &History) {
        let entries = history.entries().chain(&state.pending).map(Arc::as_ref);
        let mut keep: BTreeSet<String> = BTreeSet::new();
        for entry in entries {
            keep.insert(format!("config-{}.toml", entry.config));
            keep.extend(entry.bodies.values().map(|hash| format!("body-{hash}")));
        }
        let of_confirm = state.confirm.as_ref().map(|confirm| (&confirm.config, &confirm.bodies));
        for (text, bodies) in [(&state.config, &state.bodies)].into_iter().chain(of_confirm) {
            keep.insert(format!("config-{}.toml", self.hash_of(text)));
            keep.extend(bodies.values().map(|content| format!("body-{}", hash_name(xxh3_64(content)))));
        }
        keep.insert(format!("config-{}.toml", self.hash_of(&state.applied)));
        keep.extend(self.saved_indices.as_ref().map(|(_, hash)| format!("indices-{hash}.json")));
        self.is_untidy = false;
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = ["config-", "indices-", "body-"].iter().any(|kind| name.starts_with(kind));
            if ours && !keep.contains(&name) && fs::remove_file(entry.path()).is_err() {
                tracing::debug!("could not remove {}", entry.path().display());
            }
        }
        self.known.retain(|name| keep.contains(name));
        self.bodies.retain(|(_, hashes)| hashes.values().all(|hash| keep.contains(&format!("body-{hash}"))));
    }

    fn write(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        let error = |action: &'static str| {
            move |source: io::Error| StoreError::Io { action, path: path.to_owned(), source }
        };
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        // the hash key is a secret
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o640);
        let written = || {
            let mut file = options.open(&temporary).map_err(error("write"))?;
            file.write_all(content).map_err(error("write"))?;
            file.sync_all().map_err(error("sync"))?;
            fs::rename(&temporary, path).map_err(error("rename"))
        };
        written().inspect_err(|_| {
            // a part of it would only keep room from the next one
            let _gone = fs::remove_file(&temporary);
        })?;
        File::open(&self.directory).and_then(|dir| dir.sync_all()).map_err(error("sync the directory of"))
    }
}

fn to_json(value: &impl Serialize, path: &Path) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Corrupt { path: path.to_owned(), reason: error.to_string() })
}

fn checksum(body: &Body, path: &Path) -> Result<String, StoreError> {
    Ok(hash_name(xxh3_64(to_json(body, path)?.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Override;

    fn state() -> State {
        let mut overrides = Overrides::new();
        let entry = Override { weight: Some(7), state: None };
        overrides.entry("app".to_owned()).or_default().insert("one".to_owned(), entry);
        let bodies = Bodies::from([("/etc/weir/503.html".to_owned(), b"later"[..].into())]);
        let config: Arc<str> = "# text".into();
        let confirm = Confirm {
            deadline_unix_ms: 5,
            number: 1,
            config: config.clone(),
            bodies: Arc::default(),
            overrides: Overrides::new(),
        };
        let origin = crate::changes::Origin::daemon("test");
        State {
            generation: 3,
            applied: config.clone(),
            config,
            bodies: bodies.into(),
            overrides,
            indices: Indices::default().into(),
            number: 2,
            pending: vec![Entry::new(2, 3, 1, origin).into()],
            confirm: Some(confirm),
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_old_files_go() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path().join("weir")).unwrap();
        assert!(store.load().unwrap().is_none());
        store.save(&state()).unwrap();
        let mut changed = state();
        changed.config = "# other".into();
        changed.applied = changed.config.clone();
        (changed.generation, changed.confirm, changed.pending) = (4, None, Vec::new());
        let history = History::open(directory.path());
        store.save(&changed).unwrap();
        store.tidy(&changed, &history);
        let mut again = Store::open(directory.path().join("weir")).unwrap();
        assert_eq!(again.load().unwrap(), Some(changed.clone()));
        let count = || fs::read_dir(directory.path().join("weir")).unwrap().count();
        assert_eq!(count(), 4);
        changed.bodies =
            Bodies::from([("/a".to_owned(), b"1"[..].into()), ("/b".to_owned(), b"1"[..].into())]).into();
        again.save(&changed).unwrap();
        again.tidy(&changed, &history);
        assert_eq!(count(), 4, "equal bodies are one file, and the other one is gone");
        changed.bodies = Arc::default();
        again.save(&changed).unwrap();
        again.tidy(&changed, &history);
        assert_eq!((count(), store.load().unwrap()), (3, Some(changed)));
    }

    #[test]
    fn any_damage_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path().to_owned()).unwrap();
        store.save(&state()).unwrap();
        for entry in fs::read_dir(directory.path()).unwrap() {
            let path = entry.unwrap().path();
            let good = fs::read(&path).unwrap();
            let mut cases = vec![Vec::new(), good[..good.len() / 2].to_vec()];
            for at in 0..good.len() {
                let mut flipped = good.clone();
                flipped[at] ^= 1;
                cases.push(flipped);
            }
            for case in cases {
                fs::write(&path, &case).unwrap();
                let error = Store::open(directory.path().to_owned()).unwrap().load().unwrap_err().to_string();
                assert!(error.contains(directory.path().to_str().unwrap()), "{error}");
            }
            fs::remove_file(&path).unwrap();
            if !path.ends_with("state.json") {
                assert!(Store::open(directory.path().to_owned()).unwrap().load().is_err());
            }
            fs::write(&path, &good).unwrap();
        }
        assert_eq!(Store::open(directory.path().to_owned()).unwrap().load().unwrap(), Some(state()));
    }

    #[test]
    fn a_later_schema_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("state.json"), r#"{"schema":3,"new":1}"#).unwrap();
        let error = Store::open(directory.path().to_owned()).unwrap().load().unwrap_err();
        assert!(matches!(error, StoreError::Schema { found: 3, .. }));
    }
}
