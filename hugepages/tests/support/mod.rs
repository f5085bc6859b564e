//! Children of a test: this very test program, told by the environment which part to play; always killed and awaited.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test program uses its part; a failing helper should panic"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use hugepages::segment::SegmentDir;

const DIRECTORY: &str = "WEIR_TEST_CHILD_DIRECTORY";

/// A child that runs until it is dropped.
pub struct Role(pub Child);

impl Role {
    /// Starts the test `name` of this program as a child, and waits until it says that it is ready.
    pub fn start(name: &str, directory: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(DIRECTORY, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let role = Self(child);
        let is_ready = output.lines().any(|line| line.unwrap().contains("ready"));
        assert!(is_ready, "the child ended before it was ready");
        role
    }

    pub fn kill(mut self) -> u32 {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        self.0.id()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _awaited = self.0.wait();
    }
}

/// The directory, in a child; `None` in an ordinary test run.
pub fn directory_of_child() -> Option<SegmentDir> {
    std::env::var_os(DIRECTORY).map(|path| SegmentDir::open(path).unwrap())
}
