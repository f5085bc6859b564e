//! Which generation is published, which is adopted, and how is the other process? The control page of one instance.
//!
//! Two (small) pages of words in the segment `control`. The ctlplane writes its line through [`Publisher`], the
//! dataplane its own through [`Adopter`] and each worker its own through [`WorkerAck`]; every word has one writer.
//! Either side may start first. Each role can be held once per instance, by a lock that dies with its process: so
//! "alive" is what the kernel says, not what a page says.
//!
//! Nothing read here is trusted: numbers are bounded, text is copied under a seqlock with bounded tries.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::segment::{Access, AtomicWords, ClaimError, Role, SegmentDir, SegmentError};

/// Name of the segment.
pub const CONTROL_SEGMENT: &str = "control";

/// Most workers that a dataplane may have.
pub const WORKERS_LIMIT: usize = 64;

/// Longest text of a refusal, in bytes of UTF-8; longer ones are cut.
pub const REFUSAL_TEXT_LIMIT: usize = 240;

/// "weirct" in the upper six bytes of the first word, the version in the lower two.
const MAGIC: u64 = u64::from_be_bytes(*b"weirct\0\0");

/// Version of the layout below.
const VERSION: u64 = 1;

/// Tries to read a refusal while it is being written; a writer that died in the middle never finishes.
const REFUSAL_READ_ATTEMPTS: usize = 64;

/// What the dataplane is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum RunState {
    /// Setting up memory and devices.
    Starting = 1,
    /// No valid snapshot yet.
    Waiting = 2,
    /// Forwarding packets.
    Running = 3,
    /// A snapshot was refused and there is no older one to run.
    Refused = 4,
    /// On its way out.
    Stopping = 5,
}

impl RunState {
    fn from_word(word: u64) -> Option<Self> {
        [Self::Starting, Self::Waiting, Self::Running, Self::Refused, Self::Stopping]
            .into_iter()
            .find(|state| *state as u64 == word)
    }
}

impl std::fmt::Display for RunState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Starting => "starting",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Refused => "refused",
            Self::Stopping => "stopping",
        })
    }
}

/// A generation that the dataplane would not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which one.
    pub generation: u64,
    /// The dataplane's cause code.
    pub code: u64,
    /// The dataplane's words; anything that is not UTF-8 or a control character is replaced.
    pub text: String,
}

/// One worker, as it last told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerState {
    /// The generation that it forwards by; 0 for none yet.
    pub acked_generation: u64,
    /// When it was last round its loop, in ns of CLOCK_MONOTONIC; 0 for never.
    pub heartbeat_ns: u64,
}

impl WorkerState {
    /// Whether the worker was silent for longer than `limit_ns` at `now_ns`.
    #[must_use]
    pub fn is_silent(&self, now_ns: u64, limit_ns: u64) -> bool {
        now_ns.saturating_sub(self.heartbeat_ns) > limit_ns
    }
}

/// The dataplane, as it last told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataplaneState {
    /// Whether a dataplane process exists now. If not, the rest is what the last one left.
    pub is_alive: bool,
    /// What it does; `None` before the first one ever, or for a value that no version of Weir writes.
    pub state: Option<RunState>,
    /// Its process.
    pub pid: u64,
    /// Counts its starts.
    pub start_epoch: u64,
    /// When its management thread was last round its loop, in ns of CLOCK_MONOTONIC.
    pub heartbeat_ns: u64,
    /// The generation that its management thread adopted; 0 for none yet.
    pub adopted_generation: u64,
    /// The last refusal, unless a later generation was adopted since.
    pub refusal: Option<Refusal>,
    /// Its workers, at most [`WORKERS_LIMIT`].
    pub workers: Vec<WorkerState>,
}

/// The ctlplane, as it last told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtlplaneState {
    /// Whether a ctlplane process exists now.
    pub is_alive: bool,
    /// Its process; 0 if there never was one.
    pub pid: u64,
    /// When it last said that it lives, in ns of CLOCK_MONOTONIC.
    pub heartbeat_ns: u64,
    /// The generation that it published; 0 for none yet.
    pub published_generation: u64,
}

