//! What hostfs can have behind it beside a plain directory: owners of the guest's, databases, several directories.

use span_tests::{Owner, Up, World, on, python, served, text};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// `nobody`.
const USER: u32 = 65534;

const PROMISES: &str = include_str!("../programs/files.py");

fn user_if_root(world: impl FnOnce(Owner) -> World) -> World {
    match nix::unistd::geteuid().is_root() {
        true => world(Owner::User(USER)),
        false => World::new(),
    }
}

fn directory(world: &World, name: &str) -> PathBuf {
    let path = world.path("work").join(name);
    fs::create_dir_all(&path).expect("a directory");
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(USER), Some(USER)).expect("an owner");
    }
    path
}

/// A tree with all that an ordinary user cannot make.
const TREE: &str = "set -e; umask 022; mkdir /tmp/t; cd /tmp/t; mkdir -m 2775 d; echo text >d/f; chown 1000:100 d/f; \
    chmod 4751 d/f; ln d/f d/g; ln -s ../d/f d/s; chown -h 7:8 d/s; mkfifo -m 600 p; mknod -m 640 c c 5 1; \
    mknod b b 259 70000; chown 0:6 b; mkdir -m 0 none; chown 12:13 none d; chmod 2775 d; echo x >r; chmod 400 r; \
    chown 7 r; python3 -c 'import socket as s;s.socket(s.AF_UNIX).bind(\"u\")'; chown 3:4 u; ";

const LIST: &str = "find . -type d -printf '%p %y %m %U %G\\n' -o -printf '%p %y %m %U %G %n %l\\n' | sort; \
    stat -c '%n %t:%T' b c; cat d/f";

#[test]
fn an_ordinary_user_keeps_owners_and_devices() {
    let world = user_if_root(World::of);
    let store = directory(&world, "store");
    let up = || {
        let value = format!("b:{}=/m,owners=mapped", store.display());
        Up::on(&world, "a,b").option("--hostfs").option(value)
    };
    let guest = up().detach("owners-1");
    let before = guest.status();
    let wanted = on(&guest, "a", &format!("{TREE}{LIST}"));
    for part in [
        "./d d 2775 12 13",
        "./d/g f 4751 1000 100 2 ",
        "./d/s l 777 7 8 1 ../d/f",
        "./none d 0 12 13",
        "./u s 755 3 4 1 ",
        "b 103:11170",
    ] {
        assert!(wanted.contains(part), "{part}: {wanted}");
    }
    let copied = on(
        &guest,
        "a",
        &format!("tar -C /tmp/t -c . | tar -C /m -xp --numeric-owner; cd /m; {LIST}"),
    );
    // The socket is nothing that tar takes along.
    let without: Vec<&str> = wanted
        .lines()
        .filter(|line| !line.starts_with("./u"))
        .collect();
    let of_root = |line: &&str| !line.starts_with(". ");
    let lines =
        |text: &str| -> Vec<String> { text.lines().filter(of_root).map(str::to_owned).collect() };
    let without = lines(&without.join("\n"));
    assert_eq!(lines(&copied), without);
    assert!(served(&guest.status(), "b") > served(&before, "b") + 100);
    guest.down().expect(0);

    // On the host all of it is the user's, who can read it.
    let me = fs::metadata(&store).expect("a directory").uid();
    for name in ["d", "d/f", "d/s", "none", "p", "c", "b", "r"] {
        let metadata = fs::symlink_metadata(store.join(name)).expect("a file");
        assert_eq!(metadata.uid(), me, "{name}");
        let (kind, mode) = (metadata.file_type(), metadata.permissions().mode());
        assert!(kind.is_file() || kind.is_dir(), "{name}");
        assert_eq!(mode & 0o7600, 0o600, "{name}: {mode:o}");
    }

    // Another guest finds what the first left, and its rules count.
    let guest = up().detach("owners-2");
    assert_eq!(lines(&on(&guest, "b", &format!("cd /m; {LIST}"))), without);
    let script = "import os,stat\n\
        os.chdir('/m')\nos.umask(0o22)\n\
        def see(p):\n s=os.lstat(p);return oct(s.st_mode),s.st_uid,s.st_gid\n\
        f=os.open('new',os.O_CREAT|os.O_RDWR,0o600)\n\
        os.fchown(f,5,6)\nos.fchmod(f,0o2711)\n\
        assert see('new')==('0o102711',5,6),see('new')\n\
        os.write(f,b'1')\n\
        os.rename('new','other');os.link('other','third')\n\
        assert see('third')==('0o102711',5,6)\n\
        os.unlink('other');os.fchown(f,8,-1)\n\
        assert see('third')[1:]==(8,6)\n\
        os.unlink('third');assert os.fstat(f).st_uid==8;os.close(f)\n\
        os.mkdir('shared');os.chown('shared',20,21);os.chmod('shared',0o2777)\n\
        p=os.fork()\n\
        if p==0:\n \
          os.setgroups([]);os.setgid(31);os.setuid(30)\n \
          open('shared/f','w').close();os.mkdir('shared/d');os.symlink('x','shared/l');os.mkfifo('shared/p')\n \
          assert see('shared/f')==('0o100644',30,21),see('shared/f')\n \
          assert see('shared/d')==('0o42755',30,21),see('shared/d')\n \
          assert see('shared/l')[1:]==(30,21) and see('shared/p')[1:]==(30,21)\n \
          for call in (lambda:open('r'),lambda:os.listdir('none'),lambda:os.chmod('d/f',0),lambda:os.mkdir('x')):\n  \
            try:call()\n  except PermissionError:continue\n  os._exit(9)\n \
          os._exit(0)\n\
        assert os.waitpid(p,0)[1]==0\n\
        assert open('r').read()=='x\\n'\n\
        print('kept')";
    assert_eq!(python(&guest, "a", script), "kept");
    guest.down().expect(0);
    world.assert_clean();
}

