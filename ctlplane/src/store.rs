//! Where does the state live between two lives of the daemon?
//!
//! `STATE_DIR/INSTANCE/state.json` is the commit point; it names the larger files by the hash of their content. Each is
//! written to a temporary file, synced, renamed, and the directory synced, so a crash leaves the old state or the new one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::state::{Bodies, Indices, Overrides, State};

/// Version of the files.
const SCHEMA: u32 = 1;

/// The directory of one instance.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    saved_config: Option<u64>,
    saved_indices: Option<(u64, u64)>,
    saved_bodies: Option<(Arc<Bodies>, BTreeMap<String, String>)>,
}

/// Why the state cannot be read or kept. Nothing is ever dropped silently.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
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
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    schema: u32,
    checksum: String,
    body: Body,
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
        Ok(Self { directory, saved_config: None, saved_indices: None, saved_bodies: None })
    }

    fn state_path(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    fn config_path(&self, hash: &str) -> PathBuf {
        self.directory.join(format!("config-{hash}.toml"))
    }

    fn indices_path(&self, hash: &str) -> PathBuf {
        self.directory.join(format!("indices-{hash}.json"))
    }

    fn body_path(&self, hash: &str) -> PathBuf {
        self.directory.join(format!("body-{hash}"))
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
            Some(found) if found == u64::from(SCHEMA) => {}
            Some(found) => return Err(StoreError::Schema { path, found }),
            None => return Err(corrupt("it has no schema number".to_owned())),
        }
        let envelope: Envelope = serde_json::from_value(value).map_err(|error| corrupt(error.to_string()))?;
        if checksum(&envelope.body, &path)? != envelope.checksum {
            return Err(corrupt("its checksum does not match".to_owned()));
        }
        let body = envelope.body;
        let config = read_hashed(&self.config_path(&body.config), &body.config)?;
        let config_path = self.config_path(&body.config);
        let config = String::from_utf8(config)
            .map_err(|error| StoreError::Corrupt { path: config_path, reason: error.to_string() })?;
        let indices_path = self.indices_path(&body.indices);
        let indices = read_hashed(&indices_path, &body.indices)?;
        let indices: Indices = serde_json::from_slice(&indices)
            .map_err(|error| StoreError::Corrupt { path: indices_path, reason: error.to_string() })?;
        let mut bodies = Bodies::new();
        for (name, hash) in &body.bodies {
            bodies.insert(name.clone(), read_hashed(&self.body_path(hash), hash)?.into());
        }
        let bodies = Arc::new(bodies);
        self.saved_bodies = Some((bodies.clone(), body.bodies));
        self.saved_config = Some(xxh3_64(config.as_bytes()));
        self.saved_indices = u64::from_str_radix(&body.indices, 16).ok().map(|hash| (indices.revision, hash));
        Ok(Some(State {
            generation: body.generation,
            config: config.into(),
            bodies,
            overrides: body.overrides,
            indices: indices.into(),
        }))
    }

    /// Keeps `state`; writes the larger files only where they changed.
    pub fn save(&mut self, state: &State) -> Result<(), StoreError> {
        let config = xxh3_64(state.config.as_bytes());
        if self.saved_config != Some(config) {
            self.write(&self.config_path(&hash_name(config)), state.config.as_bytes())?;
        }
        let indices = match self.saved_indices {
            Some((revision, hash)) if revision == state.indices.revision => hash,
            _ => {
                let path = self.directory.join("indices");
                let text = to_json(&*state.indices, &path)?;
                let hash = xxh3_64(text.as_bytes());
                self.write(&self.indices_path(&hash_name(hash)), text.as_bytes())?;
                hash
            }
        };
        let (bodies, are_new) = self.save_bodies(&state.bodies)?;
        let path = self.state_path();
        let body = Body {
            generation: state.generation,
            config: hash_name(config),
            indices: hash_name(indices),
            overrides: state.overrides.clone(),
            bodies: bodies.clone(),
        };
        let envelope = Envelope { schema: SCHEMA, checksum: checksum(&body, &path)?, body };
        self.write(&path, to_json(&envelope, &path)?.as_bytes())?;
        let replaced = self.saved_config != Some(config)
            || self.saved_indices.map(|(_, h)| h) != Some(indices)
            || are_new;
        self.saved_bodies = Some((state.bodies.clone(), bodies));
        self.saved_config = Some(config);
        self.saved_indices = Some((state.indices.revision, indices));
        if replaced {
            self.remove_others(&envelope.body);
        }
        Ok(())
    }

    /// Writes the bodies that are not there yet; their hashes by path, and whether they are others than before.
    fn save_bodies(&self, bodies: &Arc<Bodies>) -> Result<(BTreeMap<String, String>, bool), StoreError> {
        if let Some((saved, hashes)) = self.saved_bodies.as_ref().filter(|(saved, _)| saved == bodies) {
            debug_assert_eq!(saved.len(), hashes.len());
            return Ok((hashes.clone(), false));
        }
        let mut hashes = BTreeMap::new();
        for (name, content) in &**bodies {
            let hash = hash_name(xxh3_64(content));
            let path = self.body_path(&hash);
            // what is there was verified when it was loaded, or written by this process
            if !path.exists() {
                self.write(&path, content)?;
            }
            hashes.insert(name.clone(), hash);
        }
        Ok((hashes, true))
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
        let mut file = options.open(&temporary).map_err(error("write"))?;
        file.write_all(content).map_err(error("write"))?;
        file.sync_all().map_err(error("sync"))?;
        fs::rename(&temporary, path).map_err(error("rename"))?;
        File::open(&self.directory).and_then(|dir| dir.sync_all()).map_err(error("sync the directory of"))
    }

    /// Files of states before this one; failing to remove them harms nobody.
    fn remove_others(&self, body: &Body) {
        let mut keep = vec![self.config_path(&body.config), self.indices_path(&body.indices)];
        keep.extend(body.bodies.values().map(|hash| self.body_path(hash)));
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let ours = ["config-", "indices-", "body-"].iter().any(|kind| name.starts_with(kind));
            if ours && !keep.contains(&path) && fs::remove_file(&path).is_err() {
                tracing::debug!("could not remove {}", path.display());
            }
        }
    }
}

