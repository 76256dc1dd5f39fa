use super::*;

fn one(protocol: Protocol, address: Option<&str>, host_port: u16, guest_port: u16) -> Published {
    Published { protocol, address: address.map(|address| address.parse().unwrap()), host_port, guest_port }
}

#[test]
fn entries_are_as_with_docker_and_have_commas_between_them() {
    assert_eq!(Published::parse_list("8080:80"), Ok(vec![one(Protocol::Tcp, None, 8080, 80)]));
    assert_eq!(
        Published::parse_list("127.0.0.1:8080:80/tcp, [::1]:8081:80,0.0.0.0:53:5353/udp,8080:1/udp"),
        Ok(vec![
            one(Protocol::Tcp, Some("127.0.0.1"), 8080, 80),
            one(Protocol::Tcp, Some("::1"), 8081, 80),
            one(Protocol::Udp, Some("0.0.0.0"), 53, 5353),
            one(Protocol::Udp, None, 8080, 1),
        ])
    );
}

#[test]
fn an_entry_that_means_nothing_is_named() {
    for entry in [
        "",
        "80",
        ":80",
        "80:",
        "0:80",
        "80:0",
        "65536:80",
        "80:-1",
        "+80:80",
        "a:b",
        "80:80/sctp",
        "80:80/",
        "80-90:80-90",
        "::1:80:80",
        "[127.0.0.1]:80:80",
        "[::1]80:80",
        "localhost:80:80",
        "1.2.3:80:80",
        ":80:80",
        "1:2:3:4",
        "80:80 81:81",
    ] {
        let error = Published::parse_list(entry).unwrap_err();
        assert!(error.starts_with(&format!("{entry:?}: expected ")), "{entry}: {error}");
        let error = Published::parse_list(&format!("8080:80,{entry}")).unwrap_err();
        assert!(error.contains(entry) && !error.contains('\n'), "{entry}: {error}");
    }
}

#[test]
fn a_port_of_the_host_goes_to_one_port_alone() {
    let error = Published::parse_list("127.0.0.1:80:1,127.0.0.2:80:2").unwrap_err();
    assert_eq!(error, "the host's port 80 is published twice");
    Published::parse_list("80:1,80:1/udp").unwrap();
}
