//! Whose packet is it? Several workers share no state, so each packet must reach the worker that owns its flow.
//!
//! Where the NIC spreads by RSS, the worker that received the packet owns it, but for `nat`, whose two directions hash
//! apart. Where it does not, the client's address and port decide: both directions of a flow name them, except under `fullnat`,
//! where the reply names a source port that its owner chose to come back to itself ([`crate::snat::ReplyOwner`]).

use weir_net::hash::{Toeplitz, flow_hash_v4, flow_hash_v6, reta_index};
use weir_net::{Kind, Parsed, icmp};

use crate::engine::datagram_of;
use crate::entry::{Address, Tuple};
use crate::icmp::{is_flow_error, quoted_flow};
use crate::services::{Mode, Services};

/// Fixed: all workers of a process and of the next one must agree. Owners need spread, not secrecy.
const SPREAD_SEED: [u64; 2] = [0x5745_4952_7374_6565, 0x7265_6431_6f77_6e65];

/// How packets are spread over workers.
pub enum Spread {
    /// There is one worker.
    Alone,
    /// In software, by the client's address and port.
    Hash {
        /// Number of workers.
        workers: u16,
    },
    /// By the NICs, all with the same key and indirection table.
    Rss {
        /// Number of workers.
        workers: u16,
        /// The NICs' hash.
        toeplitz: Box<Toeplitz>,
        /// Worker by the hash's low bits.
        indirection: Box<[u16]>,
    },
}

/// The worker that must see a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Whoever has it.
    Any,
    /// This one.
    Worker(u16),
}

fn client_owner<A: Address>(address: A, port: u16, workers: u16) -> u16 {
    let hash = if A::FAMILY == 4 {
        flow_hash_v4(SPREAD_SEED, address.bits() as u32, 0, port, 0, 0)
    } else {
        flow_hash_v6(SPREAD_SEED, &address.bits().to_be_bytes(), &[0; 16], port, 0, 0)
    };
    ((hash >> 48).wrapping_mul(u64::from(workers)) >> 16) as u16
}

impl std::fmt::Debug for Spread {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Alone => "Alone",
            Self::Hash { .. } => "Hash",
            Self::Rss { .. } => "Rss",
        })
    }
}

impl Spread {
    /// Who looks after the fragments of this one's datagram until their ports are known.
    pub fn fragment_home(&self, frame: &[u8], parsed: &Parsed) -> Owner {
        let workers = match self {
            Self::Alone => return Owner::Any,
            Self::Hash { workers } | Self::Rss { workers, .. } => *workers,
        };
        datagram_of(frame, parsed).map_or(Owner::Any, |datagram| {
            Owner::Worker(
                ((datagram.hash(SPREAD_SEED[0]) >> 48).wrapping_mul(u64::from(workers)) >> 16) as u16,
            )
        })
    }

    /// The owner of a packet; `own_hash` tells whether the NIC hashed this very packet by its ports (no fragment).
    #[inline]
    pub fn owner(&self, services: &Services, frame: &[u8], parsed: &Parsed, own_hash: bool) -> Owner {
        match (self, parsed.kind) {
            (Self::Alone, _) => Owner::Any,
            (_, Kind::Ipv4) => self.owner_of::<u32>(services, frame, parsed, own_hash),
            (_, Kind::Ipv6) => self.owner_of::<u128>(services, frame, parsed, own_hash),
            _ => Owner::Any,
        }
    }

    fn owner_of<A: Address>(
        &self,
        services: &Services,
        frame: &[u8],
        parsed: &Parsed,
        own_hash: bool,
    ) -> Owner {
        let (tuple, own_hash) = if parsed.has_ports {
            let (src, dst) = A::addresses(frame, parsed);
            let (src_port, dst_port, protocol) = (parsed.src_port, parsed.dst_port, parsed.protocol.0);
            (Tuple { src, dst, src_port, dst_port, protocol }, own_hash)
        } else if is_flow_error(parsed) {
            let quoted = icmp::inner(frame, parsed).ok().and_then(|inner| quoted_flow::<A>(frame, &inner));
            let Some(tuple) = quoted else { return Owner::Any };
            (tuple, false)
        } else {
            return Owner::Any;
        };
        match self {
            Self::Alone => Owner::Any,
            Self::Hash { workers } => Owner::Worker(if services.is_own(tuple.dst.bits()) {
                tuple.dst_port.checked_rem(*workers).unwrap_or(0)
            } else if services.is_vip(tuple.dst.bits()) {
                client_owner(tuple.src, tuple.src_port, *workers)
            } else {
                client_owner(tuple.dst, tuple.dst_port, *workers)
            }),
            Self::Rss { workers, toeplitz, indirection } => {
                let dst = tuple.dst.bits();
                if services.has_nat() && !services.is_own(dst) {
                    if !services.is_vip(dst) {
                        return Owner::Worker(client_owner(tuple.dst, tuple.dst_port, *workers));
                    }
                    let listener = services.listener_for(dst, tuple.protocol, tuple.dst_port);
                    if listener.is_some_and(|listener| listener.mode == Mode::Nat) {
                        return Owner::Worker(client_owner(tuple.src, tuple.src_port, *workers));
                    }
                }
                if own_hash {
                    return Owner::Any;
                }
                let (src, dst) = (tuple.src.bits(), tuple.dst.bits());
                let hash = if A::FAMILY == 4 {
                    toeplitz.hash_v4(src as u32, dst as u32, tuple.src_port, tuple.dst_port)
                } else {
                    toeplitz.hash_v6(&src.to_be_bytes(), &dst.to_be_bytes(), tuple.src_port, tuple.dst_port)
                };
                let at = usize::from(reta_index(hash, indirection.len() as u16));
                indirection.get(at).map_or(Owner::Any, |worker| Owner::Worker(*worker))
            }
        }
    }
}
