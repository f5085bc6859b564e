//! One run of the testbed: its name, its directory, and the sweeping of runs that died.
//!
//! Everything that a run makes on the machine carries its name, `t<pid>n<number>`: namespaces, the directory under
//! `/run/weir-testbed`, segments in `/dev/shm` and in the hugetlbfs mount. What carries the name of a process that
//! is gone belongs to nobody and may be removed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::command;
use crate::supervisor::{end_by_id, start_time};
use crate::topology::namespace::{PREFIX, owner_of};

const ROOT: &str = "/run/weir-testbed";
/// Where both processes of Weir keep their shared segments.
pub(crate) const SHM: &str = "/dev/shm";

/// Who a run belongs to; written into its directory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// The testbed's process.
    pub(crate) id: u32,
    /// When that process started.
    pub(crate) started: u64,
    /// Whether the run was left behind on purpose.
    pub(crate) kept: bool,
    /// Processes that were left running: id and start.
    pub(crate) processes: Vec<(u32, u64)>,
}

/// A run of this process.
#[derive(Debug)]
pub(crate) struct Run {
    name: String,
    directory: PathBuf,
    kept: bool,
}

impl Run {
    /// A new one, with its directory.
    pub(crate) fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let id = std::process::id();
        let name = format!("t{id}n{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = Path::new(ROOT).join(format!("weir-{name}"));
        for part in ["logs", "run", "state", "servers"] {
            std::fs::create_dir_all(directory.join(part))
                .with_context(|| format!("could not create {}", directory.display()))?;
        }
        let run = Self { name, directory, kept: false };
        run.write_owner(&Owner {
            id,
            started: start_time(id).unwrap_or(0),
            kept: false,
            processes: Vec::new(),
        })?;
        Ok(run)
    }

    /// `t<pid>n<number>`: the name of Weir's instance and part of every namespace's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A path inside its directory.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.directory.join(inside)
    }

    /// Its logs.
    pub(crate) fn logs(&self) -> PathBuf {
        self.path("logs")
    }

    fn write_owner(&self, owner: &Owner) -> Result<()> {
        let path = self.path("owner.json");
        std::fs::write(&path, serde_json::to_vec_pretty(owner)?)
            .with_context(|| format!("could not write {}", path.display()))
    }

    /// Leaves everything behind, to be ended by `cargo testbed down`.
    pub(crate) fn keep(&mut self, processes: &[u32]) -> Result<()> {
        self.kept = true;
        let processes = processes.iter().filter_map(|&id| Some((id, start_time(id)?))).collect();
        self.write_owner(&Owner { id: 0, started: 0, kept: true, processes })
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.kept {
            remove_segments(&format!("weir-{}", self.name));
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

/// The runs that were left behind on purpose: name (with prefix) and owner.
pub(crate) fn kept() -> Vec<(String, Owner)> {
    directories(Path::new(ROOT))
        .into_iter()
        .filter_map(|name| Some((name.clone(), owner(&name)?)))
        .filter(|(_, owner)| owner.kept)
        .collect()
}

fn owner(name: &str) -> Option<Owner> {
    let text = std::fs::read(Path::new(ROOT).join(name).join("owner.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Ends and removes one run that was left behind.
pub(crate) fn end(name: &str, owner: &Owner) -> Result<()> {
    for &(id, started) in &owner.processes {
        end_by_id(id, started)?;
    }
    remove(name)
}

/// Removes what runs that died left behind; returns what it removed.
pub(crate) fn sweep() -> Result<Vec<String>> {
    let mut names = directories(Path::new(ROOT));
    names.extend(namespaces()?.into_iter().map(|name| run_of(&name)));
    names.extend(directories(Path::new(SHM)));
    names.extend(hugetlb_mounts().iter().flat_map(|mount| directories(mount)));
    names.sort();
    names.dedup();
    names.retain(|name| is_dead(name));
    for name in &names {
        remove(name)?;
    }
    Ok(names)
}

/// `weir-t12n1-client` → `weir-t12n1`
fn run_of(namespace: &str) -> String {
    namespace.splitn(3, '-').take(2).collect::<Vec<_>>().join("-")
}

fn is_dead(name: &str) -> bool {
    if let Some(owner) = owner(name) {
        return !owner.kept && start_time(owner.id) != Some(owner.started);
    }
    owner_of(name).is_some_and(|id| start_time(id).is_none())
}

fn remove(name: &str) -> Result<()> {
    let lead = format!("{name}-");
    for namespace in namespaces()?.iter().filter(|namespace| namespace.starts_with(&lead)) {
        end_processes_in(namespace)?;
        command::call("ip", &["netns", "del", namespace])?;
    }
    remove_segments(name);
    let directory = Path::new(ROOT).join(name);
    match std::fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

fn end_processes_in(namespace: &str) -> Result<()> {
    for id in command::call("ip", &["netns", "pids", namespace])?.split_whitespace() {
        if let Ok(id) = id.parse()
            && let Some(started) = start_time(id)
        {
            end_by_id(id, started)?;
        }
    }
    Ok(())
}

fn remove_segments(name: &str) {
    for place in std::iter::once(PathBuf::from(SHM)).chain(hugetlb_mounts()) {
        let _ = std::fs::remove_dir_all(place.join(name));
    }
}

/// Where hugetlbfs is mounted.
pub(crate) fn hugetlb_mounts() -> Vec<PathBuf> {
    std::fs::read_to_string("/proc/mounts")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (place, kind) = (fields.nth(1)?, fields.next()?);
            (kind == "hugetlbfs").then(|| PathBuf::from(place))
        })
        .collect()
}

fn directories(within: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(within) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect()
}

fn namespaces() -> Result<Vec<String>> {
    let list = command::call("ip", &["netns", "list"])?;
    Ok(list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| owner_of(name).is_some())
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_belongs_to_its_run() {
        assert_eq!(run_of("weir-t12n3-backend1"), "weir-t12n3");
    }

    #[test]
    fn this_process_is_alive_and_an_impossible_one_is_not() {
        assert!(!is_dead(&format!("weir-t{}n1", std::process::id())));
        assert!(is_dead("weir-t4194999n1"));
        assert!(!is_dead("weir-web"));
    }
}
