//! The guest's initramfs: a "newc" cpio archive with the first process and the few names it needs
//! before it has mounted anything.

use std::fs;
use std::path::Path;

use crate::error::{At, Result};
use crate::stamp;

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Makes `archive` the one with `init` as `/init`; leaves it alone if it is.
pub(crate) fn write_if_changed(archive: &Path, init: &Path) -> Result<()> {
    let init = fs::read(init).at("read", init)?;
    let packed = pack(&init);
    if fs::read(archive).is_ok_and(|old| old == packed) {
        return Ok(());
    }
    stamp::write_atomic(archive, packed)
}

fn pack(init: &[u8]) -> Vec<u8> {
    let mut cpio = Cpio::default();
    for name in ["dev", "mnt", "proc", "sys"] {
        cpio.add(name, DIRECTORY | 0o755, (0, 0), &[]);
    }
    cpio.add("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), &[]);
    cpio.add("dev/null", CHARACTER_DEVICE | 0o666, (1, 3), &[]);
    cpio.add("init", FILE | 0o755, (0, 0), init);
    cpio.finish()
}

#[derive(Debug, Default)]
struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    /// `device` is the major and minor number of a device node.
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let size = content.len() as u32;
        // Times and owners are zero: the same first process gives the same archive.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(archive: &[u8], at: usize, index: usize) -> usize {
        let start = at + 6 + 8 * index;
        let text = std::str::from_utf8(&archive[start..start + 8]).unwrap();
        usize::from_str_radix(text, 16).unwrap()
    }

    #[test]
    fn every_entry_is_where_the_one_before_says() {
        let archive = pack(b"12345");
        let (mut at, mut names) = (0, Vec::new());
        loop {
            assert_eq!(&archive[at..at + 6], b"070701");
            let (size, name_size) = (field(&archive, at, 6), field(&archive, at, 11));
            let name_at = at + 110;
            let name = &archive[name_at..name_at + name_size - 1];
            let data_at = (name_at + name_size).next_multiple_of(4);
            if name == b"TRAILER!!!" {
                break;
            }
            if name == b"init" {
                assert_eq!(&archive[data_at..data_at + size], b"12345");
            }
            if name == b"dev/console" {
                assert_eq!((field(&archive, at, 9), field(&archive, at, 10)), (5, 1));
            }
            names.push(String::from_utf8(name.to_vec()).unwrap());
            at = (data_at + size).next_multiple_of(4);
        }
        assert_eq!(
            names,
            [
                "dev",
                "mnt",
                "proc",
                "sys",
                "dev/console",
                "dev/null",
                "init"
            ]
        );
        assert_eq!(archive.len() % 512, 0);
    }
}
