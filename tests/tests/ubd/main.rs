//! Disks: files of every node's host, used from every node; what they may be; what is durable; what goes wrong.

mod durable;

use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};
use span_tests::{Detached, Management, SHORT_S_MAX, Spawned, Up, World, on, served, wait_until};
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const NODES: [&str; 3] = ["a", "b", "c"];
const MIB: usize = 1 << 20;

/// A program of this host's.
#[track_caller]
fn host(program: &str, arguments: &[&str]) -> (i32, String) {
    let done = Command::new(program)
        .args(arguments)
        .env("PATH", span_tests::PATH)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = [done.stdout, done.stderr].concat();
    (
        done.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// A file of zeros that takes no space.
fn sparse(world: &World, name: &str, bytes: usize) -> PathBuf {
    let path = world.file(name, "");
    let file = OpenOptions::new().write(true).open(&path);
    file.and_then(|file| file.set_len(bytes as u64))
        .expect("a size");
    path
}

/// Bytes that are not the same twice.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as u32
    };
    let mut all: Vec<u8> = (0..bytes.div_ceil(4))
        .flat_map(|_| next().to_le_bytes())
        .collect();
    all.truncate(bytes);
    all
}

fn sum(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Waits until the kernel has said something; in how many lines.
#[track_caller]
fn logged(guest: &Detached<'_>, what: &str) -> usize {
    let lines = || {
        guest
            .logs()
            .lines()
            .filter(|line| line.contains(what))
            .count()
    };
    let said = wait_until(Duration::from_secs(SHORT_S_MAX), || lines() > 0);
    assert!(said, "{what} is not in: {}", guest.logs());
    lines()
}

/// A guest on three nodes with these disks.
fn with_disks<'w>(world: &'w World, disks: &[String]) -> Up<'w> {
    let option = |up: Up<'w>, disk: &String| up.option("--ubd").option(disk);
    disks.iter().fold(Up::three(world), option)
}

const FIO: &str = "fio --name=x --thread --size=6m --bs=4k --rw=randwrite --verify=crc32c --verify_fatal=1 \
    --verify_state_save=0 --ioengine=psync --minimal --end_fsync=1";

#[test]
fn what_one_node_writes_to_a_disk_of_another_a_third_reads() {
    let world = World::new();
    let images = NODES.map(|node| sparse(&world, node, 24 * MIB));
    let disks = [0, 1, 2].map(|n| format!("{}:{}", NODES[n], images[n].display()));
    let guest = with_disks(&world, &disks).detach("disks");
    for (number, owner) in NODES.into_iter().enumerate() {
        let (writer, reader) = (NODES[(number + 1) % 3], NODES[(number + 2) % 3]);
        let (disk, place) = (["ubda", "ubdb", "ubdc"][number], format!("/m/{owner}"));
        let before = guest.status();
        let script = format!(
            "mkfs.ext4 -q /dev/{disk} && mkdir -p {place} && mount /dev/{disk} {place} && cd {place} && \
             {FIO} --filename=f --do_verify=0 >/dev/null && sync && echo 3 >/proc/sys/vm/drop_caches"
        );
        on(&guest, writer, &script);
        let between = guest.status();
        on(
            &guest,
            reader,
            &format!("cd {place} && {FIO} --filename=f --verify_only >/dev/null"),
        );
        let after = guest.status();
        for (from, to) in [(&before, &between), (&between, &after)] {
            let crossed = served(to, owner) - served(from, owner);
            assert!(crossed > 50, "{owner} was asked {crossed} times");
        }
        // Its own node asks nobody, once no file system writes to it of its own accord.
        on(&guest, reader, &format!("umount {place}"));
        let before = guest.status();
        let script = format!("dd if=/dev/{disk} of=/dev/null bs=1M iflag=direct 2>/dev/null");
        on(&guest, owner, &script);
        let crossed = served(&guest.status(), owner) - served(&before, owner);
        assert!(crossed < 20, "{owner} was asked {crossed} times");
    }
    guest.down().expect(0);
    for image in images {
        let image = image.display().to_string();
        let (code, said) = host("e2fsck", &["-fn", &image]);
        assert_eq!(code, 0, "{said}");
    }
    world.assert_clean();
}

