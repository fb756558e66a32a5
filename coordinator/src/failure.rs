//! How the program fails: one line and an exit code.

use std::fmt::Display;

/// Exit codes besides those of commands in the guest.
pub(crate) const EXIT_USAGE: u8 = 2;
pub(crate) const EXIT_NODE_LOST: u8 = 70;
pub(crate) const EXIT_FAILED: u8 = 125;
pub(crate) const EXIT_PANIC: u8 = 134;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) line: String,
}

impl Failure {
    /// An option or argument that cannot be used.
    pub(crate) fn usage(line: impl Into<String>) -> Self {
        Self {
            code: EXIT_USAGE,
            line: line.into(),
        }
    }

    /// Anything that went wrong here.
    pub(crate) fn failed(line: impl Into<String>) -> Self {
        Self {
            code: EXIT_FAILED,
            line: line.into(),
        }
    }

    /// A failed operation on `what`.
    pub(crate) fn cannot(what: impl Display, error: impl Display) -> Self {
        Self::failed(format!("{what}: {error}"))
    }
}

/// Makes text from elsewhere fit for one line of a terminal.
pub(crate) fn one_line(text: &str) -> String {
    const CHARACTERS_MAX: usize = 400;
    let line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    match line.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
