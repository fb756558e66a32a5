//! Derives the build id from the sources of the messages.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

fn main() {
    let source = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("src");
    println!("cargo::rerun-if-changed={}", source.display());
    let mut files = files_below(&source);
    files.sort();
    // FNV-1a: two builds must differ by accident only, nobody attacks this.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for file in files {
        for byte in fs::read(&file).expect("readable source") {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    let version = env::var("CARGO_PKG_VERSION").expect("set by cargo");
    println!("cargo::rustc-env=SPAN_API_BUILD_ID={version}-{hash:016x}");
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("the crate has sources") {
        let path = entry.expect("readable directory").path();
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => files.push(path),
        }
    }
    files
}
