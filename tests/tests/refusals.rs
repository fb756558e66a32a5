//! Files that can be no disk, no database and no part of a union: the guest has the right error, its log one line, and
//! nothing of it is left behind.

use span_tests::{
    Detached, Management, Outcome, Owner, SHORT_S_MAX, Up, World, on, python, text, wait_until,
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const NODES: [&str; 3] = ["a", "b", "c"];
const USER: u32 = 65534;

fn directory(world: &World, name: &str) -> PathBuf {
    let path = world.path("work").join(name);
    fs::create_dir_all(&path).expect("a directory");
    path
}

/// A program of this host's that is to succeed.
#[track_caller]
fn host(program: &str, arguments: &[&str]) {
    let done = Command::new(program)
        .args(arguments)
        .env("PATH", span_tests::PATH)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(done.status.success(), "{program} {arguments:?}: {done:?}");
}

/// A COW file of `base`, 64 KiB of a pattern; what is in it.
fn cow(here: &Path) -> Vec<u8> {
    fs::write(here.join("base"), [7; 1 << 16]).expect("a file");
    let (cow, base) = (here.join("cow"), here.join("base"));
    host(
        "uml_mkcow",
        &[
            "-f",
            &cow.display().to_string(),
            &base.display().to_string(),
        ],
    );
    fs::read(&cow).expect("a file")
}

#[test]
fn what_can_be_no_disk_is_one_line_in_the_log() {
    let world = World::new();
    let here = directory(&world, "here");
    let whole = cow(&here);
    let with = |at: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        bytes
    };
    let align = |byte| with(26, byte);
    for (name, bytes) in [
        ("magic", &whole[..4]),
        ("half", &whole[..100]),
        ("header", &whole[..4096]),
        ("bitmap", &whole[..4200]),
        ("version", &with(7, 9)),
        ("alignment", &align(0)),
        ("plain", b"plain"),
    ] {
        fs::write(here.join(name), bytes).expect("a file");
    }
    fs::create_dir(here.join("directory")).expect("a directory");
    let pipe = here.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    std::os::unix::fs::symlink("nowhere", here.join("link")).expect("a link");
    let before: Vec<_> = listing(&here);

    let guest = Up::three(&world).detach("refused");
    let console = Management::new(&world, &guest);
    let at = |name: &str| format!("b:{}/{name}", here.display());
    let long = "x".repeat(256);
    let cases = [
        ("=", at("none"), 2, ""),
        ("=", at("link"), 2, ""),
        ("=", at("directory"), 21, ""),
        ("=", at("pipe"), 15, ""),
        ("r=", at("pipe"), 15, ""),
        ("=", "b:/dev/null".into(), 15, ""),
        ("=", at(&long), 36, ""),
        ("=", "d:/none".into(), 113, ""),
        ("=", at("../here/base"), 1, ""),
        ("=", at("magic"), 22, "short header"),
        ("=", at("half"), 22, "failed to read V3 header"),
        ("=", at("header"), 22, "failed to read V3 header"),
        ("=", at("bitmap"), 5, "its bitmap is cut off"),
        ("=", at("version"), 22, "invalid COW version"),
        ("=", at("alignment"), 22, "align == 0"),
        (
            "=",
            format!("{},{}", at("plain"), at("base")),
            22,
            "no COW file",
        ),
        (
            "=",
            format!("{},{}", at("new"), at("none")),
            2,
            "the backing file cannot be found",
        ),
        (
            "=",
            format!("{},{}", at("new"), at(&long)),
            36,
            "the backing file cannot be found",
        ),
    ];
    for (flags, file, error, why) in &cases {
        let old = guest.logs();
        let wrong = console.ask(&format!("config ubda{flags}{file}"));
        assert_eq!(wrong, Err(format!("Error -{error}")), "{flags}{file}");
        let new = news(&guest, &old);
        let asked = file.split(',').next().unwrap_or_default();
        let line = format!("ubda: Can't open \"{asked}\": errno = {error}");
        assert!(
            new.len() == 1 && new[0].contains(&line) && new[0].contains(why),
            "{flags}{file}: {new:?}"
        );
        assert_eq!(listing(&here), before, "{flags}{file}");
    }
    assert_eq!(on(&guest, "c", "ls /dev/ubd* 2>/dev/null | wc -l"), "0");

    // What was refused is not what the next of the name has.
    let refused = console.ask(&format!("config ubdad={},{}", at("new"), at("base")));
    assert!(refused.is_err_and(|why| why.contains("a cow file")));
    fs::write(here.join("new"), "").expect("a file");
    let made = console.ask(&format!("config ubda={},{}", at("new"), at("base")));
    assert_eq!(made, Ok(String::new()));
    let seen = on(
        &guest,
        "c",
        "echo cow | dd of=/dev/ubda conv=notrunc,fsync 2>/dev/null; head -c 3 /dev/ubda",
    );
    assert_eq!(seen, "cow");
    assert_eq!(fs::read(here.join("base")).expect("a file"), [7; 1 << 16]);
    // What is behind it shrinks: what was written stays.
    let file = fs::File::options().write(true).open(here.join("base"));
    file.and_then(|file| file.set_len(8192)).expect("a size");
    for node in NODES {
        let read = "dd if=/dev/ubda bs=4k count=1 iflag=direct";
        let script = format!("{read} skip=9 2>&1 || {read} 2>/dev/null | head -c 3");
        let seen = on(&guest, node, &script);
        assert!(
            seen.contains("Input/output error") && seen.ends_with("cow"),
            "{node}: {seen}"
        );
    }
    let log = guest.logs();
    assert_eq!(log.matches("I/O error, dev ubda").count(), 3, "{log}");
    drop(console);
    guest.down().expect(0);
    world.assert_clean();
}

