//! What has happened? Plain numbers that the worker publishes.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Events since the start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// All of them by name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Segments that arrived, good or bad.
    segments_in,
    /// Segments that left.
    segments_out,
    /// Bytes of data that arrived in order.
    bytes_in,
    /// Bytes of data that left for the first time.
    bytes_out,
    /// Segments with data, SYN or FIN that left again.
    retransmitted,
    /// RFC 6298 time-outs.
    rto_timeouts,
    /// Repairs that RACK or three duplicate acknowledgements began.
    fast_retransmits,
    /// RFC 8985 §7 probes.
    tlp_probes,
    /// Repairs that turned out to have been needless.
    spurious,
    /// Probes of a closed window.
    window_probes,
    /// Probes of a silent peer.
    keep_alive_probes,
    /// Connections that the peer opened.
    accepted,
    /// Connections that we opened.
    connected,
    /// Connections that the peer refused.
    refused,
    /// Connections given up because nothing came back.
    timed_out,
    /// Of these, clients whose handshake was not complete in time.
    handshake_timeouts,
    /// Connections that the peer reset.
    resets_received,
    /// RST for a segment of no connection.
    resets_no_connection,
    /// RST because the application aborted.
    resets_aborted,
    /// RST for a bad acknowledgement in the handshake.
    resets_bad_ack,
    /// RST because data came that nobody will read.
    resets_data_after_close,
    /// RST because the peer was silent for too long.
    resets_timeout,
    /// RFC 5961 challenge acknowledgements.
    challenge_acks,
    /// Challenge acknowledgements that the rate held back.
    challenge_acks_withheld,
    /// Answers to SYN with a cookie.
    syn_cookies_sent,
    /// Connections opened by a cookie.
    syn_cookies_accepted,
    /// Acknowledgements that were no valid cookie, while cookies were in use.
    syn_cookies_refused,
    /// Connections with data in the SYN.
    fast_open_accepted,
    /// Fast open cookies that were not ours, or old.
    fast_open_refused,
    /// SYN dropped because the listener's backlog or the table was full.
    syn_dropped,
    /// Segments with a bad checksum or header.
    malformed,
    /// RFC 7323 §5: segments with an old timestamp.
    paws_drops,
    /// Segments outside the window.
    out_of_window,
    /// Bytes that arrived again.
    duplicate_bytes,
    /// Pieces that arrived out of order.
    out_of_order,
    /// Pieces that no memory was left for.
    no_memory,
    /// Segments marked as having met congestion.
    ecn_marks,
    /// ICMP errors that belonged to a connection.
    icmp_errors,
    /// Segments made smaller because of a smaller MTU on the way.
    mtu_reductions,
    /// TIME_WAIT entries that ended early for a new connection (RFC 6191).
    time_wait_reused,
    /// TIME_WAIT entries that ended early because the table was full.
    time_wait_evicted,
}
