//! Which configurations were in force before, since when, by whom and why?
//!
//! `STATE_DIR/INSTANCE/history.log` has a line per change: the hash of the rest of the line, and an [`Entry`] as JSON. Texts are
//! kept beside it, named by their content, so that a weight costs its line and nothing more. A change is first in the state's
//! own file, which makes it durable before it is published; its line here is written after that and synced on the next tick.
//! What can't be read is moved aside and said, and history begins anew with what is in force.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::changes::{Origin, Who};
use crate::state::{Override, Overrides};

/// Most changes that are remembered.
pub const MOST_ENTRIES: usize = 1_000;
/// Most bytes of all texts together; the newest two changes are remembered whatever they hold.
pub const MOST_TEXT_BYTES: u64 = 64 << 20;
/// Largest file that is read at all.
const MOST_FILE_BYTES: u64 = 256 << 20;

/// Overrides that a change set; `None`: it took them away.
pub type OverrideChanges = BTreeMap<String, BTreeMap<String, Option<Override>>>;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// From 1, without gaps.
    pub number: u64,
    /// The generation that it was put in force with.
    pub generation: u64,
    /// When.
    pub unix_ms: u64,
    /// Who asked for it.
    pub who: Who,
    /// How: the command.
    pub how: String,
    /// The operator's comment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Hash of the running text.
    pub config: String,
    /// Its length.
    pub config_bytes: u64,
    /// Hashes of the files that it names, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bodies: BTreeMap<String, String>,
    /// What it did to weights and states of run time.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub overrides: OverrideChanges,
    /// All of them, where history begins here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<Overrides>,
}

impl Entry {
    /// A change by `origin`; what it is about is filled in by the caller.
    pub fn new(number: u64, generation: u64, unix_ms: u64, origin: Origin) -> Self {
        let Origin { who, how, comment } = origin;
        Self {
            number,
            generation,
            unix_ms,
            who,
            how,
            comment,
            config: String::new(),
            config_bytes: 0,
            bodies: BTreeMap::new(),
            overrides: OverrideChanges::new(),
            all: None,
        }
    }
}

/// What has to be set to come from one to the other.
pub fn override_changes(old: &Overrides, new: &Overrides) -> OverrideChanges {
    let mut changes = OverrideChanges::new();
    let none = BTreeMap::new();
    for pool in old.keys().chain(new.keys().filter(|pool| !old.contains_key(*pool))) {
        let (before, after) = (old.get(pool).unwrap_or(&none), new.get(pool).unwrap_or(&none));
        for backend in before.keys().chain(after.keys().filter(|name| !before.contains_key(*name))) {
            let now = after.get(backend).copied();
            if before.get(backend).copied() != now {
                changes.entry(pool.clone()).or_default().insert(backend.clone(), now);
            }
        }
    }
    changes
}

fn set(overrides: &mut Overrides, changes: &OverrideChanges) {
    for (pool, backends) in changes {
        for (backend, change) in backends {
            match change {
                Some(entry) => {
                    overrides.entry(pool.clone()).or_default().insert(backend.clone(), *entry);
                }
                None => {
                    if let Some(set) = overrides.get_mut(pool) {
                        set.remove(backend);
                    }
                }
            }
        }
        if overrides.get(pool).is_some_and(BTreeMap::is_empty) {
            overrides.remove(pool);
        }
    }
}

/// All changes that are remembered, oldest first; the first has all overrides.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    entries: VecDeque<Arc<Entry>>,
    file: Option<File>,
    /// The last change that is safe in the file.
    synced: u64,
    /// What is wrong with it, for the operator.
    trouble: Option<String>,
}

/// Why a file is not a history.
#[derive(Debug, thiserror::Error)]
enum Damage {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("line {0} does not match its hash")]
    Hash(usize),
    #[error("line {0}: {1}")]
    Entry(usize, serde_json::Error),
    #[error("line {line} is change {found}, not {expected}")]
    Gap { line: usize, found: u64, expected: u64 },
    #[error("it does not begin with all weights and states")]
    NoBeginning,
    #[error("it is larger than {MOST_FILE_BYTES} bytes")]
    Size,
}

fn line_of(entry: &Entry) -> io::Result<String> {
    let json = serde_json::to_string(entry).map_err(io::Error::other)?;
    Ok(format!("{:016x} {json}\n", xxh3_64(json.as_bytes())))
}

/// The changes in a file's text, and how much of it they are: a line that a crash cut off is no change.
fn parse(text: &[u8]) -> Result<(VecDeque<Arc<Entry>>, usize), Damage> {
    let mut entries: VecDeque<Arc<Entry>> = VecDeque::new();
    let mut length = 0;
    for (at, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let number = at + 1;
        let Some(whole) = line.strip_suffix(b"\n") else { break };
        let (hash, json) = match (whole.get(..16), whole.get(16), whole.get(17..)) {
            (Some(hash), Some(b' '), Some(json)) => (hash, json),
            _ => return Err(Damage::Hash(number)),
        };
        if hash != format!("{:016x}", xxh3_64(json)).as_bytes() {
            return Err(Damage::Hash(number));
        }
        let entry: Entry = serde_json::from_slice(json).map_err(|error| Damage::Entry(number, error))?;
        match entries.back() {
            None if entry.all.is_none() => return Err(Damage::NoBeginning),
            Some(last) if last.number + 1 != entry.number => {
                return Err(Damage::Gap { line: number, found: entry.number, expected: last.number + 1 });
            }
            _ => entries.push_back(Arc::new(entry)),
        }
        length += line.len();
    }
    Ok((entries, length))
}

/// Whether a file's text is a history: for those who try what it must refuse.
pub fn is_history(text: &[u8]) -> bool {
    parse(text).is_ok()
}

