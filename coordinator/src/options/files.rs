//! What of hosts' files a guest is given: its root, and directories that are mounted.

use super::Place;
use crate::failure::Failure;
use span_api::guest::{Export, Kind};
use std::ffi::OsStr;
use std::fmt::Display;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Of a file's name.
const FILE_NAME_BYTES_MAX: usize = 255;

/// What the guest's root file system is made of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Root {
    Host,
    /// Of a node's host.
    Directory(usize, PathBuf, Kind),
    Image(usize, PathBuf),
    None,
}

/// A directory of a node's host, or a database there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) node: usize,
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
}

/// What is mounted in the guest, and where. Several parts are a union.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostMount {
    pub(crate) parts: Vec<Part>,
    pub(crate) mount_point: PathBuf,
    pub(crate) read_only: bool,
}

/// The node of `NODE:PATH`, and the path there; without a name the first.
pub(crate) fn of_node<'v>(value: &'v OsStr, names: &[String]) -> Result<(usize, &'v Path), String> {
    let bytes = value.as_bytes();
    let end = bytes.iter().position(|byte| b":/".contains(byte));
    let Some(end) = end.filter(|end| bytes[*end] == b':') else {
        return Ok((0, Path::new(value)));
    };
    let (name, path) = (&bytes[..end], OsStr::from_bytes(&bytes[end + 1..]));
    match names.iter().position(|other| other.as_bytes() == name) {
        Some(node) => Ok((node, Path::new(path))),
        None => Err(format!(
            "there is no node {}; --nodes has {}",
            String::from_utf8_lossy(name),
            names.join(", ")
        )),
    }
}

/// `--hostfs`. What is on this machine has to be there; of another, its daemon decides what it exports.
pub(crate) fn hostfs(
    value: &OsStr,
    names: &[String],
    places: &[Place],
) -> Result<HostMount, Failure> {
    let wrong = |why: &dyn Display| Failure::usage(format!("--hostfs {}: {why}", value.display()));
    let (rest, read_only, mapped) = Export::options(value.as_bytes());
    let equals = rest.iter().rposition(|byte| *byte == b'=');
    let equals = equals.ok_or_else(|| {
        wrong(
            &"must be [NODE:]DIR=MOUNTPOINT, [NODE:]sqlite:FILE=MOUNTPOINT or \
            union:[NODE:]DIR+[NODE:]DIR=MOUNTPOINT; ,ro and ,owners=mapped may follow",
        )
    })?;
    let mount_point = &rest[equals + 1..];
    if mount_point.contains(&b',') {
        return Err(wrong(
            &"nothing but ,ro and ,owners=mapped may follow the mount point",
        ));
    }
    let mount_point = Path::new(OsStr::from_bytes(mount_point));
    let what = &rest[..equals];
    let part = |what: &[u8]| part(what, mapped, names, places).map_err(|why| wrong(&why));
    let parts = match what.strip_prefix(b"union:") {
        None => vec![part(what)?],
        Some(members) => {
            let members = members.split(|byte| *byte == b'+').map(part);
            let members: Vec<Part> = members.collect::<Result<_, _>>()?;
            if members.len() < 2 {
                return Err(wrong(
                    &"a union is of two or more directories, with + between them",
                ));
            }
            if members.iter().any(|member| member.kind != Kind::Directory) {
                return Err(wrong(&"a union is of directories, without owners=mapped"));
            }
            if members
                .iter()
                .enumerate()
                .any(|(at, one)| members[..at].contains(one))
            {
                return Err(wrong(&"a union has each directory once"));
            }
            members
        }
    };
    if mount_point
        .iter()
        .any(|name| name.len() > FILE_NAME_BYTES_MAX)
    {
        return Err(wrong(&format!(
            "a name in MOUNTPOINT has at most {FILE_NAME_BYTES_MAX} bytes"
        )));
    }
    if !plain(mount_point) {
        return Err(wrong(&"DIR and MOUNTPOINT are absolute and without .."));
    }
    Ok(HostMount {
        parts,
        mount_point: mount_point.to_path_buf(),
        read_only,
    })
}

