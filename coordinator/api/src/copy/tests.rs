use super::*;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tar::{Builder, EntryType, Header};

fn packed(sources: &[PathBuf]) -> (Vec<u8>, Vec<String>) {
    let (mut stream, mut lines) = (Vec::new(), Vec::new());
    send(sources, &mut stream, |error| lines.push(error.to_string())).unwrap();
    (stream, lines)
}

/// Everything below a directory, with what it is.
fn listing(directory: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(path) = waiting.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(directory).unwrap().display();
            let mode = metadata.permissions().mode();
            let what = if metadata.is_dir() {
                waiting.push(path.clone());
                format!("{mode:o} {}", metadata.mtime())
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else {
                let bytes = fs::read(&path).unwrap();
                let sum = bytes.iter().fold(0u64, |sum, byte| {
                    sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
                });
                format!("{mode:o} {} {} {sum}", metadata.mtime(), bytes.len())
            };
            lines.push(format!("{name}: {what}"));
        }
    }
    lines.sort();
    lines
}

fn tree(directory: &Path) -> PathBuf {
    let top = directory.join("tree");
    fs::create_dir_all(top.join("inner/empty")).unwrap();
    fs::write(top.join("small"), "text").unwrap();
    fs::write(top.join("inner/large"), vec![7; 300_000]).unwrap();
    fs::write(top.join(format!("inner/{}", "n".repeat(200))), "long name").unwrap();
    symlink("inner/large", top.join("link")).unwrap();
    symlink("/nowhere", top.join("dangling")).unwrap();
    fs::set_permissions(top.join("small"), Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(top.join("inner/empty"), Permissions::from_mode(0o555)).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for name in ["small", "inner/empty", "inner"] {
        let file = File::open(top.join(name)).unwrap();
        file.set_times(FileTimes::new().set_modified(old)).unwrap();
    }
    top
}

#[test]
fn a_tree_arrives_as_it_was_under_its_own_name_or_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let top = tree(directory.path());
    let expected = listing(&top);
    assert!(
        expected
            .iter()
            .any(|line| line == "small: 100751 1000000000 4 3556653")
    );
    let (stream, lines) = packed(std::slice::from_ref(&top));
    assert_eq!(lines, [""; 0]);
    let there = directory.path().join("there");
    fs::create_dir(&there).unwrap();
    receive(stream.as_slice(), &there, Into::Any).unwrap();
    receive(stream.as_slice(), &there.join("new"), Into::Any).unwrap();
    for name in ["tree", "new"] {
        assert_eq!(listing(&there.join(name)), expected);
    }
    assert_eq!(
        fs::read_dir(&there).unwrap().count(),
        2,
        "nothing else is left"
    );
}

