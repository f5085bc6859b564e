//! How do names and error numbers cross the C boundary?

use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;

use dpdk_sys as sys;

/// An error number from DPDK or the kernel, shown as its text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// DPDK's per-thread error number (`rte_errno`), set by functions that return NULL or -1.
    pub(crate) fn of_dpdk() -> Self {
        // SAFETY: rte_errno is a thread-local integer, readable at any time from any thread.
        Self(unsafe { sys::weir_errno() })
    }

    /// From a return value, where DPDK's convention is a negated errno.
    pub(crate) fn from_return(code: c_int) -> Self {
        Self(code.saturating_abs())
    }

    /// Ok for zero or more, the errno otherwise.
    pub(crate) fn check(code: c_int) -> Result<c_int, Self> {
        if code < 0 { Err(Self::from_return(code)) } else { Ok(code) }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: rte_strerror returns a NUL-terminated string in static or per-thread storage, which stays
        // as it is until this thread's next call.
        let text = unsafe { CStr::from_ptr(sys::rte_strerror(self.0)) };
        write!(formatter, "{} (errno {})", text.to_string_lossy(), self.0)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl std::error::Error for Errno {}

/// A C string; an interior NUL, which no DPDK name may have, becomes an empty string that DPDK refuses.
pub(crate) fn c_string(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

/// Text from a fixed-size C array, up to its NUL or its end.
pub(crate) fn from_array(array: &[c_char]) -> String {
    let bytes: Vec<u8> =
        array.iter().take_while(|&&byte| byte != 0).map(|&byte| byte.cast_unsigned()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Fills a fixed-size C array, always leaving a NUL at its end.
pub(crate) fn into_array(text: &str, array: &mut [c_char]) {
    let room = array.len().saturating_sub(1);
    for (slot, byte) in array.iter_mut().take(room).zip(text.bytes()) {
        *slot = byte.cast_signed();
    }
}
