//! A Debian of its own, as a disk of another node: to a login, and with packages from a mirror. `SPAN_DEBIAN` names one.

use span_tests::{Spawned, Up, World};
use std::fs;
use std::process::Command;
use std::time::Duration;

const DIALOG: &str = include_str!("../programs/dialog.py");

/// Everything up to a login, on a slow machine, in seconds.
const BOOT_S_MAX: u64 = 300;

/// Makes a Debian with sysvinit in a directory, and an image of it: IMAGE MIRROR.
const MAKE: &str = include_str!("../programs/debian.sh");

#[test]
fn debian_boots_to_a_login_and_installs_a_package() {
    let Some(mirror) = std::env::var_os("SPAN_DEBIAN") else {
        span_tests::not_tested("Debian as a root: SPAN_DEBIAN is not set to the URL of a mirror");
        return;
    };
    let world = World::lasting(Duration::from_secs(1800));
    let image = world.path("work").join("debian.img");
    let mut make = Command::new("sh");
    make.args(["-euc", MAKE, "sh"]).arg(&image).arg(&mirror);
    make.env("PATH", span_tests::PATH);
    Spawned::start(&mut make)
        .wait(Duration::from_secs(1200))
        .expect(0);
    let up = Up::on(&world, "a,b")
        .options(&["--net", "b:user", "--tty", "--root"])
        .option(format!("b:{}", image.display()));
    let start = "mount --bind $(tty) /dev/console && exec unshare -fp --mount-proc /sbin/init";
    let command = up.command(&["sh", "-c", start]);
    let mut dialog = Command::new("/usr/bin/python3");
    world.surround(&mut dialog);
    dialog.env("TERM", "dumb").args(["-c", DIALOG]);
    dialog.arg(BOOT_S_MAX.to_string());
    dialog.args([
        "debian login: ",
        "root",
        "Password: ",
        "span",
        "~# ",
        "apt-get -q update && apt-get -q -y install hello && taskset -c 0,1 hello; nproc; cat /proc/1/comm",
        "Hello, world!",
        "",
        "2\\s+init\\s",
        "dpkg -s hello | grep Status; poweroff",
        "install ok installed",
        "--",
    ]);
    dialog.arg(command.get_program()).args(command.get_args());
    let outcome = Spawned::start(&mut dialog).wait(Duration::from_secs(2 * BOOT_S_MAX));
    println!("{}", outcome.text());
    assert!(!outcome.text().contains("\nNO "), "{}", outcome.text());
    world.assert_clean();
    // What was installed is in the image.
    let list = Command::new("debugfs")
        .args(["-R", "stat /usr/bin/hello"])
        .arg(&image)
        .env("PATH", span_tests::PATH)
        .output()
        .expect("debugfs");
    let said = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(said.contains("Type: regular"), "{said}");
    fs::remove_file(&image).expect("an image");
}
