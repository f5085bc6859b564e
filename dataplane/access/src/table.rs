//! Is an address denied? A longest-prefix match that was solved when the table was built.
//!
//! Prefixes are intervals, and all that matters of them is where the answer changes: the table is the sorted list of these
//! addresses (its keys), and an address is denied by whether the number of keys up to it is odd. That number is found by nodes
//! that cut the range of their keys into equal slots, each of them a few keys or a node of its own: three to five memory
//! accesses for 100,000 prefixes, of whatever lengths.
//!
//! ```text
//! address ─▶ node: (address − least) >> shift ─▶ slot ─┬▶ at most 4 or 8 keys: compare all
//!                                                      └▶ a later node
//! ```
//!
//! Branches that an address decides cost more than comparisons: as many keys are compared as a slot could have, whose they are,
//! because those of later slots are above the address anyway.

use std::fmt::Debug;
use std::ops::Sub;

/// Most keys of a table.
pub const MAX_KEYS: usize = 1 << 27;
/// In a slot: the rest is the number of a node, else that of the slot's first key.
const CHILD: u32 = 1 << 31;

/// An address as a number: `u32` for IPv4, `u128` for IPv6, `u64` for the first half of an IPv6 one.
pub trait Address: Copy + Debug + Ord + Sub<Output = Self> + Send + Sync + 'static {
    /// 32, 64 or 128.
    const BITS: u32;
    /// The lowest.
    const ZERO: Self;
    /// The highest.
    const MAX: Self;
    /// `self >> by` as a number, at most `u32::MAX`; 0 where nothing is left.
    fn shifted(self, by: u32) -> u32;
    /// Keys that a slot may have without a node of its own: all are compared at once.
    const LEAF: usize;
    /// How many of the first [`Address::LEAF`] keys are not above the address.
    fn count(keys: &[Self], address: Self) -> u32;
    /// The distance to a lower address; 0 to a higher one.
    fn above(self, least: Self) -> Self;
    /// Addresses of a network differ from it in these bits.
    fn host_mask(length: u8) -> Self;
    /// One up, or the highest.
    fn next(self) -> Option<Self>;
    /// All bits of both.
    fn or(self, other: Self) -> Self;
    /// Only bits of both.
    fn and(self, other: Self) -> Self;
}

macro_rules! address {
    ($type:ty, $leaf:literal) => {
        impl Address for $type {
            const LEAF: usize = $leaf;
            #[inline(always)]
            fn count(keys: &[Self], address: Self) -> u32 {
                let keys: Option<&[Self; $leaf]> = keys.first_chunk();
                keys.map_or(0, |keys| keys.iter().map(|key| u32::from(*key <= address)).sum())
            }
            #[inline(always)]
            fn above(self, least: Self) -> Self {
                self.saturating_sub(least)
            }
            const BITS: u32 = <$type>::BITS;
            const ZERO: Self = 0;
            const MAX: Self = <$type>::MAX;
            #[inline]
            fn shifted(self, by: u32) -> u32 {
                self.checked_shr(by).map_or(0, |rest| u32::try_from(rest).unwrap_or(u32::MAX))
            }
            fn host_mask(length: u8) -> Self {
                Self::MAX.checked_shr(u32::from(length)).unwrap_or(0)
            }
            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }
            fn or(self, other: Self) -> Self {
                self | other
            }
            fn and(self, other: Self) -> Self {
                self & other
            }
        }
    };
}

address!(u32, 8);
address!(u64, 8);
address!(u128, 4);

/// A stretch of keys, cut into slots of equal width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node<A> {
    /// Its lowest key.
    pub least: A,
    /// Number of its first slot.
    pub first_slot: u32,
    /// How many slots it has, at least 1.
    pub slots: u32,
    /// A slot is two to this power addresses wide.
    pub shift: u32,
}

/// A table as arrays, for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts<A> {
    /// Nodes; the first is the root. None where there are no keys.
    pub nodes: Vec<Node<A>>,
    /// Slots of the nodes.
    pub slots: Vec<u32>,
    /// Where the answer changes, rising.
    pub keys: Vec<A>,
}

impl<A> Default for Parts<A> {
    fn default() -> Self {
        Self { nodes: Vec::new(), slots: Vec::new(), keys: Vec::new() }
    }
}

/// Why parts are no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// More than slots can name.
    #[error("{0} keys are too many")]
    TooManyKeys(usize),
    /// A look-up would give another answer than the prefixes.
    #[error("key {0} is not above the one before it")]
    Unsorted(usize),
    /// There are keys but no way to them, or the other way round.
    #[error("{nodes} nodes for {keys} keys")]
    NoRoot {
        /// Nodes.
        nodes: usize,
        /// Keys.
        keys: usize,
    },
    /// A node outside of the slots or keys.
    #[error("node {0} names slots or keys that are not there")]
    Node(usize),
    /// A slot outside of the keys.
    #[error("slot {0} names keys that are not there")]
    Slot(usize),
    /// A slot that leads to an earlier node, itself or none.
    #[error("slot {slot} of node {node} leads to node {to}, which is not a later one")]
    Child {
        /// Of this node.
        node: usize,
        /// The slot.
        slot: usize,
        /// Where it leads.
        to: usize,
    },
}

/// Which addresses of a family are denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<A> {
    default_deny: bool,
    nodes: Box<[Node<A>]>,
    slots: Box<[u32]>,
    /// With as many more of the highest address as a look-up may compare beyond the last.
    keys: Box<[A]>,
    key_count: u32,
}

