//! Which number stands for a flow: in a hash table, in a NIC's indirection table, and on every node alike?
//!
//! Three families, each for one use:
//! - [`flow_hash_v4`], [`flow_hash_v6`]: fast and keyed by a secret per process, for the flow table and software
//!   steering. Never written anywhere: its values may change with any version.
//! - [`stable_hash_v4`], [`stable_hash_v6`], [`source_hash_v4`], [`source_hash_v6`]: XXH3-64 as its specification
//!   defines it, over the addresses, ports and protocol in network byte order, for the choice of a backend. Equal on
//!   every node, machine and version that uses the same key.
//! - [`Toeplitz`]: what NICs compute for RSS, so that software finds the same queue.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// A key with which Toeplitz gives both directions of a flow the same value: 16 bits repeated (Woo and Park, "Scalable
/// TCP Session Monitoring with Symmetric Receive-side Scaling", 2012).
pub const SYMMETRIC_KEY: [u8; 40] = [
    0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d,
    0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a,
    0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a,
];

/// The key of Microsoft's RSS specification, which most NICs start with.
pub const MICROSOFT_KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// The longest input of Toeplitz with a 40-byte key: two IPv6 addresses and two ports.
pub const TOEPLITZ_INPUT_MAX: usize = 36;

/// The Toeplitz hash bit by bit, as the specification says it. `input` is in network byte order: source address,
/// destination address, source port, destination port; bytes beyond [`TOEPLITZ_INPUT_MAX`] are not counted.
pub const fn toeplitz(key: &[u8; 40], input: &[u8]) -> u32 {
    let mut hash = 0;
    let mut rest = input;
    let mut index = 0;
    while let Some((byte, tail)) = rest.split_first() {
        if index == TOEPLITZ_INPUT_MAX {
            break;
        }
        hash ^= toeplitz_byte(key, index, *byte);
        rest = tail;
        index += 1;
    }
    hash
}

/// What input byte number `index` adds to the hash.
const fn toeplitz_byte(key: &[u8; 40], index: usize, byte: u8) -> u32 {
    let mut window = 0u64;
    let mut at = 0;
    // The 40 key bits from bit 8 * index on; a byte needs 32 + 7 of them.
    while at < 5 {
        window <<= 8;
        if index + at < 40 {
            #[expect(clippy::indexing_slicing, reason = "index + at is below 40, the key's length")]
            {
                window |= key[index + at] as u64;
            }
        }
        at += 1;
    }
    let mut hash = 0;
    let mut bit = 0;
    while bit < 8 {
        if byte & (0x80 >> bit) != 0 {
            hash ^= (window >> (8 - bit)) as u32;
        }
        bit += 1;
    }
    hash
}

/// A Toeplitz key with its tables: one look-up per input byte. 36 KiB, of which IPv4 touches 12.
#[derive(Clone)]
pub struct Toeplitz {
    tables: Box<[[u32; 256]; TOEPLITZ_INPUT_MAX]>,
}

impl Toeplitz {
    /// Computes the tables; about 10 µs, once per key.
    pub fn new(key: &[u8; 40]) -> Toeplitz {
        let mut tables = Box::new([[0; 256]; TOEPLITZ_INPUT_MAX]);
        for (index, table) in tables.iter_mut().enumerate() {
            for (byte, entry) in (0..=255).zip(table.iter_mut()) {
                *entry = toeplitz_byte(key, index, byte);
            }
        }
        Toeplitz { tables }
    }

    /// The hash of `input`, in network byte order as for [`toeplitz`].
    #[inline(always)]
    pub fn hash(&self, input: &[u8]) -> u32 {
        let mut hash = 0;
        for (byte, table) in input.iter().zip(self.tables.iter()) {
            hash ^= table.get(usize::from(*byte)).copied().unwrap_or(0);
        }
        hash
    }

    /// The hash of an IPv4 flow as NICs compute it for TCP and UDP.
    #[inline]
    pub fn hash_v4(&self, src: u32, dst: u32, src_port: u16, dst_port: u16) -> u32 {
        let mut input = [0; 12];
        input[..4].copy_from_slice(&src.to_be_bytes());
        input[4..8].copy_from_slice(&dst.to_be_bytes());
        input[8..10].copy_from_slice(&src_port.to_be_bytes());
        input[10..].copy_from_slice(&dst_port.to_be_bytes());
        self.hash(&input)
    }

    /// The hash of an IPv6 flow as NICs compute it for TCP and UDP.
    #[inline]
    pub fn hash_v6(&self, src: &[u8; 16], dst: &[u8; 16], src_port: u16, dst_port: u16) -> u32 {
        let mut input = [0; 36];
        input[..16].copy_from_slice(src);
        input[16..32].copy_from_slice(dst);
        input[32..34].copy_from_slice(&src_port.to_be_bytes());
        input[34..].copy_from_slice(&dst_port.to_be_bytes());
        self.hash(&input)
    }
}

