//! What is durable, and files of slow hosts.

use super::{MIB, NODES, host, noise, sparse, sum, with_disks};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use span_tests::{Outcome, SHORT_S_MAX, Up, World, on, served, wait_until};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where files say how slow the host is, and a kernel that looks there.
fn slow_host(world: &World) -> (PathBuf, PathBuf) {
    let source = world.file("slow-host.c", include_str!("../../programs/slow-host.c"));
    let place = world.path("work").join("slow-host");
    fs::create_dir(&place).expect("a directory");
    let (library, kernel) = (place.join("library.so"), place.join("linux"));
    let real = span_tests::find("linux").expect("a kernel");
    let compile = |output: &Path, flags: &[String]| {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let files = [source.display().to_string(), output.display().to_string()];
        let arguments = [&flags[..], &[&files[0], "-o", &files[1]]].concat();
        let (code, said) = host("gcc", &arguments);
        assert_eq!(code, 0, "{said}");
    };
    compile(&library, &["-O2".into(), "-fPIC".into(), "-shared".into()]);
    compile(
        &kernel,
        &[
            "-O2".into(),
            format!("-DKERNEL=\"{}\"", real.display()),
            format!("-DLIBRARY=\"{}\"", library.display()),
        ],
    );
    (place, kernel)
}

#[track_caller]
fn on_slow_host<'w>(world: &'w World, disks: &[String]) -> (PathBuf, Up<'w>) {
    let (place, kernel) = slow_host(world);
    let variable = format!("SPAN_SLOW_HOST={}", place.display());
    let up = with_disks(world, disks)
        .through(&["env", &variable])
        .option("--kernel")
        .option(kernel);
    (place, up)
}

#[test]
fn what_is_said_to_be_durable_was_made_so_by_the_host() {
    let world = World::new();
    let base = world.file("base", noise(MIB));
    let disks = [
        format!("b:{}", sparse(&world, "image", 16 * MIB).display()),
        format!(
            "c:{},cow={}",
            base.display(),
            world.path("work").join("cow").display()
        ),
    ];
    let (place, up) = on_slow_host(&world, &disks);
    let guest = up.detach("durable");
    let synced = || fs::metadata(place.join("synced")).map_or(0, |file| file.len());
    on(
        &guest,
        "a",
        "mkfs.ext4 -q /dev/ubda && mkdir -p /m && mount /dev/ubda /m",
    );
    for node in NODES {
        for script in [
            "echo text >/m/f; sync /m/f",
            "dd if=/dev/urandom of=/dev/ubdb bs=512 count=1 conv=notrunc,fsync 2>/dev/null",
        ] {
            let before = synced();
            on(&guest, node, script);
            assert!(synced() > before, "{node}: {script}");
        }
    }
    // Where that fails, the program hears of it.
    fs::write(place.join("fail"), "").expect("a file");
    let write = "dd if=/dev/urandom of=/dev/ubdb bs=512 count=1 conv=notrunc,fsync 2>&1 || true";
    for node in NODES {
        let seen = on(&guest, node, write);
        assert!(seen.contains("Input/output error"), "{node}: {seen}");
    }
    let seen = on(&guest, "c", "echo more >/m/f; sync /m/f 2>&1 || true");
    assert!(seen.contains("Input/output error"), "{seen}");
    fs::remove_file(place.join("fail")).expect("removing it");
    guest.down();
    world.assert_clean();
}

/// Reads from as many disks at the same time.
const READERS: &str = "import mmap,os,sys,threading\n\
    def read(n):\n \
      f=os.open('/dev/ubd'+chr(97+n),os.O_RDONLY|os.O_DIRECT)\n m=mmap.mmap(-1,4096)\n \
      assert os.preadv(f,[m],0)==4096\n\
    all=[threading.Thread(target=read,args=(n,)) for n in range(int(sys.argv[1]))]\n\
    for one in all: one.start()\n\
    print('begun',flush=True)\n\
    for one in all: one.join()\n\
    print('over')";

