//! What does the C library do with memory that a program gave back?
//!
//! glibc raises the size from which a block is a mapping of its own, up to 32 MiB, as soon as such a block is freed (mallopt(3),
//! `M_MMAP_THRESHOLD`). A process that replaces tables of 100 KiB by the hundred then keeps the holes between them for ever.
//! Other C libraries need, and do, nothing of this.

/// Blocks from this size on are mappings of their own, and the kernel's again when they are freed.
#[cfg(target_env = "gnu")]
const LARGE_BYTES: i32 = 64 << 10;
/// Heaps that threads share: each keeps holes of its own.
#[cfg(target_env = "gnu")]
const HEAPS: i32 = 2;

/// Large blocks go back to the kernel whenever they are freed. To be called before there are threads.
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes two settings of the allocator and touches no memory of ours.
    unsafe {
        // both are in range, the only reason to refuse
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// Gives whole pages that are free back to the kernel. Takes about a millisecond for each 10 MB: after work that needed much.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim is safe to call from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_bytes() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    #[test]
    fn what_is_freed_is_the_kernels_again() {
        return_large_blocks();
        let before = resident_bytes();
        // every other one goes, so that no end of a heap shrinks
        let mut blocks: Vec<Vec<u8>> = (0..400).map(|_| vec![1; 128 << 10]).collect();
        let small: Vec<Vec<u8>> = (0..20_000).map(|_| vec![1; 1 << 10]).collect();
        let full = resident_bytes();
        assert!(full > before + (60 << 20));
        let mut odd = false;
        blocks.retain(|_| {
            odd = !odd;
            odd
        });
        assert!(resident_bytes() < full - (20 << 20));
        let last = small.into_iter().next_back();
        let freed = resident_bytes();
        trim();
        assert!(resident_bytes() < freed - (15 << 20), "{freed} {}", resident_bytes());
        drop((blocks, last));
    }
}