/// `[NODE:]DIR` or `[NODE:]sqlite:FILE`.
fn part(what: &[u8], mapped: bool, names: &[String], places: &[Place]) -> Result<Part, String> {
    // Without a node's name, the first one's.
    let (kind, path) = Kind::split(what);
    let (node, kind, path) = match kind {
        Kind::Directory => {
            let (node, path) = of_node(OsStr::from_bytes(path), names)?;
            let (kind, path) = Kind::split(path.as_os_str().as_bytes());
            (node, kind, Path::new(OsStr::from_bytes(path)))
        }
        kind => (0, kind, Path::new(OsStr::from_bytes(path))),
    };
    let kind = span_api::guest::kind(kind, mapped)?;
    if !plain(path) {
        return Err("DIR and MOUNTPOINT are absolute and without ..".into());
    }
    let mut path = path.to_path_buf();
    if places[node] == Place::Local {
        path = fs::canonicalize(path).map_err(|error| error.to_string())?;
        match kind {
            Kind::Sqlite => span_api::guest::check_database(&path)?,
            _ => fs::read_dir(&path)
                .map(drop)
                .map_err(|error| error.to_string())?,
        }
    }
    Ok(Part { node, kind, path })
}

/// Whether a path says where it leads.
pub(crate) fn plain(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
}

