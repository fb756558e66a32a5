//! The side that has something.

use super::{CopyError, STAGING_PREFIX, cause};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tar::{Builder, EntryType, Header};

/// Files up to this size are read before they are sent, in bytes: those of /proc and /sys have
/// other sizes than they say.
const READ_FIRST_BYTES_MAX: u64 = 64 * 1024;

/// Longest of these.
const SMALL_BYTES_MAX: u64 = 16 << 20;

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