impl History {
    /// Opens the history in `directory`; whatever is wrong with it is in [`Self::trouble`], and never stops the daemon.
    pub fn open(directory: &Path) -> Self {
        let path = directory.join("history.log");
        let mut history = Self { path, entries: VecDeque::new(), file: None, synced: 0, trouble: None };
        match history.read() {
            Ok(()) => {}
            Err(damage) => {
                let aside = history.path.with_extension("log.damaged");
                let moved = match fs::rename(&history.path, &aside) {
                    Ok(()) => format!("it was moved to {}", aside.display()),
                    Err(error) => format!("it could not be moved aside: {error}"),
                };
                history.complain(format!(
                    "history {} is damaged: {damage}; {moved}, and history begins anew with what is in force",
                    history.path.display()
                ));
                history.entries.clear();
            }
        }
        history
    }

    fn read(&mut self) -> Result<(), Damage> {
        let text = match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
            Ok(metadata) if metadata.len() > MOST_FILE_BYTES => return Err(Damage::Size),
            Ok(_) => fs::read(&self.path)?,
        };
        let (entries, length) = parse(&text)?;
        if length < text.len() {
            // its change is in the state's file, or was never said to be made
            OpenOptions::new().write(true).open(&self.path)?.set_len(length as u64)?;
        }
        self.synced = entries.back().map_or(0, |entry| entry.number);
        self.entries = entries;
        Ok(())
    }

    fn complain(&mut self, text: String) {
        tracing::error!("{text}");
        self.trouble = Some(text);
    }

    /// What is wrong with it, until the daemon is started again or a later change is written.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// All changes, oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Arc<Entry>> {
        self.entries.iter()
    }

    /// The change of that number.
    pub fn entry(&self, number: u64) -> Option<&Arc<Entry>> {
        let first = self.entries.front()?.number;
        self.entries.get(usize::try_from(number.checked_sub(first)?).ok()?)
    }

    /// Number of the last change; 0 = none.
    pub fn last(&self) -> u64 {
        self.entries.back().map_or(0, |entry| entry.number)
    }

    /// The last change that is safe in its file.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// Weights and states of run time after the change of that number.
    pub fn overrides(&self, number: u64) -> Option<Overrides> {
        self.entry(number)?;
        let mut overrides = Overrides::new();
        for entry in self.entries.iter().take_while(|entry| entry.number <= number) {
            match &entry.all {
                Some(all) => overrides = all.clone(),
                None => set(&mut overrides, &entry.overrides),
            }
        }
        Some(overrides)
    }

    /// Adds a change that is in the state's file already.
    pub fn push(&mut self, entry: Arc<Entry>) {
        // a gap, which the caller finds by the last number
        let is_next = match self.last() {
            0 => entry.all.is_some(),
            last => entry.number == last + 1,
        };
        if !is_next {
            return;
        }
        self.entries.push_back(entry.clone());
        if self.prune() || self.synced + 1 < self.last() && self.file.is_none() {
            self.rewrite();
            return;
        }
        if let Err(error) = self.append(&entry) {
            self.file = None;
            self.complain(format!(
                "cannot write {}: {error}{}; the next change tries again",
                self.path.display(),
                crate::store::remedy(&error)
            ));
        }
    }

    fn append(&mut self, entry: &Entry) -> io::Result<()> {
        let line = line_of(entry)?;
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)?),
        };
        file.write_all(line.as_bytes())
    }

    /// Makes what was added durable; cheap where nothing was.
    pub fn sync(&mut self) {
        if self.synced == self.last() {
            return;
        }
        let Some(file) = &self.file else {
            self.rewrite();
            return;
        };
        match file.sync_data() {
            Ok(()) => self.synced = self.last(),
            Err(error) => {
                self.file = None;
                self.complain(format!("cannot sync {}: {error}", self.path.display()));
            }
        }
    }

    /// Begins anew with `entries`, the first of which has all overrides.
    pub fn replace(&mut self, entries: impl IntoIterator<Item = Arc<Entry>>) {
        self.entries = entries.into_iter().collect();
        self.prune();
        self.rewrite();
    }

    /// Writes all of it again, as a whole or not at all.
    fn rewrite(&mut self) {
        self.file = None;
        let write = || -> io::Result<()> {
            let temporary = self.path.with_extension("log.new");
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o640).open(&temporary)?;
            for entry in &self.entries {
                file.write_all(line_of(entry)?.as_bytes())?;
            }
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            self.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
        };
        match write() {
            Ok(()) => self.synced = self.last(),
            Err(error) => {
                self.complain(format!("cannot write {}: {error}; it is tried again", self.path.display()));
            }
        }
    }

    /// Forgets the oldest where there are too many; says whether it did.
    fn prune(&mut self) -> bool {
        // some at once: each time costs the file
        let over = self.entries.len() > MOST_ENTRIES + MOST_ENTRIES / 10;
        let keep = if over { MOST_ENTRIES } else { self.entries.len() };
        let mut texts: BTreeSet<&str> = BTreeSet::new();
        let (mut bytes, mut fit) = (0, 0);
        for entry in self.entries.iter().rev().take(keep) {
            if texts.insert(&entry.config) {
                bytes += entry.config_bytes;
            }
            if bytes > MOST_TEXT_BYTES && fit >= 2 {
                break;
            }
            fit += 1;
        }
        let drop = self.entries.len() - fit;
        if drop == 0 {
            return false;
        }
        let first = self.entries.get(drop).map_or(0, |entry| entry.number);
        let all = self.overrides(first);
        self.entries.drain(..drop);
        if let Some(entry) = self.entries.front_mut() {
            Arc::make_mut(entry).all = all;
        }
        true
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
