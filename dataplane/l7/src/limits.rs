//! May one more connection begin? Limits per listener and per backend hold for the node, though workers share nothing.
//!
//! A limit of N is N tokens. The management thread keeps them in a [`Ledger`]; a worker holds some of them on lease
//! ([`Leases`]) and needs one for each connection, so that it asks nobody for most connections. Messages go over rings, in
//! order; neither side waits for the other.
//!
//! ```text
//! worker                                    ledger
//!   used up (or nearly)  ── Request(n) ──▶  tokens left: Grant(≤ n)
//!                                           none left:   Recall to whoever may have some to spare, then Grant(what came)
//!   surplus, or recalled ── Return(n)  ──▶  … goes to who waits, in turn; Grant(0) tells that there is none: it will come
//! ```
//!
//! **Bound.** Tokens in workers' hands, on the way and in the ledger are N, and a connection needs a token: there are
//! never more than N connections of a limit, without overshoot. Only a limit that is lowered or introduced while more
//! connections exist is exceeded, by those: none begins until their number is below the limit but for tokens
//! that workers held unused, which they give back as soon as they hear of it.
//!
//! **Sharing.** Requests double while they come often and grants shrink as tokens run out, so that a burst on one worker
//! doesn't starve another; once tokens are short, workers return each when its connection ends.

use std::collections::{HashMap, VecDeque};

/// What has a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// Client connections of a listener.
    Listener(u16),
    /// Upstream connections to a backend.
    Backend(u32),
}

/// From a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToLedger {
    /// Asks for up to so many tokens; answered by one or more grants.
    Request {
        /// Of what.
        key: Key,
        /// How many, at least 1.
        wanted: u32,
    },
    /// Gives tokens back, perhaps none, where it was recalled.
    Return {
        /// Of what.
        key: Key,
        /// How many.
        count: u32,
    },
}

/// From the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToWorker {
    /// The worker has so many tokens more.
    Grant {
        /// Of what.
        key: Key,
        /// How many; 0: there is none now, the request stands.
        count: u32,
        /// Others wait: what isn't used shall come back at once.
        is_scarce: bool,
    },
    /// What isn't used shall come back, now and when connections end.
    Recall {
        /// Of what.
        key: Key,
    },
}

/// Whether a connection may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// It may, and counts.
    Yes,
    /// The ledger was asked, and has not answered.
    Pending,
    /// The limit is reached; a grant follows once it no longer is.
    Exhausted,
}

/// Most tokens that are asked for at once.
const MAX_CHUNK: u32 = 256;

/// What a worker holds of one limit.
#[derive(Clone, Copy, Debug, Default)]
struct Lease {
    is_limited: bool,
    /// Connections, limited or not.
    used: u32,
    /// Tokens, used ones included.
    held: u32,
    /// Tokens to ask for next.
    chunk: u32,
    /// Tokens to give back.
    owed: u32,
    wants: bool,
    /// A request stands without any answer.
    is_asking: bool,
    /// The answer was that there is none.
    is_denied: bool,
    /// Nothing unused is kept.
    is_tight: bool,
    /// A recall has to be answered.
    is_recalled: bool,
    /// In the list of those with a message.
    is_listed: bool,
}

impl Lease {
    /// Tokens that no connection needs.
    fn surplus(&self) -> u32 {
        self.held.saturating_sub(self.used)
    }

    /// Decides what to give back.
    fn trim(&mut self) {
        let given = if !self.is_limited {
            self.held
        } else if self.is_tight {
            self.surplus()
        } else {
            // without slack a connection that ends and one that begins would be two messages
            let keep = self.chunk.max(1);
            if self.surplus() > 2 * keep { self.surplus() - keep } else { 0 }
        };
        if given > 0 {
            self.held -= given;
            self.owed += given;
            self.chunk /= 2;
        }
    }

    fn has_message(&self) -> bool {
        self.owed > 0 || self.is_recalled || (self.wants && !self.is_asking && !self.is_denied)
    }
}

/// What a worker holds of all limits.
#[derive(Debug, Default)]
pub struct Leases {
    listeners: Vec<Lease>,
    backends: Vec<Lease>,
    /// Those that may have a message.
    listed: VecDeque<Key>,
}

impl Leases {
    fn lease(&mut self, key: Key) -> Option<&mut Lease> {
        let (list, at) = match key {
            Key::Listener(index) => (&mut self.listeners, usize::from(index)),
            Key::Backend(index) => (&mut self.backends, index as usize),
        };
        if list.len() <= at {
            list.resize(at + 1, Lease::default());
        }
        list.get_mut(at)
    }

    /// The lease of a key that was ever asked for.
    fn held(&self, key: Key) -> Option<&Lease> {
        match key {
            Key::Listener(index) => self.listeners.get(usize::from(index)),
            Key::Backend(index) => self.backends.get(index as usize),
        }
    }

