//! The files a guest process is started from, and the cache of those that came over the network.
//!
//! The cache holds files named by the SHA-256 of their contents. A file gets its name only after its
//! contents were checked, and is checked again before each use. A guest process runs from hard links
//! in its own directory (`libnode.so` must lie beside `linux`), so the cache may drop a file at any
//! time.

use sha2::{Digest, Sha256};
use span_api::link::{ARTEFACT_BYTES_MAX, Artefact, ArtefactKind, ArtefactSource, CHUNK_BYTES_MAX};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Files kept; the least recently used go first.
const CACHE_FILES_MAX: usize = 24;

/// A directory of files named by their contents.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    directory: PathBuf,
}

/// The files of one conversation.
#[derive(Debug)]
pub(crate) struct Artefacts {
    cache: Option<Cache>,
    offered: BTreeMap<ArtefactKind, ArtefactSource>,
    present: BTreeMap<ArtefactKind, PathBuf>,
    /// What is still to come, in order, and the file being written.
    needed: Vec<ArtefactKind>,
    incoming: Option<Incoming>,
}

/// Where a guest process finds its files.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) linux: PathBuf,
    /// Where its library is, if not beside it.
    pub(crate) libraries: Option<PathBuf>,
    pub(crate) initramfs: Option<PathBuf>,
}

impl Artefacts {
    pub(crate) fn new(cache: Option<Cache>) -> Self {
        Self {
            cache,
            offered: BTreeMap::new(),
            present: BTreeMap::new(),
            needed: Vec::new(),
            incoming: None,
        }
    }

    /// Notes what the coordinator has and returns what must be sent.
    pub(crate) fn offer(&mut self, offer: Vec<Artefact>) -> Result<Vec<ArtefactKind>, String> {
        if !self.offered.is_empty() {
            return Err("got a second offer of files".into());
        }
        for Artefact { kind, source } in offer {
            match (&source, &self.cache) {
                (ArtefactSource::Path(bytes), None) => {
                    self.present.insert(kind, crate::supervise::path(bytes));
                }
                (ArtefactSource::Content { sha256, bytes }, Some(cache)) => {
                    if *bytes > ARTEFACT_BYTES_MAX {
                        return Err(format!(
                            "was offered a {} of {bytes} bytes",
                            kind.file_name()
                        ));
                    }
                    match cache.find(sha256) {
                        Some(path) => _ = self.present.insert(kind, path),
                        None => self.needed.push(kind),
                    }
                }
                _ => return Err(format!("was offered {} in the wrong way", kind.file_name())),
            }
            self.offered.insert(kind, source);
        }
        Ok(self.needed.clone())
    }

    /// Takes the next bytes of the artefact that is due. Returns whether they were the last.
    pub(crate) fn chunk(&mut self, kind: ArtefactKind, data: &[u8]) -> Result<bool, String> {
        let name = kind.file_name();
        let (Some(cache), Some(&due)) = (&self.cache, self.needed.first()) else {
            return Err(format!("got bytes of {name} that were not asked for"));
        };
        let Some(ArtefactSource::Content { sha256, bytes }) = self.offered.get(&kind) else {
            return Err(format!("got bytes of {name} that was not offered"));
        };
        if due != kind || data.len() > CHUNK_BYTES_MAX {
            return Err(format!("got bytes of {name} out of turn"));
        }
        let failed = |error: io::Error| format!("{name} cannot be stored: {error}");
        let mut incoming = match self.incoming.take() {
            Some(incoming) => incoming,
            None => cache.incoming().map_err(failed)?,
        };
        incoming.write(data).map_err(failed)?;
        if incoming.bytes > *bytes {
            return Err(format!("got more bytes of {name} than were offered"));
        }
        if incoming.bytes < *bytes {
            self.incoming = Some(incoming);
            return Ok(false);
        }
        let path = cache.store(incoming, sha256).map_err(failed)?;
        let path = path.ok_or_else(|| format!("{name} did not arrive as it was offered"))?;
        self.present.insert(kind, path);
        self.needed.remove(0);
        Ok(self.needed.is_empty())
    }

    /// Makes the files usable for a guest process that works in `directory`.
    pub(crate) fn place(&self, directory: &Path) -> Result<Placed, String> {
        if let Some(kind) = self.needed.first() {
            return Err(format!("{} has not arrived", kind.file_name()));
        }
        let file = |kind: ArtefactKind| self.present.get(&kind).cloned();
        let linux = file(ArtefactKind::Linux).ok_or("no kernel was offered")?;
        if self.cache.is_none() {
            let libnode = file(ArtefactKind::Libnode);
            let apart = libnode.filter(|libnode| libnode.parent() != linux.parent());
            let libraries = apart.and_then(|libnode| Some(libnode.parent()?.to_path_buf()));
            return Ok(Placed {
                linux,
                libraries,
                initramfs: file(ArtefactKind::Initramfs),
            });
        }
        let mut placed: BTreeMap<ArtefactKind, PathBuf> = BTreeMap::new();
        for (kind, source) in &self.present {
            let target = directory.join(kind.file_name());
            // Elsewhere than the cache there are no links to it.
            fs::hard_link(source, &target)
                .or_else(|_| fs::copy(source, &target).map(drop))
                .map_err(|error| format!("{} cannot be placed: {error}", target.display()))?;
            placed.insert(*kind, target);
        }
        Ok(Placed {
            linux: placed
                .remove(&ArtefactKind::Linux)
                .ok_or("no kernel was offered")?,
            libraries: None,
            initramfs: placed.remove(&ArtefactKind::Initramfs),
        })
    }
}

