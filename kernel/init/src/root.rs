//! Sets up the guest's root file system and what every program expects around it.

use crate::{
    applets,
    cmdline::{self, BadOption, HostMount, Options, Root},
    kmsg,
    network::{self, Device},
};
use nix::mount::{MsFlags, mount};
use std::{
    fs::{self, DirBuilder},
    io,
    net::Ipv4Addr,
    os::{
        fd::{AsRawFd, IntoRawFd},
        unix::fs::{DirBuilderExt, symlink},
    },
    path::{Path, PathBuf},
};

/// Where the new root is put together before it takes the place of the initramfs.
const NEW_ROOT: &str = "/span/root";
const LOWER: &str = "/span/lower";
const CHANGES: &str = "/span/changes";

/// A copy of this program in the guest's root, for its other names.
const PROGRAM: &str = "/run/span/init";

/// Directory of the names in roots that must not be changed.
pub(crate) const PROGRAM_DIRECTORY: &str = "/run/span/bin";

#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error("{action} failed")]
    Io { action: String, source: io::Error },
    #[error(transparent)]
    Option(#[from] BadOption),
    #[error("{0}")]
    Disk(String),
    #[error("{0}: no file system of this kernel accepts it")]
    NoFileSystem(PathBuf),
}

/// Mounts /dev, /proc and /sys in the initramfs: without them nothing else can be found.
pub(crate) fn mount_kernel_file_systems() -> Result<(), RootError> {
    mount_new(
        "devtmpfs",
        "/dev",
        "devtmpfs",
        MsFlags::MS_NOSUID,
        "mode=0755",
    )?;

    open_standard_streams()?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_new("proc", "/proc", "proc", flags, "")?;
    mount_new("sysfs", "/sys", "sysfs", flags, "")
}

/// Without a console the kernel leaves descriptors 0 to 2 closed, and whatever is opened next would
/// take their numbers.
fn open_standard_streams() -> Result<(), RootError> {
    loop {
        let null = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(failed("opening /dev/null"))?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        // Kept open for good: these are the standard streams now.
        let _ = null.into_raw_fd();
    }
}

/// Does what the command line asks for. Afterwards `/` is the guest's root file system, complete
/// with the usual mounts, the host name is set and the loopback interface is up.
pub(crate) fn set_up() -> Result<(), RootError> {
    let line = fs::read("/proc/cmdline").map_err(failed("reading /proc/cmdline"))?;
    let Options {
        root,
        name,
        mounts,
        disks,
        devices,
    } = cmdline::parse(&line)?;
    disks.into_iter().try_for_each(check_disk)?;

    match &root {
        Root::Host => mount_host_overlay()?,
        Root::HostDirectory(directory) => {
            mount_hostfs(directory, NEW_ROOT, MsFlags::empty())?;
        }
        Root::Block {
            device,
            file_system,
        } => mount_block(device, file_system.as_deref())?,
        Root::Initramfs => {}
    }
    let program =
        fs::read("/proc/self/exe").map_err(failed("reading the first process's program"))?;
    if root != Root::Initramfs {
        switch_root()?;
    }

    mount_new(
        "run",
        "/run",
        "tmpfs",
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        "mode=0755",
    )?;
    mount_devices();
    optional(mount_new(
        "cgroup2",
        "/sys/fs/cgroup",
        "cgroup2",
        MsFlags::MS_NOSUID,
        "",
    ));
    if matches!(root, Root::Host | Root::Initramfs) {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount_new("tmp", "/tmp", "tmpfs", flags, "mode=1777")?;
    }
    install_applets(&root, &program)?;
    mounts.iter().try_for_each(mount_of_host)?;

    optional(
        nix::unistd::sethostname(&name).map_err(|error| RootError::Io {
            action: format!("setting the host name to {name:?}"),
            source: error.into(),
        }),
    );
    optional(network::raise("lo").map_err(failed("bringing up the loopback interface")));
    set_up_network(&devices, &root)
}

/// A guest without a disk that it was to have is none: what it was to write would go elsewhere.
fn check_disk(letter: char) -> Result<(), RootError> {
    if Path::new(&format!("/sys/block/ubd{letter}")).exists() {
        return Ok(());
    }
    let line = kmsg::last(&format!("ubd{letter}: "));
    let line = line.unwrap_or_else(|| format!("the kernel has made no disk ubd{letter}"));
    Err(RootError::Disk(line))
}

