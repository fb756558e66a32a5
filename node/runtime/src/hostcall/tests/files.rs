//! Files, directories and terminals, from the node that has them and from another.

use super::guest::{errno, memory, on_both, place, seal, text};
use crate::hostcall::{fd::*, fs::*, syscall::*, tty::*};
use core::ptr;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

fn filled(len: usize, salt: u8) -> *mut u8 {
    let at = memory(len);
    for index in 0..len {
        // SAFETY: guest memory of that length.
        unsafe {
            at.add(index)
                .write((index as u8).wrapping_mul(31).wrapping_add(salt))
        };
    }
    at
}

fn same(a: *const u8, b: *const u8, len: usize) -> bool {
    // SAFETY: both have that length.
    unsafe { core::slice::from_raw_parts(a, len) == core::slice::from_raw_parts(b, len) }
}

#[test]
fn data_of_any_length_goes_through() {
    let dir = tempfile_dir();
    on_both(|node| {
        let path = text(&format!("{dir}/data-{node}"));
        let fd = __wrap_open64(path, libc::O_RDWR | libc::O_CREAT, 0o600);
        assert!((0..1 << 20).contains(&fd), "{fd:#x}");
        for len in [1, 4096, 65536, 65537, 200_000] {
            let (from, to) = (filled(len, node as u8), memory(len));
            seal();
            assert_eq!(__wrap_pwrite64(fd, from.cast(), len, 7), len as isize);
            seal();
            assert_eq!(__wrap_pread64(fd, to.cast(), len, 7), len as isize);
            assert!(same(from, to, len));
            assert_eq!(__wrap_lseek64(fd, 7, libc::SEEK_SET), 7);
            seal();
            assert_eq!(__wrap_read(fd, to.cast(), len), len as isize);
            assert_eq!(__wrap_read(fd, to.cast(), len), 0);
            assert_eq!(__wrap_lseek64(fd, 7, libc::SEEK_SET), 7);
            assert_eq!(__wrap_write(fd, from.cast(), len), len as isize);
            assert_eq!(__wrap_ftruncate64(fd, 7 + len as i64 / 2), 0);
            // A long read ends at the end of the file.
            assert_eq!(__wrap_pread64(fd, to.cast(), len, 7), (len / 2) as isize);
        }
        assert_eq!(__wrap_fsync(fd), 0);
        assert_eq!(__wrap_fdatasync(fd), 0);
        // Closed twice, by a number that the host gives to no other test in between.
        let far = fd & !0xfffff | 1000;
        assert_eq!(__wrap_dup2(fd, far), far);
        assert_eq!((__wrap_close(fd), __wrap_close(far)), (0, 0));
        assert_eq!((__wrap_close(far), errno()), (-1, libc::EBADF));
    });
}

#[test]
fn vectors_are_gathered_and_scattered() {
    let dir = tempfile_dir();
    on_both(|node| {
        let fd = __wrap_open64(
            text(&format!("{dir}/v{node}")),
            libc::O_RDWR | libc::O_CREAT,
            0o600,
        );
        let parts = [
            (filled(10, 1), 10),
            (filled(0, 2), 0),
            (filled(70_000, 3), 70_000),
        ];
        let vectors = parts.map(|(at, len)| libc::iovec {
            iov_base: at.cast(),
            iov_len: len,
        });
        let iov = place(vectors);
        seal();
        assert_eq!(__wrap_writev(fd, iov.cast(), 3), 70_010);
        __wrap_lseek64(fd, 0, libc::SEEK_SET);
        let into = [(memory(70_000), 70_000), (memory(10), 10)];
        let vectors = into.map(|(at, len)| libc::iovec {
            iov_base: at.cast(),
            iov_len: len,
        });
        let iov = place(vectors);
        seal();
        assert_eq!(__wrap_readv(fd, iov.cast(), 2), 70_010);
        assert!(same(parts[0].0, into[0].0, 10));
        assert!(same(parts[2].0, into[0].0.wrapping_add(10), 69_990));
        assert_eq!(
            (__wrap_readv(fd, iov.cast(), -1), errno()),
            (-1, libc::EINVAL)
        );
        // At a place, whatever the position is.
        assert_eq!(__wrap_pwritev64(fd, iov.cast(), 2, 5), 70_010);
        let back = [(memory(10), 10), (memory(70_001), 70_001)];
        let vectors = back.map(|(at, len)| libc::iovec {
            iov_base: at.cast(),
            iov_len: len,
        });
        let iov = place(vectors);
        seal();
        assert_eq!(__wrap_preadv64(fd, iov.cast(), 2, 5), 70_010);
        assert!(same(into[0].0, back[0].0, 10));
        assert!(same(into[0].0.wrapping_add(10), back[1].0, 69_990));
        assert!(same(into[1].0, back[1].0.wrapping_add(69_990), 10));
        assert_eq!(__wrap_preadv64(fd, iov.cast(), 2, 70_015), 0);
        __wrap_close(fd);
    });
}

