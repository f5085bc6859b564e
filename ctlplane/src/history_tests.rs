//! What is remembered, for how long, and what damage does.

use super::*;
use crate::state::Admin;

fn entry(number: u64, weight: u16) -> Arc<Entry> {
    let mut entry =
        Entry::new(number, number + 10, 1, Origin::new(Who::user(0), "weir backend weight", Some("why")));
    entry.config = format!("{:016x}", number / 100);
    entry.config_bytes = 1_000;
    let change = (weight > 0).then_some(Override { weight: Some(weight), state: Some(Admin::Drain) });
    entry.overrides.entry("app".to_owned()).or_default().insert(format!("b{}", number % 7), change);
    if number == 1 {
        entry.all = Some(Overrides::new());
    }
    Arc::new(entry)
}

/// Changes of seven backends, and what holds after each.
fn filled(directory: &Path, count: u64) -> (History, Vec<Overrides>) {
    let mut history = History::open(directory);
    let (mut now, mut after) = (Overrides::new(), vec![Overrides::new()]);
    for number in 1..=count {
        let entry = entry(number, (number % 5) as u16);
        if number > 1 {
            set(&mut now, &entry.overrides);
        }
        after.push(now.clone());
        history.push(entry);
    }
    (history, after)
}

#[test]
fn what_was_in_force_is_known_of_every_change_that_is_remembered() {
    let directory = tempfile::tempdir().unwrap();
    let (mut history, after) = filled(directory.path(), 2_500);
    history.sync();
    assert_eq!((history.last(), history.synced(), history.trouble()), (2_500, 2_500, None));
    let again = History::open(directory.path());
    for history in [&history, &again] {
        let first = history.entries().next().unwrap().number;
        assert!((1_400..=1_501).contains(&first), "{first}");
        assert_eq!(history.overrides(first - 1), None);
        for number in [first, first + 1, 2_000, 2_499, 2_500] {
            assert_eq!(history.overrides(number).as_ref(), after.get(number as usize), "{number}");
            assert_eq!(history.entry(number).unwrap().number, number);
        }
        assert_eq!(history.entry(2_501), None);
    }
}

#[test]
fn texts_are_bounded_in_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let mut history = History::open(directory.path());
    for number in 1..=20 {
        let mut large = Entry::clone(&entry(number, 1));
        large.config = format!("{number:016x}");
        large.config_bytes = MOST_TEXT_BYTES / 4;
        history.push(Arc::new(large));
    }
    assert_eq!(history.entries().count(), 4);
    assert!(history.overrides(17).is_some());
}

#[test]
fn a_line_that_a_crash_cut_off_is_forgotten_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (mut history, _) = filled(directory.path(), 5);
    history.sync();
    let path = directory.path().join("history.log");
    let whole = fs::read(&path).unwrap();
    let fourth = whole.split_inclusive(|b| *b == b'\n').take(4).map(<[u8]>::len).sum::<usize>();
    for length in fourth..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let mut history = History::open(directory.path());
        assert_eq!((history.last(), history.trouble()), (4, None), "{length}");
        history.push(entry(5, 1));
        assert_eq!(History::open(directory.path()).last(), 5);
    }
}

#[test]
fn damage_is_said_moved_aside_and_never_in_the_way() {
    let directory = tempfile::tempdir().unwrap();
    let (mut history, _) = filled(directory.path(), 5);
    history.sync();
    let path = directory.path().join("history.log");
    let whole = fs::read(&path).unwrap();
    let second = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
    let cases: Vec<Vec<u8>> = vec![
        whole[second..].to_vec(),
        [&whole[..second], b"\n".as_slice(), &whole[second..]].concat(),
        [&whole[..second], &whole[..second]].concat(),
        whole.iter().map(|b| b.wrapping_add(u8::from(*b == b'w'))).collect(),
        vec![0xff; 1_000].into_iter().chain([b'\n']).collect(),
    ];
    for case in cases {
        fs::write(&path, &case).unwrap();
        let mut history = History::open(directory.path());
        assert_eq!(history.last(), 0);
        assert!(history.trouble().unwrap().contains("history.log.damaged"), "{:?}", history.trouble());
        assert_eq!(fs::read(directory.path().join("history.log.damaged")).unwrap(), case);
        history.push(entry(1, 1));
        history.sync();
        assert_eq!(History::open(directory.path()).last(), 1);
    }
}

#[test]
fn differences_of_overrides_lead_from_one_to_the_other() {
    let (_, after) = filled(tempfile::tempdir().unwrap().path(), 60);
    for (one, other) in after.iter().zip(after.iter().rev()) {
        let mut from = one.clone();
        set(&mut from, &override_changes(one, other));
        assert_eq!(from, *other);
    }
    assert!(override_changes(&after[50], &after[50]).is_empty());
}