/// What the log has got since it was `old`: something, after a while.
fn news(guest: &Detached<'_>, old: &str) -> Vec<String> {
    let new = || guest.logs()[old.len()..].trim().to_string();
    wait_until(Duration::from_secs(SHORT_S_MAX), || !new().is_empty());
    new().lines().map(String::from).collect()
}

/// Names and sizes of what is in a directory.
fn listing(directory: &Path) -> Vec<(std::ffi::OsString, u64)> {
    let mut all: Vec<_> = fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry"))
        .map(|entry| {
            let length = entry.metadata().map_or(0, |metadata| metadata.len());
            (entry.file_name(), length)
        })
        .collect();
    all.sort();
    all
}

/// What the coordinator says of itself.
fn said(outcome: &Outcome) -> Vec<&str> {
    let lines = outcome.stderr.lines();
    lines
        .filter(|line| line.starts_with("coordinator: "))
        .collect()
}

#[test]
fn a_guest_does_not_start_without_its_disks() {
    let world = World::new();
    let here = directory(&world, "here");
    let whole = cow(&here);
    let shown = here.display();
    fs::write(here.join("half"), &whole[..100]).expect("a file");
    let up = |disk: &str| Up::three(&world).options(&["--ubd", disk]).limit_s(30);
    // Before anything is started.
    for (disk, why) in [
        (format!("b:{shown}/half"), "cut off after 100 bytes"),
        (
            format!("b:{shown}/base,cow={shown}/half"),
            "cut off after 100 bytes",
        ),
        (format!("b:{shown}/cow,cow={shown}/base"), "is no COW file"),
    ] {
        let outcome = up(&disk).run(&["true"]).expect(2);
        let lines = said(&outcome);
        assert!(lines.len() == 1 && lines[0].contains(why), "{lines:?}");
    }
    // What only the kernel finds out: the backing file is another now.
    fs::write(here.join("base"), [8; 1 << 15]).expect("a file");
    let outcome = up(&format!("b:{shown}/cow")).run(&["true"]).expect(125);
    let lines = said(&outcome);
    assert!(
        lines.len() == 1
            && lines[0].contains(&format!("ubda: Can't open \"b:{shown}/cow\": errno = 22"))
            && lines[0].contains("size mismatch (65536 vs 32768)"),
        "{lines:?}"
    );
    assert_eq!(fs::read(here.join("cow")).expect("a file"), whole);
    world.assert_clean();
}

