//! A fake machine below a temporary directory; a FIFO plays the kernel where it has to disagree.

use super::*;

const TWO_MIB: u64 = 2 << 20;
const ONE_GIB: u64 = 1 << 30;

struct Machine {
    root: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { root: tempfile::tempdir().unwrap() };
        for (size, total, free) in [(2048, 64, 60), (1_048_576, 0, 0)] {
            machine.pool(&format!("sys/kernel/mm/hugepages/hugepages-{size}kB"), total, free);
            machine.pool(&format!("sys/devices/system/node/node0/hugepages/hugepages-{size}kB"), total, free);
            machine.pool(&format!("sys/devices/system/node/node1/hugepages/hugepages-{size}kB"), 0, 0);
        }
        machine.write("proc/meminfo", "MemTotal: 1 kB\nHugepagesize:       2048 kB\n");
        machine.write("proc/mounts", "tmpfs /dev/shm tmpfs rw 0 0\n");
        machine.write("sys/devices/system/cpu/cpu3/node1/x", "");
        machine.write("sys/bus/pci/devices/0000:3b:00.0/numa_node", "1\n");
        machine.write("sys/bus/pci/devices/0000:00:01.0/numa_node", "-1\n");
        machine
    }

    fn pool(&self, path: &str, total: u64, free: u64) {
        self.write(&format!("{path}/nr_hugepages"), &format!("{total}\n"));
        self.write(&format!("{path}/free_hugepages"), &format!("{free}\n"));
        self.write(&format!("{path}/surplus_hugepages"), "0\n");
        self.write(&format!("{path}/resv_hugepages"), "10\n");
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap()
    }

    fn host(&self) -> Host {
        Host::at(self.root.path())
    }
}

const KNOB: &str = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const FREE: &str = "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
const NODE1_KNOB: &str = "sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";

#[test]
fn status_lists_every_node_and_size() {
    let status = Machine::new().host().status().unwrap();
    let summary: Vec<_> = status.iter().map(|pages| (pages.node, pages.size_bytes, pages.total)).collect();
    assert_eq!(summary, [(0, TWO_MIB, 64), (0, ONE_GIB, 0), (1, TWO_MIB, 0), (1, ONE_GIB, 0)]);
    assert_eq!(status[0].free, 60);
}

#[test]
fn status_without_numa_takes_the_machine_as_node_0() {
    let machine = Machine::new();
    std::fs::remove_dir_all(machine.path("sys/devices/system/node")).unwrap();
    assert_eq!(machine.host().status().unwrap().len(), 2);
    std::fs::remove_dir_all(machine.path("sys/kernel/mm")).unwrap();
    let error = machine.host().status().unwrap_err();
    assert!(error.to_string().contains("sys/kernel/mm/hugepages"), "{error}");
}

#[test]
fn unpromised_leaves_out_what_mappings_wait_for() {
    assert_eq!(Machine::new().host().unpromised(TWO_MIB).unwrap(), 50);
}

#[test]
fn reserve_grows_and_release_goes_back_to_what_was_there() {
    let machine = Machine::new();
    let host = machine.host();
    assert_eq!(host.reserve(TWO_MIB, 512, None).unwrap(), Reserved { before: 64, after: 512 });
    assert_eq!(machine.read(KNOB), "512");
    assert_eq!(host.reserve(TWO_MIB, 600, None).unwrap(), Reserved { before: 512, after: 600 });
    assert_eq!(
        host.reserve(TWO_MIB, 100, None).unwrap(),
        Reserved { before: 600, after: 600 },
        "never shrinks"
    );
    machine.write(FREE, "600");
    let released = host.release(TWO_MIB, None).unwrap();
    assert_eq!(released, Released { before: 600, after: 64, in_use: 0 });
    assert_eq!(machine.read(KNOB), "64");
    assert!(!machine.path("run/weir/hugepages/all-2048kB").exists());
}

#[test]
fn release_without_a_record_gives_all_free_pages_back() {
    let machine = Machine::new();
    machine.write(FREE, "64");
    assert_eq!(machine.host().release(TWO_MIB, None).unwrap().after, 0);
}

#[test]
fn release_leaves_pages_in_use_and_remembers_until_they_are_free() {
    let machine = Machine::new();
    let host = machine.host();
    host.reserve(TWO_MIB, 512, None).unwrap();
    machine.write(FREE, "412");
    assert_eq!(host.release(TWO_MIB, None).unwrap(), Released { before: 512, after: 100, in_use: 100 });
    machine.write(FREE, "100");
    assert_eq!(host.release(TWO_MIB, None).unwrap(), Released { before: 100, after: 64, in_use: 0 });
}

