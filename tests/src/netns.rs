//! Other hosts: network, process, mount, clock and name spaces of their own, joined by a switch.
//!
//! What two hosts share by accident, they share here: so a host sees neither the product's directory
//! nor the others' files, and its clock is days away from theirs.

use crate::leftovers::{descendants, mounts};
use crate::process::Spawned;
use crate::product::program;
use crate::world::World;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Where a host finds its own files.
const HOME: &str = "/mnt";

/// Where `ip` keeps the names of network spaces.
const NAMES: &str = "/run/netns";

/// Process 1 of a host: what is started there ends as it does elsewhere, with the system still around
/// it. Processes left running after it make this exit with 99.
const RUN: &str = "\"$@\"; code=$?; \
    for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do \
    ps -e -o stat=,comm= | awk '$1 !~ /Z/ && $2 !~ /^(sh|ps|awk)$/ { left = 1 } END { exit left }' \
    && exit $code; \
    sleep 0.1; done; ps -e >&2; exit 99";

/// Hosts on one switch; gone when dropped.
#[derive(Debug)]
pub struct Network<'w> {
    world: &'w World,
    prefix: String,
    spaces: Vec<String>,
    /// Whether the first space made what `ip` keeps names in.
    made_names: bool,
}

/// One of them: 10.83.0.N.
#[derive(Debug, Clone)]
pub struct Host {
    pub address: String,
    space: String,
    directory: PathBuf,
    clock_offset_s: u32,
}

impl<'w> Network<'w> {
    /// Makes the switch. The caller must be root.
    pub fn new(world: &'w World) -> Self {
        let mut network = Self {
            world,
            prefix: format!("span{}", std::process::id()),
            spaces: Vec::new(),
            made_names: !mounts().contains(NAMES),
        };
        network.space("switch");
        network.inside("switch", "link add switch type bridge");
        network.inside("switch", "link set switch up");
        network
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn space(&mut self, name: &str) -> String {
        let space = self.name(name);
        ip(&format!("netns add {space}"));
        self.spaces.push(space.clone());
        space
    }

    fn inside(&self, name: &str, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name(name)));
    }

    /// Adds a host.
    pub fn host(&mut self, name: &str) -> Host {
        // The switch is the first space.
        let number = self.spaces.len();
        let switch = self.name("switch");
        let space = self.space(name);
        let port = format!("port{number}");
        let address = format!("10.83.0.{number}");
        ip(&format!(
            "link add eth0 netns {space} type veth peer name {port} netns {switch}"
        ));
        self.inside("switch", &format!("link set {port} master switch up"));
        self.inside(name, &format!("addr add {address}/24 dev eth0"));
        self.inside(name, "link set eth0 up");
        self.inside(name, "link set lo up");
        let directory = self.world.path("work").join(name);
        fs::create_dir_all(&directory).expect("a directory");
        fs::copy(program("node"), directory.join("node")).expect("copying a program");
        Host {
            address,
            space,
            directory,
            clock_offset_s: number as u32 * 200_000,
        }
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        // Spaces of running processes would stay: whoever is in them is ended first.
        for space in &self.spaces {
            for process in descendants(std::process::id() as i32) {
                if process.command.contains(&format!("netns exec {space} ")) {
                    let pid = nix::unistd::Pid::from_raw(process.pid);
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                }
            }
            let _ = Command::new("ip").args(["netns", "del", space]).status();
        }
        // Fails if somebody else has made a space since.
        if self.made_names && fs::read_dir(NAMES).is_ok_and(|mut names| names.next().is_none()) {
            let _ = nix::mount::umount(NAMES);
        }
    }
}

impl Host {
    /// The words before a command that run it on this host, seeing the product or not.
    fn words(&self, product: bool) -> Vec<String> {
        let hide = if product {
            String::new()
        } else {
            let beside = program("coordinator");
            let directory = beside.parent().expect("a directory").display().to_string();
            format!(
                "mount -t tmpfs none '{directory}' && mount -t tmpfs none /tmp && mount -t tmpfs none /var/tmp && "
            )
        };
        let script = format!(
            "mount --bind '{}' {HOME} && {hide}cd / || exit; {RUN}",
            self.directory.display()
        );
        let offset = self.clock_offset_s.to_string();
        let mut words: Vec<String> = ["ip", "netns", "exec", &self.space]
            .map(String::from)
            .to_vec();
        words.extend(
            [
                "unshare",
                "--pid",
                "--mount",
                "--uts",
                "--ipc",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--time",
                "--monotonic",
                &offset,
                "--boottime",
                &offset,
                "sh",
                "-c",
                &script,
                "sh",
            ]
            .map(String::from),
        );
        words
    }

    /// Runs a coordinator there.
    pub fn coordinator(&self) -> Vec<String> {
        self.words(true)
    }

    /// Starts a daemon that knows `token`; returns once it listens.
    #[track_caller]
    pub fn serve(&self, world: &World, token: &str, options: &[&str]) -> (Spawned, String) {
        fs::write(self.directory.join("token"), token).expect("writing a token");
        restrict(&self.directory.join("token"));
        let words = self.words(false);
        let listen = format!("{}:7000", self.address);
        let mut command = Command::new(&words[0]);
        world.surround(&mut command);
        command.args(&words[1..]).args([
            &format!("{HOME}/node"),
            "serve",
            "--listen",
            &listen,
            "--token-file",
            &format!("{HOME}/token"),
            "--state-dir",
            &format!("{HOME}/state"),
        ]);
        command.args(options);
        let mut daemon = Spawned::start(&mut command);
        daemon.wait_for("listening on", Duration::from_secs(10));
        (daemon, listen)
    }

    /// What the daemon there keeps: its files but for cached kernels.
    pub fn state(&self) -> Vec<PathBuf> {
        crate::leftovers::files_below(&self.directory.join("state"))
            .into_iter()
            .filter(|path| !path.display().to_string().contains("artefacts"))
            .collect()
    }
}

/// A secret is for its owner only.
pub fn restrict(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("permissions");
}

#[track_caller]
fn ip(arguments: &str) {
    let done = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .expect("ip, of the package iproute2");
    assert!(
        done.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}
