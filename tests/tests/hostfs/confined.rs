//! What of a host stays as it is, and out of reach.

use super::{MOUNT, NODES, directories, three};
use span_tests::{Up, World, python, text};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

#[test]
fn what_is_read_only_stays_as_it_is() {
    let world = World::new();
    let [_, directory, _] = directories(&world);
    fs::create_dir(directory.join("d")).expect("a directory");
    let up = Up::three(&world).option("--hostfs");
    let guest = up
        .option(format!("b:{}=/h,ro", directory.display()))
        .detach("constant");
    let before = fs::metadata(directory.join("name")).expect("a file");
    // What the guest thinks of its mount is one thing, what the node allows another.
    let script = "import os,errno\n\
        def no(call,*a):\n \
          try:call(*a)\n except OSError as e:\n  assert e.errno==errno.EROFS,(call,e)\n  return\n \
          assert 0,call\n\
        os.chdir('/h')\n\
        for mount in 'ro','rw':\n \
          assert os.system('mount -o remount,'+mount+' /h')==0\n \
          assert open('name').read()=='of b\\n'\n \
          for f in os.O_WRONLY,os.O_RDWR,os.O_RDONLY|os.O_CREAT,os.O_RDONLY|os.O_TRUNC:\n  \
            no(os.open,'name' if not f&os.O_CREAT else 'new',f)\n \
          no(os.mkdir,'x')\n no(os.rmdir,'d')\n no(os.unlink,'name')\n no(os.rename,'name','x')\n \
          no(os.link,'name','x')\n no(os.symlink,'name','x')\n no(os.mkfifo,'x')\n no(os.truncate,'name',0)\n \
          no(os.chmod,'name',0o600)\n no(os.chown,'name',1,1)\n no(os.utime,'name',(1,1))\n\
        print('kept')";
    for node in NODES {
        assert_eq!(python(&guest, node, script), "kept");
    }
    let after = fs::metadata(directory.join("name")).expect("a file");
    assert_eq!(
        (after.ctime(), after.ctime_nsec(), after.mode()),
        (before.ctime(), before.ctime_nsec(), before.mode())
    );
    assert_eq!(fs::read_dir(&directory).expect("a directory").count(), 2);
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn nothing_else_can_be_mounted() {
    let world = World::new();
    let directories = directories(&world);
    let [a, b, c] = directories
        .each_ref()
        .map(|path| path.display().to_string());
    fs::create_dir_all(directories[1].join("inside/deep")).expect("a directory");
    symlink("inside", directories[1].join("in")).expect("a link");
    symlink("../c", directories[1].join("out")).expect("a link");
    symlink("/etc", directories[1].join("absolute")).expect("a link");
    let options = ["--root", "host"];
    let guest = three(&world, &directories).options(&options).detach("jail");
    let long = format!("b:{b}/{}", "x".repeat(256));
    let longer = format!("b:{b}{}", "/x".repeat(2100));
    let table = [
        (format!("b:{b}"), "mounted"),
        (format!("b:{b}/inside/./deep//"), "mounted"),
        (format!("b:{b}/in/deep"), "mounted"),
        // All of the first node's is the guest's root.
        ("/".into(), "mounted"),
        (a.clone(), "mounted"),
        ("a:/etc".into(), "mounted"),
        // Only with its own node.
        (format!("c:{b}"), "EPERM"),
        (format!("b:{c}"), "EPERM"),
        ("b:/".into(), "EPERM"),
        ("b:/etc".into(), "EPERM"),
        ("b:../../../etc".into(), "EPERM"),
        ("../../../etc".into(), "EPERM"),
        (format!("b:{b}/../../../etc"), "EPERM"),
        (format!("b:{b}/inside/../../c"), "EPERM"),
        (format!("b:{b}/inside/.."), "EPERM"),
        (format!("b:{b}x"), "EPERM"),
        (format!("b:{b}/out/."), "ELOOP"),
        (format!("b:{b}/out/name"), "EPERM"),
        (format!("b:{b}/absolute/passwd"), "EPERM"),
        (format!("b:{b}/in"), "ELOOP"),
        (format!("b:{b}/none"), "ENOENT"),
        (format!("b:{b}/name/x"), "ENOTDIR"),
        ("d:/".into(), "EHOSTUNREACH"),
        (format!("b.example:{b}"), "EHOSTUNREACH"),
        (format!("span://b{b}"), "EHOSTUNREACH"),
        ("b:".into(), "EPERM"),
        (long, "ENAMETOOLONG"),
        (longer, "ENAMETOOLONG"),
    ];
    let lines: Vec<&str> = table.iter().map(|(what, _)| what.as_str()).collect();
    for node in NODES {
        let argv = ["/usr/bin/python3", "-c", MOUNT, &lines.join("\n")];
        let outcome = guest.exec_on(&["--node", node], &argv).expect(0).text();
        for ((what, wanted), line) in table.iter().zip(outcome.lines()) {
            let ways = line.split_whitespace().all(|way| way == *wanted);
            assert!(ways && line.starts_with(wanted), "{what} on {node}: {line}");
        }
        assert_eq!(outcome.lines().count(), table.len());
    }
    let log = guest.sh("dmesg");
    for line in [
        "hostfs: mounting b:/etc: error -1\n".to_string(),
        "hostfs: mounting d:/: error -113\n".to_string(),
        format!("hostfs: mounting b:{b}/in: is a symbolic link\n"),
    ] {
        assert_eq!(log.matches(&line).count(), 3, "{line}{log}");
    }
    guest.down().expect(0);
    world.assert_clean();
}

/// Mounts what it is told to, and writes what a file in it says, or why it could not, to a file of its own.
const ESCAPE: &str = r#"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int to = open("/result", O_CREAT | O_TRUNC | O_WRONLY, 0644), from;
	char text[64];
	ssize_t n;

	if (argc < 2 || to < 0)
		return 1;
	if (mount("none", "/mnt", "hostfs", 0, argv[1])) {
		const char *why = strerror(errno);

		n = write(to, why, strlen(why));
	} else {
		from = open("/mnt/name", O_RDONLY);
		n = read(from, text, sizeof(text));
		n = write(to, text, n < 0 ? 0 : n);
	}
	close(to);
	sync();
	if (getpid() == 1)
		reboot(RB_POWER_OFF);
	return n < 0;
}
"#;

