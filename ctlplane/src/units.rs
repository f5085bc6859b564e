//! How are durations, port ranges, addresses and CPU lists written?

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A duration: a whole number and its unit, `ms`, `s`, `m` or `h`. The error says what is expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("\"{text}\" is not a duration");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(expected()),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(expected)
}

/// A duration as [`parse_duration`] reads it.
pub fn format_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    match milliseconds {
        0 => "0s".to_owned(),
        m if m % 3_600_000 == 0 => format!("{}h", m / 3_600_000),
        m if m % 60_000 == 0 => format!("{}m", m / 60_000),
        m if m % 1_000 == 0 => format!("{}s", m / 1_000),
        m => format!("{m}ms"),
    }
}

/// A size in bytes: a whole number and its unit, `KiB`, `MiB` or `GiB`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let expected = || format!("\"{text}\" is not a size");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let bytes: u64 = match unit {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(expected()),
    };
    number.checked_mul(bytes).ok_or_else(expected)
}

/// A size as [`parse_size`] reads it, rounded down to what it can say.
pub fn format_size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{}GiB", b >> 30),
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{}MiB", b >> 20),
        b => format!("{}KiB", b >> 10),
    }
}

/// A size for people: three digits or so, in the largest unit that fits.
pub fn about_size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        b if b >= 1 << 40 => (1u64 << 40, "TiB"),
        b if b >= 1 << 30 => (1 << 30, "GiB"),
        b if b >= 1 << 20 => (1 << 20, "MiB"),
        _ => (1 << 10, "KiB"),
    };
    let (whole, tenths) = (bytes / unit, bytes % unit * 10 / unit);
    if whole >= 100 || tenths == 0 { format!("{whole} {name}") } else { format!("{whole}.{tenths} {name}") }
}

/// A share, `"1%"` or `"0.25%"`, in hundredths of a percent: 0 to 10,000.
pub fn parse_share(text: &str) -> Result<u16, String> {
    let expected = || format!("\"{text}\" is not a share");
    let number = text.strip_suffix('%').ok_or_else(expected)?;
    let (whole, parts) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(parts) || parts.len() > 2 {
        return Err(expected());
    }
    let whole: u32 = whole.parse().map_err(|_| expected())?;
    let part: u32 = format!("{parts:0<2}").parse().map_err(|_| expected())?;
    let share = whole.checked_mul(100).and_then(|share| share.checked_add(part)).ok_or_else(expected)?;
    match u16::try_from(share) {
        Ok(share) if share <= 10_000 => Ok(share),
        _ => Err(format!("\"{text}\" is more than 100%")),
    }
}

/// A share as [`parse_share`] reads it.
pub fn format_share(of_ten_thousand: u32) -> String {
    let (whole, part) = (of_ten_thousand / 100, of_ten_thousand % 100);
    match part {
        0 => format!("{whole}%"),
        part if part % 10 == 0 => format!("{whole}.{}%", part / 10),
        part => format!("{whole}.{part:02}%"),
    }
}

/// A rate, `"100/s"`, `"30/m"` or `"5/h"`, in thousandths per second.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let expected = || format!("\"{text}\" is not a rate");
    let (number, unit) = text.split_once('/').ok_or_else(expected)?;
    let number: u64 = number.parse().map_err(|_| expected())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return Err(expected()),
    };
    match number.checked_mul(1_000).map(|millis| millis / seconds) {
        Some(0) | None => Err(format!("\"{text}\" is too low or too high a rate")),
        Some(millis) => Ok(millis),
    }
}

/// `"80"` or `"8000-8099"`: first and last port, 1 to 65535.
pub fn parse_port_range(text: &str) -> Result<(u16, u16), String> {
    let wrong = || format!("\"{text}\" is not a port or a range of ports");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let first: u16 = first.trim().parse().map_err(|_| wrong())?;
    let last: u16 = last.trim().parse().map_err(|_| wrong())?;
    if first == 0 {
        return Err("port 0 cannot be used".to_owned());
    }
    if first > last {
        return Err(format!("the range {first}-{last} ends before it starts"));
    }
    Ok((first, last))
}

/// `"192.0.2.1/24"`: an address and a prefix length.
pub fn parse_prefixed(text: &str) -> Result<(IpAddr, u8), String> {
    let Some((address, length)) = text.split_once('/') else {
        return Err(format!("\"{text}\" has no prefix length"));
    };
    let address: IpAddr = address.parse().map_err(|_| format!("\"{address}\" is not an IP address"))?;
    let bits = family_bits(address);
    match length.parse::<u8>() {
        Ok(length) if length <= bits => Ok((address, length)),
        _ => Err(format!("\"/{length}\" is not a prefix length from 0 to {bits}")),
    }
}

