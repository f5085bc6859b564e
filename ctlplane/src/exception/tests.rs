use super::*;

#[test]
fn a_missing_interface_is_no_error() {
    let wanted =
        Wanted { interface: "weir-none0".to_owned(), addresses: vec![], routes: vec![], vips: vec![] };
    assert!(!keep(&mut Netlink::open().unwrap(), &wanted).unwrap());
}
