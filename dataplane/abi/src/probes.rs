//! Which of the kernel's packets to a vip are health probes, and which backend is each for?
//!
//! A word per local port in the segment [`NAME`], written by the control process before it connects from that port (release) and read by
//! the dataplane for each packet that the kernel sends to a vip (acquire). A packet whose source port has a valid word goes to
//! that backend by the listener's mode as a client's would, without a flow; any other goes where its route says.

/// Name of the segment in the instance's directory.
pub const NAME: &str = "probes";
/// One per port number.
pub const WORDS: usize = 1 << 16;
/// From here on ports are the kernel's own, for probes: the default of `snat_ports` ends before.
pub const FIRST_PORT: u16 = 61_000;
/// The link address of a next hop that nobody is: the kernel's route to a vip leads there, and what is no valid probe goes no further.
pub const NEXT_HOP: [u8; 6] = [0x02, 0x57, 0x45, 0x49, 0x52, 0x00];

const VALID: u64 = 1 << 63;
const LISTENER_SHIFT: u32 = 32;

/// Where the packets of a local port go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// Index of the listener.
    pub listener: u16,
    /// Index of the backend.
    pub backend: u32,
}

impl Probe {
    /// Its word.
    pub fn word(self) -> u64 {
        VALID | u64::from(self.listener) << LISTENER_SHIFT | u64::from(self.backend)
    }

    /// What a word says; `None`: nothing goes anywhere from this port.
    pub fn of(word: u64) -> Option<Self> {
        let listener = u16::try_from((word & !VALID) >> LISTENER_SHIFT).ok()?;
        (word & VALID != 0).then_some(Self { listener, backend: word as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_and_others_say_nothing() {
        for probe in [
            Probe { listener: 0, backend: 0 },
            Probe { listener: u16::MAX, backend: u32::MAX },
            Probe { listener: 7, backend: 1 << 20 },
        ] {
            assert_eq!(Probe::of(probe.word()), Some(probe));
            assert_eq!(Probe::of(probe.word() & !VALID), None);
        }
        assert_eq!(Probe::of(0), None);
        assert_eq!(Probe::of(u64::MAX), None, "of no listener that there can be");
    }
}
