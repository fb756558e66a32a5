//! What the kernel command line says to the first process.

use crate::network::Device;
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
    /// Directories of nodes' hosts (`span.hostfs=`).
    pub(crate) mounts: Vec<HostMount>,
    /// Disks by their letters (each `ubdX=` of the kernel's).
    pub(crate) disks: Vec<char>,
    /// Network devices to be configured (each `span.net=`).
    pub(crate) devices: Vec<Device>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostMount {
    /// `NODE:/directory`, as hostfs wants it.
    pub(crate) what: OsString,
    pub(crate) mount_point: PathBuf,
    pub(crate) read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadOption {
    #[error(
        "span.root={0} is none of host, hostfs:[<node>:]<absolute directory>, block:<device>[,<type>], none"
    )]
    Root(String),
    #[error("span.hostfs={0} is not [<node>:]<absolute directory>=<absolute mount point>[,ro]")]
    Mount(String),
    #[error("span.net={0} is not <device>,<address>/<bits>,<gateway>,<name server>")]
    Network(String),
}

/// Reads the options out of a kernel command line. The last of several equal options counts, as
/// for the kernel's own.
pub(crate) fn parse(line: &[u8]) -> Result<Options, BadOption> {
    let mut options = Options {
        root: Root::Host,
        name: OsString::from("span"),
        mounts: Vec::new(),
        disks: Vec::new(),
        devices: Vec::new(),
    };
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    for word in words(line) {
        if let Some(value) = word.strip_prefix(b"span.root=") {
            options.root = parse_root(value).ok_or_else(|| BadOption::Root(text(value)))?;
        } else if let Some(value) = word.strip_prefix(b"span.hostfs=") {
            let mount = parse_mount(value).ok_or_else(|| BadOption::Mount(text(value)))?;
            options.mounts.push(mount);
        } else if let Some(value) = word.strip_prefix(b"span.name=") {
            options.name = OsString::from_vec(value.to_vec());
        } else if let Some(value) = word.strip_prefix(b"span.net=") {
            let device = Device::parse(&text(value));
            let device = device.ok_or_else(|| BadOption::Network(text(value)))?;
            options.devices.push(device);
        } else {
            options.disks.extend(disk(&word));
        }
    }
    Ok(options)
}

/// The letter of a disk's that the kernel is told to make: `ubd3r=…` is d.
fn disk(word: &[u8]) -> Option<char> {
    let word = word.strip_prefix(b"ubd")?;
    let (unit, file) = word.split_at(word.iter().position(|byte| *byte == b'=')?);
    let digits = unit.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = match digits {
        0 => unit.first().filter(|byte| byte.is_ascii_lowercase())? - b'a',
        _ => std::str::from_utf8(&unit[..digits]).ok()?.parse().ok()?,
    };
    (file.len() > 1 && number < 26).then_some((b'a' + number).into())
}

fn parse_root(value: &[u8]) -> Option<Root> {
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    match value {
        b"host" => return Some(Root::Host),
        b"none" => return Some(Root::Initramfs),
        _ => {}
    }
    if let Some(directory) = value.strip_prefix(b"hostfs:") {
        return is_of_host(directory).then(|| Root::HostDirectory(path(directory)));
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

fn parse_mount(value: &[u8]) -> Option<HostMount> {
    let (value, read_only) = match value.strip_suffix(b",ro") {
        Some(value) => (value, true),
        None => (value, false),
    };
    let equals = value.iter().rposition(|byte| *byte == b'=')?;
    let (what, mount_point) = (&value[..equals], &value[equals + 1..]);
    (is_of_host(what) && mount_point.starts_with(b"/")).then(|| HostMount {
        what: OsString::from_vec(what.to_vec()),
        mount_point: PathBuf::from(OsStr::from_bytes(mount_point)),
        read_only,
    })
}

/// `NODE:/directory`, or `/directory` of the first node.
fn is_of_host(value: &[u8]) -> bool {
    if let Some(members) = value.strip_prefix(b"union:") {
        return members.split(|byte| *byte == b'+').all(is_of_host);
    }
    let end = value.iter().position(|byte| b":/".contains(byte));
    end.is_some_and(|end| match value[end] {
        b':' => {
            let path = &value[end + 1..];
            end > 0
                && path
                    .strip_prefix(b"sqlite:")
                    .unwrap_or(path)
                    .starts_with(b"/")
        }
        _ => end == 0,
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

    fn root(line: &str) -> Result<Root, BadOption> {
        parse(line.as_bytes()).map(|options| options.root)
    }

    #[test]
    fn without_options_the_host_is_the_root() {
        assert_eq!(parse(b"mem=64M quiet").unwrap().root, Root::Host);
        assert_eq!(parse(b"").unwrap().name, "span");
    }

    #[test]
    fn disks_have_letters() {
        let line = b"ubd0=/a ubd15rs=b:/c,b:/d ubdc=/x ubd=sync ubdd udb=/x ubd99=/x";
        assert_eq!(parse(line).unwrap().disks, ['a', 'p', 'c']);
    }

    #[test]
    fn every_kind_of_root_is_understood() {
        assert_eq!(root("span.root=none").unwrap(), Root::Initramfs);
        assert_eq!(
            root("span.root=hostfs:/srv/a").unwrap(),
            Root::HostDirectory("/srv/a".into())
        );
        assert_eq!(
            root("span.root=hostfs:b:/srv/a").unwrap(),
            Root::HostDirectory("b:/srv/a".into())
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
    fn every_network_device_counts() {
        let line = b"span.net=vec0,10.0.2.15/24,10.0.2.2,10.0.2.3 span.net=vec2,10.0.3.15/24,10.0.3.2,10.0.3.3";
        let names = parse(line).unwrap().devices.into_iter();
        assert_eq!(
            names.map(|device| device.name).collect::<Vec<_>>(),
            ["vec0", "vec2"]
        );
        let error = parse(b"span.net=vec0").unwrap_err();
        assert!(
            error.to_string().starts_with("span.net=vec0 is not"),
            "{error}"
        );
    }

    #[test]
    fn an_unknown_root_is_named() {
        for value in [
            "",
            "hosts",
            "hostfs:",
            "hostfs:relative",
            "hostfs:b:relative",
            "hostfs::/srv",
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

    #[test]
    fn mounts_of_hosts_are_understood() {
        let mounts = |line: &str| parse(line.as_bytes()).map(|options| options.mounts);
        let mount = |what: &str, read_only| HostMount {
            what: what.into(),
            mount_point: "/mnt".into(),
            read_only,
        };
        let line = "span.hostfs=b:/srv=/mnt span.hostfs=/a=b=/mnt,ro span.hostfs=b:sqlite:/d=/mnt \
            span.hostfs=union:a:/x+b:/y=/mnt";
        let wanted = [
            mount("b:/srv", false),
            mount("/a=b", true),
            mount("b:sqlite:/d", false),
            mount("union:a:/x+b:/y", false),
        ];
        assert_eq!(mounts(line).unwrap(), wanted);
        for value in [
            "",
            "b:/srv",
            "b:srv=/mnt",
            "srv=/mnt",
            ":/srv=/mnt",
            "b:/srv=mnt",
        ] {
            let error = mounts(&format!("span.hostfs={value}")).unwrap_err();
            assert!(
                error.to_string().contains(&format!("span.hostfs={value} ")),
                "{error}"
            );
        }
    }
}
