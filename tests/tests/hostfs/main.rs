//! Directories of nodes' hosts in the guest: whose they are, what is written to them, and that nothing beside them is
//! reached.

mod confined;

use span_tests::{Owner, Up, World, on, python, served, text, wait_until};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

/// `nobody`.
const USER: u32 = 65534;

const NODES: [&str; 3] = ["a", "b", "c"];

/// A directory for each node, in `work/dirs`, which is where a guest mounts them below `/h`.
fn directories(world: &World) -> [PathBuf; 3] {
    NODES.map(|node| {
        let path = world.path("work").join("dirs").join(node);
        fs::create_dir_all(&path).expect("a directory");
        fs::write(path.join("name"), format!("of {node}\n")).expect("a file");
        path
    })
}

fn three<'w>(world: &'w World, directories: &[PathBuf; 3]) -> Up<'w> {
    let mount = |up: Up<'w>, (node, path): (&str, &PathBuf)| {
        let value = format!("{node}:{}=/h/{node}", path.display());
        up.option("--hostfs").option(value)
    };
    NODES
        .into_iter()
        .zip(directories)
        .fold(Up::three(world), mount)
}

/// What is done on every node to the directory of every node, in `$d`; the last line is the one that counts.
const EVERYTHING: &str = "set -e; cd $d; cat name; mkdir m; cd m; \
    echo text >f; chmod 640 f; touch -d @1000000000.5 f; ln f g; ln -s ../name s; mkfifo p; mkdir e; \
    test \"$(readlink s)\" = ../name; test \"$(cat s)\" = \"$(cat ../name)\"; \
    test \"$(stat -c '%a %h %Y %s %F' f)\" = '640 2 1000000000 5 regular file'; \
    test \"$(stat -c %F p)\" = fifo; mv g e/h; mv -n e/h f; test -e e/h; rm e/h; rmdir e; \
    truncate -s 2 f; test \"$(cat f)\" = te; printf xt >>f; test \"$(cat f)\" = text; sync -d f; sync f; \
    rm f s p; cd ..; rmdir m; test \"$(ls)\" = name; stat -f -c %T . ";

