//! Files on their way between the guest and a host: a tar stream, made by [`send`] on one side and taken apart
//! by [`receive`] on the other.
//!
//! What arrives is put together in a directory of its own beside the destination, and moved into place when all
//! of it is there. So neither a broken stream nor a full disk leaves half a file under its final name, and
//! nothing a stream says can lead out of the destination: names that are absolute or contain `..`, and
//! names below a link, are refused.
//!
//! Contents, permissions, times of change and links are kept, holes in files too. Owners are not, nor set-user-ID
//! and its like: a copy belongs to who makes it.

use std::collections::BTreeSet;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, FileTimes, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};
use tar::{Archive, Builder, Entry, EntryType, Header};

/// How directories are named in which copies are put together. They are never copied themselves: the guest may
/// see the very directory that a copy of it is being put into.
const STAGING_PREFIX: &str = ".span-copy.";

/// Names tried for one of them.
const STAGING_TRIES_MAX: u32 = 1000;

/// Files up to this size are read before they are sent, in bytes: those of /proc and /sys have
/// other sizes than they say.
const READ_FIRST_BYTES_MAX: u64 = 64 * 1024;

/// Longest of these.
const SMALL_BYTES_MAX: u64 = 16 << 20;

/// What a destination means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// One thing: its new name, or the directory to put it into.
    Any,
    /// The directory to put everything into.
    Directory,
    /// The new name of one file.
    File,
}

/// Why something was not copied; one line.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct CopyError {
    what: String,
    why: String,
}

impl CopyError {
    fn new(what: &Path, why: impl std::fmt::Display) -> Self {
        Self {
            what: what.display().to_string(),
            why: why.to_string(),
        }
    }

    fn io(what: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::new(what, cause(&error))
    }
}

