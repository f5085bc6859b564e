//! Segments on a tmpfs or whatever /tmp is; hugepages and foreign processes are in `tests/`.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::Ordering;

use super::*;

fn directory() -> (tempfile::TempDir, SegmentDir) {
    let parent = tempfile::tempdir().unwrap();
    let directory = SegmentDir::open(parent.path().join("weir-test")).unwrap();
    (parent, directory)
}

type Table = SharedSlice<[u64; 3], [u8; 64]>;

fn map(directory: &SegmentDir, items: usize) -> Result<Table, SegmentError> {
    directory.map_shared("flow-0-v4", items, Access::Create)
}

#[test]
fn the_directory_is_made_with_mode_0750_and_kept() {
    let (_parent, directory) = directory();
    let mode = std::fs::metadata(directory.path()).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o750);
    assert!(!directory.is_hugetlbfs());
    assert_eq!(directory.page_size(), 4096);
    directory.publish("root-1", b"x").unwrap();
    let again = SegmentDir::open(directory.path()).unwrap();
    assert!(again.exists("root-1"));
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("weir-x");
    assert!(SegmentDir::open_existing(&path).unwrap_err().is_not_found());
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = SegmentDir::open(&path).unwrap_err();
    assert!(error.to_string().contains("0777"), "{error}");
    let link = parent.path().join("weir-link");
    symlink(parent.path(), &link).unwrap();
    assert!(SegmentDir::open(&link).is_err());
}

#[test]
fn a_directory_that_a_group_shares_is_writable_for_the_group() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("weir-x");
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o770)).unwrap();
    let error = SegmentDir::open(&path).unwrap_err();
    assert!(
        error.to_string().contains("2770"),
        "without the set-group-ID bit it is nobody's intent: {error}"
    );
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o2770)).unwrap();
    let directory = SegmentDir::open(&path).unwrap();
    let _words = directory.map_atomics("control", 8, Access::Create).unwrap();
    directory.publish("root-1", b"x").unwrap();
    let mode = |name: &str| std::fs::metadata(path.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("control"), mode("root-1")), (0o660, 0o640));
}

#[test]
fn published_files_are_complete_replaceable_and_listed() {
    let (_parent, directory) = directory();
    directory.publish("table-00ff", &[7; 10_000]).unwrap();
    directory.publish("root-2", b"two").unwrap();
    directory.publish("root-2", b"two again").unwrap();
    assert_eq!(directory.read("table-00ff", 10_000).unwrap(), [7; 10_000]);
    assert_eq!(directory.read("root-2", 100).unwrap(), b"two again");
    assert_eq!(directory.list().unwrap(), ["root-2", "table-00ff"]);
    let mode = std::fs::metadata(directory.path().join("root-2")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o640);
    assert!(directory.remove("root-2").unwrap());
    assert!(!directory.remove("root-2").unwrap());
    assert!(!directory.exists("root-2"));
    assert!(directory.read("root-2", 100).unwrap_err().is_not_found());
}

#[test]
fn a_file_longer_than_the_bound_is_not_read() {
    let (_parent, directory) = directory();
    directory.publish("root-1", &[0; 101]).unwrap();
    let error = directory.read("root-1", 100).unwrap_err();
    assert!(matches!(error, SegmentError::TooLong { found: 101, limit: 100, .. }), "{error}");
    // a sparse file of a terabyte costs nothing either
    let huge = std::fs::File::create(directory.path().join("root-9")).unwrap();
    huge.set_len(1 << 40).unwrap();
    assert!(matches!(directory.read("root-9", 1 << 20), Err(SegmentError::TooLong { .. })));
}

