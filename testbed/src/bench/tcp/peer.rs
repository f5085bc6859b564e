//! The other end of every connection: no stack, only what it would say next. Its frames are written ahead of time, from what
//! is known to follow.

use anyhow::Result;
use weir_net::tcp;
use weir_tcp::header::OptionBytes;
use weir_tcp::options::{Options, Timestamps};
use weir_tcp::{Endpoint, Header, SeqNumber};

use super::packet::{Packet, Pool};

/// Where peers connect to.
pub(super) const SERVER: Endpoint = Endpoint { address: 0xffff_c613_0001, port: 80 };
/// First address of the peers: 198.18.0.0.
const PEERS: u128 = 0xffff_c612_0000;
/// First port of the peers.
const PORTS: u16 = 10_000;
/// Peers per port number: one for each address.
const ADDRESSES: u32 = 1 << 16;
/// Largest segment that a peer takes, options not counted.
pub(super) const MSS: u16 = 1_460;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// The window that a peer announces, scaled by [`SCALE`].
const WINDOW: u16 = 0xffff;
/// RFC 7323 §2.2.
const SCALE: u8 = 8;
/// First sequence number of every peer; its SYN takes one.
const ISS: u32 = 1_000_000;

/// Address and port of a peer.
pub(super) fn endpoint(peer: u32) -> Endpoint {
    Endpoint { address: PEERS + u128::from(peer % ADDRESSES), port: PORTS + (peer / ADDRESSES) as u16 }
}

/// The peer of an address and a port.
#[inline(always)]
pub(super) fn number(endpoint: Endpoint) -> u32 {
    (endpoint.address - PEERS) as u32 + u32::from(endpoint.port.wrapping_sub(PORTS)) * ADDRESSES
}

/// What a peer knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    /// What it sends next.
    pub(super) seq: u32,
    /// What it expects next.
    pub(super) ack: u32,
    /// What the other end adds to its clock in timestamps.
    pub(super) offset: u32,
}

impl Default for Peer {
    fn default() -> Self {
        Self { seq: ISS, ack: 0, offset: 0 }
    }
}

/// Writes the frames of peers.
#[derive(Debug)]
pub(super) struct Writer {
    pool: Pool,
    small: Pool,
    timestamps: bool,
}

impl Writer {
    /// With RFC 7323 timestamps or without.
    pub(super) fn new(timestamps: bool) -> Self {
        Self { pool: Pool::new(), small: Pool::new(), timestamps }
    }

    /// Where the data begin in a frame.
    pub(super) const fn data_offset(timestamps: bool) -> usize {
        ETHERNET + 40 + if timestamps { 12 } else { 0 }
    }

    /// Bytes of a full segment.
    pub(super) const fn full(timestamps: bool) -> u32 {
        MSS as u32 - if timestamps { 12 } else { 0 }
    }

    /// A SYN that offers everything.
    pub(super) fn syn(&mut self, peer: u32, state: &mut Peer, time_us: u64) -> Result<Packet> {
        *state = Peer::default();
        let options = Options {
            mss: Some(MSS),
            window_scale: Some(SCALE),
            sack_permitted: true,
            timestamps: self.timestamps.then_some(Timestamps { value: clock(time_us), echo: 0 }),
            ..Options::default()
        };
        let header = Header {
            local: endpoint(peer),
            remote: SERVER,
            seq: SeqNumber(state.seq),
            flags: tcp::SYN | tcp::ECE | tcp::CWR,
            window: WINDOW,
            options: OptionBytes::from(&options),
            ..Header::default()
        };
        state.seq = state.seq.wrapping_add(1);
        // a pool of its own: its options would overwrite the pattern
        self.small.fill(|frame| put(&header, 0, frame.start(ETHERNET + header.len())))
    }

    /// A segment with so many bytes of the pattern.
    #[inline(always)]
    pub(super) fn segment(
        &mut self,
        peer: u32,
        state: &mut Peer,
        flags: u8,
        len: u32,
        time_us: u64,
    ) -> Result<Packet> {
        let value = clock(time_us);
        let options = if self.timestamps {
            OptionBytes::timestamps(Timestamps { value, echo: value.wrapping_add(state.offset) })
        } else {
            OptionBytes::NONE
        };
        let header = Header {
            local: endpoint(peer),
            remote: SERVER,
            seq: SeqNumber(state.seq),
            ack: SeqNumber(state.ack),
            flags: flags | tcp::ACK,
            window: WINDOW,
            options,
            ..Header::default()
        };
        state.seq = state.seq.wrapping_add(len + u32::from(flags & tcp::FIN != 0));
        let bytes = ETHERNET + header.len() + len as usize;
        self.pool.fill(|frame| put(&header, len as usize, frame.start(bytes)))
    }
}

/// The clock of timestamps.
const fn clock(time_us: u64) -> u32 {
    (time_us / 1_000) as u32
}

#[inline(always)]
fn put(header: &Header, payload: usize, out: &mut [u8]) {
    if let Some(kind) = out.get_mut(12..ETHERNET) {
        kind.copy_from_slice(&[8, 0]);
    }
    header.write_without_checksum(payload, out.get_mut(ETHERNET..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_has_ends_of_its_own() {
        for peer in [0, 1, 65_535, 65_536, 999_999, 20_000_000] {
            assert_eq!(number(endpoint(peer)), peer);
        }
        assert_ne!(endpoint(1), endpoint(1 + ADDRESSES));
    }
}
