//! What does `Connection` say? RFC 9110 §7.6.1.

use super::{Fields, Refusal};
use crate::framing::elements;
use crate::name::{Known, is_token};

/// Options of all `Connection` fields together that are read; more are refused, because each is compared with each field.
const MAX_OPTIONS: usize = 32;

/// Fields that the proxy writes itself; whether they go on isn't for their sender to say.
const OURS: u64 = Known::Via.bit()
    | Known::Forwarded.bit()
    | Known::XForwardedFor.bit()
    | Known::XForwardedProto.bit()
    | Known::XForwardedHost.bit()
    | Known::XForwardedPort.bit();

/// What the sender wants of its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// `close`.
    pub close: bool,
    /// `keep-alive`.
    pub keep_alive: bool,
    /// `upgrade`.
    pub upgrade: bool,
    /// `te`.
    pub te: bool,
}

impl Connection {
    /// Reads the options and marks the fields that they name. A request that names fields that frame or route it is refused; of a
    /// response such options are ignored, as are those of fields that the proxy writes itself.
    pub(super) fn read(fields: &mut Fields, head: &[u8], is_request: bool) -> Result<Self, Refusal> {
        let mut connection = Self::default();
        if !fields.is_repeated(Known::Connection) {
            match fields.value(Known::Connection, head) {
                b"keep-alive" => return Ok(Self { keep_alive: true, ..connection }),
                b"close" => return Ok(Self { close: true, ..connection }),
                _ => {}
            }
        }
        let mut options = 0;
        let mut at = 0;
        while let Some(field) = fields.iter().nth(at).copied() {
            at += 1;
            if field.known != Known::Connection {
                continue;
            }
            for option in elements(field.value.of(head)) {
                options += 1;
                if options > MAX_OPTIONS || !is_token(option) {
                    return Err(Refusal::Connection);
                }
                connection.note(fields, head, option, is_request)?;
            }
        }
        Ok(connection)
    }

    fn note(
        &mut self,
        fields: &mut Fields,
        head: &[u8],
        option: &[u8],
        is_request: bool,
    ) -> Result<(), Refusal> {
        match option {
            _ if option.eq_ignore_ascii_case(b"close") => self.close = true,
            _ if option.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
            _ if option.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
            _ if option.eq_ignore_ascii_case(b"te") => self.te = true,
            _ => match Known::of(option) {
                Known::Host | Known::ContentLength | Known::TransferEncoding if is_request => {
                    return Err(Refusal::Connection);
                }
                known if OURS & known.bit() == 0 && !known.is_structural() => fields.mark_hop(head, option),
                _ => {}
            },
        }
        Ok(())
    }
}