/// The entry of an indirection table of `size` entries that a NIC takes for `hash`: its low bits, as all sizes are powers
/// of two. Zero for a table of no entries.
#[inline(always)]
pub const fn reta_index(hash: u32, size: u16) -> u16 {
    if size == 0 { 0 } else { (hash % size as u32) as u16 }
}

/// Digits of π after the point, as in other folded-multiply hashes: odd constants without structure.
const MIX: [u64; 4] =
    [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89];

/// Both halves of a 128-bit product: every input bit reaches every output bit.
#[inline(always)]
const fn folded_multiply(left: u64, right: u64) -> u64 {
    let product = left as u128 * right as u128;
    product as u64 ^ (product >> 64) as u64
}

/// Hash of two words under a secret seed, for hash tables.
#[inline(always)]
pub const fn flow_hash_2(seed: [u64; 2], words: [u64; 2]) -> u64 {
    let mixed = folded_multiply(words[0] ^ seed[0], words[1] ^ seed[1]);
    folded_multiply(mixed ^ MIX[0], seed[0] ^ MIX[1])
}

/// Hash of five words under a secret seed, for hash tables.
#[inline(always)]
pub const fn flow_hash_5(seed: [u64; 2], words: [u64; 5]) -> u64 {
    // The two products don't wait for each other.
    let first = folded_multiply(words[0] ^ seed[0], words[1] ^ seed[1]);
    let second = folded_multiply(words[2] ^ seed[0] ^ MIX[2], words[3] ^ seed[1] ^ MIX[3]);
    let mixed = folded_multiply(first ^ words[4] ^ MIX[0], second.rotate_left(32) ^ seed[1]);
    folded_multiply(mixed ^ MIX[2], seed[0] ^ MIX[1])
}

/// Ports and protocol as one word.
#[inline(always)]
const fn tail(src_port: u16, dst_port: u16, protocol: u8) -> u64 {
    (src_port as u64) << 32 | (dst_port as u64) << 16 | protocol as u64
}

/// Hash of an IPv4 flow under a secret seed; addresses and ports in host order.
#[inline(always)]
pub const fn flow_hash_v4(
    seed: [u64; 2],
    src: u32,
    dst: u32,
    src_port: u16,
    dst_port: u16,
    protocol: u8,
) -> u64 {
    flow_hash_2(seed, [(src as u64) << 32 | dst as u64, tail(src_port, dst_port, protocol)])
}

/// Hash of an IPv6 flow under a secret seed; addresses in network order, ports in host order.
#[inline(always)]
pub fn flow_hash_v6(
    seed: [u64; 2],
    src: &[u8; 16],
    dst: &[u8; 16],
    src_port: u16,
    dst_port: u16,
    protocol: u8,
) -> u64 {
    let (src, dst) = (u128::from_ne_bytes(*src), u128::from_ne_bytes(*dst));
    flow_hash_5(
        seed,
        [src as u64, (src >> 64) as u64, dst as u64, (dst >> 64) as u64, tail(src_port, dst_port, protocol)],
    )
}

/// The key of the stable hashes; nodes that shall choose the same backends share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct StableKey(u64);

impl StableKey {
    /// No key: plain XXH3.
    pub const NONE: StableKey = StableKey(0);

    /// A key of eight bytes, used as XXH3's seed.
    pub const fn from_seed(seed: u64) -> StableKey {
        StableKey(seed)
    }

    /// A key of sixteen bytes; its own XXH3 becomes the seed.
    pub fn from_bytes(key: &[u8; 16]) -> StableKey {
        StableKey(xxh3_64(key))
    }

    /// The seed, for publication.
    pub const fn seed(self) -> u64 {
        self.0
    }
}

/// XXH3-64 over 13 bytes: source and destination address, source and destination port, all big-endian, and protocol.
/// Arguments in host order.
#[inline]
pub fn stable_hash_v4(key: StableKey, src: u32, dst: u32, src_port: u16, dst_port: u16, protocol: u8) -> u64 {
    // XXH3 of 9 to 16 bytes reads the first eight and the last eight. They are made in registers here: bytes stored one by
    // one and then loaded together would wait for the store.
    let first = (u64::from(src) << 32 | u64::from(dst)).swap_bytes();
    let last =
        (u64::from(dst) << 40 | u64::from(src_port) << 24 | u64::from(dst_port) << 8 | u64::from(protocol))
            .swap_bytes();
    xxh3_13_bytes(key.0, first, last)
}

