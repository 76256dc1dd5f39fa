use super::*;
use std::fs::File;
use std::io::Read;

/// A file that holds its name.
fn file(name: Name) -> OwnedFd {
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, name.to_string().as_bytes()).unwrap();
    reader.into()
}

fn descriptors(names: &[Name]) -> Descriptors {
    Descriptors::pair(names.to_vec(), names.iter().copied().map(file).collect()).unwrap()
}

#[test]
fn a_descriptor_is_found_by_its_name_wherever_it_is() {
    let names = [Name::Disk(1), Name::Kernel, Name::Disk(0), Name::Kvm];
    let mut descriptors = descriptors(&names);
    for name in [Name::Kvm, Name::Disk(0), Name::Disk(1), Name::Kernel] {
        let mut text = String::new();
        File::from(descriptors.take(name).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, name.to_string());
    }
    descriptors.finish().unwrap();
}

#[test]
fn errors_name_the_descriptor() {
    let line = |error: DescriptorError| error.to_string();
    let mut two = descriptors(&[Name::Kvm, Name::Disk(2)]);
    two.take(Name::Kvm).unwrap();
    assert_eq!(line(two.take(Name::Kvm).unwrap_err()), "the descriptor \"kvm\" is missing");
    assert_eq!(line(two.finish().unwrap_err()), "the descriptor \"disk 2\" is not expected");
    let twice = Descriptors::pair(vec![Name::Kernel; 2], vec![file(Name::Kernel), file(Name::Kernel)]);
    assert_eq!(line(twice.unwrap_err()), "the descriptor \"kernel\" is there twice");
    let short = Descriptors::pair(vec![Name::ConsoleLog], Vec::new());
    assert_eq!(line(short.unwrap_err()), "1 descriptors are named and 0 came");
}

#[test]
fn a_message_with_one_descriptor_has_no_other() {
    descriptors(&[Name::Stream]).only(Name::Stream).unwrap();
    let missing = descriptors(&[]).only(Name::Stream).unwrap_err();
    assert_eq!(missing, DescriptorError::Missing(Name::Stream));
    let unexpected = descriptors(&[Name::Kvm, Name::Stream]).only(Name::Stream).unwrap_err();
    assert_eq!(unexpected, DescriptorError::Unexpected(Name::Kvm));
}