#[test]
fn every_node_uses_the_directories_of_all() {
    let world = World::new();
    let directories = directories(&world);
    let guest = three(&world, &directories).detach("all");
    for node in NODES {
        for owner in NODES {
            let before = guest.status();
            let seen = on(&guest, node, &format!("d=/h/{owner}; {EVERYTHING}"));
            assert_eq!(seen, format!("of {owner}\nhostfs"), "{node}");
            let after = guest.status();
            let crossed = served(&after, owner) - served(&before, owner);
            match node == owner {
                true => assert!(crossed < 20, "{node} asked others {crossed} times"),
                false => assert!(crossed > 60, "{node} asked {owner} {crossed} times"),
            }
        }
    }
    let mounts = guest
        .sh("grep -c 'none /h/[abc] hostfs rw,relatime,[abc]:/.*/dirs/[abc] 0 0' /proc/mounts");
    assert_eq!(mounts, "3");
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn what_either_side_writes_the_other_sees() {
    let world = World::new();
    let directories = directories(&world);
    let guest = three(&world, &directories).detach("both");
    for (number, (node, directory)) in NODES.into_iter().zip(&directories).enumerate() {
        let writer = NODES[(number + 1) % 3];
        let reader = NODES[(number + 2) % 3];
        let script = format!(
            "cd /h/{node}; seq 100000 >numbers; chmod 604 numbers; touch -d @1234567890 numbers; \
             ln -s numbers link; ln numbers again"
        );
        on(&guest, writer, &script);
        let metadata = fs::metadata(directory.join("numbers")).expect("a file");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o604);
        assert_eq!((metadata.mtime(), metadata.nlink()), (1_234_567_890, 2));
        let wanted: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
        assert!(text(directory.join("link")) == wanted);

        fs::write(directory.join("numbers"), wanted.replace('1', "x")).expect("a file");
        fs::set_permissions(directory.join("numbers"), fs::Permissions::from_mode(0o640))
            .expect("permissions");
        fs::rename(directory.join("again"), directory.join("other")).expect("a file");
        let script =
            format!("cd /h/{node}; stat -c %a numbers; ls; head -n1 numbers; grep -c x other");
        assert_eq!(
            on(&guest, reader, &script),
            "640\nlink\nname\nnumbers\nother\nx\n40952"
        );
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn what_the_host_replaces_is_seen_though_it_is_in_use() {
    const SEEN_S_MAX: u64 = 5;
    let world = World::new();
    let directories = directories(&world);
    // Seen below the overlay that is the guest's root.
    let below = world.path("work").join("below");
    fs::create_dir(&below).expect("a directory");
    let files = ["replaced", "longer", "removed", "copied"];
    let places: Vec<(String, PathBuf)> = NODES
        .into_iter()
        .zip(&directories)
        .map(|(node, path)| (format!("/h/{node}"), path.clone()))
        .chain([(below.display().to_string(), below)])
        .collect();
    for (_, path) in &places {
        for file in files {
            fs::write(path.join(file), "old\n").expect("a file");
        }
    }
    let guest = three(&world, &directories).detach("replaced");
    // The last of a guest's changes: what it copied up is its own.
    on(&guest, "a", &format!("echo mine >>{}/copied", places[3].0));
    for (place, _) in &places {
        let hold = format!(
            "cd {place}; cat replaced longer removed; exec 3<replaced 4<longer 5<removed; \
                            sleep 1000 >/dev/null 2>&1 &"
        );
        let seen = on(&guest, "b", &hold);
        assert_eq!(seen, "old\nold\nold", "{place}");
    }
    for (_, path) in &places {
        for file in ["replaced", "copied"] {
            fs::write(path.join("fresh"), "another one\n").expect("a file");
            fs::rename(path.join("fresh"), path.join(file)).expect("a file in its place");
        }
        let longer = fs::File::options().append(true).open(path.join("longer"));
        std::io::Write::write_all(&mut longer.expect("a file"), b"and new\n").expect("a write");
        fs::remove_file(path.join("removed")).expect("no file");
    }
    for (place, path) in &places {
        let inode = fs::metadata(path.join("replaced")).expect("a file").ino();
        let wanted = format!("another one\nold\nand new\n{inode} 12\ngone");
        for node in NODES {
            let script = format!(
                "cd {place}; cat replaced longer; stat -c '%i %s' replaced; cat removed 2>/dev/null || echo gone"
            );
            let limit = std::time::Duration::from_secs(SEEN_S_MAX);
            let seen = wait_until(limit, || on(&guest, node, &script) == wanted);
            assert!(seen, "{node}: {}", on(&guest, node, &script));
        }
    }
    let copied = format!("cat {}/copied", places[3].0);
    assert_eq!(on(&guest, "c", &copied), "old\nmine");
    guest.down().expect(0);
    world.assert_clean();
}

/// Each line is written on one node and read on the next, through one mount of a third.
#[test]
fn all_nodes_see_one_file() {
    let world = World::new();
    let directories = directories(&world);
    let guest = three(&world, &directories).detach("one");
    let script = "import os,mmap\n\
        f=os.open('/h/c/log',os.O_RDWR|os.O_CREAT)\nos.ftruncate(f,8192)\nm=mmap.mmap(f,8192)\n\
        for n in range(90):\n \
          os.sched_setaffinity(0,{n%3})\n os.pwrite(f,b'%8d'%n,n*8)\n m[4096:4104]=b'%8d'%n\n \
          os.sched_setaffinity(0,{(n+1)%3})\n \
          assert os.pread(f,8,n*8)==b'%8d'%n,n\n \
          g=os.open('/h/c/log',os.O_RDONLY)\n assert os.pread(g,8,n*8)==b'%8d'%n,n\n \
          assert os.pread(g,8,4096)==b'%8d'%n\n os.close(g)\n\
        m.flush()\nos.fsync(f)\nprint('one')";
    let before = guest.status();
    assert_eq!(python(&guest, "a", script), "one");
    let after = guest.status();
    after.assert_moved(&before);
    assert!(served(&after, "c") > served(&before, "c") + 60);
    let bytes = fs::read(directories[2].join("log")).expect("a file");
    let lines: Vec<u8> = (0..90)
        .flat_map(|n| format!("{n:8}").into_bytes())
        .collect();
    assert_eq!(bytes.len(), 8192);
    assert_eq!(bytes[..lines.len()], lines);
    assert_eq!(&bytes[4096..4104], b"      89");
    guest.down().expect(0);
    world.assert_clean();
}

/// Mounts each line of its input in turn and prints how that went: by mount(2), and by fsconfig(2).
const MOUNT: &str = "import ctypes,errno,os,sys\n\
    c=ctypes.CDLL(None,use_errno=True)\nos.makedirs('/m',exist_ok=True)\n\
    def old(what):\n \
      r=c.mount(b'none',b'/m',b'hostfs',0,what)\n e=ctypes.get_errno()\n \
      if r==0: os.system('umount /m')\n \
      return 'mounted' if r==0 else errno.errorcode[e]\n\
    def new(what):\n \
      f=c.syscall(430,b'hostfs',0)\n \
      r=c.syscall(431,f,0,what,None,0) or c.syscall(431,f,6,None,None,0)\n e=ctypes.get_errno()\n os.close(f)\n \
      return 'mounted' if r==0 else errno.errorcode[e]\n\
    for line in sys.argv[1].split('\\n'):\n \
      what=line.encode()\n print(old(what),new(what) if len(what)<256 and b'/' in what else '')";

#[test]
fn a_hundred_thousand_names() {
    const NAMES: usize = 100_000;
    let world = World::new();
    let directories = directories(&world);
    let many = directories[1].join("many");
    fs::create_dir(&many).expect("a directory");
    for number in 0..NAMES {
        fs::File::create(many.join(format!("file-{number}"))).expect("a file");
    }
    let guest = three(&world, &directories).detach("many");
    let script = "import os\nnames=os.listdir('/h/b/many')\n\
                  print(len(names),sum(int(n[5:]) for n in set(names)))";
    for node in ["b", "c"] {
        let sum = NAMES * (NAMES - 1) / 2;
        assert_eq!(python(&guest, node, script), format!("{NAMES} {sum}"));
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn a_file_of_five_gigabytes_with_holes() {
    const SIZE: u64 = 5 << 30;
    let world = World::new();
    let directories = directories(&world);
    let guest = three(&world, &directories).detach("holes");
    for (node, owner) in [("a", "b"), ("b", "b"), ("c", "a")] {
        let file = directories[if owner == "a" { 0 } else { 1 }].join("sparse");
        on(&guest, node, &format!("truncate -s 5G /h/{owner}/sparse"));
        assert_eq!(fs::metadata(&file).expect("a file").len(), SIZE);
        let host = fs::File::options().write(true).open(&file).expect("a file");
        host.write_all_at(b"far", SIZE - 3).expect("a write");
        let script = format!(
            "import os\nf=os.open('/h/{owner}/sparse',os.O_RDWR)\ns=os.fstat(f)\n\
             assert s.st_size==5<<30,s\nassert s.st_blocks<100,s\n\
             assert os.pread(f,9,(5<<30)-3)==b'far'\nassert os.pread(f,4096,1<<32)==bytes(4096)\n\
             os.pwrite(f,b'more',5<<30)\nos.pwrite(f,b'hole',1<<32)\nprint('sparse')"
        );
        assert_eq!(python(&guest, node, &script), "sparse");
        let metadata = fs::metadata(&file).expect("a file");
        assert_eq!(metadata.len(), SIZE + 4);
        assert!(metadata.blocks() < 100, "{metadata:?}");
        let mut bytes = [0; 7];
        let host = fs::File::open(&file).expect("a file");
        host.read_exact_at(&mut bytes, SIZE - 3).expect("a read");
        assert_eq!(&bytes, b"farmore");
        fs::remove_file(&file).expect("a file");
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn names_that_are_too_long() {
    let world = World::new();
    let directories = directories(&world);
    let guest = three(&world, &directories).detach("long");
    let script = "import os,errno\n\
        def why(call):\n \
          try: call()\n except OSError as e: return errno.errorcode[e.errno]\n\
        print(why(lambda: open('/h/b/'+'x'*256,'w')))\n\
        os.chdir('/h/b')\nfor n in range(30):\n \
          e=why(lambda: os.mkdir('y'*200)) or why(lambda: os.chdir('y'*200))\n \
          if e: break\nprint(e, n>10)\nos.system('rm -r /h/b/yy*')\nprint(os.listdir('/h/b'))";
    for node in NODES {
        let seen = python(&guest, node, script);
        assert_eq!(seen, "ENAMETOOLONG\nENAMETOOLONG True\n['name']", "{node}");
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn on_one_node_it_is_the_same() {
    let world = World::new();
    let [directory, ..] = directories(&world);
    let guest = Up::on(&world, "solo")
        .option("--hostfs")
        .option(format!("{}=/h/solo", directory.display()))
        .options(&["--root", "host"])
        .detach("solo");
    let seen = on(&guest, "solo", &format!("d=/h/solo; {EVERYTHING}"));
    assert_eq!(seen, "of a\nhostfs");
    on(&guest, "solo", "echo guest >/h/solo/made");
    assert_eq!(text(directory.join("made")), "guest\n");
    let what = format!("solo:{}/../../home\nother:/\n../etc", directory.display());
    let argv = ["/usr/bin/python3", "-c", MOUNT, &what];
    let lines = guest.exec(&argv).expect(0).text();
    assert_eq!(lines, "EPERM EPERM\nEHOSTUNREACH EHOSTUNREACH\nEPERM EPERM");
    guest.down().expect(0);
    world.assert_clean();
}

/// A directory with a shell in it, of a node that is not the first.
#[test]
fn the_root_is_of_another_node() {
    let world = World::new();
    let root = world.path("work").join("root");
    for directory in ["bin", "dev", "proc", "sys", "tmp", "lib", "lib64"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    for (from, to) in [
        ("/bin/sh", "bin/sh"),
        ("/usr/bin/taskset", "bin/taskset"),
        ("/lib64/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2"),
        ("/lib/x86_64-linux-gnu/libc.so.6", "lib/libc.so.6"),
    ] {
        fs::copy(from, root.join(to)).unwrap_or_else(|error| panic!("{from}: {error}"));
    }
    let up = Up::three(&world).option("--root");
    let outcome = up
        .option(format!("c:{}", root.display()))
        .sh("for c in 0 1 2; do taskset -c $c sh -c 'echo >>/tmp/x'; done; test ! -e /usr")
        .expect(0);
    assert_eq!(outcome.text(), "");
    assert_eq!(text(root.join("tmp/x")), "\n\n\n");
    world.assert_clean();
}

#[test]
fn an_ordinary_user_has_the_rights_of_one() {
    if !nix::unistd::geteuid().is_root() {
        span_tests::not_tested(
            "another user: the tests are not run by root, and so by one already",
        );
        return;
    }
    let world = World::of(Owner::User(USER));
    let directories = directories(&world);
    for directory in &directories {
        std::os::unix::fs::chown(directory, Some(USER), Some(USER)).expect("root");
        let secret = directory.join("secret");
        fs::write(&secret, "roots own\n").expect("a file");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("permissions");
    }
    let guest = three(&world, &directories).detach("user");
    for (number, node) in NODES.into_iter().enumerate() {
        let owner = NODES[(number + 1) % 3];
        let script = format!(
            "cd /h/{owner}; cat name; echo made >made; cat secret 2>&1; chown 0 made 2>&1; chmod 600 name 2>&1; :"
        );
        let seen = on(&guest, node, &script);
        let lines: Vec<&str> = seen.lines().collect();
        assert_eq!(lines[0], format!("of {owner}"));
        assert!(lines[1].ends_with("Permission denied"), "{seen}");
        assert!(lines[2].ends_with("Operation not permitted"), "{seen}");
        assert!(lines[3].ends_with("Operation not permitted"), "{seen}");
        let made = fs::metadata(directories[(number + 1) % 3].join("made")).expect("a file");
        assert_eq!((made.uid(), made.len()), (USER, 5));
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn bad_input_is_named() {
    let world = World::new();
    for (value, part) in [
        ("", "[NODE:]DIR=MOUNTPOINT,"),
        ("/usr", "[NODE:]DIR=MOUNTPOINT,"),
        ("d:/usr=/m", "no node d; --nodes has a, b, c"),
        ("usr=/m", "absolute"),
        ("/usr=m", "absolute"),
        ("/usr/../usr=/m", "without .."),
        ("/usr=/m,rw", "nothing but ,ro"),
        ("b:/no/such=/m", "No such file"),
        ("b:/etc/passwd=/m", "Not a directory"),
        ("/usr=/m m", "white space"),
    ] {
        let up = Up::three(&world).options(&["--hostfs", value]).limit_s(20);
        one_line(&up.run(&["true"]).expect(2), &["--hostfs", part]);
    }
    for (value, part) in [
        ("d:/usr", "no node d"),
        ("b:/dev/null", "neither a directory"),
    ] {
        let up = Up::three(&world).options(&["--root", value]).limit_s(20);
        one_line(&up.run(&["true"]).expect(2), &["--root", part]);
    }
    let token = world.file("token", "0123456789abcdef0123456789abcdef\n");
    span_tests::restrict(&token);
    for (values, part) in [
        (&["usr"][..], "absolute"),
        (&["/usr/.."], "without .."),
        (&["/no/such"], "No such file"),
        (&["/etc/passwd,ro"], "Not a directory"),
        (&["/usr", "/usr/lib,ro"], "one lies in the other"),
        (&["/usr,ro", "/usr"], "one lies in the other"),
    ] {
        let mut command = world.command("node");
        command.args(["serve", "--listen", "127.0.0.1:0", "--token-file"]);
        command.arg(&token);
        for value in values {
            command.args(["--export", value]);
        }
        let limit = std::time::Duration::from_secs(20);
        let outcome = span_tests::Spawned::start(&mut command).wait(limit);
        one_line(&outcome.expect(2), &["--export", part]);
    }
    world.assert_clean();
}

#[track_caller]
fn one_line(outcome: &span_tests::Outcome, parts: &[&str]) {
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in parts {
        assert!(lines[0].contains(part), "{part:?} is not in {lines:?}");
    }
}
