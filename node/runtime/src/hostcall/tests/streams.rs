//! Pipes, sockets and waiting.

use super::guest::{self, errno, memory, on_both, place, run, seal, text};
use crate::hostcall::{fd::*, poll::*, sock::*};
use core::ptr;
use libc::{iovec, msghdr};
use std::io::{PipeReader, PipeWriter};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;

fn pipe(nonblocking: bool) -> (PipeReader, PipeWriter) {
    let (from, to) = std::io::pipe().unwrap();
    for fd in [from.as_raw_fd(), to.as_raw_fd()] {
        // SAFETY: descriptors of this test.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        let flags = if nonblocking {
            flags | libc::O_NONBLOCK
        } else {
            flags
        };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFL, flags) }, 0);
    }
    (from, to)
}

#[test]
fn pipes_keep_their_short_counts() {
    // The writers' ends, taken away in the middle.
    let pipes = [pipe(true), pipe(true)].map(|(from, to)| (from, Mutex::new(Some(to))));
    on_both(|node| {
        let (from, to) = &pipes[usize::from(node)];
        let mut to = to.lock().unwrap();
        let (r, w) = (from.as_raw_fd(), to.as_ref().unwrap().as_raw_fd());
        let buf = memory(300_000).cast();
        seal();
        assert_eq!((__wrap_read(r, buf, 10), errno()), (-1, libc::EAGAIN));
        // A pipe holds 64 KiB: a longer write is cut there, one to a full pipe waits.
        seal();
        assert_eq!(__wrap_write(w, buf, 300_000), 65536);
        assert_eq!((__wrap_write(w, buf, 1), errno()), (-1, libc::EAGAIN));
        // A longer read gives what is there, without asking again.
        assert_eq!(__wrap_read(r, buf, 300_000), 65536);
        assert_eq!((__wrap_read(r, buf, 300_000), errno()), (-1, libc::EAGAIN));
        *to = None;
        // A process that another test has just made holds it until it becomes another program.
        let mut ended = Box::new(libc::pollfd {
            fd: r,
            events: 0,
            revents: 0,
        });
        // SAFETY: one structure, not in guest memory as this stack is, and a descriptor of this test.
        assert_eq!(unsafe { libc::poll(&mut *ended, 1, 10_000) }, 1);
        assert_eq!(__wrap_read(r, buf, 300_000), 0);
        assert_eq!((__wrap_read(w + 1000, buf, 1), errno()), (-1, libc::EBADF));
        assert_eq!((__wrap_write(w + 1000, buf, 1), errno()), (-1, libc::EBADF));
    });
}

/// A message in guest memory, with all its parts there.
fn message(
    data: &[(*mut u8, usize)],
    name: *mut u8,
    name_len: u32,
    control: *mut u8,
    control_len: usize,
) -> *mut msghdr {
    let vectors = memory(data.len().max(1) * size_of::<iovec>()).cast::<iovec>();
    // SAFETY: room for as many vectors; zero is a valid header.
    unsafe {
        for (index, &(at, len)) in data.iter().enumerate() {
            vectors.add(index).write(iovec {
                iov_base: at.cast(),
                iov_len: len,
            });
        }
        let mut header: msghdr = core::mem::zeroed();
        header.msg_iov = vectors;
        header.msg_iovlen = data.len();
        header.msg_name = name.cast();
        header.msg_namelen = name_len;
        header.msg_control = control.cast();
        header.msg_controllen = control_len;
        place(header)
    }
}

fn pair(kind: i32) -> [RawFd; 2] {
    let fds = place([-1; 2]);
    seal();
    assert_eq!(__wrap_socketpair(libc::AF_UNIX, kind, 0, fds.cast()), 0);
    // SAFETY: filled above.
    unsafe { *fds }
}

