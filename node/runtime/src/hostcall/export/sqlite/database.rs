//! Tables and rows by SQL.

use super::name::{Affinity, of_key, to_key};
use super::row::Row;
use super::text;
use crate::hostcall::env;
use crate::hostcall::export::directory::checked;
use crate::hostcall::export::listing::lock;
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, ffi, params_from_iter};
use serde_json::{Map, Value as Json};
use std::collections::HashMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// Longest wait for others that write to the database.
const BUSY: Duration = Duration::from_secs(2);

/// Lines about one database in the life of a guest; more would be the same again.
const LINES_MAX: u32 = 256;

pub(super) type OpenRows = HashMap<(String, Vec<u8>), Weak<Row>>;

#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    c_path: CString,
    connection: Mutex<Connection>,
    open: Mutex<OpenRows>,
    lines: AtomicU32,
}

#[derive(Debug)]
struct Column {
    name: String,
    affinity: Affinity,
    /// Its place in the primary key, from 1.
    key: u32,
    computed: bool,
}

#[derive(Debug)]
pub(super) struct Table {
    /// As SQL wants it.
    name: String,
    columns: Vec<Column>,
    /// What a row is found by: expressions of SQL.
    key: Vec<(String, Affinity)>,
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Table {
    /// The condition that finds a row, with a parameter for each part of the key.
    fn condition(&self) -> String {
        let parts = self.key.iter().map(|(part, _)| format!("{part} IS ?"));
        parts.collect::<Vec<_>>().join(" AND ")
    }

    fn key_list(&self) -> String {
        let parts = self.key.iter().map(|(part, _)| part.as_str());
        parts.collect::<Vec<_>>().join(", ")
    }

    fn key_of(&self, row: &[u8]) -> Option<Vec<Value>> {
        to_key(row, self.key.len())
    }

    fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// Why something was refused.
#[derive(Debug)]
enum Refusal {
    Sql(rusqlite::Error),
    /// With what is wrong with it.
    Content(String),
    Errno(i32),
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

fn errno_of(error: &rusqlite::Error, deletes: bool) -> i32 {
    let rusqlite::Error::SqliteFailure(error, _) = error else {
        return libc::EIO;
    };
    match error.extended_code {
        ffi::SQLITE_CONSTRAINT_UNIQUE
        | ffi::SQLITE_CONSTRAINT_PRIMARYKEY
        | ffi::SQLITE_CONSTRAINT_ROWID => return libc::EEXIST,
        // What others refer to is in use.
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY if deletes => return libc::EBUSY,
        ffi::SQLITE_CONSTRAINT_TRIGGER => return libc::EPERM,
        _ => {}
    }
    match error.code {
        ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch => libc::EINVAL,
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => libc::EBUSY,
        ErrorCode::ReadOnly => libc::EROFS,
        ErrorCode::DiskFull => libc::ENOSPC,
        ErrorCode::TooBig => libc::EFBIG,
        ErrorCode::OutOfMemory => libc::ENOMEM,
        ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied => libc::EACCES,
        _ => libc::EIO,
    }
}

impl Database {
    pub(super) fn open(path: &Path, read_only: bool) -> Result<Self, String> {
        let access = match read_only {
            true => OpenFlags::SQLITE_OPEN_READ_ONLY,
            false => OpenFlags::SQLITE_OPEN_READ_WRITE,
        };
        let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connect = || {
            let connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(BUSY)?;
            // What the database itself brings along must not do more than its constraints need.
            connection.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA foreign_keys = ON;")?;
            // Says whether it is a database at all.
            connection.query_row("SELECT count(*) FROM sqlite_schema", (), |_| Ok(()))?;
            Ok::<_, rusqlite::Error>(connection)
        };
        let connection = connect().map_err(|error| error.to_string())?;
        let c_path =
            CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        Ok(Self {
            path: path.to_path_buf(),
            c_path,
            connection: Mutex::new(connection),
            open: Mutex::default(),
            lines: AtomicU32::new(0),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a file is the database's, or of what SQLite keeps beside it; says so if it is.
    pub(super) fn holds(&self, file: &libc::statx) -> bool {
        const BESIDE: [&str; 3] = ["", "-wal", "-shm"];
        let device = libc::makedev(file.stx_dev_major, file.stx_dev_minor);
        let is = |end: &&str| {
            let mut path = self.path.clone().into_os_string();
            path.push(end);
            let here = std::fs::metadata(path);
            here.is_ok_and(|here| (here.dev(), here.ino()) == (device, file.stx_ino))
        };
        let Some(end) = BESIDE.iter().find(|end| is(end)) else {
            return false;
        };
        self.say(&format!(
            "the file itself{end} is not opened as long as the database is mounted"
        ));
        true
    }

    /// Attributes of the database's file.
    pub(super) fn file(&self) -> Result<libc::statx, i32> {
        // SAFETY: a structure of numbers.
        let mut statx: libc::statx = unsafe { std::mem::zeroed() };
        let (path, mask) = (self.c_path.as_ptr(), libc::STATX_BASIC_STATS);
        // SAFETY: passes a string and a local.
        checked(unsafe { libc::statx(libc::AT_FDCWD, path, 0, mask, &raw mut statx) })?;
        Ok(statx)
    }

    /// One line in the node's log.
    pub(super) fn say(&self, what: &str) {
        if self.lines.fetch_add(1, Relaxed) < LINES_MAX
            && let Some(env) = env::any()
        {
            (env.log)(&format!("sqlite:{}: {what}", self.path.display()));
        }
    }

    pub(super) fn open_rows(&self) -> &Mutex<OpenRows> {
        &self.open
    }

    pub(super) fn among(rows: &OpenRows, table: &str, row: &[u8]) -> Option<Arc<Row>> {
        rows.get(&(table.to_owned(), row.to_vec()))?.upgrade()
    }

    /// A row that the guest has open.
    pub(super) fn opened(&self, table: &str, row: &[u8]) -> Option<Arc<Row>> {
        Self::among(&lock(&self.open), table, row)
    }

    fn refuse(&self, table: &str, row: &[u8], refusal: Refusal, deletes: bool) -> i32 {
        let (why, errno) = match refusal {
            Refusal::Errno(errno) => return errno,
            Refusal::Content(why) => (why, libc::EINVAL),
            Refusal::Sql(error) => (error.to_string(), errno_of(&error, deletes)),
        };
        self.say(&format!("{table}/{}: {why}", String::from_utf8_lossy(row)));
        errno
    }

    fn reading<T>(&self, read: impl FnOnce(&Connection) -> Result<T, Refusal>) -> Result<T, i32> {
        let connection = lock(&self.connection);
        read(&connection).map_err(|refusal| match refusal {
            Refusal::Errno(errno) => errno,
            Refusal::Content(_) => libc::EINVAL,
            Refusal::Sql(error) => {
                self.say(&error.to_string());
                errno_of(&error, false)
            }
        })
    }

    pub(super) fn tables(&self) -> Result<Vec<String>, i32> {
        self.reading(|connection| {
            let sql = "SELECT name FROM pragma_table_list \
                WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
            let mut tables = connection.prepare_cached(sql)?;
            let names = tables.query_map((), |row| row.get(0))?;
            Ok(names.collect::<Result<_, _>>()?)
        })
    }

    pub(super) fn table(&self, name: &str) -> Result<Table, i32> {
        self.reading(|connection| table(connection, name))
    }

    /// The names of all rows of a table.
    pub(super) fn rows(&self, name: &str) -> Result<Vec<Vec<u8>>, i32> {
        self.reading(|connection| {
            let table = table(connection, name)?;
            let sql = format!("SELECT {} FROM {}", table.key_list(), table.name);
            let mut all = connection.prepare_cached(&sql)?;
            let mut rows = all.query(())?;
            let mut names = Vec::new();
            while let Some(row) = rows.next()? {
                names.push(key_name(&table, row)?);
            }
            Ok(names)
        })
    }

    /// A row as text.
    pub(super) fn read(&self, table_name: &str, row: &[u8]) -> Result<Vec<u8>, i32> {
        self.reading(|connection| {
            let table = table(connection, table_name)?;
            let columns = table.columns.iter().map(|column| quoted(&column.name));
            let columns: Vec<String> = columns.collect();
            let mut sql = format!("SELECT {}", table.key_list());
            for column in &columns {
                sql.push_str(&format!(", {column}"));
            }
            sql.push_str(&format!(" FROM {} WHERE {}", table.name, table.condition()));
            let key = table.key_of(row).ok_or(Refusal::Errno(libc::ENOENT))?;
            let mut select = connection.prepare_cached(&sql)?;
            let mut found = select.query(params_from_iter(key))?;
            while let Some(one) = found.next()? {
                if key_name(&table, one)? != row {
                    continue;
                }
                let at = table.key.len();
                let values = table.columns.iter().enumerate();
                let values = values
                    .map(|(index, column)| Ok((column.name.as_str(), one.get_ref(at + index)?)));
                let values: Result<Vec<_>, rusqlite::Error> = values.collect();
                return Ok(text::of_row(values?.into_iter()));
            }
            Err(Refusal::Errno(libc::ENOENT))
        })
    }

    /// Whether a row that is made now could be called so; nothing else is looked at.
    pub(super) fn may_be(&self, table_name: &str, row: &[u8]) -> Result<(), i32> {
        let table = self.table(table_name)?;
        let key = table.key_of(row).ok_or(libc::EINVAL)?;
        let numbers = table.key.iter().zip(&key);
        for ((_, affinity), value) in numbers {
            if let (Affinity::Numeric, Value::Text(text)) = (affinity, value)
                && text.parse::<f64>().is_err()
            {
                return Err(libc::EINVAL);
            }
        }
        Ok(())
    }

    fn writing(
        &self,
        table_name: &str,
        row: &[u8],
        deletes: bool,
        write: impl FnOnce(&Connection, &Table) -> Result<(), Refusal>,
    ) -> Result<(), i32> {
        let mut connection = lock(&self.connection);
        let all = || {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let table = table(&transaction, table_name)?;
            write(&transaction, &table)?;
            Ok(transaction.commit()?)
        };
        let result: Result<(), Refusal> = all();
        drop(connection);
        result.map_err(|refusal| self.refuse(table_name, row, refusal, deletes))
    }

    /// Makes a row, or changes one that has to be there: columns that are not named keep what they have.
    pub(super) fn save(
        &self,
        table_name: &str,
        row: &[u8],
        is_new: bool,
        content: &Map<String, Json>,
    ) -> Result<(), i32> {
        self.writing(table_name, row, false, |connection, table| {
            let key = table.key_of(row).ok_or(Refusal::Errno(libc::EINVAL))?;
            let there = finds(connection, table, row)?;
            if !there && !is_new {
                return Err(Refusal::Errno(libc::ESTALE));
            }
            let (mut names, mut values) = (Vec::new(), Vec::new());
            for (name, json) in content {
                let column = table.column(name);
                let column = column.ok_or_else(|| Refusal::Content(format!("no column {name}")))?;
                // It follows from the others.
                if column.computed {
                    continue;
                }
                let value = text::to_value(json);
                let value =
                    value.ok_or_else(|| Refusal::Content(format!("{name}: is no value")))?;
                if let Some(at) = table.key.iter().position(|(part, _)| *part == quoted(name)) {
                    let part = of_key([((&value).into(), table.key[at].1)].into_iter());
                    if row.split(|byte| *byte == b',').nth(at) != Some(&part) {
                        let why = format!("{name}: the file's name says something else");
                        return Err(Refusal::Content(why));
                    }
                    continue;
                }
                names.push(quoted(name));
                values.push(value);
            }
            if there {
                if !names.is_empty() {
                    let set = format!("{} = ?", names.join(" = ?, "));
                    let condition = table.condition();
                    let sql = format!("UPDATE {} SET {set} WHERE {condition}", table.name);
                    values.extend(key);
                    connection.execute(&sql, params_from_iter(values))?;
                }
            } else {
                names.extend(table.key.iter().map(|(part, _)| part.clone()));
                values.extend(key);
                let marks = vec!["?"; names.len()].join(", ");
                let sql = format!(
                    "INSERT INTO {} ({}) VALUES ({marks})",
                    table.name,
                    names.join(", ")
                );
                connection.execute(&sql, params_from_iter(values))?;
            }
            is_called(connection, table, row)
        })
    }

    pub(super) fn delete(&self, table_name: &str, row: &[u8]) -> Result<(), i32> {
        self.writing(table_name, row, true, |connection, table| {
            if !finds(connection, table, row)? {
                return Err(Refusal::Errno(libc::ENOENT));
            }
            delete(connection, table, row)
        })
    }

    pub(super) fn rename(
        &self,
        table_name: &str,
        old: &[u8],
        new: &[u8],
        keep: bool,
    ) -> Result<(), i32> {
        self.writing(table_name, new, false, |connection, table| {
            if !finds(connection, table, old)? {
                return Err(Refusal::Errno(libc::ENOENT));
            }
            let key = table.key_of(new).ok_or(Refusal::Errno(libc::EINVAL))?;
            if finds(connection, table, new)? {
                if keep {
                    return Err(Refusal::Errno(libc::EEXIST));
                }
                if old == new {
                    return Ok(());
                }
                delete(connection, table, new)?;
            }
            let parts = table.key.iter().map(|(part, _)| format!("{part} = ?"));
            let set = parts.collect::<Vec<_>>().join(", ");
            let sql = format!(
                "UPDATE {} SET {set} WHERE {}",
                table.name,
                table.condition()
            );
            let from = table.key_of(old).unwrap_or_default();
            connection.execute(&sql, params_from_iter(key.into_iter().chain(from)))?;
            is_called(connection, table, new)
        })
    }
}

fn table(connection: &Connection, name: &str) -> Result<Table, Refusal> {
    let sql = "SELECT x.name, x.type, x.pk, x.hidden FROM pragma_table_list(?1) AS l, pragma_table_xinfo(?1) AS x \
        WHERE l.schema = 'main' AND l.type = 'table' AND l.name = ?1 AND l.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
        ORDER BY x.cid";
    let mut query = connection.prepare_cached(sql)?;
    let columns = query.query_map([name], |row| {
        Ok(Column {
            name: row.get(0)?,
            affinity: Affinity::of(&row.get::<_, String>(1)?),
            key: row.get(2)?,
            computed: row.get::<_, u32>(3)? != 0,
        })
    })?;
    let columns: Vec<Column> = columns.collect::<Result<_, _>>()?;
    if columns.is_empty() {
        return Err(Refusal::Errno(libc::ENOENT));
    }
    let mut parts: Vec<&Column> = columns.iter().filter(|column| column.key > 0).collect();
    parts.sort_by_key(|column| column.key);
    let mut key: Vec<(String, Affinity)> = parts
        .iter()
        .map(|column| (quoted(&column.name), column.affinity))
        .collect();
    if key.is_empty() {
        let taken = |name: &&&str| {
            columns
                .iter()
                .all(|column| !column.name.eq_ignore_ascii_case(name))
        };
        let rowid = ["rowid", "_rowid_", "oid"];
        let rowid = rowid.iter().find(taken);
        // Nothing to tell its rows apart by.
        let rowid = rowid.ok_or(Refusal::Errno(libc::EOPNOTSUPP))?;
        key.push(((*rowid).to_owned(), Affinity::Numeric));
    }
    Ok(Table {
        name: quoted(name),
        columns,
        key,
    })
}

fn key_name(table: &Table, row: &rusqlite::Row<'_>) -> Result<Vec<u8>, rusqlite::Error> {
    let parts = table.key.iter().enumerate();
    let parts = parts.map(|(index, (_, affinity))| Ok((row.get_ref(index)?, *affinity)));
    let parts: Vec<_> = parts.collect::<Result<_, rusqlite::Error>>()?;
    Ok(of_key(parts.into_iter()))
}

fn finds(connection: &Connection, table: &Table, row: &[u8]) -> Result<bool, Refusal> {
    let Some(key) = table.key_of(row) else {
        return Ok(false);
    };
    let (list, condition) = (table.key_list(), table.condition());
    let sql = format!("SELECT {list} FROM {} WHERE {condition}", table.name);
    let mut query = connection.prepare_cached(&sql)?;
    let mut found = query.query(params_from_iter(key))?;
    while let Some(one) = found.next()? {
        if key_name(table, one)? == row {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What SQLite made of a key has to be what the file is called.
fn is_called(connection: &Connection, table: &Table, row: &[u8]) -> Result<(), Refusal> {
    match finds(connection, table, row)? {
        true => Ok(()),
        false => Err(Refusal::Content("is no key of this table".into())),
    }
}

fn delete(connection: &Connection, table: &Table, row: &[u8]) -> Result<(), Refusal> {
    let sql = format!("DELETE FROM {} WHERE {}", table.name, table.condition());
    let key = table.key_of(row).unwrap_or_default();
    connection.execute(&sql, params_from_iter(key))?;
    Ok(())
}
