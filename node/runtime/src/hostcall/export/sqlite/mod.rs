//! A SQLite database as files: a directory for each table, in it a file for each row.
//!
//! A row's file is called as its primary key ([`name`]), or as its rowid where there is none, and has the row as JSON
//! ([`text`]). What is written to it becomes an UPDATE or INSERT as soon as it is a whole object; unlink is DELETE, and
//! rename an UPDATE of the key. Each of them is a transaction of its own. The guest's descriptor is of a copy in memory
//! ([`row`]).
//!
//! Locks, in this order: the table of open rows, a row's state, the connection.

mod database;
mod name;
mod row;
mod text;

use super::directory::checked;
use super::listing::{self, Entry, Source, lock};
use super::opened::Opened;
use super::tree::Tree;
use crate::hostcall::env::Env;
use crate::hostcall::exec::{Done, Op, Work};
use database::Database;
use name::{NAME_BYTES_MAX, escape, unescape};
use row::Row;
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

/// The file is looked at when it is closed: hostfs asks. A bit of statx(2)'s attributes that no file system has.
pub(super) const ATTRIBUTE_CHECKED: u64 = 1 << 63;

#[derive(Debug)]
pub(super) struct Sqlite(Arc<Database>);

/// The databases that this process has open.
static MOUNTED: Mutex<Vec<Weak<Database>>> = Mutex::new(Vec::new());

/// Whether a file is one that SQLite has locks on here. To close it, however it was opened, is to give them up
/// (fcntl(2)), so it must not be opened by another way. With an `O_PATH` descriptor it is not.
pub(super) fn holds(file: &libc::statx) -> bool {
    let mounted = lock(&MOUNTED);
    let mut databases = mounted.iter().filter_map(Weak::upgrade);
    databases.any(|database| database.holds(file))
}

/// Whether there are any.
pub(super) fn holds_any() -> bool {
    !lock(&MOUNTED).is_empty()
}

/// What a path leads to.
#[derive(Debug, Clone)]
enum Place {
    Root,
    Table(String),
    Row(String, Vec<u8>),
}

impl Place {
    fn of(path: &Path) -> Result<Self, i32> {
        let mut names = path.iter().map(OsStrExt::as_bytes);
        let Some(table) = names.next() else {
            return Ok(Self::Root);
        };
        let row = names.next();
        if [Some(table), row]
            .iter()
            .flatten()
            .any(|name| name.len() > NAME_BYTES_MAX)
        {
            return Err(libc::ENAMETOOLONG);
        }
        let table = unescape(table).and_then(|name| String::from_utf8(name).ok());
        let table = table.ok_or(libc::ENOENT)?;
        match (row, names.next()) {
            (None, _) => Ok(Self::Table(table)),
            (Some(row), None) => Ok(Self::Row(table, row.to_vec())),
            _ => Err(libc::ENOTDIR),
        }
    }

    /// A row that is to be changed.
    fn row(path: &Path) -> Result<(String, Vec<u8>), i32> {
        match Self::of(path)? {
            // Tables come and go by SQL.
            Self::Root | Self::Table(_) => Err(libc::EPERM),
            Self::Row(table, row) => Ok((table, row)),
        }
    }
}

/// The same on every look, without a table of numbers.
fn inode(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.iter().chain(b"/")) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    }
    hash | 1 << 32
}

fn inode_of(table: &str, row: &[u8]) -> u64 {
    inode(&[table.as_bytes(), row])
}

impl Sqlite {
    pub(super) fn open(path: &Path, read_only: bool) -> Result<Self, String> {
        let database = Arc::new(Database::open(path, read_only)?);
        lock(&MOUNTED).push(Arc::downgrade(&database));
        Ok(Self(database))
    }

    /// Attributes of a file with this many bytes, or of a directory.
    fn attributes(&self, inode: u64, len: Option<u64>) -> Result<libc::statx, i32> {
        let mut statx = self.0.file()?;
        let rights = statx.stx_mode & 0o666;
        statx.stx_ino = inode;
        statx.stx_mode = match len {
            Some(_) => libc::S_IFREG as u16 | rights,
            // Who may read it may enter it.
            None => libc::S_IFDIR as u16 | rights | (rights & 0o444) >> 2,
        };
        statx.stx_nlink = if len.is_some() { 1 } else { 2 };
        statx.stx_size = len.unwrap_or(0);
        statx.stx_blocks = len.unwrap_or(0).div_ceil(512);
        statx.stx_mask = libc::STATX_BASIC_STATS;
        statx.stx_btime = statx.stx_ctime;
        statx.stx_btime.tv_sec = 0;
        statx.stx_btime.tv_nsec = 0;
        statx.stx_attributes |= ATTRIBUTE_CHECKED;
        Ok(statx)
    }

