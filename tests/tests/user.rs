//! Without root, and without the right to use userfaultfd for the kernel's own accesses.

use span_tests::{Owner, Up, World};

/// `nobody`.
const USER: u32 = 65534;

#[test]
fn an_ordinary_user_can_do_the_same() {
    if !nix::unistd::geteuid().is_root() {
        span_tests::not_tested(
            "another user: the tests are not run by root, and so by one already",
        );
        return;
    }
    let setting = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    assert_eq!(
        setting.as_deref().map_or("0", str::trim),
        "0",
        "vm.unprivileged_userfaultfd: the restricted setting is the one to test"
    );
    let world = World::of(Owner::User(USER));
    let up = || Up::three(&world);
    assert_eq!(up().run(&["nproc"]).expect(0).text(), "3");
    assert_eq!(
        up().options(&["--cpus", "2", "--paging", "mprotect"])
            .run(&["nproc"])
            .expect(0)
            .text(),
        "6"
    );
    up().sh("exit 7").expect(7);
    let guest = up().detach("mine");
    let before = guest.status();
    before.assert_spread();
    for node in &before.nodes {
        let pid = node.pid.expect("a pid");
        let owner = std::fs::metadata(format!("/proc/{pid}/exe")).map(|_| ());
        assert!(owner.is_ok(), "{pid}");
        let status = span_tests::text(format!("/proc/{pid}/status"));
        assert!(status.contains(&format!("Uid:\t{USER}\t{USER}\t{USER}\t{USER}")));
    }
    let sums = guest
        .sh("for c in 0 1 2; do taskset -c $c sha256sum /usr/bin/python3; done | sort -u | wc -l");
    assert_eq!(sums, "1");
    guest.status().assert_moved(&before);
    guest.down().expect(0);
    world.assert_clean();
}
