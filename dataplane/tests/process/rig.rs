//! A directory of its own, a control plane that publishes, a process, and its counters.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use hugepages::generation::{ControlPage, Publisher};
use hugepages::segment::{Access, SegmentDir};
use weir_abi::counters::Reader;
use weir_net::Mac;

use crate::frames;
use crate::sample::Generation;

/// Captures have no station of their own: any destination is received.
pub(crate) const ANY_MAC: Mac = Mac([2, 0, 0, 0, 0, 0x99]);
/// Far beyond what anything takes, on a machine that does other things too.
const DEADLINE: Duration = Duration::from_secs(60);

/// Asks until there is an answer.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {DEADLINE:?} for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) struct Rig {
    place: tempfile::TempDir,
    instance: String,
    directory: SegmentDir,
    publisher: RefCell<Option<Rc<Publisher>>>,
}

impl Rig {
    pub(crate) fn new(name: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        let instance = format!("t{}-{name}", std::process::id());
        let directory = SegmentDir::open(place.path().join(format!("weir-{instance}"))).unwrap();
        let publisher = Rc::new(Publisher::open(&directory).unwrap());
        Self { place, instance, directory, publisher: RefCell::new(Some(publisher)) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(format!("{name}.pcap"))
    }

    pub(crate) fn directory(&self) -> &SegmentDir {
        &self.directory
    }

    /// The sample with this rig's captures for ports.
    pub(crate) fn generation(&self) -> Generation {
        let device = |name: &str| {
            let path = |way: &str| self.path(&format!("{name}-{way}")).display().to_string();
            format!("pcap:{},{}", path("in"), path("out"))
        };
        Generation::new(&device("wan"), &device("lan"))
    }

    pub(crate) fn inputs(&self, wan: &[Vec<u8>], lan: &[Vec<u8>]) {
        frames::write_capture(&self.path("wan-in"), wan);
        frames::write_capture(&self.path("lan-in"), lan);
    }

    /// What the ports sent; complete once the process has ended.
    pub(crate) fn outputs(&self) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        (frames::read_capture(&self.path("wan-out")), frames::read_capture(&self.path("lan-out")))
    }

    pub(crate) fn publisher(&self) -> Rc<Publisher> {
        Rc::clone(self.publisher.borrow().as_ref().unwrap())
    }

    pub(crate) fn publish(&self, number: u64, generation: &Generation) {
        generation.write(&self.directory, number);
        self.publisher().publish(number);
    }

    pub(crate) fn control(&self) -> ControlPage {
        ControlPage::open_read_only(&self.directory).unwrap()
    }

    pub(crate) fn start(&self) -> Dataplane {
        let log = self.place.path().join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_weir-dataplane"))
            .args(["--no-huge", "--instance", &self.instance, "--shm-dir"])
            .arg(self.place.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Dataplane { child, log }
    }

    fn counter(&self, group: &str, area: Option<usize>, row: usize, column: &str) -> u64 {
        // mapped anew each time: a restarted process makes another segment
        let Ok(words) = self.directory.map_atomics("counters", 1 << 24, Access::ReadOnly) else { return 0 };
        let Ok(reader) = Reader::open(words) else { return 0 };
        let group = reader.group(group).unwrap();
        let column = group.column(column).unwrap_or_else(|| panic!("there is no column {column}"));
        area.map_or_else(|| group.sum(row, column), |area| group.value(area, row, column))
    }

    pub(crate) fn worker(&self, column: &str) -> u64 {
        self.counter("worker", None, 0, column)
    }

    pub(crate) fn worker_of(&self, worker: usize, column: &str) -> u64 {
        self.counter("worker", Some(worker), 0, column)
    }

    pub(crate) fn backend(&self, index: usize, column: &str) -> u64 {
        self.counter("backend", None, index, column)
    }

    pub(crate) fn port(&self, index: usize, column: &str) -> u64 {
        self.counter("port", None, index, column)
    }

    /// Reasons for which packets were dropped, in order of the columns.
    pub(crate) fn drops(&self) -> Vec<(String, u64)> {
        let words = self.directory.map_atomics("counters", 1 << 24, Access::ReadOnly).unwrap();
        let reader = Reader::open(words).unwrap();
        let group = reader.group("drop").unwrap();
        let drops = group.columns().map(|column| (column.to_owned(), group.sum_of(0, column)));
        drops.filter(|(_, packets)| *packets > 0).collect()
    }

    /// Packets in and not out, of all workers together.
    pub(crate) fn imbalance(&self) -> i64 {
        (0..2).map(|worker| self.imbalance_of(worker)).sum()
    }

    fn imbalance_of(&self, worker: usize) -> i64 {
        let sum = |columns: &[&str]| {
            columns.iter().map(|column| self.worker_of(worker, column) as i64).sum::<i64>()
        };
        sum(&["rx_packets", "steered_in", "generated"])
            - sum(&["tx_packets", "steered_out", "consumed", "held", "dropped"])
    }

    /// After its end, a process owes nothing.
    pub(crate) fn assert_balanced(&self) {
        for worker in 0..2 {
            assert_eq!(self.imbalance_of(worker), 0, "worker {worker}; drops: {:?}", self.drops());
            assert_eq!(self.worker_of(worker, "buffers_owned"), 0, "worker {worker}");
        }
        let dropped: u64 = self.drops().iter().map(|(_, packets)| packets).sum();
        assert_eq!(dropped, self.worker("dropped"));
    }

    /// The control plane ends: its lock goes, its page stays.
    pub(crate) fn forget_publisher(&self) {
        drop(self.publisher.take());
        // a process that another test is just starting has the lock too, until it is another program
        wait_for("its lock to go", || (!self.control().ctlplane().is_alive).then_some(()));
    }
}

pub(crate) struct Dataplane {
    child: Child,
    log: PathBuf,
}

impl Dataplane {
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// All workers run this generation.
    pub(crate) fn until_acked(&mut self, rig: &Rig, generation: u64) {
        wait_for("an acknowledgement", || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended, {ended:?}: {}", self.log());
            let running = rig.control().dataplane().adopted_generation == generation;
            (running && rig.control().acked_by_all() == Some(generation)).then_some(())
        });
    }

    /// Its exit code and what it said.
    pub(crate) fn until_ended(&mut self) -> (Option<i32>, String) {
        let status = wait_for("its end", || self.child.try_wait().unwrap());
        assert_eq!(status.signal(), None, "{}", self.log());
        (status.code(), self.log())
    }

    /// SIGTERM: it ends by itself, in order, and with nothing lost.
    pub(crate) fn terminate(&mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let (code, log) = self.until_ended();
        assert_eq!(code, Some(0), "{log}");
        // refusals before may be what the test is about
        let (_, end) = log.rsplit_once(" stopping").unwrap_or_else(|| panic!("{log}"));
        assert!(["ERROR", "WARN", "panic"].iter().all(|sign| !end.contains(sign)), "{log}");
    }

    /// SIGKILL: at once, wherever it is.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("weir-dataplane said:\n{}", self.log());
        }
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
