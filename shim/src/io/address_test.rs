use super::*;
use crate::error::Error;

#[test]
fn an_address_is_nothing_a_pipe_a_file_or_a_driver() {
    let parse = |address: &str| Address::parse(address).unwrap();
    assert_eq!(parse(""), Address::None);
    assert_eq!(parse("/run/f"), Address::Fifo("/run/f".into()));
    assert_eq!(parse("fifo:///run/f"), Address::Fifo("/run/f".into()));
    assert_eq!(parse("file:///var/log/a%20b"), Address::File("/var/log/a b".into()));
    let driver = |args: &[&str]| {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Address::Driver(DriverCommand { binary: "/bin/log".into(), args })
    };
    assert_eq!(parse("binary:///bin/log"), driver(&[]));
    assert_eq!(parse("binary:///bin/log?a=b&c=d%3De+f&g"), driver(&["a", "b", "c", "d=e f", "g", ""]));
}

#[test]
fn what_is_no_address_is_an_invalid_argument_and_another_scheme_is_unimplemented() {
    for bad in
        ["file://relative", "file://", "binary://?a=b", "binary:///b?a=%4", "file:///%zz", "file:///%+1"]
    {
        let refused = Address::parse(bad).map_err(Error::from);
        assert!(matches!(refused, Err(Error::InvalidArgument(line)) if line.contains(bad)), "{bad}");
    }
    for other in ["binary-v2:///bin/log", "ttrpc+unix:///s?streaming_id=1"] {
        assert!(
            matches!(Address::parse(other).map_err(Error::from), Err(Error::Unimplemented(_))),
            "{other}"
        );
    }
}
