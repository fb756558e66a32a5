//! What others wrote to find faults of file systems with, and what users do all day: git, and files and trees that chance
//! changes, on directories and disks of other nodes' hosts.

use sha2::{Digest, Sha256};
use span_tests::{Detached, Up, World, number, on, served};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const NODES: [&str; 3] = ["a", "b", "c"];

const EXERCISER: &str = include_str!("../programs/exerciser.py");
const TREES: &str = include_str!("../programs/trees.py");

/// Longest time of one program of these, in seconds.
const PROGRAM_S_MAX: u64 = 300;

#[track_caller]
fn host(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program)
        .args(arguments)
        .env("PATH", span_tests::PATH)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    assert!(done.status.success(), "{program} {arguments:?}: {said}");
    said.trim_end().to_owned()
}

fn directory(world: &World, name: &str) -> PathBuf {
    let path = world.path("work").join(name);
    fs::create_dir_all(&path).expect("a directory");
    path
}

fn sum(path: &Path) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(fs::read(path).expect("a file")) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A history of some hundred files, half of it packed.
const HISTORY: &str = "set -e; cd \"$1\"; git init -q -b main; git config user.email t@example.org; \
    git config user.name T; mkdir -p a/b c; for n in $(seq 80); do seq $n 400 >a/b/f$n; done; git add .; \
    git commit -qm one; git gc -q; for n in $(seq 80); do seq $n >c/g$n; done; ln -s a/b link; chmod 755 c/g1; \
    git add .; git commit -qm two; git mv a/b/f1 c/moved; git commit -qm three; git tag -a v1 -m v1; \
    git count-objects -v | tr '\\n' ' '";

#[test]
fn git_clones_and_checks_what_other_nodes_have() {
    let world = World::new();
    let directories = NODES.map(|node| directory(&world, node));
    let mut up = Up::three(&world);
    for (node, path) in NODES.iter().zip(&directories) {
        up = up
            .option("--hostfs")
            .option(format!("{node}:{}=/h/{node}", path.display()));
        let made = directory(&world, &format!("{node}/made"));
        host("sh", &["-c", HISTORY, "sh", &made.display().to_string()]);
    }
    let guest = up.detach("git");
    // The repository may be of another user than the guest's root.
    let git = "export HOME=/tmp; git config --global safe.directory '*'";
    for (number, node) in NODES.into_iter().enumerate() {
        let (from, to) = (NODES[(number + 1) % 3], NODES[(number + 2) % 3]);
        let before = guest.status();
        let script = format!(
            "{git}; cd /h/{to} && git clone -q --no-local /h/{from}/made by-{node} && cd by-{node} && \
             git fsck --full --strict --no-progress 2>&1 && git -C /h/{from}/made fsck --full 2>&1 && \
             git status --porcelain && git checkout -q v1~1 && git checkout -q main && git rev-parse HEAD"
        );
        let seen = on(&guest, node, &script);
        let after = guest.status();
        for owner in [from, to] {
            let crossed = served(&after, owner) - served(&before, owner);
            assert!(crossed > 300, "{owner} was asked {crossed} times");
        }
        // On the host it is the same, whole, and nothing is changed.
        let made = world.path("work").join(from).join("made");
        let cloned = world
            .path("work")
            .join(to)
            .join(format!("by-{node}"))
            .display()
            .to_string();
        let head = host(
            "git",
            &["-C", &made.display().to_string(), "rev-parse", "HEAD"],
        );
        assert_eq!(seen.lines().last(), Some(head.as_str()), "{seen}");
        host("git", &["-C", &cloned, "fsck", "--full", "--strict"]);
        let changed = host("git", &["-C", &cloned, "status", "--porcelain"]);
        assert_eq!(changed, "");
    }
    guest.down().expect(0);
    world.assert_clean();
}

/// A guest that has a directory of b's at `/p`, one with owners at `/m`, and a disk of b's.
#[track_caller]
fn three_places<'w>(world: &'w World, name: &str) -> Detached<'w> {
    let (plain, mapped) = (directory(world, "plain"), directory(world, "mapped"));
    let image = world.file("image", "");
    let file = fs::File::options().write(true).open(&image);
    file.and_then(|file| file.set_len(96 << 20))
        .expect("a size");
    let up = Up::three(world)
        .option("--hostfs")
        .option(format!("b:{}=/p", plain.display()))
        .option("--hostfs")
        .option(format!("b:{}=/m,owners=mapped", mapped.display()))
        .option("--ubd")
        .option(format!("b:{}", image.display()));
    let guest = up.detach(name);
    on(
        &guest,
        "c",
        "mkfs.ext4 -q /dev/ubda && mkdir -p /e && mount /dev/ubda /e",
    );
    guest
}

