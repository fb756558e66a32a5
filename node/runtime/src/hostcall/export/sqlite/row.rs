//! A row that the guest has open: a copy in memory, which all its descriptors share.

use super::database::Database;
use super::text::{self, Written};
use super::{Sqlite, give_attributes, inode_of, set_times};
use crate::hostcall::env::Env;
use crate::hostcall::exec::{Done, Op, Work};
use crate::hostcall::export::directory::{checked, owned};
use crate::hostcall::export::listing::lock;
use crate::hostcall::export::opened::{Held, Opened};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

/// Longest text of a row that is taken from the guest.
const CONTENT_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug)]
pub(super) struct Row {
    database: Arc<Database>,
    memory: File,
    table: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    name: Vec<u8>,
    /// There is no such row yet.
    is_new: bool,
    /// What is in memory is not in the database.
    unsaved: bool,
    /// The row was deleted: what is in memory is all there is.
    gone: bool,
}

impl Row {
    pub(super) fn open(
        database: &Arc<Database>,
        table: &str,
        name: &[u8],
        flags: i32,
    ) -> Result<Opened, i32> {
        // Let go of when the table of open rows is free again.
        let row;
        let mut rows = lock(database.open_rows());
        row = match Database::among(&rows, table, name) {
            Some(_) if flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0 => {
                return Err(libc::EEXIST);
            }
            Some(row) => row,
            None => {
                let (content, is_new) = match database.read(table, name) {
                    Ok(_) if flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0 => {
                        return Err(libc::EEXIST);
                    }
                    Ok(content) => (content, false),
                    Err(libc::ENOENT) if flags & libc::O_CREAT != 0 => {
                        database.may_be(table, name)?;
                        (Vec::new(), true)
                    }
                    Err(error) => return Err(error),
                };
                let row = Arc::new(Self {
                    database: database.clone(),
                    memory: memory(&content)?,
                    table: table.to_owned(),
                    state: Mutex::new(State {
                        name: name.to_vec(),
                        is_new,
                        unsaved: false,
                        gone: false,
                    }),
                });
                rows.insert((table.to_owned(), name.to_vec()), Arc::downgrade(&row));
                row
            }
        };
        drop(rows);
        if flags & libc::O_TRUNC != 0 {
            row.truncate(0)?;
        }
        let fd = row.memory.try_clone().map_err(error_of)?;
        Ok(Opened {
            fd: fd.into(),
            held: Some(row),
        })
    }

    pub(super) fn len(&self) -> Result<u64, i32> {
        Ok(self.memory.metadata().map_err(error_of)?.len())
    }

    fn content(&self) -> Result<Vec<u8>, i32> {
        let mut content = vec![0; self.len()? as usize];
        self.memory
            .read_exact_at(&mut content, 0)
            .map_err(error_of)?;
        Ok(content)
    }

    fn write(&self, from: &[u8], at: u64) -> Result<usize, i32> {
        if at.saturating_add(from.len() as u64) > CONTENT_BYTES_MAX {
            return Err(libc::EFBIG);
        }
        let mut state = lock(&self.state);
        let n = self.memory.write_at(from, at).map_err(error_of)?;
        state.unsaved = true;
        self.settle(&mut state)?;
        Ok(n)
    }

    fn truncate(&self, len: u64) -> Result<(), i32> {
        if len > CONTENT_BYTES_MAX {
            return Err(libc::EFBIG);
        }
        let mut state = lock(&self.state);
        if self.len()? == len {
            return Ok(());
        }
        self.memory.set_len(len).map_err(error_of)?;
        state.unsaved = true;
        self.settle(&mut state)
    }

    /// Puts what is in memory into the database if it is all there.
    fn settle(&self, state: &mut State) -> Result<(), i32> {
        if state.gone || !state.unsaved {
            return Ok(());
        }
        match text::read(&self.content()?) {
            Written::Nothing | Written::Part => Ok(()),
            Written::Wrong(why) => {
                self.say(state, &why);
                Err(libc::EINVAL)
            }
            Written::Row(row) => {
                let (table, name) = (&self.table, &state.name);
                self.database.save(table, name, state.is_new, &row)?;
                state.is_new = false;
                state.unsaved = false;
                Ok(())
            }
        }
    }

