use super::super::doctor::Verdict;
use super::*;

#[test]
fn a_module_is_loaded_built_in_loadable_or_absent() {
    let dir = tempfile::tempdir().unwrap();
    let (loaded, available) = (dir.path().join("module"), dir.path().join("modules"));
    fs::create_dir_all(loaded.join("tun")).unwrap();
    fs::create_dir(&available).unwrap();
    fs::write(available.join("modules.builtin"), "kernel/net/sched/sch_ingress.ko\n").unwrap();
    let dep = "kernel/net/sched/cls_u32.ko.xz: kernel/a.ko.xz\nkernel/b.ko: kernel/net/sched/act_mirred.ko\n";
    fs::write(available.join("modules.dep"), dep).unwrap();
    let found = MODULES.map(|name| state(name, &loaded, &available));
    assert_eq!(found, [State::Present, State::Present, State::Loadable, State::Absent]);
}

#[test]
fn what_can_be_loaded_is_told_and_what_has_to_be_installed_first() {
    let loadable = [("tun", State::Loadable), ("cls_u32", State::Loadable), ("a", State::Present)];
    assert_eq!(advice(&loadable, "6.1"), "modprobe -a tun cls_u32");
    let line = advice(&[("tun", State::Loadable), ("cls_u32", State::Absent)], "6.1");
    assert!(line.starts_with("give kernel 6.1 its module cls_u32 (") && line.contains("extra-6.1"), "{line}");
}

#[test]
fn without_pasta_hosts_are_fit_unless_the_configuration_counts_on_it() {
    for pasta in [None, Some(PathBuf::from("/nonexistent/pasta")), Some(PathBuf::from("/bin/false"))] {
        let (check, needed) = (judge_pasta(pasta.clone(), false), judge_pasta(pasta, true));
        assert_eq!((check.verdict, needed.verdict), (Verdict::Warning, Verdict::Bad));
        assert_eq!(check.advice.as_deref(), Some(INSTALL_PASTA));
    }
}
