//! What can go wrong in a build, and the exit code that goes with it.

use std::path::{Path, PathBuf};

pub(crate) type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot start {program}")]
    Spawn {
        program: String,
        source: std::io::Error,
    },
    /// A program ran and failed; `log` has all it said.
    #[error("{stage} failed ({status}); full log: {}{tail}", log.display())]
    Failed {
        stage: String,
        status: String,
        log: PathBuf,
        tail: String,
    },
    /// Something that should have worked did not do what it said.
    #[error("{0}")]
    Broken(String),
    /// The caller asked for what cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The mirror has no such package.
    #[error("{0}")]
    NotListed(String),
    /// The machine lacks something that only its administrator can add.
    #[error("{0}")]
    Machine(String),
}

impl Error {
    /// 2 for what the caller can mend with other arguments or packages, 1 for a failed build.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Error::Invalid(_) | Error::Machine(_) | Error::NotListed(_) => 2,
            _ => 1,
        }
    }
}

pub(crate) fn invalid(text: impl Into<String>) -> Error {
    Error::Invalid(text.into())
}

pub(crate) fn broken(text: impl Into<String>) -> Error {
    Error::Broken(text.into())
}

/// Names the path in every input/output error: `fs::read(p).at("read", p)?`.
pub(crate) trait At<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T>;
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io {
            what,
            path: path.to_path_buf(),
            source,
        })
    }
}
