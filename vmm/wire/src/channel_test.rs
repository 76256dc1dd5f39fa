use super::*;
use crate::{Event, Request};
use std::io::{Read, Write, pipe};

#[test]
fn a_message_arrives_with_its_descriptors() {
    let (shim, vmm) = Channel::pair().unwrap();
    let (mut reader, writer) = pipe().unwrap();
    shim.send(&Request::Connect { port: 1025 }, &[(Name::Stream, writer.as_fd())]).unwrap();
    drop(writer);
    let (message, descriptors) = vmm.receive::<Request>().unwrap();
    assert_eq!(message, Request::Connect { port: 1025 });
    let mut passed = std::fs::File::from(descriptors.only(Name::Stream).unwrap());
    passed.write_all(b"through").unwrap();
    drop(passed);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
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

#[test]
fn a_name_that_is_there_twice_is_not_sent() {
    let (shim, _vmm) = Channel::pair().unwrap();
    let twice = [(Name::Stream, shim.as_fd()), (Name::Stream, shim.as_fd())];
    let sent = shim.send(&Request::Stop, &twice);
    assert!(matches!(sent, Err(ChannelError::Descriptors(DescriptorError::Duplicate(Name::Stream)))));
}

#[test]
fn descriptors_that_are_not_named_are_refused() {
    let (shim, vmm) = Channel::pair().unwrap();
    let bytes = br#"{"message":"stop","descriptors":[]}"#;
    let raw = [shim.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&raw)];
    let iov = [IoSlice::new(bytes)];
    sendmsg::<()>(shim.as_raw_fd(), &iov, &rights, MsgFlags::empty(), None).unwrap();
    let received = vmm.receive::<Request>();
    let count = DescriptorError::Count { names: 0, descriptors: 1 };
    assert!(matches!(received, Err(ChannelError::Descriptors(error)) if error == count));
}