#[test]
fn reserve_on_a_node_writes_there_only() {
    let machine = Machine::new();
    machine.host().reserve(TWO_MIB, 32, Some(1)).unwrap();
    assert_eq!(machine.read(NODE1_KNOB), "32");
    assert_eq!(machine.read(KNOB), "64\n");
    let error = machine.host().reserve(TWO_MIB, 32, Some(7)).unwrap_err();
    assert!(error.to_string().contains("NUMA node 7"), "{error}");
}

#[test]
fn an_unknown_size_names_those_there_are() {
    let error = Machine::new().host().reserve(16 << 20, 1, None).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("16384 kB") && text.contains("2048 kB, 1048576 kB"), "{text}");
}

#[test]
fn a_shortage_says_how_many_of_how_many_after_compacting() {
    let machine = Machine::new();
    machine.write("proc/sys/vm/compact_memory", "");
    let knob = machine.path(KNOB);
    std::fs::remove_file(&knob).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &knob,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    // A kernel that finds 300 pages, then 310 after compaction. Each open and close of the FIFO is one message.
    let kernel = std::thread::spawn(move || {
        std::fs::write(&knob, "64\n").unwrap();
        let mut asked = Vec::new();
        for found in ["300\n", "310\n"] {
            asked.push(std::fs::read_to_string(&knob).unwrap());
            std::fs::write(&knob, found).unwrap();
        }
        asked
    });
    let error = machine.host().reserve(TWO_MIB, 512, None).unwrap_err();
    assert_eq!(kernel.join().unwrap(), ["512", "512"]);
    assert!(
        matches!(error, ReserveError::Shortage { got: 310, wanted: 512, size_bytes: TWO_MIB }),
        "{error}"
    );
    assert!(error.to_string().contains("hugepagesz=2M"), "{error}");
    assert_eq!(machine.read("proc/sys/vm/compact_memory"), "1");
}

#[test]
fn nonsense_in_sysfs_is_named() {
    let machine = Machine::new();
    machine.write(KNOB, "many");
    let error = machine.host().reserve(TWO_MIB, 512, None).unwrap_err();
    assert!(error.to_string().contains("\"many\""), "{error}");
}

#[test]
fn nodes_of_cpus_and_devices() {
    let host = Machine::new().host();
    assert!(host.node_of_cpu(3).is_none(), "the machine is gone with its directory");
    let machine = Machine::new();
    let host = machine.host();
    assert_eq!(host.nodes(), [0, 1]);
    assert_eq!(host.node_of_cpu(3), Some(1));
    assert_eq!(host.node_of_cpu(4), None);
    assert_eq!(host.node_of_pci("0000:3b:00.0"), Some(1));
    assert_eq!(host.node_of_pci("0000:00:01.0"), None);
    assert_eq!(host.node_of_pci("../../../../etc/passwd"), None);
}

#[test]
fn each_node_must_have_its_own_pages() {
    let machine = Machine::new();
    let host = machine.host();
    host.check_nodes(TWO_MIB, 60, &[0]).unwrap();
    let error = host.check_nodes(TWO_MIB, 1, &[0, 1]).unwrap_err();
    assert!(matches!(error, ReserveError::NodeIsShort { node: 1, free: 0, needed: 1, .. }), "{error}");
}

#[test]
fn mounts_are_found_with_their_page_size() {
    let machine = Machine::new();
    machine.write(
        "proc/mounts",
        "hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=1024M 0 0\n\
         proc /proc proc rw 0 0\n\
         none /mnt/huge\\040two hugetlbfs rw 0 0\n\
         none /mnt/ro hugetlbfs ro,pagesize=2M 0 0\n\
         none /mnt/odd hugetlbfs rw,pagesize=2X 0 0\n\
         broken\n",
    );
    let mounts = machine.host().mounts().unwrap();
    let summary: Vec<_> = mounts
        .iter()
        .map(|mount| (mount.path.to_str().unwrap(), mount.page_size, mount.is_read_only))
        .collect();
    assert_eq!(
        summary,
        [("/dev/hugepages", ONE_GIB, false), ("/mnt/huge two", TWO_MIB, false), ("/mnt/ro", TWO_MIB, true)]
    );
    let best = machine.host().best_mount().unwrap().unwrap();
    assert_eq!(best.path, Path::new("/mnt/huge two"), "the one with free pages");
    assert_eq!(machine.host().mount_default().unwrap(), best, "nothing to mount");
}

#[test]
fn sizes_are_read_as_written() {
    for (text, size) in [
        ("2M", Some(TWO_MIB)),
        ("2MB", Some(TWO_MIB)),
        ("2048k", Some(TWO_MIB)),
        ("1G", Some(ONE_GIB)),
        ("2097152", Some(TWO_MIB)),
        ("", None),
        ("M", None),
        ("2T", None),
        ("-1M", None),
        ("99999999999G", None),
    ] {
        assert_eq!(parse_size(text), size, "{text}");
    }
}
