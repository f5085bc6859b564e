//! On which CPUs may the calling thread run?

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::OsError;

/// The CPUs that the calling thread may run on, ascending.
///
/// # Errors
/// When the kernel has more CPUs than fit its set (1,024).
pub fn current_affinity() -> Result<Vec<usize>, OsError> {
    let set =
        sched_getaffinity(None).map_err(|errno| OsError::new("read this thread's CPU affinity", errno))?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Keeps the calling thread, and threads it starts from now on, on these CPUs.
///
/// # Errors
/// When the list is empty or names a CPU that does not exist or that this process may not use.
pub fn pin_current_thread(cpus: &[usize]) -> Result<(), OsError> {
    let set = cpu_set(cpus)?;
    sched_setaffinity(None, &set).map_err(|errno| OsError::new(format!("run on CPUs {cpus:?}"), errno))?;
    // The kernel quietly drops CPUs that are offline or outside the cpuset.
    let granted = current_affinity()?;
    match cpus.iter().find(|cpu| !granted.contains(cpu)) {
        None => Ok(()),
        Some(cpu) => {
            let reason =
                std::io::Error::new(std::io::ErrorKind::NotFound, "it is offline or outside the cpuset");
            Err(OsError::new(format!("run on CPU {cpu}"), reason))
        }
    }
}

pub(crate) fn cpu_set(cpus: &[usize]) -> Result<CpuSet, OsError> {
    let mut set = CpuSet::new();
    let invalid = |text: &str| OsError::new(text, std::io::Error::from(std::io::ErrorKind::InvalidInput));
    if cpus.is_empty() {
        return Err(invalid("run on an empty list of CPUs"));
    }
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(invalid(&format!("run on CPU {cpu} (at most {})", CpuSet::MAX_CPU - 1)));
        }
        set.set(cpu);
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_pinned_alone() {
        let before = current_affinity().unwrap();
        let first = before[0];
        let pinned = std::thread::spawn(move || {
            pin_current_thread(&[first]).unwrap();
            current_affinity().unwrap()
        });
        assert_eq!(pinned.join().unwrap(), [first]);
        assert_eq!(current_affinity().unwrap(), before);
    }

    #[test]
    fn a_cpu_that_does_not_exist_is_named() {
        let first = current_affinity().unwrap()[0];
        for cpu in [1_023, 5_000] {
            let error = pin_current_thread(&[cpu]).unwrap_err().to_string();
            assert!(error.contains(&cpu.to_string()), "{error}");
        }
        let error =
            std::thread::spawn(move || pin_current_thread(&[first, 1_023])).join().unwrap().unwrap_err();
        assert!(error.to_string().contains("1023"), "a CPU that is dropped quietly is an error: {error}");
        assert!(pin_current_thread(&[]).is_err());
    }
}