impl Cache {
    /// Opens the cache in `directory`, making it if needed.
    pub(crate) fn open(directory: PathBuf) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        Ok(Self { directory })
    }

    fn path(&self, sha256: &[u8; 32]) -> PathBuf {
        let name: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(name)
    }

    /// A file with these contents; a damaged one is dropped.
    fn find(&self, sha256: &[u8; 32]) -> Option<PathBuf> {
        let path = self.path(sha256);
        let file = File::open(&path).ok()?;
        match digest(&file) {
            Ok(found) if found == *sha256 => {
                let _ = file.set_modified(std::time::SystemTime::now());
                Some(path)
            }
            _ => {
                tracing::warn!("{} is damaged and dropped", path.display());
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    fn incoming(&self) -> io::Result<Incoming> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = self
            .directory
            .join(format!("incoming-{}-{number}", std::process::id()));
        // One of that name is left from a process that is gone: numbers of processes come again.
        let _ = fs::remove_file(&path);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o700)
            .open(&path)?;
        Ok(Incoming {
            path,
            file,
            digest: Sha256::new(),
            bytes: 0,
        })
    }

    /// Gives a complete file its name, unless its contents are not what they should be.
    fn store(&self, incoming: Incoming, sha256: &[u8; 32]) -> io::Result<Option<PathBuf>> {
        let found: [u8; 32] = incoming.digest.clone().finalize().into();
        if found != *sha256 {
            return Ok(None);
        }
        let path = self.path(sha256);
        fs::rename(&incoming.path, &path)?;
        self.trim();
        Ok(Some(path))
    }

    fn trim(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        let mut files: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        files.sort();
        for (_, path) in files
            .iter()
            .take(files.len().saturating_sub(CACHE_FILES_MAX))
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// A file that is arriving; dropped incomplete, it is removed.
#[derive(Debug)]
struct Incoming {
    path: PathBuf,
    file: File,
    digest: Sha256,
    bytes: u64,
}

impl Incoming {
    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all(data)?;
        self.digest.update(data);
        self.bytes += data.len() as u64;
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // After the rename there is nothing of that name.
        let _ = fs::remove_file(&self.path);
    }
}

fn digest(mut file: &File) -> io::Result<[u8; 32]> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES_MAX];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(digest.finalize().into()),
            bytes => digest.update(&buffer[..bytes]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(data: &[u8]) -> ArtefactSource {
        ArtefactSource::Content {
            sha256: Sha256::digest(data).into(),
            bytes: data.len() as u64,
        }
    }

    fn offer(source: ArtefactSource) -> Vec<Artefact> {
        vec![Artefact {
            kind: ArtefactKind::Linux,
            source,
        }]
    }

    #[test]
    fn an_artefact_is_sent_once_and_found_the_next_time() {
        let base = tempfile::tempdir().unwrap();
        let cache = Cache::open(base.path().join("cache")).unwrap();
        let mut first = Artefacts::new(Some(cache.clone()));
        assert_eq!(
            first.offer(offer(content(b"kernel"))).unwrap(),
            [ArtefactKind::Linux]
        );
        assert!(first.place(base.path()).is_err());
        assert!(!first.chunk(ArtefactKind::Linux, b"ker").unwrap());
        assert!(first.chunk(ArtefactKind::Linux, b"nel").unwrap());
        let work = base.path().join("work");
        fs::create_dir(&work).unwrap();
        let placed = first.place(&work).unwrap();
        assert_eq!(fs::read(placed.linux).unwrap(), b"kernel");

        let mut second = Artefacts::new(Some(cache));
        assert_eq!(second.offer(offer(content(b"kernel"))).unwrap(), []);
    }

    #[test]
    fn wrong_contents_are_refused_and_leave_nothing() {
        let base = tempfile::tempdir().unwrap();
        let cache = Cache::open(base.path().to_path_buf()).unwrap();
        let mut artefacts = Artefacts::new(Some(cache.clone()));
        artefacts.offer(offer(content(b"kernel"))).unwrap();
        assert!(artefacts.chunk(ArtefactKind::Linux, b"keRnel").is_err());
        let mut artefacts = Artefacts::new(Some(cache.clone()));
        artefacts.offer(offer(content(b"kernel"))).unwrap();
        assert!(artefacts.chunk(ArtefactKind::Linux, b"kernels").is_err());
        let mut artefacts = Artefacts::new(Some(cache));
        artefacts.offer(offer(content(b"kernel"))).unwrap();
        assert!(artefacts.chunk(ArtefactKind::Libnode, b"x").is_err());
        drop(artefacts);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_cached_file_is_asked_for_again() {
        let base = tempfile::tempdir().unwrap();
        let cache = Cache::open(base.path().to_path_buf()).unwrap();
        fs::write(cache.path(&Sha256::digest(b"kernel").into()), b"kernes").unwrap();
        let mut artefacts = Artefacts::new(Some(cache));
        assert_eq!(
            artefacts.offer(offer(content(b"kernel"))).unwrap(),
            [ArtefactKind::Linux]
        );
    }

    #[test]
    fn a_path_is_for_local_agents_only() {
        let base = tempfile::tempdir().unwrap();
        let cache = Cache::open(base.path().to_path_buf()).unwrap();
        let path = offer(ArtefactSource::Path(b"/etc/passwd".to_vec()));
        assert!(Artefacts::new(Some(cache)).offer(path.clone()).is_err());
        assert!(Artefacts::new(None).offer(path).is_ok());
        assert!(Artefacts::new(None).offer(offer(content(b"x"))).is_err());
    }
}
