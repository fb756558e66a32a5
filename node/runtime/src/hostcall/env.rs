//! What the boundary knows of the rest of the runtime, and where a descriptor or path belongs.

use super::export::{self, DISK_SCHEME, SCHEME};
use super::slot::{self, Slot};
use core::ffi::c_char;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// A handle is `node << NODE_SHIFT | descriptor`, so those of node 0 are plain descriptors.
pub(super) const NODE_SHIFT: u32 = 20;
pub(super) const FD_MASK: i32 = (1 << NODE_SHIFT) - 1;

/// The node that owns everything the guest opens by path, but for hostfs's, and its network sockets.
const OWNER: u16 = 0;

/// Lines that [`note`] passes on in the life of the process; more would be the same line again.
const NOTES_MAX: u32 = 256;

/// The runtime's side of the boundary. Except for `log` and `forward`, which run on a host stack,
/// the functions run on a virtual CPU's thread, possibly in a signal handler: they must not
/// allocate, lock or block. None of them may touch guest memory.
#[derive(Debug)]
pub struct Env {
    /// This node's index.
    pub node: fn() -> u16,
    /// Does this range of addresses touch guest memory?
    pub is_guest: fn(usize, usize) -> bool,
    /// Has `owner` serve the request and puts its reply into the buffer; returns the reply's length,
    /// 0 if there is none because the node is lost. Runs on a host stack with all signals but the
    /// fault signals blocked.
    pub forward: fn(u16, &[u8], &mut [u8]) -> usize,
    /// What to add to this host's monotonic clock to get the guest's, in nanoseconds.
    pub clock_offset_ns: fn() -> i64,
    /// One line for the runtime's log. Must not lock or allocate.
    pub log: fn(&str),
}

static ENV: AtomicPtr<Env> = AtomicPtr::new(core::ptr::null_mut());

/// In a guest on one node.
static ALONE: AtomicPtr<Env> = AtomicPtr::new(core::ptr::null_mut());

/// Descriptors below 64 that every node has its own copy of: standard input, output and error, and
/// what [`share_fd`] added.
static EVERYWHERE: AtomicU64 = AtomicU64::new(0b111);

static PATHS_LOCAL: AtomicBool = AtomicBool::new(false);
static NOTES: AtomicU32 = AtomicU32::new(0);

/// Switches the wrappers on. Without it they are libc's own functions: a guest on one node has
/// nothing else to wrap than [`install_for_hostfs`] does. Call it once, before the image's `linux_main` and before memory is shared.
pub fn install(env: &'static Env) -> std::io::Result<()> {
    slot::prepare()?;
    ENV.store(core::ptr::from_ref(env).cast_mut(), Ordering::Release);
    Ok(())
}

/// Switches the wrappers on for paths of hostfs's only: all that a guest on one node needs.
pub fn install_for_hostfs(env: &'static Env) -> std::io::Result<()> {
    slot::prepare()?;
    ALONE.store(core::ptr::from_ref(env).cast_mut(), Ordering::Release);
    Ok(())
}

/// While set, paths and new sockets belong to this node: a node other than the first sets up its own
/// host half (stub binary, temporary files, processor features) with the image's code.
pub fn set_paths_local(local: bool) {
    PATHS_LOCAL.store(local, Ordering::Release);
}

pub(super) fn paths_local() -> bool {
    PATHS_LOCAL.load(Ordering::Acquire)
}

/// Declares that every node has its own descriptor of this number (the guest memory file).
/// Returns false if the number is not below 64.
pub fn share_fd(fd: i32) -> bool {
    match u32::try_from(fd) {
        Ok(bit) if bit < 64 => {
            EVERYWHERE.fetch_or(1 << bit, Ordering::AcqRel);
            true
        }
        _ => false,
    }
}

/// Context: signal.
pub(super) fn active() -> Option<&'static Env> {
    let env = ENV.load(Ordering::Acquire);
    // SAFETY: either null or the `&'static Env` that `install` stored.
    unsafe { env.as_ref() }
}

/// As [`active`], also in a guest on one node.
pub(super) fn any() -> Option<&'static Env> {
    active().or_else(|| {
        let env = ALONE.load(Ordering::Acquire);
        // SAFETY: either null or the `&'static Env` that `install_for_hostfs` stored.
        unsafe { env.as_ref() }
    })
}

