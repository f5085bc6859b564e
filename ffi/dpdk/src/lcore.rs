//! How does an ordinary thread become one that DPDK knows, and what time is it in cycles?

use std::marker::PhantomData;

use dpdk_sys as sys;

use crate::eal::EalHandle;
use crate::text::Errno;

/// Why a thread could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Likely more workers than DPDK was built for (`RTE_MAX_LCORE`).
    #[error("this thread can't be registered with DPDK: {0}; at most {max} threads can be", max = sys::RTE_MAX_LCORE)]
    Refused(Errno),
    /// Registering twice would let the first guard take the id from the second.
    #[error("this thread is registered with DPDK already, as lcore {0}")]
    Already(u32),
}

/// This thread's lcore id. Dropping it, on the same thread, gives the id back.
#[derive(Debug)]
pub struct LcoreGuard {
    id: u32,
    _environment: EalHandle,
    /// rte_thread_unregister acts on the calling thread: the guard must not leave it.
    _not_send: PhantomData<*const ()>,
}

impl LcoreGuard {
    /// The id, unique among live threads, below `RTE_MAX_LCORE`.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for LcoreGuard {
    fn drop(&mut self) {
        // SAFETY: the guard is !Send, so this is the thread that registered; EAL is alive through the handle.
        unsafe { sys::rte_thread_unregister() };
    }
}

/// The calling thread's lcore id, if DPDK knows the thread.
pub fn current() -> Option<u32> {
    // SAFETY: rte_lcore_id's storage is thread-local and readable at any time.
    let id = unsafe { sys::weir_lcore_id() };
    (id != u32::MAX).then_some(id)
}

/// Registers the calling thread, so that it gets the per-lcore caches of packet pools. Pin it first: DPDK
/// remembers the NUMA node that the thread has when it registers.
///
/// # Errors
/// When no id is free, or the thread has one.
pub fn register_current_thread(environment: &EalHandle) -> Result<LcoreGuard, RegisterError> {
    if let Some(id) = current() {
        return Err(RegisterError::Already(id));
    }
    // SAFETY: rte_thread_register must follow rte_eal_init: the handle proves it. It acts on this thread only.
    if unsafe { sys::rte_thread_register() } < 0 {
        return Err(RegisterError::Refused(Errno::of_dpdk()));
    }
    let id = current().unwrap_or(u32::MAX);
    Ok(LcoreGuard { id, _environment: environment.clone(), _not_send: PhantomData })
}

/// The time stamp counter, in cycles of [`tsc_hz`].
#[inline]
pub fn tsc() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: RDTSC is part of every x86-64 and reads a register only.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        // SAFETY: the wrapper reads the architecture's counter and has no other effect.
        unsafe { sys::weir_tsc() }
    }
}

/// Cycles per second of [`tsc`], as measured when the environment started.
pub fn tsc_hz(_environment: &EalHandle) -> u64 {
    // SAFETY: returns a variable that rte_eal_init has set; the handle proves that it ran.
    unsafe { sys::rte_get_tsc_hz() }
}
