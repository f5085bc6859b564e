//! Segments in real hugepages, and the visit of a foreign DPDK process.
//!
//! Needs root, some free 2 MiB hugepages and `unshare`; without them it says what is missing and passes. The hugetlbfs
//! is mounted by a child in a mount namespace of its own, so nothing is left behind, however the test ends.

#![expect(clippy::unwrap_used, reason = "a failing test helper should panic")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hugepages::reserve::Host;
use hugepages::segment::{Access, SegmentDir, SegmentError, SharedSlice};

const TWO_MIB: u64 = 2 << 20;

/// Pages that the segments here take.
const SEGMENT_PAGES: u64 = 4;

/// `-m 64` of testpmd, and a little for the kernel's rounding.
const TESTPMD_PAGES: u64 = 40;

/// Set in the child, to the directory on which it may mount.
const MOUNT_POINT: &str = "WEIR_TEST_MOUNT_POINT";

/// Runs the test `name` again in a mount namespace; or says why not.
fn run_in_own_mounts(name: &str, pages: u64) {
    let free = Host::system().unpromised(TWO_MIB).unwrap_or(0);
    if free < pages {
        return println!("skipped {name}: {pages} free hugepages of 2 MiB are needed, there are {free}");
    }
    let can_unshare = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    if !can_unshare.is_ok_and(|status| status.success()) {
        return println!("skipped {name}: `unshare --mount` does not work here (not root, or not installed)");
    }
    let mount_point = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(MOUNT_POINT, mount_point.path())
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    for line in text.lines().filter(|line| line.starts_with("skipped") || line.starts_with("note")) {
        println!("{line}");
    }
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

/// In the child: a fresh hugetlbfs of 2 MiB pages.
fn mounted() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(MOUNT_POINT)?);
    let mount = Host::system().mount_at(&path, TWO_MIB).unwrap();
    let found = Host::system().mounts().unwrap();
    assert!(found.contains(&mount), "{found:?}");
    Some(path)
}

type Table = SharedSlice<[u64; 2], [u64; 8]>;

#[test]
fn a_table_in_hugepages_survives_its_owner() {
    let Some(mount) = mounted() else {
        return run_in_own_mounts("a_table_in_hugepages_survives_its_owner", SEGMENT_PAGES + 1);
    };
    let directory = SegmentDir::open(mount.join("weir-test")).unwrap();
    assert!(directory.is_hugetlbfs());
    assert_eq!(directory.page_size(), TWO_MIB);
    let items = 3 * TWO_MIB as usize / 64;
    let mut table: Table = directory.map_shared("flow-0-v4", items, Access::Create).unwrap();
    assert!(table.was_created());
    assert_eq!(table.memory_bytes() as u64, SEGMENT_PAGES * TWO_MIB);
    table.header_mut()[0] = 7;
    table[items - 1][7] = 9;
    let busy = directory.map_shared::<[u64; 2], [u64; 8]>("flow-0-v4", items, Access::Create);
    assert!(matches!(busy, Err(SegmentError::InUse { .. })));
    drop(table);
    let table: Table = directory.map_shared("flow-0-v4", items, Access::Create).unwrap();
    assert!(!table.was_created());
    assert_eq!((table.header()[0], table[items - 1][7]), (7, 9));
    assert!(matches!(directory.publish("root-1", b"x"), Err(SegmentError::HugetlbfsIsNotForFiles { .. })));
    assert!(directory.remove("flow-0-v4").unwrap());
}

#[test]
fn too_few_hugepages_are_an_error_not_a_signal() {
    let Some(mount) = mounted() else {
        return run_in_own_mounts("too_few_hugepages_are_an_error_not_a_signal", 1);
    };
    let directory = SegmentDir::open(mount.join("weir-test")).unwrap();
    let total: u64 = Host::system().status().unwrap().iter().map(|pages| pages.total).sum();
    let items = (total + 1000) as usize * TWO_MIB as usize / 64;
    let before = Host::system().unpromised(TWO_MIB).unwrap();
    let error = directory.map_shared::<[u64; 2], [u64; 8]>("flow-0-v4", items, Access::Create).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, SegmentError::NotEnoughHugepages { needed, .. } if needed == total + 1001),
        "{text}"
    );
    assert!(text.contains("weir hugepages reserve") && text.contains("are free"), "{text}");
    assert!(!directory.exists("flow-0-v4"));
    // other processes may take or free some meanwhile; a leak would be all of them
    let after = Host::system().unpromised(TWO_MIB).unwrap();
    assert!(after > 0 || before == 0, "{before} were free, {after} are");
}

#[test]
fn segments_survive_a_foreign_dpdk_process() {
    let name = "segments_survive_a_foreign_dpdk_process";
    if Command::new("dpdk-testpmd")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_err()
    {
        return println!("skipped {name}: dpdk-testpmd is not installed (apt-get install dpdk)");
    }
    let Some(mount) = mounted() else {
        return run_in_own_mounts(name, SEGMENT_PAGES + TESTPMD_PAGES + 1);
    };
    let directory = SegmentDir::open(mount.join("weir-test")).unwrap();
    let directly = SegmentDir::open(&mount).unwrap();
    let items = TWO_MIB as usize / 64;
    let mut below: Table = directory.map_shared("flow-0-v4", items, Access::Create).unwrap();
    let mut beside: Table = directly.map_shared("flow-0-v6", items, Access::Create).unwrap();
    below[items - 1] = [1; 8];
    beside[items - 1] = [2; 8];
    // One that nobody holds: its name alone must save it while Weir restarts.
    drop(directly.map_shared::<u64, u64>("flow-1-v4", 1, Access::Create).unwrap());
    let canary = mount.join("canarymap_0");
    File::create(&canary).unwrap();

    let output = run_testpmd(&mount);
    println!(
        "note: a foreign DPDK process {} unlocked *map_* files",
        if canary.exists() { "kept" } else { "deleted" }
    );

    assert_eq!(below[items - 1], [1; 8]);
    assert_eq!(beside[items - 1], [2; 8]);
    drop((below, beside));
    let below: Table = directory.map_shared("flow-0-v4", items, Access::Open).expect(&output);
    let beside: Table = directly.map_shared("flow-0-v6", items, Access::Open).expect(&output);
    assert_eq!((below[items - 1], beside[items - 1]), ([1; 8], [2; 8]));
    assert!(directly.exists("flow-1-v4"), "{output}");
}

/// Starts testpmd on no device but a null one, and ends it by closing its input. Returns what it printed.
fn run_testpmd(mount: &Path) -> String {
    let log = mount.parent().unwrap().join(format!("weir-testpmd-{}.log", std::process::id()));
    let file = File::create(&log).unwrap();
    let mut child = Command::new("dpdk-testpmd")
        .args([
            "--in-memory",
            "--no-pci",
            "--vdev",
            "net_null0",
            "--lcores",
            "(0-1)@0",
            "-m",
            "64",
            "--huge-dir",
        ])
        .arg(mount)
        .args(["--", "--total-num-mbufs=2048"])
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > deadline {
            let _killed = child.kill();
            let _awaited = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let output = std::fs::read_to_string(&log).unwrap_or_default();
    let _removed = std::fs::remove_file(&log);
    assert!(status.is_some_and(|status| status.success()), "testpmd: {status:?}\n{output}");
    output
}
