//! How often is memory allocated? An allocator that counts, for programs that assert of a stretch of their work that it allocates nothing.
//!
//! A program makes it its own:
//! ```
//! #[global_allocator]
//! static ALLOCATOR: weir_os::allocations::Counting = weir_os::allocations::Counting;
//! # let before = weir_os::allocations::count();
//! # drop(std::hint::black_box(vec![1u8; 100]));
//! # assert!(weir_os::allocations::count() > before);
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// The system's allocator; each piece of memory that it gives out or resizes is counted.
#[derive(Debug)]
pub struct Counting;

/// Allocations of all threads since the program began; 0 unless [`Counting`] is its allocator.
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

// SAFETY: all is done by the system's allocator, whose contract is the trait's; counting touches no memory that it manages.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise of a layout that is not empty is what `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller has `place` from this allocator, which has it from `System`, with this layout.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as in `dealloc`; the caller promises a size that is not 0 and fits.
        unsafe { System.realloc(place, layout, size) }
    }
}
