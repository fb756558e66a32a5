//! The side that takes it.

use super::{CopyError, Into, STAGING_PREFIX};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, FileTimes, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};
use tar::{Archive, Entry, EntryType, Header};

/// Names tried for one of them.
const STAGING_TRIES_MAX: u32 = 1000;

/// Takes a stream apart and puts what it contains at `destination`, all of it or nothing.
pub fn receive(from: impl Read, destination: &Path, into: Into) -> Result<(), CopyError> {
    let place = Place::find(destination, into)?;
    let staging = Staging::create(&place.directory).map_err(CopyError::io(destination))?;
    let mut arrived = Arrived {
        staging: staging.0.clone(),
        names: BTreeSet::new(),
        directories: Vec::new(),
    };
    for_each(from, destination, |entry| {
        arrived.take(entry, destination, &place)
    })?;
    arrived.settle(&place)
}

/// Writes the contents of the one file that a stream contains.
pub fn receive_contents(from: impl Read, to: &mut impl Write) -> Result<(), CopyError> {
    let stream = Path::new("-");
    let mut files = 0;
    for_each(from, stream, |mut entry| {
        files += 1;
        if !entry.header().entry_type().is_file() && !entry.header().entry_type().is_gnu_sparse() {
            return Err(CopyError::new(
                &path_of(&entry, stream)?,
                "is a directory; only a file can be written to stdout",
            ));
        }
        if files > 1 {
            return Err(CopyError::new(
                stream,
                "only one file can be written to stdout",
            ));
        }
        io::copy(&mut entry, to)
            .map(drop)
            .map_err(CopyError::io(stream))
    })?;
    to.flush().map_err(CopyError::io(stream))
}

/// Where a copy is put together; removed when dropped.
#[derive(Debug)]
struct Staging(PathBuf);

impl Staging {
    fn create(directory: &Path) -> io::Result<Self> {
        let mut number = 0;
        loop {
            let name = format!("{STAGING_PREFIX}{}.{number}", std::process::id());
            let path = directory.join(name);
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                // Another's, in a guest and on a host that see the same directory.
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists
                        && number < STAGING_TRIES_MAX =>
                {
                    number += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Nobody to tell that it cannot be removed.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn for_each<R: Read>(
    from: R,
    destination: &Path,
    mut each: impl FnMut(Entry<'_, Endless<R>>) -> Result<(), CopyError>,
) -> Result<(), CopyError> {
    let mut archive = Archive::new(Endless(from));
    for entry in archive.entries().map_err(CopyError::io(destination))? {
        each(entry.map_err(CopyError::io(destination))?)?;
    }
    Ok(())
}

/// A stream that has to say where it ends, so that a broken one is noticed wherever it breaks.
struct Endless<R>(R);

impl<R: Read> Read for Endless<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 if !buffer.is_empty() => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the copy was broken off",
            )),
            bytes => Ok(bytes),
        }
    }
}

fn path_of<R: Read>(entry: &Entry<'_, R>, destination: &Path) -> Result<PathBuf, CopyError> {
    let path = entry.path().map_err(CopyError::io(destination))?;
    Ok(path.into_owned())
}

/// Where things go.
#[derive(Debug)]
struct Place {
    directory: PathBuf,
    /// The name of the one that arrives, if not its own.
    name: Option<OsString>,
}

impl Place {
    fn find(destination: &Path, into: Into) -> Result<Self, CopyError> {
        let refused = |why: &str| Err(CopyError::new(destination, why));
        // A link to what is replaced stays.
        let whole = fs::canonicalize(destination).unwrap_or_else(|_| destination.to_owned());
        match fs::metadata(&whole) {
            Ok(metadata) if metadata.is_dir() && into == Into::File => refused("is a directory"),
            Ok(metadata) if metadata.is_dir() => Ok(Self {
                directory: whole,
                name: None,
            }),
            Ok(_) if into == Into::Directory => refused("is not a directory"),
            Ok(metadata) if !metadata.is_file() => refused("is neither a file nor a directory"),
            Err(error) if into == Into::Directory => Err(CopyError::new(destination, error)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CopyError::new(destination, error))
            }
            _ => match (whole.parent(), whole.file_name()) {
                (Some(parent), Some(name)) => Ok(Self {
                    directory: match parent.as_os_str().is_empty() {
                        true => PathBuf::from("."),
                        false => parent.to_owned(),
                    },
                    name: Some(name.to_owned()),
                }),
                _ => refused("is no name for a file"),
            },
        }
    }
}

