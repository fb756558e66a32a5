//! The run directory of a guest: `$XDG_RUNTIME_DIR/span/NAME`, else `/tmp/span-UID/NAME`.
//!
//! It holds `control.sock`, `log`, `pid` and what the local agents need. The coordinator holds a `flock`
//! on the directory itself as long as the guest runs: the lock ends with its holder, however that ends,
//! so a directory that nobody locks is a leftover and may be removed by whoever wants the name. No
//! separate lock file could be left behind that way. Whoever looks for leftovers shares the lock while he does.

use crate::failure::Failure;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) const CONTROL_SOCKET: &str = "control.sock";
pub(crate) const LOG_FILE: &str = "log";
pub(crate) const OLD_LOG_FILE: &str = "log.old";
const PID_FILE: &str = "pid";

/// Tries to get hold of a directory that others make and remove at the same time.
const TRIES_MAX: usize = 64;

/// How long somebody may take to remove a leftover, on a host that is busy, and how often it is looked whether he has.
const REMOVAL_S_MAX: u64 = 10;
const REMOVAL_LOOK_MS: u64 = 2;

/// Generated names tried.
const GENERATED_MAX: usize = 10_000;

/// Longest path of a unix socket, in bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Guests of this user on this machine that run, by name.
#[derive(Debug)]
pub(crate) struct Base {
    path: PathBuf,
}

impl Base {
    pub(crate) fn of_this_user() -> Self {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let path = match runtime.filter(|path| path.is_absolute() && path.is_dir()) {
            Some(path) => path.join("span"),
            None => PathBuf::from(format!("/tmp/span-{}", nix::unistd::getuid())),
        };
        Self { path }
    }

    /// Makes the directory of all guests, and refuses one that somebody else could have prepared; false if it has gone
    /// meanwhile.
    fn make(&self) -> Result<bool, Failure> {
        let failed = |error: io::Error| Failure::cannot(self.path.display(), error);
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
        let metadata = match fs::symlink_metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        let own = nix::unistd::getuid().as_raw();
        if !metadata.is_dir() || metadata.uid() != own {
            return Err(Failure::failed(format!(
                "{} is not a directory of yours",
                self.path.display()
            )));
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err(Failure::failed(format!(
                "{} can be entered by others: chmod 700 it",
                self.path.display()
            )));
        }
        Ok(true)
    }

    /// Takes a name for a new guest.
    pub(crate) fn create(&self, name: Option<&str>) -> Result<RunDirectory, Failure> {
        if let Some(name) = name {
            return self.take(name)?.ok_or_else(|| {
                Failure::usage(format!("--name {name}: a guest of that name runs already"))
            });
        }
        for number in 1..=GENERATED_MAX {
            if let Some(directory) = self.take(&format!("span-{number}"))? {
                return Ok(directory);
            }
        }
        Err(Failure::failed(
            "no free name for the guest was found; give one with --name",
        ))
    }

    /// Takes a name, unless a running guest has it.
    fn take(&self, name: &str) -> Result<Option<RunDirectory>, Failure> {
        let path = self.path.join(name);
        if path.join(CONTROL_SOCKET).as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(Failure::failed(format!(
                "{}: the path is too long",
                path.display()
            )));
        }
        let failed = |error: io::Error| Failure::cannot(path.display(), error);
        let mut tries_left = TRIES_MAX;
        let removed_by = Instant::now() + Duration::from_secs(REMOVAL_S_MAX);
        while tries_left > 0 && Instant::now() < removed_by {
            tries_left -= 1;
            if !self.make()? {
                continue;
            }
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                // The directory of all guests was removed by the last of them just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            }
            let lock = match lock(&path, FlockArg::LockExclusiveNonblock) {
                Ok(Some(lock)) => lock,
                Ok(None) if is_running(&path) => return Ok(None),
                // Somebody who looks for leftovers has it, for as long as it takes to remove one.
                Ok(None) => {
                    tries_left += 1;
                    std::thread::sleep(Duration::from_millis(REMOVAL_LOOK_MS));
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            let directory = RunDirectory {
                name: name.to_string(),
                path,
                base: self.path.clone(),
                _lock: lock,
            };
            directory.clear();
            let pid = format!("{}\n", std::process::id());
            fs::write(directory.path.join(PID_FILE), pid)
                .map_err(|error| Failure::cannot(directory.path.display(), error))?;
            return Ok(Some(directory));
        }
        Err(Failure::failed(format!(
            "{}: cannot get hold of it",
            path.display()
        )))
    }

    /// Names of the guests that run, in order. Leftovers found on the way are removed.
    pub(crate) fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.path) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|entry| self.runs(&entry.path()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        // Fails unless it is empty.
        let _ = fs::remove_dir(&self.path);
        names
    }

    fn runs(&self, path: &Path) -> bool {
        match lock(path, FlockArg::LockSharedNonblock) {
            Ok(Some(_lock)) => {
                let _ = fs::remove_dir_all(path);
                false
            }
            Ok(None) => true,
            Err(_) => false,
        }
    }

