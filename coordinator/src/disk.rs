//! `--ubd`: files of nodes' hosts that become disks of the guest.

use crate::failure::Failure;
use crate::options::{self, Place};
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// As many as the kernel's driver has: ubda to ubdp.
const DISKS_MAX: usize = 16;

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) node: usize,
    pub(crate) file: PathBuf,
    /// Gets what is written, in the place of `file`.
    pub(crate) cow: Option<PathBuf>,
    pub(crate) read_only: bool,
    sync: bool,
    shared: bool,
}

/// All disks of a guest, in the order of their names.
#[derive(Debug, Default)]
pub(crate) struct Disks(Vec<Disk>);

/// How a COW file begins, in either order of bytes.
const COW_MAGIC: &[u8; 4] = b"OOOM";

/// The shortest header of a COW file's, of version 1: no program makes one with less.
const COW_HEADER_BYTES_MIN: usize = 4 + 4 + 1024 + 4 + 8 + 4;

const SYNTAX: &str = "must be [NODE:]FILE[,cow=FILE][,ro][,sync][,shared]";

impl Disk {
    /// An image that is a root file system.
    pub(crate) fn root(node: usize, file: PathBuf) -> Self {
        Self {
            node,
            file,
            cow: None,
            read_only: false,
            sync: false,
            shared: false,
        }
    }

    fn parse(value: &OsStr, names: &[String]) -> Result<Self, String> {
        let mut parts = value.as_bytes().split(|byte| *byte == b',');
        let file = OsStr::from_bytes(parts.next().unwrap_or_default());
        let (node, file) = options::of_node(file, names)?;
        let mut disk = Self::root(node, file.to_path_buf());
        let once = |flag: &mut bool| !std::mem::replace(flag, true);
        for part in parts {
            let new = match (part, part.strip_prefix(b"cow=")) {
                (_, Some(cow)) => disk.cow.replace(OsStr::from_bytes(cow).into()).is_none(),
                (b"ro", _) => once(&mut disk.read_only),
                (b"sync", _) => once(&mut disk.sync),
                (b"shared", _) => once(&mut disk.shared),
                _ => false,
            };
            if !new {
                return Err(SYNTAX.into());
            }
        }
        if disk.file == Path::new("") || disk.cow.as_deref() == Some(Path::new("")) {
            return Err(SYNTAX.into());
        }
        Ok(disk)
    }

    /// Finds out what can be found out of files of this machine.
    fn look(&mut self) -> Result<(), String> {
        let about = |path: &Path, why: &dyn Display| format!("{}: {why}", path.display());
        let file = self.file.clone();
        self.file = fs::canonicalize(&file).map_err(|error| about(&file, &error))?;
        let writes = self.cow.is_none() && !self.read_only;
        check_file(&self.file, writes).map_err(|why| about(&file, &why))?;
        let Some(cow) = self.cow.clone() else {
            return check_cow(&self.file, false).map_err(|why| about(&file, &why));
        };
        let found = fs::canonicalize(&cow);
        self.cow = Some(match found {
            Ok(path) => {
                check_file(&path, !self.read_only).map_err(|why| about(&cow, &why))?;
                check_cow(&path, true).map_err(|why| about(&cow, &why))?;
                path
            }
            // The kernel makes it.
            Err(error) if error.kind() == ErrorKind::NotFound && !self.read_only => {
                let name = cow.file_name().ok_or_else(|| about(&cow, &error))?;
                let above = match cow.parent() {
                    Some(parent) if parent != Path::new("") => parent,
                    _ => Path::new("."),
                };
                let above = fs::canonicalize(above).map_err(|error| about(&cow, &error))?;
                above.join(name)
            }
            Err(error) => return Err(about(&cow, &error)),
        });
        Ok(())
    }

    /// The kernel's argument for it.
    pub(crate) fn argument(&self, number: usize, names: &[String]) -> OsString {
        let flags = [(self.read_only, "r"), (self.sync, "s"), (self.shared, "c")];
        let flags: String = flags.iter().filter(|f| f.0).map(|f| f.1).collect();
        let mut text = OsString::from(format!("ubd{number}{flags}="));
        for (at, file) in self.cow.iter().chain([&self.file]).enumerate() {
            if at > 0 {
                text.push(",");
            }
            if self.node > 0 {
                text.push(format!("{}:", names[self.node]));
            }
            text.push(file);
        }
        text
    }

