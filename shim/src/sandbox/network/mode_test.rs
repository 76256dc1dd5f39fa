use super::*;
use serde_json::{Value, json};

fn of(spec: &Value, config: &Config) -> Result<NetworkMode> {
    NetworkMode::of(&Spec::parse(spec.to_string().as_bytes()).unwrap(), config)
}

/// A spec with a network namespace of its own.
fn spec(annotations: Value) -> Value {
    json!({ "annotations": annotations, "linux": { "namespaces": [{ "type": "network" }] } })
}

fn user(asked_by: Option<&'static str>, publish: Option<&str>) -> Result<NetworkMode> {
    let published = publish.map(|list| Published::parse_list(list).unwrap()).unwrap_or_default();
    Ok(NetworkMode::User(UserNetwork { asked_by, published }))
}

#[test]
fn a_sandbox_has_what_its_namespace_holds_unless_it_says_otherwise() {
    let config = Config::default();
    assert_eq!(of(&spec(json!({})), &config), Ok(NetworkMode::Namespace));
    assert_eq!(of(&json!({}), &config), Ok(NetworkMode::Namespace));
    assert_eq!(of(&spec(json!({ "io.lazaret.net": "none" })), &config), Ok(NetworkMode::None));
    assert_eq!(of(&spec(json!({ "io.lazaret.net": "user" })), &config), user(Some(MODE_ANNOTATION), None));
    let published = spec(json!({ "io.lazaret.net": "user", "io.lazaret.net.publish": "8080:80" }));
    assert_eq!(of(&published, &config), user(Some(MODE_ANNOTATION), Some("8080:80")));
}

#[test]
fn the_configuration_has_one_default_for_specs_with_a_namespace_and_one_for_those_without() {
    let own = Config { network: NetworkDefault::User, ..Config::default() };
    let host = Config { host_network: NetworkDefault::User, ..Config::default() };
    let named = json!({ "linux": { "namespaces": [{ "type": "network", "path": "/proc/self/ns/net" }] } });
    assert_eq!(of(&spec(json!({})), &own), user(None, None));
    assert_eq!(of(&spec(json!({})), &host), Ok(NetworkMode::Namespace));
    for spec in [json!({}), named] {
        assert_eq!(of(&spec, &own), Ok(NetworkMode::Namespace));
        assert_eq!(of(&spec, &host), user(None, None));
    }
    assert_eq!(of(&spec(json!({ "io.lazaret.net": "none" })), &own), Ok(NetworkMode::None));
    let published = spec(json!({ "io.lazaret.net.publish": "80:80/udp" }));
    assert_eq!(of(&published, &own), user(Some(PUBLISH_ANNOTATION), Some("80:80/udp")));
}

#[test]
fn what_means_nothing_is_refused_by_name() {
    for (name, value) in [
        ("io.lazaret.net", ""),
        ("io.lazaret.net", "host"),
        ("io.lazaret.net.publish", ""),
        ("io.lazaret.net.publish", "80"),
        ("io.lazaret.net.publish", "8080:80"),
    ] {
        let refused = of(&spec(json!({ name: value })), &Config::default()).unwrap_err();
        let start = format!("annotation {name}={value:?}: ");
        assert!(
            matches!(&refused, Error::InvalidArgument(line) if line.starts_with(&start) && !line.contains('\n')),
            "{refused}"
        );
    }
    let refused = of(
        &spec(json!({ "io.lazaret.net": "none", "io.lazaret.net.publish": "8080:80" })),
        &Config::default(),
    );
    assert_eq!(
        refused.unwrap_err().to_string(),
        "annotation io.lazaret.net.publish=\"8080:80\": it is for a user-mode network, which io.lazaret.net=user asks for"
    );
}
