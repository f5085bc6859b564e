//! Debian packages: only those that are missing, `apt-get update` only when the lists don't know them.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::console::Step;
use crate::supervisor::tail;

/// Build and run needs, with what each is for.
const PACKAGES: [&str; 16] = [
    "libdpdk-dev",
    "dpdk",
    "libclang-dev",
    "pkg-config",
    "gcc",
    "libc6-dev",
    "nginx-light",
    "haproxy",
    "wrk",
    "curl",
    "iperf3",
    "iproute2",
    "ethtool",
    "tcpdump",
    "iputils-ping",
    "util-linux",
];
const LOG: &str = "/tmp/weir-testbed-apt.log";
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs what is missing.
pub(crate) fn install() -> Result<()> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    let step = Step::start(format!("installing {}", missing.join(" ")));
    let _quiet = NoServices::forbid()?;
    if !apt(&install_arguments(&missing), false)? {
        apt(&["update".into()], true)?;
        apt(&install_arguments(&missing), true)?;
    }
    step.end("done");
    Ok(())
}

fn install_arguments(missing: &[&str]) -> Vec<String> {
    let mut words = vec!["install".to_owned(), "-y".to_owned(), "--no-install-recommends".to_owned()];
    words.extend(missing.iter().map(|&name| name.to_owned()));
    words
}

fn missing() -> Result<Vec<&'static str>> {
    let Ok(output) = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Abbrev}\n"])
        .args(PACKAGES)
        .output()
    else {
        bail!(
            "this is not a Debian system (no dpkg-query): install the equivalents of {} by hand, and put a \
             dpkg-query on the path that knows them, or use Debian 12",
            PACKAGES.join(", ")
        );
    };
    let known = String::from_utf8_lossy(&output.stdout);
    let installed: Vec<&str> = known.lines().filter_map(|line| line.trim().strip_suffix(" ii")).collect();
    Ok(PACKAGES.into_iter().filter(|name| !installed.contains(name)).collect())
}

/// Runs apt-get, its noise in the log; on failure an error when it `must` work, else `false`.
fn apt(arguments: &[String], must: bool) -> Result<bool> {
    let log = File::create(LOG).with_context(|| format!("could not write {LOG}"))?;
    let status = Command::new("apt-get")
        .args(["-o", "DPkg::Lock::Timeout=120"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .context("could not start apt-get")?;
    if !status.success() && must {
        bail!(
            "apt-get {} failed ({status}); {LOG} ends with:\n{}",
            arguments.join(" "),
            tail(Path::new(LOG), 12)
        );
    }
    Ok(status.success())
}

/// Keeps freshly installed daemons (nginx) from starting on the host: policy-rc.d as Debian Policy §9.3.3 has it.
struct NoServices {
    made: bool,
}

impl NoServices {
    fn forbid() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        if Path::new(POLICY).exists() {
            return Ok(Self { made: false });
        }
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n")
            .with_context(|| format!("could not write {POLICY}"))?;
        let made = Self { made: true };
        std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755))?;
        Ok(made)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.made {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}
