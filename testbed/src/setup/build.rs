//! The programs under test, built by the cargo that runs the testbed.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Where the built programs are.
#[derive(Clone, Debug)]
pub(crate) struct Binaries {
    /// `weir-dataplane`.
    pub(crate) dataplane: PathBuf,
    /// `weir-ctlplane`.
    pub(crate) ctlplane: PathBuf,
    /// The command line.
    pub(crate) weir: PathBuf,
}

/// The root of the repository, two levels above this crate's manifest at build time, or the working directory when
/// the tree has moved since.
pub(crate) fn repository() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default();
    if built.join("Cargo.toml").exists() { built } else { std::env::current_dir().unwrap_or_default() }
}

/// A cargo command in the repository, run as the owner of the tree: a build through sudo must not leave root's files
/// in a user's `target`.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let root = repository();
    let owner = std::fs::metadata(root.join("Cargo.toml")).map(|data| (data.uid(), data.gid()));
    let mut command = match owner {
        Ok((user, group)) if user != 0 && std::env::var_os("SUDO_UID").is_some() => {
            let mut command = Command::new("setpriv");
            command
                .arg(format!("--reuid={user}"))
                .arg(format!("--regid={group}"))
                .arg("--init-groups")
                .arg(program);
            command
        }
        _ => Command::new(program),
    };
    command.args(arguments).current_dir(root);
    command
}

/// Builds the release programs, cargo's own progress shown; or only finds them.
pub(crate) fn release(build: bool) -> Result<Binaries> {
    if build {
        println!("  building weir-dataplane, weir-ctlplane and weir (release)");
        let status = cargo(&["build", "--release", "-p", "weir-dataplane", "-p", "weir-ctlplane"])
            .status()
            .context("could not start cargo")?;
        if !status.success() {
            bail!("the release build failed ({status}); what cargo printed above says why");
        }
    }
    let directory = target().join("release");
    let binaries = Binaries {
        dataplane: directory.join("weir-dataplane"),
        ctlplane: directory.join("weir-ctlplane"),
        weir: directory.join("weir"),
    };
    for program in [&binaries.dataplane, &binaries.ctlplane, &binaries.weir] {
        if !program.exists() {
            bail!("there is no {}: build it without --no-build", program.display());
        }
    }
    Ok(binaries)
}

/// Cargo's target directory: the one this program was built into.
pub(crate) fn target() -> PathBuf {
    if let Some(directory) = std::env::var_os("CARGO_TARGET_DIR") {
        return directory.into();
    }
    std::env::current_exe()
        .ok()
        .and_then(|path| path.parent().and_then(Path::parent).map(Path::to_path_buf))
        .unwrap_or_else(|| repository().join("target"))
}