#[test]
fn messages_stay_whole() {
    on_both(|node| {
        let [a, b] = pair(libc::SOCK_DGRAM | libc::SOCK_NONBLOCK);
        assert_eq!((a >> 20, b >> 20), (i32::from(node), i32::from(node)));
        let (one, two, into) = (memory(100), memory(50), memory(1000));
        // SAFETY: guest memory of these lengths.
        unsafe {
            one.write_bytes(1, 100);
            two.write_bytes(2, 50);
        }
        let msg = message(
            &[(one, 100), (two, 50)],
            ptr::null_mut(),
            0,
            ptr::null_mut(),
            0,
        );
        seal();
        assert_eq!(__wrap_sendmsg(a, msg, 0), 150);
        let got = message(
            &[(into, 120), (into.wrapping_add(500), 500)],
            ptr::null_mut(),
            0,
            ptr::null_mut(),
            0,
        );
        seal();
        assert_eq!(__wrap_recvmsg(b, got, 0), 150);
        // SAFETY: received into these places.
        unsafe {
            assert_eq!(
                (into.read(), into.add(119).read(), into.add(500).read()),
                (1, 2, 2)
            );
        }
        assert_eq!((__wrap_recvmsg(b, got, 0), errno()), (-1, libc::EAGAIN));
        let large = memory(70_000);
        assert_eq!(
            (__wrap_write(a, large.cast(), 70_000), errno()),
            (-1, libc::EMSGSIZE)
        );
        let msg = message(&[(large, 70_000)], ptr::null_mut(), 0, ptr::null_mut(), 0);
        assert_eq!((__wrap_sendmsg(a, msg, 0), errno()), (-1, libc::EMSGSIZE));
        // Cut to the buffer, and said so.
        assert_eq!(__wrap_sendto(a, one.cast(), 100, 0, ptr::null(), 0), 100);
        let got = message(&[(into, 10)], ptr::null_mut(), 0, ptr::null_mut(), 0);
        assert_eq!(__wrap_recvmsg(b, got, 0), 10);
        // SAFETY: filled by recvmsg.
        let flags = unsafe { (*got).msg_flags };
        assert_eq!(flags & libc::MSG_TRUNC, libc::MSG_TRUNC);

        let batch = memory(4096).cast::<libc::mmsghdr>();
        for index in 0..3 {
            let msg = message(&[(one, 10 + index)], ptr::null_mut(), 0, ptr::null_mut(), 0);
            // SAFETY: room for three.
            unsafe {
                batch.add(index).write(libc::mmsghdr {
                    msg_hdr: msg.read(),
                    msg_len: 0,
                })
            };
        }
        seal();
        assert_eq!(__wrap_sendmmsg(a, batch, 3, 0), 3);
        for index in 0..3 {
            let msg = message(&[(into, 100)], ptr::null_mut(), 0, ptr::null_mut(), 0);
            // SAFETY: room for three.
            unsafe {
                batch.add(index).write(libc::mmsghdr {
                    msg_hdr: msg.read(),
                    msg_len: 0,
                })
            };
        }
        assert_eq!(__wrap_recvmmsg(b, batch, 2, 0, ptr::null_mut()), 2);
        seal();
        assert_eq!(__wrap_recvmmsg(b, batch, 3, 0, ptr::null_mut()), 1);
        // SAFETY: filled by recvmmsg.
        unsafe { assert_eq!(((*batch).msg_len, (*batch.add(1)).msg_len), (12, 11)) };
        assert_eq!(__wrap_recvmmsg(b, batch, 3, 0, ptr::null_mut()), -1);
        assert_eq!(errno(), libc::EAGAIN);
        __wrap_close(a);
        __wrap_close(b);
    });
}

#[test]
fn descriptors_in_messages_are_handles() {
    on_both(|node| {
        let [a, b] = pair(libc::SOCK_STREAM);
        let [c, d] = pair(libc::SOCK_STREAM);
        let byte = place(b'x');
        let control = memory(4096);
        // SAFETY: the macros on guest memory with room for two descriptors.
        let len = unsafe {
            let part = control.cast::<libc::cmsghdr>();
            (*part).cmsg_level = libc::SOL_SOCKET;
            (*part).cmsg_type = libc::SCM_RIGHTS;
            (*part).cmsg_len = libc::CMSG_LEN(4) as usize;
            libc::CMSG_DATA(part).cast::<i32>().write(c);
            libc::CMSG_SPACE(4) as usize
        };
        let msg = message(&[(byte, 1)], ptr::null_mut(), 0, control, len);
        seal();
        assert_eq!(__wrap_sendmsg(a, msg, 0), 1);
        let into = memory(4096);
        let got = message(&[(byte, 1)], ptr::null_mut(), 0, into, 64);
        seal();
        assert_eq!(__wrap_recvmsg(b, got, 0), 1);
        // SAFETY: filled by recvmsg.
        let copy = unsafe { libc::CMSG_DATA(into.cast()).cast::<i32>().read() };
        assert!(copy != c && copy >> 20 == i32::from(node));
        assert_eq!(__wrap_write(copy, byte.cast(), 1), 1);
        assert_eq!(__wrap_read(d, byte.cast(), 1), 1);
        // A descriptor of a node that is neither's.
        // SAFETY: as above.
        unsafe {
            libc::CMSG_DATA(control.cast())
                .cast::<i32>()
                .write(7 << 20 | 3)
        };
        assert_eq!((__wrap_sendmsg(a, msg, 0), errno()), (-1, libc::EBADF));
        for fd in [a, b, c, d, copy] {
            assert_eq!(__wrap_close(fd), 0);
        }
    });
}

