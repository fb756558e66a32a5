//! Directories of this node's host that the guest may mount, and nothing beside them.
//!
//! hostfs names what it works on as `span://NODE/directory/file`; without a name it is the first node. The call is
//! executed on that node ([`owner`]), beneath one of the directories that the node exports ([`set_up`]). What the
//! guest says of a path is never taken for true: each call resolves it anew, from the exported directory's own
//! descriptor, by openat2(2) with `RESOLVE_BENEATH`. So neither `..`, nor a symbolic link, nor a directory that is
//! renamed at the same time leads out. The guest follows symbolic links itself, in its own name space; here the last
//! part of a path is never followed.
//!
//! Runs on a host stack or on a thread of the runtime's: it allocates.

use super::env::{Env, errno};
use super::exec::{Done, Op, Work};
use span_api::guest::Export;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

pub(super) const SCHEME: &[u8] = b"span://";

/// What the kernel's disk driver names its files with. No path of hostfs's begins like this: what they are is for
/// whoever has the guest started to say, and for its management console, not for programs in it.
pub(super) const DISK_SCHEME: &[u8] = b"span-disk://";

/// An exported directory, open.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    directory: OwnedFd,
    read_only: bool,
    /// Whether paths must not lead out of it.
    confines: bool,
}

static ROOTS: OnceLock<Vec<Root>> = OnceLock::new();
/// All files of this host, where any may be a disk.
static DISKS: OnceLock<Vec<Root>> = OnceLock::new();
static NODES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();

/// What this node exports, and what the nodes are called; once, before the kernel runs. An error names the
/// directory.
pub(crate) fn set_up(
    exports: &[Export],
    any_disk: bool,
    nodes: Vec<Vec<u8>>,
) -> Result<(), String> {
    let _ = ROOTS.set(open_roots(exports)?);
    if any_disk {
        let all = Export {
            directory: b"/".to_vec(),
            read_only: false,
        };
        let mut roots = open_roots(&[all])?;
        roots.iter_mut().for_each(|root| root.confines = false);
        let _ = DISKS.set(roots);
    }
    let _ = NODES.set(nodes);
    Ok(())
}

fn open_roots(exports: &[Export]) -> Result<Vec<Root>, String> {
    let mut roots = Vec::new();
    for export in exports {
        let path = PathBuf::from(OsStr::from_bytes(&export.directory));
        let directory = open_root(&path).map_err(|error| {
            let error = std::io::Error::from_raw_os_error(error);
            format!("exporting {}: {error}", path.display())
        })?;
        roots.push(Root {
            path,
            directory,
            read_only: export.read_only,
            confines: true,
        });
    }
    // What lies inside another comes first.
    roots.sort_by_key(|root| std::cmp::Reverse(root.path.components().count()));
    Ok(roots)
}

fn open_root(path: &Path) -> Result<OwnedFd, i32> {
    let text = CString::new(path.as_os_str().as_bytes()).map_err(|_| libc::EINVAL)?;
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: passes a string.
    owned(unsafe { libc::open(text.as_ptr(), flags) }.into())
}

fn owned(fd: i64) -> Result<OwnedFd, i32> {
    match i32::try_from(fd) {
        // SAFETY: the caller has just got the descriptor from the host.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(errno()),
    }
}

/// The paths that an operation is about, as far as it is about any.
fn paths(work: &Work) -> Option<(&CStr, Option<&CStr>)> {
    let (first, next) = work.text_at(match work.op {
        Op::PathTimes => size_of::<[libc::timespec; 2]>(),
        _ => 0,
    })?;
    let second = || Some(work.text_at(next)?.0);
    match work.op {
        // What a symbolic link is to say is any text.
        Op::PathSymlink => Some((second()?, None)),
        Op::PathLink | Op::PathRename => Some((first, Some(second()?))),
        op => op.is_on_path().then_some((first, None)),
    }
}

/// Whether an operation is about paths of hostfs's. Context: signal.
pub(super) fn concerns(work: &Work) -> bool {
    paths(work).is_some_and(|(path, _)| split(path.to_bytes()).is_some())
}

