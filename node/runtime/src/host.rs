//! What this host is like, as far as the hosts of one guest must agree ([`span_api::host`]).

use core::arch::x86_64::{__cpuid_count, __get_cpuid_max, _xgetbv};
use span_api::host::{FEATURES, Host, Register, Source, XSAVE_PARTS_MAX, Xsave, XsavePart};

const LEAF_FEATURES: u32 = 1;
const LEAF_STRUCTURED: u32 = 7;
const LEAF_XSAVE: u32 = 0xd;
const OSXSAVE: u32 = 1 << 27;

/// The first components of an XSAVE area have a fixed place.
const XSAVE_PARTS_FIXED: u32 = 2;

/// Looks at this host; an error is one line.
pub(crate) fn describe() -> Result<Host, String> {
    let maps = std::fs::read_to_string("/proc/self/maps")
        .map_err(|error| format!("/proc/self/maps cannot be read: {error}"))?;
    Ok(Host {
        page_bytes: page_bytes(),
        stack_end: stack_end(&maps).ok_or("/proc/self/maps has no stack")?,
        features: FEATURES.map(|word| read(word.source) & word.mask()),
        xsave: xsave(),
    })
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

/// The end of this process's stack; `None` if its address map is not what it should be.
fn stack_end(maps: &str) -> Option<u64> {
    let stack = maps.lines().find(|line| line.ends_with(" [stack]"))?;
    let (_, end) = stack.split_once(' ')?.0.split_once('-')?;
    u64::from_str_radix(end, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_described_as_it_says_itself() {
        let host = describe().unwrap();
        assert_eq!(host, describe().unwrap());
        assert_eq!(host.page_bytes, 4096);
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("flags"))
            .unwrap();
        let flags: Vec<&str> = flags.split_whitespace().collect();
        // Those that no kernel hides, as it does with AVX where that would not be safe.
        for (word, name) in [
            (0, "sse2"),
            (1, "ssse3"),
            (1, "cx16"),
            (1, "popcnt"),
            (1, "aes"),
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
    fn the_stack_is_found_in_the_address_map() {
        let maps = "7ffff7ffd000-7ffff7fff000 rw-p 00036000 fe:00 131 /lib/ld.so\n\
                    7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                  [stack]\n\
                    ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0          [vsyscall]\n";
        assert_eq!(stack_end(maps), Some(0x7fff_ffff_f000));
        assert_eq!(stack_end("garbage\n - [stack]\n"), None);
        assert_eq!(stack_end(""), None);
    }
}
