//! How is DPDK's environment (EAL) started, once per process, and when may it end?

use std::ffi::{CStr, CString, c_char, c_int};
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dpdk_sys as sys;

use crate::mbuf;
use crate::text::Errno;

/// How much DPDK says on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Errors only.
    Error,
    /// Errors and warnings.
    #[default]
    Warning,
    /// Also what drivers report when they start.
    Notice,
    /// Also what is normal.
    Info,
    /// Everything.
    Debug,
}

impl LogLevel {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Notice => "notice",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// What EAL is started with.
#[derive(Clone, Debug)]
pub struct EalConfig {
    /// Keeps the files of several DPDK processes apart. Processes without files (`in_memory`) may share one.
    pub file_prefix: String,
    /// No files at all: nothing to clean up after a crash, no secondary processes.
    pub in_memory: bool,
    /// Plain memory instead of hugepages: for laptops and unit tests.
    pub no_huge: bool,
    /// Leave every PCI device alone.
    pub no_pci: bool,
    /// PCI addresses to take; without any, DPDK takes all that are bound to a user-space driver.
    pub pci_allow: Vec<String>,
    /// CPUs of DPDK's own helper threads. Empty: those that the calling thread may run on.
    pub main_cpus: Vec<usize>,
    /// Memory to take at the start, in MiB; without it EAL grows on demand (with `no_huge` it takes 64 MiB).
    pub memory_mb: Option<u32>,
    /// Virtual devices to create at the start, in DPDK's own syntax.
    pub vdevs: Vec<String>,
    /// How much DPDK says on standard error.
    pub log_level: LogLevel,
    /// Further EAL arguments, passed as they are.
    pub extra: Vec<String>,
}

impl Default for EalConfig {
    fn default() -> Self {
        Self {
            file_prefix: "weir".to_owned(),
            in_memory: true,
            no_huge: false,
            no_pci: false,
            pci_allow: Vec::new(),
            main_cpus: Vec::new(),
            memory_mb: None,
            vdevs: Vec::new(),
            log_level: LogLevel::default(),
            extra: Vec::new(),
        }
    }
}

/// Why the environment did not start.
#[derive(Debug, thiserror::Error)]
pub enum EalError {
    /// EAL can run once in a process; the program started it twice.
    #[error("DPDK's environment was started before in this process, and it can't be twice")]
    Again,
    /// Likely a bad name in the configuration.
    #[error("EAL argument {0:?} contains a NUL byte")]
    BadArgument(String),
    /// Likely no hugepages, or none mounted, or no permission.
    #[error(
        "DPDK's environment did not start: {errno} (arguments: {arguments}); DPDK's own message is above. Check \
         that hugepages are reserved (/proc/sys/vm/nr_hugepages), that a hugetlbfs is mounted, and that this is \
         root, or run without hugepages"
    )]
    Init {
        /// What EAL reported.
        errno: Errno,
        /// The argument line that it was given.
        arguments: String,
    },
    /// Likely a DPDK whose packet buffers have no free room: other libraries took it.
    #[error("no room for a {size}-byte field in DPDK's packet buffers: {errno}")]
    ScratchField {
        /// Bytes wanted.
        size: usize,
        /// What DPDK reported.
        errno: Errno,
    },
}

/// Why the environment did not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndError {
    /// A port, queue, ring, pool, registered thread or handle is left.
    #[error("DPDK's environment is still used by {0} ports, rings, pools, threads or handles")]
    InUse(usize),
    /// Packets are held somewhere, or were lost ([`mbuf::ledger_total`]).
    #[error("{0} packets have not been dropped or sent")]
    PacketsOut(i64),
}

static STARTED: AtomicBool = AtomicBool::new(false);

/// The environment, held by the thread that started it. Dropping it last, after every port, ring, pool and
/// registered thread, ends DPDK; dropped earlier, DPDK lives on until the process ends.
#[derive(Debug)]
pub struct Eal {
    handle: EalHandle,
    ended: bool,
    /// Ending EAL belongs to the thread that started it.
    _not_send: PhantomData<*const ()>,
}

/// Proof that the environment runs, cheap to clone and to send.
#[derive(Clone, Debug)]
pub struct EalHandle(Arc<Environment>);

#[derive(Debug)]
struct Environment {
    no_huge: bool,
}

impl Deref for Eal {
    type Target = EalHandle;

    fn deref(&self) -> &EalHandle {
        &self.handle
    }
}

impl EalHandle {
    /// Whether plain memory is used instead of hugepages.
    pub fn no_huge(&self) -> bool {
        self.0.no_huge
    }

    /// The version of the DPDK that is running, such as `DPDK 22.11.11`.
    pub fn version(&self) -> String {
        // SAFETY: rte_version returns a NUL-terminated string in static storage.
        unsafe { CStr::from_ptr(sys::rte_version()) }.to_string_lossy().into_owned()
    }
}

