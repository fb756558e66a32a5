//! What the kernel command line says to the first process.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

/// Where the guest's root file system comes from (`span.root=`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Root {
    /// The host's `/`, read-only, below a tmpfs that takes all changes.
    Host,
    /// This directory of the host, read-write.
    HostDirectory(PathBuf),
    /// A block device; without a type, whichever file system of the kernel accepts it.
    Block {
        device: PathBuf,
        file_system: Option<String>,
    },
    /// Stay in the initramfs.
    Initramfs,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) root: Root,
    /// Host name of the guest (`span.name=`).
    pub(crate) name: OsString,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "span.root={0} is none of host, hostfs:<absolute directory>, block:<device>[,<type>], none"
)]
pub(crate) struct UnknownRoot(String);

/// Reads the options out of a kernel command line. The last of several equal options counts, as
/// for the kernel's own.
pub(crate) fn parse(line: &[u8]) -> Result<Options, UnknownRoot> {
    let mut options = Options {
        root: Root::Host,
        name: OsString::from("span"),
    };
    for word in words(line) {
        if let Some(value) = word.strip_prefix(b"span.root=") {
            options.root = parse_root(value)
                .ok_or_else(|| UnknownRoot(String::from_utf8_lossy(value).into_owned()))?;
        } else if let Some(value) = word.strip_prefix(b"span.name=") {
            options.name = OsString::from_vec(value.to_vec());
        }
    }
    Ok(options)
}

fn parse_root(value: &[u8]) -> Option<Root> {
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    match value {
        b"host" => return Some(Root::Host),
        b"none" => return Some(Root::Initramfs),
        _ => {}
    }
    if let Some(directory) = value.strip_prefix(b"hostfs:") {
        return directory
            .starts_with(b"/")
            .then(|| Root::HostDirectory(path(directory)));
    }
    let block = value.strip_prefix(b"block:")?;
    let mut parts = block.splitn(2, |byte| *byte == b',');
    let device = parts.next().filter(|device| !device.is_empty())?;
    let file_system = match parts.next() {
        Some(b"") => return None,
        Some(name) => Some(String::from_utf8(name.to_vec()).ok()?),
        None => None,
    };
    Some(Root::Block {
        device: path(device),
        file_system,
    })
}

/// Splits as the kernel does: at white space outside double quotes, which are not part of a word.
fn words(line: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word = Vec::new();
    let mut quoted = false;
    for byte in line {
        match byte {
            b'"' => quoted = !quoted,
            byte if byte.is_ascii_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            byte => word.push(*byte),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(line: &str) -> Result<Root, UnknownRoot> {
        parse(line.as_bytes()).map(|options| options.root)
    }

    #[test]
    fn without_options_the_host_is_the_root() {
        assert_eq!(parse(b"mem=64M quiet").unwrap().root, Root::Host);
        assert_eq!(parse(b"").unwrap().name, "span");
    }

    #[test]
    fn every_kind_of_root_is_understood() {
        assert_eq!(root("span.root=none").unwrap(), Root::Initramfs);
        assert_eq!(
            root("span.root=hostfs:/srv/a").unwrap(),
            Root::HostDirectory("/srv/a".into())
        );
        assert_eq!(
            root("span.root=block:/dev/ubda").unwrap(),
            Root::Block {
                device: "/dev/ubda".into(),
                file_system: None
            }
        );
        assert_eq!(
            root("span.root=block:/dev/ubda,ext4").unwrap(),
            Root::Block {
                device: "/dev/ubda".into(),
                file_system: Some("ext4".into())
            }
        );
    }

    #[test]
    fn quotes_keep_white_space_in_a_word() {
        let options = parse(b"\"span.root=hostfs:/srv/a b\" span.name=\"x y\"\n").unwrap();
        assert_eq!(options.root, Root::HostDirectory("/srv/a b".into()));
        assert_eq!(options.name, "x y");
    }

    #[test]
    fn an_unknown_root_is_named() {
        for value in [
            "",
            "hosts",
            "hostfs:",
            "hostfs:relative",
            "block:",
            "block:/dev/a,",
        ] {
            let error = root(&format!("span.root={value}")).unwrap_err();
            assert!(
                error.to_string().contains(&format!("span.root={value} ")),
                "{error}"
            );
        }
    }
}
