//! What is tested: the directory in `SPAN_BIN` (as `cargo dev test` sets it), else `target/span`.

use std::path::PathBuf;

/// A file of the product; if there is none, one line that says how to get it.
pub fn find(name: &str) -> Result<PathBuf, String> {
    let directory = std::env::var_os("SPAN_BIN").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/span")),
        PathBuf::from,
    );
    let path = directory.join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!(
            "{} is not there: `cargo dev build` makes it, or SPAN_BIN names a directory that has it",
            path.display()
        ))
    }
}

/// A file of the product.
///
/// # Panics
///
/// If there is none: nothing could be tested.
pub fn program(name: &str) -> PathBuf {
    find(name).unwrap_or_else(|missing| panic!("{missing}"))
}

/// What to say where that is missing.
pub const UPSTREAM_MISSING: &str = "upstream's kernel: `cargo dev kernel --upstream` builds it, \
                                    SPAN_UPSTREAM names its directory";

/// What to say where the products with planted bugs are missing.
pub const PLANTED_MISSING: &str = "guests with a bug planted in the coherence protocol: `cargo dev \
                                   test` builds them, SPAN_PLANTED names their directory";

/// The same kernel as upstream has it, from the directory in `SPAN_UPSTREAM`.
pub fn upstream_kernel() -> Option<PathBuf> {
    let directory = std::env::var_os("SPAN_UPSTREAM").map(PathBuf::from);
    let fallback = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../target/span-upstream"
    ));
    Some(directory.unwrap_or(fallback).join("linux")).filter(|path| path.is_file())
}

/// The product with a bug planted in the coherence protocol, from the directory in `SPAN_PLANTED`.
pub fn planted(bug: &str) -> Option<PathBuf> {
    let directory = std::env::var_os("SPAN_PLANTED").map(PathBuf::from);
    let fallback = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../target/span-planted"
    ));
    Some(directory.unwrap_or(fallback).join(bug)).filter(|path| path.is_dir())
}

/// Says what could not be tested and why, past the test runner, which would keep it to itself.
pub fn not_tested(what: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "not tested: {what}");
}