/// The node that has to execute an operation on paths of hostfs's; `None` for another. Context: signal.
pub(super) fn owner(work: &Work) -> Option<Result<u16, i32>> {
    let node = |path: &CStr| {
        let (name, _) = split(path.to_bytes())?;
        let nodes = NODES.get().map(Vec::as_slice).unwrap_or_default();
        let named = nodes.iter().position(|node| node == name);
        Some(match name.is_empty() {
            true => Ok(0),
            false => named.map(|index| index as u16).ok_or(libc::EHOSTUNREACH),
        })
    };
    let (first, second) = paths(work)?;
    let first = node(first)?;
    match second.map(node) {
        Some(second) if second != Some(first) => Some(Err(libc::EXDEV)),
        _ => Some(first),
    }
}

/// The node's name, and the path there.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = path
        .strip_prefix(SCHEME)
        .or_else(|| path.strip_prefix(DISK_SCHEME))?;
    let end = rest.iter().position(|byte| *byte == b'/');
    Some(rest.split_at(end.unwrap_or(rest.len())))
}

/// What of an exported directory a path is for.
#[derive(Debug)]
struct Target<'r> {
    root: &'r Root,
    /// From the directory on; empty for itself.
    inside: PathBuf,
}

fn c_string(path: &Path) -> Result<CString, i32> {
    let bytes = match path.as_os_str().as_bytes() {
        [] => b".",
        bytes => bytes,
    };
    CString::new(bytes).map_err(|_| libc::EINVAL)
}

/// Opens something beneath a directory, wherever its names lead by now.
fn open_beneath(from: RawFd, path: &CStr, flags: i32, mode: u32) -> Result<OwnedFd, i32> {
    /// What changes at the same time is looked at again, but not for ever.
    const TRIES: u32 = 64;
    // SAFETY: a structure of numbers.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    // The kernel refuses a mode that means nothing.
    if flags & libc::O_CREAT != 0 {
        how.mode = (mode & 0o7777).into();
    }
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    let mut result = Err(libc::EAGAIN);
    for _ in 0..TRIES {
        // SAFETY: passes a string and a local of the size that is given.
        result = owned(unsafe {
            libc::syscall(
                libc::SYS_openat2,
                from,
                path.as_ptr(),
                &raw const how,
                size_of_val(&how),
            )
        });
        if !matches!(result, Err(libc::EAGAIN)) {
            break;
        }
    }
    // What lies outside is not exported.
    result.map_err(|error| match error {
        libc::EXDEV => libc::EPERM,
        error => error,
    })
}

/// The last name of a path, and the directory that it is in.
#[derive(Debug)]
struct Last {
    directory: OwnedFd,
    name: CString,
}

impl Last {
    fn at(&self) -> RawFd {
        self.directory.as_raw_fd()
    }
}

impl Target<'static> {
    fn of(path: &CStr) -> Result<Self, i32> {
        let is_disk = path.to_bytes().starts_with(DISK_SCHEME);
        let (_, path) = split(path.to_bytes()).ok_or(libc::EINVAL)?;
        let roots = DISKS.get().filter(|_| is_disk).or_else(|| ROOTS.get());
        Self::among(roots.map(Vec::as_slice).unwrap_or_default(), path)
    }

    /// For a call that changes something.
    fn to_change(path: &CStr) -> Result<Self, i32> {
        let target = Self::of(path)?;
        match target.root.read_only {
            true => Err(libc::EROFS),
            false => Ok(target),
        }
    }
}

