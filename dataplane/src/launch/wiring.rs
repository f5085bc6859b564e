//! Which worker gets which queues, whose packets are whose, and over which rings do they pass what is not theirs?

use std::sync::Arc;

use dpdk::ring::{Consumer, Producer};
use dpdk::{ArrayVec, EalHandle};
use weir_l4::Spread;
use weir_l4::snat::ReplyOwner;
use weir_net::hash::Toeplitz;

use super::ports::OpenPort;
use super::{LaunchError, failed};
use crate::output::{PortOut, Way};
use crate::worker::{Input, Peers};

/// Packets in flight between two workers.
const STEER_RING: u32 = 2_048;
/// RSS decides where all ports hash alike with as many queues as workers, software elsewhere.
pub(super) fn spread_of(workers: u16, ports: &[OpenPort]) -> Spread {
    if workers <= 1 {
        return Spread::Alone;
    }
    let rss = |port: &OpenPort| -> Option<(Vec<u8>, Vec<u16>)> {
        let rss = port.capabilities.rss.as_ref()?;
        let spreads = (0..workers).all(|queue| rss.reta.contains(&queue));
        (port.filter && spreads && port.rx.len() == usize::from(workers))
            .then(|| (rss.key.clone(), rss.reta.clone()))
    };
    let all: Option<Vec<_>> = ports.iter().map(rss).collect();
    if let Some(all) = all
        && let Some((key, reta)) = all.first()
        && all.iter().all(|other| other == &(key.clone(), reta.clone()))
        && let Some(key) = key.first_chunk::<40>()
    {
        tracing::info!("{workers} workers: the NICs spread packets by RSS");
        let toeplitz = Box::new(Toeplitz::new(key));
        return Spread::Rss { workers, toeplitz, indirection: reta.clone().into_boxed_slice() };
    }
    tracing::info!("{workers} workers: packets are spread in software");
    Spread::Hash { workers }
}

pub(super) fn reply_owner(spread: &Spread, worker: u16, workers: u16) -> ReplyOwner {
    match spread {
        Spread::Alone => ReplyOwner::Alone,
        Spread::Hash { .. } => ReplyOwner::Remainder { worker, workers },
        Spread::Rss { toeplitz, indirection, .. } => {
            ReplyOwner::Rss { queue: worker, toeplitz: toeplitz.clone(), indirection: indirection.clone() }
        }
    }
}

/// What a worker gets of the ports.
#[derive(Default)]
pub(super) struct Lot {
    pub(super) inputs: Vec<Input>,
    pub(super) outputs: Vec<PortOut>,
}

/// Rings between workers, before they are dealt.
pub(super) struct Wiring {
    environment: EalHandle,
    steer_out: Vec<Vec<Option<Producer>>>,
    steer_in: Vec<Vec<Consumer>>,
    transmit_in: Vec<Vec<Consumer>>,
    rings: u32,
}

impl Wiring {
    pub(super) fn new(environment: &EalHandle, workers: usize) -> Result<Self, LaunchError> {
        let mut wiring = Self {
            environment: environment.clone(),
            steer_out: (0..workers).map(|_| (0..workers).map(|_| None).collect()).collect(),
            steer_in: (0..workers).map(|_| Vec::new()).collect(),
            transmit_in: (0..workers).map(|_| Vec::new()).collect(),
            rings: 0,
        };
        for from in 0..workers {
            for to in (0..workers).filter(|to| *to != from) {
                let (producer, consumer) = wiring.ring()?;
                if let Some(place) = wiring.steer_out.get_mut(from).and_then(|row| row.get_mut(to)) {
                    *place = Some(producer);
                }
                if let Some(row) = wiring.steer_in.get_mut(to) {
                    row.push(consumer);
                }
            }
        }
        Ok(wiring)
    }

    fn ring(&mut self) -> Result<(Producer, Consumer), LaunchError> {
        self.rings += 1;
        let name = format!("weir-{}", self.rings);
        dpdk::ring::Ring::new(&self.environment, &name, STEER_RING).map_err(|error| failed("ring")(&error))
    }

    pub(super) fn peers_of(&mut self, worker: usize, spread: &Arc<Spread>) -> Peers {
        let take =
            |rows: &mut Vec<Vec<Consumer>>| rows.get_mut(worker).map(std::mem::take).unwrap_or_default();
        Peers {
            steer_out: self.steer_out.get_mut(worker).map(std::mem::take).unwrap_or_default(),
            steer_in: take(&mut self.steer_in),
            transmit_in: take(&mut self.transmit_in),
            spread: Arc::clone(spread),
        }
    }
}

/// Receive queue `q` goes to worker `q` modulo their number; worker `w` sends by queue `w`, or by a ring to the owner of queue
/// `w` modulo their number.
pub(super) fn deal_queues(
    index: u16,
    part: &mut OpenPort,
    lots: &mut [Lot],
    wiring: &mut Wiring,
) -> Result<(), LaunchError> {
    let workers = lots.len();
    for (at, queue) in part.rx.drain(..).enumerate() {
        if let Some(lot) = lots.get_mut(at % workers) {
            lot.inputs.push(Input { port: index, queue, filter: part.filter });
        }
    }
    let own = part.tx.len().min(workers).max(1);
    let mut queues = part.tx.drain(..);
    for (worker, lot) in lots.iter_mut().enumerate() {
        let way = match queues.next() {
            Some(queue) => Way::Own(queue),
            None => {
                let (producer, consumer) = wiring.ring()?;
                if let Some(row) = wiring.transmit_in.get_mut(worker % own) {
                    row.push(consumer);
                }
                Way::Lent(producer)
            }
        };
        let batch = ArrayVec::new();
        lot.outputs.push(PortOut { mac: part.mac, vlan: part.vlan, mtu: part.mtu, way, batch });
    }
    Ok(())
}
