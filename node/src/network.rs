//! The host's end of the guest's network devices: a tap interface, or a helper program that does for the
//! guest what this user may do.
//!
//! The helper is slirp4netns, which speaks the frames of one of UML's own transports: one frame a message
//! on a unix socket. It needs no privilege and no namespace, so it works wherever the guest does. Passt, the
//! other one there is, wants namespaces and speaks a stream, for which somebody would have to copy
//! every frame once more.
//!
//! A device on a switch is a port of it ([`crate::switch`]).
//!
//! A helper ends with the guest process, however that ends: it watches a pipe whose other end that process
//! holds. Until there is one, it ends with this process.
#![allow(unsafe_code)]

use crate::link::Sender;
use crate::process::inherit;
use crate::switch::peers::Switches;
use crate::switch::process::{self, Membership};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::Deserialize;
use serde_json::json;
use span_api::link::{Forward, FromAgent, Network, NetworkKind, UserAddresses};
use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const HELPER: &str = "slirp4netns";

/// Longest wait for a helper to be ready, and for each of its answers.
const HELPER_MS_MAX: u64 = 5000;

/// Longest answer of a helper, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Names of the helper's sockets in the directory of the guest process.
const FRAMES: &str = "net";
const CONTROL: &str = "net-control";

/// What a guest process inherits for its network devices, and the helpers behind them.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    devices: Vec<Device>,
    behind: Behind,
}

/// What has to be gone when the guest process is.
#[derive(Debug, Default)]
pub(crate) struct Behind {
    helpers: Vec<Helper>,
    memberships: Vec<Membership>,
}

#[derive(Debug)]
struct Device {
    unit: u8,
    frames: OwnedFd,
    /// Open as long as the guest process is there.
    kept: Option<OwnedFd>,
}

impl Networks {
    /// Opens all devices; an error is one line.
    pub(crate) async fn open(
        wanted: Vec<Network>,
        directory: &Path,
        log: &PipeWriter,
        sender: &Sender,
        switches: Option<&Switches>,
    ) -> Result<Self, String> {
        let mut networks = Self::default();
        for Network { unit, kind } in wanted {
            match kind {
                NetworkKind::User {
                    addresses,
                    mtu,
                    forwards,
                } => {
                    let user = User {
                        addresses,
                        mtu,
                        forwards: &forwards,
                    };
                    let (helper, frames, kept) = user
                        .start(directory, log, sender)
                        .await
                        .map_err(|line| format!("--net user: {line}"))?;
                    networks.behind.helpers.push(helper);
                    networks.devices.push(Device {
                        unit,
                        frames,
                        kept: Some(kept),
                    });
                }
                NetworkKind::Tap { name } => networks.devices.push(Device {
                    unit,
                    frames: tap::open(&name)
                        .map_err(|error| format!("--net tap:{name} cannot be opened: {error}"))?,
                    kept: None,
                }),
                NetworkKind::Switch { name } => {
                    let joined = match switches {
                        Some(switches) => switches.join(&name, unit, sender),
                        None => process::join(&name, unit, sender).await,
                    };
                    let (frames, membership) =
                        joined.map_err(|line| format!("--net switch:{name}: {line}"))?;
                    networks.behind.memberships.push(membership);
                    networks.devices.push(Device {
                        unit,
                        frames,
                        kept: None,
                    });
                }
            }
        }
        Ok(networks)
    }

    /// Value of [`span_api::guest::NET_FDS_ENV`].
    pub(crate) fn variable(&self) -> String {
        let devices = self.devices.iter().map(|device| {
            let (unit, frames) = (device.unit, device.frames.as_raw_fd());
            match &device.kept {
                Some(kept) => format!("{unit}:{frames}:{}", kept.as_raw_fd()),
                None => format!("{unit}:{frames}"),
            }
        });
        devices.collect::<Vec<_>>().join(",")
    }

    /// What is to be inherited.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        let devices = self.devices.iter();
        devices
            .flat_map(|device| [Some(&device.frames), device.kept.as_ref()])
            .flatten()
            .map(AsRawFd::as_raw_fd)
            .collect()
    }

    /// Lets go of what the guest process has inherited.
    pub(crate) fn into_behind(self) -> Behind {
        self.behind
    }
}

impl Behind {
    /// To be called when the guest process is gone.
    pub(crate) async fn end(self) {
        for helper in self.helpers {
            helper.end().await;
        }
        for membership in self.memberships {
            membership.end().await;
        }
    }
}

/// A running helper.
#[derive(Debug)]
struct Helper {
    /// Dropped to have it ended.
    keep: oneshot::Sender<()>,
    watch: JoinHandle<()>,
}

impl Helper {
    async fn end(self) {
        drop(self.keep);
        let _ = self.watch.await;
    }
}

/// A network through a helper.
struct User<'a> {
    addresses: UserAddresses,
    mtu: u16,
    forwards: &'a [Forward],
}

