//! What is all that a node needs to come up as another one, and how is it taken over?

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::apply::Manner;
use super::{Change, Engine, EngineError};
use crate::changes::unix_ms;
use crate::history::Entry;
use crate::state::{Bodies, Indices, Overrides};

/// Version of the file.
const SCHEMA: u32 = 1;
/// What tells it from other JSON.
const KIND: &str = "weir-backup";
/// Most bytes of texts of the past: older changes are left out.
const MOST_TEXT_BYTES: u64 = 16 << 20;

/// Configuration, history, administrative state and stable indices of a node. Health is not in it: it is found out again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// `weir-backup`.
    pub kind: String,
    /// Version of the file.
    pub schema: u32,
    /// When it was made.
    pub unix_ms: u64,
    /// Of which instance.
    pub instance: String,
    /// Of the body, as it is written without spaces.
    pub checksum: String,
    /// The rest.
    pub body: BackupBody,
}

/// What a [`Backup`] holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupBody {
    generation: u64,
    config: String,
    applied: String,
    overrides: Overrides,
    bodies: BTreeMap<String, String>,
    indices: Indices,
    history: Vec<Entry>,
    /// By hash.
    texts: BTreeMap<String, String>,
    /// By hash, hexadecimal.
    contents: BTreeMap<String, String>,
}

impl Backup {
    /// What is in it, in a few words.
    pub fn summary(&self) -> String {
        let changes = self.body.history.len();
        let plural = if changes == 1 { "" } else { "s" };
        format!(
            "{} at generation {}, {changes} change{plural} of history",
            self.instance, self.body.generation
        )
    }
}

