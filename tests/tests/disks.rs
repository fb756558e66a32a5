//! What disks are made of and used for: discs, block devices of the host, swap, file systems that give space back.

use span_tests::{Up, World, on, served};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const NODES: [&str; 3] = ["a", "b", "c"];
const MIB: usize = 1 << 20;

/// A program of this host's.
fn host(program: &str, arguments: &[&str]) -> Result<String, String> {
    let done = Command::new(program)
        .args(arguments)
        .env("PATH", span_tests::PATH)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    match done.status.success() {
        true => Ok(said.trim_end().to_owned()),
        false => Err(format!("{program}: {}", said.trim_end())),
    }
}

/// A file of zeros that takes no space.
fn sparse(world: &World, name: &str, bytes: usize) -> PathBuf {
    let path = world.file(name, "");
    let file = fs::File::options().write(true).open(&path);
    file.and_then(|file| file.set_len(bytes as u64))
        .expect("a size");
    path
}

#[test]
fn a_disc_is_mounted() {
    let world = World::new();
    let tree = world.path("work").join("tree");
    fs::create_dir_all(tree.join("deep")).expect("a directory");
    let numbers: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    fs::write(tree.join("deep/A long name, in lower case"), &numbers).expect("a file");
    let disc = world.path("work").join("disc.iso");
    let (from, to) = (tree.display().to_string(), disc.display().to_string());
    let made = host(
        "xorriso",
        &["-as", "mkisofs", "-quiet", "-R", "-o", &to, &from],
    );
    made.expect("a disc");
    let value = format!("b:{to},ro");
    let guest = Up::three(&world).options(&["--ubd", &value]).detach("disc");
    let before = guest.status();
    on(
        &guest,
        "a",
        "mkdir /d && mount -t iso9660 -o ro /dev/ubda /d",
    );
    for node in NODES {
        let seen = on(
            &guest,
            node,
            "cksum <'/d/deep/A long name, in lower case'; touch /d/x 2>&1; :",
        );
        let wanted = host(
            "sh",
            &[
                "-c",
                "cksum <\"$1\"",
                "sh",
                &tree
                    .join("deep/A long name, in lower case")
                    .display()
                    .to_string(),
            ],
        );
        assert_eq!(
            seen.lines().next(),
            wanted.as_deref().ok(),
            "{node}: {seen}"
        );
        assert!(seen.ends_with("Read-only file system"), "{seen}");
    }
    assert!(served(&guest.status(), "b") > served(&before, "b") + 10);
    guest.down().expect(0);
    world.assert_clean();
}

/// A block device of this host's, until it is dropped.
struct Loop(String);

impl Loop {
    fn of(file: &Path) -> Result<Self, String> {
        let file = file.display().to_string();
        host("losetup", &["--find", "--show", "--nooverlap", &file]).map(Self)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = host("losetup", &["--detach", &self.0]);
    }
}

#[test]
fn a_block_device_of_the_hosts_is_a_disk() {
    let world = World::new();
    let file = sparse(&world, "file", 24 * MIB);
    let device = match Loop::of(&file) {
        Ok(device) => device,
        Err(why) => {
            span_tests::not_tested(&format!("block devices of the host as disks: {why}"));
            return;
        }
    };
    let value = format!("b:{}", device.0);
    let guest = Up::three(&world)
        .options(&["--ubd", &value])
        .detach("device");
    let before = guest.status();
    for node in NODES {
        let size = on(&guest, node, "blockdev --getsize64 /dev/ubda");
        assert_eq!(size, (24 * MIB).to_string());
    }
    let script = "mkfs.ext4 -q /dev/ubda && mkdir /m && mount /dev/ubda /m && seq 100000 >/m/f && umount /m && \
        printf end | dd of=/dev/ubda bs=1 seek=25165821 conv=notrunc,fsync 2>/dev/null";
    on(&guest, "a", script);
    let seen = on(
        &guest,
        "c",
        "tail -c 3 /dev/ubda; mount -o ro /dev/ubda /m; wc -l </m/f; umount /m; \
         dd if=/dev/zero of=/dev/ubda bs=1M seek=24 count=1 2>&1 | grep -c 'No space left'",
    );
    assert_eq!(seen, "end100000\n1");
    assert!(served(&guest.status(), "b") > served(&before, "b") + 50);
    guest.down().expect(0);
    drop(device);
    let mut bytes = [0; 3];
    let host_file = fs::File::open(&file).expect("a file");
    host_file
        .read_exact_at(&mut bytes, 24 * MIB as u64 - 3)
        .expect("a read");
    assert_eq!(&bytes, b"end");
    world.assert_clean();
}

