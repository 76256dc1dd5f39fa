use super::*;
use containerd_shim_protos::bootstrap_api::Extension;

fn args() -> Args {
    Args::parse(["-namespace", "default", "-id", "c1", "start"].map(Into::into)).unwrap()
}

/// `runtimeoptions.v1.Options{type_url: "t", config_path: "/etc/x.toml"}`, as containerd encodes it.
fn options() -> Any {
    Any {
        type_url: "runtimeoptions.v1.Options".into(),
        value: b"\x0a\x01t\x12\x0b/etc/x.toml".to_vec(),
        ..Default::default()
    }
}

fn params() -> BootstrapParams {
    BootstrapParams {
        instance_id: "c1".into(),
        namespace: "default".into(),
        containerd_ttrpc_address: "/run/c.ttrpc".into(),
        extensions: vec![Extension { value: Some(options()).into(), ..Default::default() }],
        ..Default::default()
    }
}

fn parse(input: &[u8]) -> Bootstrap {
    Bootstrap::parse(input, &args(), "/env.ttrpc".into()).unwrap()
}

#[test]
fn nothing_on_stdin_is_a_legacy_start() {
    let bootstrap = parse(b"");
    assert_eq!((bootstrap.protocol, bootstrap.config_path.clone()), (Protocol::Legacy, None));
    assert_eq!(bootstrap.reply("unix:///s").unwrap(), b"unix:///s");
}

#[test]
fn bare_options_are_not_taken_for_bootstrap_params() {
    let bootstrap = parse(&options().write_to_bytes().unwrap());
    assert_eq!(bootstrap.protocol, Protocol::Legacy);
    assert_eq!(bootstrap.config_path, Some("/etc/x.toml".into()));
    assert_eq!(bootstrap.ttrpc_address, "/env.ttrpc");
}

#[test]
fn bootstrap_params_are_answered_with_a_bootstrap_result() {
    let bootstrap = parse(&params().write_to_bytes().unwrap());
    assert_eq!(bootstrap.config_path, Some("/etc/x.toml".into()));
    assert_eq!(bootstrap.ttrpc_address, "/run/c.ttrpc");
    let reply = BootstrapResult::parse_from_bytes(&bootstrap.reply("unix:///s").unwrap()).unwrap();
    assert_eq!((reply.version, reply.address.as_str(), reply.protocol.as_str()), (2, "unix:///s", "ttrpc"));
}

#[test]
fn bootstrap_params_of_another_sandbox_are_not_ours() {
    let other = BootstrapParams { instance_id: "c2".into(), ..params() };
    assert_eq!(parse(&other.write_to_bytes().unwrap()).protocol, Protocol::Legacy);
}

#[test]
fn a_debug_level_or_more_verbose_turns_debug_on() {
    for (level, debug) in [(0, false), (-4, true), (-8, true), (4, false)] {
        let params = BootstrapParams { log_level: protobuf::EnumOrUnknown::from_i32(level), ..params() };
        assert_eq!(parse(&params.write_to_bytes().unwrap()).debug, debug, "{level}");
    }
}

#[test]
fn options_of_another_runtime_are_ignored_and_named() {
    let any = Any { type_url: "containerd.runc.v1.Options".into(), value: vec![8, 1], ..Default::default() };
    assert_eq!(parse(&any.write_to_bytes().unwrap()).ignored, ["containerd.runc.v1.Options"]);
}

#[test]
fn options_that_are_cut_short_are_an_error() {
    let any = Any { value: b"\x12\x0b/etc".to_vec(), ..options() };
    let result = Bootstrap::parse(&any.write_to_bytes().unwrap(), &args(), String::new());
    assert!(matches!(result, Err(BootstrapError::Options(_))));
}
