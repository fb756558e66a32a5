//! What a command in the guest gets of this process's environment.

use std::os::unix::ffi::OsStringExt;

/// Variables that describe the user, their terminal and their language.
const PASSED: [&str; 12] = [
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "LANG",
    "LANGUAGE",
    "TZ",
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "EDITOR",
];

pub(crate) fn for_command() -> Vec<(Vec<u8>, Vec<u8>)> {
    std::env::vars_os()
        .filter(|(name, _)| {
            PASSED.iter().any(|passed| name == *passed)
                || name.as_encoded_bytes().starts_with(b"LC_")
        })
        .map(|(name, value)| (name.into_vec(), value.into_vec()))
        .collect()
}