/// Says how it is run: as root it makes files that only root may make, and has another user run it with the rights of
/// their owner.
const FIRST: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct stat st;
	int status, fd;

	if (argc > 1)
		return geteuid() == 7 && getuid() == 1000 ? 0 : 3;
	if (mknod("/dev/zero2", S_IFCHR | 0666, makedev(1, 5)) || (fd = open("/dev/zero2", O_RDONLY)) < 0)
		return 4;
	if (read(fd, &status, sizeof(status)) != sizeof(status) || status)
		return 5;
	if (chown("/first", 7, 8) || chmod("/first", 04755) || stat("/first", &st) || st.st_uid != 7)
		return 6;
	if (!fork()) {
		if (setgid(1000) || setuid(1000))
			_exit(7);
		execl("/first", "/first", "again", NULL);
		_exit(8);
	}
	if (wait(&status) < 0)
		return 9;
	printf("status %d\n", WEXITSTATUS(status));
	return WEXITSTATUS(status);
}
"#;

#[test]
fn a_root_with_owners_boots_for_an_ordinary_user() {
    let world = user_if_root(World::of);
    let root = directory(&world, "root");
    for name in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
        directory(&world, &format!("root/{name}"));
    }
    let program = world.compile("first", FIRST).expect("a compiler");
    fs::copy(&program, root.join("first")).expect("a program");
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(root.join("first"), Some(USER), Some(USER)).expect("an owner");
    }
    let value = format!("b:{},owners=mapped", root.display());
    let up = Up::on(&world, "a,b").option("--root").option(value);
    assert_eq!(up.run(&["/first"]).expect(0).text(), "status 0");
    let metadata = fs::metadata(root.join("first")).expect("a file");
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o755);
    world.assert_clean();
}