impl User<'_> {
    /// The helper, the socket with the device's frames, and what tells the helper to end once it is closed.
    async fn start(
        &self,
        directory: &Path,
        log: &PipeWriter,
        sender: &Sender,
    ) -> Result<(Helper, OwnedFd, OwnedFd), String> {
        let failed = |error: io::Error| format!("{HELPER} cannot be started: {error}");
        let (ended, kept) = io::pipe().map_err(failed)?;
        let (ready, readiness) = io::pipe().map_err(failed)?;
        let mut ready = pipe::Receiver::from_owned_fd(ready.into()).map_err(failed)?;
        // A path below the directory may be too long for a socket; one by way of its descriptor is not.
        let opened = File::open(directory).map_err(failed)?;
        let within = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));

        let inherited = [ended.as_raw_fd(), readiness.as_raw_fd()];
        let mut command = Command::new(HELPER);
        command
            .args(["--target-type=bess", FRAMES, "--api-socket", CONTROL])
            .arg(format!("--exit-fd={}", inherited[0]))
            .arg(format!("--ready-fd={}", inherited[1]))
            .arg(format!("--mtu={}", self.mtu))
            .arg(format!(
                "--cidr={}/{}",
                self.addresses.network,
                UserAddresses::PREFIX_BITS
            ))
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.try_clone().map_err(failed)?)
            .process_group(0)
            .kill_on_drop(true);
        let parent = nix::unistd::getpid();
        // SAFETY: the closure runs between fork and exec and makes only system calls that are
        // async-signal-safe, without allocating.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                if nix::unistd::getppid() != parent {
                    return Err(nix::errno::Errno::ESRCH.into());
                }
                inherited.into_iter().try_for_each(inherit)
            });
        }
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!(
                "{HELPER} is not on this host's PATH (Debian and others have it in a package of that name)"
            ),
            _ => failed(error),
        })?;
        drop((ended, readiness));

        let set_up = async {
            let frames = frames(&within.join(FRAMES)).await.map_err(failed)?;
            match ready.read(&mut [0; 1]).await {
                Ok(1) => {}
                _ => return Err(format!("{HELPER} ended; its reason is in the log")),
            }
            for forward in self.forwards {
                self.forward(forward, &within.join(CONTROL))
                    .await
                    .map_err(|reason| format!("hostfwd={forward}: {reason}"))?;
            }
            Ok(frames)
        };
        let frames = tokio::select! {
            frames = timeout(Duration::from_millis(HELPER_MS_MAX), set_up) => frames
                .map_err(|_| format!("{HELPER} was not ready within {HELPER_MS_MAX} ms"))??,
            status = child.wait() => {
                let status = status.map_err(failed)?;
                return Err(format!("{HELPER} ended ({status}); its reason is in the log"));
            }
        };
        // Nobody else is to connect.
        for name in [FRAMES, CONTROL] {
            std::fs::remove_file(directory.join(name)).map_err(failed)?;
        }
        let (keep, guest) = oneshot::channel();
        let watch = tokio::spawn(watch(child, guest, sender.clone()));
        Ok((Helper { keep, watch }, frames, kept.into()))
    }

    async fn forward(&self, forward: &Forward, control: &Path) -> Result<(), String> {
        #[derive(Deserialize)]
        struct Answer {
            error: Option<Reason>,
        }
        #[derive(Deserialize)]
        struct Reason {
            desc: String,
        }
        let request = json!({
            "execute": "add_hostfwd",
            "arguments": {
                "proto": forward.protocol.name(),
                "host_addr": forward.host.ip(),
                "host_port": forward.host.port(),
                "guest_addr": self.addresses.device(),
                "guest_port": forward.guest_port,
            },
        });
        let failed = |error: io::Error| format!("{HELPER} does not answer: {error}");
        let mut answer = Vec::new();
        let mut stream = UnixStream::connect(control).await.map_err(failed)?;
        stream
            .write_all(request.to_string().as_bytes())
            .await
            .map_err(failed)?;
        stream.shutdown().await.map_err(failed)?;
        stream
            .take(ANSWER_BYTES_MAX)
            .read_to_end(&mut answer)
            .await
            .map_err(failed)?;
        let answer: Answer = serde_json::from_slice(&answer)
            .map_err(|error| format!("{HELPER} answers nonsense: {error}"))?;
        match answer.error {
            None => Ok(()),
            Some(Reason { desc }) => {
                let shown: String = desc.chars().filter(|c| !c.is_control()).collect();
                Err(format!("{HELPER} refuses it: {shown}"))
            }
        }
    }
}

/// Connects to the socket that a helper is about to make.
async fn frames(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let address = UnixAddr::new(path)?;
    loop {
        match connect(socket.as_raw_fd(), &address) {
            Ok(()) => return Ok(socket),
            // It is not there, or not listened at, yet; the caller does not wait for ever.
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ECONNREFUSED) => {
                sleep(Duration::from_millis(2)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends a helper when `guest` is dropped; says so if it ends before.
async fn watch(mut child: Child, guest: oneshot::Receiver<()>, sender: Sender) {
    let status = tokio::select! {
        status = child.wait() => status,
        _ = guest => {
            let _ = child.kill().await;
            return;
        }
    };
    let how = match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    let line = format!("span: {HELPER} ended ({how}); the guest is without that network\n");
    let _ = sender.send(FromAgent::Log(line.into_bytes())).await;
}

mod tap {
    use nix::libc;
    use std::fs::{File, OpenOptions};
    use std::io;
    use std::os::fd::{AsRawFd, OwnedFd};

    nix::ioctl_write_ptr_bad!(
        set_interface,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int_bad!(
        set_offload,
        nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>())
    );

    /// Opens the tap interface `name`, which is made unless it exists, as the kernel's tap transport does.
    pub(super) fn open(name: &str) -> io::Result<OwnedFd> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")?;
        // SAFETY: all zero is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.len() >= request.ifr_name.len() {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        set(&file, &request)?;
        Ok(file.into())
    }

    fn set(file: &File, request: &libc::ifreq) -> io::Result<()> {
        let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        // SAFETY: the descriptor is open, and the requests take what they are given.
        unsafe {
            set_interface(file.as_raw_fd(), request)?;
            set_offload(file.as_raw_fd(), offloads as libc::c_int)?;
        }
        Ok(())
    }
}