/// Why there is no control page.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Likely cause: another program's file, or a corrupt one.
    #[error("{}/control is not Weir's control page (it starts with {found:#018x}); remove it", directory.display())]
    WrongMagic {
        /// Where the page is.
        directory: std::path::PathBuf,
        /// The first word.
        found: u64,
    },
    /// Likely cause: ctlplane and dataplane are of different releases.
    #[error(
        "{}/control has layout version {found}, this program speaks {VERSION}; stop both processes, remove it, and start the \
         same release of both",
        directory.display()
    )]
    WrongVersion {
        /// Where the page is.
        directory: std::path::PathBuf,
        /// Its version.
        found: u64,
    },
    /// Likely cause: a second process of the same instance.
    #[error(
        "a {role} of this instance runs already{} (it holds {}/control); stop it or choose another --instance",
        pid_text(*pid),
        directory.display()
    )]
    AlreadyRunning {
        /// "dataplane" or "ctlplane".
        role: &'static str,
        /// Its process, where that is known.
        pid: Option<u32>,
        /// Where the page is.
        directory: std::path::PathBuf,
    },
    /// The page's memory could not be had.
    #[error(transparent)]
    Segment(#[from] SegmentError),
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" as pid {pid}"))
}

/// Now, in ns of CLOCK_MONOTONIC: the same clock in every process of the machine.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// The words of the page. All start at zero, and the first is set last by nobody: zero means "nobody was here yet".
#[repr(C, align(64))]
struct Page {
    identity: Line<1>,
    ctlplane: CtlplaneLine,
    dataplane: DataplaneLine,
    refusal: RefusalLines,
    workers: [WorkerLine; WORKERS_LIMIT],
}

#[repr(C, align(64))]
struct Line<const WORDS: usize>([AtomicU64; WORDS]);

#[repr(C, align(64))]
struct CtlplaneLine {
    published: AtomicU64,
    pid: AtomicU64,
    heartbeat: AtomicU64,
}

#[repr(C, align(64))]
struct DataplaneLine {
    state: AtomicU64,
    pid: AtomicU64,
    epoch: AtomicU64,
    heartbeat: AtomicU64,
    workers: AtomicU64,
    adopted: AtomicU64,
}

#[repr(C, align(64))]
struct RefusalLines {
    /// Odd while the rest is being written.
    sequence: AtomicU64,
    generation: AtomicU64,
    code: AtomicU64,
    length: AtomicU64,
    text: [AtomicU64; REFUSAL_TEXT_LIMIT / 8],
}

#[repr(C, align(64))]
struct WorkerLine {
    acked: AtomicU64,
    heartbeat: AtomicU64,
}

const PAGE_WORDS: usize = size_of::<Page>() / 8;

// Both processes rely on these; a change needs another VERSION.
const _: () = {
    assert!(size_of::<Page>() == 64 * 3 + 320 + 64 * WORKERS_LIMIT);
    assert!(std::mem::offset_of!(Page, ctlplane) == 64);
    assert!(std::mem::offset_of!(Page, dataplane) == 128);
    assert!(std::mem::offset_of!(Page, refusal) == 192);
    assert!(std::mem::offset_of!(Page, workers) == 512);
    assert!(size_of::<WorkerLine>() == 64);
};

/// The page, for whoever wants to look; [`Publisher`] and [`Adopter`] are the two that write.
#[derive(Debug)]
pub struct ControlPage {
    words: AtomicWords,
    page: NonNull<Page>,
    /// The role that this very page object holds: the kernel tells of others' locks only.
    own_role: Option<Role>,
}

// SAFETY: `page` points into `words`, which is Send and Sync; everything in it is atomic.
unsafe impl Send for ControlPage {}
// SAFETY: as above.
unsafe impl Sync for ControlPage {}

impl ControlPage {
    /// Opens the page to look at it, as the command line does.
    ///
    /// # Errors
    /// [`SegmentError::NotFound`] if neither process ever ran here; a page of another kind or version.
    pub fn open_read_only(directory: &SegmentDir) -> Result<Self, ControlError> {
        Self::over(directory, Access::ReadOnly)
    }

