//! What the worker sends: remembered for the peers, sampled, and dropped.

use weir_net::tcp;
use weir_tcp::options::Timestamps;
use weir_tcp::{Buffer as _, Endpoint, Header, Payload, Transmit};

use super::super::tcp::nic::Nic;
use super::super::tcp::packet::Packet;

/// Every so many segments with data one is kept to be compared.
const SAMPLE: u64 = 1_021;
/// Samples that wait to be compared at most.
const SAMPLES: usize = 64;
/// Segments that wait for the peers at most, so that noting them allocates nothing.
const NOTES: usize = 1 << 14;

/// A segment that left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// The worker's end.
    pub(super) local: Endpoint,
    /// The peer's end.
    pub(super) remote: Endpoint,
    /// Its sequence number.
    pub(super) seq: u32,
    /// SYN, FIN, RST.
    pub(super) flags: u8,
    /// Bytes of data.
    pub(super) len: u32,
    /// The timestamp of a SYN.
    pub(super) timestamp: u32,
}

/// The sending side of a port.
#[derive(Debug)]
pub(super) struct Wire {
    nic: Nic,
    /// What the peers have not seen yet.
    pub(super) sent: Vec<Sent>,
    /// Data to be compared, with its first sequence number's peer.
    pub(super) samples: Vec<(Endpoint, Vec<u8>)>,
    with_data: u64,
}

impl Wire {
    pub(super) fn new() -> Self {
        Self {
            nic: Nic::new(),
            sent: Vec::with_capacity(NOTES),
            samples: (0..SAMPLES)
                .map(|_| (Endpoint { address: 0, port: 0 }, Vec::with_capacity(2_048)))
                .collect(),
            with_data: 0,
        }
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
        self.with_data += u64::from(len > 0);
        let timestamp = if header.flags & tcp::SYN != 0 {
            Timestamps::find(header.options.as_bytes()).map_or(0, |stamp| stamp.value)
        } else {
            0
        };
        self.sent.push(Sent {
            local: header.local,
            remote: header.remote,
            seq: header.seq.0,
            flags: header.flags & (tcp::SYN | tcp::FIN | tcp::RST),
            len: len as u32,
            timestamp,
        });
        let mut sample = (len > 0 && self.with_data.is_multiple_of(SAMPLE))
            .then(|| self.samples.iter_mut().find(|(_, bytes)| bytes.is_empty()))
            .flatten();
        if let Some((remote, _)) = &mut sample {
            *remote = header.remote;
        }
        for (buffer, offset, len) in payload {
            if let Some((_, bytes)) = &mut sample {
                let from = usize::from(offset);
                bytes
                    .extend_from_slice(buffer.bytes().get(from..from + usize::from(len)).unwrap_or_default());
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
