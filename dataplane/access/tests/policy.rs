//! What a listener asks of new flows, as the workers see it.
#![allow(clippy::unwrap_used, reason = "a helper of tests")]

use std::net::IpAddr;
use std::sync::Arc;

use weir_access::{List, Per, Policy, Prefix, Rate, Refusal, Shared};

const SECOND: u64 = 1_000_000_000;

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix::new(address.parse().unwrap(), length.parse().unwrap())
}

fn source(text: &str) -> u128 {
    match text.parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn rate(of: &str, per_second: u32, burst: u32, per: Per) -> Rate {
    Rate { prefix: prefix(of), per_second, burst, per }
}

fn shared(counted: &[u16]) -> Arc<Shared> {
    Arc::new(Shared::new(counted.to_vec(), 10_000, None).with_buckets())
}

fn admitted(policy: &Policy, from: &str, now_ns: u64, times: usize) -> usize {
    (0..times).filter(|_| policy.admit(source(from), now_ns).is_ok()).count()
}

#[test]
fn a_list_denies_first() {
    let list = List::build(&[(prefix("198.18.0.0/16"), true)], false).unwrap();
    let policy = Policy::new(3, Some((1, Arc::new(list))), &[], 0, shared(&[]), None);
    assert_eq!(policy.admit(source("198.18.0.1"), SECOND), Err(Refusal::Denied));
    assert_eq!(policy.admit(source("198.19.0.1"), SECOND), Ok(()));
    assert_eq!(policy.admit(source("2001:db8::1"), SECOND), Ok(()));
}

#[test]
fn the_longest_prefix_has_the_rate_and_both_kinds_hold() {
    let rates = [
        rate("0.0.0.0/0", 1, 3, Per::Source),
        rate("198.18.0.0/16", 1, 10, Per::Prefix),
        rate("198.18.0.0/16", 1, 4, Per::Source),
        rate("2001:db8::/32", 1, 2, Per::Prefix),
    ];
    let policy = Policy::new(3, None, &rates, 0, shared(&[]), None);
    assert_eq!(admitted(&policy, "203.0.113.1", SECOND, 20), 3);
    assert_eq!(admitted(&policy, "203.0.113.2", SECOND, 20), 3, "another source");
    assert_eq!(admitted(&policy, "198.18.0.1", SECOND, 20), 4);
    assert_eq!(admitted(&policy, "198.18.0.2", SECOND, 20), 4);
    assert_eq!(admitted(&policy, "198.18.0.3", SECOND, 20), 2, "what is left of the prefix's ten");
    assert_eq!(admitted(&policy, "2001:db8::1", SECOND, 20), 2);
    assert_eq!(admitted(&policy, "2001:db9::1", SECOND, 20), 20, "no rate");
    assert_eq!(policy.admit(source("198.18.0.1"), SECOND), Err(Refusal::Rate));
    assert_eq!(admitted(&policy, "198.18.0.1", 3 * SECOND, 20), 2, "two seconds later");
}

#[test]
fn what_was_spent_outlives_a_generation_and_a_changed_rate_does_not() {
    let rates = [rate("198.18.0.0/16", 1, 5, Per::Prefix)];
    let first = Policy::new(3, None, &rates, 0, shared(&[]), None);
    assert_eq!(admitted(&first, "198.18.0.1", SECOND, 20), 5);
    let second = Policy::new(3, None, &rates, 9, shared(&[3]), Some(&first));
    assert_ne!(first, second);
    assert_eq!(admitted(&second, "198.18.0.1", SECOND, 20), 0);
    let other = [rate("198.18.0.0/16", 1, 6, Per::Prefix)];
    let third = Policy::new(3, None, &other, 9, shared(&[3]), Some(&second));
    assert_eq!(admitted(&third, "198.18.0.1", SECOND, 20), 6);
}

#[test]
fn flows_of_a_source_are_counted_for_each_listener() {
    let shared = shared(&[3, 4]);
    let policy = |listener, most| Policy::new(listener, None, &[], most, Arc::clone(&shared), None);
    let (one, other, free) = (policy(3, 2), policy(4, 5), policy(5, 0));
    let from = source("198.18.0.1");
    for _ in 0..2 {
        assert_eq!(one.admit(from, SECOND), Ok(()));
        one.opened(from);
        free.opened(from);
    }
    assert_eq!(one.admit(from, SECOND), Err(Refusal::Connections));
    assert_eq!(one.admit(source("198.18.0.2"), SECOND), Ok(()));
    assert_eq!((other.flows_of(from), other.admit(from, SECOND)), (0, Ok(())));
    one.closed(from);
    free.closed(from);
    assert_eq!((one.flows_of(from), one.admit(from, SECOND)), (1, Ok(())));
    one.closed(from);
    assert_eq!(shared.counts.total(), (0, 0));
}

#[test]
fn counts_are_kept_while_the_same_listeners_have_a_limit() {
    let first = Shared::new(vec![3, 4], 100, None);
    let same = Shared::new(vec![4, 3], 100, Some(&first));
    assert!(!same.counts_anew(&first));
    let more = Shared::new(vec![3, 4, 5], 100, Some(&same));
    assert!(more.counts_anew(&same));
    assert!(Shared::new(vec![], 100, Some(&more)).counts.capacity() < 64, "memory is given back");
}
