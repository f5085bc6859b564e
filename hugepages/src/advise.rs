//! How does private memory, a table of the heap, come to lie in huge pages?
//!
//! Called once by who sets a large table aside, before it is first used. A random look-up into gigabytes of small pages misses
//! the TLB as well as the cache. Where the kernel has no transparent huge pages, or none free, small ones serve as before.

use std::mem::MaybeUninit;

use rustix::mm::{Advice, madvise};
use rustix::param::page_size;

/// Asks for huge pages under this memory; what it holds stays as it is. Only an advice: nothing tells whether it was heard.
pub fn huge<T>(memory: &mut [MaybeUninit<T>]) {
    let range = memory.as_mut_ptr_range();
    let (start, end) = (range.start.cast::<u8>(), range.end.cast::<u8>());
    let page = page_size();
    // whole pages only: those at the edges are shared with others
    let skipped = start.align_offset(page);
    let length = (end as usize).saturating_sub(start as usize).saturating_sub(skipped) / page * page;
    if length == 0 {
        return;
    }
    // SAFETY: the range lies within memory that the caller holds exclusively, and this advice changes neither the contents nor
    // the validity of a page, only the size in which the kernel provides it.
    let _ = unsafe { madvise(start.wrapping_add(skipped).cast(), length, Advice::LinuxHugepage) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_is_as_it_was() {
        let mut numbers: Vec<u64> = Vec::with_capacity(1 << 20);
        numbers.extend(0..100_u64);
        super::huge(numbers.spare_capacity_mut());
        super::huge::<u8>(&mut []);
        numbers.extend(100..1 << 20);
        assert!(numbers.iter().zip(0..).all(|(number, at)| *number == at));
    }
}
