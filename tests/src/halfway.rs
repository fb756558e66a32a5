//! Sessions that come to a standstill halfway, however fast either side is.

use crate::up::Guest;
use crate::world::World;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use span_api::codec;
use span_api::session::{FromInit, ToInit};
use std::fs::{self, DirBuilder, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;

/// What each side says before the session's own messages: its greeting, and what is asked for or the answer to it.
const FRAMES_BEFORE: usize = 2;

/// A guest as one command sees it, by way of a socket that passes on all messages but those that give credit. So
/// in either direction as many bytes arrive as may go unacknowledged ([`span_api::session::WINDOW_BYTES`]), and no
/// more: who has more to send is in the middle of it until something ends that.
#[derive(Debug)]
pub struct Halfway {
    runtime: PathBuf,
    /// What says that a guest runs here.
    _lock: Flock<File>,
    relay: JoinHandle<()>,
}

impl Halfway {
    pub fn to(world: &World, guest: &Guest<'_>) -> Self {
        let runtime = world.path("work").join("halfway");
        let real = guest.run_directory();
        let directory = runtime.join("span").join(real.file_name().expect("a name"));
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&directory).expect("a directory");
        let lock = File::open(&directory).expect("a directory");
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).expect("nobody else's");
        let listener = UnixListener::bind(directory.join("control.sock")).expect("a socket");
        let server = real.join("control.sock");
        let relay = std::thread::spawn(move || {
            let (client, _) = listener.accept().expect("a connection");
            let server = UnixStream::connect(server).expect("the guest's coordinator");
            relay(&client, &server);
        });
        Self {
            runtime,
            _lock: lock,
            relay,
        }
    }

    /// The one command that comes this way.
    pub fn command(&self, world: &World) -> Command {
        let mut command = world.command("coordinator");
        command.env("XDG_RUNTIME_DIR", &self.runtime);
        command
    }

    /// Once the command has ended.
    pub fn end(self) {
        self.relay.join().expect("no panic");
        fs::remove_dir_all(&self.runtime).expect("removing it");
    }
}

fn relay(client: &UnixStream, server: &UnixStream) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pass_on(client, server, |message: &ToInit| {
                matches!(message, ToInit::Credit { .. })
            });
        });
        pass_on(server, client, |message: &FromInit| {
            matches!(message, FromInit::Credit { .. })
        });
    });
}

/// Passes on what is not withheld, until either side goes away; then both have gone.
fn pass_on<M: DeserializeOwned>(
    mut from: &UnixStream,
    mut to: &UnixStream,
    withheld: impl Fn(&M) -> bool,
) {
    let mut number = 0;
    while let Some(frame) = frame(&mut from) {
        number += 1;
        let keep = number > FRAMES_BEFORE
            && withheld(&codec::decode(&frame[4..]).expect("a session's message"));
        if !keep && to.write_all(&frame).is_err() {
            break;
        }
    }
    for side in [from, to] {
        // It may be gone already.
        let _ = side.shutdown(Shutdown::Both);
    }
}

/// A length and so many bytes.
fn frame(from: &mut impl Read) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).ok()?;
    let mut frame = length.to_vec();
    frame.resize(4 + codec::body_len(length).expect("a frame"), 0);
    from.read_exact(&mut frame[4..]).ok()?;
    Some(frame)
}
