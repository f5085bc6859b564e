//! The checks that need no lab: formatting, lints, unit and property tests of the whole workspace.

use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use crate::setup::cargo;

/// What [`check`] can do.
pub(crate) const NAMES: [&str; 3] = ["workspace/format", "workspace/lints", "workspace/tests"];

/// Does it; its output is shown only when it fails, except for the tests' progress.
pub(crate) fn check(name: &str) -> Result<()> {
    match name {
        "workspace/format" => quietly(&["fmt", "--all", "--check"]),
        "workspace/lints" => {
            quietly(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])
        }
        _ => tests(),
    }
}

fn quietly(arguments: &[&str]) -> Result<()> {
    let output = cargo(arguments).stdin(Stdio::null()).output().context("could not start cargo")?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().collect();
        let tail = lines[lines.len().saturating_sub(60)..].join("\n");
        bail!("cargo {} failed:\n{tail}", arguments.join(" "));
    }
    Ok(())
}

/// With nextest where it is installed (each test a process of its own), else with cargo's own runner.
fn tests() -> Result<()> {
    let nextest = cargo(&["nextest", "--version"]).output().is_ok_and(|output| output.status.success());
    if nextest {
        quietly(&[
            "nextest",
            "run",
            "--workspace",
            "--no-fail-fast",
            "--status-level",
            "fail",
            "--hide-progress-bar",
        ])
    } else {
        quietly(&["test", "--workspace", "--quiet", "--no-fail-fast"])
    }
}
