//! What goes wrong with files on other nodes' hosts: they shrink, disks are full, nodes die, names are too long, a database
//! is used by two ways at once. The guest has the right error, the log a line, nothing hangs, nothing is damaged.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use span_tests::{Management, SHORT_S_MAX, Up, World, end_max, on, python, served, text};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const NODES: [&str; 3] = ["a", "b", "c"];

fn directory(world: &World, name: &str) -> PathBuf {
    let path = world.path("work").join(name);
    fs::create_dir_all(&path).expect("a directory");
    path
}

/// Cuts a file that is mapped: by way of a link to it, the guest learns of that while it has it open. Whatever is behind
/// the new end is gone, whoever has written to it. Prints what it sees.
const CUT: &str = "import mmap,os,signal,sys\n\
    f=os.open('/h/f',os.O_RDWR)\nm=mmap.mmap(f,16384)\nassert m[:4096]==b'x'*4096\nm[12288:12291]=b'new'\n\
    print('mapped',flush=True)\ninput()\n\
    assert os.stat('/h/g').st_size==5000\n\
    assert os.pread(f,16384,0)==b'x'*5000\n\
    p=os.fork()\n\
    if p==0: m[8192];os._exit(0)\n\
    assert os.WTERMSIG(os.waitpid(p,0)[1])==signal.SIGBUS\n\
    m.flush()\nos.fsync(f)\nassert os.fstat(f).st_size==5000\n\
    os.pwrite(f,b'end',5000)\nassert os.pread(f,99,4998)==b'xxend'\nprint('cut')";

#[test]
fn a_mapped_file_that_shrinks_ends_where_it_ends() {
    let world = World::new();
    let here = directory(&world, "here");
    let up = Up::three(&world).option("--hostfs");
    let guest = up.option(format!("b:{}=/h", here.display())).detach("cut");
    for node in NODES {
        let file = here.join("f");
        fs::write(&file, "x".repeat(16384)).expect("a file");
        let _ = fs::remove_file(here.join("g"));
        fs::hard_link(&file, here.join("g")).expect("a link");
        let before = guest.status();
        let cpu = ["0", "1", "2"][NODES.iter().position(|name| *name == node).expect("a node")];
        let mut running = guest.begin(&["taskset", "-c", cpu, "/usr/bin/python3", "-c", CUT]);
        running.wait_for("mapped\n", Duration::from_secs(SHORT_S_MAX));
        let host = fs::File::options().write(true).open(&file);
        host.and_then(|file| file.set_len(5000)).expect("a size");
        running.feed(b"\n".to_vec());
        let outcome = running.wait(Duration::from_secs(SHORT_S_MAX)).expect(0);
        assert_eq!(outcome.text(), "mapped\ncut", "{node}");
        assert_eq!(text(&file), format!("{}end", "x".repeat(5000)));
        if node != "b" {
            assert!(served(&guest.status(), "b") > served(&before, "b"));
        }
        fs::remove_file(&file).expect("a file");
    }
    guest.down().expect(0);
    world.assert_clean();
}

/// Fills a file until that fails. What was not taken is not read, and what there was is.
const FILL: &str = "import errno,mmap,os,sys\nos.chdir('/h')\n\
    f=os.open('kept',os.O_RDWR|os.O_CREAT|os.O_TRUNC)\nos.write(f,b'k'*4096)\nos.fsync(f)\n\
    assert os.pread(f,4096,0)==b'k'*4096\n\
    g=os.open('full',os.O_RDWR|os.O_CREAT|os.O_TRUNC)\nn=0\n\
    try:\n \
      while True: n+=os.write(g,b'f'*65536)\n\
    except OSError as e: print(errno.errorcode[e.errno],flush=True)\n\
    assert n<16<<20\n\
    assert len(os.pread(g,1<<25,0))==os.fstat(g).st_size==os.stat('full').st_size\n\
    os.close(g)\n\
    os.ftruncate(f,8192)\nassert os.pread(f,4096,4096)==bytes(4096)\n\
    try: os.pwrite(f,b'z'*4096,4096)\n\
    except OSError as e: print(errno.errorcode[e.errno],os.pread(f,4096,4096)==bytes(4096))\n\
    m=mmap.mmap(f,8192)\nm[4096:4100]=b'lost'\n\
    try: m.flush()\n\
    except OSError as e: print(errno.errorcode[e.errno])\n\
    assert os.pread(f,4096,0)==b'k'*4096\nm.close()\n\
    try: os.close(f)\nexcept OSError: pass\n\
    os.unlink('full')\nopen('after','w').write('room')\nassert open('after').read()=='room'\nos.unlink('after')";

