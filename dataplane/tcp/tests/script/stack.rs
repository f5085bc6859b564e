//! What must a TCP stack offer to be run by scripts? The one seam between the runner and the engine.

use weir_tcp::{Endpoint, Instant};

/// News that the application hears, and scripts name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct News {
    /// The peer of the connection.
    pub(crate) remote: Endpoint,
    /// As in `event NAME`.
    pub(crate) name: String,
}

/// A stack in virtual time: it does something only when it is called.
pub(crate) trait Stack {
    /// Changes a setting of listeners and of connections that are opened from now on.
    fn set(&mut self, key: &str, value: &str) -> Result<(), String>;
    /// Serves the endpoint.
    fn listen(&mut self, local: Endpoint);
    /// Opens a connection.
    fn connect(&mut self, local: Endpoint, remote: Endpoint, now: Instant) -> Result<(), String>;
    /// A frame arrives.
    fn input(&mut self, frame: &[u8], now: Instant) -> Result<(), String>;
    /// What the input and the application's calls have made due leaves.
    fn settle(&mut self, now: Instant);
    /// When timers want to run.
    fn next_deadline(&mut self) -> Option<Instant>;
    /// Timers run.
    fn advance(&mut self, now: Instant);
    /// Frames that left since the last call.
    fn output(&mut self) -> Vec<Vec<u8>>;
    /// News since the last call.
    fn news(&mut self) -> Vec<News>;
    /// Takes bytes to send; the number that was taken.
    fn send(&mut self, remote: Endpoint, bytes: &[u8], now: Instant) -> Result<usize, String>;
    /// A piece of what has arrived.
    fn receive(&mut self, remote: Endpoint, now: Instant) -> Result<Option<Vec<u8>>, String>;
    /// No more will be sent.
    fn shutdown(&mut self, remote: Endpoint, now: Instant) -> Result<(), String>;
    /// Resets the connection.
    fn abort(&mut self, remote: Endpoint, now: Instant) -> Result<(), String>;
    /// The application lets go of it.
    fn release(&mut self, remote: Endpoint, now: Instant) -> Result<(), String>;
    /// Whether the transmit queue has room.
    fn link(&mut self, up: bool);
    /// The secrets of cookies change.
    fn rotate(&mut self, now: Instant);
    /// A value of a connection, by the name that `assert NAME` uses; `None`: there is no such connection.
    fn inspect(&self, remote: Endpoint, what: &str) -> Result<Option<String>, String>;
    /// Lets go of all connections; buffers that are still held after that.
    fn leaked(&mut self, now: Instant) -> usize;
}