    /// The files that it is of, and whether each is written to.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&Path, bool)> {
        let file = (self.file.as_path(), self.cow.is_none() && !self.read_only);
        let cow = self.cow.iter().map(|cow| (cow.as_path(), !self.read_only));
        [file].into_iter().chain(cow)
    }
}

/// Whether it can be a disk here.
fn check_file(path: &Path, writes: bool) -> Result<(), String> {
    let kind = fs::metadata(path)
        .map_err(|error| error.to_string())?
        .file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err("is neither a regular file nor a block device".into());
    }
    File::open(path).map_err(|error| error.to_string())?;
    if writes {
        let opened = OpenOptions::new().write(true).open(path);
        opened.map_err(|error| format!("{error} for writing; add ,ro to read it only"))?;
    }
    Ok(())
}

/// Whether it is a COW file as far as that shows in how it begins: the kernel looks at the rest. An empty one is made
/// by the kernel.
fn check_cow(path: &Path, wanted: bool) -> Result<(), String> {
    let mut begin = Vec::new();
    File::open(path)
        .and_then(|file| {
            file.take(COW_HEADER_BYTES_MIN as u64)
                .read_to_end(&mut begin)
        })
        .map_err(|error| error.to_string())?;
    let mut reversed = *COW_MAGIC;
    reversed.reverse();
    if begin.starts_with(COW_MAGIC) || begin.starts_with(&reversed) {
        if begin.len() < COW_HEADER_BYTES_MIN {
            return Err(format!(
                "is a COW file whose header is cut off after {} bytes",
                begin.len()
            ));
        }
    } else if wanted && !begin.is_empty() {
        return Err("is no COW file; cow= names one, or a file that is not there yet".into());
    }
    Ok(())
}

impl Disks {
    /// Takes one more, from `--root` or `--ubd`.
    pub(crate) fn add(&mut self, disk: Disk) -> Result<(), String> {
        if self.0.len() == DISKS_MAX {
            return Err(format!("a guest has at most {DISKS_MAX} disks"));
        }
        for path in disk.files().map(|(path, _)| path) {
            // The kernel splits its command line, and a disk's argument at the names.
            let bytes = path.as_os_str().as_bytes();
            let bad = |byte: &u8| byte.is_ascii_whitespace() || b"\"',:".contains(byte);
            if bytes.iter().any(bad) {
                return Err(format!(
                    "{}: the path must not contain white space, quotes or any of ,:",
                    path.display()
                ));
            }
        }
        for old in self.0.iter().filter(|old| old.node == disk.node) {
            for (path, writes) in disk.files() {
                let clash = |(other, other_writes): (&Path, bool)| {
                    other == path && (writes || other_writes) && !(old.shared && disk.shared)
                };
                if old.files().any(clash) {
                    return Err(format!(
                        "{} is a disk already, and one of the two writes to it; add ,ro or ,shared to both",
                        path.display()
                    ));
                }
            }
        }
        self.0.push(disk);
        Ok(())
    }

