//! Which CPUs does this machine have for workers?

use std::path::Path;

use crate::units::parse_cpu_list;

/// A worker on any CPU.
const NOT_PINNED: u16 = u16::MAX;

/// What validation needs to know about the machine; an argument, so that it stays pure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// CPUs that are online, rising.
    pub cpus: Vec<u16>,
}

impl Machine {
    /// This machine; CPU 0 alone where the kernel does not say.
    pub fn detect() -> Self {
        let list = std::fs::read_to_string(Path::new("/sys/devices/system/cpu/online")).unwrap_or_default();
        let cpus = parse_cpu_list(list.trim()).unwrap_or_else(|_| vec![0]);
        Self { cpus }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_leaves_the_first_cpu_alone() {
        let machine = |count: u16| Machine { cpus: (0..count).collect() };
        assert_eq!(machine(4).spare_cpus(true), vec![1, 2, 3]);
        assert_eq!(machine(2).spare_cpus(true), vec![1]);
        assert_eq!(machine(1).spare_cpus(true), vec![0]);
        assert_eq!(machine(2).worker_cpus(2, false), vec![NOT_PINNED; 2]);
        assert_eq!(machine(4).worker_cpus(2, true), vec![2, 3]);
        assert_eq!(machine(2).worker_cpus(3, true), vec![NOT_PINNED; 3]);
    }
}