fn tempfile_dir() -> String {
    let mut template = *b"/tmp/hostcall-XXXXXX\0";
    // SAFETY: a template string of this function's.
    let dir = unsafe { CStr::from_ptr(libc::mkdtemp(template.as_mut_ptr().cast())) };
    let dir = dir.to_str().unwrap().to_owned();
    // Nothing in it outlives the test process: removed when the last test thread is done.
    DIRS.lock().unwrap().push(dir.clone());
    // SAFETY: registers a function without arguments.
    unsafe { libc::atexit(remove_dirs) };
    dir
}

static DIRS: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());

extern "C" fn remove_dirs() {
    for dir in DIRS.lock().unwrap().drain(..) {
        let _ = std::fs::remove_dir_all(dir);
    }
}

#[test]
fn paths_and_attributes() {
    let dir = tempfile_dir();
    on_both(|node| {
        let name = |name: &str| text(&format!("{dir}/{node}-{name}"));
        let (file, other, link) = (name("file"), name("other"), name("link"));
        let fd = __wrap_open64(file, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o640);
        assert!(fd >= 0);
        assert_eq!(
            (
                __wrap_open64(file, libc::O_CREAT | libc::O_EXCL, 0),
                errno()
            ),
            (-1, libc::EEXIST)
        );
        assert_eq!(
            (__wrap_access(name("none"), libc::F_OK), errno()),
            (-1, libc::ENOENT)
        );
        let long = text(&"x".repeat(5000));
        assert_eq!(
            (__wrap_access(long, libc::F_OK), errno()),
            (-1, libc::ENAMETOOLONG)
        );
        assert_eq!(__wrap_fallocate64(fd, 0, 0, 1000), 0);
        assert_eq!(__wrap_fchmod(fd, 0o600), 0);
        assert_eq!(__wrap_fchown(fd, u32::MAX, u32::MAX), 0);
        assert_eq!(__wrap_chmod(file, 0o400), 0);
        assert_eq!(__wrap_chown(file, u32::MAX, u32::MAX), 0);

        // SAFETY: zero is a valid value of all of them.
        unsafe {
            let stat = place(core::mem::zeroed::<libc::stat64>());
            seal();
            assert_eq!(__wrap_fstat64(fd, stat), 0);
            assert_eq!(((*stat).st_size, (*stat).st_mode & 0o777), (1000, 0o400));
            seal();
            assert_eq!(__wrap_stat64(file, stat), 0);
            let ino = (*stat).st_ino;
            let statx = place(core::mem::zeroed::<libc::statx>());
            for (fd, path, flags) in [(-1, file, 0), (fd, text(""), libc::AT_EMPTY_PATH)] {
                seal();
                assert_eq!(
                    __wrap_statx(fd, path, flags, libc::STATX_BASIC_STATS, statx),
                    0
                );
                assert_eq!(((*statx).stx_ino, (*statx).stx_size), (ino, 1000));
                (*statx).stx_ino = 0;
            }
            let statfs = place(core::mem::zeroed::<libc::statfs64>());
            seal();
            assert_eq!(__wrap_statfs64(file, statfs), 0);
            assert!((*statfs).f_bsize > 0);

            let times = place([
                libc::timeval {
                    tv_sec: 1000,
                    tv_usec: 5,
                },
                libc::timeval {
                    tv_sec: 2000,
                    tv_usec: 999_999,
                },
            ]);
            seal();
            assert_eq!(__wrap_utimes(file, times.cast()), 0);
            __wrap_stat64(file, stat);
            assert_eq!(((*stat).st_atime, (*stat).st_mtime), (1000, 2000));
            assert_eq!((*stat).st_mtime_nsec, 999_999_000);
            (*times)[0].tv_sec = 3000;
            assert_eq!(__wrap_futimes(fd, times.cast()), 0);
            __wrap_stat64(file, stat);
            assert_eq!((*stat).st_atime, 3000);
            (*times)[1].tv_usec = 1_000_000;
            assert_eq!(
                (__wrap_futimes(fd, times.cast()), errno()),
                (-1, libc::EINVAL)
            );
        }

        assert_eq!(__wrap_truncate64(file, 10), 0);
        assert_eq!(__wrap_symlink(text("target"), link), 0);
        let buf = memory(100);
        seal();
        assert_eq!(__wrap_readlink(link, buf.cast(), 100), 6);
        assert!(same(buf, c"target".as_ptr().cast(), 6));
        assert_eq!(__wrap_link(file, other), 0);
        assert_eq!(__wrap_rename(other, name("moved")), 0);
        let (from, to) = (name("moved") as usize, name("file") as usize);
        let cwd = libc::AT_FDCWD as usize;
        let exclusive = libc::RENAME_NOREPLACE as usize;
        let result = __wrap_syscall(libc::SYS_renameat2, cwd, from, cwd, to, exclusive, 0);
        assert_eq!((result, errno()), (-1, libc::EEXIST));
        let to = name("again") as usize;
        assert_eq!(
            __wrap_syscall(libc::SYS_renameat2, cwd, from, cwd, to, exclusive, 0),
            0
        );
        for path in [file, link, name("again")] {
            assert_eq!(__wrap_unlink(path), 0);
        }
        assert_eq!(__wrap_mknod(other, libc::S_IFIFO | 0o600, 0), 0);
        assert_eq!(__wrap_unlink(other), 0);
        assert_eq!(__wrap_mkdir(other, 0o700), 0);
        assert_eq!(__wrap_rmdir(other), 0);
        let template = text(&format!("{dir}/made-{node}-XXXXXX")).cast_mut();
        seal();
        let made = __wrap_mkstemp64(template);
        assert!(made >= 0);
        assert_eq!(__wrap_unlink(template), 0);
        assert!(!__wrap_getcwd(buf.cast(), 100).is_null());
        // SAFETY: getcwd wrote a string.
        assert_eq!(unsafe { buf.read() }, b'/');
        assert!(__wrap_getcwd(buf.cast(), 1).is_null());
        assert_eq!(errno(), libc::ERANGE);
        assert_eq!(__wrap_chdir(text(".")), 0);
        for fd in [fd, made] {
            assert_eq!(__wrap_close(fd), 0);
        }
    });
}

