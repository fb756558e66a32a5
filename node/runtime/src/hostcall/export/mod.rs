//! Directories of this node's host that the guest may mount, and nothing beside them.
//!
//! hostfs names what it works on as `span://NODE/directory/file`; without a name it is the first node. The call is
//! executed on that node ([`owner`]), beneath one of the directories that the node exports ([`set_up`]). What the
//! guest says of a path is never taken for true: each call resolves it anew, from the exported directory's own
//! descriptor ([`directory`]). What is behind a path is a [`Tree`].
//!
//! Runs on a host stack or on a thread of the runtime's: it allocates.

mod directory;
mod listing;
mod mapped;
mod opened;
mod sqlite;
mod tree;
mod union;

use super::env::Env;
use super::exec::{Done, Op, Work};
use directory::Directory;
use mapped::Mapped;
use span_api::guest::{Export, Kind, RESERVED, SQLITE};
use sqlite::Sqlite;
use std::ffi::{CStr, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;
use tree::Tree;

pub(super) use opened::{concerns as is_about_held, exec as exec_on_held, is_held};

pub(super) const SCHEME: &[u8] = b"span://";

/// What the kernel's disk driver names its files with. No path of hostfs's begins like this: what they are is for
/// whoever has the guest started to say, and for its management console, not for programs in it.
pub(super) const DISK_SCHEME: &[u8] = b"span-disk://";

/// What is exported under a path.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    tree: Box<dyn Tree>,
    is_directory: bool,
    read_only: bool,
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
        let root = PathBuf::from("/");
        let all = Directory::open(&root).map_err(|error| {
            let error = std::io::Error::from_raw_os_error(error);
            format!("{}: {error}", root.display())
        })?;
        let _ = DISKS.set(vec![Root {
            path: root,
            tree: Box::new(all.that_leads_anywhere()),
            is_directory: true,
            read_only: false,
        }]);
    }
    let _ = NODES.set(nodes);
    Ok(())
}

fn open_roots(exports: &[Export]) -> Result<Vec<Root>, String> {
    let mut roots = Vec::new();
    for export in exports {
        let path = PathBuf::from(OsStr::from_bytes(&export.directory));
        let read_only = export.read_only;
        let tree = || -> Result<Box<dyn Tree>, String> {
            let said = |error| std::io::Error::from_raw_os_error(error).to_string();
            Ok(match export.kind {
                Kind::Directory => Box::new(Directory::open(&path).map_err(said)?),
                Kind::Mapped => Box::new(Mapped::open(&path, read_only)?),
                Kind::Sqlite => Box::new(Sqlite::open(&path, read_only)?),
            })
        };
        let name = export.name();
        let tree = tree()
            .map_err(|error| format!("exporting {}: {error}", String::from_utf8_lossy(&name)))?;
        roots.push(Root {
            path,
            tree,
            is_directory: export.kind.is_directory(),
            read_only,
        });
    }
    // What lies inside another comes first.
    roots.sort_by_key(|root| std::cmp::Reverse(root.path.components().count()));
    Ok(roots)
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
        let (name, rest) = split(path.to_bytes())?;
        Some(match name == union::NAME {
            true => node_of(union::first_node(rest)),
            false => node_of(name),
        })
    };
    let (first, second) = paths(work)?;
    let first = node(first)?;
    match second.map(node) {
        Some(second) if second != Some(first) => Some(Err(libc::EXDEV)),
        _ => Some(first),
    }
}

fn is_reserved(name: &[u8]) -> bool {
    RESERVED.iter().any(|reserved| reserved.as_bytes() == name)
}

/// Context: signal.
fn node_of(name: &[u8]) -> Result<u16, i32> {
    if name.is_empty() || is_scheme(name) {
        return Ok(0);
    }
    let nodes = NODES.get().map(Vec::as_slice).unwrap_or_default();
    let named = nodes.iter().position(|node| node == name);
    named.map(|index| index as u16).ok_or(libc::EHOSTUNREACH)
}

/// Whether a node's name is none, but `sqlite` of `sqlite:/file`.
fn is_scheme(name: &[u8]) -> bool {
    SQLITE.strip_suffix(b":") == Some(name)
}

/// The node's name, and the path there.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = path
        .strip_prefix(SCHEME)
        .or_else(|| path.strip_prefix(DISK_SCHEME))?;
    let end = rest.iter().position(|byte| *byte == b'/');
    Some(rest.split_at(end.unwrap_or(rest.len())))
}

/// What of an exported tree a path is for.
#[derive(Debug)]
struct Target<'r> {
    root: &'r Root,
    /// From the tree's root on; empty for itself.
    inside: PathBuf,
}

