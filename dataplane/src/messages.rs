//! What the management thread and a worker say to each other, over bounded rings.

use std::net::IpAddr;
use std::sync::Arc;

use weir_l4::Services;
use weir_l7::{RateMessage, Rules};
use weir_net::Mac;
use weir_net::arp::NeighborFrame;

use crate::neighbour::Update;
use crate::terminate::Terminator;
use crate::view::View;

/// To a worker.
#[derive(Debug)]
pub enum ToWorker {
    /// Run this generation from the next burst on.
    Adopt(Arc<View>),
    /// A next hop's link address is known, changed, or gone.
    Neighbour(Update),
    /// Send this frame on this port.
    Send(u16, NeighborFrame),
    /// Connections end here from now on.
    Terminate(Box<Terminator>),
    /// The ledger of limits says.
    Limit(weir_l7::ToWorker),
    /// About a rate limit, from another worker.
    Rate {
        /// From which.
        from: u16,
        /// What.
        message: RateMessage,
    },
    /// Send what waits, let go of everything and end.
    Stop,
}

/// To the management thread.
#[derive(Debug)]
pub enum FromWorker {
    /// A generation that the worker does not use any more, to be dropped where time does not matter.
    Retired(Arc<View>),
    /// Rules that exchanges needed longer than their generation was in force, to be dropped where time does not matter.
    Outlived(Arc<Services>, Arc<Rules>),
    /// A neighbour message showed where an address is.
    Seen {
        /// On which port.
        port: u16,
        /// Whose.
        address: IpAddr,
        /// Where.
        mac: Mac,
        /// It was an answer to us.
        answers: bool,
    },
    /// To the ledger of limits.
    Limit(weir_l7::ToLedger),
    /// About a rate limit, to another worker.
    Rate {
        /// To which.
        to: u16,
        /// What.
        message: RateMessage,
    },
    /// A packet waits for this neighbour.
    Wanted {
        /// On which port.
        port: u16,
        /// Whose.
        address: IpAddr,
    },
}