impl<'r> Target<'r> {
    fn among(roots: &'r [Root], path: &[u8]) -> Result<Self, i32> {
        let mut wanted = PathBuf::from("/");
        for component in Path::new(OsStr::from_bytes(path)).components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => wanted.push(name),
                Component::ParentDir | Component::Prefix(_) => return Err(libc::EPERM),
            }
        }
        let root = roots.iter().find(|root| wanted.starts_with(&root.path));
        let root = root.ok_or(libc::EPERM)?;
        let inside = wanted.strip_prefix(&root.path).map_err(|_| libc::EPERM)?;
        Ok(Self {
            root,
            inside: inside.to_path_buf(),
        })
    }

    /// A symbolic link is not followed, unless it may lead anywhere.
    fn open(&self, flags: i32, mode: u32) -> Result<OwnedFd, i32> {
        let from = self.root.directory.as_raw_fd();
        let inside = c_string(&self.inside)?;
        if self.root.confines {
            return open_beneath(from, &inside, flags | libc::O_NOFOLLOW, mode);
        }
        let flags = flags | libc::O_CLOEXEC;
        // SAFETY: passes a string.
        owned(unsafe { libc::openat(from, inside.as_ptr(), flags, mode) }.into())
    }

    /// The thing itself, whatever it is.
    fn itself(&self) -> Result<OwnedFd, i32> {
        self.open(libc::O_PATH, 0)
    }

    /// For calls that want a name in a directory.
    fn last(&self) -> Result<Last, i32> {
        let above = self.inside.parent().unwrap_or(Path::new(""));
        let name = self.inside.file_name().map(Path::new);
        let (from, flags) = (
            self.root.directory.as_raw_fd(),
            libc::O_PATH | libc::O_DIRECTORY,
        );
        Ok(Last {
            directory: open_beneath(from, &c_string(above)?, flags, 0)?,
            name: c_string(name.unwrap_or(Path::new("")))?,
        })
    }
}

/// Executes an operation on a path of hostfs's; `None` for one on another path.
pub(super) fn exec(env: &Env, work: &Work) -> Option<Done> {
    let (path, second) = paths(work)?;
    split(path.to_bytes())?;
    Some(run(env, work, path, second).unwrap_or_else(Done::error))
}

