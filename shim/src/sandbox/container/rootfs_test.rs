use super::*;

fn words(text: &str) -> Vec<String> {
    text.split(',').map(Into::into).collect()
}

#[test]
fn options_are_flags_or_the_file_systems() {
    let (flags, data) = split(&words("ro,nosuid,lowerdir=/a:/b,X-containerd.mkdir.path=/x,rw"));
    assert_eq!(flags, MsFlags::MS_NOSUID);
    assert_eq!(data, ["lowerdir=/a:/b"]);
}

#[test]
fn an_overlay_of_many_layers_is_shortened_to_fit_a_page() {
    let layers: Vec<String> = (0..120)
        .map(|n| format!("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/{n}/fs"))
        .collect();
    let data = vec!["index=off".into(), "workdir=/w".into(), format!("lowerdir={}", layers.join(":"))];
    let (directory, short) = shorten(data);
    let directory = directory.unwrap();
    assert_eq!(directory, Path::new("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"));
    assert!(short.join(",").len() <= MAX_DATA);
    assert_eq!(short[..2], ["index=off", "workdir=/w"]);
    let named: Vec<_> = short[2]["lowerdir=".len()..].split(':').map(|layer| directory.join(layer)).collect();
    assert_eq!(named, layers.iter().map(PathBuf::from).collect::<Vec<_>>());
}

#[test]
fn short_data_is_left_alone() {
    let data = words("lowerdir=/a:/b,upperdir=/u");
    assert_eq!(shorten(data.clone()), (None, data));
}

#[test]
fn a_mount_target_stays_below_the_root() {
    let entry =
        RootMount { fs_type: "bind".into(), source: "/".into(), target: "/../x".into(), options: vec![] };
    let result = mount_all(&[entry], Path::new("/nonexistent"), &mut Vec::new(), &Steps::default());
    assert!(matches!(result, Err(MountsError::Rootfs(RootfsError::Target(_)))));
}

#[test]
fn a_loop_image_is_refused_with_what_to_do() {
    let entry = RootMount {
        fs_type: "ext4".into(),
        source: "/i".into(),
        target: String::new(),
        options: words("loop,ro"),
    };
    let error =
        mount_all(&[entry], Path::new("/nonexistent"), &mut Vec::new(), &Steps::default()).unwrap_err();
    assert!(error.to_string().contains("overlayfs"));
}
