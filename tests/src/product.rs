//! What is tested: the directory in `SPAN_BIN` (as `cargo dev test` sets it), else `target/span`.

use std::path::PathBuf;

/// A file of the product.
///
/// # Panics
///
/// If there is none: nothing could be tested.
pub fn program(name: &str) -> PathBuf {
    let directory = std::env::var_os("SPAN_BIN").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/span")),
        PathBuf::from,
    );
    let path = directory.join(name);
    assert!(
        path.is_file(),
        "{} is not there: `cargo dev test` builds it, or SPAN_BIN names a directory that has it",
        path.display()
    );
    path
}

/// The same kernel as upstream has it, from the directory in `SPAN_UPSTREAM`.
pub fn upstream_kernel() -> Option<PathBuf> {
    let directory = std::env::var_os("SPAN_UPSTREAM").map(PathBuf::from);
    let fallback = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../target/span-upstream"
    ));
    Some(directory.unwrap_or(fallback).join("linux")).filter(|path| path.is_file())
}

/// Says what could not be tested and why, past the test runner, which would keep it to itself.
pub fn not_tested(what: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "not tested: {what}");
}