/// A guest whose nodes see, at this path, a disk of 12 MB that is theirs alone.
const SMALL: &str = "mount -t tmpfs -o size=12m,mode=700 none \"$0\" && exec \"$@\"";

#[test]
fn a_full_disk_is_an_error_and_no_more() {
    if !nix::unistd::geteuid().is_root() {
        span_tests::not_tested("full disks: only root can mount a small one");
        return;
    }
    let world = World::new();
    let here = directory(&world, "here").display().to_string();
    let up = Up::three(&world)
        .through(&["unshare", "-m", "sh", "-c", SMALL, &here])
        .option("--hostfs")
        .option(format!("b:{here}=/h"));
    let guest = up.detach("full");
    for node in NODES {
        let seen = python(&guest, node, FILL);
        // The page cache knows no other error of a page that is mapped, but for this one.
        assert_eq!(seen, "ENOSPC\nENOSPC True\nENOSPC", "{node}");
    }
    // An image that promises more than its host's disk has, found by way of the management console.
    on(&guest, "a", "rm -f /h/*; truncate -s 64M /h/image");
    let console = Management::new(&world, &guest);
    console
        .ask(&format!("config ubda=b:{here}/image"))
        .expect("no error");
    let script = "mkfs.ext4 -q -E nodiscard /dev/ubda && mkdir -p /e && mount /dev/ubda /e && echo kept >/e/kept && \
        sync && dd if=/dev/zero of=/e/full bs=1M count=40 conv=fsync 2>&1 || cat /e/kept";
    let seen = on(&guest, "a", script);
    assert!(seen.ends_with("\nkept"), "{seen}");
    assert!(
        seen.contains("No space left on device") || seen.contains("Input/output error"),
        "{seen}"
    );
    let log = guest.whole_log();
    assert!(
        log.contains("critical space allocation error, dev ubda"),
        "{log}"
    );
    // With room again it is as it was.
    let script = "umount /e; fsck.ext4 -fy /dev/ubda >/tmp/said 2>&1; test $? -le 1 && fsck.ext4 -fn /dev/ubda && \
        mount /dev/ubda /e && cat /e/kept && umount /e";
    let seen = on(&guest, "c", &format!("{script} || cat /tmp/said"));
    assert!(seen.ends_with("\nkept"), "{seen}");
    drop(console);
    guest.down().expect(0);
    world.assert_clean();
}

/// Works on files of b's host until its end.
const BUSY: &str = "import os\nn=0\nprint('up',flush=True)\n\
    while True:\n \
      f=os.open('/h/f%d'%(n%50),os.O_RDWR|os.O_CREAT|os.O_TRUNC)\n os.write(f,b'x'*200000)\n \
      os.lseek(f,0,0)\n os.read(f,200000)\n os.fsync(f)\n os.close(f)\n os.listdir('/h')\n n+=1\n \
      if n==20: print('busy',flush=True)";

#[test]
fn a_node_that_dies_while_its_files_are_used_ends_the_guest() {
    for how in [Signal::SIGKILL, Signal::SIGSTOP] {
        let world = World::new();
        let here = directory(&world, "here");
        let script = format!("exec taskset -c 2 /usr/bin/python3 -c \"{BUSY}\"");
        let mut running = Up::three(&world)
            .option("--hostfs")
            .option(format!("b:{}=/h", here.display()))
            .start_with(&script);
        let limit = Duration::from_secs(SHORT_S_MAX);
        running.coordinator.wait_for("busy\n", limit);
        let status = running.guest.status();
        assert!(served(&status, "b") > 100);
        let event = Instant::now();
        kill(Pid::from_raw(status.pid("b")), how).expect("a process");
        let outcome = running.coordinator.wait(limit).expect(70);
        let took = outcome.at.duration_since(event);
        assert!(took <= end_max(&outcome.stderr), "{took:?}");
        let said: Vec<&str> = outcome.stderr.lines().collect();
        let said: Vec<&&str> = said
            .iter()
            .filter(|line| line.starts_with("coordinator: "))
            .collect();
        assert!(
            said.len() == 1 && said[0].contains("node b was lost"),
            "{said:?}"
        );
        world.assert_clean();
    }
}

