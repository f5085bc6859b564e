//! What is known of a connection to a backend?

use weir_http::head::Method;
use weir_tcp::wheel::NONE;

use super::body::Body;
use super::client::NOBODY;
use super::outbox::Outbox;
use super::slab::{Queue, Slab};

/// How far a connection to a backend has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// A SYN is on its way.
    Connecting,
    /// It has an exchange.
    Active,
    /// It waits for one.
    Idle,
    /// It has the copy of a request, whose response is discarded.
    Mirror,
}

/// A connection to a backend.
#[derive(Debug)]
pub(crate) struct Upstream<H> {
    pub(crate) handle: H,
    pub(crate) stage: Stage,
    /// The client whose exchange it has; [`NOBODY`].
    pub(crate) client: u32,
    pub(crate) backend: u32,
    pub(crate) pool: u32,
    /// The backend's port: one without a port of its own is asked on the vip's.
    pub(crate) port: u16,
    /// It began with a PROXY header, which is true for one client only.
    pub(crate) is_bound: bool,
    /// It is not used again.
    pub(crate) closes: bool,
    /// The backend has sent its FIN.
    pub(crate) is_finished: bool,
    /// Requests so far.
    pub(crate) requests: u32,
    /// Ticks.
    pub(crate) opened_at: u32,
    pub(crate) due: u32,
    /// Bytes for the backend that wait for room.
    pub(crate) outbox: Outbox,
    /// Of a mirror: its request's method, whether its response's head was there, and what is to come of the body.
    pub(crate) mirrored: Method,
    pub(crate) has_head: bool,
    pub(crate) response: Body,
    /// Whether the backend has answered the SYN; not told of those that an exchange waits for.
    pub(crate) is_open: bool,
}

impl<H> Upstream<H> {
    pub(crate) fn new(handle: H, backend: u32, pool: u32, port: u16, client: u32, now: u32) -> Self {
        Self {
            handle,
            stage: Stage::Connecting,
            client,
            backend,
            pool,
            port,
            is_bound: false,
            closes: false,
            is_finished: false,
            requests: 0,
            opened_at: now,
            due: now,
            outbox: Outbox::default(),
            mirrored: Method::Get,
            has_head: false,
            response: Body::None,
            is_open: true,
        }
    }
}

/// Idle connections of a worker that are looked at for one that serves the wanted port and pool.
const LOOK: usize = 8;

/// Idle connections, by backend, the one that was used last first.
#[derive(Debug, Default)]
pub(crate) struct Idle(Vec<Queue>);

impl Idle {
    fn of(&mut self, backend: u32) -> Option<&mut Queue> {
        let at = backend as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, Queue::default());
        }
        self.0.get_mut(at)
    }

    /// How many a backend has.
    #[inline]
    pub(crate) fn len(&self, backend: u32) -> u32 {
        self.0.get(backend as usize).map_or(0, |queue| queue.len)
    }

    /// Puts one first.
    #[inline]
    pub(crate) fn push<H>(&mut self, upstreams: &mut Slab<Upstream<H>>, backend: u32, slot: u32) {
        if let Some(queue) = self.of(backend) {
            queue.push_front(upstreams, slot);
        }
    }

    /// Takes one out.
    #[inline]
    pub(crate) fn remove<H>(&mut self, upstreams: &mut Slab<Upstream<H>>, backend: u32, slot: u32) -> bool {
        self.0.get_mut(backend as usize).is_some_and(|queue| queue.remove(upstreams, slot))
    }

    /// The one of a pool and port that was used last.
    #[inline]
    pub(crate) fn find<H>(
        &self,
        upstreams: &Slab<Upstream<H>>,
        backend: u32,
        pool: u32,
        port: u16,
    ) -> Option<u32> {
        let mut at = self.0.get(backend as usize)?.head;
        for _ in 0..LOOK {
            let upstream = upstreams.at(at)?;
            if upstream.pool == pool && upstream.port == port {
                return Some(at);
            }
            at = Queue::next(upstreams, at);
        }
        None
    }

    /// The one that was used least recently.
    pub(crate) fn oldest(&self, backend: u32) -> Option<u32> {
        self.0.get(backend as usize).map(|queue| queue.tail).filter(|slot| *slot != NONE)
    }
}

const _: () = assert!(NOBODY == NONE);
