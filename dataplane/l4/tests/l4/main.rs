//! What becomes of packets that go through one engine, judged by bytes made without the code under test?
//!
//! [`packets`] makes frames and checks them with its own sums and smoltcp's parser; [`world`] holds an engine with its accounts.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops where it goes wrong"
)]
#![expect(unreachable_pub, reason = "nothing is reachable from outside a test")]

mod access;
mod flows;
mod fragments;
mod full;
mod icmp_errors;
mod limits;
mod modes;
mod mutation;
mod on_down;
mod packets;
mod recovery;
mod shares;
mod source_nat;
mod states;
mod steering;
mod world;
