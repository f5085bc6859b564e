//! What two processes see of each other: owners, kill -9, the control page.
//!
//! A child is this very test program, told by the environment which part to play; it is always killed and awaited.

mod support;

use hugepages::generation::{Adopter, ControlError, Publisher, RunState};
use hugepages::segment::{Access, SegmentDir, SegmentError, SharedSlice};
use support::{Role, directory_of_child};

/// Says that the part is played, and stays until killed (or until the parent is gone).
fn stay() {
    println!("ready");
    let _end_of_input = std::io::stdin().lines().next();
}

type Table = SharedSlice<u64, [u64; 8]>;

#[test]
fn child_owns_a_table() {
    let Some(directory) = directory_of_child() else { return };
    let mut table: Table = directory.map_shared("flow-0-v4", 100, Access::Create).unwrap();
    *table.header_mut() = 4711;
    table[99][7] = 42;
    stay();
}

#[test]
fn child_is_a_dataplane() {
    let Some(directory) = directory_of_child() else { return };
    let mut adopter = Adopter::open(&directory).unwrap();
    let mut worker = adopter.worker(0).unwrap();
    worker.ack(adopter.published());
    adopter.set_workers(1);
    adopter.adopted(adopter.published());
    adopter.set_state(RunState::Running);
    stay();
}

#[test]
fn an_owner_is_named_and_killing_it_frees_the_table() {
    let parent = tempfile::tempdir().unwrap();
    let directory = SegmentDir::open(parent.path().join("weir-test")).unwrap();
    let child = Role::start("child_owns_a_table", directory.path());
    let error = directory.map_shared::<u64, [u64; 8]>("flow-0-v4", 100, Access::Create).unwrap_err();
    assert!(matches!(error, SegmentError::InUse { pid: Some(pid), .. } if pid == child.0.id()), "{error}");
    assert!(error.to_string().contains(&format!("in use by pid {}", child.0.id())), "{error}");
    child.kill();
    let table: Table = directory.map_shared("flow-0-v4", 100, Access::Create).unwrap();
    assert!(!table.was_created());
    assert_eq!(*table.header(), 4711);
    assert_eq!(table[99][7], 42);
}

#[test]
fn a_killed_dataplane_is_dead_at_once_and_the_next_takes_over() {
    let parent = tempfile::tempdir().unwrap();
    let directory = SegmentDir::open(parent.path().join("weir-test")).unwrap();
    let publisher = Publisher::open(&directory).unwrap();
    publisher.publish(3);
    let child = Role::start("child_is_a_dataplane", directory.path());
    let state = publisher.dataplane();
    assert!(state.is_alive);
    assert_eq!((state.pid, state.state), (u64::from(child.0.id()), Some(RunState::Running)));
    assert_eq!(publisher.acked_by_all(), Some(3));
    let error = Adopter::open(&directory).unwrap_err();
    assert!(
        matches!(error, ControlError::AlreadyRunning { role: "dataplane", pid: Some(pid), .. } if pid == child.0.id()),
        "{error}"
    );
    let pid = child.kill();
    let state = publisher.dataplane();
    assert!(!state.is_alive);
    assert_eq!(state.pid, u64::from(pid), "what it left can still be looked at");
    assert_eq!(publisher.acked_by_all(), None);
    let next = Role::start("child_is_a_dataplane", directory.path());
    assert_eq!(publisher.dataplane().start_epoch, 2);
    assert_eq!(publisher.dataplane().pid, u64::from(next.0.id()));
    assert_eq!(publisher.acked_by_all(), Some(3));
}
