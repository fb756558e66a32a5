//! Content stamps: a step is skipped when the hash of all that goes into it is the one that its last
//! success left behind.

use std::fs;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{At, Result};

/// Collects what a step depends on. Labels keep two inputs from running into each other.
#[derive(Debug, Default)]
pub(crate) struct Stamp(Sha256);

impl Stamp {
    pub(crate) fn add(&mut self, label: &str, content: impl AsRef<[u8]>) -> &mut Self {
        let content = content.as_ref();
        for part in [label.as_bytes(), content] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    pub(crate) fn hex(&self) -> String {
        hex(&self.0.clone().finalize())
    }
}

/// True if `file` holds `hash`.
pub(crate) fn fresh(file: &Path, hash: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text == hash)
}

/// Writes `content` so that a reader, or a run after a crash, sees the old file or the new one.
pub(crate) fn write_atomic(file: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = file.with_file_name(name);
    fs::write(&temporary, content).at("write", &temporary)?;
    fs::rename(&temporary, file).at("rename to", file)
}

pub(crate) fn sha256_file(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).at("open", path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let got = file.read(&mut buffer).at("read", path)?;
        if got == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..got]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_contents_do_not_run_together() {
        let one = Stamp::default().add("a", "bc").hex();
        let two = Stamp::default().add("ab", "c").hex();
        assert_ne!(one, two);
        assert_eq!(one, Stamp::default().add("a", "bc").hex());
    }
}