    fn say(&self, state: &State, what: &str) {
        let name = String::from_utf8_lossy(&state.name);
        self.database.say(&format!("{}/{name}: {what}", self.table));
    }

    /// What has to be in the database by now.
    fn sync(&self) -> Result<(), i32> {
        let mut state = lock(&self.state);
        self.settle(&mut state)?;
        if !state.unsaved || state.gone || text::read(&self.content()?) == Written::Nothing {
            return Ok(());
        }
        self.say(&state, "what was written is no whole row");
        Err(libc::EINVAL)
    }

    pub(super) fn unlink(&self) -> Result<(), i32> {
        let mut state = lock(&self.state);
        if state.gone {
            return Err(libc::ENOENT);
        }
        if !state.is_new {
            self.database.delete(&self.table, &state.name)?;
        }
        state.gone = true;
        drop(state);
        Ok(())
    }

    /// Another took its place.
    pub(super) fn forget(&self) {
        lock(&self.state).gone = true;
    }

    pub(super) fn rename(&self, to: &[u8], keep: bool) -> Result<(), i32> {
        let mut state = lock(&self.state);
        match state.is_new {
            // It becomes what it is called when it is all there.
            true => self.database.may_be(&self.table, to)?,
            false => self.database.rename(&self.table, &state.name, to, keep)?,
        }
        state.name = to.to_vec();
        Ok(())
    }
}

impl Held for Row {
    fn exec(&self, _: &Env, work: &Work) -> Option<Done> {
        let zero = |()| Done::of(0);
        let done = match work.op {
            Op::Write | Op::Pwrite => {
                // SAFETY: the maker of the work guarantees that many bytes.
                let from = unsafe { std::slice::from_raw_parts(work.input, work.input_len) };
                let at = match work.op {
                    Op::Write => Err(libc::EOPNOTSUPP),
                    _ => u64::try_from(work.args[2]).map_err(|_| libc::EINVAL),
                };
                let n = at.and_then(|at| self.write(from, at));
                n.map(|n| Done {
                    result: n as i64,
                    errno: 0,
                    output_len: 0,
                })
            }
            Op::Truncate => u64::try_from(work.args[1])
                .map_err(|_| libc::EINVAL)
                .and_then(|len| self.truncate(len))
                .map(zero),
            Op::Sync => self.sync().map(zero),
            Op::PathStatx => {
                let inode = inode_of(&self.table, &lock(&self.state).name);
                let attributes = self
                    .len()
                    .and_then(|len| Sqlite(self.database.clone()).attributes(inode, Some(len)));
                Ok(give_attributes(work, attributes))
            }
            Op::Allocate => Err(libc::EOPNOTSUPP),
            Op::Times => {
                let times = work.struct_at::<[libc::timespec; 2]>(0)?;
                // SAFETY: it was checked to lie in the work's input.
                set_times(unsafe { &*times }).map(|()| zero(()))
            }
            Op::Mode | Op::Owner => Err(libc::EPERM),
            _ => return None,
        };
        Some(done.unwrap_or_else(Done::error))
    }
}

/// The last of its descriptors is closed.
impl Drop for Row {
    fn drop(&mut self) {
        let Ok(content) = self.content() else { return };
        let mut state = lock(&self.state);
        if state.gone {
            return;
        }
        if state.is_new && text::read(&content) == Written::Nothing {
            // What `touch` makes: all columns are as they are by default. Why not, if not, is in the log.
            let _ = self
                .database
                .save(&self.table, &state.name, true, &Default::default());
        } else if state.unsaved {
            let settled = self.settle(&mut state);
            if settled.is_ok() && state.unsaved {
                self.say(&state, "what was written is no row, and is dropped");
            }
        }
        let key = (self.table.clone(), state.name.clone());
        drop(state);
        let mut rows = lock(self.database.open_rows());
        if rows.get(&key).is_some_and(|row| row.strong_count() == 0) {
            rows.remove(&key);
        }
    }
}

fn error_of(error: std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn memory(content: &[u8]) -> Result<File, i32> {
    // SAFETY: passes a string.
    let fd = unsafe { libc::memfd_create(c"span-row".as_ptr(), libc::MFD_CLOEXEC) };
    let file = File::from(owned(fd.into())? as OwnedFd);
    file.write_all_at(content, 0).map_err(error_of)?;
    let _ = checked(file.as_raw_fd())?;
    Ok(file)
}