#[test]
fn a_disk_whose_name_is_too_long_is_none() {
    let world = World::new();
    let here = directory(&world, "here");
    let long = format!("b:{}/{}", here.display(), "x".repeat(256));
    let outcome = Up::three(&world)
        .options(&["--ubd", &long])
        .limit_s(20)
        .run(&["true"])
        .expect(2);
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert!(
        lines.len() == 1 && lines[0].contains("--ubd") && lines[0].contains("File name too long"),
        "{lines:?}"
    );
    let guest = Up::three(&world).detach("long");
    let console = Management::new(&world, &guest);
    let wrong = console.ask(&format!("config ubda={long}"));
    assert_eq!(wrong, Err("Error -36".into()));
    assert_eq!(on(&guest, "a", "test -b /dev/ubda; echo $?"), "1");
    let log = guest.whole_log();
    assert!(log.contains("ubda: Can't open"), "{log}");
    drop(console);
    guest.down().expect(0);
    world.assert_clean();
}

/// Begins a transaction on the host, and waits for the end of its input.
const HOLD: &str = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1],isolation_level=None,timeout=0)\n\
    try: c.execute('begin immediate');print('held')\n\
    except sqlite3.OperationalError as e:print(e)";

#[test]
fn a_database_is_not_opened_as_a_file_too() {
    let world = World::new();
    let here = directory(&world, "here");
    let database = here.join("d.sqlite");
    let sql = |script: &str, more: &[&str]| {
        let mut command = Command::new("/usr/bin/python3");
        let done = command
            .args(["-c", script])
            .arg(&database)
            .args(more)
            .output()
            .expect("python");
        String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned()
    };
    let make = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1])\n\
        c.execute('pragma journal_mode=wal')\nc.execute('create table t(id integer primary key, v)')\n\
        c.execute('insert into t values(1,1)')\nc.commit()";
    assert_eq!(sql(make, &[]), "");
    fs::write(here.join("other"), "text\n").expect("a file");
    std::os::unix::fs::symlink("d.sqlite", here.join("link")).expect("a link");
    fs::hard_link(&database, here.join("again")).expect("a link");
    let (shown, mounted) = (here.display(), database.display());
    let guest = Up::three(&world)
        .options(&["--root", "host", "--hostfs"])
        .option(format!("b:sqlite:{mounted}=/db"))
        .option("--hostfs")
        .option(format!("b:{shown}=/h"))
        .option("--hostfs")
        .option(format!("a:{shown}=/a"))
        .detach("twice");
    let script = "import errno,os\nos.chdir('/h')\n\
        assert open('/db/t/1').read()\n\
        def no(name,flags):\n \
          try: os.close(os.open(name,flags))\n except OSError as e:\n  assert e.errno==errno.EBUSY,e\n  return\n \
          assert 0,name\n\
        for name in 'd.sqlite','again','link','d.sqlite-wal','d.sqlite-shm':\n \
          no(name,os.O_RDONLY)\n no(name,os.O_RDWR)\n no(name,os.O_WRONLY|os.O_TRUNC)\n\
        try: os.truncate('d.sqlite',0)\nexcept OSError as e: assert e.errno==errno.EBUSY,e\nelse: assert 0\n\
        assert open('other').read()=='text\\n' and os.stat('again').st_nlink==2\n\
        print('busy')";
    let before = served(&guest.status(), "b");
    for node in NODES {
        assert_eq!(python(&guest, node, script), "busy", "{node}");
    }
    assert!(served(&guest.status(), "b") > before + 20);
    // Its locks are there: whoever writes on the host waits while a row is being read and written.
    on(
        &guest,
        "c",
        "for n in 1 2 3 4 5; do echo \"{\\\"v\\\": $n}\" >/db/t/1; done",
    );
    let seen = sql(
        "import sqlite3,sys\nprint(sqlite3.connect(sys.argv[1]).execute('select v from t').fetchall())",
        &[],
    );
    assert_eq!(seen, "[(5,)]\n");
    assert_eq!(sql(HOLD, &[]), "held\n");
    // Another node's process has locks of its own.
    assert_eq!(on(&guest, "c", "head -c 6 /a/d.sqlite"), "SQLite");
    let line = format!("sqlite:{mounted}: the file itself is not opened");
    let log = guest.whole_log();
    assert!(log.contains(&line), "{log}");
    guest.down().expect(0);
    let check = "import sqlite3,sys\nprint(sqlite3.connect(sys.argv[1]).execute('pragma integrity_check').fetchall())";
    assert_eq!(sql(check, &[]), "[('ok',)]\n");
    world.assert_clean();
}