    /// `--ubd`. What is on another machine is looked at there.
    pub(crate) fn add_option(
        &mut self,
        value: &OsStr,
        names: &[String],
        places: &[Place],
    ) -> Result<(), Failure> {
        let wrong = |why: String| Failure::usage(format!("--ubd {}: {why}", value.display()));
        let mut disk = Disk::parse(value, names).map_err(wrong)?;
        if places[disk.node] == Place::Local {
            disk.look().map_err(|why| match why.split_once(": ") {
                // Not the same name twice.
                Some((file, why)) if value == file => wrong(why.to_string()),
                _ => wrong(why),
            })?;
        } else if let Some((path, _)) = disk.files().find(|(path, _)| !options::plain(path)) {
            let path = path.display();
            return Err(wrong(format!(
                "{path}: a path on another machine must be absolute and without .."
            )));
        }
        self.add(disk).map_err(wrong)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Disk> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> (Vec<String>, Vec<Place>) {
        options::nodes("a,b,c=far:1").unwrap()
    }

    fn add(disks: &mut Disks, value: &str) -> Result<(), String> {
        let (names, places) = names();
        let added = disks.add_option(OsStr::new(value), &names, &places);
        added.map_err(|failure| failure.line)
    }

    fn argument(value: &str) -> Result<String, String> {
        let mut disks = Disks::default();
        add(&mut disks, value)?;
        Ok(disks.0[0].argument(3, &names().0).into_string().unwrap())
    }

    #[test]
    fn a_disk_is_an_argument_of_the_kernel() {
        for (value, wanted) in [
            ("/proc/version,ro", "ubd3r=/proc/version"),
            ("b:/proc/version,shared,ro", "ubd3rc=b:/proc/version"),
            ("c:/srv/x", "ubd3=c:/srv/x"),
            ("c:/srv/x,sync,cow=/srv/y", "ubd3s=c:/srv/y,c:/srv/x"),
            (
                "/proc/version,cow=/proc/no-such",
                "ubd3=/proc/no-such,/proc/version",
            ),
        ] {
            assert_eq!(argument(value).as_deref(), Ok(wanted), "{value}");
        }
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused() {
        for (value, part) in [
            ("", SYNTAX),
            ("b:", SYNTAX),
            ("/proc/version,rw", SYNTAX),
            ("/proc/version,ro,ro", SYNTAX),
            ("/proc/version,cow=", SYNTAX),
            ("d:/x", "no node d; --nodes has a, b, c"),
            ("/no/such", "--ubd /no/such: No such file"),
            ("b:/no/such", "/no/such: No such file"),
            ("/proc", "neither a regular file nor a block device"),
            ("/dev/null", "neither a regular file nor a block device"),
            ("/proc/version,cow=/no/such/x", "/no/such/x: No such file"),
            (
                "/proc/version,cow=/proc/no-such,ro",
                "/proc/no-such: No such file",
            ),
            ("c:x", "absolute"),
            ("c:/srv/../x", "without .."),
            ("c:/srv/x,cow=y", "y: a path on another machine"),
            ("c:/srv/a:b", "any of ,:"),
            ("c:/srv/a b", "white space"),
        ] {
            let line = argument(value).unwrap_err();
            assert!(line.contains(part), "{value}: {line}");
        }
    }

    #[test]
    fn what_is_no_whole_cow_file_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = place.path().join(name);
            fs::write(&path, content).unwrap();
            path.display().to_string()
        };
        let whole = [COW_MAGIC, &[0; 8192][..]].concat();
        let (base, cow) = (file("base", b"data"), file("cow", &whole));
        let (empty, half) = (file("empty", b""), file("half", &whole[..100]));
        let little = file("little", b"MOOO");
        for value in [
            cow.clone(),
            empty.clone(),
            format!("{base},cow={cow}"),
            format!("{base},cow={empty}"),
        ] {
            assert!(argument(&value).is_ok(), "{value}");
        }
        for (value, part) in [
            (half.clone(), "cut off after 100 bytes"),
            (little, "cut off after 4 bytes"),
            (format!("{base},cow={half}"), "cut off after 100 bytes"),
            (format!("{empty},cow={base}"), "is no COW file"),
        ] {
            let line = argument(&value).unwrap_err();
            assert!(line.contains(part), "{value}: {line}");
        }
    }

    #[test]
    fn a_file_that_is_written_to_is_one_disk() {
        let mut disks = Disks::default();
        add(&mut disks, "c:/x").unwrap();
        for value in [
            "c:/x",
            "c:/x,ro",
            "c:/x,shared",
            "c:/x,cow=/y",
            "c:/y,cow=/x",
        ] {
            let line = add(&mut disks, value).unwrap_err();
            assert!(line.contains("/x is a disk already"), "{value}: {line}");
        }
        for value in [
            "c:/s,shared",
            "c:/s,shared",
            "c:/r,ro",
            "c:/r,cow=/r1",
            "c:/r,cow=/r2",
        ] {
            add(&mut disks, value).unwrap();
        }
    }

    #[test]
    fn a_guest_has_sixteen_disks() {
        let mut disks = Disks::default();
        for number in 0..16 {
            add(&mut disks, &format!("c:/{number}")).unwrap();
        }
        assert!(add(&mut disks, "c:/16").unwrap_err().contains("at most 16"));
    }
}