/// Puts memory out to swap, and reads it on other nodes.
const OUT: &str = "import ctypes,mmap,os,sys\n\
    os.sched_setaffinity(0,{0})\n\
    n=8<<20\nm=mmap.mmap(-1,n,flags=mmap.MAP_PRIVATE|mmap.MAP_ANONYMOUS)\n\
    for at in range(0,n,4096): m[at:at+8]=b'%8d'%at\n\
    at=ctypes.addressof(ctypes.c_char.from_buffer(m))\n\
    c=ctypes.CDLL(None,use_errno=True)\nc.madvise.argtypes=[ctypes.c_size_t,ctypes.c_size_t,ctypes.c_int]\n\
    assert c.madvise(at,n,21)==0\n\
    kib=[int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmSwap')][0]\n\
    assert kib>4096,kib\n\
    for cpu in 0,2,1:\n \
      os.sched_setaffinity(0,{cpu})\n \
      for k in range(cpu*4096,n,3*4096): assert m[k:k+8]==b'%8d'%k,(cpu,k)\n\
    print('swapped')";

#[test]
fn memory_is_swapped_out_to_another_node() {
    let world = World::new();
    let value = format!("b:{}", sparse(&world, "swap", 32 * MIB).display());
    let guest = Up::three(&world).options(&["--ubd", &value]).detach("swap");
    on(
        &guest,
        "a",
        "mkswap /dev/ubda >/dev/null && swapon /dev/ubda",
    );
    let before = guest.status();
    let argv = ["taskset", "-c", "0", "/usr/bin/python3", "-c", OUT];
    let seen = guest.exec(&[&argv[..2], &["0,1,2"], &argv[3..]].concat());
    assert_eq!(seen.expect(0).text(), "swapped");
    let after = guest.status();
    after.assert_moved(&before);
    assert!(served(&after, "b") > served(&before, "b") + 50);
    on(&guest, "c", "swapoff /dev/ubda");
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn a_file_system_gives_space_back() {
    let world = World::new();
    let image = sparse(&world, "image", 64 * MIB);
    let value = format!("b:{}", image.display());
    let guest = Up::three(&world).options(&["--ubd", &value]).detach("trim");
    on(
        &guest,
        "a",
        "mkfs.ext4 -q /dev/ubda && mkdir /m && mount /dev/ubda /m && dd if=/dev/urandom of=/m/f bs=1M count=24 \
         conv=fsync 2>/dev/null && echo kept >/m/kept && sync",
    );
    let bytes = || fs::metadata(&image).expect("a file").blocks() * 512;
    let full = bytes();
    assert!(full >= 24 * MIB as u64, "{full}");
    let said = on(&guest, "c", "rm /m/f && sync && fstrim -v /m");
    assert!(said.contains("trimmed"), "{said}");
    assert!(bytes() + 20 * (MIB as u64) < full, "{} of {full}", bytes());
    assert_eq!(
        on(
            &guest,
            "a",
            "echo 3 >/proc/sys/vm/drop_caches; cat /m/kept; umount /m"
        ),
        "kept"
    );
    guest.down().expect(0);
    host("e2fsck", &["-fn", &image.display().to_string()]).expect("a whole file system");
    world.assert_clean();
}
