//! Windows on an X server of the host: programs of the guest's, and its lines.

use nix::sys::signal::Signal;
use span_tests::{END_MS_MAX, SHORT_S_MAX, Spawned, Up, World, descendants, wait_until};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(SHORT_S_MAX);

/// An X server, or nothing where one of the programs that a test needs is not there.
struct Screen {
    server: Spawned,
    display: String,
}

impl Screen {
    fn new(world: &World, needed: &[&str]) -> Option<Self> {
        let here = |program: &&str| {
            let found = Command::new("sh")
                .args(["-c", "command -v \"$1\" >/dev/null", "sh", program])
                .env("PATH", span_tests::PATH)
                .status();
            found.is_ok_and(|status| status.success())
        };
        let mut needed = ["Xvfb", "xterm", "xwininfo"].iter().chain(needed);
        if let Some(missing) = needed.find(|program| !here(program)) {
            span_tests::not_tested(&format!(
                "windows: {missing} is not there (xvfb, xterm, x11-utils)"
            ));
            return None;
        }
        let mut server = Command::new("Xvfb");
        world.surround(&mut server);
        // Without -noreset it begins anew, and drops everybody, whenever the last client leaves.
        server.args(["-displayfd", "1", "-listen", "tcp", "-ac", "-noreset"]);
        let mut server = Spawned::start(server.args(["-screen", "0", "800x600x24"]));
        server.wait_for("\n", LIMIT);
        let display = String::from_utf8_lossy(&server.stdout()).trim().to_owned();
        Some(Self { server, display })
    }

    fn windows(&self) -> String {
        let tree = Command::new("xwininfo")
            .args(["-root", "-tree", "-display", &format!(":{}", self.display)])
            .env("PATH", span_tests::PATH)
            .output()
            .expect("xwininfo");
        String::from_utf8_lossy(&tree.stdout).into_owned()
    }

    fn shows(&self, title: &str) -> bool {
        self.windows().contains(&format!("\"{title}\""))
    }

    fn end(self) {
        self.server.signal(Signal::SIGTERM);
        self.server.wait(LIMIT);
    }
}

#[test]
fn a_terminal_of_the_guests_is_a_window_of_the_hosts() {
    let world = World::new();
    let Some(screen) = Screen::new(&world, &["slirp4netns"]) else {
        return;
    };
    let guest = Up::on(&world, "a,b")
        .options(&["--net", "b:user"])
        .detach("windows");
    let variable = format!("DISPLAY=10.0.2.2:{}", screen.display);
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
    let shown = wait_until(LIMIT, || screen.shows("Window of b"));
    assert!(shown, "{}{}", screen.windows(), terminal.stderr());
    let said = wait_until(LIMIT, || guest.sh("cat /tmp/said 2>&1; :").contains("span"));
    assert!(said, "{}", terminal.stderr());
    guest.status().assert_moved(&before);
    guest.down().expect(0);
    drop(terminal);
    assert!(!screen.shows("Window of b"), "{}", screen.windows());
    screen.end();
    world.assert_clean();
}

fn attached(guest: &span_tests::Guest<'_>, line: &str) -> u64 {
    let lines = guest.lines();
    let lines = lines.as_array().expect("an array");
    let line = lines.iter().find(|one| one["name"] == line);
    let attached = &line.expect("the line")["attached"];
    attached.as_u64().expect("a number")
}

#[test]
fn a_line_can_be_a_window() {
    let world = World::new();
    let Some(screen) = Screen::new(&world, &[]) else {
        return;
    };
    let display = format!("DISPLAY=:{}", screen.display);
    let guest = Up::on(&world, "a,b")
        .append("con1=xterm ssl2=xterm")
        .through(&["env", &display])
        .detach("shown");
    for line in ["con1", "ssl2"] {
        let title = format!("{line} of shown");
        assert!(
            wait_until(LIMIT, || screen.shows(&title)),
            "{}",
            screen.windows()
        );
        assert!(wait_until(LIMIT, || attached(&guest, line) == 1));
    }
    // The line has the size of the window, on the node that has none of them, too.
    let size = || guest.exec_on(&["--node", "b"], &["sh", "-c", "stty size </dev/ttyS2"]);
    let sized = || size().text() == "24 80";
    assert!(wait_until(LIMIT, sized), "{:?}", size());
    // Who closes a window is detached, and the guest runs on.
    let emulators = descendants(std::process::id() as i32);
    let mut emulators = emulators.iter().filter(|process| {
        let command = &process.command;
        command.starts_with("xterm") && command.contains("ssl2")
    });
    let emulator = emulators.next().expect("a window's process").pid;
    let pid = nix::unistd::Pid::from_raw(emulator);
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("closing it");
    assert!(wait_until(LIMIT, || attached(&guest, "ssl2") == 0));
    let gone = || !screen.shows("ssl2 of shown");
    assert!(wait_until(LIMIT, gone), "{}", screen.windows());
    guest.exec(&["true"]).expect(0);
    // The other one ends with the guest.
    assert!(screen.shows("con1 of shown"), "{}", screen.windows());
    guest.down().expect(0);
    let gone = || !screen.shows("con1 of shown");
    let limit = Duration::from_millis(END_MS_MAX);
    assert!(wait_until(limit, gone), "{}", screen.windows());
    screen.end();
    world.assert_clean();
}
