//! What leaves a stack: counted, sampled, remembered where the peers need it, and dropped.

use weir_net::tcp;
use weir_tcp::{Buffer as _, Header, Payload, Transmit};

use super::nic::Nic;
use super::packet::{Packet, pattern};
use super::peer::number;

/// Every so many segments with data one is compared byte by byte.
const SAMPLE: u64 = 509;
/// Where the data that applications send begin in their buffers.
pub(super) const SENT_FROM: usize = 128;

/// A segment of a handshake that left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    /// To whom.
    pub(super) peer: u32,
    /// Its sequence number.
    pub(super) seq: u32,
    /// Its timestamp, where it has one.
    pub(super) timestamp: u32,
}

/// The sending side of a port.
#[derive(Debug)]
pub(super) struct Wire {
    nic: Nic,
    /// Segments that left.
    pub(super) segments: u64,
    /// Bytes of data that left.
    pub(super) bytes: u64,
    /// Samples that were compared, and those that were wrong.
    pub(super) compared: (u64, u64),
    /// Answers to SYNs since somebody took them.
    pub(super) answers: Vec<Answer>,
    /// First sequence number of data to each peer.
    pub(super) starts: Vec<u32>,
    /// Where each peer's stream ends so far; empty: nobody asks.
    pub(super) ends: Vec<u32>,
    /// The stream to a peer is the pattern from there on, so many bytes again and again.
    pub(super) unit: (usize, usize),
}

impl Wire {
    pub(super) fn new(peers: usize, unit: (usize, usize), remembers_ends: bool) -> Self {
        Self {
            nic: Nic::new(),
            segments: 0,
            bytes: 0,
            compared: (0, 0),
            answers: Vec::with_capacity(1 << 12),
            starts: vec![0; peers],
            ends: if remembers_ends { vec![0; peers] } else { Vec::new() },
            unit,
        }
    }

    /// Takes note of a SYN+ACK.
    #[cold]
    pub(super) fn answered(&mut self, peer: u32, seq: u32, timestamp: u32) {
        self.answers.push(Answer { peer, seq, timestamp });
        if let Some(start) = self.starts.get_mut(peer as usize) {
            *start = seq.wrapping_add(1);
        }
        if let Some(end) = self.ends.get_mut(peer as usize) {
            *end = seq.wrapping_add(1);
        }
    }

    /// Counts a segment; whether its data want comparing.
    #[inline(always)]
    pub(super) fn count(&mut self, peer: u32, seq: u32, len: usize) -> bool {
        self.segments += 1;
        self.bytes += len as u64;
        if len > 0
            && let Some(end) = self.ends.get_mut(peer as usize)
        {
            *end = seq.wrapping_add(len as u32);
        }
        len > 0 && self.segments.is_multiple_of(SAMPLE)
    }

    /// Compares data of a segment with what has to stand there in the stream.
    #[cold]
    pub(super) fn compare(&mut self, peer: u32, seq: u32, data: &[u8]) {
        let start = self.starts.get(peer as usize).copied().unwrap_or(0);
        let (from, unit) = self.unit;
        let place = seq.wrapping_sub(start) as usize;
        let is_right = data.iter().enumerate().all(|(at, byte)| *byte == pattern(from + (place + at) % unit));
        self.compared.0 += 1;
        self.compared.1 += u64::from(!is_right);
    }

    /// The NIC has sent all.
    #[inline(always)]
    pub(super) fn flush(&mut self) {
        self.nic.flush();
    }
}

impl Transmit<Packet> for Wire {
    #[inline(always)]
    fn transmit(&mut self, header: &Header, payload: Payload<'_, Packet>) -> bool {
        let len = payload.len();
        self.nic.write(header, len);
        let peer = number(header.remote);
        let is_sample = self.count(peer, header.seq.0, len);
        if header.flags & tcp::SYN != 0 {
            let stamp = header.options.as_bytes();
            let word = stamp.get(8..12).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
            self.answered(peer, header.seq.0, u32::from_be_bytes(word));
        }
        let mut place = header.seq.0;
        for (buffer, offset, len) in payload {
            if is_sample {
                let from = usize::from(offset);
                let data = buffer.bytes().get(from..from + usize::from(len)).unwrap_or_default().to_vec();
                self.compare(peer, place, &data);
                place = place.wrapping_add(u32::from(len));
            }
            self.nic.hold(buffer);
        }
        true
    }

    #[inline]
    fn copy(&mut self, bytes: &[u8]) -> Option<Packet> {
        self.nic.copy(bytes)
    }
}
