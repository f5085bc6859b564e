//! Which interface of the kernel carries what is addressed to a port itself? `exception` of `[[port]]`.

use weir_abi::record::INTERFACE_NAME_LIMIT;

use super::Port;
use crate::diagnostic::Located;
use crate::reader::TableReader;

/// What default names start with.
const PREFIX: &str = "weir-";
/// Drivers whose ports have one by default: elsewhere the kernel sees the port's frames already (`af_packet`), or there is
/// no network.
const BY_DEFAULT: [&str; 3] = ["pci", "af_xdp", "tap"];

/// `None` inside is `"off"`.
pub(super) fn read(table: &mut TableReader<'_, '_>) -> Option<Located<Option<String>>> {
    table.parsed("exception", "the name of an interface to be made, or \"off\"", |text| {
        if text == "off" {
            return Ok(None);
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if text.len() > INTERFACE_NAME_LIMIT {
            Err(format!("\"{text}\": an interface name has at most {INTERFACE_NAME_LIMIT} bytes"))
        } else if text.is_empty() || !text.bytes().all(plain) || text.starts_with('.') {
            Err(format!("\"{text}\" cannot be the name of an interface"))
        } else {
            Ok(Some(text.to_owned()))
        }
    })
}

/// The interface of a port, the default one included.
pub(crate) fn name(port: &Port) -> Option<String> {
    if let Some(exception) = &port.exception {
        return exception.value.clone();
    }
    let driver = port.device.as_ref()?.value.split(':').next()?;
    BY_DEFAULT.contains(&driver).then_some(())?;
    let name = format!("{PREFIX}{}", port.name.as_ref()?.value);
    // names are ASCII
    Some(name.chars().take(INTERFACE_NAME_LIMIT).collect())
}