#[test]
fn servers_and_clients() {
    on_both(|node| {
        // An abstract address, so that nothing is left behind.
        // SAFETY: zero is a valid address.
        let address = place(unsafe { core::mem::zeroed::<libc::sockaddr_un>() });
        let name = format!("\0hostcall-{}-{node}", std::process::id());
        // SAFETY: guest memory, longer than the name.
        unsafe {
            (*address).sun_family = libc::AF_UNIX as u16;
            let path = (&raw mut (*address).sun_path).cast::<u8>();
            path.copy_from_nonoverlapping(name.as_ptr(), name.len());
        }
        let len = 2 + name.len() as u32;
        let server = __wrap_socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
        let client = __wrap_socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
        assert_eq!((server >> 20, client >> 20), (0, 0));
        seal();
        assert_eq!(__wrap_bind(server, address.cast(), len), 0);
        assert_eq!(__wrap_listen(server, 1), 0);
        seal();
        assert_eq!(__wrap_connect(client, address.cast(), len), 0);
        let (peer, peer_len) = (memory(200), place(200_u32));
        seal();
        let session = __wrap_accept(server, peer.cast(), peer_len);
        assert!(session >= 0 && session >> 20 == 0);
        let on = place(1);
        let (level, name) = (libc::SOL_SOCKET, libc::SO_PASSCRED);
        assert_eq!(__wrap_setsockopt(session, level, name, on.cast(), 4), 0);
        let filter = place(libc::sock_filter {
            code: 6,
            jt: 0,
            jf: 0,
            k: 0xffff,
        });
        let program = place(libc::sock_fprog { len: 1, filter });
        seal();
        let name = libc::SO_ATTACH_FILTER;
        assert_eq!(
            __wrap_setsockopt(session, level, name, program.cast(), 16),
            0
        );
        let word = text("hello");
        assert_eq!(__wrap_sendto(client, word.cast(), 5, 0, ptr::null(), 0), 5);
        let buf = memory(10);
        *unsafe_u32(peer_len) = 200;
        seal();
        assert_eq!(
            __wrap_recvfrom(session, buf.cast(), 10, 0, peer.cast(), peer_len),
            5
        );
        assert_eq!(__wrap_shutdown(client, libc::SHUT_WR), 0);
        assert_eq!(__wrap_read(session, buf.cast(), 10), 0);
        for fd in [server, client, session] {
            assert_eq!(__wrap_close(fd), 0);
        }
    });
}

fn unsafe_u32<'a>(at: *mut u32) -> &'a mut u32 {
    // SAFETY: a word of guest memory that this test alone uses.
    unsafe { &mut *at }
}

#[test]
fn poll_waits_where_the_descriptors_are() {
    let (from, to) = pipe(false);
    let (r, w) = (from.as_raw_fd(), to.as_raw_fd());
    let entry = |fd, events| libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    on_both(|_| {
        let fds = place([
            entry(r, libc::POLLIN),
            entry(-1, 0),
            entry(w, libc::POLLOUT),
        ]);
        seal();
        assert_eq!(__wrap_poll(fds.cast(), 3, -1), 1);
        // SAFETY: filled by poll.
        unsafe {
            assert_eq!(
                ((*fds)[0].fd, (*fds)[0].revents, (*fds)[2].revents),
                (r, 0, libc::POLLOUT)
            );
        }
        assert_eq!(__wrap_poll(fds.cast(), 1, 0), 0);
        let [a, b] = pair(libc::SOCK_STREAM);
        let fds = place([entry(a, libc::POLLOUT)]);
        assert_eq!(__wrap_poll(fds.cast(), 1, -1), 1);
        __wrap_close(a);
        __wrap_close(b);
    });
    run(1, || {
        let [a, b] = pair(libc::SOCK_STREAM);
        let mixed = place([entry(a, libc::POLLOUT), entry(w, libc::POLLOUT)]);
        assert_eq!(
            (__wrap_poll(mixed.cast(), 2, -1), errno()),
            (-1, libc::ENOSYS)
        );
        __wrap_close(a);
        __wrap_close(b);
    });
}