/// The environment that a call on a path needs, if it needs one. Context: signal.
pub(super) fn for_path(path: *const c_char) -> Option<&'static Env> {
    active().or_else(|| {
        // SAFETY: the wrappers' callers pass strings; it is read as far as it is the scheme's.
        let matches = |(at, byte): (usize, &u8)| unsafe { path.add(at).read() } as u8 == *byte;
        let begins_with = |scheme: &[u8]| scheme.iter().enumerate().all(matches);
        let is_ours = !path.is_null() && (begins_with(SCHEME) || begins_with(DISK_SCHEME));
        is_ours.then(any).flatten()
    })
}

/// As [`for_path`], for a descriptor. Context: signal.
pub(super) fn for_fd(fd: i32) -> Option<&'static Env> {
    active().or_else(|| export::is_held(fd).then(any).flatten())
}

/// Where a descriptor lives, with its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Here(i32),
    There(u16, i32),
}

impl Place {
    pub(super) fn raw(self) -> i32 {
        match self {
            Place::Here(fd) | Place::There(_, fd) => fd,
        }
    }

    pub(super) fn node(self, env: &Env) -> u16 {
        match self {
            Place::Here(_) => (env.node)(),
            Place::There(node, _) => node,
        }
    }
}

impl Env {
    pub(super) fn guest<T>(&self, at: *const T, len: usize) -> bool {
        len != 0 && (self.is_guest)(at as usize, len)
    }

    /// Negative numbers (no descriptor, AT_FDCWD) are this node's, whose kernel knows what they mean.
    pub(super) fn place(&self, handle: i32) -> Place {
        if handle < 0 {
            return Place::Here(handle);
        }
        let fd = handle & FD_MASK;
        let node = (handle >> NODE_SHIFT) as u16;
        if node == (self.node)() || (node == 0 && everywhere(fd)) {
            Place::Here(fd)
        } else {
            Place::There(node, fd)
        }
    }

    /// The handle of a descriptor of this node, or -1 with errno set. A descriptor that does not fit
    /// a handle is closed.
    pub(super) fn handle(&self, fd: i32) -> i32 {
        if fd < 0 || everywhere(fd) {
            return fd;
        }
        if fd > FD_MASK {
            // SAFETY: the descriptor was made for this call and nobody else knows it.
            unsafe { libc::close(fd) };
            set_errno(libc::EMFILE);
            return -1;
        }
        (i32::from((self.node)()) << NODE_SHIFT) | fd
    }

    /// The node on which paths are resolved and sockets are made.
    pub(super) fn path_owner(&self) -> u16 {
        if paths_local() { (self.node)() } else { OWNER }
    }
}

fn everywhere(fd: i32) -> bool {
    (0..64).contains(&fd) && EVERYWHERE.load(Ordering::Acquire) >> fd & 1 == 1
}

pub(super) fn errno() -> i32 {
    // SAFETY: libc's errno is a thread-local integer, always there.
    unsafe { *libc::__errno_location() }
}

pub(super) fn set_errno(value: i32) {
    // SAFETY: as in `errno`.
    unsafe { *libc::__errno_location() = value }
}

/// Sets errno and returns the -1 of a failed call.
pub(super) fn fail(value: i32) -> i64 {
    set_errno(value);
    -1
}

/// A line without allocation; what does not fit is cut.
#[derive(Clone, Copy)]
struct Line {
    len: usize,
    text: [u8; 120],
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.bytes().filter(u8::is_ascii) {
            if let Some(cell) = self.text.get_mut(self.len) {
                *cell = c;
                self.len += 1;
            }
        }
        Ok(())
    }
}

/// Says one line about something that is refused. Context: signal.
#[cold]
pub(super) fn note(env: &'static Env, what: fmt::Arguments<'_>) {
    if NOTES.fetch_add(1, Ordering::Relaxed) >= NOTES_MAX {
        NOTES.store(NOTES_MAX, Ordering::Relaxed);
        return;
    }
    let mut line = Line {
        len: 0,
        text: [0; 120],
    };
    let _ = line.write_fmt(what);
    let saved = errno();
    if let Some(slot) = Slot::claim() {
        let log = env.log;
        slot.on_host_stack(move || {
            if let Ok(text) = str::from_utf8(line.text.get(..line.len).unwrap_or_default()) {
                log(text);
            }
        });
    }
    set_errno(saved);
}