impl Target<'static> {
    fn of(path: &CStr) -> Result<Self, i32> {
        let is_disk = path.to_bytes().starts_with(DISK_SCHEME);
        let (node, path) = split(path.to_bytes()).ok_or(libc::EINVAL)?;
        let roots = DISKS.get().filter(|_| is_disk).or_else(|| ROOTS.get());
        let roots = roots.map(Vec::as_slice).unwrap_or_default();
        // `NODE:sqlite:/file`, or without a node's name. A path of a directory has a slash here.
        let database = path
            .strip_prefix(b"/")
            .and_then(|path| path.strip_prefix(SQLITE));
        match database {
            Some(path) => Self::among(roots, path, false),
            None => Self::among(roots, path, !is_scheme(node)),
        }
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
    fn among(roots: &'r [Root], path: &[u8], in_directory: bool) -> Result<Self, i32> {
        let mut wanted = PathBuf::from("/");
        for component in Path::new(OsStr::from_bytes(path)).components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => wanted.push(name),
                Component::ParentDir | Component::Prefix(_) => return Err(libc::EPERM),
            }
        }
        let fits =
            |root: &&Root| root.is_directory == in_directory && wanted.starts_with(&root.path);
        let root = roots.iter().find(fits);
        let root = root.ok_or(libc::EPERM)?;
        let inside = wanted.strip_prefix(&root.path).map_err(|_| libc::EPERM)?;
        Ok(Self {
            root,
            inside: inside.to_path_buf(),
        })
    }

    fn tree(&self) -> &'r dyn Tree {
        self.root.tree.as_ref()
    }
}

/// Executes an operation on a path of hostfs's; `None` for one on another path.
pub(super) fn exec(env: &Env, work: &Work) -> Option<Done> {
    let (path, second) = paths(work)?;
    let (name, _) = split(path.to_bytes())?;
    if name == union::NAME {
        return Some(union::run(env, work).unwrap_or_else(Done::error));
    }
    Some(run(env, work, path, second).unwrap_or_else(Done::error))
}

fn run(env: &Env, work: &Work, path: &CStr, second: Option<&CStr>) -> Result<Done, i32> {
    let second = || second.ok_or(libc::EINVAL);
    let mode = work.int(0) as u32;
    /// Calls a method of the tree on the path in it.
    macro_rules! on {
        ($target:ident . $method:ident ( $($argument:expr),* )) => {{
            let target = Target::$target(path)?;
            target.tree().$method(&target.inside, $($argument),*)?
        }};
    }
    match work.op {
        Op::PathOpen => return open(env, work, path),
        Op::PathStat => {
            let stat = on!(of.stat(0, libc::STATX_BASIC_STATS));
            return give(work, tree::stat64(&stat));
        }
        Op::PathStatx => {
            let flags = work.int(1) & libc::AT_STATX_SYNC_TYPE;
            return give(work, on!(of.stat(flags, work.int(2) as u32)));
        }
        Op::PathStatfs => return give(work, on!(of.statfs())),
        Op::PathAccess => {
            let target = Target::of(path)?;
            let wanted = work.int(0);
            if target.root.read_only && wanted & libc::W_OK != 0 {
                return Err(libc::EROFS);
            }
            target.tree().access(&target.inside, wanted)?;
        }
        Op::PathReadlink => {
            // SAFETY: the maker of the work guarantees that many bytes.
            let to = unsafe { std::slice::from_raw_parts_mut(work.output, work.output_cap) };
            let n = on!(of.read_link(to));
            return Ok(Done::with_output(n as i64, n));
        }
        Op::PathMkdir => on!(to_change.make_directory(mode)),
        Op::PathRmdir => on!(to_change.remove_directory()),
        Op::PathUnlink => on!(to_change.unlink()),
        Op::PathMknod => on!(to_change.make_node(mode, work.args[1] as u64)),
        Op::PathMode => on!(to_change.set_mode(mode)),
        Op::PathOwner => on!(to_change.set_owner(mode, work.int(1) as u32)),
        Op::PathTruncate => on!(to_change.truncate(work.args[0])),
        Op::PathTimes => {
            let times = work
                .struct_at::<[libc::timespec; 2]>(0)
                .ok_or(libc::EINVAL)?;
            // SAFETY: it was checked to lie in the work's input.
            on!(to_change.set_times(unsafe { &*times }));
        }
        Op::PathSymlink => {
            let (says, _) = work.text_at(0).ok_or(libc::EINVAL)?;
            on!(to_change.symlink(says));
        }
        Op::PathLink | Op::PathRename => {
            let (from, to) = (Target::to_change(path)?, Target::to_change(second()?)?);
            let flags = (work.op == Op::PathRename).then_some(mode);
            let (tree, other) = (from.tree(), to.tree());
            match (tree.directory(), other.directory()) {
                (Some(here), Some(there)) => {
                    directory::link(here, &from.inside, there, &to.inside, flags)?;
                }
                _ if !std::ptr::eq(from.root, to.root) => return Err(libc::EXDEV),
                _ => match flags {
                    Some(flags) => tree.rename(&from.inside, &to.inside, flags)?,
                    None => tree.link(&from.inside, &to.inside)?,
                },
            }
        }
        _ => return Err(libc::EINVAL),
    }
    Ok(Done::of(0))
}