#[test]
fn sixteen_disks_of_all_kinds() {
    let world = World::new();
    let odd = noise(1_000_001);
    let odd_file = world.file("odd", &odd);
    let constant = world.file("constant", noise(MIB));
    let archive = world.path("work").join("archive.tar");
    let (code, said) = host(
        "tar",
        &[
            "-C",
            &world.path("work").display().to_string(),
            "-cf",
            &archive.display().to_string(),
            "odd",
        ],
    );
    assert_eq!(code, 0, "{said}");
    let scratch = sparse(&world, "scratch", 16 * MIB);
    let mut disks = vec![
        format!("b:{},ro", constant.display()),
        format!("c:{},sync", odd_file.display()),
        format!("b:{},ro,shared", archive.display()),
        format!("c:{}", scratch.display()),
    ];
    disks.extend((4..16).map(|n| {
        let node = NODES[n % 3];
        format!(
            "{node}:{}",
            sparse(&world, &format!("more-{n}"), MIB).display()
        )
    }));
    let guest = with_disks(&world, &disks).detach("kinds");
    assert_eq!(guest.sh("ls /dev/ubd? | wc -l"), "16");

    // One that is only read.
    assert_eq!(on(&guest, "c", "blockdev --getro /dev/ubda"), "1");
    let refused = guest.exec_on(
        &["--node", "c"],
        &[
            "sh",
            "-c",
            "echo x >/dev/ubda || echo x | dd of=/dev/ubda conv=notrunc,fsync",
        ],
    );
    assert_ne!(refused.code, 0);
    assert_eq!(sum(&fs::read(&constant).expect("a file")), sum(&noise(MIB)));

    // One of whatever size: the last sector is filled up.
    assert_eq!(on(&guest, "a", "blockdev --getsize64 /dev/ubdb"), "1000448");
    let seen = on(
        &guest,
        "b",
        "head -c 1000001 /dev/ubdb | sha256sum; tail -c 447 /dev/ubdb | od -An -tx1 | sort -u",
    );
    assert_eq!(seen.split_whitespace().next(), Some(sum(&odd).as_str()));
    assert!(
        seen.lines().skip(1).all(|line| line
            .split_whitespace()
            .all(|byte| byte == "00" || byte == "*")),
        "{seen}"
    );

    // An archive.
    let seen = on(&guest, "a", "tar -xOf /dev/ubdc odd | sha256sum");
    assert_eq!(seen.split_whitespace().next(), Some(sum(&odd).as_str()));

    // Swap.
    let seen = on(
        &guest,
        "a",
        "mkswap /dev/ubdd >/dev/null && swapon /dev/ubdd && tail -n1 /proc/swaps && swapoff /dev/ubdd",
    );
    assert!(seen.starts_with("/dev/ubdd"), "{seen}");

    // What is discarded takes no space any more.
    let blocks = || fs::metadata(&scratch).expect("a file").blocks();
    on(
        &guest,
        "b",
        "dd if=/dev/urandom of=/dev/ubdd bs=1M count=16 conv=fsync 2>/dev/null",
    );
    assert!(blocks() * 512 >= 16 * MIB as u64, "{} blocks", blocks());
    on(&guest, "a", "blkdiscard /dev/ubdd");
    assert!(blocks() < 64, "{} blocks", blocks());
    assert_eq!(
        fs::metadata(&scratch).expect("a file").len(),
        16 * MIB as u64
    );
    let seen = on(
        &guest,
        "c",
        "cmp -n 16777216 /dev/ubdd /dev/zero && echo zeros",
    );
    assert_eq!(seen, "zeros");
    guest.down().expect(0);
    world.assert_clean();
}