    /// The directory of a running guest: of `name`, or of the only one.
    pub(crate) fn find(&self, name: Option<&str>) -> Result<(String, PathBuf), Failure> {
        let names = self.names();
        let name = match name {
            Some(name) => names
                .iter()
                .find(|known| *known == name)
                .ok_or_else(|| Failure::usage(format!("{name:?}: no guest of that name runs"))),
            None => match names.as_slice() {
                [] => Err(Failure::usage("no guest runs")),
                [name] => Ok(name),
                several => Err(Failure::usage(format!(
                    "several guests run, name one: {}",
                    several.join(", ")
                ))),
            },
        }?;
        Ok((name.clone(), self.path.join(name)))
    }
}

/// Whether a guest runs whose directory this is.
pub(crate) fn is_running(path: &Path) -> bool {
    matches!(lock(path, FlockArg::LockSharedNonblock), Ok(None))
}

/// A running guest whose end is waited for.
#[derive(Debug)]
pub(crate) struct Watched(Option<File>);

impl Watched {
    pub(crate) fn new(path: &Path) -> Self {
        Self(File::open(path).ok())
    }

    /// Waits until the guest has ended and everything of it is gone.
    pub(crate) fn wait(self) {
        if let Some(directory) = self.0 {
            // Given when the coordinator lets go of the directory, the last thing it does.
            let _ = Flock::lock(directory, FlockArg::LockShared);
        }
    }
}

/// Locks a directory, unless somebody else holds it in a way that does not go with `how`.
fn lock(path: &Path, how: FlockArg) -> io::Result<Option<Flock<File>>> {
    let file = File::open(path)?;
    let opened = file.metadata()?.ino();
    match Flock::lock(file, how) {
        // Between open and lock it may have been removed, and made anew by another.
        Ok(lock) if fs::metadata(path)?.ino() == opened => Ok(Some(lock)),
        Ok(_) => Err(io::ErrorKind::NotFound.into()),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

/// The run directory of this process's guest; removed when dropped.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    name: String,
    path: PathBuf,
    base: PathBuf,
    _lock: Flock<File>,
}

impl RunDirectory {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn clear(&self) {
        let Ok(entries) = fs::read_dir(&self.path) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!(
                "coordinator: {} cannot be removed: {error}",
                self.path.display()
            );
        }
        // Fails unless this was the last guest.
        let _ = fs::remove_dir(&self.base);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> (tempfile::TempDir, Base) {
        let directory = tempfile::tempdir().unwrap();
        let base = Base {
            path: directory.path().join("span"),
        };
        (directory, base)
    }

    #[test]
    fn a_name_is_taken_once_and_free_again_afterwards() {
        let (_directory, base) = base();
        let first = base.create(None).unwrap();
        let second = base.create(None).unwrap();
        assert_eq!((first.name(), second.name()), ("span-1", "span-2"));
        let failure = base.create(Some("span-1")).unwrap_err();
        assert_eq!(failure.code, 2);
        assert!(failure.line.contains("--name span-1"), "{}", failure.line);
        assert_eq!(base.names(), ["span-1", "span-2"]);
        assert!(base.find(None).unwrap_err().line.contains("span-1, span-2"));
        drop(first);
        assert_eq!(base.find(None).unwrap().0, "span-2");
        drop(second);
        assert!(!base.path.exists());
        assert!(base.find(None).unwrap_err().line.contains("no guest runs"));
    }

    #[test]
    fn a_leftover_is_removed_on_the_next_use() {
        let (_directory, base) = base();
        base.make().unwrap();
        fs::create_dir(base.path.join("old")).unwrap();
        fs::write(base.path.join("old/log"), "text").unwrap();
        let taken = base.create(Some("old")).unwrap();
        assert!(!taken.path().join("log").exists());
        fs::create_dir(base.path.join("other")).unwrap();
        assert_eq!(base.names(), ["old"]);
        assert!(!base.path.join("other").exists());
    }

    #[test]
    fn looking_for_leftovers_disturbs_no_start() {
        let (_directory, base) = base();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    base.names();
                }
            });
            for number in 0..300 {
                let taken = base.create(Some(&format!("guest-{number}")));
                done.store(
                    taken.is_err() || number == 299,
                    std::sync::atomic::Ordering::Relaxed,
                );
                taken.unwrap();
            }
        });
    }

    #[test]
    fn a_leftover_that_is_being_removed_is_waited_for() {
        let (_directory, base) = base();
        drop(base.create(Some("before")).unwrap());
        base.make().unwrap();
        let path = base.path.join("guest");
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        let remover = lock(&path, FlockArg::LockSharedNonblock).unwrap().unwrap();
        assert!(!is_running(&path));
        let (taken, others) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let guest = base.create(Some("guest"));
                taken.send(()).unwrap();
                // Whoever is in its place is told so at once.
                let line = base.create(Some("guest")).unwrap_err().line;
                assert!(line.contains("runs already"), "{line}");
                assert!(is_running(&path));
                drop(guest.unwrap());
            });
            let waited = Duration::from_millis(20 * REMOVAL_LOOK_MS);
            assert!(others.recv_timeout(waited).is_err(), "it is still there");
            fs::remove_dir_all(&path).unwrap();
            drop(remover);
            others.recv().unwrap();
        });
    }

    #[test]
    fn a_directory_open_to_others_is_refused() {
        let (_directory, base) = base();
        DirBuilder::new().mode(0o755).create(&base.path).unwrap();
        fs::set_permissions(&base.path, PermissionsExt::from_mode(0o755)).unwrap();
        assert!(base.create(None).unwrap_err().line.contains("chmod 700"));
    }
}
