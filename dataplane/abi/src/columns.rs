//! The groups and columns that the dataplane writes, by name. Readers look names up in the segment itself;
//! these are the words that both sides mean.

macro_rules! columns {
    ($(#[$doc:meta])* $group:ident $name:literal { $($(#[$column_doc:meta])* $column:ident $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum $group { $($(#[$column_doc])* $column),+ }
        impl $group {
            /// Name of the group.
            pub const GROUP: &'static str = $name;
            /// Names of its columns, in order.
            pub const COLUMNS: &'static [&'static str] = &[$($text),+];
            /// Name of this column.
            pub fn name(self) -> &'static str {
                match self { $(Self::$column => $text),+ }
            }
        }
    };
}

/// Group of the drop counters: one row, one column per reason, named by the dataplane.
pub const DROP_GROUP: &str = "drop";

columns! {
    /// One row per area. Conservation, per worker:
    /// `rx + steered_in + generated = tx + steered_out + consumed + held + dropped`.
    WorkerColumn "worker" {
        /// Packets received from ports.
        RxPackets "rx_packets",
        /// Packets sent to ports.
        TxPackets "tx_packets",
        /// Packets taken from other workers.
        SteeredIn "steered_in",
        /// Packets given to other workers (their flow's owner, or the owner of a transmit queue).
        SteeredOut "steered_out",
        /// Packets that Weir made itself (ARP, NDP, ICMP errors, RST); answers made in place count as consumed and generated.
        Generated "generated",
        /// Packets that ended here and were meant to (ARP, NDP, echo).
        Consumed "consumed",
        /// Gauge: packets that wait for a neighbour.
        Held "held",
        /// Packets dropped, all reasons.
        Dropped "dropped",
        /// Rounds of the loop.
        Polls "polls",
        /// Rounds that found nothing.
        EmptyPolls "empty_polls",
        /// TSC cycles of rounds that found something.
        BusyCycles "busy_cycles",
        /// TSC cycles since the worker's start.
        TotalCycles "total_cycles",
        /// Gauge: live flow entries, IPv4.
        FlowsIpv4 "flows_ipv4",
        /// Gauge: live flow entries, IPv6.
        FlowsIpv6 "flows_ipv6",
        /// Flow entries that the table can hold, IPv4.
        CapacityIpv4 "capacity_ipv4",
        /// Flow entries that the table can hold, IPv6.
        CapacityIpv6 "capacity_ipv6",
        /// Flows ever made.
        FlowsCreated "flows_created",
        /// Flows ended by timeout.
        FlowsExpired "flows_expired",
        /// Embryonic or closing flows evicted for new ones.
        FlowsEvicted "flows_evicted",
        /// Flows taken over from the previous process.
        FlowsRecovered "flows_recovered",
        /// Entries of the previous process that did not survive validation.
        FlowsDiscarded "flows_discarded",
        /// Packets balanced by the pure hash because the table was full.
        HashFallback "hash_fallback",
        /// Gauge: packet buffers that this worker's code owns right now.
        BuffersOwned "buffers_owned",
        /// Generation that the worker runs.
        Generation "generation",
    }
}

columns! {
    /// One row per port, in order of the snapshot.
    PortColumn "port" {
        /// Packets received.
        RxPackets "rx_packets",
        /// Bytes received, Ethernet header included.
        RxBytes "rx_bytes",
        /// Packets sent.
        TxPackets "tx_packets",
        /// Bytes sent.
        TxBytes "tx_bytes",
        /// The driver's count of packets that it had to drop on receive.
        RxMissed "rx_missed",
        /// The driver's count of receive errors.
        RxErrors "rx_errors",
        /// The driver's count of failed buffer allocations.
        RxNoBuffer "rx_no_buffer",
        /// The driver's count of transmit errors.
        TxErrors "tx_errors",
    }
}

columns! {
    /// The way to the kernel and back; one row per port, in order of the snapshot.
    ExceptionColumn "exception" {
        /// Packets for the kernel, handed over.
        Punted "punted",
        /// Packets for the kernel beyond the worker's rate.
        RateLimited "rate_limited",
        /// Packets for the kernel that found the worker's ring full.
        RingFull "ring_full",
        /// Packets of the kernel that were sent.
        FromKernel "from_kernel",
        /// Packets that the interface did not take: it is down, or its queue is full.
        NotWritten "not_written",
        /// Packets of the kernel that were not sent: not from an address of Weir's, an answer that Weir itself gives, or no room.
        KernelRefused "kernel_refused",
        /// 1 while the dataplane has the interface.
        Attached "attached",
    }
}