    fn over(directory: &SegmentDir, access: Access) -> Result<Self, ControlError> {
        let words = directory.map_atomics(CONTROL_SEGMENT, PAGE_WORDS, access)?;
        let path = || directory.path().to_owned();
        if words.len() < PAGE_WORDS {
            return Err(ControlError::WrongVersion { directory: path(), found: 0 });
        }
        let page = NonNull::from(&*words).cast::<Page>();
        let control = Self { words, page, own_role: None };
        let identity = &control.page().identity.0[0];
        if access == Access::Create {
            let _found = identity.compare_exchange(0, MAGIC | VERSION, Ordering::AcqRel, Ordering::Acquire);
        }
        let found = identity.load(Ordering::Acquire);
        if found & !0xffff != MAGIC {
            return Err(ControlError::WrongMagic { directory: path(), found });
        }
        if found & 0xffff != VERSION {
            return Err(ControlError::WrongVersion { directory: path(), found: found & 0xffff });
        }
        Ok(control)
    }

    fn claim(&mut self, directory: &SegmentDir, role: Role) -> Result<(), ControlError> {
        self.own_role = Some(role);
        self.words.claim(role).map_err(|error| match error {
            ClaimError::Held(pid) => ControlError::AlreadyRunning {
                role: if role == Role::Adopter { "dataplane" } else { "ctlplane" },
                pid,
                directory: directory.path().to_owned(),
            },
            ClaimError::Io(source) => ControlError::Segment(SegmentError::Io {
                action: "lock",
                path: directory.path().join(CONTROL_SEGMENT),
                source,
            }),
        })
    }

    fn is_held(&self, role: Role) -> bool {
        self.own_role == Some(role) || self.words.is_held(role)
    }

    fn page(&self) -> &Page {
        // SAFETY: `page` is the start of `words`, page-aligned, at least PAGE_WORDS long (checked in `over`) and
        // mapped as long as `self` lives; Page consists of AtomicU64, valid for every bit pattern, and padding.
        unsafe { self.page.as_ref() }
    }

    /// The published generation; 0 for none yet. Its files are complete if it came from an honest ctlplane.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.page().ctlplane.published.load(Ordering::Acquire)
    }

    /// Whether the instance's directory still has this page; if not, somebody cleaned up, and it should be reopened.
    #[must_use]
    pub fn is_current(&self, directory: &SegmentDir) -> bool {
        self.words.is_current(directory)
    }

    /// The ctlplane, as it last told.
    #[must_use]
    pub fn ctlplane(&self) -> CtlplaneState {
        let line = &self.page().ctlplane;
        CtlplaneState {
            is_alive: self.is_held(Role::Publisher),
            pid: line.pid.load(Ordering::Relaxed),
            heartbeat_ns: line.heartbeat.load(Ordering::Relaxed),
            published_generation: line.published.load(Ordering::Acquire),
        }
    }

    /// The dataplane, as it last told.
    #[must_use]
    pub fn dataplane(&self) -> DataplaneState {
        let page = self.page();
        let line = &page.dataplane;
        DataplaneState {
            is_alive: self.is_held(Role::Adopter),
            state: RunState::from_word(line.state.load(Ordering::Acquire)),
            pid: line.pid.load(Ordering::Relaxed),
            start_epoch: line.epoch.load(Ordering::Relaxed),
            heartbeat_ns: line.heartbeat.load(Ordering::Relaxed),
            adopted_generation: line.adopted.load(Ordering::Acquire),
            refusal: page.refusal.read(),
            workers: self
                .worker_lines()
                .iter()
                .map(|worker| WorkerState {
                    acked_generation: worker.acked.load(Ordering::Acquire),
                    heartbeat_ns: worker.heartbeat.load(Ordering::Relaxed),
                })
                .collect(),
        }
    }

    /// The lowest generation that any worker of a living dataplane forwards by; `Some(0)` while one has none yet, and
    /// `None` if there is no dataplane or it has no workers yet. A worker that hangs holds this back: it still has
    /// its packets.
    #[must_use]
    pub fn acked_by_all(&self) -> Option<u64> {
        if !self.is_held(Role::Adopter) {
            return None;
        }
        self.worker_lines().iter().map(|worker| worker.acked.load(Ordering::Acquire)).min()
    }

    /// The lines of the workers that the dataplane says it has.
    fn worker_lines(&self) -> &[WorkerLine] {
        let page = self.page();
        let count = usize::try_from(page.dataplane.workers.load(Ordering::Acquire)).unwrap_or(WORKERS_LIMIT);
        page.workers.get(..count.min(WORKERS_LIMIT)).unwrap_or(&page.workers)
    }
}