/// The host's `/`, untouched: every change goes to a tmpfs.
fn mount_host_overlay() -> Result<(), RootError> {
    mount_hostfs(Path::new("/"), LOWER, MsFlags::MS_RDONLY)?;
    mount_new("changes", CHANGES, "tmpfs", MsFlags::empty(), "mode=0755")?;
    make_directory(&format!("{CHANGES}/upper"))?;
    make_directory(&format!("{CHANGES}/work"))?;
    let data = format!("lowerdir={LOWER},upperdir={CHANGES}/upper,workdir={CHANGES}/work");
    mount_new("host", NEW_ROOT, "overlay", MsFlags::empty(), &data)
}

fn mount_hostfs(directory: &Path, target: &str, flags: MsFlags) -> Result<(), RootError> {
    make_directory(target)?;
    mount(Some("none"), target, Some("hostfs"), flags, Some(directory)).map_err(|error| {
        RootError::Io {
            action: format!("mounting the host's directory {}", directory.display()),
            source: error.into(),
        }
    })
}

/// A directory that the user wants in the guest.
fn mount_of_host(mount: &HostMount) -> Result<(), RootError> {
    let target = &mount.mount_point;
    fs::create_dir_all(target).map_err(|source| RootError::Io {
        action: format!("making the mount point {}", target.display()),
        source,
    })?;
    let flags = match mount.read_only {
        true => MsFlags::MS_RDONLY,
        false => MsFlags::empty(),
    };
    let data = Some(mount.what.as_os_str());
    nix::mount::mount(Some("none"), target, Some("hostfs"), flags, data).map_err(|error| {
        RootError::Io {
            action: format!("mounting {} on {}", mount.what.display(), target.display()),
            source: error.into(),
        }
    })
}

fn mount_block(device: &Path, file_system: Option<&str>) -> Result<(), RootError> {
    make_directory(NEW_ROOT)?;
    let attempt = |kind: &str| mount(Some(device), NEW_ROOT, Some(kind), MsFlags::empty(), NONE);
    let error = |error: nix::Error| RootError::Io {
        action: format!("mounting {}", device.display()),
        source: error.into(),
    };
    if let Some(kind) = file_system {
        return attempt(kind).map_err(error);
    }
    let list =
        fs::read_to_string("/proc/filesystems").map_err(failed("reading /proc/filesystems"))?;
    for kind in block_file_systems(&list) {
        match attempt(kind) {
            Ok(()) => return Ok(()),
            // This file system's way of saying that the device holds something else.
            Err(nix::Error::EINVAL) => {}
            Err(other) => return Err(error(other)),
        }
    }
    Err(RootError::NoFileSystem(device.to_path_buf()))
}

/// The file systems of `/proc/filesystems` that want a device.
fn block_file_systems(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .filter(|line| !line.starts_with("nodev"))
        .map(str::trim)
}

/// Puts [`NEW_ROOT`] in the place of the initramfs, whose mounts move along.
fn switch_root() -> Result<(), RootError> {
    for directory in ["/dev", "/proc", "/sys"] {
        let target = format!("{NEW_ROOT}{directory}");
        make_directory(&target)?;
        mount(
            Some(directory),
            target.as_str(),
            NONE,
            MsFlags::MS_MOVE,
            NONE,
        )
        .map_err(|error| failed(&format!("moving {directory} to the new root"))(error.into()))?;
    }
    std::env::set_current_dir(NEW_ROOT).map_err(failed("entering the new root"))?;
    // The initramfs itself cannot be unmounted or pivoted away; it is covered.
    mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)
        .map_err(|error| failed("moving the new root into place")(error.into()))?;
    std::os::unix::fs::chroot(".").map_err(failed("changing to the new root"))?;
    std::env::set_current_dir("/").map_err(failed("entering the new root"))
}

/// What a udev would add to devtmpfs.
fn mount_devices() {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    optional(mount_new(
        "devpts",
        "/dev/pts",
        "devpts",
        flags,
        "gid=5,mode=0620,ptmxmode=0666",
    ));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    optional(mount_new("shm", "/dev/shm", "tmpfs", flags, "mode=1777"));
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ];
    for (target, link) in links {
        optional(symlink(target, link).map_err(failed(&format!("linking {link}"))));
    }
}

