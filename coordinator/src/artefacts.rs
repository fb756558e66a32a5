//! The files a guest is made of: found beside this program, or where `--kernel` says.

use crate::failure::Failure;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use span_api::link::{Artefact, ArtefactKind, ArtefactSource};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What our kernel contains and others do not: the name of the library it is linked with.
const KERNEL_MARKER: &[u8] = b"libnode.so\0";

const READ_BYTES: usize = 1 << 20;

/// Paths of all artefacts, checked.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) linux: PathBuf,
    pub(crate) linux_id: FileId,
    pub(crate) libnode: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// The agent's program.
    pub(crate) node: PathBuf,
}

/// Tells one file from another that has taken its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl FileId {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// Finds and checks all files; `kernel` is the value of `--kernel`.
pub(crate) fn find(kernel: Option<&Path>) -> Result<Files, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::cannot("this program cannot be found", error))?;
    let beside = own.parent().unwrap_or(Path::new("/"));
    let (option, linux) = match kernel {
        Some(path) => (
            "--kernel",
            std::path::absolute(path).unwrap_or_else(|_| path.into()),
        ),
        None => ("the kernel", beside.join(ArtefactKind::Linux.file_name())),
    };
    let linux_id = check_kernel(&linux).map_err(|why| {
        let hint = if kernel.is_none() {
            " (see --kernel)"
        } else {
            ""
        };
        Failure::usage(format!("{option} {}: {why}{hint}", linux.display()))
    })?;
    // The kernel finds its library beside itself; where there is none, the agent puts both together.
    let with_kernel = linux.with_file_name(ArtefactKind::Libnode.file_name());
    let libnode = if with_kernel.exists() {
        with_kernel
    } else {
        beside.join(ArtefactKind::Libnode.file_name())
    };
    let files = Files {
        linux,
        linux_id,
        libnode,
        initramfs: beside.join(ArtefactKind::Initramfs.file_name()),
        node: beside.join("node"),
    };
    for path in [&files.libnode, &files.initramfs, &files.node] {
        let usable = File::open(path).and_then(|file| file.metadata());
        match usable {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(missing(path, &"is not a regular file")),
            Err(error) => return Err(missing(path, &error)),
        }
    }
    Ok(files)
}

fn missing(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!(
        "{}: {why}; it belongs beside this program",
        path.display()
    ))
}

/// Which file `path` is, if it is a kernel of ours; an error says what it is instead.
fn check_kernel(path: &Path) -> Result<FileId, String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err("is not a regular file".into());
    }
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK)
        .map_err(|_| "is not executable".to_string())?;
    let mut header = [0u8; 20];
    let elf = file.read_exact(&mut header).is_ok()
        && header.starts_with(b"\x7fELF\x02\x01")
        && header[18..20] == [0x3e, 0];
    if !elf {
        return Err("is not an x86-64 program".into());
    }
    match contains(&mut file, KERNEL_MARKER) {
        Ok(true) => FileId::of(&file).map_err(|error| error.to_string()),
        Ok(false) => Err("is not a kernel of Span (it does not use libnode.so)".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn contains(file: &mut File, marker: &[u8]) -> io::Result<bool> {
    let mut window = Vec::with_capacity(READ_BYTES + marker.len());
    loop {
        let kept = window.len().min(marker.len() - 1);
        window.drain(..window.len() - kept);
        if file
            .by_ref()
            .take(READ_BYTES as u64)
            .read_to_end(&mut window)?
            == 0
        {
            return Ok(false);
        }
        if window.windows(marker.len()).any(|part| part == marker) {
            return Ok(true);
        }
    }
}

impl Files {
    fn path(&self, kind: ArtefactKind) -> &Path {
        match kind {
            ArtefactKind::Linux => &self.linux,
            ArtefactKind::Libnode => &self.libnode,
            ArtefactKind::Initramfs => &self.initramfs,
        }
    }

    /// What a node needs; only the first boots, from the initramfs.
    fn kinds(first: bool) -> impl Iterator<Item = ArtefactKind> {
        ArtefactKind::ALL
            .into_iter()
            .filter(move |kind| first || *kind != ArtefactKind::Initramfs)
    }

    /// An offer to an agent on this machine.
    pub(crate) fn offer_paths(&self, first: bool) -> Vec<Artefact> {
        let source = |kind| ArtefactSource::Path(self.path(kind).as_os_str().as_bytes().to_vec());
        Self::kinds(first)
            .map(|kind| Artefact {
                kind,
                source: source(kind),
            })
            .collect()
    }
}

/// The contents of all artefacts, for nodes elsewhere.
#[derive(Debug)]
pub(crate) struct Contents {
    files: Vec<(ArtefactKind, [u8; 32], Vec<u8>)>,
}

impl Contents {
    pub(crate) fn read(files: &Files) -> Result<Self, Failure> {
        let read = |kind: ArtefactKind| {
            let path = files.path(kind);
            let data =
                std::fs::read(path).map_err(|error| Failure::cannot(path.display(), error))?;
            Ok((kind, Sha256::digest(&data).into(), data))
        };
        Ok(Self {
            files: ArtefactKind::ALL
                .into_iter()
                .map(read)
                .collect::<Result<_, _>>()?,
        })
    }

    pub(crate) fn offer(&self, first: bool) -> Vec<Artefact> {
        let kinds: Vec<_> = Files::kinds(first).collect();
        self.files
            .iter()
            .filter(|(kind, ..)| kinds.contains(kind))
            .map(|(kind, sha256, data)| Artefact {
                kind: *kind,
                source: ArtefactSource::Content {
                    sha256: *sha256,
                    bytes: data.len() as u64,
                },
            })
            .collect()
    }

    pub(crate) fn data(&self, kind: ArtefactKind) -> &[u8] {
        self.files
            .iter()
            .find(|(known, ..)| *known == kind)
            .map_or(&[], |(.., data)| data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kernel_of_ours_is_taken() {
        use std::os::unix::fs::PermissionsExt;
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("linux");
        let put = |data: &[u8], mode: u32| {
            let _ = std::fs::remove_file(&path);
            std::fs::write(&path, data).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        };
        let mut elf = vec![0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 0x3e;

        assert!(check_kernel(&path).is_err());
        put(b"#!/bin/sh\necho libnode.so\0", 0o755);
        assert!(check_kernel(&path).unwrap_err().contains("x86-64"));
        put(&elf, 0o755);
        assert!(check_kernel(&path).unwrap_err().contains("libnode.so"));
        // The marker lies across two reads.
        elf.resize(READ_BYTES - 5 + 20, 0);
        elf.extend(KERNEL_MARKER);
        put(&elf, 0o755);
        check_kernel(&path).unwrap();
        put(&elf, 0o644);
        assert!(check_kernel(&path).unwrap_err().contains("executable"));
        assert!(check_kernel(base.path()).unwrap_err().contains("regular"));
    }
}
