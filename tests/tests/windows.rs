//! Programs of the guest with windows on an X server of its host.

use nix::sys::signal::Signal;
use span_tests::{SHORT_S_MAX, Spawned, Up, World, wait_until};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(SHORT_S_MAX);

#[test]
fn a_terminal_of_the_guests_is_a_window_of_the_hosts() {
    let here = |program: &&str| {
        let found = Command::new("sh")
            .args(["-c", "command -v \"$1\" >/dev/null", "sh", program])
            .env("PATH", span_tests::PATH)
            .status();
        found.is_ok_and(|status| status.success())
    };
    let needed = ["Xvfb", "xterm", "xwininfo", "slirp4netns"];
    if let Some(missing) = needed.iter().find(|program| !here(program)) {
        span_tests::not_tested(&format!(
            "programs with windows: {missing} is not there (xvfb, xterm, x11-utils)"
        ));
        return;
    }
    let world = World::new();
    let mut server = Command::new("Xvfb");
    world.surround(&mut server);
    // Without -noreset it begins anew, and drops everybody, whenever the last client leaves.
    server.args(["-displayfd", "1", "-listen", "tcp", "-ac", "-noreset"]);
    let mut server = Spawned::start(server.args(["-screen", "0", "800x600x24"]));
    server.wait_for("\n", LIMIT);
    let display = String::from_utf8_lossy(&server.stdout()).trim().to_owned();
    let guest = Up::on(&world, "a,b")
        .options(&["--net", "b:user"])
        .detach("windows");
    let variable = format!("DISPLAY=10.0.2.2:{display}");
    let script = "uname -r >/tmp/said; exec sleep 1000";
    let argv = [
        "taskset",
        "-c",
        "1",
        "env",
        &variable,
        "xterm",
        "-T",
        "Window of b",
        "-e",
        "sh",
        "-c",
        script,
    ];
    let before = guest.status();
    let terminal = guest.begin(&argv);
    let windows = || {
        let tree = Command::new("xwininfo")
            .args(["-root", "-tree", "-display", &format!(":{display}")])
            .env("PATH", span_tests::PATH)
            .output()
            .expect("xwininfo");
        String::from_utf8_lossy(&tree.stdout).into_owned()
    };
    let shown = wait_until(LIMIT, || windows().contains("\"Window of b\""));
    assert!(shown, "{}{}", windows(), terminal.stderr());
    let said = wait_until(LIMIT, || guest.sh("cat /tmp/said 2>&1; :").contains("span"));
    assert!(said, "{}", terminal.stderr());
    guest.status().assert_moved(&before);
    guest.down().expect(0);
    drop(terminal);
    assert!(!windows().contains("\"Window of b\""), "{}", windows());
    server.signal(Signal::SIGTERM);
    server.wait(LIMIT);
    world.assert_clean();
}