    fn stat_place(&self, place: &Place) -> Result<libc::statx, i32> {
        match place {
            Place::Root => self.attributes(1, None),
            Place::Table(table) => {
                self.0.table(table)?;
                self.attributes(inode_of(table, b""), None)
            }
            Place::Row(table, row) => {
                let open = self.0.opened(table, row);
                let len = match &open {
                    Some(row) => row.len()?,
                    None => self.0.read(table, row)?.len() as u64,
                };
                self.attributes(inode_of(table, row), Some(len))
            }
        }
    }

    fn list(&self, place: &Place) -> Result<Vec<Entry>, i32> {
        let entry = |inode, kind, name: &[u8]| Entry {
            inode,
            kind,
            name: name.to_vec(),
        };
        let inode_here = match place {
            Place::Table(table) => inode_of(table, b""),
            _ => 1,
        };
        let mut entries = vec![
            entry(inode_here, libc::DT_DIR, b"."),
            entry(1, libc::DT_DIR, b".."),
        ];
        match place {
            Place::Root => {
                for table in self.0.tables()? {
                    let mut name = Vec::new();
                    escape(table.as_bytes(), &mut name);
                    entries.push(entry(inode_of(&table, b""), libc::DT_DIR, &name));
                }
            }
            Place::Table(table) => {
                let rows = self.0.rows(table)?;
                let rows = rows.iter();
                entries.extend(rows.map(|row| entry(inode_of(table, row), libc::DT_REG, row)));
            }
            Place::Row(..) => return Err(libc::ENOTDIR),
        }
        let all = entries.len();
        entries.retain(|entry| entry.name.len() <= NAME_BYTES_MAX);
        if entries.len() < all {
            let hidden = all - entries.len();
            self.0.say(&format!(
                "{hidden} names have more than {NAME_BYTES_MAX} bytes and are left out"
            ));
        }
        Ok(entries)
    }
}

/// A table, or all of them, to be listed.
#[derive(Debug)]
struct Folder(Sqlite, Place);

impl Source for Folder {
    fn entries(&self) -> Result<Vec<Entry>, i32> {
        self.0.list(&self.1)
    }

    fn exec(&self, _: &Env, work: &Work) -> Option<Done> {
        match work.op {
            Op::PathStatx => Some(give_attributes(work, self.0.stat_place(&self.1))),
            _ => Some(Done::error(libc::EPERM)),
        }
    }
}

fn give_attributes(work: &Work, attributes: Result<libc::statx, i32>) -> Done {
    let give = |statx| super::give(work, statx);
    attributes.and_then(give).unwrap_or_else(Done::error)
}

/// Rows have no times, and so none but now, which is what touch(1) asks for.
fn set_times(times: &[libc::timespec; 2]) -> Result<(), i32> {
    let is_none =
        |time: &libc::timespec| [libc::UTIME_NOW, libc::UTIME_OMIT].contains(&time.tv_nsec);
    match times.iter().all(is_none) {
        true => Ok(()),
        false => Err(libc::EPERM),
    }
}

impl Tree for Sqlite {
    fn open(&self, path: &Path, flags: i32, _mode: u32) -> Result<Opened, i32> {
        let place = Place::of(path)?;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
        let (table, row) = match &place {
            Place::Row(table, row) => (table, row),
            Place::Table(table) if flags & libc::O_CREAT != 0 && self.0.table(table).is_err() => {
                return Err(libc::EPERM);
            }
            _ if writes || flags & libc::O_CREAT != 0 => return Err(libc::EISDIR),
            _ => {
                self.stat_place(&place)?;
                return listing::open(Folder(Sqlite(self.0.clone()), place));
            }
        };
        if flags & libc::O_DIRECTORY != 0 {
            self.stat_place(&place)?;
            return Err(libc::ENOTDIR);
        }
        Row::open(&self.0, table, row, flags)
    }