/// What has arrived of a copy.
#[derive(Debug)]
struct Arrived {
    staging: PathBuf,
    names: BTreeSet<OsString>,
    /// Directories, with what they are to be like once they are complete.
    directories: Vec<(PathBuf, Header)>,
}

impl Arrived {
    fn take<R: Read>(
        &mut self,
        mut entry: Entry<'_, R>,
        destination: &Path,
        place: &Place,
    ) -> Result<(), CopyError> {
        let path = path_of(&entry, destination)?;
        let refused = |why: &str| Err(CopyError::new(&path, why));
        if !path.components().all(|c| matches!(c, Component::Normal(_))) {
            return refused("the name would lead out of the destination");
        }
        let Some(Component::Normal(first)) = path.components().next() else {
            return refused("the name is empty");
        };
        self.names.insert(first.to_owned());
        if self.names.len() > 1 && place.name.is_some() {
            return refused("comes beside another, and there is one name for both");
        }
        let inside = path.ancestors().skip(1);
        for parent in inside.filter(|parent| !parent.as_os_str().is_empty()) {
            let known = fs::symlink_metadata(self.staging.join(parent));
            if !known.is_ok_and(|metadata| metadata.is_dir()) {
                return refused("is not below a directory that was copied");
            }
        }
        let target = self.staging.join(&path);
        if fs::symlink_metadata(&target).is_ok() {
            return refused("comes twice");
        }
        match entry.header().entry_type() {
            EntryType::Directory => {
                fs::create_dir(&target).map_err(CopyError::io(&path))?;
                fs::set_permissions(&target, Permissions::from_mode(0o700))
                    .map_err(CopyError::io(&path))?;
                self.directories.push((path, entry.header().clone()));
            }
            EntryType::Regular | EntryType::GNUSparse | EntryType::Symlink => {
                entry.unpack(&target).map_err(CopyError::io(&path))?;
            }
            _ => return refused("is neither a file nor a directory nor a link"),
        }
        Ok(())
    }

    /// Moves everything into place.
    fn settle(self, place: &Place) -> Result<(), CopyError> {
        let final_name = |first: &OsStr| place.name.clone().unwrap_or_else(|| first.to_owned());
        let mut kept = BTreeSet::new();
        for name in &self.names {
            let target = place.directory.join(final_name(name));
            move_into_place(&self.staging.join(name), &target, &mut kept)?;
        }
        // Only now: a directory that may not be written to cannot be moved either. Inner ones come first.
        for (path, header) in self.directories.iter().rev() {
            let mut parts = path.components();
            let Some(Component::Normal(first)) = parts.next() else {
                continue;
            };
            let rest = parts.as_path();
            let target = match rest.as_os_str().is_empty() {
                true => place.directory.join(final_name(first)),
                false => place.directory.join(final_name(first)).join(rest),
            };
            if !kept.contains(&target) {
                finish_directory(&target, header).map_err(CopyError::io(&target))?;
            }
        }
        Ok(())
    }
}

/// Renames; a directory that is there already gets what the new one contains. `kept` collects those.
fn move_into_place(from: &Path, to: &Path, kept: &mut BTreeSet<PathBuf>) -> Result<(), CopyError> {
    let failed = CopyError::io(to);
    let new = fs::symlink_metadata(from).map_err(&failed)?;
    let old = fs::symlink_metadata(to).ok().map(|old| old.file_type());
    if let Some(old) = old {
        if new.is_dir() && old.is_dir() {
            kept.insert(to.to_owned());
            for entry in fs::read_dir(from).map_err(&failed)? {
                let entry = entry.map_err(&failed)?;
                move_into_place(&entry.path(), &to.join(entry.file_name()), kept)?;
            }
            return Ok(());
        }
        if !old.is_file() && !old.is_symlink() && !old.is_dir() {
            return Err(CopyError::new(to, "is neither a file nor a directory"));
        }
    }
    fs::rename(from, to).map_err(&failed)
}

fn finish_directory(path: &Path, header: &Header) -> io::Result<()> {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(header.mtime()?));
    let directory = File::open(path)?;
    if let Some(time) = time {
        directory.set_times(FileTimes::new().set_modified(time))?;
    }
    directory.set_permissions(Permissions::from_mode(header.mode()? & 0o777))
}
