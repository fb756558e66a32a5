//! An interactive shell on the user's terminal.

use crate::support::{Place, kill, wait_until};
use nix::fcntl::OFlag;
use nix::pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{LocalFlags, tcgetattr};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

/// A terminal with a program on it.
struct Terminal {
    keyboard: File,
    slave: File,
    screen: Arc<Mutex<String>>,
    child: Child,
}

impl Terminal {
    fn start(place: &Place, arguments: &[&str]) -> Self {
        let terminal = Self::start_unwatched(place, arguments);
        let mut output = terminal.keyboard.try_clone().unwrap();
        let shown = terminal.screen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(bytes @ 1..) = output.read(&mut buffer) {
                shown
                    .lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&buffer[..bytes]));
            }
        });
        terminal
    }

    /// Nobody looks at the screen, nor holds the terminal open but the one who drops it.
    fn start_unwatched(place: &Place, arguments: &[&str]) -> Self {
        // Not inherited by whatever another test starts at the same time: a terminal that somebody
        // holds open cannot be closed.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname_r(&master).unwrap();
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(name)
            .unwrap();
        let keyboard = File::from(OwnedFd::from(master));
        resize(&keyboard, 33, 99);
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let mut command = place.coordinator();
        command
            .args(arguments)
            .env("PS1", "$ ")
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio());
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        Self {
            keyboard,
            slave,
            screen: Arc::default(),
            child,
        }
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    fn shows(&self, text: &str) {
        let screen = self.screen.clone();
        wait_until(&format!("{text:?} on the screen"), || {
            let shown = screen.lock().unwrap().contains(text);
            if !shown && self.screen.lock().unwrap().len() > 1 << 20 {
                panic!("too much on the screen");
            }
            shown
        });
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.slave)
            .unwrap()
            .local_flags
            .contains(LocalFlags::ICANON)
    }

    fn end(mut self) -> i32 {
        let status = self.child.wait().unwrap();
        assert!(!self.is_raw(), "the terminal was not restored");
        status.code().unwrap()
    }
}

fn resize(terminal: &File, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one `winsize`, from one that lives through the call.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) };
}

#[test]
fn without_a_command_the_user_gets_a_shell() {
    let place = Place::new();
    let mut terminal = Terminal::start(&place, &["up", "--nodes", "a,b"]);
    terminal.shows("ready");
    wait_until("the terminal is raw", || terminal.is_raw());
    terminal.press("tty; stty size; echo x$((40+2))\r");
    terminal.shows("/dev/pts/");
    terminal.shows("33 99");
    terminal.shows("x42");
    resize(&terminal.keyboard, 44, 111);
    terminal.press("until [ \"$(stty size)\" = '44 111' ]; do sleep 0.01; done; echo z$((40+4))\r");
    terminal.shows("z44");
    // Ctrl-C is for the shell in the guest.
    terminal.press("sh -c 'echo w$((40+1)); exec sleep 100'\r");
    terminal.shows("w41");
    terminal.press("\x03");
    terminal.press("echo y$((40+3))\r");
    terminal.shows("y43");
    terminal.press("exit 5\r");
    assert_eq!(terminal.end(), 5);
}

#[test]
fn the_terminal_is_restored_however_the_guest_ends() {
    let place = Place::new();
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGHUP, 129)] {
        let terminal = Terminal::start(&place, &["up", "--nodes", "a"]);
        wait_until("the terminal is raw", || terminal.is_raw());
        kill(terminal.child.id() as i32, signal);
        assert_eq!(terminal.end(), code);
    }
    let terminal = Terminal::start(&place, &["up", "--nodes", "a,b"]);
    wait_until("the terminal is raw", || terminal.is_raw());
    kill(
        place.status("")["nodes"][1]["pid"].as_i64().unwrap() as i32,
        libc::SIGKILL,
    );
    assert_eq!(terminal.end(), 70);
}

#[test]
fn ctrl_c_ends_a_guest_whose_command_has_no_terminal() {
    let place = Place::new();
    let mut terminal = Terminal::start(&place, &["up", "--nodes", "a,b", "--", "sleep", "100"]);
    terminal.shows("ready");
    assert!(!terminal.is_raw());
    terminal.press("\x03");
    assert_eq!(terminal.end(), 130);
}

#[test]
fn a_command_gets_a_terminal_if_asked() {
    let place = Place::new();
    let terminal = Terminal::start(&place, &["up", "--nodes", "a", "-t", "--", "stty", "size"]);
    terminal.shows("33 99");
    assert_eq!(terminal.end(), 0);
}

#[test]
fn a_closed_terminal_ends_the_guest() {
    let place = Place::new();
    let terminal = Terminal::start_unwatched(&place, &["up", "--nodes", "a,b"]);
    wait_until("the terminal is raw", || terminal.is_raw());
    let begin = std::time::Instant::now();
    let Terminal {
        mut child,
        keyboard,
        slave,
        ..
    } = terminal;
    drop((keyboard, slave));
    assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGHUP));
    place.gone_since(begin);
}

#[test]
fn the_console_is_detached_by_key_with_the_terminal_restored() {
    let place = Place::new();
    place.detached("--nodes a");
    let mut terminal = Terminal::start(&place, &["console"]);
    wait_until("the terminal is raw", || terminal.is_raw());
    terminal.press("tty\r");
    terminal.shows("/dev/pts/");
    terminal.press("\x1d");
    assert_eq!(terminal.end(), 0);
    assert_eq!(place.words("down").code, 0);
}

#[test]
fn a_live_view_leaves_the_terminal_as_it_was_however_it_ends() {
    let place = Place::new();
    let name = place.detached("--nodes a,b");
    let arguments = ["stats", "--watch", "--interval", "0.1"];
    let start = || {
        let terminal = Terminal::start(&place, &arguments);
        terminal.shows("FAULTS/s");
        terminal.shows("2560");
        assert!(terminal.is_raw());
        terminal
    };
    for key in ["q", "\x03"] {
        let mut terminal = start();
        terminal.press(key);
        // The other screen has been left.
        terminal.shows("\x1b[?1049l");
        assert_eq!(terminal.end(), 0);
    }
    let terminal = start();
    kill(terminal.child.id() as i32, libc::SIGTERM);
    assert_eq!(terminal.end(), 143);

    let terminal = start();
    assert_eq!(place.words(&format!("down {name}")).code, 0);
    terminal.shows(&format!("coordinator: guest {name} ended"));
    assert_eq!(terminal.end(), 0);
}