/// A backend's address: `"ip"`, `"ip:port"` or `"[v6]:port"`; port 0 is "the client's".
pub fn parse_backend_address(text: &str) -> Result<(IpAddr, u16), String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((address, 0));
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'))
        && let Ok(address) = inner.parse::<std::net::Ipv6Addr>()
    {
        return Ok((address.into(), 0));
    }
    match text.parse::<SocketAddr>() {
        Ok(socket) if socket.port() == 0 => Err(format!("\"{text}\" has port 0")),
        Ok(socket) => Ok((socket.ip(), socket.port())),
        Err(_) => Err(format!("\"{text}\" is not an address")),
    }
}

/// An address and port as [`parse_backend_address`] reads it.
pub fn format_backend_address(address: IpAddr, port: u16) -> String {
    if port == 0 { address.to_string() } else { SocketAddr::new(address, port).to_string() }
}

/// `"1-3,5"`: CPU numbers in the order given, each once.
pub fn parse_cpu_list(text: &str) -> Result<Vec<u16>, String> {
    let wrong = || format!("\"{text}\" is not a list of CPUs");
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u16 = first.trim().parse().map_err(|_| wrong())?;
        let last: u16 = last.trim().parse().map_err(|_| wrong())?;
        if first > last || last == u16::MAX {
            return Err(wrong());
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return Err(format!("CPU {cpu} is listed twice"));
            }
            cpus.push(cpu);
        }
    }
    Ok(cpus)
}

/// Bits of an address of that family: 32 or 128.
pub fn family_bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// "IPv4" or "IPv6".
pub fn family_name(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The network of a prefix: host bits cleared.
pub fn network(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            std::net::Ipv4Addr::from(u32::from(v4) & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            std::net::Ipv6Addr::from(u128::from(v6) & mask).into()
        }
    }
}

/// Whether the prefix covers the address; never across families.
pub fn covers(prefix: IpAddr, length: u8, address: IpAddr) -> bool {
    prefix.is_ipv4() == address.is_ipv4() && network(prefix, length) == network(address, length)
}

/// A time as people say it: `5s`, `3m`, `2h`, `4d`.
pub fn about_time(milliseconds: u64) -> String {
    match milliseconds / 1_000 {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7_200 => format!("{}m", seconds / 60),
        seconds @ 7_200..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_trip_and_refuse_the_rest() {
        for text in ["250ms", "2s", "5m", "1h", "90s"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        for text in
            ["", "5", "s", "1.5s", "-1s", "5 s", "5d", "99999999999999999999h", "18446744073709551615h"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_round_trip_and_refuse_the_rest() {
        for text in ["4KiB", "1MiB", "1025KiB", "3GiB", "0KiB"] {
            assert_eq!(format_size(parse_size(text).unwrap()), text);
        }
        assert_eq!(parse_size("2048MiB"), Ok(2 << 30));
        for text in ["", "5", "MiB", "1.5MiB", "1 MiB", "1MB", "1mib", "17179869184GiB", "-1KiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_for_people_are_short() {
        for (bytes, text) in [
            (0, "0 KiB"),
            (1_023 << 10, "1023 KiB"),
            (18_872_064, "17.9 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16777215 TiB"),
        ] {
            assert_eq!(about_size(bytes), text);
        }
    }

    #[test]
    fn shares_and_rates() {
        for text in ["0%", "1%", "0.25%", "12.5%", "100%"] {
            assert_eq!(format_share(parse_share(text).unwrap().into()), text);
        }
        for text in ["", "1", "%", "101%", "1.%", ".5%", "0.001%", "-1%", "100.01%", "99999999999%"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
        assert_eq!(parse_rate("100/s"), Ok(100_000));
        assert_eq!(parse_rate("30/m"), Ok(500));
        for text in ["", "100", "/s", "0/s", "1.5/s", "100/d", "3/h", "99999999999999999999/s"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_lists_and_addresses() {
        assert_eq!(parse_port_range("8000-8099"), Ok((8000, 8099)));
        assert_eq!(parse_port_range("80"), Ok((80, 80)));
        for text in ["0", "0-5", "9-8", "65536", "a", "1-2-3", ""] {
            assert!(parse_port_range(text).is_err(), "{text}");
        }
        assert_eq!(parse_cpu_list("1-3,5"), Ok(vec![1, 2, 3, 5]));
        for text in ["", "1,1", "3-1", "65535", "a"] {
            assert!(parse_cpu_list(text).is_err(), "{text}");
        }
        for text in ["198.18.1.1:80", "198.18.1.1", "[2001:db8::1]:80", "2001:db8::1"] {
            let (address, port) = parse_backend_address(text).unwrap();
            assert_eq!(format_backend_address(address, port), text);
        }
        for text in ["198.18.1.1:0", "host:80", "", "2001:db8::1:x"] {
            assert!(parse_backend_address(text).is_err(), "{text}");
        }
        assert!(covers([198, 18, 0, 254].into(), 24, [198, 18, 0, 9].into()));
        assert!(covers([0, 0, 0, 0].into(), 0, [198, 18, 0, 9].into()));
        assert!(!covers([198, 18, 0, 254].into(), 24, [198, 18, 1, 9].into()));
    }
}