/// `--root`. What it names on another machine is checked there.
pub(crate) fn root(value: &OsStr, names: &[String], places: &[Place]) -> Result<Root, Failure> {
    if value == "host" {
        return Ok(Root::Host);
    }
    if value == "none" {
        return Ok(Root::None);
    }
    let refused = |why: &dyn Display| {
        Failure::usage(format!(
            "--root {}: {why}; allowed are host, none, a readable directory (,owners=mapped may follow) or image file",
            value.display()
        ))
    };
    let bytes = value.as_bytes();
    let (value, kind) = match bytes.strip_suffix(b",owners=mapped") {
        Some(directory) => (OsStr::from_bytes(directory), Kind::Mapped),
        None => (value, Kind::Directory),
    };
    let (node, path) = of_node(value, names).map_err(|why| refused(&why))?;
    let image = |path: PathBuf| match kind {
        Kind::Mapped => Err(refused(&"owners=mapped is for directories")),
        _ => Ok(Root::Image(node, path)),
    };
    if places[node] != Place::Local {
        // A path that ends in a slash says that it is a directory.
        let directory = value.as_bytes().ends_with(b"/");
        return match plain(path) {
            true if !directory && path.extension().is_some() => image(path.into()),
            true => Ok(Root::Directory(node, path.into(), kind)),
            false => Err(refused(
                &"a path on another machine must be absolute and without ..",
            )),
        };
    }
    let metadata = fs::metadata(path).map_err(|error| refused(&error))?;
    let canonical = || fs::canonicalize(path).map_err(|error| refused(&error));
    if metadata.is_dir() {
        fs::read_dir(path).map_err(|error| refused(&error))?;
        Ok(Root::Directory(node, canonical()?, kind))
    } else if metadata.is_file() {
        fs::File::open(path).map_err(|error| refused(&error))?;
        image(canonical()?)
    } else {
        Err(refused(&"is neither a directory nor a regular file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::nodes;
    use crate::options::tests::line;

    #[test]
    fn a_root_must_exist_and_be_of_a_usable_kind() {
        let (names, places) = nodes("a,b,c=far:1").unwrap();
        let root = |value: &str| root(OsStr::new(value), &names, &places);
        assert_eq!(root("host").unwrap(), Root::Host);
        assert_eq!(root("none").unwrap(), Root::None);
        let directory = |node, path: &str| Root::Directory(node, path.into(), Kind::Directory);
        assert_eq!(root("/proc").unwrap(), directory(0, "/proc"));
        assert_eq!(root("b:/proc").unwrap(), directory(1, "/proc"));
        assert_eq!(root("c:/srv/d.d/").unwrap(), directory(2, "/srv/d.d/"));
        let image = |node, path: &str| Root::Image(node, path.into());
        assert_eq!(root("c:/srv/d.img").unwrap(), image(2, "/srv/d.img"));
        assert_eq!(root("b:/proc/version").unwrap(), image(1, "/proc/version"));
        for (value, part) in [
            ("/nonexistent", "--root /nonexistent: "),
            ("/dev/null", "neither"),
            ("c:some/where", "absolute"),
            ("c:/srv/..", "without .."),
            ("d:/srv", "no node d; --nodes has a, b, c"),
        ] {
            let line = line(root(value));
            assert!(line.contains(part), "{value}: {line}");
        }
        let (names, places) = nodes("a=far:1").unwrap();
        let root = |value: &str| super::root(OsStr::new(value), &names, &places).unwrap();
        assert_eq!(root("/srv/d"), directory(0, "/srv/d"));
        assert_eq!(root("/srv/d.d/"), directory(0, "/srv/d.d/"));
        assert_eq!(root("/srv/d.img"), Root::Image(0, "/srv/d.img".into()));
    }

    #[test]
    fn directories_of_hosts_are_mounted_where_it_is_said() {
        let (names, places) = nodes("a,b,c=far:1").unwrap();
        let hostfs = |value: &str| hostfs(OsStr::new(value), &names, &places);
        let mount = |node, directory: &str, read_only| HostMount {
            parts: vec![Part {
                node,
                kind: Kind::Directory,
                path: directory.into(),
            }],
            mount_point: "/mnt".into(),
            read_only,
        };
        for (value, wanted) in [
            ("/proc=/mnt", mount(0, "/proc", false)),
            ("b:/proc/=/mnt,ro", mount(1, "/proc", true)),
            ("c:/a=b:c=/mnt", mount(2, "/a=b:c", false)),
        ] {
            assert_eq!(hostfs(value).unwrap(), wanted, "{value}");
        }
        let parts = |value: &str| hostfs(value).unwrap().parts;
        let part = |node, kind, path: &str| Part {
            node,
            kind,
            path: path.into(),
        };
        for (value, wanted) in [
            ("c:sqlite:/a.db=/mnt", vec![part(2, Kind::Sqlite, "/a.db")]),
            ("c:/d=/mnt,owners=mapped", vec![part(2, Kind::Mapped, "/d")]),
            (
                "union:c:/d+/proc=/mnt",
                vec![
                    part(2, Kind::Directory, "/d"),
                    part(0, Kind::Directory, "/proc"),
                ],
            ),
        ] {
            assert_eq!(parts(value), wanted, "{value}");
        }
        let long = format!("/proc=/mnt/{}", "x".repeat(256));
        for (value, part) in [
            ("", "[NODE:]DIR=MOUNTPOINT,"),
            ("/proc", "[NODE:]DIR=MOUNTPOINT,"),
            ("union:/proc=/mnt", "two or more"),
            (
                "union:/proc+b:/proc/=/mnt,owners=mapped",
                "without owners=mapped",
            ),
            ("union:/proc+a:/proc/=/mnt", "each directory once"),
            ("sqlite:/proc/version=/mnt", "no SQLite database"),
            ("sqlite:/proc=/mnt", "is no file"),
            ("c:sqlite:/a.db=/mnt,owners=mapped", "is for directories"),
            ("d:/proc=/mnt", "no node d; --nodes has a, b, c"),
            (":/proc=/mnt", "no node ; --nodes has"),
            ("proc=/mnt", "absolute"),
            ("/proc=mnt", "absolute"),
            ("/proc=", "absolute"),
            ("=/mnt", "absolute"),
            ("/proc/../proc=/mnt", "without .."),
            ("/proc=/mnt/../etc", "without .."),
            (long.as_str(), "at most 255 bytes"),
            ("/proc=/mnt,rw", "nothing but ,ro"),
            ("/nonexistent=/mnt", "No such file"),
            ("/proc/version=/mnt", "Not a directory"),
        ] {
            let line = line(hostfs(value));
            assert!(line.contains(part), "{value}: {line}");
        }
    }
}
