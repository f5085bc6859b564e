//! What does a UDP header hold (RFC 768), and how is one written?

/// Length of the header.
pub const HEADER_LEN: usize = 8;

/// The offset of fields in the header.
pub mod field {
    /// Source port.
    pub const SRC_PORT: usize = 0;
    /// Destination port.
    pub const DST_PORT: usize = 2;
    /// Length of header and data.
    pub const LEN: usize = 4;
    /// Checksum, zero for none.
    pub const CHECKSUM: usize = 6;
}

/// The bytes of a header; `checksum` as it is sent, zero for none.
#[inline(always)]
pub const fn header(src_port: u16, dst_port: u16, len: u16, checksum: u16) -> [u8; HEADER_LEN] {
    let [a, b] = src_port.to_be_bytes();
    let [c, d] = dst_port.to_be_bytes();
    let [e, f] = len.to_be_bytes();
    let [g, h] = checksum.to_be_bytes();
    [a, b, c, d, e, f, g, h]
}
