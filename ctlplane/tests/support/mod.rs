//! An instance in a temporary directory, and a dataplane that only acks and counts.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test binary uses its part")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hugepages::generation::{Adopter, ControlError, RunState, WorkerAck};
use hugepages::segment::{Access, AtomicWords, SegmentDir};
use serde_json::Value;
use tempfile::TempDir;
use weir_abi::columns::{
    BackendColumn, CAUSE_GROUP, DROP_GROUP, HttpBackendColumn, HttpColumn, HttpWorkerColumn, ListenerColumn,
    PortColumn, ProxyColumn, TcpColumn, UpstreamColumn, WorkerColumn,
};
use weir_abi::counters::{GroupSpec, Layout};
use weir_abi::image::{MAX_ROOT_BYTES, MAX_TABLE_BYTES};
use weir_abi::{ListenersTable, NodeTable, PoolTable, Root, TableKind, root_name, table_name};
use weir_ctlplane::engine::{Engine, EngineError, Options};
use weir_ctlplane::machine::Machine;
use weir_http::cause::Cause;

pub struct Instance {
    pub directory: TempDir,
    pub options: Options,
}

impl Instance {
    pub fn new(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weir.toml");
        std::fs::write(&path, config).unwrap();
        let shm_dir = directory.path().join("shm");
        std::fs::create_dir(&shm_dir).unwrap();
        let options = Options {
            instance: "test".to_owned(),
            config: path,
            state_dir: directory.path().join("state"),
            shm_dir,
            machine: machine(),
        };
        Self { directory, options }
    }

    pub fn start(&self) -> Engine {
        self.try_start().unwrap()
    }

    pub fn try_start(&self) -> Result<Engine, EngineError> {
        Engine::start(self.options.clone())
    }

    pub fn segments(&self) -> SegmentDir {
        SegmentDir::open(self.options.shm_dir.join("weir-test")).unwrap()
    }

    pub fn write_config(&self, text: &str) {
        std::fs::write(&self.options.config, text).unwrap();
    }

    pub fn read(&self, generation: u64) -> Tables {
        Tables::read(&self.segments(), generation)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    pub fn shm(&self) -> &Path {
        &self.options.shm_dir
    }
}

pub fn machine() -> Machine {
    Machine::with_cpus(vec![0, 1, 2, 3])
}

/// A generation, parsed as the dataplane does.
#[derive(Debug)]
pub struct Tables {
    pub root: Root,
    pub node: NodeTable,
    pub listeners: ListenersTable,
    pub pools: Vec<PoolTable>,
}

impl Tables {
    pub fn read(directory: &SegmentDir, generation: u64) -> Self {
        let bytes = directory.read(&root_name(generation), MAX_ROOT_BYTES).unwrap();
        let root = Root::parse(generation, &bytes).unwrap();
        let read = |at: usize| directory.read(&table_name(root.tables[at].id), MAX_TABLE_BYTES).unwrap();
        let node = NodeTable::parse(&root.tables[0], &read(0)).unwrap();
        let listeners = ListenersTable::parse(&root.tables[1], &read(1)).unwrap();
        let pools = (2..root.tables.len())
            .filter(|at| root.tables[*at].kind == TableKind::Pool as u32)
            .map(|at| PoolTable::parse(&root.tables[at], &read(at)).unwrap())
            .collect();
        Self { root, node, listeners, pools }
    }