/// What an error comes from in the end.
fn cause(error: &io::Error) -> String {
    let mut last: &dyn Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// Sends files and directories with what is in them. What cannot be read is reported, and the rest sent.
/// An error ends the stream, which its receiver notices.
pub fn send(
    sources: &[PathBuf],
    to: impl Write,
    mut report: impl FnMut(CopyError),
) -> Result<(), CopyError> {
    let mut builder = Builder::new(to);
    let mut names = BTreeSet::new();
    for source in sources {
        let sent = name_of(source).and_then(|name| {
            if !names.insert(name.clone()) {
                return Err(CopyError::new(source, "another of that name is copied too"));
            }
            // What is named is meant, not a link to it.
            let metadata = fs::metadata(source).map_err(CopyError::io(source))?;
            Ok((name, metadata))
        });
        match sent {
            Ok((name, metadata)) => {
                send_tree(&mut builder, source, &name, metadata, &mut report)?;
            }
            Err(error) => report(error),
        }
    }
    end(builder)
}

/// Sends one open file under a name of its own.
pub fn send_file(file: &mut File, name: &OsStr, to: impl Write) -> Result<(), CopyError> {
    let mut builder = Builder::new(to);
    let path = Path::new(name);
    let metadata = file.metadata().map_err(CopyError::io(path))?;
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_mtime(seconds(SystemTime::now()));
    header.set_size(metadata.len());
    builder
        .append_data(&mut header, path, file)
        .map_err(CopyError::io(path))?;
    end(builder)
}

fn end(mut builder: Builder<impl Write>) -> Result<(), CopyError> {
    builder
        .finish()
        .and_then(|()| builder.get_mut().flush())
        .map_err(CopyError::io(Path::new("the copy")))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The name under which a source arrives.
fn name_of(source: &Path) -> Result<OsString, CopyError> {
    if let Some(name) = source.file_name() {
        return Ok(name.to_owned());
    }
    let whole = fs::canonicalize(source).map_err(CopyError::io(source))?;
    let name = whole.file_name().map(OsStr::to_owned);
    name.ok_or_else(|| CopyError::new(source, "has no name to copy it under"))
}

fn send_tree(
    builder: &mut Builder<impl Write>,
    source: &Path,
    name: &OsStr,
    metadata: Metadata,
    report: &mut impl FnMut(CopyError),
) -> Result<(), CopyError> {
    let mut waiting = vec![(source.to_owned(), PathBuf::from(name), metadata)];
    while let Some((path, name, metadata)) = waiting.pop() {
        let list = match send_one(builder, &path, &name, &metadata) {
            Ok(list) => list,
            Err(Unsent::Skipped(error)) => {
                report(error);
                continue;
            }
            Err(Unsent::Broken(error)) => return Err(error),
        };
        // The last is taken first.
        for entry in list.into_iter().rev() {
            let path = path.join(&entry);
            match fs::symlink_metadata(&path) {
                Ok(metadata) => waiting.push((path, name.join(entry), metadata)),
                Err(error) => report(CopyError::new(&path, error)),
            }
        }
    }
    Ok(())
}

/// Why something was not sent.
enum Unsent {
    /// The stream is as it was.
    Skipped(CopyError),
    /// The stream cannot go on.
    Broken(CopyError),
}

/// Sends a file, a link or a directory; returns what a directory contains.
fn send_one(
    builder: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
    metadata: &Metadata,
) -> Result<Vec<OsString>, Unsent> {
    let skipped = |error: io::Error| Unsent::Skipped(CopyError::new(path, cause(&error)));
    let broken = |error: io::Error| Unsent::Broken(CopyError::new(path, cause(&error)));
    let mut header = Header::new_gnu();
    header.set_metadata(metadata);
    let kind = metadata.file_type();
    if kind.is_dir() {
        let mut list = Vec::new();
        for entry in fs::read_dir(path).map_err(skipped)? {
            let entry = entry.map_err(skipped)?.file_name();
            if !entry
                .as_encoded_bytes()
                .starts_with(STAGING_PREFIX.as_bytes())
            {
                list.push(entry);
            }
        }
        list.sort();
        header.set_size(0);
        builder
            .append_data(&mut header, name, io::empty())
            .map_err(broken)?;
        return Ok(list);
    }
    if kind.is_symlink() {
        let target = fs::read_link(path).map_err(skipped)?;
        header.set_size(0);
        builder
            .append_link(&mut header, name, target)
            .map_err(broken)?;
        return Ok(Vec::new());
    }
    if !kind.is_file() {
        return Err(Unsent::Skipped(CopyError::new(
            path,
            "is neither a file nor a directory nor a link, and was not copied",
        )));
    }
    let mut file = File::open(path).map_err(skipped)?;
    // It may be another by now.
    let metadata = file.metadata().map_err(skipped)?;
    let bytes = metadata.len();
    let changed = || Unsent::Broken(CopyError::new(path, "changed while it was copied"));
    if bytes <= READ_FIRST_BYTES_MAX {
        let mut data = Vec::new();
        let mut limited = (&file).take(SMALL_BYTES_MAX + 1);
        limited.read_to_end(&mut data).map_err(skipped)?;
        if data.len() as u64 > SMALL_BYTES_MAX {
            return Err(Unsent::Skipped(CopyError::new(
                path,
                "has no end, and was not copied",
            )));
        }
        header.set_size(data.len() as u64);
        builder
            .append_data(&mut header, name, data.as_slice())
            .map_err(broken)?;
    } else if metadata.blocks() * 512 < bytes {
        // With its holes.
        builder.append_file(name, &mut file).map_err(broken)?;
        let after = file.metadata().map_err(broken)?;
        let state = |of: &Metadata| (of.len(), of.mtime(), of.mtime_nsec());
        if state(&after) != state(&metadata) {
            return Err(changed());
        }
    } else {
        header.set_size(bytes);
        let mut data = Exactly {
            from: file,
            left: bytes,
        };
        builder
            .append_data(&mut header, name, &mut data)
            .map_err(broken)?;
        if data.left > 0 {
            return Err(changed());
        }
    }
    Ok(Vec::new())
}

/// So much of a file, even if it has become longer.
#[derive(Debug)]
struct Exactly {
    from: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = (&self.from).take(self.left).read(buffer)?;
        self.left -= bytes as u64;
        Ok(bytes)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, symlink};

    fn packed(sources: &[PathBuf]) -> (Vec<u8>, Vec<String>) {
        let (mut stream, mut lines) = (Vec::new(), Vec::new());
        send(sources, &mut stream, |error| lines.push(error.to_string())).unwrap();
        (stream, lines)
    }

    /// Everything below a directory, with what it is.
    fn listing(directory: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        let mut waiting = vec![directory.to_owned()];
        while let Some(path) = waiting.pop() {
            for entry in fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                let name = path.strip_prefix(directory).unwrap().display();
                let mode = metadata.permissions().mode();
                let what = if metadata.is_dir() {
                    waiting.push(path.clone());
                    format!("{mode:o} {}", metadata.mtime())
                } else if metadata.is_symlink() {
                    fs::read_link(&path).unwrap().display().to_string()
                } else {
                    let bytes = fs::read(&path).unwrap();
                    let sum = bytes.iter().fold(0u64, |sum, byte| {
                        sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
                    });
                    format!("{mode:o} {} {} {sum}", metadata.mtime(), bytes.len())
                };
                lines.push(format!("{name}: {what}"));
            }
        }
        lines.sort();
        lines
    }

    fn tree(directory: &Path) -> PathBuf {
        let top = directory.join("tree");
        fs::create_dir_all(top.join("inner/empty")).unwrap();
        fs::write(top.join("small"), "text").unwrap();
        fs::write(top.join("inner/large"), vec![7; 300_000]).unwrap();
        fs::write(top.join(format!("inner/{}", "n".repeat(200))), "long name").unwrap();
        symlink("inner/large", top.join("link")).unwrap();
        symlink("/nowhere", top.join("dangling")).unwrap();
        fs::set_permissions(top.join("small"), Permissions::from_mode(0o751)).unwrap();
        fs::set_permissions(top.join("inner/empty"), Permissions::from_mode(0o555)).unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        for name in ["small", "inner/empty", "inner"] {
            let file = File::open(top.join(name)).unwrap();
            file.set_times(FileTimes::new().set_modified(old)).unwrap();
        }
        top
    }

    #[test]
    fn a_tree_arrives_as_it_was_under_its_own_name_or_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let top = tree(directory.path());
        let expected = listing(&top);
        assert!(
            expected
                .iter()
                .any(|line| line == "small: 100751 1000000000 4 3556653")
        );
        let (stream, lines) = packed(std::slice::from_ref(&top));
        assert_eq!(lines, [""; 0]);
        let there = directory.path().join("there");
        fs::create_dir(&there).unwrap();
        receive(stream.as_slice(), &there, Into::Any).unwrap();
        receive(stream.as_slice(), &there.join("new"), Into::Any).unwrap();
        for name in ["tree", "new"] {
            assert_eq!(listing(&there.join(name)), expected);
        }
        assert_eq!(
            fs::read_dir(&there).unwrap().count(),
            2,
            "nothing else is left"
        );
    }

    #[test]
    fn a_directory_that_is_there_gets_more_and_keeps_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let top = tree(directory.path());
        let there = directory.path().join("there");
        fs::create_dir_all(there.join("tree/inner")).unwrap();
        fs::write(there.join("tree/inner/mine"), "kept").unwrap();
        fs::write(there.join("tree/small"), "replaced").unwrap();
        fs::set_permissions(there.join("tree"), Permissions::from_mode(0o700)).unwrap();
        receive(packed(&[top]).0.as_slice(), &there, Into::Directory).unwrap();
        assert_eq!(fs::read(there.join("tree/small")).unwrap(), b"text");
        assert_eq!(fs::read(there.join("tree/inner/mine")).unwrap(), b"kept");
        assert!(there.join("tree/inner/large").exists());
        let mode = fs::metadata(there.join("tree"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_stream_that_breaks_anywhere_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("three");
        fs::create_dir(&top).unwrap();
        for name in ["a", "b", "c"] {
            fs::write(top.join(name), [b'x'; 700]).unwrap();
        }
        let (stream, _) = packed(&[top]);
        let there = directory.path().join("there");
        fs::create_dir(&there).unwrap();
        // The second of the two empty blocks at the end is not needed.
        for length in (0..=stream.len() - 1024).step_by(256) {
            let error = receive(&stream[..length], &there, Into::Any).unwrap_err();
            assert!(
                error.to_string().ends_with("the copy was broken off"),
                "{error}"
            );
            assert_eq!(fs::read_dir(&there).unwrap().count(), 0, "{length}");
        }
        receive(&stream[..stream.len() - 512], &there, Into::Any).unwrap();
    }

    #[test]
    fn what_is_there_already_stays_until_the_copy_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("file");
        fs::write(&source, vec![b'n'; 100_000]).unwrap();
        let (stream, _) = packed(&[source]);
        let target = directory.path().join("target");
        fs::write(&target, "old").unwrap();
        receive(&stream[..50_000], &target, Into::Any).unwrap_err();
        assert_eq!(fs::read(&target).unwrap(), b"old");
        receive(stream.as_slice(), &target, Into::Any).unwrap();
        assert_eq!(fs::metadata(&target).unwrap().len(), 100_000);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    /// A stream as nobody honest makes it.
    fn forged(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (kind, name, link) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
            let data = if *kind == EntryType::Regular {
                "evil"
            } else {
                ""
            };
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn nothing_leads_out_of_the_destination() {
        use EntryType::{Directory, Link, Regular, Symlink};
        let directory = tempfile::tempdir().unwrap();
        let (there, outside) = (directory.path().join("there"), directory.path().join("out"));
        fs::create_dir(&there).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "good").unwrap();
        let out = outside.to_str().unwrap();
        let absolute = format!("{out}/new");
        for (entries, part) in [
            (vec![(Regular, absolute.as_str(), "")], "lead out"),
            (vec![(Regular, "../out/new", "")], "lead out"),
            (vec![(Regular, "a/../../out/new", "")], "lead out"),
            (vec![(Directory, "..", "")], "lead out"),
            (
                vec![(Symlink, "l", out), (Regular, "l/new", "")],
                "not below",
            ),
            (
                vec![(Symlink, "l", out), (Directory, "l", "")],
                "comes twice",
            ),
            (vec![(Symlink, "l", out), (Regular, "l", "")], "comes twice"),
            (
                vec![
                    (Directory, "d", ""),
                    (Symlink, "d/l", out),
                    (Regular, "d/l/new", ""),
                ],
                "not below",
            ),
            (vec![(Regular, "d/new", "")], "not below"),
            (vec![(Link, "l", &format!("{out}/file"))], "is neither"),
            (vec![(EntryType::Char, "device", "")], "is neither"),
        ] {
            let error = receive(forged(&entries).as_slice(), &there, Into::Directory).unwrap_err();
            assert!(error.to_string().contains(part), "{entries:?}: {error}");
            assert_eq!(listing(&there), [""; 0], "{entries:?}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{entries:?}");
        }
        // A link in the destination is replaced, not followed.
        symlink(out, there.join("d")).unwrap();
        let stream = forged(&[(Directory, "d", ""), (Regular, "d/new", "")]);
        receive(stream.as_slice(), &there, Into::Directory).unwrap_err();
        symlink(outside.join("file"), there.join("f")).unwrap();
        receive(
            forged(&[(Regular, "f", "")]).as_slice(),
            &there,
            Into::Directory,
        )
        .unwrap();
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"good");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }

    #[test]
    fn destinations_are_checked_before_anything_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "text").unwrap();
        let missing = directory.path().join("no/where");
        for (path, into, why) in [
            (directory.path(), Into::File, "is a directory"),
            (&file, Into::Directory, "is not a directory"),
            (&missing, Into::Any, "No such file or directory"),
            (&missing, Into::Directory, "No such file or directory"),
            (
                Path::new("/dev/null"),
                Into::Any,
                "is neither a file nor a directory",
            ),
            (&file.join("below"), Into::Any, "Not a directory"),
        ] {
            let error = receive(io::repeat(b'x'), path, into)
                .unwrap_err()
                .to_string();
            let start = format!("{}: {why}", path.display());
            assert!(error.starts_with(&start), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named_and_the_rest_is_sent() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("good"), "text").unwrap();
        fs::create_dir(path("tree")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("tree/socket")).unwrap();
        fs::write(path("tree/file"), "text").unwrap();
        let sources = ["missing", "good", "tree", "tree/../good"].map(path);
        let (stream, lines) = packed(&sources);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].contains("missing: No such file"), "{lines:?}");
        assert!(lines[1].contains("tree/socket: is neither"), "{lines:?}");
        assert!(lines[2].contains("another of that name"), "{lines:?}");
        fs::create_dir(path("there")).unwrap();
        receive(stream.as_slice(), &path("there"), Into::Directory).unwrap();
        let found = listing(&path("there"));
        let names: BTreeSet<_> = found
            .iter()
            .filter_map(|line| line.split(':').next())
            .collect();
        assert_eq!(names, BTreeSet::from(["good", "tree", "tree/file"]));
    }

    #[test]
    fn holes_stay_holes_and_proc_has_contents() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("holes");
        let file = File::create(&source).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"here", 32 << 20).unwrap();
        let (stream, lines) = packed(&[source.clone(), "/proc/version".into()]);
        assert_eq!(lines, [""; 0]);
        assert!(stream.len() < 1 << 20, "{}", stream.len());
        let there = directory.path().join("there");
        fs::create_dir(&there).unwrap();
        receive(stream.as_slice(), &there, Into::Directory).unwrap();
        let copy = there.join("holes");
        assert!(fs::metadata(&copy).unwrap().blocks() < 2048);
        assert!(fs::read(&copy).unwrap() == fs::read(&source).unwrap());
        assert_eq!(
            fs::read(there.join("version")).unwrap(),
            fs::read("/proc/version").unwrap()
        );
    }

    #[test]
    fn one_file_comes_from_or_goes_to_a_stream() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("file");
        fs::write(&source, "text").unwrap();
        let mut stream = Vec::new();
        send_file(
            &mut File::open(&source).unwrap(),
            OsStr::new("x"),
            &mut stream,
        )
        .unwrap();
        let mut out = Vec::new();
        receive_contents(stream.as_slice(), &mut out).unwrap();
        assert_eq!(out, b"text");
        let (stream, _) = packed(&[directory.path().to_owned()]);
        let error = receive_contents(stream.as_slice(), &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("is a directory"), "{error}");
    }
}
