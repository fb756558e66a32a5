//! Both engines, seen by the host's own accesses: it fails with EFAULT where a thread would be signalled.

use super::*;
use std::io::{Read, Write, pipe};

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ENGINES: [Paging; 2] = [Paging::Mprotect, Paging::Uffd];

extern "C" fn no_cpu(_: i32, _: u64) -> i32 {
    0
}

extern "C" fn no_stub(_: usize) {}

/// An image in this process: a page of text, one of a node's own, two of shared data, then memory.
fn image(pages: usize) -> NodeImage {
    let file = memory_file(pages * PAGE_BYTES).expect("a file");
    let start = map(0, pages * PAGE_BYTES, RW, 0, file.as_raw_fd(), 0).expect("room");
    let at = |page: usize| start + page * PAGE_BYTES;
    // SAFETY: the second page of the mapping just made.
    unsafe { *(at(2) as *mut u8) = 77 };
    NodeImage {
        start,
        local_start: at(1),
        shared_start: at(2),
        shared_end: at(4),
        reserved: at(4),
        memory_size: pages * PAGE_BYTES,
        vm_start: at(pages),
        vm_end: at(pages),
        stub_code: start,
        stub_futex: 0,
        stub_data_size: PAGE_BYTES,
        ipi_signal: 0,
        call_vector: 1,
        create_cpu: no_cpu,
        kill_stub: no_stub,
    }
}

fn view(image: &NodeImage, own: Range<u32>, paging: Paging) -> View {
    let view = View::new(image, image.memory_size, &[own], paging).expect("a view");
    assert_eq!(view.paging(), paging);
    view
}

/// The first byte of the page as the host reads it.
fn read(view: &View, page: u32) -> Option<u8> {
    let (mut reader, writer) = pipe().expect("a pipe");
    let addr = view.start + page as usize * PAGE_BYTES;
    // SAFETY: the host checks the address.
    let written = unsafe { libc::write(writer.as_raw_fd(), addr as *const _, 1) };
    if written != 1 {
        assert_eq!(
            io::Error::last_os_error().raw_os_error(),
            Some(libc::EFAULT)
        );
        return None;
    }
    let mut byte = [0];
    reader.read_exact(&mut byte).expect("what was written");
    Some(byte[0])
}

/// Whether the host can write to the page.
fn write(view: &View, page: u32, byte: u8) -> bool {
    let (reader, mut writer) = pipe().expect("a pipe");
    writer.write_all(&[byte]).expect("room in a pipe");
    let addr = view.start + page as usize * PAGE_BYTES;
    // SAFETY: the host checks the address, and nothing else lies in the page.
    let got = unsafe { libc::read(reader.as_raw_fd(), addr as *mut _, 1) };
    if got != 1 {
        assert_eq!(
            io::Error::last_os_error().raw_os_error(),
            Some(libc::EFAULT)
        );
    }
    got == 1
}

fn page_of(byte: u8) -> Vec<u8> {
    vec![byte; PAGE_BYTES]
}

#[test]
fn a_page_is_what_its_protection_says() {
    for paging in ENGINES {
        let image = image(64);
        let mut view = view(&image, 0..0, paging);
        let page = 10;
        assert_eq!(read(&view, page), None, "{paging:?}");
        view.fill(page, Some(&page_of(5)));
        assert_eq!(read(&view, page), None, "{paging:?}");
        view.protect(page, Protection::Read).unwrap();
        assert_eq!(read(&view, page), Some(5), "{paging:?}");
        assert!(!write(&view, page, 6), "{paging:?}");
        view.admit(page, Protection::ReadWrite).unwrap();
        assert!(write(&view, page, 6), "{paging:?}");
        view.protect(page, Protection::Read).unwrap();
        assert_eq!(read(&view, page), Some(6), "{paging:?}");
        assert!(!write(&view, page, 7), "{paging:?}");
        view.protect(page, Protection::None).unwrap();
        assert_eq!(read(&view, page), None, "{paging:?}");
        assert!(!write(&view, page, 7), "{paging:?}");
        assert_eq!(view.read(page), [&[6], &page_of(5)[1..]].concat());
        assert_eq!(read(&view, page - 1), None, "{paging:?}");
        assert_eq!(read(&view, page + 1), None, "{paging:?}");
    }
}