fn run(env: &Env, work: &Work, path: &CStr, second: Option<&CStr>) -> Result<Done, i32> {
    let second = || second.ok_or(libc::EINVAL);
    let mode = work.int(0) as u32;
    // SAFETY: all of them: strings of the work or of this function's own, structures that were checked to lie
    // in the work's buffers, descriptors that are open.
    let done = unsafe {
        match work.op {
            Op::PathOpen => open(env, work, path)?,
            Op::PathStat => {
                let stat = work.output_struct::<libc::stat64>().ok_or(libc::EINVAL)?;
                let file = Target::of(path)?.itself()?;
                let result = libc::fstat64(file.as_raw_fd(), stat);
                Done::with_output(result.into(), size_of::<libc::stat64>())
            }
            Op::PathStatx => {
                let statx = work.output_struct::<libc::statx>().ok_or(libc::EINVAL)?;
                let file = Target::of(path)?.itself()?;
                let flags = work.int(1) & libc::AT_STATX_SYNC_TYPE | libc::AT_EMPTY_PATH;
                let mask = work.int(2) as u32;
                let result = libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, mask, statx);
                Done::with_output(result.into(), size_of::<libc::statx>())
            }
            Op::PathStatfs => {
                let statfs = work.output_struct::<libc::statfs64>().ok_or(libc::EINVAL)?;
                let file = Target::of(path)?.itself()?;
                let result = libc::fstatfs64(file.as_raw_fd(), statfs);
                Done::with_output(result.into(), size_of::<libc::statfs64>())
            }
            Op::PathAccess => {
                let target = Target::of(path)?;
                let wanted = work.int(0);
                if target.root.read_only && wanted & libc::W_OK != 0 {
                    return Err(libc::EROFS);
                }
                let (file, flags) = (target.itself()?, libc::AT_EMPTY_PATH);
                let (fd, none) = (file.as_raw_fd(), c"".as_ptr());
                Done::of(libc::syscall(libc::SYS_faccessat2, fd, none, wanted, flags))
            }
            Op::PathReadlink => {
                let link = Target::of(path)?.itself()?;
                let (fd, none) = (link.as_raw_fd(), c"".as_ptr());
                let n = libc::readlinkat(fd, none, work.output.cast(), work.output_cap);
                Done::with_output(n as i64, n.max(0) as usize)
            }
            Op::PathMkdir => {
                let last = Target::to_change(path)?.last()?;
                Done::of(libc::mkdirat(last.at(), last.name.as_ptr(), mode).into())
            }
            Op::PathRmdir => {
                let last = Target::to_change(path)?.last()?;
                Done::of(libc::unlinkat(last.at(), last.name.as_ptr(), libc::AT_REMOVEDIR).into())
            }
            Op::PathUnlink => {
                let last = Target::to_change(path)?.last()?;
                Done::of(libc::unlinkat(last.at(), last.name.as_ptr(), 0).into())
            }
            Op::PathMknod => {
                let last = Target::to_change(path)?.last()?;
                let device = work.args[1] as u64;
                Done::of(libc::mknodat(last.at(), last.name.as_ptr(), mode, device).into())
            }
            Op::PathMode => {
                let file = Target::to_change(path)?.itself()?;
                // There is no call for a descriptor like this before Linux 6.6. The path leads to it alone.
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                let path = CString::new(path).map_err(|_| libc::EINVAL)?;
                Done::of(libc::chmod(path.as_ptr(), mode).into())
            }
            Op::PathOwner => {
                let file = Target::to_change(path)?.itself()?;
                let group = work.int(1) as u32;
                let flags = libc::AT_EMPTY_PATH;
                Done::of(libc::fchownat(file.as_raw_fd(), c"".as_ptr(), mode, group, flags).into())
            }
            Op::PathTruncate => {
                let file = Target::to_change(path)?.open(libc::O_WRONLY | STEADY, 0)?;
                Done::of(libc::ftruncate64(file.as_raw_fd(), work.args[0]).into())
            }
            Op::PathTimes => {
                let times = work
                    .struct_at::<[libc::timespec; 2]>(0)
                    .ok_or(libc::EINVAL)?;
                let last = Target::to_change(path)?.last()?;
                let flags = libc::AT_SYMLINK_NOFOLLOW;
                let result = libc::utimensat(last.at(), last.name.as_ptr(), times.cast(), flags);
                Done::of(result.into())
            }
            Op::PathLink => {
                let from = Target::to_change(path)?.last()?;
                let to = Target::to_change(second()?)?.last()?;
                let (old, new) = (from.name.as_ptr(), to.name.as_ptr());
                Done::of(libc::linkat(from.at(), old, to.at(), new, 0).into())
            }
            Op::PathSymlink => {
                let (says, _) = work.text_at(0).ok_or(libc::EINVAL)?;
                let last = Target::to_change(path)?.last()?;
                Done::of(libc::symlinkat(says.as_ptr(), last.at(), last.name.as_ptr()).into())
            }
            Op::PathRename => {
                let from = Target::to_change(path)?.last()?;
                let to = Target::to_change(second()?)?.last()?;
                Done::of(libc::syscall(
                    libc::SYS_renameat2,
                    from.at(),
                    from.name.as_ptr(),
                    to.at(),
                    to.name.as_ptr(),
                    work.int(0),
                ))
            }
            _ => return Err(libc::EINVAL),
        }
    };
    Ok(done)
}

/// Flags that a file of the guest's may be opened with.
const OPEN_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_CREAT
    | libc::O_EXCL
    | libc::O_TRUNC
    | libc::O_APPEND
    | libc::O_DIRECTORY
    | libc::O_DIRECT
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_NOATIME;

/// The guest opens regular files and directories. If one was exchanged for a pipe or a terminal, nothing waits for it,
/// and it does not become this process's terminal.
const STEADY: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;

fn open(env: &Env, work: &Work, path: &CStr) -> Result<Done, i32> {
    let flags = work.int(0) & OPEN_FLAGS;
    let changes =
        flags & libc::O_ACCMODE != libc::O_RDONLY || flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
    let target = match changes {
        true => Target::to_change(path)?,
        false => Target::of(path)?,
    };
    let file = target.open(flags | STEADY, work.int(1) as u32)?;
    Ok(Done::descriptor(env, file.into_raw_fd()))
}