#[test]
fn what_an_ordinary_user_may_not_read_is_no_disk() {
    if !nix::unistd::geteuid().is_root() {
        span_tests::not_tested("files of others: only root can make them");
        return;
    }
    let world = World::of(Owner::User(USER));
    let here = directory(&world, "here");
    for (name, mode) in [("closed", 0o000), ("constant", 0o444)] {
        let file = here.join(name);
        fs::write(&file, [7; 4096]).expect("a file");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("permissions");
    }
    let shown = here.display();
    for (name, why) in [("closed", "Permission denied"), ("constant", "add ,ro")] {
        let disk = format!("b:{shown}/{name}");
        let up = Up::three(&world).options(&["--ubd", &disk]).limit_s(30);
        let outcome = up.run(&["true"]).expect(2);
        let lines = said(&outcome);
        assert!(lines.len() == 1 && lines[0].contains(why), "{lines:?}");
    }
    let guest = Up::three(&world).detach("closed");
    let console = Management::new(&world, &guest);
    let wrong = console.ask(&format!("config ubda=b:{shown}/closed"));
    assert_eq!(wrong, Err("Error -13".into()));
    let line = format!("ubda: Can't open \"b:{shown}/closed\": errno = 13");
    assert_eq!(guest.logs().matches(&line).count(), 1);
    // As upstream has it: what cannot be written to is read.
    let read = console.ask(&format!("config ubda=b:{shown}/constant"));
    assert_eq!(read, Ok(String::new()));
    assert_eq!(on(&guest, "c", "blockdev --getro /dev/ubda"), "1");
    drop(console);
    guest.down().expect(0);
    world.assert_clean();
}

/// Changes rows and files until there is no room; what was refused is not there, and what was there is.
const FILL: &str = "import errno,json,os\n\
    def why(call):\n \
      try: call()\n except OSError as e: return errno.errorcode[e.errno]\n\
    def row(n):\n \
      f=os.open('/db/t/%d'%n,os.O_WRONLY|os.O_CREAT)\n \
      try: os.write(f,json.dumps({'v':'x'*200000}).encode())\n finally: os.close(f)\n\
    rows=[why(lambda: row(n)) for n in range(2,40)]\n\
    print(*sorted({r for r in rows if r}))\n\
    full=rows.index('ENOSPC')\n\
    print(set(rows[:full])=={None}, json.load(open('/db/t/1'))['v'])\n\
    print(all(len(json.load(open('/db/t/%d'%n))['v'])==200000 for n in range(2,full+2)))\n\
    d=os.open('/dev/ubda',os.O_RDWR|os.O_SYNC)\n\
    print(why(lambda: [os.pwrite(d,b'z'*65536,at<<16) for at in range(256)]))";

/// A guest whose nodes see, at this path, a disk of 4 MB that is theirs alone.
const SMALL: &str = "mount -t tmpfs -o size=4m,mode=700 none \"$0\" && cp \"$0\".db \"$0\"/d.sqlite && \
    head -c 500000 /dev/zero >\"$0\"/ballast && exec \"$@\"";