/// Hands a structure out.
fn give<T>(work: &Work, value: T) -> Result<Done, i32> {
    let to = work.output_struct::<T>().ok_or(libc::EINVAL)?;
    // SAFETY: the output was checked to have room for it.
    unsafe { to.write(value) };
    Ok(Done::with_output(0, size_of::<T>()))
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

fn open(env: &Env, work: &Work, path: &CStr) -> Result<Done, i32> {
    let is_disk = path.to_bytes().starts_with(DISK_SCHEME);
    let mut flags = work.int(0) & OPEN_FLAGS;
    if is_disk {
        // Nobody may ever come to a pipe's other end.
        flags |= libc::O_NONBLOCK;
    }
    let changes =
        flags & libc::O_ACCMODE != libc::O_RDONLY || flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
    let target = match changes {
        true => Target::to_change(path)?,
        false => Target::of(path)?,
    };
    let mode = work.int(1) as u32;
    let mut file = target.tree().open(&target.inside, flags, mode)?;
    if is_disk && is_device(&file.fd)? {
        // It has to say whether there is a disc in it, which it does not to who will not wait.
        flags &= !libc::O_NONBLOCK;
        file = target.tree().open(&target.inside, flags, mode)?;
    }
    Ok(opened::hand_out(env, file))
}

/// Whether what is to be a disk is a block device; an error for what can be none.
fn is_device(fd: &OwnedFd) -> Result<bool, i32> {
    let stat = nix::sys::stat::fstat(fd).map_err(|error| error as i32)?;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => Ok(false),
        libc::S_IFBLK => Ok(true),
        libc::S_IFDIR => Err(libc::EISDIR),
        _ => Err(libc::ENOTBLK),
    }
}

/// A directory of hostfs's, to be listed.
pub(super) fn open_directory(work: &Work) -> Option<Result<OwnedFd, i32>> {
    let (path, _) = paths(work)?;
    split(path.to_bytes())?;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let open = |target: Target<'_>| {
        let opened = target.tree().open(&target.inside, flags, 0)?;
        // A stream of libc's reads the descriptor itself.
        match opened.held {
            None => Ok(opened.fd),
            Some(_) => Err(libc::EOPNOTSUPP),
        }
    };
    Some(Target::of(path).and_then(open))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
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
            kind: Kind::Directory,
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

    impl Target<'_> {
        fn dir(&self) -> &Directory {
            self.root.tree.directory().unwrap()
        }

        fn itself(&self) -> Result<OwnedFd, i32> {
            self.dir().itself(&self.inside)
        }

        fn open(&self, flags: i32, mode: u32) -> Result<OwnedFd, i32> {
            self.dir().open_inside(&self.inside, flags, mode)
        }

        fn last(&self) -> Result<directory::Last, i32> {
            self.dir().last(&self.inside)
        }
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
        let find = |name: &str| Target::among(&roots, &at(&place, name), true);
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
        assert_eq!(Target::among(&roots, b"", true).unwrap_err(), libc::EPERM);
        assert_eq!(Target::among(&[], b"/", true).unwrap_err(), libc::EPERM);
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
            let target = Target::among(&roots, &path, true).unwrap();
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
        let target = Target::among(&roots, &at(&place, "out/here/relative"), true).unwrap();
        assert_eq!(target.open(libc::O_RDONLY, 0).unwrap_err(), libc::ELOOP);
        let link = target.itself().unwrap();
        assert_eq!(
            inode(&link),
            fs::symlink_metadata(here.join("relative")).unwrap().ino()
        );
        let target = Target::among(&roots, &at(&place, "out/here/inside/file"), true).unwrap();
        assert!(target.open(libc::O_RDONLY, 0).is_ok());
    }

    #[test]
    fn a_disk_is_any_file_where_nothing_confines() {
        let (place, mut roots) = place();
        let (here, beside) = (place.path().join("out/here"), place.path().join("beside"));
        symlink(beside.join("secret"), here.join("disk")).unwrap();
        let path = at(&place, "out/here/disk");
        let open = |roots: &[Root]| {
            let target = Target::among(roots, &path, true).unwrap();
            (target.open(libc::O_RDWR, 0), target.itself())
        };
        let confined = open(&roots);
        assert_eq!(confined.0.unwrap_err(), libc::ELOOP);
        for root in &mut roots {
            let directory = Directory::open(&root.path).unwrap();
            root.tree = Box::new(directory.that_leads_anywhere());
        }
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
        let target = Target::among(&roots, &at(&place, "out/here/constant/new"), true).unwrap();
        assert!(target.root.read_only);
        let target = Target::among(&roots, &at(&place, "out/here/new"), true).unwrap();
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
                let opened = Target::among(&roots, &path, true)
                    .and_then(|target| target.open(libc::O_RDONLY, 0));
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