/// Says how it goes to mount each line of its argument.
const MOUNT: &str = "import ctypes,errno,os,sys\nc=ctypes.CDLL(None,use_errno=True)\nos.makedirs('/m',exist_ok=True)\n\
    def mount(what):\n \
      r=c.mount(b'none',b'/m',b'hostfs',0,what.encode())\n e=ctypes.get_errno()\n \
      if r==0: os.system('ls /m >/dev/null; umount /m')\n \
      return 'mounted' if r==0 else errno.errorcode[e]\n\
    for line in sys.argv[1].split('\\n'): print(mount(line))";

/// What is promised of files is kept: by a directory of another node, and by one with owners of the guest's.
#[test]
fn files_of_another_node_are_files() {
    let world = World::new();
    let (plain, mapped) = (directory(&world, "plain"), directory(&world, "mapped"));
    let up = Up::on(&world, "a,b").option("--hostfs");
    let up = up
        .option(format!("b:{}=/p", plain.display()))
        .option("--hostfs");
    let up = up.option(format!("b:{}=/m,owners=mapped", mapped.display()));
    let guest = up.detach("promises");
    let before = guest.status();
    for place in ["/p", "/m"] {
        let mut argv = vec!["/usr/bin/python3", "-c", PROMISES, place];
        if !nix::unistd::geteuid().is_root() && place == "/p" {
            argv.push("user");
        }
        let outcome = guest.exec_on(&["--node", "a"], &argv).expect(0).text();
        assert_eq!(outcome, "posix", "{place}");
    }
    assert!(served(&guest.status(), "b") > served(&before, "b") + 1000);
    guest.down().expect(0);
    world.assert_clean();
}

/// Runs SQL on the host, one statement a line; gives back what the last says.
#[track_caller]
fn sql(database: &Path, script: &str) -> String {
    let program = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1],isolation_level=None)\n\
        c.execute('pragma foreign_keys=on')\n\
        for line in sys.argv[2].split(';;'): r=c.execute(line).fetchall()\nprint(r)";
    let mut command = Command::new("/usr/bin/python3");
    let output = command
        .args(["-c", program])
        .arg(database)
        .arg(script)
        .output();
    let output = output.expect("python");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

const SCHEMA: &str = "create table people(id integer primary key, name text not null unique, \
    age integer default 30 check(age>=0), photo blob);;\
    create table paths(path text primary key, size real) without rowid;;\
    create table notes(what);;\
    create table pets(name text primary key, owner integer references people(id));;\
    insert into people values(1,'Ada',36,x'00ff'),(2,'Bob',null,null);;\
    insert into paths values('/usr/bin',1.5),('a,b',2),('.x',3);;\
    insert into pets values('Rex',1);;\
    insert into notes values('first')";