impl Eal {
    /// Starts DPDK. The calling thread keeps its CPU affinity: EAL pins it while it starts, and this undoes it.
    ///
    /// # Errors
    /// When the environment was started before or can't start; DPDK has then printed its own reason.
    pub fn init(config: &EalConfig) -> Result<Self, EalError> {
        if STARTED.swap(true, Ordering::AcqRel) {
            return Err(EalError::Again);
        }
        let affinity = current_cpus();
        let arguments = config.arguments(&affinity);
        let outcome = start(&arguments);
        restore_cpus(&affinity);
        if let Err(error) = outcome {
            // EAL itself refuses a second attempt where the first one went too far.
            STARTED.store(false, Ordering::Release);
            return Err(error);
        }
        let environment = Environment { no_huge: config.no_huge };
        let eal = Self { handle: EalHandle(Arc::new(environment)), ended: false, _not_send: PhantomData };
        mbuf::register_scratch_field()?;
        Ok(eal)
    }

    /// A handle for other threads.
    pub fn handle(&self) -> EalHandle {
        self.handle.clone()
    }

    /// Ends DPDK and says whether all of its parts were given back.
    ///
    /// # Errors
    /// When something is left; DPDK then lives on until the process ends.
    pub fn end(mut self) -> Result<(), EndError> {
        self.finish()
    }

    fn finish(&mut self) -> Result<(), EndError> {
        if self.ended {
            return Ok(());
        }
        // DPDK's memory must stay mapped for whatever is left.
        let users = Arc::strong_count(&self.handle.0).saturating_sub(1);
        Arc::get_mut(&mut self.handle.0).ok_or(EndError::InUse(users))?;
        let packets = mbuf::ledger_total();
        if packets != 0 {
            return Err(EndError::PacketsOut(packets));
        }
        self.ended = true;
        // SAFETY: this is the thread that called rte_eal_init (Eal is !Send). get_mut proved that no port, ring, pool or
        // registered thread is left; without those, ledgers only fall, so a total of zero means that no packet is left
        // either, nor being freed.
        unsafe { sys::rte_eal_cleanup() };
        Ok(())
    }
}

impl Drop for Eal {
    fn drop(&mut self) {
        // Whoever wants to know calls `end` first.
        let _ = self.finish();
    }
}

impl EalConfig {
    fn arguments(&self, affinity: &[usize]) -> Vec<String> {
        let mut arguments = vec!["weir".to_owned(), "--no-telemetry".to_owned()];
        let mut push = |words: &[&str]| arguments.extend(words.iter().map(|&word| word.to_owned()));
        push(&["--file-prefix", &self.file_prefix]);
        // One EAL thread, on all the CPUs of the caller: workers are threads of ours and register themselves.
        let cpus = if self.main_cpus.is_empty() { affinity } else { &self.main_cpus };
        if !cpus.is_empty() {
            let list = cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
            push(&["--lcores", &format!("0@({list})")]);
        }
        // Memory without hugepages has no files anyway, and EAL refuses --in-memory beside it.
        let no_files = if self.no_huge { "--no-shconf" } else { "--in-memory" };
        for (wanted, flag) in
            [(self.in_memory, no_files), (self.no_huge, "--no-huge"), (self.no_pci, "--no-pci")]
        {
            if wanted {
                push(&[flag]);
            }
        }
        if let Some(megabytes) = self.memory_mb {
            push(&["-m", &megabytes.to_string()]);
        }
        for address in &self.pci_allow {
            push(&["-a", address]);
        }
        for device in &self.vdevs {
            push(&["--vdev", device]);
        }
        push(&["--log-level", self.log_level.name()]);
        arguments.extend(self.extra.iter().cloned());
        arguments
    }
}

fn start(arguments: &[String]) -> Result<(), EalError> {
    let words = arguments
        .iter()
        .map(|argument| CString::new(argument.as_str()).map_err(|_| EalError::BadArgument(argument.clone())))
        .collect::<Result<Vec<_>, _>>()?;
    // EAL keeps pointers into its arguments for as long as it lives, so they are leaked: once per process.
    let mut words: Vec<*mut c_char> = words.into_iter().map(CString::into_raw).collect();
    let count = c_int::try_from(words.len()).unwrap_or(c_int::MAX);
    words.push(std::ptr::null_mut());
    let words = words.leak();
    // SAFETY: sets the stream of DPDK's log to the C library's stderr; allowed before rte_eal_init.
    unsafe { sys::weir_log_to_stderr() };
    // SAFETY: rte_eal_init wants argc and a NULL-terminated, writable argv that outlives it: leaked above.
    // STARTED makes this the only call.
    if unsafe { sys::rte_eal_init(count, words.as_mut_ptr()) } < 0 {
        return Err(EalError::Init { errno: Errno::of_dpdk(), arguments: arguments.join(" ") });
    }
    Ok(())
}

/// CPUs that the calling thread may run on; empty where the kernel won't say.
fn current_cpus() -> Vec<usize> {
    // SAFETY: an all-zero cpu_set_t is a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: pid 0 is the calling thread; the kernel writes at most the size given.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } != 0 {
        return Vec::new();
    }
    let limit = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    // SAFETY: CPU_ISSET reads inside the set for indexes below CPU_SETSIZE.
    (0..limit).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

fn restore_cpus(cpus: &[usize]) {
    if cpus.is_empty() {
        return;
    }
    // SAFETY: an all-zero cpu_set_t is a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        // SAFETY: every index came out of a set of the same size.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: pid 0 is the calling thread. A failure leaves the affinity that EAL chose, which is harmless.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
}
