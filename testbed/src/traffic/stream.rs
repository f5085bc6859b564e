//! Byte streams over the kernel's TCP: servers whose behaviour a test writes, and bytes that can be checked on the way.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

use crate::interrupt;
use crate::topology::namespace::Namespace;

/// How long one step of a stream may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The bytes repeat after a prime number, so that none lost or doubled in whole segments goes unseen.
const PERIOD: usize = 65_521;

/// A server: a thread per connection.
#[derive(Debug)]
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<BTreeMap<u64, TcpStream>>>,
    accepted: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `place` inside the namespace; `work` has each connection for itself.
    pub(crate) fn start(
        namespace: &Namespace,
        place: SocketAddr,
        work: impl Fn(TcpStream) + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener =
            namespace.run(|| TcpListener::bind(place))?.with_context(|| format!("bind {place}"))?;
        listener.set_nonblocking(true)?;
        let mut server =
            Self { stop: Arc::default(), open: Arc::default(), accepted: Arc::default(), thread: None };
        let (stop, open, accepted) =
            (Arc::clone(&server.stop), Arc::clone(&server.open), Arc::clone(&server.accepted));
        let work = Arc::new(work);
        let thread = std::thread::spawn(move || {
            let patience = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            while !stop.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    let _ = poll(&mut [PollFd::new(&listener.as_fd(), PollFlags::IN)], Some(&patience));
                    continue;
                };
                let number = accepted.fetch_add(1, Ordering::Relaxed);
                if stream.set_nonblocking(false).and_then(|()| patient(&stream)).is_err() {
                    continue;
                }
                if let Ok(copy) = stream.try_clone() {
                    open.lock().unwrap_or_else(PoisonError::into_inner).insert(number, copy);
                }
                let (work, open) = (Arc::clone(&work), Arc::clone(&open));
                std::thread::spawn(move || {
                    work(stream);
                    // the last handle: here the connection ends, in the way that the work chose
                    open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
                });
            }
        });
        server.thread = Some(thread);
        Ok(server)
    }

    /// Connections that came.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn patient(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)
}

/// A connection from the namespace.
pub(crate) fn connect(from: &Namespace, target: SocketAddr) -> Result<TcpStream> {
    let stream = from.run(|| TcpStream::connect_timeout(&target, PATIENCE))?;
    let stream = stream.with_context(|| format!("connect to {target}"))?;
    patient(&stream)?;
    Ok(stream)
}

/// The byte at a position of every stream of a test.
fn block() -> Vec<u8> {
    let mut random = crate::random::Random::new(0, "stream");
    (0..PERIOD).map(|_| random.next() as u8).collect()
}

/// Sends that many bytes of the pattern, from its beginning; `sent` follows.
pub(crate) fn send(stream: &TcpStream, bytes: u64, sent: &AtomicU64) -> std::io::Result<()> {
    let block = block();
    let mut done = 0u64;
    while done < bytes {
        let at = (done % PERIOD as u64) as usize;
        let end = PERIOD.min(at + (bytes - done).min(16_384) as usize);
        match (&mut &*stream).write(&block[at..end]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => done += count as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        sent.store(done, Ordering::Relaxed);
    }
    Ok(())
}

/// Receives until the peer ends its side, or `most` bytes; an error where they aren't the pattern.
pub(crate) fn receive(stream: &TcpStream, most: u64) -> Result<u64> {
    let block = block();
    let mut buffer = vec![0u8; 65_536];
    let mut done = 0u64;
    while done < most {
        interrupt::check()?;
        let room = buffer.len().min((most - done) as usize);
        let count = match (&mut &*stream).read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).with_context(|| format!("after {done} bytes")),
        };
        for (position, &byte) in buffer[..count].iter().enumerate() {
            let right = block[((done + position as u64) % PERIOD as u64) as usize];
            ensure!(byte == right, "byte {} is {byte}, {right} was sent", done + position as u64);
        }
        done += count as u64;
    }
    Ok(done)
}

/// One question of a word and its echo.
pub(crate) fn echo(stream: &TcpStream, word: &[u8]) -> Result<()> {
    (&mut &*stream).write_all(word).context("send a word")?;
    let mut answer = vec![0u8; word.len()];
    (&mut &*stream).read_exact(&mut answer).context("read its echo")?;
    ensure!(answer == word, "{word:02x?} came back as {answer:02x?}");
    Ok(())
}

/// Serves [`echo`] until the client ends its side.
pub(crate) fn serve_echo(stream: TcpStream) {
    let _ = stream.set_read_timeout(None);
    let mut buffer = vec![0u8; 4_096];
    while let Ok(count) = (&mut &stream).read(&mut buffer) {
        if count == 0 || (&mut &stream).write_all(&buffer[..count]).is_err() {
            break;
        }
    }
}

/// Ends the connection with a RST. Nobody else may hold it.
pub(crate) fn reset(stream: TcpStream) -> Result<()> {
    Ok(SockRef::from(&stream).set_linger(Some(Duration::ZERO))?)
}

/// How a connection ends within `patience`: what is still read counts as nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With a FIN.
    Finished,
    /// With a RST.
    Reset,
}

/// Waits for the end of a connection.
pub(crate) fn end_of(stream: &TcpStream, patience: Duration) -> Result<End> {
    let start = std::time::Instant::now();
    let mut buffer = vec![0u8; 65_536];
    loop {
        let left = patience.saturating_sub(start.elapsed());
        if left.is_zero() {
            bail!("the connection is still open after {patience:?}");
        }
        stream.set_read_timeout(Some(left))?;
        match (&mut &*stream).read(&mut buffer) {
            Ok(0) => return Ok(End::Finished),
            Ok(_) => {}
            Err(error) => match error.kind() {
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
                    return Ok(End::Reset);
                }
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                _ => return Err(error.into()),
            },
        }
    }
}
