//! Packets without ports: ICMP errors go where the flow that they are about goes, with NAT undone inside
//! (RFC 5508 §4, RFC 4443); echo and the rest is for Weir itself.

use std::ops::DerefMut;

use weir_net::{Family, InnerFlow, Kind, PacketBuf, Parsed, Protocol, icmp, icmpv6, rewrite};

use crate::engine::Accounts;
use crate::entry::{Address, Entry, Flow, NO_SNAT, Tuple};
use crate::lane::{Lane, Way};
use crate::services::{Backend, Mode, address_of};
use crate::verdict::{Delivery, DropReason, NO_LISTENER, Verdict};
use weir_index::{Bucket, Candidate, Direction};

/// Whether this is an ICMP error that says something about a flow; redirects and source quench say nothing to an end
/// behind a balancer.
pub(crate) fn is_flow_error(parsed: &Parsed) -> bool {
    match (parsed.kind, parsed.protocol) {
        (Kind::Ipv4, Protocol::ICMP) => {
            matches!(
                parsed.icmp_type,
                icmp::DESTINATION_UNREACHABLE | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM
            )
        }
        (Kind::Ipv6, Protocol::ICMPV6) => icmpv6::is_error(parsed.icmp_type),
        _ => false,
    }
}

/// The tuple, as sent, of the packet that an ICMP error quotes, turned round: the flow's own direction.
pub(crate) fn quoted_flow<A: Address>(frame: &[u8], inner: &InnerFlow) -> Option<Tuple<A>> {
    let family = if A::FAMILY == 4 { Family::V4 } else { Family::V6 };
    if inner.family != family || !inner.has_ports {
        return None;
    }
    let (src, dst) = A::inner_addresses(frame, inner);
    let quoted =
        Tuple { src, dst, src_port: inner.src_port, dst_port: inner.dst_port, protocol: inner.protocol.0 };
    Some(quoted.reversed())
}