#[test]
fn full_disks_under_rows_and_cow_files() {
    if !nix::unistd::geteuid().is_root() {
        span_tests::not_tested("full disks: only root can mount a small one");
        return;
    }
    let world = World::new();
    let small = directory(&world, "small").display().to_string();
    let (base, large) = (world.file("base", ""), directory(&world, "large"));
    let sized = fs::File::options().write(true).open(&base);
    sized
        .and_then(|file| file.set_len(16 << 20))
        .expect("a size");
    let make = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1])\n\
        c.execute('create table t(id integer primary key, v)')\nc.execute(\"insert into t values(1,'kept')\")\nc.commit()";
    host("/usr/bin/python3", &["-c", make, &format!("{small}.db")]);
    let guest = Up::three(&world)
        .through(&["unshare", "-m", "sh", "-c", SMALL, &small])
        .option("--hostfs")
        .option(format!("b:sqlite:{small}/d.sqlite=/db"))
        .option("--hostfs")
        .option(format!("union:c:{}+b:{small}=/u", large.display()))
        .option("--ubd")
        .option(format!("b:{},cow={small}/cow", base.display()))
        .detach("small");
    // The page cache knows no other error of a disk's.
    assert_eq!(python(&guest, "c", FILL), "ENOSPC\nTrue kept\nTrue\nEIO");
    // The first of a union has room, and gets what the second has not.
    let seen = on(
        &guest,
        "a",
        "head -c 1000000 /dev/zero 2>/dev/null >/tmp/much; cp /tmp/much /u/much 2>&1; sync /u/much 2>&1; cat /db/t/1",
    );
    assert!(
        seen.contains("No space left on device") && seen.contains("kept"),
        "{seen}"
    );
    // Until cp has the error.
    assert!(fs::metadata(large.join("much")).expect("a file").len() >= 4096);
    let log = guest.logs();
    let line = format!("union: b:{small} is degraded: ");
    assert_eq!(log.matches(&line).count(), 1, "{log}");
    assert!(
        log.contains("critical space allocation error, dev ubda"),
        "{log}"
    );
    // With room again, all goes on.
    let seen = on(
        &guest,
        "b",
        "rm /u/ballast && rm /db/t/[2-9] /u/much && echo '{\"v\": \"new\"}' >/db/t/2 && grep -h v /db/t/1 /db/t/2 && \
        echo last | dd of=/dev/ubda conv=notrunc,fsync 2>/dev/null && head -c 4 /dev/ubda",
    );
    assert_eq!(seen, "  \"v\": \"kept\"\n  \"v\": \"new\"\nlast");
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn a_union_has_all_of_its_parts() {
    let world = World::new();
    let (one, two) = (directory(&world, "one"), directory(&world, "two"));
    fs::write(two.join("file"), "").expect("a file");
    fs::create_dir(two.join("goes")).expect("a directory");
    std::os::unix::fs::symlink("/etc", two.join("link")).expect("a link");
    let (a, b) = (one.display().to_string(), two.display().to_string());
    let guest = Up::three(&world)
        .option("--hostfs")
        .option(format!("a:{a}=/one"))
        .option("--hostfs")
        .option(format!("b:{b}=/two"))
        .detach("parts");
    for node in NODES {
        for (more, error) in [
            ("".to_string(), 22),
            (format!("+a:{a}"), 22),
            ("+b:/etc".into(), 1),
            (format!("+b:{b}/../one"), 1),
            (format!("+b:{b}/none"), 2),
            (format!("+b:{b}/file"), 20),
            (format!("+b:{b}/link"), 40),
            (format!("+b:{b}/{}", "x".repeat(256)), 36),
            ("+d:/none".into(), 113),
        ] {
            let what = format!("union:a:{a}{more}");
            let old = guest.logs();
            let script = format!("! mount -t hostfs none /mnt -o {what} 2>/dev/null");
            on(&guest, node, &script);
            let new = news(&guest, &old);
            let line = format!("hostfs: mounting {what}: error -{error}");
            assert!(new.len() == 1 && new[0].contains(&line), "{node}: {new:?}");
        }
    }
    assert_eq!(listing(&one), []);
    // One that goes later is missed.
    let what = format!("union:a:{a}+b:{b}/goes");
    let script = format!("mount -t hostfs none /mnt -o {what} && echo x >/mnt/before");
    on(&guest, "c", &script);
    assert_eq!(text(two.join("goes/before")), "x\n");
    fs::remove_dir_all(two.join("goes")).expect("a directory");
    let seen = on(&guest, "c", "echo y 2>&1 >/mnt/after || cat /mnt/before");
    assert!(seen.ends_with('x'), "{seen}");
    let line = format!("union: b:{b}/goes is degraded: ");
    assert_eq!(guest.logs().matches(&line).count(), 1, "{}", guest.logs());
    guest.down().expect(0);
    world.assert_clean();
}