columns! {
    /// One row per listener index.
    ListenerColumn "listener" {
        /// Flows ever made.
        FlowsTotal "flows_total",
        /// Gauge: live flows.
        FlowsActive "flows_active",
        /// Packets from clients.
        PacketsIn "packets_in",
        /// Bytes from clients, IP header included.
        BytesIn "bytes_in",
        /// Packets to clients (modes that see them).
        PacketsOut "packets_out",
        /// Bytes to clients.
        BytesOut "bytes_out",
        /// Packets balanced without a flow entry.
        HashFallback "hash_fallback",
        /// Packets dropped because no backend could take them.
        NoBackend "no_backend",
        /// First packets of flows that the listener takes no more, refused or dropped.
        Drained "drained",
        /// New flows that the listener's list denied: packets.
        AccessDenied "access_denied",
        /// New flows beyond a rate: packets.
        AccessRate "access_rate",
        /// New flows beyond the limit per source: packets.
        AccessConnections "access_connections",
    }
}

columns! {
    /// One row per backend index.
    BackendColumn "backend" {
        /// Flows ever made.
        FlowsTotal "flows_total",
        /// Gauge: live flows.
        FlowsActive "flows_active",
        /// Packets to the backend.
        PacketsIn "packets_in",
        /// Bytes to the backend, inner IP header included.
        BytesIn "bytes_in",
        /// Packets from the backend (modes that see them).
        PacketsOut "packets_out",
        /// Bytes from the backend.
        BytesOut "bytes_out",
        /// RSTs sent to clients on its behalf.
        Resets "resets",
        /// 1 while the link address of its next hop is unknown (written by the management thread).
        Unreachable "unreachable",
    }
}

columns! {
    /// The TCP engine of a worker; one row per area. The first nine are gauges of connections by state (RFC 9293 §3.3.2).
    TcpColumn "tcp" {
        /// Gauge: connections to backends whose SYN is not answered yet (SYN-SENT).
        SynSent "syn_sent",
        /// Gauge: clients whose handshake is not complete (SYN-RECEIVED).
        HalfOpen "half_open",
        /// Gauge: ESTABLISHED.
        Established "established",
        /// Gauge: FIN-WAIT-1.
        FinWait1 "fin_wait_1",
        /// Gauge: FIN-WAIT-2.
        FinWait2 "fin_wait_2",
        /// Gauge: CLOSE-WAIT.
        CloseWait "close_wait",
        /// Gauge: CLOSING.
        Closing "closing",
        /// Gauge: LAST-ACK.
        LastAck "last_ack",
        /// Gauge: TIME-WAIT.
        TimeWait "time_wait",
        /// Connections that the engine can hold.
        ConnectionsCapacity "connections_capacity",
        /// Gauge: bytes of packet buffers that connections hold.
        MemoryPinned "memory_pinned",
        /// Gauge: bytes that they may hold: as configured, but no more than the packet buffers leave.
        MemoryCeiling "memory_ceiling",
        /// Segments received, wrong ones included.
        SegmentsIn "segments_in",
        /// Segments sent, retransmitted ones included.
        SegmentsOut "segments_out",
        /// Segments sent again.
        Retransmitted "retransmitted",
        /// Retransmission timeouts (RFC 6298).
        RtoTimeouts "rto_timeouts",
        /// Recoveries begun without a timeout (RFC 8985).
        FastRetransmits "fast_retransmits",
        /// Tail loss probes sent (RFC 8985 §7).
        TlpProbes "tlp_probes",
        /// Retransmissions that turned out to be needless (RFC 2883, RFC 3522).
        Spurious "spurious",
        /// RSTs sent: nothing listens there, or the connection is unknown.
        ResetsNoListener "resets_no_listener",
        /// RSTs sent: the other side of the proxy was aborted, or a backend could not be had.
        ResetsAborted "resets_aborted",
        /// RSTs sent: a timeout of the listener or the user timeout.
        ResetsTimeout "resets_timeout",
        /// RSTs sent: an unacceptable acknowledgement in a handshake (RFC 9293 §3.5.2).
        ResetsBadAck "resets_bad_ack",
        /// RSTs sent: no memory for the connection.
        ResetsMemory "resets_memory",
        /// RSTs sent: a limit on connections.
        ResetsLimit "resets_limit",
        /// RSTs received that ended a connection.
        ResetsReceived "resets_received",
        /// Challenge ACKs sent (RFC 5961).
        ChallengeAcks "challenge_acks",
        /// SYNs answered with a cookie.
        SynCookiesSent "syn_cookies_sent",
        /// Connections opened by a cookie that came back.
        SynCookiesAccepted "syn_cookies_accepted",
        /// Acknowledgements that are no valid cookie.
        SynCookiesRefused "syn_cookies_refused",
        /// Connections whose SYN brought data with a valid cookie (RFC 7413).
        FastOpenAccepted "fast_open_accepted",
        /// Segments whose checksum is wrong.
        ChecksumErrors "checksum_errors",
        /// Segments dropped for an old timestamp (RFC 7323 §5).
        PawsDrops "paws_drops",
        /// Segments dropped for lying outside of the window.
        OutOfWindowDrops "out_of_window_drops",
        /// Connects given up because no source address and port was free towards the backend.
        SnatExhausted "snat_exhausted",
    }
}