fn to_json(value: &impl Serialize, path: &Path) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Corrupt { path: path.to_owned(), reason: error.to_string() })
}

fn checksum(body: &Body, path: &Path) -> Result<String, StoreError> {
    Ok(hash_name(xxh3_64(to_json(body, path)?.as_bytes())))
}

fn read_hashed(path: &Path, hash: &str) -> Result<Vec<u8>, StoreError> {
    let content =
        fs::read(path).map_err(|source| StoreError::Io { action: "read", path: path.to_owned(), source })?;
    if hash_name(xxh3_64(&content)) != hash {
        let reason = "its content does not match its name".to_owned();
        return Err(StoreError::Corrupt { path: path.to_owned(), reason });
    }
    Ok(content)
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
        let config = "# text".into();
        State { generation: 3, config, bodies: bodies.into(), overrides, indices: Indices::default().into() }
    }

    #[test]
    fn what_is_saved_is_loaded_and_old_files_go() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path().join("weir")).unwrap();
        assert!(store.load().unwrap().is_none());
        store.save(&state()).unwrap();
        let mut changed = state();
        changed.config = "# other".into();
        changed.generation = 4;
        store.save(&changed).unwrap();
        let mut again = Store::open(directory.path().join("weir")).unwrap();
        assert_eq!(again.load().unwrap(), Some(changed.clone()));
        let count = || fs::read_dir(directory.path().join("weir")).unwrap().count();
        assert_eq!(count(), 4);
        changed.bodies =
            Bodies::from([("/a".to_owned(), b"1"[..].into()), ("/b".to_owned(), b"1"[..].into())]).into();
        again.save(&changed).unwrap();
        assert_eq!(count(), 4, "equal bodies are one file, and the other one is gone");
        changed.bodies = Arc::default();
        again.save(&changed).unwrap();
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
        fs::write(directory.path().join("state.json"), r#"{"schema":2,"new":1}"#).unwrap();
        let error = Store::open(directory.path().to_owned()).unwrap().load().unwrap_err();
        assert!(matches!(error, StoreError::Schema { found: 2, .. }));
    }
}
