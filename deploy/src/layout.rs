//! Where things are: the repository, the build directory below `target/`, and the lock on it.

use std::env;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{At, Result, invalid};
use crate::progress::Progress;

#[derive(Debug)]
pub(crate) struct Layout {
    /// The checkout: holds `kernel/base`.
    pub(crate) root: PathBuf,
    /// Cargo's target directory; nothing is written outside of it, the cache excepted.
    pub(crate) target: PathBuf,
    /// Where cargo puts release binaries and libraries.
    pub(crate) release: PathBuf,
}

impl Layout {
    pub(crate) fn find() -> Result<Self> {
        let start = match env::var_os("CARGO_MANIFEST_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => env::current_dir().at("find the", Path::new("current directory"))?,
        };
        let root = start
            .ancestors()
            .find(|dir| dir.join("kernel/base").is_file())
            .ok_or_else(|| invalid(format!("no Span checkout around {}", start.display())))?
            .to_path_buf();
        // The tool lies where cargo puts release binaries, wherever the user's configuration says.
        let program = env::current_exe().at("find", Path::new("this program"))?;
        let release = program.parent().map(Path::to_path_buf).unwrap_or_default();
        let target = release
            .ancestors()
            .find(|dir| dir.join("CACHEDIR.TAG").is_file())
            .ok_or_else(|| {
                invalid(format!(
                    "{} does not lie in a cargo target directory: run `cargo dev`",
                    program.display()
                ))
            })?
            .to_path_buf();
        // make splits its variables at white space and kbuild refuses a ':' itself.
        let odd = |c: char| c.is_whitespace() || "\":'$#%\\".contains(c);
        if target.to_str().is_none_or(|path| path.contains(odd)) {
            return Err(invalid(format!(
                "{}: the kernel cannot be built below a directory with such a name",
                target.display()
            )));
        }
        Ok(Layout {
            root,
            target,
            release,
        })
    }

    /// Sources, trees and objects of kernels.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.target.join("kernel")
    }

    /// What a running guest needs, gathered: a link to the newest complete set.
    pub(crate) fn product(&self) -> PathBuf {
        self.target.join("span")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.kernel().join("log").join(format!("{name}.log"))
    }

    /// Downloads: `SPAN_CACHE`, else `XDG_CACHE_HOME/span`, else the build directory.
    pub(crate) fn cache(&self) -> PathBuf {
        let named = |name| env::var_os(name).filter(|value| !value.is_empty());
        match (named("SPAN_CACHE"), named("XDG_CACHE_HOME")) {
            (Some(dir), _) => PathBuf::from(dir),
            (None, Some(dir)) => PathBuf::from(dir).join("span"),
            (None, None) => self.kernel().join("cache"),
        }
    }

    /// One build at a time: waits for another one and says so.
    pub(crate) fn lock(&self, progress: &Progress) -> Result<File> {
        let logs = self.kernel().join("log");
        fs::create_dir_all(&logs).at("create", &logs)?;
        let path = self.kernel().join("lock");
        let held_by = self.kernel().join("lock.pid");
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .at("open", &path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = File::open(&held_by).map(|mut file| file.read_to_string(&mut pid));
                progress.stage(format!(
                    "waiting for another cargo dev (pid {}) that is building here",
                    pid.trim()
                ));
                file.lock().at("lock", &path)?;
            }
            Err(TryLockError::Error(source)) => return Err(source).at("lock", &path),
        }
        let _ = File::create(&held_by).map(|mut file| writeln!(file, "{}", std::process::id()));
        Ok(file)
    }
}

/// Removes a directory tree or file if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let done = match fs::symlink_metadata(path) {
        Err(error) => Err(error),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    match done {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", path),
    }
}

/// Every regular file below `dir`, as sorted paths relative to it; none if `dir` is not there.
pub(crate) fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let here = dir.join(&relative);
        if !here.exists() && relative.as_os_str().is_empty() {
            return Ok(found);
        }
        for entry in fs::read_dir(&here).at("list", &here)? {
            let entry = entry.at("list", &here)?;
            let kind = entry.file_type().at("look at", &entry.path())?;
            let path = relative.join(entry.file_name());
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
