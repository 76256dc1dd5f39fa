use super::*;

#[test]
fn a_path_and_systemds_form_name_a_directory() {
    for (cgroups_path, expected) in [
        ("/default/c1", "default/c1"),
        ("kubepods/pod1/c1", "kubepods/pod1/c1"),
        ("system.slice:docker:c1", "system.slice/docker-c1.scope"),
        (":docker:c1", "system.slice/docker-c1.scope"),
        (
            "kubepods-burstable-pod1.slice:cri-containerd:c1",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-c1.scope",
        ),
        ("-.slice::c1", "c1.scope"),
    ] {
        assert_eq!(directory(cgroups_path).unwrap(), Path::new(expected), "{cgroups_path}");
    }
}

#[test]
fn a_path_out_of_the_tree_is_refused() {
    for bad in ["/a/../../b", "..", "/", "", "a:b", "a:b:c", "x.slice:../../y:z/../../../.."] {
        assert!(directory(bad).is_err(), "{bad}");
    }
}

#[test]
fn only_what_was_made_is_removed() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("theirs")).unwrap();
    let cgroup = Cgroup::create(root.path(), "/theirs/ours/c1").unwrap();
    assert_eq!(
        cgroup.made,
        ["theirs/ours/c1/vm", "theirs/ours/c1", "theirs/ours"].map(|path| root.path().join(path))
    );
    remove(&cgroup.made);
    assert!(root.path().join("theirs").is_dir() && !root.path().join("theirs/ours").exists());
}

#[test]
fn a_cgroup_others_live_in_stays_until_the_last_leaves_it() {
    let root = tempfile::tempdir().unwrap();
    let one = Cgroup::create(root.path(), "/shared/c1").unwrap();
    let two = Cgroup::create(root.path(), "/shared/c2").unwrap();
    remove(&one.made);
    assert!(root.path().join("shared/c2").is_dir());
    remove(&two.made);
    assert!(!root.path().join("shared").exists());
}

#[test]
fn starts_and_ends_at_once_do_not_trip_over_each_other() {
    let root = tempfile::tempdir().unwrap();
    let live = |n: u32| {
        for _ in 0..200 {
            remove(&Cgroup::create(root.path(), &format!("/a/b/c{n}")).unwrap().made);
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|n| _ = scope.spawn(move || live(n))));
    assert!(!root.path().join("a/b").exists());
}

/// A cgroup of a tree of plain files, with these interface files.
fn with_files(root: &Path, files: &[&str]) -> Cgroup {
    let cgroup = Cgroup::create(root, "/c1").unwrap();
    files.iter().for_each(|file| fs::write(root.join("c1/vm").join(file), "").unwrap());
    cgroup
}

#[test]
fn a_limit_is_written_and_its_controller_handed_down_from_the_root_on() {
    let root = tempfile::tempdir().unwrap();
    let cgroup = with_files(root.path(), &["cpu.max"]);
    let control = ["", "c1"].map(|above| root.path().join(above).join("cgroup.subtree_control"));
    control.iter().for_each(|file| fs::write(file, "").unwrap());
    cgroup.limit(&Limits::of_resources(&serde_json::json!({ "cpu": { "quota": 1000 } })).unwrap()).unwrap();
    assert_eq!(fs::read_to_string(root.path().join("c1/vm/cpu.max")).unwrap(), "1000 100000");
    control.iter().for_each(|file| assert_eq!(fs::read_to_string(file).unwrap(), "+cpu"));
}

#[test]
fn a_limit_without_its_controller_fails_nothing_and_makes_no_file() {
    let root = tempfile::tempdir().unwrap();
    let cgroup = with_files(root.path(), &[]);
    cgroup.limit(&Limits::of_resources(&serde_json::json!({ "cpu": { "quota": 1000 } })).unwrap()).unwrap();
    assert!(!root.path().join("c1/vm/cpu.max").exists());
}

#[test]
fn a_limit_that_the_kernel_refuses_is_named() {
    let root = tempfile::tempdir().unwrap();
    let cgroup = with_files(root.path(), &[]);
    // A directory in the file's place refuses to be written, as the kernel refuses a value.
    fs::create_dir(root.path().join("c1/vm/cpu.max")).unwrap();
    let limits = Limits::of_resources(&serde_json::json!({ "cpu": { "quota": 1000 } })).unwrap();
    let error = cgroup.limit(&limits).unwrap_err().to_string();
    assert!(error.contains("c1/vm") && error.contains("\"1000 100000\" for cpu.max"), "{error}");
}
