use super::*;
use crate::{Event, Request};
use std::io::{Read, Write, pipe};

#[test]
fn a_message_arrives_with_its_descriptors() {
    let (shim, vmm) = Channel::pair().unwrap();
    let (mut reader, writer) = pipe().unwrap();
    shim.send(&Request::Connect { port: 1025 }, &[writer.as_fd()]).unwrap();
    drop(writer);
    let (message, mut descriptors) = vmm.receive::<Request>().unwrap();
    assert_eq!(message, Request::Connect { port: 1025 });
    let mut passed = std::fs::File::from(descriptors.pop().unwrap());
    passed.write_all(b"through").unwrap();
    drop(passed);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), descriptors.len()), ("through", 0));
}

#[test]
fn a_closed_peer_is_told_apart_from_an_error() {
    let (shim, vmm) = Channel::pair().unwrap();
    drop(vmm);
    assert!(matches!(shim.receive::<Event>(), Err(ChannelError::Closed)));
    assert!(matches!(shim.send(&Request::Stop, &[]), Err(ChannelError::Closed)));
}

#[test]
fn a_message_of_another_type_is_refused() {
    let (shim, vmm) = Channel::pair().unwrap();
    vmm.send(&"anything", &[]).unwrap();
    assert!(matches!(shim.receive::<Event>(), Err(ChannelError::Malformed(_))));
}

#[test]
fn an_oversized_message_is_not_sent() {
    let (shim, _vmm) = Channel::pair().unwrap();
    assert!(matches!(shim.send(&"x".repeat(MAX_PACKET), &[]), Err(ChannelError::TooLarge)));
}