#[test]
fn directories_are_listed() {
    let dir = tempfile_dir();
    std::fs::create_dir(format!("{dir}/d")).unwrap();
    for index in 0..300 {
        std::fs::write(format!("{dir}/d/file-{index}"), "").unwrap();
    }
    let list = |stream| {
        let mut names = Vec::new();
        let mut third = 0;
        loop {
            let entry = __wrap_readdir64(stream);
            if entry.is_null() {
                return (names, third);
            }
            // SAFETY: an entry of this thread's, until the next call.
            unsafe {
                names.push(
                    CStr::from_ptr((*entry).d_name.as_ptr())
                        .to_str()
                        .unwrap()
                        .to_owned(),
                );
                if names.len() == 3 {
                    third = (*entry).d_off;
                }
            }
        }
    };
    on_both(|_| {
        let stream = __wrap_opendir(text(&format!("{dir}/d")));
        assert!(!stream.is_null());
        let (names, third) = list(stream);
        assert_eq!(names.len(), 302);
        assert!(names.iter().any(|name| name == "file-299"));
        __wrap_seekdir(stream, third);
        let (rest, _) = list(stream);
        assert_eq!(rest, names[3..]);
        assert_eq!(__wrap_closedir(stream), 0);
        // What was closed, and what never was, names nothing.
        for stream in [stream, ptr::without_provenance_mut(77), ptr::null_mut()] {
            assert!(__wrap_readdir64(stream).is_null());
            assert_eq!((__wrap_closedir(stream), errno()), (-1, libc::EBADF));
        }
        assert!(__wrap_opendir(text("/nonexistent")).is_null());
        assert_eq!(errno(), libc::ENOENT);

        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let fd = __wrap_open64(text(&format!("{dir}/d")), flags, 0);
        let buf = memory(60_000);
        seal();
        let n = __wrap_syscall(
            libc::SYS_getdents64,
            fd as usize,
            buf as usize,
            60_000,
            0,
            0,
            0,
        );
        assert!(n > 302 * 24, "{n}");
        __wrap_close(fd);
    });
}

