//! Hugepages: takes what is missing, gives back what it took when the last user of the testbed ends.
//!
//! `/run/weir-testbed/hugepages.json` remembers the count that was there before the first live user, and who uses
//! them; a lock on it serialises testbeds that run side by side.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use serde::{Deserialize, Serialize};

use crate::command;
use crate::console::Step;
use crate::interrupt;
use crate::run::hugetlb_mounts;
use crate::supervisor::start_time;

const COUNT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
const BOOK: &str = "/run/weir-testbed/hugepages.json";
const MOUNT: &str = "/dev/hugepages";
/// Bytes of a page.
const PAGE: u64 = 2 << 20;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Book {
    before: Option<u64>,
    mounted: bool,
    users: Vec<(u32, u64, u64)>,
}

/// A reservation of this process.
#[derive(Debug)]
pub(crate) struct Pages {
    kept: bool,
    /// Whether the pool had to grow.
    grown: bool,
}

fn read(path: &str) -> Result<u64> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("could not read {path}: does this kernel have 2 MiB hugepages?"))?;
    text.trim().parse().with_context(|| format!("{path} holds {text:?}, not a number"))
}

fn open_book() -> Result<(File, Book)> {
    std::fs::create_dir_all("/run/weir-testbed").context("could not create /run/weir-testbed")?;
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(BOOK)
        .with_context(|| format!("could not open {BOOK}"))?;
    flock(&file, FlockOperation::LockExclusive).with_context(|| format!("could not lock {BOOK}"))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let mut book: Book = serde_json::from_str(&text).unwrap_or_default();
    book.users.retain(|&(id, started, _)| start_time(id) == Some(started));
    Ok((file, book))
}

fn close_book(mut file: File, book: &Book) -> Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&serde_json::to_vec(book)?)?;
    Ok(())
}

impl Pages {
    /// Makes sure that at least `count` pages of 2 MiB are free or already this process's, and that a hugetlbfs is
    /// mounted.
    pub(crate) fn reserve(count: u64) -> Result<Self> {
        let (file, mut book) = open_book()?;
        let present = read(COUNT)?;
        // a count remembered by a run that crashed is still what was there before
        book.before.get_or_insert(present);
        if hugetlb_mounts().is_empty() {
            std::fs::create_dir_all(MOUNT)?;
            command::call("mount", &["-t", "hugetlbfs", "-o", "pagesize=2M", "hugetlbfs", MOUNT])?;
            book.mounted = true;
        }
        let id = std::process::id();
        book.users.push((id, start_time(id).unwrap_or(0), count));
        let short = count.saturating_sub(read(FREE)?);
        if short > 0 {
            let step = Step::start(format!("reserving {short} hugepages of 2 MiB"));
            std::fs::write(COUNT, (present + short).to_string())
                .with_context(|| format!("could not write {COUNT}"))?;
            step.end("done");
        }
        close_book(file, &book)?;
        let pages = Self { kept: false, grown: short > 0 };
        let free = read(FREE)?;
        if free < count {
            bail!(
                "{count} free hugepages of 2 MiB are needed and only {free} could be had: the machine's memory is \
                 short or fragmented; free some, or reserve them at boot (hugepages={count})"
            );
        }
        Ok(pages)
    }

    /// Where the pool had to grow, has every free page written to once, by all CPUs. The host of a virtual machine finds the memory for a page when it is
    /// first written to, which takes many times longer than clearing it; a process that takes its pages one after the other would
    /// wait for that alone. What can't be had is not touched.
    pub(crate) fn touch(&self) -> Result<()> {
        if !self.grown {
            return Ok(());
        }
        let free = read(FREE)?;
        let mounts = hugetlb_mounts();
        let Some(mount) = mounts.first() else { return Ok(()) };
        let step = Step::start(format!("touching {free} hugepages of 2 MiB"));
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        std::thread::scope(|scope| {
            let hands: Vec<_> = (0..threads)
                // a file each: a hugetlbfs lets nobody else into a file meanwhile
                .map(|hand| scope.spawn(move || touch_some(mount, hand, free / threads)))
                .collect();
            hands.into_iter().try_for_each(|hand| hand.join().unwrap_or(Ok(())))
        })?;
        step.end("done");
        Ok(())
    }

    /// Hands the reservation over to a process that stays.
    pub(crate) fn keep(&mut self, heir: u32) -> Result<()> {
        let (file, mut book) = open_book()?;
        let own = std::process::id();
        if let Some(user) = book.users.iter_mut().rev().find(|user| user.0 == own) {
            (user.0, user.1) = (heir, start_time(heir).unwrap_or(0));
        }
        self.kept = true;
        close_book(file, &book)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if !self.kept {
            let _ = give_back();
        }
    }
}

/// Takes so many pages and gives them back.
fn touch_some(mount: &Path, hand: u64, pages: u64) -> Result<()> {
    let path = mount.join(format!("weir-testbed-{}-{hand}", std::process::id()));
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(&path);
    let file = file.with_context(|| format!("could not create {}", path.display()))?;
    std::fs::remove_file(&path).with_context(|| format!("could not remove {}", path.display()))?;
    for page in 0..pages {
        if interrupt::arrived() || fallocate(&file, FallocateFlags::empty(), page * PAGE, PAGE).is_err() {
            break;
        }
    }
    Ok(())
}

/// Takes one reservation of this process from the book; the last user restores what was there.
fn give_back() -> Result<()> {
    let (file, mut book) = open_book()?;
    let id = std::process::id();
    if let Some(position) = book.users.iter().rposition(|user| user.0 == id) {
        book.users.remove(position);
    }
    restore(&mut book)?;
    close_book(file, &book)
}

/// What `clean` does: forgets dead users and restores when none is left.
pub(crate) fn settle() -> Result<()> {
    let (file, mut book) = open_book()?;
    restore(&mut book)?;
    close_book(file, &book)
}

fn restore(book: &mut Book) -> Result<()> {
    let Some(before) = book.before else { return Ok(()) };
    let wanted: u64 = book.users.iter().map(|user| user.2).sum();
    if read(COUNT)? > wanted.max(before) {
        std::fs::write(COUNT, wanted.max(before).to_string())?;
    }
    if book.users.is_empty() {
        book.before = None;
        if book.mounted {
            // fails while somebody has files there, and then it is theirs
            let _ = command::call("umount", &[MOUNT]);
            book.mounted = false;
        }
    }
    Ok(())
}