/// What is tested here is not so elsewhere: upstream's `hostfs=` is to keep mounts below a directory, too.
#[test]
fn upstreams_hostfs_leads_out() {
    let world = World::new();
    let jail = world.path("work").join("jail");
    for directory in ["bin", "dev", "mnt", "proc", "sys", "tmp", "etc"] {
        fs::create_dir_all(jail.join(directory)).expect("a directory");
    }
    fs::create_dir(world.path("work").join("beside")).expect("a directory");
    world.file("beside/name", "secret\n");
    let program = world.compile("escape", ESCAPE).expect("a compiler");
    fs::copy(&program, jail.join("escape")).expect("a program");
    let result = || {
        let text = text(jail.join("result"));
        fs::remove_file(jail.join("result")).expect("a file");
        text
    };
    let absolute = jail.join("../beside").display().to_string();
    for what in ["../beside", "/../beside", absolute.as_str()] {
        let up = Up::on(&world, "a").option("--root").option(&jail);
        up.run(&["/escape", what]).expect(0);
        assert_eq!(result(), "Operation not permitted", "{what}");
    }
    let Some(kernel) = span_tests::upstream_kernel() else {
        span_tests::not_tested(span_tests::UPSTREAM_MISSING);
        return;
    };
    let mut command = span_tests::upstream(&world, &kernel, 1, 128, &["/escape", "../beside"]);
    command.arg(format!("hostfs={}", jail.display()));
    let limit = std::time::Duration::from_secs(span_tests::SHORT_S_MAX);
    let mut upstream = span_tests::Spawned::start(&mut command);
    upstream.feed(Vec::new());
    upstream.wait(limit);
    assert_eq!(result(), "secret\n");
    world.assert_clean();
}

/// Somebody on the host exchanges a directory for a link that leads out, while the guest is in it.
#[test]
fn a_directory_that_is_exchanged_leads_nowhere() {
    let world = World::new();
    let directories = directories(&world);
    let [_, here, beside] = &directories;
    fs::create_dir(here.join("sub")).expect("a directory");
    fs::write(here.join("sub/name"), "inside\n").expect("a file");
    symlink("../c", here.join("trap")).expect("a link");
    let guest = Up::three(&world)
        .option("--hostfs")
        .option(format!("b:{}=/h", here.display()))
        .detach("race");
    // Who is in a directory looks for what is in it without a look at the way there.
    let script = "import os,time,collections\n\
        seen=collections.Counter()\nend=time.time()+3\nboth=lambda: {type(k) for k in seen}=={str,int}\n\
        while os.getcwd()!='/h/sub':\n \
          try: os.chdir('/h/sub')\n \
          except OSError: pass\n\
        while time.time()<end or not both():\n \
          try:\n  seen[open('name').read()]+=1\n \
          except OSError as e: seen[e.errno]+=1\n \
          try:\n  open('made','w').close();os.unlink('made')\n \
          except OSError as e: seen[e.errno]+=1\n\
        print(sorted(k for k in seen if isinstance(k,str)), any(isinstance(k,int) for k in seen))";
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (sub, trap) = (here.join("sub"), here.join("trap"));
            while !over.load(Relaxed) {
                exchange(&sub, &trap);
            }
        });
        // Also if what follows fails.
        let _end = OnDrop(&over);
        for node in NODES {
            let seen = python(&guest, node, script);
            assert_eq!(seen, "['inside\\n'] True", "{node}");
        }
    });
    assert_eq!(text(beside.join("name")), "of c\n");
    assert_eq!(fs::read_dir(beside).expect("a directory").count(), 1);
    guest.down().expect(0);
    world.assert_clean();
}

/// Raises a flag in the end.
struct OnDrop<'f>(&'f AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn exchange(one: &Path, other: &Path) {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)
        .expect("both are there");
}