impl<A: Address> Table<A> {
    /// Takes parts that somebody else made. What it refuses could not be looked up in; each look-up in what it takes ends.
    pub fn new(parts: Parts<A>, default_deny: bool) -> Result<Self, TableError> {
        let Parts { nodes, slots, mut keys } = parts;
        if keys.len() > MAX_KEYS || slots.len() > MAX_KEYS {
            return Err(TableError::TooManyKeys(keys.len().max(slots.len())));
        }
        if nodes.is_empty() != keys.is_empty() {
            return Err(TableError::NoRoot { nodes: nodes.len(), keys: keys.len() });
        }
        if let Some(at) = keys.windows(2).position(|pair| matches!(pair, [a, b] if a >= b)) {
            return Err(TableError::Unsorted(at + 1));
        }
        for (at, node) in nodes.iter().enumerate() {
            let first = node.first_slot as usize;
            let of_node = first.checked_add(node.slots as usize).and_then(|end| slots.get(first..end));
            let known = node.slots >= 1 && node.shift < A::BITS;
            let Some(of_node) = of_node.filter(|_| known) else { return Err(TableError::Node(at)) };
            for (place, slot) in of_node.iter().enumerate() {
                match Slot::of(*slot) {
                    Slot::Keys(first) if first as usize > keys.len() => {
                        return Err(TableError::Slot(node.first_slot as usize + place));
                    }
                    Slot::Node(to) if to as usize <= at || to as usize >= nodes.len() => {
                        return Err(TableError::Child { node: at, slot: place, to: to as usize });
                    }
                    _ => {}
                }
            }
        }
        let key_count = keys.len() as u32;
        keys.resize(keys.len() + A::LEAF, A::MAX);
        Ok(Self {
            default_deny,
            key_count,
            nodes: nodes.into_boxed_slice(),
            slots: slots.into_boxed_slice(),
            keys: keys.into_boxed_slice(),
        })
    }

    /// Indexes sorted keys; more than [`MAX_KEYS`] are refused.
    pub(crate) fn of_keys(keys: Vec<A>, default_deny: bool) -> Result<Self, TableError> {
        if keys.len() > MAX_KEYS {
            return Err(TableError::TooManyKeys(keys.len()));
        }
        let mut parts = Parts { nodes: Vec::new(), slots: Vec::new(), keys };
        if !parts.keys.is_empty() {
            let all = (0, parts.keys.len());
            parts.divide(all);
        }
        Self::new(parts, default_deny)
    }

    /// The arrays.
    pub fn parts(&self) -> Parts<A> {
        let keys = self.keys.get(..self.keys()).unwrap_or_default().to_vec();
        Parts { nodes: self.nodes.to_vec(), slots: self.slots.to_vec(), keys }
    }

    /// What addresses get that no prefix has.
    pub fn default_deny(&self) -> bool {
        self.default_deny
    }

    /// Addresses at which the answer changes.
    pub fn keys(&self) -> usize {
        self.key_count as usize
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.nodes) + size_of_val(&*self.slots) + size_of_val(&*self.keys)
    }

    /// Whether the address is denied.
    #[inline]
    pub fn denies(&self, address: A) -> bool {
        (self.rank(address) & 1 != 0) != self.default_deny
    }

    /// How many keys are not above the address.
    #[inline]
    fn rank(&self, address: A) -> u32 {
        let Some(mut node) = self.nodes.first() else { return 0 };
        loop {
            let at = address.above(node.least).shifted(node.shift).min(node.slots - 1);
            let Some(slot) = self.slots.get((node.first_slot + at) as usize) else { return 0 };
            match Slot::of(*slot) {
                Slot::Keys(first) => {
                    let keys = self.keys.get(first as usize..).unwrap_or_default();
                    return (first + A::count(keys, address)).min(self.key_count);
                }
                Slot::Node(next) => match self.nodes.get(next as usize) {
                    Some(next) => node = next,
                    None => return 0,
                },
            }
        }
    }
}

/// What a slot leads to.
enum Slot {
    /// The first of its keys, or the next above it.
    Keys(u32),
    /// A node.
    Node(u32),
}

impl Slot {
    #[inline(always)]
    fn of(slot: u32) -> Self {
        if slot & CHILD == 0 { Self::Keys(slot) } else { Self::Node(slot & !CHILD) }
    }
}

impl<A: Address> Parts<A> {
    /// Makes a node of the keys `first..last`, at least one, and nodes of its crowded slots. Each level takes away all but about
    /// two bits of its keys' number from the range, so there are few levels: 128 / log2 of the keys, at most 64.
    fn divide(&mut self, (first, last): (usize, usize)) -> u32 {
        let keys = self.keys.get(first..last).unwrap_or_default();
        let least = keys.first().copied().unwrap_or(A::ZERO);
        let span = keys.last().copied().unwrap_or(least) - least;
        // as many slots as keys at most
        let most = keys.len().max(2) as u32;
        let shift = (0..A::BITS).find(|shift| span.shifted(*shift) < most).unwrap_or(A::BITS - 1);
        let slots = span.shifted(shift) + 1;
        let node = self.nodes.len();
        let first_slot = self.slots.len();
        self.nodes.push(Node { least, first_slot: first_slot as u32, slots, shift });
        self.slots.resize(first_slot + slots as usize, 0);
        let mut at = first;
        for slot in 0..slots {
            let rest = self.keys.get(at..last).unwrap_or_default();
            let count = rest.partition_point(|key| (*key - least).shifted(shift) <= slot);
            let value = if count <= A::LEAF { at as u32 } else { self.divide((at, at + count)) | CHILD };
            if let Some(place) = self.slots.get_mut(first_slot + slot as usize) {
                *place = value;
            }
            at += count;
        }
        node as u32
    }
}
