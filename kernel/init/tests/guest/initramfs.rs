//! The initramfs that the tests boot: the first process and nothing else, in `newc` cpio form.

use std::{path::PathBuf, process::Command, sync::OnceLock};

/// The initramfs, made once for all tests of a run.
pub(crate) fn bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let program = std::fs::read(build_program()).expect("the built program can be read");
        let mut archive = Vec::new();
        add(&mut archive, "init", 0o100_755, &program);
        add(&mut archive, "TRAILER!!!", 0, &[]);
        archive
    })
}

/// Builds span-init as it is shipped. The binary cargo builds for an integration test is dynamic,
/// and there is no dynamic linker in an initramfs.
pub(crate) fn build_program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--release", "--package", "span-init"])
            .args(["--target", "x86_64-unknown-linux-gnu", "--target-dir"])
            .arg(target_directory())
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .current_dir(workspace)
            .status()
            .expect("cargo runs");
        assert!(status.success(), "building the static span-init failed");
        target_directory().join("x86_64-unknown-linux-gnu/release/span-init")
    };
    PROGRAM.get_or_init(build).clone()
}

fn target_directory() -> PathBuf {
    // target/<profile>/span-init, as cargo names it for this test.
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_span-init"));
    binary
        .ancestors()
        .nth(2)
        .expect("a target directory")
        .to_path_buf()
}

fn add(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let inode = archive.len() as u32 + 1;
    let fields = [
        inode,
        mode,
        0,
        0,
        1,
        0,
        data.len() as u32,
        0,
        0,
        0,
        0,
        name.len() as u32 + 1,
        0,
    ];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(data);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}
