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
    assert_eq!(cgroup.made, [root.path().join("theirs/ours/c1"), root.path().join("theirs/ours")]);
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