    /// Changes a lease and remembers it where that leaves a message.
    fn change<T>(&mut self, key: Key, change: impl FnOnce(&mut Lease) -> T) -> Option<T> {
        let lease = self.lease(key)?;
        let outcome = change(lease);
        if lease.has_message() && !lease.is_listed {
            lease.is_listed = true;
            self.listed.push_back(key);
        }
        Some(outcome)
    }

    /// Whether there is a limit, as the generation has it.
    pub fn set_limited(&mut self, key: Key, is_limited: bool) {
        self.change(key, |lease| {
            if lease.is_limited != is_limited {
                lease.is_limited = is_limited;
                lease.wants = false;
                lease.trim();
            }
        });
    }

    /// Begins a connection, if it may.
    pub fn acquire(&mut self, key: Key) -> Acquired {
        self.ask(key, 1)
    }

    /// Whether a connection may begin; the ledger is asked where it may not yet.
    pub fn probe(&mut self, key: Key) -> Acquired {
        self.ask(key, 0)
    }

    fn ask(&mut self, key: Key, takes: u32) -> Acquired {
        let acquired = self.change(key, |lease| {
            if !lease.is_limited {
                lease.used += takes;
                return Acquired::Yes;
            }
            let surplus = lease.surplus();
            // asks before the last is gone, so that the next connection needn't wait
            lease.wants |= surplus <= lease.chunk / 4;
            if surplus > 0 {
                lease.used += takes;
                Acquired::Yes
            } else if lease.is_denied {
                Acquired::Exhausted
            } else {
                Acquired::Pending
            }
        });
        acquired.unwrap_or(Acquired::Exhausted)
    }

    /// A connection has ended.
    pub fn release(&mut self, key: Key) {
        self.change(key, |lease| {
            lease.used = lease.used.saturating_sub(1);
            lease.trim();
        });
    }

    /// Whether others wait for tokens: a connection that is not needed now should end.
    pub fn is_tight(&self, key: Key) -> bool {
        self.held(key).is_some_and(|lease| lease.is_limited && lease.is_tight)
    }

    /// Connections.
    pub fn used(&self, key: Key) -> u32 {
        self.held(key).map_or(0, |lease| lease.used)
    }

    /// Takes the ledger's message. Whoever waits for the key should try again, then [`Leases::settle`] follows.
    pub fn receive(&mut self, message: ToWorker) -> Key {
        match message {
            ToWorker::Grant { key, count, is_scarce } => {
                self.change(key, |lease| {
                    lease.is_asking = false;
                    lease.is_denied = count == 0;
                    lease.is_tight = is_scarce;
                    lease.held += count;
                    if count > 0 {
                        lease.wants = false;
                        lease.chunk = (lease.chunk * 2).clamp(1, MAX_CHUNK);
                    }
                });
                key
            }
            ToWorker::Recall { key } => {
                self.change(key, |lease| {
                    lease.is_tight = true;
                    lease.is_recalled = true;
                    lease.trim();
                });
                key
            }
        }
    }

    /// Gives back what a grant brought and nobody took.
    pub fn settle(&mut self, key: Key) {
        self.change(key, Lease::trim);
    }

    /// The next message to the ledger; call it only where the ring has room.
    pub fn poll(&mut self) -> Option<ToLedger> {
        loop {
            let key = *self.listed.front()?;
            let lease = self.lease(key)?;
            if lease.owed > 0 || lease.is_recalled {
                let count = std::mem::take(&mut lease.owed);
                lease.is_recalled = false;
                return Some(ToLedger::Return { key, count });
            }
            if lease.has_message() {
                lease.wants = false;
                lease.is_asking = true;
                let missing = lease.used.saturating_sub(lease.held);
                return Some(ToLedger::Request { key, wanted: lease.chunk.max(1) + missing });
            }
            lease.is_listed = false;
            self.listed.pop_front();
        }
    }
}

/// What one worker has of one limit, as the ledger knows.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    granted: u32,
    /// Tokens that it waits for; 0: it doesn't.
    wanted: u32,
    /// Its request has had no answer.
    is_unanswered: bool,
    /// It keeps nothing unused.
    is_tight: bool,
    /// A recall has had no answer.
    is_recalled: bool,
}

/// One limit.
#[derive(Debug)]
struct Account {
    /// 0: none.
    limit: u32,
    granted: u64,
    shares: Vec<Share>,
    /// Whose turn it is to be served.
    turn: usize,
}

/// All limits of the node; the management thread's.
#[derive(Debug)]
pub struct Ledger {
    accounts: HashMap<Key, Account>,
    /// Messages by worker: for each key at most a grant and a recall.
    outgoing: Vec<VecDeque<ToWorker>>,
}

impl Ledger {
    /// A ledger for so many workers, without limits.
    pub fn new(workers: usize) -> Self {
        Self { accounts: HashMap::new(), outgoing: vec![VecDeque::new(); workers] }
    }

    fn account(&mut self, key: Key) -> &mut Account {
        let workers = self.outgoing.len();
        self.accounts.entry(key).or_insert_with(|| Account {
            limit: 0,
            granted: 0,
            shares: vec![Share::default(); workers],
            turn: 0,
        })
    }

