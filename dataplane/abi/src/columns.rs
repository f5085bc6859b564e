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