#[test]
fn what_is_not_a_regular_file_is_neither_read_nor_mapped() {
    let (_parent, directory) = directory();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        directory.path().join("root-fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    symlink("/etc/passwd", directory.path().join("root-link")).unwrap();
    std::fs::create_dir(directory.path().join("root-dir")).unwrap();
    for name in ["root-fifo", "root-link", "root-dir"] {
        assert!(directory.read(name, 1 << 20).is_err(), "{name}");
        assert!(directory.map_atomics(name, 512, Access::Create).is_err(), "{name}");
    }
}

#[test]
fn half_written_files_are_invisible_and_can_be_swept() {
    let (_parent, directory) = directory();
    directory.publish("root-1", b"x").unwrap();
    std::fs::write(directory.path().join(".partial-root-2-4242"), b"half").unwrap();
    assert_eq!(directory.list().unwrap(), ["root-1"]);
    assert_eq!(directory.remove_partial().unwrap(), 1);
    assert_eq!(directory.remove_partial().unwrap(), 0);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn dangerous_names_are_refused_everywhere() {
    let (_parent, directory) = directory();
    let long = "x".repeat(201);
    for name in ["", ".", "..", "../x", "a/b", "/x", ".hidden", "rtemap_0", "map_", "a b", "a\0b", "ä", &long]
    {
        assert!(matches!(directory.publish(name, b""), Err(SegmentError::BadName { .. })), "{name:?}");
        assert!(matches!(directory.read(name, 1), Err(SegmentError::BadName { .. })), "{name:?}");
        assert!(matches!(directory.remove(name), Err(SegmentError::BadName { .. })), "{name:?}");
        assert!(directory.map_atomics(name, 1, Access::Create).is_err(), "{name:?}");
        assert!(directory.map_shared::<u64, u64>(name, 1, Access::Create).is_err(), "{name:?}");
        assert!(!directory.exists(name), "{name:?}");
    }
}

#[test]
fn a_table_survives_its_owner() {
    let (_parent, directory) = directory();
    let mut table = map(&directory, 1000).unwrap();
    assert!(table.was_created());
    assert_eq!(table.len(), 1000);
    assert_eq!(table.as_ptr() as usize % 64, 0);
    assert!(table.iter().flatten().all(|byte| *byte == 0));
    table.header_mut()[1] = 42;
    table[999] = [9; 64];
    let (header, items) = table.parts_mut();
    header[2] = items.len() as u64;
    drop(table);
    let table = map(&directory, 1000).unwrap();
    assert!(!table.was_created());
    assert_eq!(*table.header(), [0, 42, 1000]);
    assert_eq!(table[999], [9; 64]);
    assert_eq!(table[998], [0; 64]);
}

#[test]
fn a_table_can_move_to_its_worker() {
    let (_parent, directory) = directory();
    let mut table = map(&directory, 4).unwrap();
    let table = std::thread::spawn(move || {
        table[3][0] = 1;
        table
    })
    .join()
    .unwrap();
    assert_eq!(table[3][0], 1);
}

#[test]
fn a_table_has_one_owner_also_inside_one_process() {
    let (_parent, directory) = directory();
    let table = map(&directory, 4).unwrap();
    let error = map(&directory, 4).unwrap_err();
    assert!(matches!(error, SegmentError::InUse { .. }), "{error}");
    drop(table);
    assert!(map(&directory, 4).is_ok());
}

#[test]
fn a_table_that_was_removed_meanwhile_is_a_new_one() {
    let (_parent, directory) = directory();
    let mut old = map(&directory, 4).unwrap();
    old[0] = [1; 64];
    directory.remove("flow-0-v4").unwrap();
    let new = map(&directory, 4).unwrap();
    assert!(new.was_created());
    assert_eq!(new[0], [0; 64]);
    assert_eq!(old[0], [1; 64]);
}

#[test]
fn a_table_of_another_size_is_left_alone() {
    let (_parent, directory) = directory();
    drop(map(&directory, 1000).unwrap());
    let error = map(&directory, 2000).unwrap_err();
    assert!(matches!(error, SegmentError::WrongSize { found: 65536, expected: 131_072, .. }), "{error}");
    assert!(map(&directory, 1000).is_ok());
}

#[test]
fn a_table_is_never_mapped_for_readers_nor_without_items() {
    let (_parent, directory) = directory();
    for (items, access) in [(1, Access::ReadOnly), (0, Access::Create), (usize::MAX, Access::Create)] {
        let result = directory.map_shared::<u64, u64>("flow-0-v4", items, access);
        assert!(matches!(result, Err(SegmentError::BadLayout { .. })), "{items} {access:?}");
    }
    let missing = directory.map_shared::<u64, u64>("flow-0-v4", 1, Access::Open);
    assert!(missing.unwrap_err().is_not_found());
    assert!(!directory.exists("flow-0-v4"), "nothing is left behind");
}

#[test]
fn a_table_that_does_not_fit_is_an_error_and_leaves_nothing() {
    let (_parent, directory) = directory();
    // more than any test machine has; fallocate says so before anything is touched
    let error = directory.map_shared::<u64, u64>("flow-0-v4", 1 << 46, Access::Create).unwrap_err();
    assert!(matches!(error, SegmentError::NoSpace { .. } | SegmentError::Io { .. }), "{error}");
    assert!(!directory.exists("flow-0-v4"));
}

#[test]
fn words_are_shared_between_mappings() {
    let (_parent, directory) = directory();
    let writer = directory.map_atomics("counters", 100, Access::Create).unwrap();
    assert!(writer.was_created());
    assert_eq!(writer.len(), 100);
    let other = directory.map_atomics("counters", 100, Access::Create).unwrap();
    assert!(!other.was_created());
    let reader = directory.map_atomics("counters", 512, Access::ReadOnly).unwrap();
    assert_eq!(reader.len(), 512, "whole pages");
    assert_eq!(reader[5].load(Ordering::Relaxed), 0);
    writer[5].store(1, Ordering::Relaxed);
    other[5].fetch_add(1, Ordering::Relaxed);
    assert_eq!(reader[5].load(Ordering::Relaxed), 2, "a reader sees later changes");
    reader[5].store(99, Ordering::Relaxed);
    assert_eq!(writer[5].load(Ordering::Relaxed), 2, "a reader's store stays with it");
}

#[test]
fn sizes_of_existing_words_are_bounded() {
    let (_parent, directory) = directory();
    assert!(directory.map_atomics("counters", 1, Access::ReadOnly).unwrap_err().is_not_found());
    drop(directory.map_atomics("counters", 513, Access::Create).unwrap());
    let bounded = directory.map_atomics("counters", 512, Access::Open);
    assert!(matches!(bounded, Err(SegmentError::TooLong { found: 8192, limit: 4096, .. })));
    let other = directory.map_atomics("counters", 2000, Access::Create);
    assert!(matches!(other, Err(SegmentError::WrongSize { .. })));
    assert_eq!(directory.map_atomics("counters", 2000, Access::Open).unwrap().len(), 1024);
    for size in [0, 4095] {
        std::fs::File::create(directory.path().join("odd")).unwrap().set_len(size).unwrap();
        let odd = directory.map_atomics("odd", 512, Access::ReadOnly);
        assert!(matches!(odd, Err(SegmentError::WrongSize { .. })), "{size}");
    }
}

#[test]
fn a_replaced_segment_is_noticed() {
    let (_parent, directory) = directory();
    let words = directory.map_atomics("counters", 1, Access::Create).unwrap();
    assert!(words.is_current(&directory));
    directory.remove("counters").unwrap();
    assert!(!words.is_current(&directory));
    let _replacement = directory.map_atomics("counters", 1, Access::Create).unwrap();
    assert!(!words.is_current(&directory));
}
