//! Where does a chunked body end (RFC 9112 §7.1), and what of it may go on?
//!
//! The decoder is fed what comes, in pieces of any size, and says of each run of bytes what it is. Framing and data may go on as they came:
//! chunk sizes are at most 16 hexadecimal digits without sign, prefix or white space, every line ends in CR LF. Extensions are read and
//! dropped: nobody uses them but to be misunderstood, and none may come twice behind a proxy. Trailers are checked like
//! fields of a head; those that frame, route or authenticate are refused.
//!
//! What is passed on before an error shows is the beginning of a message that never ends: the caller ends the connection.

#[cfg(test)]
mod tests;

use crate::name::{Known, class, class_of};

/// Hexadecimal digits that a chunk's size may have, leading zeros included.
const MAX_DIGITS: u8 = 16;
/// A chunk's size is below this: lengths fit signed numbers of 64 bits, wherever they are added.
const MAX_SIZE: u64 = 1 << 60;
/// Bytes of extensions that one message may have.
const MAX_EXTENSIONS: u16 = 4096;
/// Bytes that trailers may have.
const MAX_TRAILERS: u16 = 8192;
/// Trailer fields that a message may have.
const MAX_TRAILER_FIELDS: u8 = 64;
/// Bytes of a trailer's name that are remembered; those of all known fields have fewer.
const NAME: usize = 24;

/// Why a chunked body was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ChunkError {
    /// Nothing, a sign, `0x`, white space …
    #[error("a chunk's size isn't hexadecimal digits")]
    Size,
    /// More digits, or 2^60 and more.
    #[error("a chunk's size is too large")]
    TooLarge,
    /// Control characters, or too many bytes of them.
    #[error("a chunk's extension is malformed or too long")]
    Extension,
    /// LF without CR, or CR without LF.
    #[error("a line of the framing doesn't end in CR LF")]
    LineEnd,
    /// More data than the size said, or less.
    #[error("a chunk's data doesn't end where its size says")]
    DataEnd,
    /// Malformed, folded, or with a control character.
    #[error("a trailer is malformed")]
    Trailer,
    /// Framing, routing, authentication (RFC 9110 §6.5.1).
    #[error("a field that must not come as a trailer")]
    TrailerForbidden,
    /// More bytes or fields than the limit.
    #[error("the trailers are too large")]
    TrailersTooLarge,
}

/// What a run of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Chunk sizes and line ends.
    Framing,
    /// Data.
    Data,
    /// An extension, without its line's end.
    Extension,
    /// Trailer fields, without the empty line behind them.
    Trailer,
}

/// A run of bytes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// What they are.
    pub kind: Kind,
    /// How many.
    pub len: usize,
}

/// What becomes of trailers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trailers {
    /// They go on.
    Pass,
    /// They don't.
    Drop,
}

/// What may go on of a piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// So many bytes, as they are.
    pub pass: usize,
    /// The next so many don't. More may follow, which may go on again.
    pub skip: usize,
    /// Bytes of data among those that go on.
    pub data: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At a digit of a size.
    Size,
    /// In an extension.
    Extension,
    /// At the LF behind a size.
    SizeLf,
    /// In data.
    Data,
    /// At the CR behind data.
    DataCr,
    /// At the LF behind data.
    DataLf,
    /// At the first byte of a trailer, or of the empty line.
    TrailerStart,
    /// In a trailer's name.
    TrailerName,
    /// In a trailer's value.
    TrailerValue,
    /// At the LF behind a trailer.
    TrailerLf,
    /// At the LF of the empty line.
    EndLf,
    /// Behind it all.
    Done,
}

