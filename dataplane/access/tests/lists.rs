//! The table against the rule that it stands for: of all prefixes that have an address, the longest decides.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use weir_access::build::{Prefix, Rule};
use weir_access::table::{Address, Node, Parts, Table, TableError};
use weir_access::{List, TableV6};

/// What the longest rule says, the last of equals.
fn naive<A: Address>(rules: &[Rule<A>], default_deny: bool, address: A) -> bool {
    let has = |rule: &&Rule<A>| {
        let host = A::host_mask(rule.length);
        rule.network.or(host) == address.or(host)
    };
    let longest = rules.iter().filter(has).max_by_key(|rule| rule.length);
    longest.map_or(default_deny, |rule| rule.deny)
}

/// Addresses around everything that could matter.
fn edges<A: Address>(rules: &[Rule<A>]) -> Vec<A> {
    let mut edges = vec![A::ZERO, A::MAX];
    for rule in rules {
        let last = rule.network.or(A::host_mask(rule.length));
        let first = last - A::host_mask(rule.length);
        edges.extend([rule.network, first, last]);
        edges.extend(last.next());
        if first > A::ZERO {
            edges.push(first - A::host_mask(A::BITS as u8 - 1));
        }
    }
    edges
}

fn agree<A: Address>(rules: &[Rule<A>], default_deny: bool, others: &[A]) {
    let table = Table::build(rules, default_deny).unwrap();
    for address in edges(rules).iter().chain(others) {
        assert_eq!(
            table.denies(*address),
            naive(rules, default_deny, *address),
            "{address:?} of {rules:?}, default deny {default_deny}"
        );
    }
    assert_eq!(Table::new(table.parts(), default_deny).as_ref(), Ok(&table));
}

prop_compose! {
    fn rule_v4()(network in any::<u32>(), spread in 0u32..33, length in 0u8..=32, deny in any::<bool>()) -> Rule<u32> {
        // half of the time close together
        Rule { network: network.checked_shr(spread).unwrap_or(0) | 0xc612_0000, length, deny }
    }
}

prop_compose! {
    fn rule_v6()(network in any::<u128>(), spread in 0u32..129, length in 0u8..=128, deny in any::<bool>()) -> Rule<u128> {
        Rule { network: network.checked_shr(spread).unwrap_or(0) | 0x2001_0db8 << 96, length, deny }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn ipv4_is_what_the_longest_prefix_says(
        rules in prop::collection::vec(rule_v4(), 0..200),
        default_deny in any::<bool>(),
        others in prop::collection::vec(any::<u32>(), 50),
    ) {
        agree(&rules, default_deny, &others);
    }

    #[test]
    fn ipv6_is_what_the_longest_prefix_says(
        rules in prop::collection::vec(rule_v6(), 0..200),
        default_deny in any::<bool>(),
        others in prop::collection::vec(any::<u128>(), 50),
    ) {
        agree(&rules, default_deny, &others);
    }

    /// Whatever the arrays hold: they are refused, or each look-up ends.
    #[test]
    fn hostile_arrays_are_refused_or_harmless(
        nodes in prop::collection::vec((any::<u32>(), 0u32..70, 0u32..20, 0u32..40), 0..12),
        slots in prop::collection::vec(prop_oneof![0u32..600, (0u32..14).prop_map(|to| to | 1 << 31), any::<u32>()], 0..64),
        mut keys in prop::collection::vec(any::<u32>(), 0..40),
        is_sorted in any::<bool>(),
        addresses in prop::collection::vec(any::<u32>(), 20),
    ) {
        if is_sorted {
            keys.sort_unstable();
            keys.dedup();
        }
        let nodes = nodes.into_iter().map(|(least, first_slot, slots, shift)| {
            Node { least, first_slot, slots, shift }
        });
        if let Ok(table) = Table::new(Parts { nodes: nodes.collect(), slots, keys }, false) {
            for address in addresses {
                table.denies(address);
            }
        }
    }
}

#[test]
fn each_length_alone_and_in_the_other() {
    for length in 0..=32u8 {
        for deny in [false, true] {
            let inner = Rule { network: 0xc612_3456u32, length, deny };
            agree(&[inner], !deny, &[]);
            for outer in 0..=32u8 {
                agree(&[inner, Rule { length: outer, deny: !deny, ..inner }], false, &[]);
            }
        }
    }
    for length in 0..=128u8 {
        let inner = Rule { network: 0x2001_0db8_1234_5678_9abc_def0_1122_3344u128, length, deny: true };
        agree(&[inner], false, &[]);
        for outer in (0..=128).step_by(7) {
            agree(&[inner, Rule { length: outer, deny: false, ..inner }], true, &[]);
        }
    }
}

/// Both families in one list, and the two forms of IPv6.
#[test]
fn a_list_asks_the_table_of_the_family() {
    let prefix = |text: &str, deny| {
        let (address, length) = text.split_once('/').unwrap();
        (Prefix::new(address.parse().unwrap(), length.parse().unwrap()), deny)
    };
    let mut prefixes = vec![
        prefix("198.18.0.0/16", true),
        prefix("198.18.7.0/24", false),
        prefix("2001:db8::/32", true),
        prefix("2001:db8:7::/48", false),
        prefix("::/0", false),
    ];
    let asks = [
        ("198.18.1.1", true),
        ("198.18.7.1", false),
        ("198.19.0.1", false),
        ("2001:db8:1::1", true),
        ("2001:db8:7::1", false),
        ("2001:db9::", false),
    ];
    for _ in 0..2 {
        let list = List::build(&prefixes, false).unwrap();
        for (address, deny) in asks {
            assert_eq!(list.denies_address(address.parse().unwrap()), deny, "{address}");
        }
        assert_eq!(matches!(list.v6, TableV6::Halves(_)), prefixes.len() == 5);
        prefixes.push(prefix("2001:db8::1:0:0:1/128", true));
    }
    let list = List::build(&prefixes, true).unwrap();
    assert!(list.denies_address("203.0.113.1".parse().unwrap()), "the default");
    assert!(list.denies_address("2001:db8::1:0:0:1".parse().unwrap()));
}

/// Many in few places, so that nodes stand below nodes.
#[test]
fn crowds_are_found() {
    let mut random = 1u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        random >> 20
    };
    for spread in [8, 12, 16, 20, 32] {
        let rules: Vec<Rule<u32>> = (0..3_000)
            .map(|_| Rule {
                network: 0x0a00_0000 | (next() as u32).checked_shr(32 - spread).unwrap_or(0),
                length: 20 + (next() % 13) as u8,
                deny: next() % 2 == 0,
            })
            .collect();
        let table = Table::build(&rules, false).unwrap();
        for _ in 0..2_000 {
            let address = 0x0a00_0000 | (next() as u32).checked_shr(31 - spread.min(31)).unwrap_or(0);
            assert_eq!(table.denies(address), naive(&rules, false, address), "{address:#x}, {spread} bits");
        }
    }
    // ever closer together: the deepest nodes that there can be
    let rules: Vec<Rule<u128>> = (0..128u32)
        .flat_map(|bit| {
            (0..40u128).map(move |step| Rule {
                network: (1u128 << bit).wrapping_add(step << bit.saturating_sub(6)),
                length: 128,
                deny: true,
            })
        })
        .collect();
    agree(&rules, false, &[]);
    let deep = Table::build(&rules, false).unwrap();
    assert!(
        deep.bytes() < rules.len() * 2 * (16 + 32),
        "{} bytes for {} prefixes",
        deep.bytes(),
        rules.len()
    );
}