    /// Sets a limit; 0 takes it away. Workers are told of a limit by their generation.
    pub fn set_limit(&mut self, key: Key, limit: u32) {
        let account = self.account(key);
        account.limit = limit;
        if limit != 0 && account.granted > u64::from(limit) {
            self.recall(key, None);
        }
        self.serve(key);
    }

    /// The limits that there are.
    pub fn limits(&self) -> impl Iterator<Item = (Key, u32)> {
        self.accounts
            .iter()
            .filter(|(_, account)| account.limit != 0)
            .map(|(key, account)| (*key, account.limit))
    }

    /// Tokens in workers' hands.
    pub fn granted(&self, key: Key) -> u64 {
        self.accounts.get(&key).map_or(0, |account| account.granted)
    }

    /// Takes a worker's message.
    pub fn receive(&mut self, worker: usize, message: ToLedger) {
        let key = match message {
            ToLedger::Request { key, .. } | ToLedger::Return { key, .. } => key,
        };
        let account = self.account(key);
        let Some(share) = account.shares.get_mut(worker) else { return };
        match message {
            ToLedger::Request { wanted, .. } => {
                share.wanted = wanted.max(1);
                share.is_unanswered = true;
            }
            ToLedger::Return { count, .. } => {
                let count = count.min(share.granted);
                share.granted -= count;
                share.is_recalled = false;
                account.granted -= u64::from(count);
            }
        }
        self.serve(key);
    }

    /// A worker is no more, nor its connections: its tokens are free. Nothing that it has sent may be received after this.
    pub fn end(&mut self, worker: usize) {
        if let Some(outgoing) = self.outgoing.get_mut(worker) {
            outgoing.clear();
        }
        let keys: Vec<Key> = self.accounts.keys().copied().collect();
        for key in keys {
            let account = self.account(key);
            if let Some(share) = account.shares.get_mut(worker) {
                account.granted -= u64::from(share.granted);
                *share = Share::default();
            }
            self.serve(key);
        }
    }

    /// The next message to a worker.
    pub fn poll(&mut self, worker: usize) -> Option<ToWorker> {
        self.outgoing.get_mut(worker)?.pop_front()
    }

    /// Puts a message back that the ring had no room for.
    pub fn unpoll(&mut self, worker: usize, message: ToWorker) {
        if let Some(outgoing) = self.outgoing.get_mut(worker) {
            outgoing.push_front(message);
        }
    }

    /// Asks all workers but one for what they don't use. Returns whether an answer is due.
    fn recall(&mut self, key: Key, except: Option<usize>) -> bool {
        let Some(account) = self.accounts.get_mut(&key) else { return false };
        for (worker, (share, outgoing)) in account.shares.iter_mut().zip(&mut self.outgoing).enumerate() {
            if share.granted > 0 && !share.is_tight && except != Some(worker) {
                share.is_tight = true;
                share.is_recalled = true;
                outgoing.push_back(ToWorker::Recall { key });
            }
        }
        account.shares.iter().any(|share| share.is_recalled)
    }

    /// Grants what is free to those who wait, in turn.
    fn serve(&mut self, key: Key) {
        let Some(account) = self.accounts.get_mut(&key) else { return };
        let workers = account.shares.len();
        let limit = if account.limit == 0 { u64::MAX } else { u64::from(account.limit) };
        let first = account.turn;
        for worker in (first..workers).chain(0..first) {
            let free = limit.saturating_sub(account.granted);
            let waiting = account.shares.iter().filter(|share| share.wanted > 0).count() as u64;
            let Some(share) = account.shares.get_mut(worker).filter(|share| share.wanted > 0) else {
                continue;
            };
            if free == 0 {
                break;
            }
            // some is left for the others, more so the less there is
            let fair = (free / (2 * workers as u64).max(1)).max(1);
            let count = u64::from(share.wanted).min(fair) as u32;
            let is_scarce = waiting > 1 && free <= waiting;
            *share = Share {
                granted: share.granted + count,
                wanted: 0,
                is_unanswered: false,
                is_tight: is_scarce,
                is_recalled: share.is_recalled,
            };
            account.granted += u64::from(count);
            account.turn = (worker + 1) % workers;
            if let Some(outgoing) = self.outgoing.get_mut(worker) {
                outgoing.push_back(ToWorker::Grant { key, count, is_scarce });
            }
        }
        let unanswered = account.shares.iter().position(|share| share.is_unanswered);
        let Some(first) = unanswered else { return };
        if self.recall(key, Some(first)) {
            return;
        }
        let Some(account) = self.accounts.get_mut(&key) else { return };
        for (share, outgoing) in account.shares.iter_mut().zip(&mut self.outgoing) {
            if share.is_unanswered {
                share.is_unanswered = false;
                share.is_tight = true;
                outgoing.push_back(ToWorker::Grant { key, count: 0, is_scarce: true });
            }
        }
    }
}

#[cfg(test)]
mod tests;