#[test]
fn slow_files_keep_nobody_else_waiting() {
    const HELD: usize = 12;
    let world = World::new();
    let mut disks: Vec<String> = (0..HELD)
        .map(|n| format!("c:{}", sparse(&world, &format!("{n}.held"), MIB).display()))
        .collect();
    disks.push(format!("c:{}", world.file("quick", noise(MIB)).display()));
    let (place, up) = on_slow_host(&world, &disks);
    let guest = up.detach("held");
    let hold = place.join("hold");
    fs::write(&hold, "").expect("a file");
    // More than there are threads for other nodes' calls to begin with.
    let argv = ["/usr/bin/python3", "-c", READERS, &HELD.to_string()];
    let mut waiting = guest.begin(&[&["taskset", "-c", "1"][..], &argv].concat());
    waiting.wait_for("begun\n", Duration::from_secs(SHORT_S_MAX));
    let held = || fs::metadata(place.join("held")).map_or(0, |file| file.len());
    let all = wait_until(Duration::from_secs(SHORT_S_MAX), || held() == HELD as u64);
    assert!(all, "{} reads wait", held());
    for node in NODES {
        let seen = on(
            &guest,
            node,
            "dd if=/dev/ubdm bs=64k iflag=direct 2>/dev/null | sha256sum",
        );
        assert_eq!(
            seen.split_whitespace().next(),
            Some(sum(&noise(MIB)).as_str()),
            "{node}"
        );
        // Processes of their own, files of the first node's host, and pages of all.
        assert_eq!(
            on(
                &guest,
                node,
                "cat /proc/self/comm; wc -c </etc/passwd >/dev/null"
            ),
            "cat"
        );
    }
    assert!(!String::from_utf8_lossy(&waiting.stdout()).contains("over"));
    fs::remove_file(&hold).expect("removing it");
    waiting.wait(Duration::from_secs(20)).expect(0);
    guest.down().expect(0);
    world.assert_clean();
}

/// Writes files and says which of them are durable.
const WRITER: &str = "import hashlib,os\n\
    os.chdir('/m')\nn=0\nwhile True:\n \
      f=os.open('f%d'%(n%200),os.O_RDWR|os.O_CREAT|os.O_TRUNC)\n \
      os.write(f,(hashlib.sha256(b'%d'%n).hexdigest()*(1+n*7%300)).encode())\n os.fsync(f)\n os.close(f)\n \
      d=os.open('.',os.O_RDONLY)\n os.fsync(d)\n os.close(d)\n \
      os.write(1,b'%d\\n'%n)\n n+=1";

/// What file `n` of [`WRITER`] has in it.
fn written(n: usize) -> String {
    sum(n.to_string().as_bytes()).repeat(1 + n * 7 % 300)
}

#[test]
fn nothing_durable_is_lost_with_a_node() {
    let times = span_tests::number("SPAN_UBD_KILLS", 2) as usize;
    for time in 0..times {
        let world = World::new();
        let image = sparse(&world, "image", 48 * MIB);
        // The disk's owner, the writer, neither.
        let victim = NODES[(time + 1) % 3];
        let script = format!(
            "mkfs.ext4 -q /dev/ubda && mkdir /m && mount /dev/ubda /m && echo up && \
             exec taskset -c {} /usr/bin/python3 -c \"{WRITER}\"",
            2
        );
        let mut running =
            with_disks(&world, &[format!("b:{}", image.display())]).start_with(&script);
        let before = served(&running.guest.status(), "b");
        let enough = 20 + time * 13 % 60;
        running
            .coordinator
            .wait_for(&format!("\n{enough}\n"), Duration::from_secs(60));
        let status = running.guest.status();
        assert!(served(&status, "b") > before + enough as u64);
        kill(Pid::from_raw(status.pid(victim)), Signal::SIGKILL).expect("a process");
        let outcome = running.coordinator.wait(Duration::from_secs(20)).expect(70);
        world.assert_clean();

        let shown = image.display().to_string();
        let (code, said) = host("e2fsck", &["-p", &shown]);
        assert!(code <= 1, "{victim}: {said}");
        let (code, said) = host("e2fsck", &["-fn", &shown]);
        assert_eq!(code, 0, "{victim}: {said}");
        let out = world.path("work").join("out");
        fs::create_dir(&out).expect("a directory");
        let (_, said) = host(
            "debugfs",
            &["-R", &format!("rdump / {}", out.display()), &shown],
        );
        let last = durable(&outcome);
        assert!(last >= enough, "{last}");
        for n in last.saturating_sub(199)..=last {
            let found = fs::read_to_string(out.join(format!("f{}", n % 200)));
            let found = found.unwrap_or_else(|error| panic!("{n} of {last}: {error}: {said}"));
            // The next one in its place may have been begun, and is not durable.
            let next = last < n + 200 && n + 200 <= last + 1;
            assert!(
                found == written(n) || next,
                "{n} of {last} is {:?}",
                &found.get(..64)
            );
        }
    }
}

/// The last file that the guest said is durable.
fn durable(outcome: &Outcome) -> usize {
    let text = String::from_utf8_lossy(&outcome.stdout);
    // The last line may have been broken off.
    let (whole, _) = text.rsplit_once('\n').expect("a line");
    let mut last = whole.lines().filter_map(|line| line.trim().parse().ok());
    last.next_back().expect("a number")
}