impl RefusalLines {
    fn write(&self, generation: u64, code: u64, text: &str) {
        let bytes = cut(text).as_bytes();
        // A writer that died left it odd: stay odd.
        let writing = self.sequence.load(Ordering::Relaxed) | 1;
        self.sequence.store(writing, Ordering::Relaxed);
        fence(Ordering::Release);
        self.generation.store(generation, Ordering::Relaxed);
        self.code.store(code, Ordering::Relaxed);
        self.length.store(bytes.len() as u64, Ordering::Relaxed);
        for (word, chunk) in self.text.iter().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            for (to, from) in padded.iter_mut().zip(chunk) {
                *to = *from;
            }
            word.store(u64::from_ne_bytes(padded), Ordering::Relaxed);
        }
        self.sequence.store(writing.wrapping_add(1), Ordering::Release);
    }

    fn read(&self) -> Option<Refusal> {
        for _ in 0..REFUSAL_READ_ATTEMPTS {
            let before = self.sequence.load(Ordering::Acquire);
            if before & 1 == 1 {
                std::hint::spin_loop();
                continue;
            }
            let generation = self.generation.load(Ordering::Relaxed);
            let code = self.code.load(Ordering::Relaxed);
            let length =
                usize::try_from(self.length.load(Ordering::Relaxed)).unwrap_or(0).min(REFUSAL_TEXT_LIMIT);
            let mut bytes = Vec::with_capacity(REFUSAL_TEXT_LIMIT);
            for word in &self.text {
                bytes.extend_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            }
            fence(Ordering::Acquire);
            if self.sequence.load(Ordering::Relaxed) != before {
                continue;
            }
            bytes.truncate(length);
            // Control characters could play tricks on the terminal that shows this.
            let text = String::from_utf8_lossy(&bytes).replace(char::is_control, "\u{fffd}");
            return (generation != 0).then_some(Refusal { generation, code, text });
        }
        None
    }
}

/// As much of `text` as fits, in whole characters.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(REFUSAL_TEXT_LIMIT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or("")
}

/// The ctlplane's side: there is one per instance.
#[derive(Debug)]
pub struct Publisher {
    control: ControlPage,
}

impl Publisher {
    /// Opens the page, makes it if need be, and becomes the instance's ctlplane. The published generation stays what
    /// the previous ctlplane left.
    ///
    /// # Errors
    /// [`ControlError::AlreadyRunning`], or a page of another kind or version.
    pub fn open(directory: &SegmentDir) -> Result<Self, ControlError> {
        let mut control = ControlPage::over(directory, Access::Create)?;
        control.claim(directory, Role::Publisher)?;
        control.page().ctlplane.pid.store(u64::from(std::process::id()), Ordering::Relaxed);
        let publisher = Self { control };
        publisher.beat(monotonic_ns());
        Ok(publisher)
    }

    /// Tells the dataplane that all files of `generation` are in place. Generations count from 1.
    pub fn publish(&self, generation: u64) {
        self.control.page().ctlplane.published.store(generation, Ordering::Release);
    }

    /// The published generation, also of a previous ctlplane; 0 for none yet.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.control.published()
    }

    /// Says that the ctlplane lives, at `now_ns` of CLOCK_MONOTONIC.
    pub fn beat(&self, now_ns: u64) {
        self.control.page().ctlplane.heartbeat.store(now_ns, Ordering::Relaxed);
    }

    /// See [`ControlPage::acked_by_all`].
    #[must_use]
    pub fn acked_by_all(&self) -> Option<u64> {
        self.control.acked_by_all()
    }

    /// See [`ControlPage::dataplane`].
    #[must_use]
    pub fn dataplane(&self) -> DataplaneState {
        self.control.dataplane()
    }

    /// The whole page.
    #[must_use]
    pub fn control(&self) -> &ControlPage {
        &self.control
    }
}