/// A directory of hostfs's, to be listed.
pub(super) fn open_directory(work: &Work) -> Option<Result<OwnedFd, i32>> {
    let (path, _) = paths(work)?;
    split(path.to_bytes())?;
    let open = |target: Target<'_>| target.open(libc::O_RDONLY | libc::O_DIRECTORY, 0);
    Some(Target::of(path).and_then(open))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    /// A directory with one that is exported, one inside that is read-only, and one beside them.
    fn place() -> (tempfile::TempDir, Vec<Root>) {
        let place = tempfile::tempdir().unwrap();
        for directory in ["out/here/constant", "out/here/sub", "beside"] {
            fs::create_dir_all(place.path().join(directory)).unwrap();
        }
        fs::write(place.path().join("beside/secret"), "secret").unwrap();
        fs::write(place.path().join("out/here/sub/file"), "file").unwrap();
        let export = |name: &str, read_only| Export {
            directory: place
                .path()
                .join(name)
                .into_os_string()
                .into_encoded_bytes(),
            read_only,
        };
        let roots = [export("out/here", false), export("out/here/constant", true)];
        let roots = open_roots(&roots).unwrap();
        (place, roots)
    }

    fn at(place: &tempfile::TempDir, name: &str) -> Vec<u8> {
        place
            .path()
            .join(name)
            .into_os_string()
            .into_encoded_bytes()
    }

    fn inode(fd: &OwnedFd) -> u64 {
        let file = fs::File::from(fd.try_clone().unwrap());
        file.metadata().unwrap().ino()
    }

    #[test]
    fn a_path_names_its_node() {
        let split = |text: &'static str| split(text.as_bytes());
        assert_eq!(split("span://b/srv"), Some((&b"b"[..], &b"/srv"[..])));
        assert_eq!(split("span:///srv"), Some((&b""[..], &b"/srv"[..])));
        assert_eq!(split("span://b"), Some((&b"b"[..], &b""[..])));
        assert_eq!(split("span-disk://b/d"), Some((&b"b"[..], &b"/d"[..])));
        assert_eq!(split("/span://b"), None);
        assert_eq!(split("span:/b"), None);
    }

    #[test]
    fn only_what_is_exported_is_found() {
        let (place, roots) = place();
        let find = |name: &str| Target::among(&roots, &at(&place, name));
        let found = |name: &str| {
            let target = find(name).unwrap();
            (target.root.read_only, target.inside)
        };
        assert_eq!(found("out/here/sub/./file"), (false, "sub/file".into()));
        assert_eq!(found("out//here/constant/"), (true, "".into()));
        for outside in [
            "out",
            "beside/secret",
            "out/hereabouts",
            "out/here/../../beside",
        ] {
            assert_eq!(find(outside).unwrap_err(), libc::EPERM, "{outside}");
        }
        assert_eq!(Target::among(&roots, b"").unwrap_err(), libc::EPERM);
        assert_eq!(Target::among(&[], b"/").unwrap_err(), libc::EPERM);
    }

    #[test]
    fn no_symbolic_link_leads_out() {
        let (place, roots) = place();
        let here = place.path().join("out/here");
        symlink(place.path().join("beside"), here.join("absolute")).unwrap();
        symlink("../../beside", here.join("relative")).unwrap();
        symlink("sub", here.join("inside")).unwrap();
        symlink("/proc/self/root/etc", here.join("magic")).unwrap();
        for name in ["absolute/secret", "relative/secret", "magic/passwd"] {
            let path = at(&place, &format!("out/here/{name}"));
            let target = Target::among(&roots, &path).unwrap();
            let errors = [
                target.itself().unwrap_err(),
                target
                    .open(libc::O_RDWR | libc::O_CREAT, 0o600)
                    .unwrap_err(),
                target.last().unwrap_err(),
            ];
            assert_eq!(errors, [libc::EPERM; 3], "{name}");
        }
        // The link itself is there, and is not followed.
        let target = Target::among(&roots, &at(&place, "out/here/relative")).unwrap();
        assert_eq!(target.open(libc::O_RDONLY, 0).unwrap_err(), libc::ELOOP);
        let link = target.itself().unwrap();
        assert_eq!(
            inode(&link),
            fs::symlink_metadata(here.join("relative")).unwrap().ino()
        );
        let target = Target::among(&roots, &at(&place, "out/here/inside/file")).unwrap();
        assert!(target.open(libc::O_RDONLY, 0).is_ok());
    }

    #[test]
    fn a_disk_is_any_file_where_nothing_confines() {
        let (place, mut roots) = place();
        let (here, beside) = (place.path().join("out/here"), place.path().join("beside"));
        symlink(beside.join("secret"), here.join("disk")).unwrap();
        let path = at(&place, "out/here/disk");
        let open = |roots: &[Root]| {
            let target = Target::among(roots, &path).unwrap();
            (target.open(libc::O_RDWR, 0), target.itself())
        };
        let confined = open(&roots);
        assert_eq!(confined.0.unwrap_err(), libc::ELOOP);
        roots.iter_mut().for_each(|root| root.confines = false);
        let secret = fs::metadata(beside.join("secret")).unwrap().ino();
        let (file, itself) = open(&roots);
        assert_eq!(
            [inode(&file.unwrap()), inode(&itself.unwrap())],
            [secret; 2]
        );
    }

    #[test]
    fn nothing_is_changed_where_it_must_not_be() {
        let (place, roots) = place();
        let target = Target::among(&roots, &at(&place, "out/here/constant/new")).unwrap();
        assert!(target.root.read_only);
        let target = Target::among(&roots, &at(&place, "out/here/new")).unwrap();
        assert!(!target.root.read_only);
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
        assert!(target.open(flags, 0o640).is_ok());
        assert_eq!(target.open(flags, 0o640).unwrap_err(), libc::EEXIST);
        let made = fs::metadata(place.path().join("out/here/new")).unwrap();
        assert_eq!(made.mode() & 0o7737, 0o600);
    }

    #[test]
    fn a_directory_that_is_exchanged_meanwhile_leads_nowhere_else() {
        let (place, roots) = place();
        let here = place.path().join("out/here");
        fs::write(here.join("sub/secret"), "none").unwrap();
        symlink("../../beside", here.join("trap")).unwrap();
        let mine = fs::metadata(here.join("sub/secret")).unwrap().ino();
        let path = at(&place, "out/here/sub/secret");
        /// Ends the thread below also where what it is there for fails.
        struct OnDrop<'f>(&'f AtomicBool);
        impl Drop for OnDrop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let over = AtomicBool::new(false);
        let (mut found, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let name = |name: &str| {
                    CString::new(here.join(name).into_os_string().into_encoded_bytes()).unwrap()
                };
                let (sub, trap) = (name("sub"), name("trap"));
                let (cwd, exchange) = (libc::AT_FDCWD, libc::RENAME_EXCHANGE);
                while !over.load(Relaxed) {
                    // SAFETY: passes two strings.
                    unsafe { libc::renameat2(cwd, sub.as_ptr(), cwd, trap.as_ptr(), exchange) };
                }
            });
            let _end = OnDrop(&over);
            for _ in 0..20_000 {
                let opened =
                    Target::among(&roots, &path).and_then(|target| target.open(libc::O_RDONLY, 0));
                match opened {
                    Ok(file) => {
                        assert_eq!(inode(&file), mine);
                        found += 1;
                    }
                    Err(error) => {
                        let known = [libc::EPERM, libc::ELOOP, libc::ENOENT, libc::EAGAIN];
                        assert!(known.contains(&error), "{error}");
                        refused += 1;
                    }
                }
            }
        });
        assert!(found > 0 && refused > 0, "{found} found, {refused} refused");
    }
}
