//! How is a process started so that nothing of it is left behind, and waited for in bounded time?

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::set_parent_process_death_signal;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, sched_setaffinity};

use crate::OsError;
use crate::cpu::cpu_set;
use crate::namespace::NetworkNamespace;

/// The kernel kills the process when the thread that starts it ends: start it from a thread that lives as long.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = getpid();
    let before_exec = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the kernel knew.
        if getppid() == Some(parent) { Ok(()) } else { Err(std::io::Error::from_raw_os_error(libc::ESRCH)) }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed: these are bare system calls, without
    // allocation or locks.
    unsafe { command.pre_exec(before_exec) }
}

/// Runs the process in that network namespace. `/sys` keeps showing the caller's.
///
/// # Errors
/// When there is none of that name.
pub fn in_namespace<'a>(command: &'a mut Command, name: &str) -> Result<&'a mut Command, OsError> {
    let namespace = NetworkNamespace::open(name)?;
    let before_exec = move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(Into::into)
    };
    // SAFETY: as in die_with_parent: one system call on a descriptor that was opened before.
    Ok(unsafe { command.pre_exec(before_exec) })
}

/// Keeps the process on these CPUs.
///
/// # Errors
/// When the list is empty or a number is out of range.
pub fn on_cpus<'a>(command: &'a mut Command, cpus: &[usize]) -> Result<&'a mut Command, OsError> {
    let set = cpu_set(cpus)?;
    let before_exec = move || sched_setaffinity(None, &set).map_err(Into::into);
    // SAFETY: as in die_with_parent: one system call on a set that was made before.
    Ok(unsafe { command.pre_exec(before_exec) })
}

/// Waits for the process to end, no longer than that. `None` when it still runs.
///
/// # Errors
/// When it can't be waited for.
pub fn wait_timeout(child: &mut Child, timeout: Duration) -> Result<Option<ExitStatus>, OsError> {
    let id = child.id();
    let failed = |error| OsError::new(format!("wait for process {id}"), error);
    if let Some(status) = child.try_wait().map_err(failed)? {
        return Ok(Some(status));
    }
    // The process is our child and not reaped: its id can't have been given to another.
    let process = pidfd(id)?;
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timespec = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timespec)) {
            Ok(0) => return child.try_wait().map_err(failed),
            Ok(_) => return child.wait().map(Some).map_err(failed),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

/// Asks the process to end (SIGTERM), waits that long, then kills it (SIGKILL). It is reaped in any case.
///
/// # Errors
/// When it can't be signalled or waited for.
pub fn terminate(child: &mut Child, grace: Duration) -> Result<ExitStatus, OsError> {
    let id = child.id();
    let failed = |error| OsError::new(format!("end process {id}"), error);
    if let Some(status) = child.try_wait().map_err(failed)? {
        return Ok(status);
    }
    let process = pidfd(id)?;
    match pidfd_send_signal(&process, Signal::TERM) {
        // It has just ended by itself.
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    if let Some(status) = wait_timeout(child, grace)? {
        return Ok(status);
    }
    child.kill().map_err(failed)?;
    child.wait().map_err(failed)
}

fn pidfd(id: u32) -> Result<OwnedFd, OsError> {
    let failed = |error: std::io::Error| OsError::new(format!("open process {id}"), error);
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| failed(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn sleep(seconds: &str) -> Command {
        let mut command = Command::new("sleep");
        command.arg(seconds);
        command
    }

    #[test]
    fn waiting_is_bounded_and_sees_the_end() {
        let mut child = sleep("30").spawn().unwrap();
        let start = Instant::now();
        assert_eq!(wait_timeout(&mut child, Duration::from_millis(50)).unwrap(), None);
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(terminate(&mut child, Duration::from_secs(5)).unwrap().signal(), Some(libc::SIGTERM));

        let mut quick = Command::new("true").spawn().unwrap();
        let status = wait_timeout(&mut quick, Duration::from_secs(10)).unwrap().unwrap();
        assert!(status.success());
        assert_eq!(
            wait_timeout(&mut quick, Duration::ZERO).unwrap(),
            Some(status),
            "asking again is allowed"
        );
    }

    #[test]
    fn a_process_that_ignores_the_request_is_killed() {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM; echo; exec sleep 30"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        assert_eq!(terminate(&mut child, Duration::from_millis(100)).unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn a_process_dies_with_the_thread_that_started_it() {
        let mut child =
            std::thread::spawn(|| die_with_parent(&mut sleep("30")).spawn().unwrap()).join().unwrap();
        let status = wait_timeout(&mut child, Duration::from_secs(10)).unwrap().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn a_process_runs_on_its_cpus() {
        let first = crate::cpu::current_affinity().unwrap()[0];
        let mut command = Command::new("grep");
        command.args(["Cpus_allowed_list", "/proc/self/status"]);
        let output = on_cpus(&mut command, &[first]).unwrap().output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.split_whitespace().last(), Some(first.to_string().as_str()));
        assert!(in_namespace(&mut command, "weir-none").is_err());
    }
}