#[test]
fn a_database_is_read_as_files() {
    let world = World::new();
    let database = directory(&world, "db").join("d.sqlite");
    sql(&database, SCHEMA);
    let long = format!("insert into paths values('{}',0)", "x".repeat(300));
    sql(&database, &long);
    let value = format!("b:sqlite:{}=/db,ro", database.display());
    let up = Up::on(&world, "a,b").option("--hostfs").option(value);
    let guest = up.detach("tables");
    let before = guest.status();
    let seen = on(
        &guest,
        "a",
        "cd /db; ls -A . people paths notes pets; cat people/1 notes/1; stat -c '%s %F' people/2",
    );
    let text = "{\n  \"id\": 1,\n  \"name\": \"Ada\",\n  \"age\": 36,\n  \"photo\": {\"blob\":\"00FF\"}\n}\n\
        {\n  \"what\": \"first\"\n}\n";
    assert!(seen.contains(text), "{seen}");
    let names = "notes:\n1\n\npaths:\n%2Ex\n%2Fusr%2Fbin\na%2Cb\n\npeople:\n1\n2\n\npets:\nRex\n";
    assert!(seen.contains(names), "{seen}");
    let bob = "{\n  \"id\": 2,\n  \"name\": \"Bob\",\n  \"age\": null,\n  \"photo\": null\n}\n";
    assert!(
        seen.ends_with(&format!("{} regular file", bob.len())),
        "{seen}"
    );
    assert!(served(&guest.status(), "b") > served(&before, "b") + 10);
    let script = "import os,errno\nos.chdir('/db')\n\
        def no(e,call,*a):\n \
          try:call(*a)\n except OSError as x:\n  assert x.errno==e,(a,x)\n  return\n \
          assert 0,a\n\
        no(errno.ENOENT,open,'people/3')\nno(errno.ENOENT,open,'people/01')\nno(errno.ENOENT,open,'none/1')\n\
        no(errno.ENOENT,os.stat,'people/x%')\nno(errno.ENOTDIR,os.listdir,'people/1')\n\
        no(errno.ENAMETOOLONG,os.stat,'people/'+'y'*256)\n\
        no(errno.EROFS,open,'people/1','w')\nno(errno.EROFS,os.unlink,'people/1')\n\
        assert os.system('mount -o remount,rw /db')==0\n\
        no(errno.EROFS,open,'people/1','r+')\nno(errno.EROFS,open,'people/9','w')\n\
        no(errno.EROFS,os.unlink,'people/1')\nno(errno.EROFS,os.rename,'people/1','people/7')\nprint('read')";
    assert_eq!(python(&guest, "a", script), "read");
    // What the host writes is seen when a file is opened anew; a long table is listed whole.
    sql(&database, "update people set name='Eve' where id=1");
    let many = "insert into notes with recursive n(i) as (select 2 union all select i+1 from n where i<5000) \
        select i from n";
    sql(&database, many);
    assert_eq!(
        on(
            &guest,
            "a",
            "grep -c Eve /db/people/1; ls -U /db/notes | sort -u | wc -l"
        ),
        "1\n5000"
    );
    let log = guest.whole_log();
    assert!(log.contains("1 names have more than 255 bytes"), "{log}");
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn what_is_written_to_a_row_is_a_transaction() {
    let world = World::new();
    let database = directory(&world, "db").join("d.sqlite");
    sql(&database, SCHEMA);
    let value = format!("b:sqlite:{}=/db", database.display());
    let up = Up::on(&world, "a,b").option("--hostfs").option(value);
    let guest = up.detach("rows");
    let script = "set -e; cd /db/people; echo '{\"name\": \"Cid\"}' >3; echo '{\"age\": 5}' >2; cat 3; mv 3 30; rm ../notes/1; \
        touch ../notes/9; printf '{\"id\": 8,\\n' >8; printf '{\"id\": 8,' >8; cp 30 ../x 2>&1 | tail -c 25; ls";
    let seen = on(&guest, "a", &format!("{script} || :"));
    assert!(
        seen.starts_with("{\n  \"id\": 3,\n  \"name\": \"Cid\",\n  \"age\": 30,"),
        "{seen}"
    );
    assert!(
        seen.ends_with("Operation not permitted\n1\n2\n30"),
        "{seen}"
    );
    let people = "select id,name,age from people order by id";
    assert_eq!(
        sql(&database, people),
        "[(1, 'Ada', 36), (2, 'Bob', 5), (30, 'Cid', 30)]"
    );
    assert_eq!(
        sql(&database, "select rowid,what from notes"),
        "[(9, None)]"
    );
    let script = "import os,errno,json\nos.chdir('/db/people')\n\
        def no(e,call,*a):\n \
          try:call(*a)\n except OSError as x:\n  assert x.errno==e,(a,x)\n  return\n \
          assert 0,a\n\
        def put(name,text,flags=os.O_WRONLY|os.O_CREAT|os.O_TRUNC):\n \
          f=os.open(name,flags)\n \
          try:os.write(f,text.encode())\n finally:os.close(f)\n\
        no(errno.EINVAL,put,'1','no json')\nno(errno.EINVAL,put,'1','{\"nme\": 1}')\n\
        no(errno.EINVAL,put,'1','{\"id\": 2}')\nno(errno.EINVAL,put,'1','{\"age\": -1}')\n\
        no(errno.EINVAL,put,'1','{\"name\": null}')\nno(errno.EEXIST,put,'1','{\"name\": \"Bob\"}')\n\
        no(errno.EINVAL,put,'50','{\"age\": 1}')\nno(errno.EINVAL,put,'5','{\"name\": ')\n\
        no(errno.EINVAL,put,'x','{}')\nno(errno.EINVAL,put,'07','{\"name\": \"z\"}')\n\
        no(errno.EINVAL,put,'../pets/Tom','{\"owner\": 99}')\nno(errno.EBUSY,os.unlink,'1')\n\
        no(errno.EPERM,os.mkdir,'../new')\nno(errno.EPERM,os.mkdir,'6')\nno(errno.EPERM,os.rmdir,'../pets')\n\
        no(errno.EPERM,os.chmod,'1',0o600)\nno(errno.EPERM,os.link,'1','6')\nno(errno.EPERM,os.symlink,'1','6')\n\
        no(errno.EXDEV,os.rename,'30','../pets/30')\nno(errno.EEXIST,put,'2','{}',os.O_CREAT|os.O_EXCL|os.O_WRONLY)\n\
        assert sorted(os.listdir())==['1','2','30'],os.listdir()\n\
        assert json.load(open('1'))['name']=='Ada'\n\
        big='{\"photo\": {\"blob\": \"'+'0f'*50000+'\"}}'\nput('2',big)\n\
        assert json.load(open('2'))['photo']['blob']=='0F'*50000\n\
        f=open('1','w')\nf.write('{\"name\": \"');f.flush();f.write('Zoe\"}');f.flush();os.fsync(f.fileno())\n\
        print('rows')";
    assert_eq!(python(&guest, "a", script), "rows");
    assert_eq!(
        sql(&database, people),
        "[(1, 'Zoe', 36), (2, 'Bob', 5), (30, 'Cid', 30)]"
    );
    assert_eq!(
        sql(&database, "select length(photo) from people where id=2"),
        "[(50000,)]"
    );
    let log = guest.whole_log();
    for line in [
        "people/1: UNIQUE constraint failed: people.name",
        "people/1: no column nme",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }

    // Another's transaction is waited for, and not for ever.
    let mut other = Command::new("/usr/bin/python3");
    let hold = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1],isolation_level=None)\n\
        c.execute('begin immediate');print('held',flush=True);sys.stdin.read();c.execute('rollback')";
    let mut other = other
        .args(["-c", hold])
        .arg(&database)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python");
    let mut line = String::new();
    let said = other.stdout.take().expect("a pipe");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut line).expect("a line");
    let busy = python(
        &guest,
        "a",
        "import os,time,errno\nt=time.time()\nf=os.open('/db/people/2',os.O_WRONLY|os.O_TRUNC)\n\
         try:os.write(f,b'{\"age\": 6}')\nexcept OSError as e:print(errno.errorcode[e.errno],time.time()-t<10)",
    );
    assert_eq!(busy, "EBUSY True");
    drop(other.stdin.take());
    other.wait().expect("python");
    guest.down().expect(0);
    assert_eq!(sql(&database, "pragma integrity_check"), "[('ok',)]");
    world.assert_clean();
}