    pub fn pool(&self, name: &str) -> &PoolTable {
        self.pools.iter().find(|pool| pool.pool.name.as_str() == name).unwrap()
    }
}

/// Acks and counts, and carries no packet.
pub struct FakeDataplane {
    adopter: Adopter,
    workers: Vec<WorkerAck>,
    layout: Layout,
    words: AtomicWords,
}

impl FakeDataplane {
    pub fn start(directory: &SegmentDir, workers: usize) -> Self {
        let group =
            |name, rows, columns: &[&'static str]| GroupSpec { name, rows, columns: columns.to_vec() };
        let groups = vec![
            group(WorkerColumn::GROUP, 1, WorkerColumn::COLUMNS),
            group(PortColumn::GROUP, 2, PortColumn::COLUMNS),
            group(ListenerColumn::GROUP, 64, ListenerColumn::COLUMNS),
            group(BackendColumn::GROUP, 64, BackendColumn::COLUMNS),
            group(DROP_GROUP, 1, &["no_backend", "martian"]),
            group(TcpColumn::GROUP, 1, TcpColumn::COLUMNS),
            group(ProxyColumn::GROUP, 64, ProxyColumn::COLUMNS),
            group(UpstreamColumn::GROUP, 64, UpstreamColumn::COLUMNS),
            group(HttpColumn::GROUP, 64, HttpColumn::COLUMNS),
            GroupSpec {
                name: CAUSE_GROUP,
                rows: 64,
                columns: Cause::ALL.iter().map(|cause| cause.code()).collect(),
            },
            group(HttpBackendColumn::GROUP, 64, HttpBackendColumn::COLUMNS),
            group(HttpWorkerColumn::GROUP, 1, HttpWorkerColumn::COLUMNS),
        ];
        let layout = Layout::new(workers + 1, groups);
        if directory.exists("counters") {
            directory.remove("counters").unwrap();
        }
        let words = directory.map_atomics("counters", layout.words(), Access::Create).unwrap();
        layout.describe(&words, 1);
        // a process that another test is starting just now shares this one's open files until it executes its program,
        // and with them the lock of the fake dataplane before this one
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut adopter = loop {
            match Adopter::open(directory) {
                Err(ControlError::AlreadyRunning { .. }) if Instant::now() < deadline => {
                    std::thread::yield_now()
                }
                other => break other.unwrap(),
            }
        };
        adopter.set_workers(workers);
        adopter.set_state(RunState::Running);
        let workers = (0..workers).map(|index| adopter.worker(index).unwrap()).collect();
        Self { adopter, workers, layout, words }
    }

    pub fn ack(&mut self, generation: u64) {
        self.adopter.adopted(generation);
        for worker in &mut self.workers {
            worker.ack(generation);
            worker.beat(hugepages::generation::monotonic_ns());
        }
    }

    pub fn published(&self) -> u64 {
        self.adopter.published()
    }

    pub fn refuse(&mut self, generation: u64, text: &str) {
        self.adopter.refuse(generation, 7, text);
    }

    /// As one that could not read a file.
    pub fn refuse_as_invalid(&mut self, generation: u64) {
        self.adopter.refuse(generation, 1, "checksum");
    }

    pub fn set(&self, area: usize, group: &str, row: u32, column: usize, value: u64) {
        let words: &[AtomicU64] = &self.words;
        self.layout.writer(words, area, group).unwrap().set(row as usize, column, value);
    }

    pub fn set_backend_flows(&self, index: u32, flows: u64) {
        self.set(0, BackendColumn::GROUP, index, BackendColumn::FlowsActive as usize, flows);
    }
}

/// A port that reaches everything in 198.18.0.0/16 and 2001:db8::/32.
pub const HEAD: &str = r#"
[dataplane]
workers = 1
idle = "adaptive"
[[port]]
name = "wan"
device = "null:"
addresses = ["198.18.0.254/16", "2001:db8::fe/32"]
[[vip]]
name = "web"
address = "198.19.0.1"
[[listener]]
name = "web-http"
vip = "web"
port = 80
protocol = "tcp"
mode = "nat"
pool = "app"
"#;

/// `HEAD` and one pool of those backends.
pub fn one_pool(backends: &[(&str, u8, u16)]) -> String {
    format!("{HEAD}{}", pool("app", backends))
}

pub fn pool(name: &str, backends: &[(&str, u8, u16)]) -> String {
    let mut text = format!("[[pool]]\nname = \"{name}\"\nslots = 251\n");
    for (backend, host, weight) in backends {
        text.push_str(&format!(
            "[[pool.backend]]\nname = \"{backend}\"\naddress = \"198.18.1.{host}:8080\"\nweight = {weight}\n"
        ));
    }
    text
}

/// Waits until it is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

type Deed = Box<dyn FnOnce(&mut FakeDataplane) + Send>;

/// A dataplane that acks whatever is published, until it is stopped.
pub struct Acking {
    deeds: mpsc::Sender<Deed>,
    thread: JoinHandle<FakeDataplane>,
}

impl Acking {
    pub fn start(mut dataplane: FakeDataplane) -> Self {
        let (deeds, asked) = mpsc::channel::<Deed>();
        let thread = std::thread::spawn(move || {
            loop {
                match asked.recv_timeout(Duration::from_millis(2)) {
                    Ok(deed) => deed(&mut dataplane),
                    Err(mpsc::RecvTimeoutError::Timeout) => dataplane.ack(dataplane.published()),
                    Err(mpsc::RecvTimeoutError::Disconnected) => return dataplane,
                }
            }
        });
        Self { deeds, thread }
    }

