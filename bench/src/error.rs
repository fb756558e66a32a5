//! What can go wrong, and the exit code that goes with it.

pub(crate) type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The machine lacks something to measure.
    #[error("{0}")]
    Missing(String),
    /// Something was run and did not do what it should.
    #[error("{0}")]
    Failed(String),
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Missing(_) => 2,
            Self::Failed(_) => 1,
            Self::Interrupted => 130,
        }
    }
}