#[test]
fn a_union_is_written_to_in_all_its_parts() {
    let world = World::new();
    let (one, two) = (directory(&world, "one"), directory(&world, "two"));
    fs::create_dir(one.join("deep")).expect("a directory");
    fs::write(one.join("deep/old"), "first\n").expect("a file");
    fs::write(one.join("both"), "one\n").expect("a file");
    fs::write(two.join("both"), "two\n").expect("a file");
    fs::write(two.join("only"), "two\n").expect("a file");
    let value = format!("union:a:{}+b:{}=/u", one.display(), two.display());
    let up = Up::on(&world, "a,b,c").option("--hostfs").option(value);
    let guest = up.detach("union");
    let before = guest.status();
    let script = "set -e; cd /u; cat both only deep/old; ls; ls -l deep | wc -l; \
        echo new >n; mkdir -p d/e; echo text >d/e/f; ln -s ../n d/l; ln n m; mv n deep/n; chmod 640 deep/n; \
        echo more >>deep/old; echo more >>only; touch -d @1000000000 both; truncate -s 2 both; rm m; \
        mkdir x; rmdir x; cat deep/n both deep/old; stat -f -c %T .";
    for node in ["c", "b", "a"] {
        let seen = on(
            &guest,
            node,
            &format!(
                "{script}; rm -r deep/n d; printf 'one\\n' >both; \
            echo first >deep/old; echo two >only"
            ),
        );
        let wanted = "one\ntwo\nfirst\nboth\ndeep\nonly\n2\nnew\nonfirst\nmore\nhostfs";
        assert_eq!(seen, wanted, "{node}");
    }
    let after = guest.status();
    assert!(served(&after, "a") > served(&before, "a") + 50);
    assert!(served(&after, "b") > served(&before, "b") + 50);
    on(
        &guest,
        "c",
        &script[..script.find("; cat deep/n").expect("the last part")],
    );
    for directory in [&one, &two] {
        assert_eq!(text(directory.join("deep/n")), "new\n");
        assert_eq!(text(directory.join("d/e/f")), "text\n");
        assert_eq!(text(directory.join("deep/old")), "first\nmore\n");
        assert_eq!(text(directory.join("both")), "on");
        assert_eq!(
            fs::read_link(directory.join("d/l")).expect("a link"),
            Path::new("../n")
        );
        let metadata = fs::metadata(directory.join("deep/n")).expect("a file");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
        assert!(!directory.join("m").exists() && !directory.join("x").exists());
    }
    assert_eq!(text(two.join("only")), "two\nmore\n");

    // What cannot be done in one of them fails, is done in the others, and is said. That one is read from last.
    fs::remove_file(two.join("both")).expect("a file");
    fs::create_dir(two.join("both")).expect("a directory");
    fs::write(two.join("deep/old"), "stale\n").expect("a file");
    let seen = on(
        &guest,
        "c",
        "rm /u/both 2>&1 || test -d /u/both && cat /u/deep/old; echo x >/u/after",
    );
    assert_eq!(
        seen,
        "rm: cannot remove '/u/both': Is a directory\nfirst\nmore"
    );
    assert!(!one.join("both").exists());
    assert_eq!(
        (text(one.join("after")), text(two.join("after"))),
        ("x\n".into(), "x\n".into())
    );
    let line = format!(
        "union: b:{} is degraded: removing a file: Is a directory",
        two.display()
    );
    let log = guest.whole_log();
    assert_eq!(log.matches(&line).count(), 1, "{log}");

    // Its members are what their nodes export, and no more.
    let (a, b) = (one.display(), two.display());
    let table = [
        (format!("union:a:{a}+b:{b}"), "mounted"),
        (format!("union:b:/etc+a:{a}"), "EPERM"),
        (format!("union:d:/x+a:{a}"), "EHOSTUNREACH"),
        (format!("union:b:sqlite:/x+a:{a}"), "EINVAL"),
        (format!("union:union:/x+a:{a}"), "EHOSTUNREACH"),
    ];
    let lines: Vec<&str> = table.iter().map(|(what, _)| what.as_str()).collect();
    let argv = ["/usr/bin/python3", "-c", MOUNT, &lines.join("\n")];
    let outcome = guest.exec(&argv).expect(0).text();
    for ((what, wanted), seen) in table.iter().zip(outcome.lines()) {
        assert_eq!(seen, *wanted, "{what}: {outcome}");
    }
    guest.down().expect(0);
    world.assert_clean();
}
