//! What this host is like, as far as the hosts of one guest must agree ([`span_api::host`]), and
//! whether a guest's user processes fit into its address space at all.

use core::arch::x86_64::{__cpuid_count, __get_cpuid_max, _xgetbv};
use span_api::host::{FEATURES, Host, Register, Source, XSAVE_PARTS_MAX, Xsave, XsavePart};
use std::io;
use std::ops::Range;

const LEAF_FEATURES: u32 = 1;
const LEAF_STRUCTURED: u32 = 7;
const LEAF_XSAVE: u32 = 0xd;
const OSXSAVE: u32 = 1 << 27;

/// The first components of an XSAVE area have a fixed place.
const XSAVE_PARTS_FIXED: u32 = 2;

/// Where the kernel puts the code and data of a stub, with room to spare: at the end of what it lets
/// its processes use (`os_get_top_address` of `arch/x86/um/os-Linux/task_size.c`).
const STUB: Range<usize> = 0x7f_bff0_0000..0x7f_c010_0000;

/// Looks at this host.
pub(crate) fn describe() -> Host {
    Host {
        page_bytes: page_bytes(),
        features: FEATURES.map(|word| read(word.source) & word.mask()),
        xsave: xsave(),
    }
}

fn page_bytes() -> u64 {
    // SAFETY: takes an integer.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

fn read(source: Source) -> u32 {
    match source {
        Source::Cpuid {
            leaf,
            subleaf,
            register,
        } => cpuid(leaf, subleaf, register),
        // SAFETY: takes an integer.
        Source::Hwcap2 => unsafe { libc::getauxval(libc::AT_HWCAP2) as u32 },
    }
}

/// A register's value, 0 where this CPU has no such leaf.
fn cpuid(leaf: u32, subleaf: u32, register: Register) -> u32 {
    let beyond = leaf > __get_cpuid_max(leaf & 0x8000_0000).0
        || leaf == LEAF_STRUCTURED && subleaf > __cpuid_count(leaf, 0).eax;
    if beyond {
        return 0;
    }
    let value = __cpuid_count(leaf, subleaf);
    match register {
        Register::Eax => value.eax,
        Register::Ebx => value.ebx,
        Register::Ecx => value.ecx,
        Register::Edx => value.edx,
    }
}

fn xsave() -> Xsave {
    if cpuid(LEAF_FEATURES, 0, Register::Ecx) & OSXSAVE == 0 {
        return Xsave {
            components: 0,
            bytes: 0,
            parts: Vec::new(),
        };
    }
    // SAFETY: OSXSAVE says that the CPU has the instruction, and that programs may use it.
    let components = unsafe { xcr0() };
    let used = XSAVE_PARTS_FIXED..XSAVE_PARTS_FIXED + XSAVE_PARTS_MAX as u32;
    Xsave {
        components,
        bytes: cpuid(LEAF_XSAVE, 0, Register::Ebx),
        parts: used
            .filter(|component| components >> component & 1 == 1)
            .map(|component| XsavePart {
                component,
                offset: cpuid(LEAF_XSAVE, component, Register::Ebx),
                bytes: cpuid(LEAF_XSAVE, component, Register::Eax),
            })
            .collect(),
    }
}

/// # Safety
/// The CPU has XSAVE, and its kernel uses it.
#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: the caller's promise.
    unsafe { _xgetbv(0) }
}

/// Whether a stub's code and data can be where the kernel puts them. A stub begins like this process,
/// without address randomisation, so what is free here is free there.
pub(crate) fn check_stub_addresses() -> Result<(), String> {
    free(&STUB).map_err(|error| {
        let Range { start, end } = STUB;
        format!("the addresses of user processes, {start:#x} to {end:#x}, are not free: {error}")
    })
}

fn free(range: &Range<usize>) -> io::Result<()> {
    let flags =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let address = range.start as *mut libc::c_void;
    // SAFETY: replaces no mapping, and nobody looks at the new one before it is gone again.
    unsafe {
        let mapped = libc::mmap(address, range.len(), libc::PROT_NONE, flags, -1, 0);
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        libc::munmap(mapped, range.len());
        // A kernel that does not know the flag takes the address for a hint.
        if mapped != address {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_described_as_it_says_itself() {
        let host = describe();
        assert_eq!(host, describe());
        assert_eq!(host.page_bytes, 4096);
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("flags"))
            .unwrap();
        let flags: Vec<&str> = flags.split_whitespace().collect();
        // Those that every kernel which knows the CPU shows.
        for (word, name) in [
            (0, "sse2"),
            (1, "cx16"),
            (1, "aes"),
            (1, "avx"),
            (2, "avx2"),
        ] {
            let bit = FEATURES[word].bits.iter().find(|(_, known)| *known == name);
            let set = host.features[word] & 1 << bit.unwrap().0 != 0;
            assert_eq!(set, flags.contains(&name), "{name}");
        }
        assert_eq!(flags.contains(&"xsave"), host.xsave.components & 3 == 3);
        for part in &host.xsave.parts {
            assert!(part.bytes > 0 && part.offset + part.bytes <= host.xsave.bytes);
        }
    }

    #[test]
    fn taken_addresses_are_found() {
        check_stub_addresses().unwrap();
        // Not where another test looks at the same time.
        let range = 0x7e_0000_0000..0x7e_0010_0000;
        free(&range).unwrap();
        let middle = (range.start + 0x8000) as *mut libc::c_void;
        // SAFETY: replaces no mapping, which is checked, and is unmapped by nobody but this test.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let mapped = libc::mmap(middle, 4096, libc::PROT_NONE, flags, -1, 0);
            assert_eq!(mapped, middle);
        }
        assert!(free(&range).is_err());
        // SAFETY: mapped above.
        unsafe { libc::munmap(middle, 4096) };
        free(&range).unwrap();
    }
}