/// XXH3-64 of 13 bytes, of which `first` and `last` are the first and last eight, read as little-endian numbers
/// (XXH3 specification, "Small inputs", 9 to 16 bytes). The constants are the default secret's words 3 to 6.
#[inline(always)]
const fn xxh3_13_bytes(seed: u64, first: u64, last: u64) -> u64 {
    const LOW: u64 = 0x1f67_b3b7_a4a4_4072 ^ 0x78e5_c0cc_4ee6_79cb;
    const HIGH: u64 = 0x2172_ffcc_7dd0_5a82 ^ 0x8e24_43f7_7446_08b8;
    let low = first ^ LOW.wrapping_add(seed);
    let high = last ^ HIGH.wrapping_sub(seed);
    let mut hash =
        13u64.wrapping_add(low.swap_bytes()).wrapping_add(high).wrapping_add(folded_multiply(low, high));
    hash = (hash ^ hash >> 37).wrapping_mul(0x1656_6791_9e37_79f9);
    hash ^ hash >> 32
}

/// XXH3-64 over 37 bytes: source and destination address, source and destination port, all big-endian, and protocol.
/// Ports in host order.
#[inline]
pub fn stable_hash_v6(
    key: StableKey,
    src: &[u8; 16],
    dst: &[u8; 16],
    src_port: u16,
    dst_port: u16,
    protocol: u8,
) -> u64 {
    let mut input = [0; 37];
    input[..16].copy_from_slice(src);
    input[16..32].copy_from_slice(dst);
    input[32..34].copy_from_slice(&src_port.to_be_bytes());
    input[34..36].copy_from_slice(&dst_port.to_be_bytes());
    input[36] = protocol;
    xxh3_64_with_seed(&input, key.0)
}

/// XXH3-64 over the 4 big-endian bytes of a source address, for pools that keep a client on its backend.
#[inline]
pub fn source_hash_v4(key: StableKey, src: u32) -> u64 {
    xxh3_64_with_seed(&src.to_be_bytes(), key.0)
}

