//! What may the user choose, per listener and for the engine?

use crate::congestion::Algorithm;

/// When SYN cookies are sent (RFC 4987 §3.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SynCookies {
    /// Once the listener has as many half-open connections as its backlog.
    #[default]
    Auto,
    /// To every SYN.
    Always,
    /// Never: a SYN beyond the backlog is dropped.
    Never,
}

/// Probes of a silent connection (RFC 9293 §3.8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// Seconds of silence before the first probe.
    pub idle_s: u32,
    /// Seconds between probes.
    pub interval_s: u32,
    /// Unanswered probes after which the connection is given up.
    pub probes: u8,
}

/// How the connections of a listener, or those that the application opens to a pool, behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionConfig {
    /// Nagle's algorithm off (RFC 9293 §3.7.4).
    pub no_delay: bool,
    /// Probes of silent connections; `None`: none are sent.
    pub keep_alive: Option<KeepAlive>,
    /// RFC 6928: segments that may leave before the first acknowledgement.
    pub initial_window: u8,
    /// Congestion control.
    pub algorithm: Algorithm,
    /// RFC 7413, as a server: data in a SYN with a valid cookie is accepted.
    pub fast_open: bool,
    /// Largest segment announced to the peer, headers not counted; `None`: what the MTU leaves.
    pub mss: Option<u16>,
    /// Most bytes that wait for the application.
    pub receive_buffer: u32,
    /// Bytes that wait to be sent or acknowledged above which the application is refused more.
    pub send_buffer: u32,
    /// RFC 5681 §4.1: begins anew with the initial window after an idle time-out.
    pub slow_start_after_idle: bool,
    /// Half-open connections of the listener.
    pub backlog: u32,
    /// When SYN cookies are sent.
    pub syn_cookies: SynCookies,
    /// RFC 3168: agrees to ECN where the peer asks for it.
    pub ecn: bool,
    /// Asks for ECN on connections that the application opens.
    pub ecn_request: bool,
    /// RFC 7323 timestamps.
    pub timestamps: bool,
    /// RFC 2018.
    pub sack: bool,
    /// RFC 7323 window scaling.
    pub window_scaling: bool,
    /// RFC 9293 §3.8.6.3: longest time that an acknowledgement waits for company; below 500.
    pub delayed_ack_ms: u16,
    /// RFC 6298 §2.4 asks for 1 s; Linux's 200 ms is the default here.
    pub rto_min_ms: u32,
    /// RFC 6298 §2.5: at least 60 s.
    pub rto_max_ms: u32,
    /// Times that a SYN or SYN+ACK is sent again.
    pub syn_retries: u8,
    /// A client whose handshake is not complete after so long is given up, whatever tries are left.
    pub handshake_ms: Option<u32>,
    /// Times that data is sent again before the connection is given up.
    pub data_retries: u8,
    /// RFC 9293 §3.8.3, RFC 5482: gives up data that has not been acknowledged for so long.
    pub user_timeout_ms: Option<u32>,
    /// A connection that the application has let go of waits so long for the peer's FIN.
    pub fin_wait_s: u32,
    /// RFC 9293 §3.4.2: twice the lifetime of a segment.
    pub time_wait_s: u32,
    /// Longest IP packet on the way out.
    pub mtu: u16,
    /// Hop limit of what is sent.
    pub hop_limit: u8,
}

impl Default for ConnectionConfig {
    fn default() -> Self {
        Self {
            no_delay: true,
            keep_alive: Some(KeepAlive { idle_s: 7_200, interval_s: 75, probes: 9 }),
            initial_window: 10,
            algorithm: Algorithm::Cubic,
            fast_open: false,
            mss: None,
            receive_buffer: 1 << 20,
            send_buffer: 256 << 10,
            slow_start_after_idle: false,
            backlog: 4_096,
            syn_cookies: SynCookies::Auto,
            ecn: true,
            ecn_request: false,
            timestamps: true,
            sack: true,
            window_scaling: true,
            delayed_ack_ms: 40,
            rto_min_ms: 200,
            rto_max_ms: 120_000,
            syn_retries: 5,
            handshake_ms: None,
            data_retries: 15,
            user_timeout_ms: None,
            fin_wait_s: 60,
            time_wait_s: 60,
            mtu: 1_500,
            hop_limit: 64,
        }
    }
}

/// Limits of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Most connections, half-open ones included; at most 16,777,214.
    pub connections: usize,
    /// Most connections in TIME_WAIT; the oldest makes room for a new one.
    pub time_waits: usize,
    /// Most pieces of data in all queues.
    pub pieces: usize,
    /// Memory that buffers in queues may keep from other use, in bytes. Above three quarters windows stop growing, above it
    /// no new data is taken out of order and windows close.
    pub memory: u64,
    /// RFC 5961 §7: challenge ACKs per second, of all connections.
    pub challenge_acks: u32,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            connections: 65_536,
            time_waits: 65_536,
            pieces: 1 << 18,
            memory: 256 << 20,
            challenge_acks: 1_000,
        }
    }
}
