//! A table in named memory that outlives its process: a header and a slice, owned by one process at a time.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::mapping::Mapping;

/// Items start at a multiple of this, so that an entry of 64 bytes is one cache line.
const ITEMS_ALIGNMENT: usize = 64;

/// What is mapped starts at a page, so nothing may ask for more.
const PAGE_ALIGNMENT: usize = 4096;

/// A mapped header `H` followed by `[T]`, for one owner.
///
/// The owner's lock is what makes plain references sound: no other `SharedSlice` of this segment exists, in this
/// process or in any other, and nothing else maps it. What a previous owner left may be anything, cut off in
/// mid-write: `FromBytes` makes it valid Rust data, the caller checks that it makes sense.
#[derive(Debug)]
pub struct SharedSlice<H, T> {
    mapping: Mapping,
    layout: Layout,
    was_created: bool,
    contents: PhantomData<(H, T)>,
}

/// Where the items are, and how long all of it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    items_offset: usize,
    items: usize,
    pub(super) file_bytes: usize,
}

impl Layout {
    /// The layout of `items` × `T` after an `H`, rounded up to whole pages.
    pub(super) fn of<H, T>(items: usize, page_size: u64) -> Result<Self, &'static str> {
        if size_of::<T>() == 0 || items == 0 {
            return Err("it has no items, or items without a size");
        }
        if align_of::<H>() > PAGE_ALIGNMENT || align_of::<T>() > PAGE_ALIGNMENT {
            return Err("its types are aligned to more than a page");
        }
        let too_long = "it is longer than the address space";
        let page_size = usize::try_from(page_size).map_err(|_| too_long)?;
        let items_offset =
            size_of::<H>().checked_next_multiple_of(align_of::<T>().max(ITEMS_ALIGNMENT)).ok_or(too_long)?;
        let file_bytes = items
            .checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.checked_add(items_offset))
            .and_then(|bytes| bytes.checked_next_multiple_of(page_size))
            .filter(|bytes| isize::try_from(*bytes).is_ok())
            .ok_or(too_long)?;
        Ok(Self { items_offset, items, file_bytes })
    }
}

// SAFETY: a SharedSlice owns its memory like a Box<(H, [T])> does, so it may move where those may.
unsafe impl<H: Send, T: Send> Send for SharedSlice<H, T> {}
// SAFETY: as for a Box: shared access gives out only `&H` and `&[T]`.
unsafe impl<H: Sync, T: Sync> Sync for SharedSlice<H, T> {}

impl<H, T> SharedSlice<H, T>
where
    H: FromBytes + IntoBytes + KnownLayout + Immutable,
    T: FromBytes + IntoBytes + KnownLayout + Immutable,
{
    /// `mapping` is at least `layout.file_bytes` long and exclusively owned.
    pub(super) fn new(mapping: Mapping, layout: Layout, was_created: bool) -> Self {
        debug_assert!(layout.file_bytes <= mapping.length(), "the caller mapped the layout");
        Self { mapping, layout, was_created, contents: PhantomData }
    }

    /// Whether this call made the segment (all of it is zero then), rather than finding a previous owner's.
    ///
    /// An owner that was killed before it wrote its header leaves zeroes and an existing segment: check the header.
    #[must_use]
    pub fn was_created(&self) -> bool {
        self.was_created
    }

    /// Bytes of memory that the segment takes: header, items and the rest of the last page.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.layout.file_bytes
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &H {
        // SAFETY: page-aligned and inside the mapping (`Layout::of`), valid for every bit pattern (`FromBytes`), and
        // nobody writes it while `self` is borrowed, because this is the only owner.
        unsafe { &*self.header_pointer() }
    }

    /// The header, to change it.
    #[must_use]
    pub fn header_mut(&mut self) -> &mut H {
        // SAFETY: as for `header`, and `self` is borrowed exclusively.
        unsafe { &mut *self.header_pointer() }
    }

    /// Header and items at once.
    #[must_use]
    pub fn parts_mut(&mut self) -> (&mut H, &mut [T]) {
        // SAFETY: as for `header_mut` and `deref_mut`; the two do not overlap, since the items start after the header.
        unsafe {
            (
                &mut *self.header_pointer(),
                std::slice::from_raw_parts_mut(self.items_pointer(), self.layout.items),
            )
        }
    }
}

impl<H, T> SharedSlice<H, T> {
    fn header_pointer(&self) -> *mut H {
        self.mapping.base().as_ptr().cast::<H>()
    }

    fn items_pointer(&self) -> *mut T {
        self.mapping.base().as_ptr().wrapping_add(self.layout.items_offset).cast::<T>()
    }
}

impl<H, T> Deref for SharedSlice<H, T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `items` × T from `items_offset` are inside the mapping and aligned (`Layout::of`), valid for every
        // bit pattern (a SharedSlice is only made for `FromBytes` types), and this is the only owner.
        unsafe { std::slice::from_raw_parts(self.items_pointer(), self.layout.items) }
    }
}

impl<H, T> DerefMut for SharedSlice<H, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.items_pointer(), self.layout.items) }
    }
}

#[cfg(test)]
mod tests {
    use super::Layout;

    #[test]
    fn items_start_on_a_cache_line_and_files_end_on_a_page() {
        let small = Layout::of::<[u8; 24], [u8; 64]>(3, 4096).unwrap();
        assert_eq!(small, Layout { items_offset: 64, items: 3, file_bytes: 4096 });
        let huge = Layout::of::<[u8; 65], u64>(1 << 18, 2 << 20).unwrap();
        assert_eq!(huge, Layout { items_offset: 128, items: 1 << 18, file_bytes: 4 << 20 });
    }

    #[test]
    fn impossible_layouts_are_refused() {
        assert!(Layout::of::<u64, u64>(usize::MAX, 4096).is_err());
        assert!(Layout::of::<u64, u64>(usize::MAX / 8, 4096).is_err());
        assert!(Layout::of::<u64, u64>(0, 4096).is_err());
        assert!(Layout::of::<u64, ()>(4, 4096).is_err());
    }
}