/// Runs a program of Python's with a seed, from node a.
#[track_caller]
fn by_chance(guest: &Detached<'_>, program: &str, place: &str, count: u64, more: &str) -> String {
    let seed = number("SPAN_FILES_SEED", 1).to_string();
    let count = count.to_string();
    let mut argv = vec!["/usr/bin/python3", "-c", program, place, &seed, &count];
    if !more.is_empty() {
        argv.push(more);
    }
    let (before, log) = (guest.status(), guest.logs());
    let outcome = guest.exec_within(
        &argv,
        PROGRAM_S_MAX + number("SPAN_FILES_OPERATIONS", 0) / 20,
    );
    let seen = outcome.expect(0).text();
    let after = guest.status();
    after.assert_moved(&before);
    let crossed = served(&after, "b") - served(&before, "b");
    // What is on a disk is in the page cache until it is written back.
    let least = match place.starts_with("/e") {
        true => 8,
        false => count.parse::<u64>().expect("a number") / 4,
    };
    assert!(crossed > least, "b was asked {crossed} times at {place}");
    guest.assert_quiet_since(&log);
    seen
}

#[test]
fn a_file_that_chance_changes_is_what_it_should_be() {
    let world = World::new();
    let guest = three_places(&world, "chance");
    let count = number("SPAN_FILES_OPERATIONS", 500);
    for (place, file) in [("/p", "plain/f"), ("/m", "mapped/f"), ("/e", "")] {
        // hostfs does not go past the page cache.
        let without = if place == "/e" { "" } else { "direct" };
        let path = format!("{place}/f");
        let seen = by_chance(&guest, EXERCISER, &path, count, without);
        let last = seen.lines().last().expect("a line");
        let (size, digest) = last.split_once(' ').expect("a size and a sum");
        println!("{place}: {seen}");
        if !file.is_empty() {
            let path = world.path("work").join(file);
            assert_eq!(fs::metadata(&path).expect("a file").len().to_string(), size);
            assert_eq!(sum(&path), digest);
            continue;
        }
        for reader in NODES {
            let again = on(
                &guest,
                reader,
                "echo 3 >/proc/sys/vm/drop_caches; sha256sum /e/f",
            );
            assert_eq!(again.split(' ').next(), Some(digest), "{reader}");
        }
    }
    on(&guest, "c", "umount /e");
    guest.down().expect(0);
    let image = world.path("work").join("image");
    host("e2fsck", &["-fn", &image.display().to_string()]);
    world.assert_clean();
}

#[test]
fn trees_that_chance_changes_are_what_they_should_be() {
    let world = World::new();
    let guest = three_places(&world, "trees");
    let count = number("SPAN_FILES_OPERATIONS", 150);
    let mut digests = Vec::new();
    for (place, tree) in [("/p", "plain/t"), ("/m", ""), ("/e", "")] {
        let path = format!("{place}/t");
        on(&guest, "a", &format!("mkdir {path}"));
        let seen = by_chance(&guest, TREES, &path, count, "");
        println!("{place}: {seen}");
        let digest = seen.lines().last().expect("a line").to_owned();
        if !tree.is_empty() {
            let path = world.path("work").join(tree).display().to_string();
            assert_eq!(host("/usr/bin/python3", &["-c", TREES, &path]), digest);
        }
        on(&guest, "c", "echo 3 >/proc/sys/vm/drop_caches");
        let argv = ["/usr/bin/python3", "-c", TREES, &path];
        let again = guest.exec_on(&["--node", "c"], &argv);
        assert_eq!(again.expect(0).text(), digest);
        digests.push(digest);
    }
    // The same happened everywhere.
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    on(&guest, "c", "umount /e");
    guest.down().expect(0);
    let image = world.path("work").join("image");
    host("e2fsck", &["-fn", &image.display().to_string()]);
    world.assert_clean();
}

/// A program from the directory that `SPAN_FILE_TOOLS` names.
fn tool(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os("SPAN_FILE_TOOLS").map(|tools| PathBuf::from(tools).join(name));
    let found = found.filter(|path| path.is_file());
    if found.is_none() {
        span_tests::not_tested(&format!(
            "{name} on hostfs and on disks: SPAN_FILE_TOOLS names the directory that `cargo install {name}` put it into"
        ));
    }
    found
}

const FSX: &str = "flen = 262144\n[opsize]\nmax = 65536\n[weights]\nclose_open = 1\ninvalidate = 1\n\
    truncate = 1\nfsync = 1\nfdatasync = 1\npunch_hole = 1\nposix_fallocate = 1\nsendfile = 1\nposix_fadvise = 1\n\
    copy_file_range = 1\n";

