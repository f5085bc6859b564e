//! What the kernel is to keep for a configuration, and that what is not there harms nobody.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::diagnostic::Source;
use crate::machine::Machine;

#[test]
fn a_missing_interface_is_no_error() {
    let wanted =
        Wanted { interface: "weir-none0".to_owned(), addresses: vec![], routes: vec![], vips: vec![] };
    assert!(!keep(&mut Netlink::open().unwrap(), &wanted).unwrap());
}

fn model(text: &str) -> Model {
    let machine = Machine { cpus: vec![0, 1], memory: None };
    let source = Source { name: "test", text };
    let (model, findings) = crate::validate::load(source, &machine);
    model.unwrap_or_else(|| panic!("{}", crate::diagnostic::render(&source.reports(&findings), false)))
}

#[test]
fn ports_that_the_kernel_does_not_see_have_an_interface_unless_it_is_off() {
    let port = |name: &str, rest: &str| format!("[[port]]\nname = \"{name}\"\n{rest}\n");
    let text = [
        port("wan", "device = \"pci:0000:3b:00.0\""),
        port("lan", "device = \"af_xdp:eth1\"\nexception = \"inside0\""),
        port("a-very-long-name", "device = \"tap:one\""),
        port("off", "device = \"af_xdp:eth2\"\nexception = \"off\""),
        port("seen", "device = \"af_packet:eth3\""),
        port("asked", "device = \"af_packet:eth4\"\nexception = \"asked0\""),
        port("nothing", "device = \"null:\""),
    ]
    .concat();
    let interfaces: Vec<String> = wanted(&model(&text)).into_iter().map(|wanted| wanted.interface).collect();
    assert_eq!(interfaces, ["weir-wan", "inside0", "weir-a-very-lon", "asked0"]);
}

#[test]
fn vips_whose_backends_answer_by_themselves_can_be_probed() {
    let mut text = "[[port]]\nname = \"wan\"\ndevice = \"af_xdp:eth1\"\naddresses = [\"198.18.0.254/24\"]\n\
                    [[pool]]\nname = \"app\"\n[[pool.backend]]\nname = \"a\"\naddress = \"198.18.0.11\"\n"
        .to_owned();
    for (number, mode) in ["dsr", "ipip", "gue", "nat", "fullnat"].into_iter().enumerate() {
        text += &format!(
            "[[vip]]\nname = \"{mode}\"\naddress = \"198.18.100.{number}\"\n\
             [[listener]]\nname = \"{mode}\"\nvip = \"{mode}\"\nprotocol = \"tcp\"\nport = 80\nmode = \"{mode}\"\npool = \"app\"\n"
        );
    }
    let wanted = wanted(&model(&text));
    let vip = |last| IpAddr::V4(Ipv4Addr::new(198, 18, 100, last));
    assert_eq!(wanted.first().unwrap().vips, [vip(0), vip(1), vip(2)]);
}

#[test]
fn a_table_has_the_ports_ways_and_ends_there() {
    let own = Ipv4Addr::new(198, 18, 0, 254);
    let gateway = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1));
    let own_v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfe);
    let wanted = Wanted {
        interface: "weir-wan".to_owned(),
        addresses: vec![(own.into(), 24), (Ipv4Addr::new(198, 18, 0, 253).into(), 24), (own_v6.into(), 64)],
        routes: vec![Route { prefix: Ipv4Addr::UNSPECIFIED.into(), length: 0, gateway }],
        vips: vec![Ipv4Addr::new(198, 18, 100, 1).into()],
    };
    let lines: Vec<String> = table::routes_of(&wanted).iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "198.18.0.0/24 src 198.18.0.254",
            "2001:db8::/64 src 2001:db8::fe",
            "0.0.0.0/0 via 198.18.0.1 src 198.18.0.254",
            "198.18.100.1/32 via 169.254.87.1 src 198.18.0.254",
            "unreachable 0.0.0.0/0",
            "unreachable ::/0",
        ]
    );
}
