//! How is a command a probe? Exit code 0 is good; at its deadline it is killed with all that it started.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;

use super::{Outcome, Steps, Tools};
use crate::health::check::{Exec, Target};

/// The process group of a command; killed when this is dropped before [`Group::ended`].
struct Group(Option<Pid>);

impl Group {
    fn ended(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // it is gone where this fails
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

pub(super) async fn run(target: &Target, tools: &Tools, exec: &Exec) -> Steps<()> {
    let _permit = tools.commands.acquire().await.map_err(|_| Outcome::Untold("stopping".to_owned()))?;
    let (program, arguments) =
        exec.command.split_first().ok_or_else(|| Outcome::Untold("there is no command".to_owned()))?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("WEIR_POOL", &*target.name.pool)
        .env("WEIR_BACKEND", &*target.name.backend)
        .env("WEIR_ADDRESS", target.to.ip().to_string())
        .env("WEIR_PORT", target.to.port().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Outcome::Untold(format!("cannot run {program}: {error}")))?;
    let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut group = Group(leader);
    let status =
        child.wait().await.map_err(|error| Outcome::Untold(format!("cannot wait for {program}: {error}")))?;
    group.ended();
    if status.success() { Ok(()) } else { Err(Outcome::Bad(format!("{program}: {status}"))) }
}