#[test]
fn fsx_finds_nothing() {
    let Some(fsx) = tool("fsx") else { return };
    let world = World::new();
    let (program, options) = (world.path("work").join("fsx"), world.file("fsx.toml", FSX));
    fs::copy(fsx, &program).expect("a program");
    let guest = three_places(&world, "fsx");
    let (before, log) = (guest.status(), guest.logs());
    let count = number("SPAN_FILES_OPERATIONS", 1000).to_string();
    let seed = number("SPAN_FILES_SEED", 1).to_string();
    for place in ["/p/x", "/m/x", "/e/x"] {
        let (program, options) = (program.display(), options.display());
        let line = format!(
            "cd /tmp; taskset -c 0 {program} -f {options} -N {count} -S {seed} {place} 2>&1"
        );
        let outcome = guest.exec_within(&["sh", "-c", &line], PROGRAM_S_MAX);
        assert_eq!(outcome.expect(0).text(), "All operations completed A-OK!");
    }
    assert!(served(&guest.status(), "b") > served(&before, "b") + 1000);
    guest.assert_quiet_since(&log);
    guest.down().expect(0);
    world.assert_clean();
}

const PJDFSTEST: &str = "[features]\nposix_fallocate = {}\nutime_now = {}\nutimensat = {}\n\
    [settings]\nnaptime = 0.01\n[dummy_auth]\nentries = [ [\"daemon\", \"daemon\"], [\"bin\", \"bin\"] ]\n";

#[test]
fn pjdfstest_finds_what_is_documented() {
    let Some(pjdfstest) = tool("pjdfstest") else {
        return;
    };
    let world = World::new();
    let program = world.path("work").join("pjdfstest");
    fs::copy(pjdfstest, &program).expect("a program");
    let options = world.file("pjdfstest.toml", PJDFSTEST);
    let guest = three_places(&world, "pjd");
    for place in ["/p", "/m", "/e"] {
        if place == "/p" && !nix::unistd::geteuid().is_root() {
            span_tests::not_tested(
                "pjdfstest on hostfs without mapped owners: only root's node can give files away",
            );
            continue;
        }
        let before = guest.status();
        let (program, options) = (program.display(), options.display());
        let line = format!("taskset -c 0 {program} -c {options} -p {place} 2>&1");
        let outcome = guest.exec_within(&["sh", "-c", &line], PROGRAM_S_MAX);
        let said = outcome.text();
        assert!(said.contains("398 total"), "{said}");
        let failed = said.lines().filter(|line| line.ends_with("FAILED"));
        let failed = failed.filter(|line| {
            // The path on the host is longer than that in the guest; what is made belongs to who runs the node.
            let documented = match place {
                "/e" => false,
                "/m" => line.contains("::enametoolong_path "),
                _ => {
                    line.contains("::enametoolong_path ")
                        || line.contains("::uid_gid_eq_euid_egid ")
                }
            };
            !documented
        });
        assert_eq!(failed.collect::<Vec<_>>(), [""; 0], "{place}");
        // Files that live for a moment reach a disk only if it is asked for; directories of the host's are always asked.
        guest.sh("sync");
        let least = if place == "/e" { 1 } else { 1000 };
        let calls = served(&guest.status(), "b") - served(&before, "b");
        assert!(calls >= least, "{place}: {calls} calls of node b's host");
    }
    guest.down().expect(0);
    world.assert_clean();
}

/// What `stress-ng` does to files.
const STRESS: &str = "--chmod 1 --dentry 1 --dentries 64 --dir 1 --dup 1 --fallocate 1 --fallocate-bytes 4M --flock 1 \
    --fpunch 1 --hdd 1 --hdd-bytes 4M --iomix 1 --iomix-bytes 2M --lockf 1 --readahead 1 --readahead-bytes 2M \
    --rename 1 --seek 1 --seek-size 2M --sync-file 1 --sync-file-bytes 2M --utime 1";

/// These remove 8192 names in the end, however few they had time to make: each is a call to the node that has the
/// files, and may take milliseconds on a busy machine.
const STRESS_THAT_ENDS_LATE: &str = "--link 1 --symlink 1";

#[test]
fn stress_on_files_of_another_node() {
    const LATE_S_MAX: u64 = 300;
    let seconds = number("SPAN_FILES_STRESS_S", 2);
    let stressors = match seconds {
        0..60 => STRESS.to_string(),
        _ => format!("{STRESS} {STRESS_THAT_ENDS_LATE}"),
    };
    let limit = seconds + LATE_S_MAX;
    let world = World::lasting(std::time::Duration::from_secs(3 * limit));
    let guest = three_places(&world, "stress");
    for place in ["/p", "/m", "/e"] {
        let (before, log) = (guest.status(), guest.logs());
        let line =
            format!("stress-ng --temp-path {place} {stressors} --verify --timeout {seconds} 2>&1");
        let outcome = guest.exec_within(&["sh", "-c", &line], limit);
        let said = outcome.expect(0).text();
        assert!(said.contains("successful run completed"), "{said}");
        let after = guest.status();
        after.assert_moved(&before);
        let crossed = served(&after, "b") - served(&before, "b");
        assert!(crossed > 20, "b was asked {crossed} times at {place}");
        guest.assert_quiet_since(&log);
    }
    on(&guest, "c", "umount /e");
    guest.down().expect(0);
    let image = world.path("work").join("image");
    host("e2fsck", &["-fn", &image.display().to_string()]);
    world.assert_clean();
}
