//! A guest's management console, from its user's side.

use crate::SHORT_S_MAX;
use crate::process::{Outcome, Spawned};
use crate::up::Guest;
use crate::world::World;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// A client of a guest's management console, as `uml_mconsole` is one.
#[derive(Debug)]
pub struct Management {
    socket: UnixDatagram,
    own: PathBuf,
}

impl Management {
    const MAGIC: u32 = 0xcafe_babe;
    const VERSION: u32 = 2;
    const DATA_BYTES: usize = 512;

    pub fn new(world: &World, guest: &Guest<'_>) -> Self {
        let own = world.path("tmp").join("client");
        let socket = UnixDatagram::bind(&own).expect("a socket");
        // The guest's user may be another.
        fs::set_permissions(&own, Permissions::from_mode(0o666)).expect("permissions");
        let server = guest.run_directory().join("node-0/uml/mconsole");
        socket.connect(&server).expect("the console's socket");
        socket
            .set_read_timeout(Some(Duration::from_secs(SHORT_S_MAX)))
            .expect("a time limit");
        Self { socket, own }
    }

    /// What is answered, and whether it is an error.
    pub fn ask(&self, command: &str) -> Result<String, String> {
        let mut request = Vec::new();
        for number in [Self::MAGIC, Self::VERSION, command.len() as u32] {
            request.extend(number.to_ne_bytes());
        }
        request.extend(command.as_bytes());
        request.resize(12 + Self::DATA_BYTES, 0);
        self.socket.send(&request).expect("sending a request");
        let (mut text, mut reply) = (String::new(), [0; 1024]);
        loop {
            let bytes = self.socket.recv(&mut reply).expect("an answer");
            let number =
                |at: usize| u32::from_ne_bytes(reply[at..at + 4].try_into().expect("4 bytes"));
            let part = String::from_utf8_lossy(&reply[12..bytes]).into_owned();
            text += part.trim_end_matches('\0');
            let (error, more) = (number(0), number(4));
            if more == 0 {
                return if error == 0 { Ok(text) } else { Err(text) };
            }
        }
    }
}

/// What `uml_mconsole` says, the client that there is, and its exit code.
#[track_caller]
pub fn uml_mconsole(world: &World, guest: &Guest<'_>, words: &[&str]) -> Outcome {
    let mut command = Command::new("uml_mconsole");
    world.surround(&mut command);
    command.arg(guest.run_directory().join("node-0/uml/mconsole"));
    let mut client = Spawned::start(command.args(words));
    client.feed(Vec::new());
    client.wait(Duration::from_secs(SHORT_S_MAX))
}

impl Drop for Management {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.own);
    }
}