/// The dataplane's side: there is one per instance, in its management thread.
#[derive(Debug)]
pub struct Adopter {
    control: Arc<ControlPage>,
}

impl Adopter {
    /// Opens the page, makes it if need be, and becomes the instance's dataplane, in state [`RunState::Starting`] with
    /// no workers; what the previous one acked and refused is cleared.
    ///
    /// # Errors
    /// [`ControlError::AlreadyRunning`], or a page of another kind or version.
    pub fn open(directory: &SegmentDir) -> Result<Self, ControlError> {
        let mut control = ControlPage::over(directory, Access::Create)?;
        control.claim(directory, Role::Adopter)?;
        let page = control.page();
        page.dataplane.workers.store(0, Ordering::Release);
        page.dataplane.adopted.store(0, Ordering::Release);
        for worker in &page.workers {
            worker.acked.store(0, Ordering::Release);
            worker.heartbeat.store(0, Ordering::Relaxed);
        }
        page.refusal.write(0, 0, "");
        page.dataplane.pid.store(u64::from(std::process::id()), Ordering::Relaxed);
        page.dataplane.heartbeat.store(monotonic_ns(), Ordering::Relaxed);
        page.dataplane.epoch.fetch_add(1, Ordering::Relaxed);
        page.dataplane.state.store(RunState::Starting as u64, Ordering::Release);
        Ok(Self { control: Arc::new(control) })
    }

    /// The published generation; 0 for none yet.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.control.published()
    }

    /// Says what the dataplane does now.
    pub fn set_state(&mut self, state: RunState) {
        self.control.page().dataplane.state.store(state as u64, Ordering::Release);
    }

    /// Says how many workers there are. Before this, nothing counts as acked.
    pub fn set_workers(&mut self, workers: usize) {
        self.control.page().dataplane.workers.store(workers.min(WORKERS_LIMIT) as u64, Ordering::Release);
    }

    /// Says that the management thread lives, at `now_ns` of CLOCK_MONOTONIC.
    pub fn beat(&mut self, now_ns: u64) {
        self.control.page().dataplane.heartbeat.store(now_ns, Ordering::Relaxed);
    }

    /// Says why `generation` was not taken; `text` is cut to [`REFUSAL_TEXT_LIMIT`] bytes. The state stays: one that
    /// runs an older generation is still running.
    pub fn refuse(&mut self, generation: u64, code: u64, text: &str) {
        self.control.page().refusal.write(generation, code, text);
    }

    /// Says that the management thread took `generation` and handed it to the workers. Clears the refusal of the same
    /// or an earlier one.
    pub fn adopted(&mut self, generation: u64) {
        let page = self.control.page();
        if page.refusal.read().is_some_and(|refusal| refusal.generation <= generation) {
            page.refusal.write(0, 0, "");
        }
        page.dataplane.adopted.store(generation, Ordering::Release);
    }

    /// The line of worker `index`, to be moved to its thread; `None` from [`WORKERS_LIMIT`] on.
    #[must_use]
    pub fn worker(&self, index: usize) -> Option<WorkerAck> {
        (index < WORKERS_LIMIT).then(|| WorkerAck { control: Arc::clone(&self.control), index })
    }

    /// The whole page.
    #[must_use]
    pub fn control(&self) -> &ControlPage {
        &self.control
    }
}

/// One worker's line: the only words of the page that it writes.
#[derive(Debug)]
pub struct WorkerAck {
    control: Arc<ControlPage>,
    index: usize,
}

impl WorkerAck {
    /// Says that every packet from now on is forwarded by `generation`.
    #[inline]
    pub fn ack(&mut self, generation: u64) {
        if let Some(line) = self.line() {
            line.acked.store(generation, Ordering::Release);
        }
    }

    /// Says that the worker lives, at `now_ns` of CLOCK_MONOTONIC.
    #[inline]
    pub fn beat(&mut self, now_ns: u64) {
        if let Some(line) = self.line() {
            line.heartbeat.store(now_ns, Ordering::Relaxed);
        }
    }

    #[inline]
    fn line(&self) -> Option<&WorkerLine> {
        self.control.page().workers.get(self.index)
    }
}

#[cfg(test)]
mod tests;