columns! {
    /// Listeners of mode `proxy`; one row per listener index, as [`ListenerColumn`]. A group of its own, so that the
    /// line of an L4 listener stays one.
    ProxyColumn "proxy" {
        /// Client connections whose handshake was completed.
        ConnectionsAccepted "connections_accepted",
        /// Gauge: client connections, from accepted to closed.
        ConnectionsActive "connections_active",
        /// Connections refused at `max_connections`, or because the queue was full; not those that no memory was left for.
        ConnectionsRefusedLimit "connections_refused_limit",
        /// Gauge: connections that wait for a backend.
        Queued "queued",
        /// Connections that waited too long for a backend.
        QueueTimeouts "queue_timeouts",
        /// Clients that did not complete TCP's handshake in time, which were never accepted, and accepted ones whose PROXY header
        /// did not come.
        HandshakeTimeouts "handshake_timeouts",
        /// Connections ended because both directions were silent.
        IdleTimeouts "idle_timeouts",
        /// RSTs received from clients.
        ClientResets "client_resets",
        /// Payload bytes from clients.
        BytesIn "bytes_in",
        /// Payload bytes to clients.
        BytesOut "bytes_out",
        /// Connections ended because one direction was closed and the other silent.
        HalfCloseTimeouts "half_close_timeouts",
        /// Connections refused for a missing, malformed or untrusted PROXY header.
        ProxyHeaderRefused "proxy_header_refused",
        /// Connections refused because no backend took them, retries included.
        NoBackend "no_backend",
    }
}

columns! {
    /// Backends as proxied connections see them; one row per backend index, as [`BackendColumn`].
    UpstreamColumn "upstream" {
        /// Connections established.
        Connects "connects",
        /// Connects that were refused or found the backend unreachable.
        ConnectFailures "connect_failures",
        /// Connects that were not answered in time.
        ConnectTimeouts "connect_timeouts",
        /// Gauge: connections, from the first SYN to closed.
        Active "active",
        /// Connects that came here after another backend had failed.
        Retries "retries",
        /// RSTs received from the backend.
        ServerResets "server_resets",
        /// Payload bytes to the backend.
        BytesIn "bytes_in",
        /// Payload bytes from the backend.
        BytesOut "bytes_out",
    }
}

/// Group of the causes why the proxy answered HTTP requests itself or ended exchanges: one row per listener index, one column per
/// cause, named by its code.
pub const CAUSE_GROUP: &str = "http_cause";