/// Reads a chunked body.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    state: State,
    /// Digits of the size that is being read.
    digits: u8,
    trailer_fields: u8,
    name_length: u8,
    extensions: u16,
    trailers: u16,
    /// The size that is being read, then the data that is left of it.
    size: u64,
    name: [u8; NAME],
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// At the beginning of a body.
    pub const fn new() -> Self {
        Self {
            state: State::Size,
            digits: 0,
            trailer_fields: 0,
            name_length: 0,
            extensions: 0,
            trailers: 0,
            size: 0,
            name: [0; NAME],
        }
    }

    /// Whether the body is over; what comes then belongs to the next message.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes of data that are left of the chunk that is being read; they need no look.
    #[inline]
    pub fn data_left(&self) -> u64 {
        if self.state == State::Data { self.size } else { 0 }
    }

    /// What comes first; `None`: nothing is there, or the body is over.
    #[inline]
    pub fn next(&mut self, bytes: &[u8]) -> Result<Option<Run>, ChunkError> {
        if bytes.is_empty() || self.is_done() {
            return Ok(None);
        }
        if self.state == State::Data {
            let len = usize::try_from(self.size).unwrap_or(usize::MAX).min(bytes.len());
            self.size -= len as u64;
            if self.size == 0 {
                self.state = State::DataCr;
            }
            return Ok(Some(Run { kind: Kind::Data, len }));
        }
        let kind = self.kind(bytes.first().copied().unwrap_or_default());
        let mut len = 0;
        for &byte in bytes {
            if matches!(self.state, State::Data | State::Done) || self.kind(byte) != kind {
                break;
            }
            self.step(byte)?;
            len += 1;
        }
        Ok(Some(Run { kind, len }))
    }

    /// What may go on of these bytes: call it with the rest until nothing is left or [`Self::is_done`].
    #[inline]
    pub fn pass(&mut self, bytes: &[u8], trailers: Trailers) -> Result<Pass, ChunkError> {
        let mut passed = Pass::default();
        let mut rest = bytes;
        while let Some(run) = self.next(rest)? {
            let goes = match run.kind {
                Kind::Framing | Kind::Data => true,
                Kind::Extension => false,
                Kind::Trailer => trailers == Trailers::Pass,
            };
            if !goes {
                passed.skip = run.len;
                break;
            }
            passed.pass += run.len;
            if run.kind == Kind::Data {
                passed.data += run.len as u64;
            }
            rest = rest.get(run.len..).unwrap_or_default();
        }
        Ok(passed)
    }

    /// What the next byte is.
    fn kind(&self, byte: u8) -> Kind {
        match self.state {
            State::Data => Kind::Data,
            State::Size if byte == b';' => Kind::Extension,
            State::Extension if byte != b'\r' => Kind::Extension,
            State::TrailerStart if byte != b'\r' => Kind::Trailer,
            State::TrailerName | State::TrailerValue | State::TrailerLf => Kind::Trailer,
            _ => Kind::Framing,
        }
    }

    /// Takes one byte that isn't data.
    fn step(&mut self, byte: u8) -> Result<(), ChunkError> {
        self.state = match (self.state, byte) {
            (State::Size, b';' | b'\r') if self.digits == 0 => return Err(ChunkError::Size),
            (State::Size | State::Extension, b'\r') => State::SizeLf,
            (State::Size | State::Extension | State::TrailerStart | State::TrailerValue, b'\n') => {
                return Err(ChunkError::LineEnd);
            }
            (State::Size, b';') => self.extension()?,
            (State::Size, _) => self.digit(byte)?,
            (State::Extension, b'\t' | b' '..=b'~') => self.extension()?,
            (State::Extension, _) => return Err(ChunkError::Extension),
            (State::SizeLf, b'\n') if self.size == 0 => State::TrailerStart,
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.digits = 0;
                State::Size
            }
            (State::DataCr | State::DataLf, _) => return Err(ChunkError::DataEnd),
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart | State::TrailerName, _) => self.trailer_name(byte)?,
            (State::TrailerValue, b'\r') => self.trailer(State::TrailerLf)?,
            (State::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => self.trailer(State::TrailerValue)?,
            (State::TrailerValue, _) => return Err(ChunkError::Trailer),
            (State::TrailerLf, b'\n') => self.trailer(State::TrailerStart)?,
            (State::EndLf, b'\n') => State::Done,
            (State::SizeLf | State::TrailerLf | State::EndLf, _) => return Err(ChunkError::LineEnd),
            (State::Data | State::Done, _) => self.state,
        };
        Ok(())
    }

    fn digit(&mut self, byte: u8) -> Result<State, ChunkError> {
        let digit = crate::target::hex(&byte).ok_or(ChunkError::Size)?;
        if self.digits == 0 {
            self.size = 0;
        }
        self.digits += 1;
        self.size = self.size << 4 | u64::from(digit);
        if self.digits > MAX_DIGITS || self.size >= MAX_SIZE {
            return Err(ChunkError::TooLarge);
        }
        Ok(State::Size)
    }

    fn extension(&mut self) -> Result<State, ChunkError> {
        self.extensions += 1;
        if self.extensions > MAX_EXTENSIONS { Err(ChunkError::Extension) } else { Ok(State::Extension) }
    }

    /// Counts a byte of a trailer.
    fn trailer(&mut self, next: State) -> Result<State, ChunkError> {
        self.trailers += 1;
        if self.trailers > MAX_TRAILERS { Err(ChunkError::TrailersTooLarge) } else { Ok(next) }
    }

    fn trailer_name(&mut self, byte: u8) -> Result<State, ChunkError> {
        if self.state == State::TrailerStart {
            self.name_length = 0;
            self.trailer_fields += 1;
            if self.trailer_fields > MAX_TRAILER_FIELDS {
                return Err(ChunkError::TrailersTooLarge);
            }
        }
        if byte == b':' && self.name_length > 0 {
            // A longer name is that of no known field.
            let name = self.name.get(..self.name_length as usize);
            if name.is_some_and(|name| Known::of(name).is_forbidden_in_trailers()) {
                return Err(ChunkError::TrailerForbidden);
            }
            return self.trailer(State::TrailerValue);
        }
        if class_of(byte) & class::TOKEN == 0 {
            return Err(ChunkError::Trailer);
        }
        if let Some(place) = self.name.get_mut(self.name_length as usize) {
            // As gateways read it.
            *place = if byte == b'_' { b'-' } else { byte };
        }
        self.name_length = self.name_length.saturating_add(1);
        self.trailer(State::TrailerName)
    }
}