/// Writes sectors here and there past the page cache, and reads all of it in long pieces.
const SECTORS: &str = "import hashlib,mmap,os,sys\n\
    f=os.open(sys.argv[1],os.O_RDWR|os.O_DIRECT)\nsize=os.lseek(f,0,2)\nm=mmap.mmap(-1,65536)\n\
    for word in sys.argv[2:]:\n \
      at,count,byte=map(int,word.split(','))\n m.seek(0)\n m.write(bytes([byte])*count*512)\n \
      v=memoryview(m)[:count*512]\n assert os.pwritev(f,[v],at*512)==count*512\n v.release()\n\
    os.fsync(f)\nh=hashlib.sha256()\nat=0\n\
    while at<size:\n \
      v=memoryview(m)[:min(65536,size-at)]\n n=os.preadv(f,[v],at)\n h.update(v[:n])\n v.release()\n at+=n\n\
    print(h.hexdigest())";

#[track_caller]
fn sectors(guest: &Detached<'_>, node: &str, disk: &str, writes: &[String]) -> String {
    let mut argv = vec!["/usr/bin/python3", "-c", SECTORS, disk];
    argv.extend(writes.iter().map(String::as_str));
    guest.exec_on(&["--node", node], &argv).expect(0).text()
}

#[test]
fn what_is_written_to_a_cow_file_is_what_other_programs_find_there() {
    let world = World::new();
    let mut model = noise(3 * MIB + 512);
    let base = world.file("base", &model);
    let (cow, made) = (
        world.path("work").join("cow"),
        world.path("work").join("made"),
    );
    let shown = |path: &Path| path.display().to_string();
    let (code, said) = host("uml_mkcow", &["-f", &shown(&made), &shown(&base)]);
    assert_eq!(code, 0, "{said}");
    let disks = [
        format!("b:{},cow={}", shown(&base), shown(&cow)),
        format!("c:{}", shown(&made)),
    ];
    let guest = with_disks(&world, &disks).detach("cow");
    assert_eq!(sectors(&guest, "a", "/dev/ubda", &[]), sum(&model));
    assert_eq!(sectors(&guest, "a", "/dev/ubdb", &[]), sum(&model));
    // From all nodes: single sectors, runs, the last one, and some of them twice.
    let last = model.len() / 512 - 1;
    let mut batches = NODES.map(|node| (node, Vec::new()));
    for turn in 0..90usize {
        let count = 1 + turn * 7 % 40;
        let at = match turn {
            0 => last,
            _ => turn * 797 % (last - 41),
        };
        let count = if turn == 0 { 1 } else { count };
        batches[turn % 3].1.push((at, count, turn as u8));
    }
    for (node, writes) in batches {
        let words: Vec<String> = writes
            .iter()
            .map(|(at, count, byte)| format!("{at},{count},{byte}"))
            .collect();
        for (at, count, byte) in writes {
            model[at * 512..(at + count) * 512].fill(byte);
        }
        assert_eq!(
            sectors(&guest, node, "/dev/ubda", &words),
            sum(&model),
            "{node}"
        );
    }
    assert_eq!(
        sum(&fs::read(&base).expect("a file")),
        sum(&noise(model.len()))
    );
    guest.down().expect(0);

    let merged = world.path("work").join("merged");
    let (code, said) = host(
        "uml_moo",
        &["-b", &shown(&base), &shown(&cow), &shown(&merged)],
    );
    assert_eq!(code, 0, "{said}");
    assert_eq!(
        sum(&fs::read(&merged).expect("a file")[..model.len()]),
        sum(&model)
    );

    // A COW file alone knows what it belongs to; one whose backing file has changed belongs to nothing, and neither
    // does half of one.
    let half = world.file("half", &fs::read(&cow).expect("a file")[..100]);
    let guest = with_disks(&world, &[format!("b:{}", shown(&cow))]).detach("again");
    assert_eq!(sectors(&guest, "c", "/dev/ubda", &[]), sum(&model));
    let console = Management::new(&world, &guest);
    fs::File::open(&base)
        .and_then(|file| file.set_modified(std::time::UNIX_EPOCH))
        .expect("another time");
    for (number, file) in [("b", &made), ("c", &half)] {
        let wrong = console.ask(&format!("config ubd{number}=c:{}", shown(file)));
        assert!(wrong.is_err_and(|why| why.contains("Error -22")));
        assert_eq!(logged(&guest, &format!("ubd{number}: Can't open")), 1);
    }
    logged(&guest, "mtime mismatch");
    logged(&guest, "failed to read V3 header");
    assert_eq!(guest.sh("ls /dev/ubd? | wc -l"), "1");
    assert_eq!(
        sum(&fs::read(&half).expect("a file")),
        sum(&fs::read(&cow).expect("a file")[..100])
    );
    drop(console);
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn disks_of_all_nodes_come_and_go() {
    let world = World::new();
    let contents = noise(MIB);
    let file = world.file("late", &contents);
    let guest = Up::three(&world).detach("late");
    let console = Management::new(&world, &guest);
    for node in NODES {
        let name = format!("{node}:{}", file.display());
        console
            .ask(&format!("config ubda={name}"))
            .expect("no error");
        assert_eq!(console.ask("config ubda").expect("a name"), name);
        let before = guest.status();
        for reader in NODES {
            let seen = on(
                &guest,
                reader,
                "dd if=/dev/ubda bs=64k iflag=direct 2>/dev/null | sha256sum",
            );
            assert_eq!(
                seen.split_whitespace().next(),
                Some(sum(&contents).as_str())
            );
        }
        let crossed = served(&guest.status(), node) - served(&before, node);
        assert!(crossed > 20, "{node} was asked {crossed} times");
        console.ask("remove ubda").expect("no error");
        assert_eq!(guest.sh("test -b /dev/ubda; echo $?"), "1");
    }
    for (name, error) in [
        ("d:/x".to_string(), "Error -113"),
        ("b:/no/such".into(), "Error -2"),
        (format!("b:{}", world.path("work").display()), "Error -21"),
    ] {
        let wrong = console.ask(&format!("config ubda={name}"));
        assert!(
            wrong.as_ref().is_err_and(|why| why.contains(error)),
            "{name}: {wrong:?}"
        );
        assert_eq!(logged(&guest, &format!("Can't open \"{name}\"")), 1);
    }
    // Nothing of what went wrong is left.
    console
        .ask(&format!("config ubdar=c:{}", file.display()))
        .expect("no error");
    assert_eq!(on(&guest, "a", "blockdev --getro /dev/ubda"), "1");
    drop(console);
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn a_file_that_shrinks_or_may_not_grow_is_an_error() {
    let world = World::new();
    let shrinks = world.file("shrinks", noise(4 * MIB));
    let grows = sparse(&world, "grows", 3 << 30);
    let disks = [
        format!("b:{}", shrinks.display()),
        format!("c:{}", grows.display()),
    ];
    let limit = format!("--fsize={}", 2u64 << 30);
    let guest = with_disks(&world, &disks)
        .through(&["prlimit", &limit])
        .detach("errors");
    let read = "dd if=/dev/ubda of=/dev/null bs=4k count=1 iflag=direct";
    let file = OpenOptions::new().write(true).open(&shrinks);
    file.and_then(|file| file.set_len(MIB as u64))
        .expect("a size");
    for node in NODES {
        on(&guest, node, read);
        let seen = on(&guest, node, &format!("{read} skip=700 2>&1 || true"));
        assert!(seen.contains("Input/output error"), "{node}: {seen}");

        let write = "dd if=/dev/zero of=/dev/ubdb bs=4k count=1";
        on(&guest, node, &format!("{write} oflag=direct"));
        for (how, why) in [
            ("oflag=direct", "No space left on device"),
            // The page cache knows no other error.
            ("conv=fsync,notrunc", "Input/output error"),
        ] {
            let seen = on(
                &guest,
                node,
                &format!("{write} seek=600000 {how} 2>&1 || true"),
            );
            assert!(seen.contains(why), "{node}: {seen}");
        }
    }
    logged(&guest, "I/O error, dev ubda");
    logged(&guest, "critical space allocation error, dev ubdb");
    guest.down().expect(0);
    world.assert_clean();
}

/// A daemon of this machine's that exports these directories; where it listens.
fn daemon(world: &World, exports: &[&str]) -> (Spawned, String) {
    let mut command = world.command("node");
    command.args(["serve", "--listen", "127.0.0.1:0", "--token-file"]);
    command.arg(world.path("work").join("token"));
    command
        .arg("--state-dir")
        .arg(world.path("work").join("state"));
    for export in exports {
        command.args(["--export", export]);
    }
    let mut daemon = Spawned::start(&mut command);
    daemon.wait_for("listening on ", Duration::from_secs(20));
    daemon.wait_for("\n", Duration::from_secs(20));
    let said = String::from_utf8_lossy(&daemon.stdout()).into_owned();
    let address = said.trim().rsplit(' ').next().expect("an address");
    (daemon, address.to_string())
}

#[test]
fn a_daemon_serves_what_it_exports() {
    let world = World::new();
    span_tests::restrict(&world.file("token", "0123456789abcdef0123456789abcdef\n"));
    let (open, constant) = (
        world.path("work").join("open"),
        world.path("work").join("constant"),
    );
    for directory in [&open, &constant] {
        fs::create_dir(directory).expect("a directory");
        fs::write(directory.join("disk"), noise(MIB)).expect("a file");
    }
    let outside = world.file("outside", noise(MIB));
    std::os::unix::fs::symlink(&outside, open.join("link")).expect("a link");
    let (shown, read_only) = (open.display(), format!("{},ro", constant.display()));
    let (daemon, address) = daemon(&world, &[&shown.to_string(), &read_only]);
    let nodes = format!("a,b={address}");
    let up = |disk: &str| {
        let token = world.path("work").join("token");
        Up::on(&world, &nodes)
            .option("--token-file")
            .option(token)
            .options(&["--ubd", disk])
    };
    for (disk, why) in [
        (
            format!("b:{}", outside.display()),
            "no directory that this node exports",
        ),
        (format!("b:{shown}/none"), "cannot be read: No such file"),
    ] {
        let outcome = up(&disk).run(&["true"]);
        assert_ne!(outcome.code, 0);
        let said = outcome
            .stderr
            .lines()
            .filter(|line| line.starts_with("coordinator: "));
        let said: Vec<&str> = said.collect();
        assert!(
            said.len() == 1 && said[0].contains(why),
            "{}",
            outcome.stderr
        );
    }
    let guest = up(&format!("b:{shown}/disk")).detach("served");
    let console = Management::new(&world, &guest);
    let written = "echo text | dd of=/dev/ubda conv=notrunc,fsync 2>/dev/null; head -c 5 /dev/ubda";
    assert_eq!(on(&guest, "a", written), "text");
    assert!(
        fs::read(open.join("disk"))
            .expect("a file")
            .starts_with(b"text\n")
    );
    console
        .ask(&format!("config ubdb=b:{}/disk", constant.display()))
        .expect("no error");
    assert_eq!(on(&guest, "a", "blockdev --getro /dev/ubdb"), "1");
    for (name, error) in [
        (format!("b:{}", outside.display()), "Error -1"),
        (format!("b:{shown}/link"), "Error -40"),
        (format!("b:{shown}/../outside"), "Error -1"),
    ] {
        let wrong = console.ask(&format!("config ubdc={name}"));
        assert!(
            wrong.as_ref().is_err_and(|why| why == error),
            "{name}: {wrong:?}"
        );
    }
    drop(console);
    guest.down().expect(0);
    daemon.signal(Signal::SIGTERM);
    daemon.wait(Duration::from_secs(20)).expect(0);
    world.assert_clean();
}

#[test]
fn the_root_is_an_image_of_any_node() {
    let world = World::new();
    let tree = world.path("work").join("tree");
    let hello = world
        .compile(
            "hello",
            "#include <stdio.h>\nint main(void) { puts(\"of the image\"); }",
        )
        .expect("a program");
    fs::create_dir(&tree).expect("a directory");
    fs::copy(&hello, tree.join("hello")).expect("a program");
    let image = sparse(&world, "root", 16 * MIB);
    let (from, to) = (tree.display().to_string(), image.display().to_string());
    let (code, said) = host("mkfs.ext4", &["-q", "-d", &from, &to]);
    assert_eq!(code, 0, "{said}");
    let outcome = Up::three(&world)
        .options(&["--root", &format!("c:{to}")])
        .run(&["/hello"]);
    assert_eq!(outcome.expect(0).text(), "of the image");
    let (code, said) = host("e2fsck", &["-fn", &to]);
    assert_eq!(code, 0, "{said}");
    world.assert_clean();
}