    pub fn ask(&self, deed: impl FnOnce(&mut FakeDataplane) + Send + 'static) {
        self.deeds.send(Box::new(deed)).unwrap();
    }

    pub fn stop(self) -> FakeDataplane {
        drop(self.deeds);
        self.thread.join().unwrap()
    }
}

/// A daemon that is killed when the test ends.
pub struct Daemon {
    pub child: Child,
    pub instance: Instance,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    pub fn start(config: &str) -> Self {
        let instance = Instance::new(config);
        let child = spawn(&instance, "off");
        Self::with(instance, child)
    }

    /// Of a process that was started already.
    pub fn with(instance: Instance, child: Child) -> Self {
        let daemon = Self { child, instance };
        daemon.wait();
        daemon
    }

    /// Kills it, also where it is dead already, and starts it again.
    pub fn again(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
        self.child = spawn(&self.instance, "off");
        self.wait();
    }

    fn wait(&self) {
        until("the daemon listens", || self.connect().is_ok());
    }

    pub fn socket(&self) -> PathBuf {
        self.instance.run_dir().join("test.sock")
    }

    pub fn connect(&self) -> std::io::Result<UnixStream> {
        UnixStream::connect(self.socket())
    }

    /// Sends bytes as they are; gives status and body, or nothing where there is no answer.
    pub fn exchange(&self, request: &[u8]) -> Option<(u16, String)> {
        let mut stream = self.connect().ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned()))
    }

    /// As [`Self::exchange`]; without an answer it is 0.
    pub fn raw(&self, request: &[u8]) -> (u16, String) {
        self.exchange(request).unwrap_or_default()
    }

    pub fn try_send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Option<(u16, Value)> {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
        );
        let (status, body) = self.exchange(&[head.as_bytes(), body].concat())?;
        Some((status, serde_json::from_str(&body).ok()?))
    }

    pub fn send(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        self.try_send(method, path, "", body.as_bytes()).unwrap()
    }

    pub fn weir(&self, arguments: &[&str]) -> Output {
        weir(&self.instance, arguments)
    }

    /// The change that is in force.
    pub fn last_change(&self) -> Value {
        self.send("GET", "/v1/history", "").1["changes"][0].clone()
    }
}

/// The command line against an instance.
pub fn weir(instance: &Instance, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["--instance", "test", "--run-dir"])
        .arg(instance.run_dir())
        .arg("--shm-dir")
        .arg(instance.shm())
        .args(arguments)
        .output()
        .unwrap()
}

/// Everything that the daemon of an instance has to be told.
pub fn arguments(instance: &Instance, log: &str) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let options = &instance.options;
    [
        ("--instance", "test".to_owned()),
        ("--log", log.to_owned()),
        ("--config", path(&options.config)),
        ("--state-dir", path(&options.state_dir)),
        ("--run-dir", path(&instance.run_dir())),
        ("--shm-dir", path(instance.shm())),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect()
}

/// Starts the daemon of an instance; what it says with its log is there to be read.
pub fn spawn(instance: &Instance, log: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_weir-ctlplane"))
        .args(arguments(instance, log))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}
