//! Directories that are removed again.
//!
//! A directory is in use as long as somebody holds a `flock` on it: the lock ends with its holder,
//! however that ends, and so tells a directory that was left behind from one in use without trusting
//! process numbers.

use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A private directory that goes away with its owner.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes `path`, which must not exist, readable by this user only.
    pub(crate) fn create(path: PathBuf) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("{} cannot be removed: {error}", self.path.display());
        }
    }
}

/// A [`Directory`] that others can see to be in use.
#[derive(Debug)]
pub(crate) struct LockedDirectory {
    directory: Directory,
    _lock: Flock<File>,
}

impl LockedDirectory {
    pub(crate) fn create(path: PathBuf) -> io::Result<Self> {
        let directory = Directory::create(path)?;
        let lock =
            lock(directory.path())?.ok_or_else(|| io::Error::from(io::ErrorKind::ResourceBusy))?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Removes a directory whose user is dead; leaves one in use alone. Returns whether it is gone.
pub(crate) fn remove_abandoned(path: &Path) -> io::Result<bool> {
    let Some(_lock) = lock(path)? else {
        return Ok(false);
    };
    fs::remove_dir_all(path)?;
    Ok(true)
}

/// Locks a directory, unless somebody else holds it.
fn lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    let file = File::open(path)?;
    let opened = file.metadata()?.ino();
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        // Between open and lock it may have been removed, and made anew by another.
        Ok(lock) if fs::metadata(path)?.ino() == opened => Ok(Some(lock)),
        Ok(_) => Ok(None),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_use_is_left_alone_and_an_abandoned_one_removed() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("one");
        let used = LockedDirectory::create(path.clone()).unwrap();
        assert!(!remove_abandoned(&path).unwrap());
        assert!(path.exists());
        drop(used);
        assert!(!path.exists());

        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "left behind").unwrap();
        assert!(remove_abandoned(&path).unwrap());
        assert!(!path.exists());
    }
}
