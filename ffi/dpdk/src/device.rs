//! Which device does a port's one string name?

use std::fmt;
use std::str::FromStr;

/// A device, as the configuration names it. Every kind is a DPDK driver, so tests and hardware run the same code.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DeviceSpec {
    /// `pci:0000:3b:00.0`: a NIC bound to a user-space driver (or shared with the kernel, mlx5).
    Pci(String),
    /// `af_xdp:IFACE`: a kernel interface through AF_XDP sockets.
    AfXdp(String),
    /// `af_packet:IFACE`: a kernel interface through packet sockets.
    AfPacket(String),
    /// `tap:NAME`: a new TAP interface of that name, which lives as long as the port.
    Tap(String),
    /// `pcap:IN,OUT[,infinite]`: packets from a capture file, and into one; either may be empty.
    Pcap {
        /// Capture to read; without it nothing is received.
        input: Option<String>,
        /// Capture to write; without it what is sent is dropped.
        output: Option<String>,
        /// Repeat the input for ever.
        infinite: bool,
    },
    /// `ring:NAME`: what is sent on a queue is received on the same queue.
    Ring(String),
    /// `null:` or `null:sink`: what is sent is dropped; zeroed frames are received without end, or none.
    Null {
        /// Whether frames are received.
        receive: bool,
    },
}

/// Why a string names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Likely a bare interface name.
    #[error(
        "device {0:?} must start with pci:, af_xdp:, af_packet:, tap:, pcap:, ring: or null:, such as \"af_xdp:eth1\""
    )]
    Kind(String),
    /// Likely a short PCI address.
    #[error("device {0:?}: the PCI address must look like 0000:3b:00.0")]
    PciAddress(String),
    /// Kernel rules for interface names.
    #[error(
        "device {0:?}: the interface name must have 1 to 15 characters without '/', ',', '=', ':' or blanks"
    )]
    Interface(String),
    /// A short plain name.
    #[error("device {0:?}: the ring name must have 1 to 16 letters, digits, '-' or '_'")]
    RingName(String),
    /// A comma separates the files.
    #[error("device {0:?} must be pcap:IN,OUT or pcap:IN,OUT,infinite, and infinite needs IN")]
    Pcap(String),
    /// Only `sink` may follow.
    #[error("device {0:?} must be null: or null:sink")]
    Null(String),
}

impl FromStr for DeviceSpec {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let whole = || text.to_owned();
        let (kind, rest) = text.split_once(':').ok_or_else(|| DeviceError::Kind(whole()))?;
        let interface =
            || if is_interface(rest) { Ok(rest.to_owned()) } else { Err(DeviceError::Interface(whole())) };
        match kind {
            "pci" if is_pci_address(rest) => Ok(Self::Pci(rest.to_ascii_lowercase())),
            "pci" => Err(DeviceError::PciAddress(whole())),
            "af_xdp" => interface().map(Self::AfXdp),
            "af_packet" => interface().map(Self::AfPacket),
            "tap" => interface().map(Self::Tap),
            "pcap" => pcap(rest).ok_or_else(|| DeviceError::Pcap(whole())),
            "ring" if is_ring_name(rest) => Ok(Self::Ring(rest.to_owned())),
            "ring" => Err(DeviceError::RingName(whole())),
            "null" if rest.is_empty() => Ok(Self::Null { receive: true }),
            "null" if rest == "sink" => Ok(Self::Null { receive: false }),
            "null" => Err(DeviceError::Null(whole())),
            _ => Err(DeviceError::Kind(whole())),
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(address) => write!(formatter, "pci:{address}"),
            Self::AfXdp(interface) => write!(formatter, "af_xdp:{interface}"),
            Self::AfPacket(interface) => write!(formatter, "af_packet:{interface}"),
            Self::Tap(name) => write!(formatter, "tap:{name}"),
            Self::Pcap { input, output, infinite } => {
                let file = |file: &Option<String>| file.clone().unwrap_or_default();
                let suffix = if *infinite { ",infinite" } else { "" };
                write!(formatter, "pcap:{},{}{suffix}", file(input), file(output))
            }
            Self::Ring(name) => write!(formatter, "ring:{name}"),
            Self::Null { receive } => formatter.write_str(if *receive { "null:" } else { "null:sink" }),
        }
    }
}

fn is_interface(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"/,=:".contains(&byte);
    // IFNAMSIZ is 16 with the NUL.
    !name.is_empty() && name.len() < 16 && name.bytes().all(plain) && name != "." && name != ".."
}

fn is_ring_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !name.is_empty() && name.len() <= 16 && name.bytes().all(plain)
}

/// `DDDD:BB:DD.F`, hexadecimal but for the function, which is 0 to 7.
fn is_pci_address(text: &str) -> bool {
    let hexadecimal =
        |part: &str, length| part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut parts = text.splitn(3, ':');
    let (Some(domain), Some(bus), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let Some((device, function)) = rest.split_once('.') else { return false };
    let function = matches!(function.as_bytes(), [b'0'..=b'7']);
    hexadecimal(domain, 4) && hexadecimal(bus, 2) && hexadecimal(device, 2) && function
}

fn pcap(rest: &str) -> Option<DeviceSpec> {
    let mut words = rest.split(',');
    let file = |word: &str| (!word.is_empty()).then(|| word.to_owned());
    let input = file(words.next()?);
    let output = file(words.next()?);
    let infinite = match words.next() {
        None => false,
        Some("infinite") if input.is_some() => true,
        Some(_) => return None,
    };
    words.next().is_none().then_some(DeviceSpec::Pcap { input, output, infinite })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_a_round_trip() {
        for text in [
            "pci:0000:3b:00.0",
            "af_xdp:eth1",
            "af_packet:eth1.100",
            "tap:weir0",
            "pcap:/tmp/in.pcap,/tmp/out.pcap",
            "pcap:in.pcap,,infinite",
            "pcap:,out.pcap",
            "pcap:,",
            "ring:loop",
            "null:",
            "null:sink",
        ] {
            assert_eq!(text.parse::<DeviceSpec>().map(|spec| spec.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn a_bad_device_is_named_in_the_error() {
        for text in [
            "eth1",
            "dpdk:eth1",
            "pci:3b:00.0",
            "pci:0000:3b:00.9",
            "af_xdp:",
            "af_xdp:a/b",
            "af_xdp:eth1,queue_count=2",
            "tap:sixteen-letters-",
            "pcap:only",
            "pcap:,out,infinite",
            "pcap:in,out,forever",
            "pcap:in,out,infinite,more",
            "ring:",
            "ring:a b",
            "null:drain",
        ] {
            let error = text.parse::<DeviceSpec>().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