    fn stat(&self, path: &Path, _flags: i32, _mask: u32) -> Result<libc::statx, i32> {
        self.stat_place(&Place::of(path)?)
    }

    fn statfs(&self, _path: &Path) -> Result<libc::statfs64, i32> {
        let path = self.0.path().as_os_str().as_bytes();
        let path = CString::new(path).map_err(|_| libc::EINVAL)?;
        // SAFETY: a structure of numbers.
        let mut statfs: libc::statfs64 = unsafe { std::mem::zeroed() };
        // SAFETY: passes a string and a local.
        checked(unsafe { libc::statfs64(path.as_ptr(), &raw mut statfs) })?;
        statfs.f_namelen = NAME_BYTES_MAX as i64;
        Ok(statfs)
    }

    fn access(&self, path: &Path, wanted: i32) -> Result<(), i32> {
        let statx = self.stat_place(&Place::of(path)?)?;
        let is_directory = u32::from(statx.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
        match wanted & libc::X_OK != 0 && !is_directory {
            true => Err(libc::EACCES),
            false => Ok(()),
        }
    }

    fn read_link(&self, path: &Path, _to: &mut [u8]) -> Result<usize, i32> {
        self.stat_place(&Place::of(path)?)?;
        Err(libc::EINVAL)
    }

    fn make_directory(&self, _path: &Path, _mode: u32) -> Result<(), i32> {
        Err(libc::EPERM)
    }

    fn remove_directory(&self, path: &Path) -> Result<(), i32> {
        match Place::of(path)? {
            Place::Row(..) => Err(libc::ENOTDIR),
            _ => Err(libc::EPERM),
        }
    }

    fn unlink(&self, path: &Path) -> Result<(), i32> {
        let (table, row) = Place::row(path)?;
        // Let go of when the table of open rows is free again.
        let open;
        let mut rows = lock(self.0.open_rows());
        open = Database::among(&rows, &table, &row);
        match &open {
            Some(open) => open.unlink()?,
            None => self.0.delete(&table, &row)?,
        }
        rows.remove(&(table, row));
        Ok(())
    }

    fn make_node(&self, _path: &Path, _mode: u32, _device: u64) -> Result<(), i32> {
        Err(libc::EPERM)
    }

    fn set_mode(&self, _path: &Path, _mode: u32) -> Result<(), i32> {
        Err(libc::EPERM)
    }

    fn set_owner(&self, _path: &Path, _user: u32, _group: u32) -> Result<(), i32> {
        Err(libc::EPERM)
    }

    /// A part of a row is none. Who opens it to write may begin with nothing.
    fn truncate(&self, path: &Path, _len: i64) -> Result<(), i32> {
        self.stat_place(&Place::of(path)?)?;
        Err(libc::EINVAL)
    }

    fn set_times(&self, _path: &Path, times: &[libc::timespec; 2]) -> Result<(), i32> {
        set_times(times)
    }

    fn symlink(&self, _path: &Path, _says: &CStr) -> Result<(), i32> {
        Err(libc::EPERM)
    }

    fn link(&self, _from: &Path, _to: &Path) -> Result<(), i32> {
        Err(libc::EPERM)
    }

    fn rename(&self, from: &Path, to: &Path, flags: u32) -> Result<(), i32> {
        let (table, old) = Place::row(from)?;
        let (other, new) = Place::row(to)?;
        if table != other {
            return Err(libc::EXDEV);
        }
        if flags & !libc::RENAME_NOREPLACE != 0 {
            return Err(libc::EINVAL);
        }
        let (open, replaced);
        let mut rows = lock(self.0.open_rows());
        replaced = Database::among(&rows, &table, &new).filter(|_| old != new);
        open = Database::among(&rows, &table, &old);
        let keep = flags & libc::RENAME_NOREPLACE != 0;
        if keep && replaced.is_some() {
            return Err(libc::EEXIST);
        }
        match &open {
            Some(open) => open.rename(&new, keep)?,
            None => self.0.rename(&table, &old, &new, keep)?,
        }
        if let Some(replaced) = &replaced {
            replaced.forget();
        }
        if let Some(row) = rows.remove(&(table.clone(), old)) {
            rows.insert((table, new), row);
        }
        Ok(())
    }
}
