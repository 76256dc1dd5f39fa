use super::*;

#[test]
fn an_address_of_loopback_survives_the_wire() {
    for text in ["127.0.0.1:80", "[::1]:61439"] {
        let address: SocketAddr = text.parse().unwrap();
        let port = LoopbackPort::at(address).unwrap();
        assert_eq!(LoopbackPort::decode(port.encode()).unwrap().address(), address);
    }
    let port = LoopbackPort::at("127.0.0.1:80".parse().unwrap()).unwrap();
    assert_eq!(port.encode(), [4, 0, 80]);
    assert_eq!(port.in_other_family().encode(), [6, 0, 80]);
    assert_eq!(port.in_other_family().in_other_family(), port);
}

#[test]
fn no_other_address_and_no_other_family_is_one() {
    for text in ["127.0.0.11:53", "10.0.0.1:80", "[::]:80", "[::ffff:127.0.0.1]:80"] {
        assert_eq!(LoopbackPort::at(text.parse().unwrap()), None, "{text}");
    }
    for family in [0, 1, 5, 255] {
        assert_eq!(LoopbackPort::decode([family, 0, 80]), None);
    }
}