impl<A, E, B, C> Lane<'_, A, E, B, C>
where
    A: Address,
    E: DerefMut<Target = [A::Entry]>,
    B: DerefMut<Target = [Bucket]>,
    C: Accounts,
{
    #[cold]
    pub(crate) fn process_portless<P: PacketBuf>(&mut self, packet: &mut P, parsed: &Parsed) -> Verdict {
        if is_flow_error(parsed) && !parsed.is_fragment() {
            return self.icmp_error(packet, parsed);
        }
        let services = self.services;
        let (src, dst) = A::addresses(packet.data(), parsed);
        let is_icmp = matches!(parsed.protocol, Protocol::ICMP | Protocol::ICMPV6);
        if services.is_own(dst.bits()) || (is_icmp && services.is_vip(dst.bits())) {
            return Verdict::Local;
        }
        Verdict::Drop(if services.is_vip(dst.bits()) {
            DropReason::UnsupportedProtocol
        } else if services.is_backend(src.bits()) {
            DropReason::BackendNoFlow
        } else {
            DropReason::NotForUs
        })
    }

    fn icmp_error<P: PacketBuf>(&mut self, packet: &mut P, parsed: &Parsed) -> Verdict {
        let Ok(inner) = icmp::inner(packet.data(), parsed) else {
            return Verdict::Drop(DropReason::IcmpUntranslatable);
        };
        let Some(tuple) = quoted_flow::<A>(packet.data(), &inner) else {
            let (_, dst) = A::addresses(packet.data(), parsed);
            let is_kernels = self.services.is_kernels(dst.bits());
            return if is_kernels { Verdict::Local } else { Verdict::Drop(DropReason::IcmpNoFlow) };
        };
        let hash = tuple.hash(self.table.seed());
        let Some(Candidate { slot, direction }) = self.find(&tuple, hash) else {
            return self.icmp_without_flow(packet, parsed, &tuple, hash);
        };
        let Some(flow) = self.table.entry(slot).map(Entry::flow) else {
            return Verdict::Drop(DropReason::IcmpNoFlow);
        };
        if parsed.ttl <= 1 {
            return Verdict::Drop(DropReason::TtlExpired);
        }
        match direction {
            Direction::Forward => self.icmp_to_backend(packet, parsed, &inner, &flow, hash),
            Direction::Reverse => self.icmp_to_client(packet, parsed, &inner, &flow),
        }
    }

    /// Modes that need no record still send the error where the hash sends the flow.
    fn icmp_without_flow<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        tuple: &Tuple<A>,
        hash: u32,
    ) -> Verdict {
        let services = self.services;
        let sender = tuple.dst.bits();
        let listener = services.listener_for(sender, tuple.protocol, tuple.dst_port);
        let is_proxy = listener.is_none_or(|listener| listener.mode == Mode::Proxy);
        if is_proxy && services.has_proxy() && (services.is_own(sender) || services.is_vip(sender)) {
            return Verdict::Terminate(NO_LISTENER);
        }
        if services.is_kernels(sender) {
            return Verdict::Local;
        }
        let listener = listener.filter(|listener| !listener.mode.sees_replies());
        let Some(listener) = listener else { return Verdict::Drop(DropReason::IcmpNoFlow) };
        let Some(backend) = self.shared.select_by_hash(services, listener, tuple) else {
            return Verdict::Drop(DropReason::NoBackend);
        };
        let way =
            Way { listener: listener.index, backend, snat: NO_SNAT, snat_port: 0, hash, fallback: true };
        self.deliver(packet, parsed, &way)
    }

    /// The client, or a router on its side, complains about what the backend sent.
    fn icmp_to_backend<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        inner: &InnerFlow,
        flow: &Flow<A>,
        hash: u32,
    ) -> Verdict {
        let services = self.services;
        let Some(listener) = services.listener(flow.listener) else {
            return Verdict::Drop(DropReason::NoListener);
        };
        let Some(backend) = services.backend(flow.backend) else {
            return Verdict::Drop(DropReason::NoBackend);
        };
        if !listener.mode.sees_replies() {
            let (listener, backend) = (flow.listener, flow.backend);
            let way =
                Way { listener, backend, snat: flow.snat, snat_port: flow.snat_port, hash, fallback: false };
            return self.deliver(packet, parsed, &way);
        }
        // the backend sent it from its own address and port, under fullnat to our source address
        let address = address_of(backend.address);
        let frame = packet.data_mut();
        let mut translated = rewrite::set_inner_src(frame, inner, address, backend.serves(flow.vip_port));
        if listener.mode == Mode::Fullnat {
            translated &= self.shared.snat.address(flow.snat).is_some_and(|source| {
                rewrite::set_inner_dst(frame, inner, address_of(source), flow.snat_port)
            });
        }
        translated = translated
            && rewrite::finish_icmp_error(frame, parsed, None, Some(address))
            && rewrite::decrement_ttl(frame, parsed);
        if !translated {
            return Verdict::Drop(DropReason::IcmpUntranslatable);
        }
        Verdict::ToBackend(delivery(flow, backend, parsed))
    }

    /// The backend, or a router on its side, complains about what the client sent.
    fn icmp_to_client<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        inner: &InnerFlow,
        flow: &Flow<A>,
    ) -> Verdict {
        let services = self.services;
        let Some(listener) = services.listener(flow.listener) else {
            return Verdict::Drop(DropReason::NoListener);
        };
        let Some(backend) = services.backend(flow.backend) else {
            return Verdict::Drop(DropReason::NoBackend);
        };
        let vip = address_of(listener.vip);
        let client = address_of(flow.client.bits());
        let frame = packet.data_mut();
        let (sender, _) = A::addresses(frame, parsed);
        let source = (sender.bits() == backend.address).then_some(vip);
        let mut translated = rewrite::set_inner_dst(frame, inner, vip, flow.vip_port);
        if listener.mode == Mode::Fullnat {
            translated &= rewrite::set_inner_src(frame, inner, client, flow.client_port);
        }
        translated = translated
            && rewrite::finish_icmp_error(frame, parsed, source, Some(client))
            && rewrite::decrement_ttl(frame, parsed);
        if !translated {
            return Verdict::Drop(DropReason::IcmpUntranslatable);
        }
        Verdict::ToClient(delivery(flow, backend, parsed))
    }
}

fn delivery<A>(flow: &Flow<A>, backend: &Backend, parsed: &Parsed) -> Delivery {
    Delivery {
        listener: flow.listener,
        backend: flow.backend,
        l3: parsed.l3,
        bytes: parsed.l3_len,
        egress: backend.egress,
        next_hop: backend.next_hop,
        fallback: false,
    }
}
