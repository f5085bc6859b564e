//! What does this machine have for workers: CPUs and memory?

use std::path::Path;

use crate::units::parse_cpu_list;

/// A worker on any CPU.
const NOT_PINNED: u16 = u16::MAX;

/// What validation needs to know about the machine; an argument, so that it stays pure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// CPUs that are online, rising.
    pub cpus: Vec<u16>,
    /// Bytes of memory; `None` where that is not known, as of a machine that is only described.
    pub memory: Option<u64>,
}

impl Machine {
    /// This machine; CPU 0 alone where the kernel does not say.
    pub fn detect() -> Self {
        let list = std::fs::read_to_string(Path::new("/sys/devices/system/cpu/online")).unwrap_or_default();
        let cpus = parse_cpu_list(list.trim()).unwrap_or_else(|_| vec![0]);
        let memory = std::fs::read_to_string("/proc/meminfo").ok();
        Self { cpus, memory: memory.and_then(|text| total_memory(&text)) }
    }

    /// A machine with these CPUs, of which nothing else is known.
    pub fn with_cpus(cpus: Vec<u16>) -> Self {
        Self { cpus, memory: None }
    }

    /// `workers = "auto"`: all CPUs but the first where there are more than two, else one.
    pub fn spare_cpus(&self, pinned: bool) -> Vec<u16> {
        let count = if self.cpus.len() > 2 { (self.cpus.len() - 1).min(64) } else { 1 };
        self.worker_cpus(count, pinned)
    }

    /// CPUs for so many workers: the first CPU is left to the kernel while others suffice.
    pub fn worker_cpus(&self, count: usize, pinned: bool) -> Vec<u16> {
        if !pinned || count > self.cpus.len() {
            return vec![NOT_PINNED; count];
        }
        self.cpus.iter().skip(self.cpus.len() - count).take(count).copied().collect()
    }

    /// `0-3,5`-like text.
    pub fn describe(&self) -> String {
        self.cpus.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// What `/proc/meminfo` says of all memory, in bytes.
fn total_memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kilobytes.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_leaves_the_first_cpu_alone() {
        let machine = |count: u16| Machine::with_cpus((0..count).collect());
        assert_eq!(machine(4).spare_cpus(true), vec![1, 2, 3]);
        assert_eq!(machine(2).spare_cpus(true), vec![1]);
        assert_eq!(machine(1).spare_cpus(true), vec![0]);
        assert_eq!(machine(2).worker_cpus(2, false), vec![NOT_PINNED; 2]);
        assert_eq!(machine(4).worker_cpus(2, true), vec![2, 3]);
        assert_eq!(machine(2).worker_cpus(3, true), vec![NOT_PINNED; 3]);
    }

    #[test]
    fn all_memory_is_read_where_it_is_told() {
        let text = "MemTotal:       16384 kB\nMemFree:         1 kB\n";
        assert_eq!(total_memory(text), Some(16 << 20));
        for text in ["", "MemTotal: 5 MB", "MemTotal: x kB", "MemTotal: 18446744073709551615 kB"] {
            assert_eq!(total_memory(text), None, "{text}");
        }
    }
}
