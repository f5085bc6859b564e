//! How does packet code ask for a cache line before it needs it, without `unsafe`?
//!
//! Called by the stages of a worker's loop, one burst ahead of use. Nothing here reads or writes memory: a prefetch of
//! a wrong address costs a cycle and has no effect. On architectures without a stable intrinsic it does nothing.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for the cache line at which `value` starts, into every cache level (the `T0` hint).
#[inline(always)]
pub fn read<T: ?Sized>(value: &T) {
    line(std::ptr::from_ref(value).cast::<i8>());
}

/// Asks for the cache line at which `slice[index]` starts, and for the one in which it ends where its size lets it cross into the next;
/// an index that is out of range does nothing.
#[inline(always)]
pub fn read_slice_at<T>(slice: &[T], index: usize) {
    if index < slice.len() {
        let start = slice.as_ptr().wrapping_add(index).cast::<i8>();
        line(start);
        let size = size_of::<T>();
        if size > 0 && size < LINE && !LINE.is_multiple_of(size) {
            line(start.wrapping_add(size - 1));
        }
    }
}

/// Asks for all cache lines of `value`.
#[inline(always)]
pub fn all<T>(value: &T) {
    let start = std::ptr::from_ref(value).cast::<i8>();
    for offset in (0..size_of::<T>()).step_by(LINE) {
        line(start.wrapping_add(offset));
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn line(address: *const i8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: PREFETCHT0 is part of the x86_64 baseline (SSE) and never faults, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn line(_address: *const i8) {}

#[cfg(test)]
mod tests {
    #[test]
    fn any_index_is_harmless() {
        let words = [1_u64, 2, 3];
        for index in [0, 2, 3, usize::MAX] {
            super::read_slice_at(&words, index);
        }
        super::read_slice_at::<u64>(&[], 0);
        super::read(&words);
        super::read::<[u64]>(&[]);
        super::all(&words);
        assert_eq!(words, [1, 2, 3]);
    }
}