#[test]
fn where_the_kernel_boots_all_is_there_until_it_is_taken() {
    for paging in ENGINES {
        let image = image(64);
        let mut view = view(&image, 0..64, paging);
        view.admit(2, Protection::ReadWrite).unwrap();
        assert_eq!(read(&view, 2), Some(77), "{paging:?}");
        let untouched = 20;
        view.protect(untouched, Protection::Read).unwrap();
        view.admit(untouched, Protection::Read).unwrap();
        assert_eq!(read(&view, untouched), Some(0), "{paging:?}");
        assert!(!write(&view, untouched, 1), "{paging:?}");
        view.protect(untouched + 1, Protection::None).unwrap();
        assert_eq!(read(&view, untouched + 1), None, "{paging:?}");
        assert!(write(&view, untouched + 2, 1), "{paging:?}");
    }
}

#[test]
fn a_node_has_its_own_pages_from_the_beginning() {
    for paging in ENGINES {
        let image = image(64);
        let mut view = view(&image, 20..40, paging);
        for (page, own) in [(2, false), (19, false), (20, true), (39, true), (40, false)] {
            assert_eq!(
                read(&view, page),
                own.then_some(0),
                "{paging:?}: page {page}"
            );
            assert_eq!(write(&view, page, 1), own, "{paging:?}: page {page}");
        }
        view.protect(30, Protection::None).unwrap();
        assert_eq!(read(&view, 30), None, "{paging:?}");
        view.fill(40, Some(&page_of(5)));
        view.protect(40, Protection::Read).unwrap();
        assert_eq!(read(&view, 40), Some(5), "{paging:?}");
    }
}

#[test]
fn memory_that_went_back_to_the_host_does_not_come_by_itself() {
    for paging in ENGINES {
        let image = image(64);
        let mut view = view(&image, 0..64, paging);
        for page in 20..30 {
            view.admit(page, Protection::ReadWrite).unwrap();
            assert!(write(&view, page, 5), "{paging:?}");
            view.protect(page, Protection::None).unwrap();
        }
        let before = view.host_bytes();
        view.discard(20..30).unwrap();
        assert_eq!(before - view.host_bytes(), 10 * PAGE_BYTES as u64);
        assert_eq!(read(&view, 25), None, "{paging:?}");
        assert_eq!(view.read(25), page_of(0), "{paging:?}");
        view.fill(25, Some(&page_of(7)));
        view.protect(25, Protection::Read).unwrap();
        assert_eq!(read(&view, 25), Some(7), "{paging:?}");
        // Nothing was ever written to this one.
        view.admit(40, Protection::ReadWrite).unwrap();
        assert_eq!(read(&view, 40), Some(0), "{paging:?}");
    }
}

/// The host allows a process 65,530 mappings as a rule.
#[test]
fn a_checkerboard_does_not_run_out_of_mappings() {
    let pages = mappings_max() + 4096;
    for paging in ENGINES {
        let image = image(pages);
        let mut view = view(&image, 0..0, paging);
        for page in (4..pages as u32).step_by(2) {
            view.fill(page, None);
            view.protect(page, Protection::ReadWrite)
                .unwrap_or_else(|error| panic!("{paging:?}: page {page}: {error}"));
        }
        let last = (pages - 2) as u32;
        assert!(write(&view, last, 3), "{paging:?}");
        assert_eq!(read(&view, last - 1), None, "{paging:?}");
        // Closed to save mappings, if it was.
        view.admit(4, Protection::ReadWrite).unwrap();
        assert!(write(&view, 4, 3), "{paging:?}");
        // SAFETY: what the view has mapped, which nobody uses any more.
        check(unsafe { libc::munmap(image.start as *mut _, image.memory_size) }).unwrap();
    }
}

fn mappings_max() -> usize {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("a limit");
    let limit: usize = text.trim().parse().expect("a number");
    limit.min(1 << 17)
}
