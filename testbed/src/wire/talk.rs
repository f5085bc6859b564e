//! What both ends of a connection say: bytes that a seed decides, so that the other end can tell what it must hear.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::kernel::patient;

/// Who ends first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Both at once.
    Together,
    /// The server speaks once it has heard all of the client, whose side is closed by then.
    ServerLast,
    /// The client speaks once it has heard all of the server.
    ClientLast,
}

/// What is said on a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Talk {
    /// Decides the bytes.
    pub(crate) seed: u64,
    /// Bytes of the client and of the server.
    pub(crate) bytes: [u64; 2],
    pub(crate) turn: Turn,
}

impl Talk {
    /// Whether a side (0 the client) waits for the other's end.
    pub(crate) fn waits(&self, side: usize) -> bool {
        matches!((self.turn, side), (Turn::ServerLast, 1) | (Turn::ClientLast, 0))
    }

    /// Bytes that a side says from a place on.
    pub(crate) fn say(&self, side: usize, at: u64, len: usize) -> Vec<u8> {
        (at..at + len as u64).map(|at| self.byte(side, at)).collect()
    }

    /// Whether those are the bytes that a side says from a place on.
    pub(crate) fn is_said(&self, side: usize, at: u64, bytes: &[u8]) -> bool {
        bytes.iter().zip(at..).all(|(&byte, at)| byte == self.byte(side, at))
    }

    fn byte(&self, side: usize, at: u64) -> u8 {
        let word = (self.seed * 2 + side as u64) << 40 | (at / 8);
        let mixed = (word ^ (word >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> (8 * (at % 8))) as u8
    }
}

/// The kernel's side of a talk, to its end.
pub(crate) fn exchange(mut stream: TcpStream, talk: &Talk, side: usize) -> Result<()> {
    patient(&stream)?;
    if talk.waits(side) {
        hear(&mut stream, talk, 1 - side)?;
        return speak(&mut stream, talk, side);
    }
    let mut other = stream.try_clone()?;
    std::thread::scope(|scope| {
        let speaker = scope.spawn(move || speak(&mut other, talk, side));
        let heard = hear(&mut stream, talk, 1 - side);
        let spoken = speaker.join().map_err(|_| anyhow!("the speaker panicked"))?;
        // a reset is told to one of them only; the other sees an end
        spoken.and(heard)
    })
}

fn speak(stream: &mut TcpStream, talk: &Talk, side: usize) -> Result<()> {
    let mut sent = 0;
    while sent < talk.bytes[side] {
        let bytes = talk.say(side, sent, (talk.bytes[side] - sent).min(30_000) as usize);
        stream.write_all(&bytes).with_context(|| format!("after {sent} bytes sent"))?;
        sent += bytes.len() as u64;
    }
    stream.shutdown(Shutdown::Write).context("could not close the sending side")
}

fn hear(stream: &mut TcpStream, talk: &Talk, side: usize) -> Result<()> {
    let (mut heard, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        let len = stream.read(&mut buffer).with_context(|| format!("after {heard} bytes received"))?;
        if len == 0 {
            break;
        }
        ensure!(
            talk.is_said(side, heard, &buffer[..len]),
            "wrong bytes between {heard} and {}",
            heard + len as u64
        );
        heard += len as u64;
    }
    ensure!(heard == talk.bytes[side], "{heard} bytes arrived, {} were sent", talk.bytes[side]);
    Ok(())
}