#[test]
fn a_directory_that_is_there_gets_more_and_keeps_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let top = tree(directory.path());
    let there = directory.path().join("there");
    fs::create_dir_all(there.join("tree/inner")).unwrap();
    fs::write(there.join("tree/inner/mine"), "kept").unwrap();
    fs::write(there.join("tree/small"), "replaced").unwrap();
    fs::set_permissions(there.join("tree"), Permissions::from_mode(0o700)).unwrap();
    receive(packed(&[top]).0.as_slice(), &there, Into::Directory).unwrap();
    assert_eq!(fs::read(there.join("tree/small")).unwrap(), b"text");
    assert_eq!(fs::read(there.join("tree/inner/mine")).unwrap(), b"kept");
    assert!(there.join("tree/inner/large").exists());
    let mode = fs::metadata(there.join("tree"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_stream_that_breaks_anywhere_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().join("three");
    fs::create_dir(&top).unwrap();
    for name in ["a", "b", "c"] {
        fs::write(top.join(name), [b'x'; 700]).unwrap();
    }
    let (stream, _) = packed(&[top]);
    let there = directory.path().join("there");
    fs::create_dir(&there).unwrap();
    // The second of the two empty blocks at the end is not needed.
    for length in (0..=stream.len() - 1024).step_by(256) {
        let error = receive(&stream[..length], &there, Into::Any).unwrap_err();
        assert!(
            error.to_string().ends_with("the copy was broken off"),
            "{error}"
        );
        assert_eq!(fs::read_dir(&there).unwrap().count(), 0, "{length}");
    }
    receive(&stream[..stream.len() - 512], &there, Into::Any).unwrap();
}

#[test]
fn what_is_there_already_stays_until_the_copy_is_complete() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("file");
    fs::write(&source, vec![b'n'; 100_000]).unwrap();
    let (stream, _) = packed(&[source]);
    let target = directory.path().join("target");
    fs::write(&target, "old").unwrap();
    receive(&stream[..50_000], &target, Into::Any).unwrap_err();
    assert_eq!(fs::read(&target).unwrap(), b"old");
    receive(stream.as_slice(), &target, Into::Any).unwrap();
    assert_eq!(fs::metadata(&target).unwrap().len(), 100_000);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

/// A stream as nobody honest makes it.
fn forged(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, link) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        let data = if *kind == EntryType::Regular {
            "evil"
        } else {
            ""
        };
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn nothing_leads_out_of_the_destination() {
    use EntryType::{Directory, Link, Regular, Symlink};
    let directory = tempfile::tempdir().unwrap();
    let (there, outside) = (directory.path().join("there"), directory.path().join("out"));
    fs::create_dir(&there).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "good").unwrap();
    let out = outside.to_str().unwrap();
    let absolute = format!("{out}/new");
    for (entries, part) in [
        (vec![(Regular, absolute.as_str(), "")], "lead out"),
        (vec![(Regular, "../out/new", "")], "lead out"),
        (vec![(Regular, "a/../../out/new", "")], "lead out"),
        (vec![(Directory, "..", "")], "lead out"),
        (
            vec![(Symlink, "l", out), (Regular, "l/new", "")],
            "not below",
        ),
        (
            vec![(Symlink, "l", out), (Directory, "l", "")],
            "comes twice",
        ),
        (vec![(Symlink, "l", out), (Regular, "l", "")], "comes twice"),
        (
            vec![
                (Directory, "d", ""),
                (Symlink, "d/l", out),
                (Regular, "d/l/new", ""),
            ],
            "not below",
        ),
        (vec![(Regular, "d/new", "")], "not below"),
        (vec![(Link, "l", &format!("{out}/file"))], "is neither"),
        (vec![(EntryType::Char, "device", "")], "is neither"),
    ] {
        let error = receive(forged(&entries).as_slice(), &there, Into::Directory).unwrap_err();
        assert!(error.to_string().contains(part), "{entries:?}: {error}");
        assert_eq!(listing(&there), [""; 0], "{entries:?}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{entries:?}");
    }
    // A link in the destination is replaced, not followed.
    symlink(out, there.join("d")).unwrap();
    let stream = forged(&[(Directory, "d", ""), (Regular, "d/new", "")]);
    receive(stream.as_slice(), &there, Into::Directory).unwrap_err();
    symlink(outside.join("file"), there.join("f")).unwrap();
    receive(
        forged(&[(Regular, "f", "")]).as_slice(),
        &there,
        Into::Directory,
    )
    .unwrap();
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"good");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn destinations_are_checked_before_anything_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "text").unwrap();
    let missing = directory.path().join("no/where");
    for (path, into, why) in [
        (directory.path(), Into::File, "is a directory"),
        (&file, Into::Directory, "is not a directory"),
        (&missing, Into::Any, "No such file or directory"),
        (&missing, Into::Directory, "No such file or directory"),
        (
            Path::new("/dev/null"),
            Into::Any,
            "is neither a file nor a directory",
        ),
        (&file.join("below"), Into::Any, "Not a directory"),
    ] {
        let error = receive(io::repeat(b'x'), path, into)
            .unwrap_err()
            .to_string();
        let start = format!("{}: {why}", path.display());
        assert!(error.starts_with(&start), "{error}");
    }
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("good"), "text").unwrap();
    fs::create_dir(path("tree")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("tree/socket")).unwrap();
    fs::write(path("tree/file"), "text").unwrap();
    let sources = ["missing", "good", "tree", "tree/../good"].map(path);
    let (stream, lines) = packed(&sources);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].contains("missing: No such file"), "{lines:?}");
    assert!(lines[1].contains("tree/socket: is neither"), "{lines:?}");
    assert!(lines[2].contains("another of that name"), "{lines:?}");
    fs::create_dir(path("there")).unwrap();
    receive(stream.as_slice(), &path("there"), Into::Directory).unwrap();
    let found = listing(&path("there"));
    let names: BTreeSet<_> = found
        .iter()
        .filter_map(|line| line.split(':').next())
        .collect();
    assert_eq!(names, BTreeSet::from(["good", "tree", "tree/file"]));
}

#[test]
fn holes_stay_holes_and_proc_has_contents() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("holes");
    let file = File::create(&source).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"here", 32 << 20).unwrap();
    let (stream, lines) = packed(&[source.clone(), "/proc/version".into()]);
    assert_eq!(lines, [""; 0]);
    assert!(stream.len() < 1 << 20, "{}", stream.len());
    let there = directory.path().join("there");
    fs::create_dir(&there).unwrap();
    receive(stream.as_slice(), &there, Into::Directory).unwrap();
    let copy = there.join("holes");
    assert!(fs::metadata(&copy).unwrap().blocks() < 2048);
    assert!(fs::read(&copy).unwrap() == fs::read(&source).unwrap());
    assert_eq!(
        fs::read(there.join("version")).unwrap(),
        fs::read("/proc/version").unwrap()
    );
}

#[test]
fn one_file_comes_from_or_goes_to_a_stream() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("file");
    fs::write(&source, "text").unwrap();
    let mut stream = Vec::new();
    send_file(
        &mut File::open(&source).unwrap(),
        OsStr::new("x"),
        &mut stream,
    )
    .unwrap();
    let mut out = Vec::new();
    receive_contents(stream.as_slice(), &mut out).unwrap();
    assert_eq!(out, b"text");
    let (stream, _) = packed(&[directory.path().to_owned()]);
    let error = receive_contents(stream.as_slice(), &mut io::sink()).unwrap_err();
    assert!(error.to_string().contains("is a directory"), "{error}");
}