/// XXH3-64 over the 16 bytes of a source address, for pools that keep a client on its backend.
#[inline]
pub fn source_hash_v6(key: StableKey, src: &[u8; 16]) -> u64 {
    xxh3_64_with_seed(src, key.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// Microsoft, "Verifying the RSS Hash Calculation": source, port, destination, port, hash with and without ports.
    const VECTORS_V4: [(&str, u16, &str, u16, u32, u32); 5] = [
        ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x51cc_c178, 0x323e_8fc2),
        ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xc626_b0ea, 0xd718_262a),
        ("24.19.198.95", 12898, "12.22.207.184", 38024, 0x5c2b_394a, 0xd2d0_a5de),
        ("38.27.205.30", 48228, "209.142.163.6", 2217, 0xafc7_327f, 0x8298_9176),
        ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x10e8_28a2, 0x5d18_09c5),
    ];
    const VECTORS_V6: [(&str, u16, &str, u16, u32, u32); 3] = [
        ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x4020_7d3d, 0x2cc1_8cd5),
        ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0xdde5_1bbf, 0x0f0c_461c),
        (
            "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
            44251,
            "fe80::200:f8ff:fe21:67cf",
            38024,
            0x02d1_feef,
            0x4b61_e985,
        ),
    ];

    #[test]
    fn toeplitz_gives_the_published_values() {
        let table = Toeplitz::new(&MICROSOFT_KEY);
        for (src, src_port, dst, dst_port, with_ports, without) in VECTORS_V4 {
            let (src, dst): (Ipv4Addr, Ipv4Addr) = (src.parse().unwrap(), dst.parse().unwrap());
            assert_eq!(table.hash_v4(src.into(), dst.into(), src_port, dst_port), with_ports);
            let addresses = [src.octets(), dst.octets()].concat();
            assert_eq!(table.hash(&addresses), without);
            assert_eq!(toeplitz(&MICROSOFT_KEY, &addresses), without);
        }
        for (src, src_port, dst, dst_port, with_ports, without) in VECTORS_V6 {
            let (src, dst): (Ipv6Addr, Ipv6Addr) = (src.parse().unwrap(), dst.parse().unwrap());
            assert_eq!(table.hash_v6(&src.octets(), &dst.octets(), src_port, dst_port), with_ports);
            let addresses = [src.octets(), dst.octets()].concat();
            assert_eq!(table.hash(&addresses), without);
            assert_eq!(toeplitz(&MICROSOFT_KEY, &addresses), without);
        }
    }

    #[test]
    fn reta_takes_low_bits() {
        assert_eq!(reta_index(0x51cc_c178, 128), 0x78);
        assert_eq!(reta_index(0x51cc_c178, 512), 0x178);
        assert_eq!(reta_index(5, 0), 0);
    }

    proptest! {
        #[test]
        fn tables_are_the_definition(key in prop::array::uniform32(any::<u8>()), tail: [u8; 8], input in prop::collection::vec(any::<u8>(), 0..40)) {
            let key: [u8; 40] = [&key[..], &tail].concat().try_into().unwrap();
            prop_assert_eq!(Toeplitz::new(&key).hash(&input), toeplitz(&key, &input));
        }

        #[test]
        fn stable_hashes_are_xxh3(seed: u64, src: [u8; 4], dst: [u8; 4], ports: [u8; 4], protocol: u8) {
            let input = [&src[..], &dst, &ports, &[protocol]].concat();
            let number = u32::from_be_bytes;
            let (sport, dport) = ((number(ports) >> 16) as u16, number(ports) as u16);
            let hash = stable_hash_v4(StableKey::from_seed(seed), number(src), number(dst), sport, dport, protocol);
            prop_assert_eq!(hash, xxh3_64_with_seed(&input, seed));
        }

        #[test]
        fn the_symmetric_key_does_not_see_directions(src: u32, dst: u32, sport: u16, dport: u16, src6: [u8; 16], dst6: [u8; 16]) {
            let table = Toeplitz::new(&SYMMETRIC_KEY);
            prop_assert_eq!(table.hash_v4(src, dst, sport, dport), table.hash_v4(dst, src, dport, sport));
            prop_assert_eq!(table.hash_v6(&src6, &dst6, sport, dport), table.hash_v6(&dst6, &src6, dport, sport));
        }
    }

    /// Values that must never change: nodes of different versions would choose different backends.
    #[test]
    fn stable_hashes_are_xxh3_of_the_documented_bytes() {
        let bytes = [198, 18, 0, 1, 198, 18, 100, 1, 0x9c, 0x40, 0, 80, 6];
        let hash = |key| stable_hash_v4(key, 0xc612_0001, 0xc612_6401, 40_000, 80, 6);
        assert_eq!(hash(StableKey::NONE), xxh3_64(&bytes));
        assert_eq!(hash(StableKey::NONE), GOLDEN_V4);
        assert_ne!(hash(StableKey::from_seed(1)), hash(StableKey::NONE));
        assert_ne!(hash(StableKey::from_bytes(&[1; 16])), hash(StableKey::from_bytes(&[2; 16])));
        let mut bytes = [[0x20; 16], [0x21; 16]].concat();
        bytes.extend([0, 1, 0, 2, 17]);
        assert_eq!(stable_hash_v6(StableKey::NONE, &[0x20; 16], &[0x21; 16], 1, 2, 17), xxh3_64(&bytes));
        assert_eq!(source_hash_v4(StableKey::NONE, 0xc612_0001), xxh3_64(&[198, 18, 0, 1]));
        assert_eq!(source_hash_v6(StableKey::NONE, &[7; 16]), xxh3_64(&[7; 16]));
    }

    const GOLDEN_V4: u64 = 16_194_776_477_305_020_355;

    /// Every input bit flips about half of the output bits, also the low and high ones that tables use.
    #[test]
    fn flow_hashes_avalanche() {
        let seed = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state ^ state >> 29
        };
        for bit in 0..5 * 64 {
            let (mut flips_5, mut flips_2) = ([0u32; 64], [0u32; 64]);
            for _ in 0..512 {
                let words: [u64; 5] = std::array::from_fn(|_| random());
                let mut changed = words;
                changed[bit / 64] ^= 1 << (bit % 64);
                let count = |flips: &mut [u32; 64], difference: u64| {
                    for (place, count) in flips.iter_mut().enumerate() {
                        *count += (difference >> place & 1) as u32;
                    }
                };
                count(&mut flips_5, flow_hash_5(seed, words) ^ flow_hash_5(seed, changed));
                if bit < 128 {
                    let (words, changed) = ([words[0], words[1]], [changed[0], changed[1]]);
                    count(&mut flips_2, flow_hash_2(seed, words) ^ flow_hash_2(seed, changed));
                }
            }
            // 256 ± 5.5 standard deviations of a fair coin's 512 tosses, for some 28,000 cells
            let fair = |flips: [u32; 64]| flips.iter().all(|count| (190..=322).contains(count));
            assert!(fair(flips_5), "bit {bit}: {flips_5:?}");
            assert!(bit >= 128 || fair(flips_2), "bit {bit}: {flips_2:?}");
        }
    }

    /// Neighbouring flows fill a table as random ones would.
    #[test]
    fn flow_hashes_of_neighbours_spread() {
        let seed = [3, 5];
        let mut buckets = vec![0u32; 4096];
        for client in 0..256u32 {
            for port in 0..256u16 {
                let hash = flow_hash_v4(seed, 0xc612_0000 + client, 0xc612_6401, 1024 + port, 80, 6);
                buckets[hash as usize & 4095] += 1;
            }
        }
        // 16 expected per bucket; a Poisson tail beyond 45 has a chance below 10⁻⁹ per bucket
        assert!(buckets.iter().all(|count| *count < 45));
        assert!(buckets.iter().filter(|count| **count == 0).count() < 8);
    }
}