fn checksum(body: &BackupBody) -> Result<String, EngineError> {
    let json = serde_json::to_vec(body).map_err(|error| EngineError::Backup(error.to_string()))?;
    Ok(format!("{:016x}", xxh3_64(&json)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    let bytes = pairs.map(|pair| u8::from_str_radix(pair.filter(|pair| pair.len() == 2)?, 16).ok());
    bytes.collect()
}

impl Backup {
    /// Whether it is one, of this release, and whole.
    pub fn verify(&self) -> Result<(), EngineError> {
        let Self { kind, schema, checksum: sum, body, .. } = self;
        let bad = |reason: String| EngineError::Backup(reason);
        if kind != KIND {
            return Err(bad(format!("its kind is \"{kind}\", not \"{KIND}\"")));
        }
        if *schema != SCHEMA {
            return Err(bad(format!(
                "its schema is {schema}, this program reads {SCHEMA}; use the release that wrote it"
            )));
        }
        if checksum(body)? != *sum {
            return Err(bad("its checksum does not match; it was damaged or edited".to_owned()));
        }
        Ok(())
    }
}

impl Engine {
    /// All of it, in one value.
    pub fn backup(&mut self) -> Result<Backup, EngineError> {
        let config = self.store.hash_of(&self.state.config);
        let applied = self.store.hash_of(&self.state.applied);
        let bodies = self.store.keep_bodies(&self.state.bodies)?;
        let mut body = BackupBody {
            generation: self.state.generation,
            config: config.clone(),
            applied: applied.clone(),
            overrides: self.state.overrides.clone(),
            bodies: bodies.clone(),
            indices: Indices::clone(&self.state.indices),
            history: Vec::new(),
            texts: BTreeMap::from([
                (config, self.state.config.to_string()),
                (applied, self.state.applied.to_string()),
            ]),
            contents: BTreeMap::new(),
        };
        self.add_contents(&mut body, &bodies)?;
        let entries: Vec<Arc<Entry>> = self.history.entries().rev().cloned().collect();
        let mut bytes = 0;
        for entry in entries {
            if !body.texts.contains_key(&entry.config) {
                bytes += entry.config_bytes;
                if bytes > MOST_TEXT_BYTES {
                    break;
                }
                body.texts.insert(entry.config.clone(), self.store.text(&entry.config)?.to_string());
            }
            self.add_contents(&mut body, &entry.bodies)?;
            body.history.push(Entry::clone(&entry));
        }
        body.history.reverse();
        if let Some(first) = body.history.first_mut() {
            first.all = self.history.overrides(first.number);
        }
        let checksum = checksum(&body)?;
        let instance = self.options.instance.clone();
        Ok(Backup { kind: KIND.to_owned(), schema: SCHEMA, unix_ms: unix_ms(), instance, checksum, body })
    }

    fn add_contents(
        &mut self,
        body: &mut BackupBody,
        hashes: &BTreeMap<String, String>,
    ) -> Result<(), EngineError> {
        if hashes.values().all(|hash| body.contents.contains_key(hash)) {
            return Ok(());
        }
        for (path, content) in &*self.store.bodies(hashes)? {
            if let Some(hash) = hashes.get(path) {
                body.contents.insert(hash.clone(), hex(content));
            }
        }
        Ok(())
    }

    /// Takes over everything of a backup. Indices are taken over where no dataplane runs; one that does holds flows by its
    /// own, which are kept.
    pub fn restore(&mut self, backup: Backup) -> Result<Change, EngineError> {
        backup.verify()?;
        let Backup { body, .. } = backup;
        let bad = |reason: String| EngineError::Backup(reason);
        for (hash, text) in &body.texts {
            if format!("{:016x}", xxh3_64(text.as_bytes())) != *hash {
                return Err(bad(format!("text {hash} does not match its hash")));
            }
        }
        let texts: BTreeMap<&String, Arc<str>> =
            body.texts.iter().map(|(hash, text)| (hash, Arc::from(text.as_str()))).collect();
        let text =
            |hash: &String| texts.get(hash).cloned().ok_or_else(|| bad(format!("text {hash} is missing")));
        let (config, applied) = (text(&body.config)?, text(&body.applied)?);
        let contents = self.contents_of(&body)?;
        let bodies_of = |hashes: &BTreeMap<String, String>| -> Result<Arc<Bodies>, EngineError> {
            let find = |(path, hash): (&String, &String)| {
                let content = contents.get(hash).cloned();
                content
                    .map(|content| (path.clone(), content))
                    .ok_or_else(|| bad(format!("file {hash} is missing")))
            };
            hashes.iter().map(find).collect::<Result<Bodies, _>>().map(Arc::new)
        };
        let bodies = bodies_of(&body.bodies)?;
        let mut history = Vec::new();
        for entry in &body.history {
            text(&entry.config)?;
            bodies_of(&entry.bodies)?;
            history.push(Arc::new(entry.clone()));
        }
        let contiguous = history.windows(2).all(|pair| match pair {
            [one, other] => one.number + 1 == other.number,
            _ => true,
        });
        if !contiguous || history.first().is_none_or(|first| first.all.is_none()) {
            return Err(bad("its history has gaps".to_owned()));
        }
        let mut candidate = self.candidate(&config, &bodies, body.overrides.clone(), "the backup")?;
        for text in texts.values() {
            self.store.keep_text(text)?;
        }
        for entry in &body.history {
            let bodies = bodies_of(&entry.bodies)?;
            self.store.keep_bodies(&bodies)?;
        }
        let state = &mut candidate.state;
        state.applied = if applied == state.config { state.config.clone() } else { applied };
        state.confirm = None;
        state.generation = state.generation.max(body.generation);
        if !self.snapshots.dataplane().is_alive {
            let mut indices = body.indices.clone();
            indices.revision = self.state.indices.revision + 1;
            for pool in indices.pools.values_mut() {
                pool.revision = indices.revision;
            }
            state.indices = Arc::new(indices);
        }
        // the restore itself is the change after the last one of the backup
        state.number = history.last().map_or(0, |entry| entry.number);
        state.pending.clear();
        let remembered: Vec<Arc<Entry>> = self.history.entries().cloned().collect();
        self.history.replace(history);
        self.restored = true;
        let done = self.settle(candidate, &Manner::default());
        self.restored = false;
        if done.is_err() {
            self.history.replace(remembered);
        }
        done
    }

    fn contents_of(&self, body: &BackupBody) -> Result<BTreeMap<String, Arc<[u8]>>, EngineError> {
        let one = |(hash, text): (&String, &String)| {
            let content = unhex(text).filter(|content| format!("{:016x}", xxh3_64(content)) == *hash);
            let content =
                content.ok_or_else(|| EngineError::Backup(format!("file {hash} does not match its hash")))?;
            Ok((hash.clone(), content.into()))
        };
        body.contents.iter().map(one).collect()
    }
}
