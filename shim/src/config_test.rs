use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("/c.toml")).map_err(|error| error.to_string())
}

#[test]
fn an_empty_file_is_the_default() {
    assert_eq!(parse("").unwrap(), Config::default());
}

#[test]
fn what_describe_prints_is_what_it_describes() {
    let config = Config {
        vcpus: 3,
        docker_disks_mib: 100 << 10,
        kernel_args: "a=\"b\"".into(),
        host_network: NetworkDefault::User,
        ..Config::default()
    };
    let read = parse(&config.describe()).unwrap();
    assert_eq!(read, config);
    let keys = config.describe().lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
    assert_eq!(keys, KEYS.len());
}

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    let error = parse("vcpus = 2\nvcpu = 3\n").unwrap_err();
    assert!(error.starts_with("/c.toml: line 2: unknown field `vcpu`"), "{error}");
    assert!(!error.contains('\n'));
}

#[test]
fn zero_is_refused_by_name() {
    assert_eq!(parse("memory_mib = 0").unwrap_err(), "/c.toml: memory_mib must not be 0");
}

#[test]
fn a_network_that_nobody_knows_is_refused_with_those_there_are() {
    let error = parse("network = \"host\"").unwrap_err();
    assert_eq!(error, "/c.toml: line 1: unknown variant `host`, expected `none` or `user`");
}

#[test]
fn a_disk_that_no_daemon_could_use_is_refused() {
    for mib in ["0", "63", "16777217"] {
        let error = parse(&format!("docker_disk_mib = {mib}")).unwrap_err();
        assert_eq!(error, "/c.toml: docker_disk_mib must be from 64 to 16777216");
    }
}

#[test]
fn a_named_file_must_exist() {
    assert!(matches!(Config::load(Some(Path::new("/nonexistent/c.toml"))), Err(ConfigError::Read { .. })));
}
