//! How much of a body is to come, and how does it get from one connection to another? Pieces move, not their bytes; chunked bodies
//! are checked as they pass.

use weir_http::chunked::{Decoder, Kind, Pass, Trailers};
use weir_http::head;
use weir_tcp::Chunk;

use crate::connections::Connections;

/// What is to come of a body.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Body {
    /// Nothing.
    #[default]
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Decoder),
    /// All that comes until the end of the connection.
    UntilClose,
}

impl From<head::Body> for Body {
    fn from(body: head::Body) -> Self {
        match body {
            head::Body::None | head::Body::Length(0) => Self::None,
            head::Body::Length(length) => Self::Length(length),
            head::Body::Chunked => Self::Chunked(Decoder::new()),
            head::Body::UntilClose => Self::UntilClose,
        }
    }
}

impl Body {
    /// What of some bytes belongs to the body and goes on, and how much behind it doesn't; `None`: it is no chunked body.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Option<Pass> {
        let (pass, is_done) = match self {
            Self::None => (Pass::default(), true),
            Self::Length(left) => {
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= len as u64;
                (Pass { pass: len, skip: 0, data: len as u64 }, *left == 0)
            }
            Self::UntilClose => (Pass { pass: bytes.len(), skip: 0, data: bytes.len() as u64 }, false),
            Self::Chunked(decoder) => (decoder.pass(bytes, Trailers::Pass).ok()?, decoder.is_done()),
        };
        if is_done {
            *self = Self::None;
        }
        Some(pass)
    }

    /// Whether nothing is to come.
    #[inline]
    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::None)
    }
}

/// What becomes of a body's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// They go on as they came.
    Raw,
    /// Chunks are taken apart.
    Plain,
}

/// Why bytes no longer move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Halt {
    /// The body is over.
    Done,
    /// Nothing more is there.
    Starved,
    /// There is no room; it was asked for.
    Blocked,
    /// It is no chunked body.
    Malformed,
    /// The connection does not take it, or there is no memory.
    Refused,
}

/// What has moved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved {
    pub(crate) halt: Halt,
    /// Bytes of the body, framing not counted.
    pub(crate) data: u64,
}

/// Moves what is there of a body, as far as there is room and until `most` bytes wait at the target (a piece more may). Without a target
/// it is let go of.
#[inline]
pub(crate) fn pump<C: Connections>(
    connections: &mut C,
    from: C::Handle,
    to: Option<C::Handle>,
    most: u32,
    body: &mut Body,
    manner: Manner,
) -> Moved {
    let mut data = 0;
    let waiting = to.filter(|_| most < u32::MAX).map_or(0, |to| u64::from(connections.unsent(to)));
    let halt = loop {
        if body.is_done() {
            break Halt::Done;
        }
        if connections.receivable(from) == 0 {
            break Halt::Starved;
        }
        if let Some(to) = to
            && (connections.room(to) == 0 || waiting + data >= u64::from(most))
        {
            connections.await_room(to);
            break Halt::Blocked;
        }
        let step = match body {
            Body::None => break Halt::Done,
            Body::Length(left) => {
                let most = u32::try_from(*left).unwrap_or(u32::MAX);
                let Some(chunk) = connections.receive_part(from, most) else { break Halt::Starved };
                let len = u64::from(chunk.len);
                *left -= len.min(*left);
                if *left == 0 {
                    *body = Body::None;
                }
                pass(connections, to, chunk).then_some(len)
            }
            Body::UntilClose => {
                let Some(chunk) = connections.receive(from) else { break Halt::Starved };
                let len = u64::from(chunk.len);
                pass(connections, to, chunk).then_some(len)
            }
            Body::Chunked(decoder) => match chunks(connections, from, to, decoder, manner) {
                Ok(len) => {
                    if decoder.is_done() {
                        *body = Body::None;
                    }
                    Some(len)
                }
                Err(halt) => break halt,
            },
        };
        match step {
            Some(len) => data += len,
            None => break Halt::Refused,
        }
    };
    Moved { halt, data }
}

/// Hands a piece on; false where that can't be done.
#[inline]
fn pass<C: Connections>(connections: &mut C, to: Option<C::Handle>, chunk: Chunk<C::Buffer>) -> bool {
    to.is_none_or(|to| connections.send(to, chunk).is_ok())
}

/// Moves what is there of chunks in the first piece; the bytes of data among it. There must be room.
fn chunks<C: Connections>(
    connections: &mut C,
    from: C::Handle,
    to: Option<C::Handle>,
    decoder: &mut Decoder,
    manner: Manner,
) -> Result<u64, Halt> {
    let piece = connections.peek(from).ok_or(Halt::Starved)?;
    let (pass_len, skip_len, data) = match manner {
        Manner::Raw => {
            let passed = decoder.pass(piece, Trailers::Pass).map_err(|_| Halt::Malformed)?;
            (passed.pass, passed.skip, passed.data)
        }
        Manner::Plain => match decoder.next(piece).map_err(|_| Halt::Malformed)? {
            Some(run) if run.kind == Kind::Data => (run.len, 0, run.len as u64),
            Some(run) => (0, run.len, 0),
            None => (0, 0, 0),
        },
    };
    if pass_len > 0 {
        let chunk = connections.receive_part(from, pass_len as u32).ok_or(Halt::Starved)?;
        if !pass(connections, to, chunk) {
            return Err(Halt::Refused);
        }
    }
    if skip_len > 0 {
        connections.consume(from, skip_len as u32);
    }
    Ok(data)
}