/// The only test that makes epoll instances: their order matters.
#[test]
fn interrupts_enter_the_owners_instance() {
    let (from, to) = pipe(false);
    let (r, w) = (from.as_raw_fd(), to.as_raw_fd());
    let instance = std::sync::atomic::AtomicI32::new(-1);
    run(0, || {
        let epoll = __wrap_epoll_create(64);
        assert!(epoll >= 0);
        instance.store(epoll, std::sync::atomic::Ordering::Relaxed);
    });
    let instance = instance.into_inner();
    let data = 0x6000_1234_u64;
    run(1, || {
        let event = place(libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: data,
        });
        seal();
        // The variable that holds the instance is not set on this node.
        assert_eq!(__wrap_epoll_ctl(-1, libc::EPOLL_CTL_ADD, r, event), 0);
        assert_eq!(__wrap_epoll_ctl(-1, libc::EPOLL_CTL_ADD, r, event), -1);
        assert_eq!(errno(), libc::EEXIST);
        assert_eq!(
            __wrap_epoll_ctl(-1, libc::EPOLL_CTL_ADD, r + 1000, event),
            -1
        );
        assert_eq!(errno(), libc::EBADF);
    });
    run(0, || {
        let events = memory(64 * 12).cast::<libc::epoll_event>();
        seal();
        assert_eq!(__wrap_epoll_wait(instance, events, 64, 0), 0);
        assert_eq!(__wrap_write(w, place(0_u8).cast(), 1), 1);
        seal();
        assert_eq!(__wrap_epoll_wait(instance, events, 64, -1), 1);
        // SAFETY: filled by epoll_wait.
        let event = unsafe { events.read_unaligned() };
        assert_eq!({ event.u64 }, data);
        let event = place(libc::epoll_event { events: 0, u64: 1 });
        seal();
        assert_eq!(__wrap_epoll_ctl(instance, libc::EPOLL_CTL_MOD, r, event), 0);
        assert_eq!(
            __wrap_epoll_ctl(instance, libc::EPOLL_CTL_DEL, r, ptr::null_mut()),
            0
        );
        // A reboot: the next instance takes its place.
        assert_eq!(__wrap_close(instance), 0);
        let next = __wrap_epoll_create(64);
        assert_eq!(__wrap_epoll_ctl(-1, libc::EPOLL_CTL_ADD, r, event), 0);
        assert_eq!(__wrap_epoll_ctl(next, libc::EPOLL_CTL_DEL, r, event), 0);
        assert_eq!(__wrap_close(next), 0);
    });
    sigio_helpers_are_no_interrupt_controllers(r);
}

/// A helper's instance on another node stands for the owner's helper, not for its controller.
fn sigio_helpers_are_no_interrupt_controllers(r: RawFd) {
    let instances = Mutex::new(Vec::new());
    run(0, || {
        instances
            .lock()
            .unwrap()
            .extend([__wrap_epoll_create(64), __wrap_epoll_create(64)])
    });
    let [controller, helper] = instances.into_inner().unwrap()[..] else {
        unreachable!()
    };
    run(1, || {
        // The owner's two have the roles already: this is a process of its own only in the tests.
        let event = place(libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: r as u64,
        });
        let mine = (1 << 20) | helper;
        assert_eq!(__wrap_epoll_ctl(mine, libc::EPOLL_CTL_ADD, r, event), 0);
    });
    run(0, || {
        let event = place(libc::epoll_event { events: 0, u64: 0 });
        assert_eq!(
            __wrap_epoll_ctl(controller, libc::EPOLL_CTL_DEL, r, event),
            -1
        );
        assert_eq!(__wrap_epoll_ctl(helper, libc::EPOLL_CTL_DEL, r, event), 0);
        assert_eq!((__wrap_close(controller), __wrap_close(helper)), (0, 0));
    });
    assert!(guest::FORWARDED.load(std::sync::atomic::Ordering::Relaxed) > 0);
}