/// Makes the programs this one also is available in the guest.
fn install_applets(root: &Root, program: &[u8]) -> Result<(), RootError> {
    make_directory("/run/span")?;
    fs::write(PROGRAM, program).map_err(failed(&format!("writing {PROGRAM}")))?;
    fs::set_permissions(PROGRAM, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(failed(&format!("making {PROGRAM} executable")))?;
    let link_all = |directory: &str, names: &[&str]| -> Result<(), RootError> {
        make_directory(directory)?;
        for name in names {
            let link = format!("{directory}/{name}");
            // On the host these belong to an init that does not run here.
            let _ = fs::remove_file(&link);
            symlink(PROGRAM, &link).map_err(failed(&format!("linking {link}")))?;
        }
        Ok(())
    };
    match root {
        Root::Host => {
            link_all("/usr/sbin", applets::ALWAYS)?;
            match Path::new("/sbin").is_symlink() {
                true => Ok(()),
                false => link_all("/sbin", applets::ALWAYS),
            }
        }
        Root::HostDirectory(_) | Root::Block { .. } => link_all(PROGRAM_DIRECTORY, applets::ALWAYS),
        Root::Initramfs => {
            link_all("/sbin", applets::ALWAYS)?;
            link_all("/bin", applets::PROGRAMS)
        }
    }
}

/// Configures the devices that the command line names. The first is the way out.
fn set_up_network(devices: &[Device], root: &Root) -> Result<(), RootError> {
    for (index, device) in devices.iter().enumerate() {
        let action = format!("bringing up the network device {}", device.name);
        device.configure(index == 0).map_err(failed(&action))?;
    }
    match devices.first() {
        Some(device) => set_name_server(device.name_server, root),
        None => Ok(()),
    }
}

/// On the host `/etc/resolv.conf` may lead to files of services that do not run here; in a root that
/// must not be changed it is covered.
fn set_name_server(address: Ipv4Addr, root: &Root) -> Result<(), RootError> {
    const PLACE: &str = "/etc/resolv.conf";
    const COVER: &str = "/run/span/resolv.conf";
    let contents = format!("nameserver {address}\n");
    let write = |path: &str| fs::write(path, &contents).map_err(failed(&format!("writing {path}")));
    match root {
        Root::Host | Root::Initramfs => {
            make_directory("/etc")?;
            let _ = fs::remove_file(PLACE);
            write(PLACE)
        }
        Root::HostDirectory(_) | Root::Block { .. } => {
            write(COVER)?;
            let covered = mount(Some(COVER), PLACE, NONE, MsFlags::MS_BIND, NONE);
            // A root without the file has no use for it.
            optional(covered.map_err(|error| RootError::Io {
                action: format!("mounting {COVER} on {PLACE}"),
                source: error.into(),
            }));
            Ok(())
        }
    }
}

const NONE: Option<&str> = None;

fn mount_new(
    source: &str,
    target: &str,
    kind: &str,
    flags: MsFlags,
    data: &str,
) -> Result<(), RootError> {
    make_directory(target)?;
    mount(Some(source), target, Some(kind), flags, Some(data)).map_err(|error| RootError::Io {
        action: format!("mounting {kind} on {target}"),
        source: error.into(),
    })
}

fn make_directory(path: &str) -> Result<(), RootError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(failed(&format!("creating the directory {path}")))
}

fn failed(action: &str) -> impl Fn(io::Error) -> RootError + use<> {
    let action = action.to_string();
    move |source| RootError::Io {
        action: action.clone(),
        source,
    }
}

/// A guest is of use without this: the log says what is missing.
fn optional(result: Result<(), RootError>) {
    if let Err(error) = result {
        kmsg::warning(&crate::chain(&error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_file_systems_on_devices_are_tried() {
        let list = "nodev\tsysfs\nnodev\ttmpfs\n\text4\n\tvfat\n";
        assert_eq!(
            block_file_systems(list).collect::<Vec<_>>(),
            ["ext4", "vfat"]
        );
    }
}