columns! {
    /// HTTP of a listener; one row per listener index.
    HttpColumn "http" {
        /// Requests whose head was read.
        Requests "requests",
        /// Responses 1xx, as the following the proxy's own included.
        Informational "responses_1xx",
        /// Responses 2xx.
        Successful "responses_2xx",
        /// Responses 3xx.
        Redirection "responses_3xx",
        /// Responses 4xx.
        ClientError "responses_4xx",
        /// Responses 5xx.
        ServerError "responses_5xx",
        /// Responses or ends of the proxy's own making; the group [`CAUSE_GROUP`] says why.
        Own "own_responses",
        /// Attempts after a first.
        Retries "retries",
        /// Retries that the budget did not allow.
        RetriesDenied "retries_denied",
        /// Requests that a rate limit refused.
        RateLimited "rate_limited",
        /// Requests whose rate limit's key found no place among those that are remembered: such keys share buckets.
        RateCrowded "rate_crowded",
        /// Connections that became tunnels.
        TunnelsTotal "tunnels_total",
        /// Copies sent to mirrors.
        Mirrored "mirrored",
        /// Copies that were not sent.
        MirrorsDropped "mirrors_dropped",
        /// Requests that would have been copied, but for a body that was not there as a whole.
        MirrorsSkipped "mirrors_skipped",
        /// Keep-alive connections ended for their silence.
        KeepAliveTimeouts "keep_alive_timeouts",
        /// Gauge: exchanges in progress.
        Exchanges "exchanges",
        /// Gauge: clients between two requests.
        IdleClients "idle_clients",
        /// Gauge: tunnels.
        Tunnels "tunnels",
    }
}

columns! {
    /// Backends as HTTP sees them; one row per backend index.
    HttpBackendColumn "http_backend" {
        /// Requests sent.
        Requests "requests",
        /// Requests on a connection that was idle before.
        Reused "reused",
        /// Responses 5xx.
        ServerErrors "server_errors",
        /// Requests without a usable response.
        Failures "failures",
        /// Times that a breaker opened.
        BreakerOpened "breaker_opened",
        /// Gauge: idle connections, among [`UpstreamColumn::Active`].
        Idle "idle",
        /// Gauge: workers whose breaker is open.
        BreakerOpen "breaker_open",
        /// Gauge: workers whose breaker is half-open.
        BreakerHalfOpen "breaker_half_open",
    }
}

columns! {
    /// HTTP of a worker; one row per area.
    HttpWorkerColumn "http_worker" {
        /// Gauge: bytes of buffers and records in use.
        MemoryUsed "memory_used",
        /// Bytes beyond which new connections are refused.
        MemoryCeiling "memory_ceiling",
        /// Events told to the control process, by all processes since the ring was made.
        EventsWritten "events_written",
        /// Events that found the ring full, since it was made: lines that the access log lacks.
        EventsRefused "events_refused",
        /// Messages of rate limits to other workers that found a ring full: asked for again.
        RateMessagesLost "rate_messages_lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_are_unique_in_their_group() {
        let groups = [
            (WorkerColumn::GROUP, WorkerColumn::COLUMNS),
            (PortColumn::GROUP, PortColumn::COLUMNS),
            (ExceptionColumn::GROUP, ExceptionColumn::COLUMNS),
            (ListenerColumn::GROUP, ListenerColumn::COLUMNS),
            (BackendColumn::GROUP, BackendColumn::COLUMNS),
            (TcpColumn::GROUP, TcpColumn::COLUMNS),
            (ProxyColumn::GROUP, ProxyColumn::COLUMNS),
            (UpstreamColumn::GROUP, UpstreamColumn::COLUMNS),
            (HttpColumn::GROUP, HttpColumn::COLUMNS),
            (HttpBackendColumn::GROUP, HttpBackendColumn::COLUMNS),
            (HttpWorkerColumn::GROUP, HttpWorkerColumn::COLUMNS),
        ];
        let mut names = std::collections::HashSet::new();
        for (group, columns) in groups {
            assert!(names.insert(group.to_owned()));
            for column in columns {
                assert!(column.len() <= 32 && names.insert(format!("{group}.{column}")), "{group}.{column}");
            }
        }
        assert_eq!(TcpColumn::SnatExhausted.name(), "snat_exhausted");
        // an area has a row per backend that there may ever be: one cache line each
        assert!(ExceptionColumn::COLUMNS.len() <= 8);
        assert!(BackendColumn::COLUMNS.len() <= 8 && UpstreamColumn::COLUMNS.len() <= 8);
        assert!(HttpBackendColumn::COLUMNS.len() <= 8);
    }
}