#[test]
fn what_does_not_matter_takes_no_room() {
    let rules: Vec<Rule<u32>> =
        (0..1_000).map(|host| Rule { network: 0xc612_0000 + host, length: 32, deny: true }).collect();
    let mut all = rules.clone();
    all.push(Rule { network: 0xc612_0000, length: 16, deny: true });
    assert_eq!(Table::build(&all, false).unwrap().keys(), 2);
    assert_eq!(Table::build(&all, true).unwrap().keys(), 0);
    assert_eq!(Table::build(&rules, false).unwrap().keys(), 2);
}

#[test]
fn tables_that_would_loop_or_leave_their_arrays_are_refused_by_name() {
    let rules: Vec<Rule<u32>> =
        (0..200).map(|at| Rule { network: at * at * 977, length: 32, deny: true }).collect();
    let good = Table::build(&rules, false).unwrap().parts();
    let refused = |change: &dyn Fn(&mut Parts<u32>)| {
        let mut parts = good.clone();
        change(&mut parts);
        Table::new(parts, false).unwrap_err()
    };
    assert!(good.nodes.len() > 1, "the test needs a node below the root");
    let child = good.slots.iter().position(|slot| slot >> 31 == 1).unwrap();
    assert_eq!(
        refused(&|parts| parts.slots[child] = 1 << 31),
        TableError::Child { node: 0, slot: child, to: 0 }
    );
    let beyond = good.nodes.len();
    assert_eq!(
        refused(&|parts| parts.slots[child] = 1 << 31 | beyond as u32),
        TableError::Child { node: 0, slot: child, to: beyond }
    );
    assert_eq!(refused(&|parts| parts.slots[0] = good.keys.len() as u32 + 1), TableError::Slot(0));
    assert_eq!(refused(&|parts| parts.nodes[0].slots = u32::MAX), TableError::Node(0));
    assert_eq!(refused(&|parts| parts.nodes[0].slots = 0), TableError::Node(0));
    assert_eq!(refused(&|parts| parts.nodes[1].first_slot = u32::MAX), TableError::Node(1));
    assert_eq!(refused(&|parts| parts.nodes[1].shift = 32), TableError::Node(1));
    assert_eq!(refused(&|parts| parts.keys.swap(3, 4)), TableError::Unsorted(4));
    assert_eq!(refused(&|parts| parts.nodes.clear()), TableError::NoRoot { nodes: 0, keys: good.keys.len() });
}

#[test]
fn prefixes_know_their_addresses() {
    let prefix = Prefix::new(IpAddr::V4(Ipv4Addr::new(198, 18, 7, 9)), 16);
    assert_eq!(prefix.to_string(), "198.18.0.0/16");
    assert!(prefix.contains(IpAddr::V4(Ipv4Addr::new(198, 18, 255, 255))));
    assert!(!prefix.contains(IpAddr::V4(Ipv4Addr::new(198, 19, 0, 0))));
    let any = Prefix::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 0);
    assert_eq!(any.to_string(), "::/0");
    assert!(any.contains("2001:db8::1".parse().unwrap()) && !any.contains("198.18.0.1".parse().unwrap()));
}