#[test]
fn terminals() {
    // SAFETY: opens a pseudo terminal, owned from here on.
    let master = unsafe { OwnedFd::from_raw_fd(libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY)) };
    let fd = master.as_raw_fd();
    on_both(|_| {
        // SAFETY: zero is a valid value of all of them.
        unsafe {
            assert_eq!(__wrap_grantpt(fd), 0);
            assert_eq!(__wrap_unlockpt(fd), 0);
            assert_eq!(__wrap_isatty(fd), 1);
            let name = __wrap_ptsname(fd);
            assert!(
                CStr::from_ptr(name)
                    .to_str()
                    .unwrap()
                    .starts_with("/dev/pts/")
            );
            let termios = place(core::mem::zeroed::<libc::termios>());
            seal();
            assert_eq!(__wrap_tcgetattr(fd, termios), 0);
            assert_ne!((*termios).c_cflag, 0);
            (*termios).c_lflag &= !libc::ECHO;
            seal();
            assert_eq!(__wrap_tcsetattr(fd, libc::TCSANOW, termios), 0);
            let again = place(core::mem::zeroed::<libc::termios>());
            assert_eq!(__wrap_tcgetattr(fd, again), 0);
            assert_eq!((*again).c_lflag, (*termios).c_lflag);
            (*termios).c_lflag |= libc::ECHO;
            assert_eq!(__wrap_tcsetattr(fd, libc::TCSANOW, termios), 0);

            let size = libc::winsize {
                ws_row: 33,
                ws_col: 44,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            let window = place(size);
            seal();
            assert_eq!(__wrap_ioctl(fd, libc::TIOCSWINSZ, window.cast()), 0);
            window.write_bytes(0, 1);
            seal();
            assert_eq!(__wrap_ioctl(fd, libc::TIOCGWINSZ, window.cast()), 0);
            assert_eq!(((*window).ws_row, (*window).ws_col), (33, 44));
            // Not known, with a guest pointer.
            assert_eq!(__wrap_ioctl(fd, 0xdead, window.cast()), -1);
            assert_eq!(errno(), libc::ENOTTY);
            let file = __wrap_open64(text("/dev/null"), libc::O_RDWR, 0);
            assert_eq!((__wrap_isatty(file), errno()), (0, libc::ENOTTY));
            assert_eq!(
                (__wrap_tcgetattr(file, termios), errno()),
                (-1, libc::ENOTTY)
            );
            __wrap_close(file);

            let (one, other) = (place(-1), place(-1));
            let none = ptr::null();
            seal();
            assert_eq!(__wrap_openpty(one, other, ptr::null_mut(), none, none), 0);
            assert_eq!((__wrap_isatty(*one), __wrap_isatty(*other)), (1, 1));
            assert_eq!((__wrap_close(*other), __wrap_close(*one)), (0, 0));
        }
    });
}

#[test]
fn descriptor_flags_and_locks() {
    on_both(|node| {
        let fd = __wrap_open64(text("/tmp"), libc::O_RDWR | libc::O_TMPFILE, 0o600);
        let flags = __wrap_fcntl64(fd, libc::F_GETFL, 0);
        assert_eq!(flags & libc::O_ACCMODE, libc::O_RDWR);
        // What is no argument may look like a pointer.
        let left_over = place(0u64) as i64;
        assert_eq!(__wrap_fcntl64(fd, libc::F_GETFL, left_over), flags);
        let set = i64::from(flags | libc::O_NONBLOCK);
        assert_eq!(__wrap_fcntl64(fd, libc::F_SETFL, set), 0);
        assert_eq!(
            __wrap_fcntl64(fd, libc::F_GETFL, 0) & libc::O_NONBLOCK,
            libc::O_NONBLOCK
        );
        assert_eq!(__wrap_fcntl64(fd, libc::F_SETFD, 1), 0);
        assert_eq!(__wrap_fcntl64(fd, libc::F_GETFD, 0), 1);
        // Whoever asks, and whatever process it names: the owner's process gets the signals.
        assert_eq!(__wrap_fcntl64(fd, libc::F_SETOWN, 1), 0);
        // SAFETY: no conditions.
        assert_eq!(__wrap_fcntl64(fd, libc::F_GETOWN, 0), unsafe {
            libc::getpid()
        });
        // SAFETY: zero is a valid lock: a read lock on everything.
        let lock = place(unsafe { core::mem::zeroed::<libc::flock64>() });
        for command in [libc::F_SETLK, libc::F_GETLK] {
            seal();
            assert_eq!(__wrap_fcntl64(fd, command, lock as i64), 0);
        }
        // SAFETY: F_GETLK filled it.
        assert_eq!(i32::from(unsafe { (*lock).l_type }), libc::F_UNLCK);
        let copy = __wrap_dup(fd);
        assert!(copy != fd && copy < 1 << 20, "node {node}: {copy:#x}");
        assert_eq!(__wrap_dup2(fd, copy), copy);
        assert_eq!(__wrap_close(copy), 0);
        assert_eq!(__wrap_close(fd), 0);
    });
}
