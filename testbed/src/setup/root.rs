//! Root: namespaces, packet sockets and hugepages need it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Result, bail};

/// Environment that the build needs and that sudo would drop.
const KEPT: [&str; 5] = ["PATH", "CARGO", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];

/// Returns when this process is root; else becomes root through sudo, or says in one sentence what is needed.
pub(crate) fn require() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let mut command = Command::new("sudo");
    command.arg("env");
    for name in KEPT {
        if let Ok(value) = std::env::var(name) {
            command.arg(format!("{name}={value}"));
        }
    }
    // `cargo` and `rustup` find their homes through HOME, which sudo sets to root's
    if let Ok(home) = std::env::var("HOME") {
        for (name, part) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
            if std::env::var_os(name).is_none() {
                command.arg(format!("{name}={home}/{part}"));
            }
        }
    }
    command.arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
    let error = command.exec();
    bail!("the testbed needs root for namespaces and hugepages: run it as root, or install sudo ({error})")
}
