//! How much memory a guest, and each of its nodes, has and may hold.

use super::per_node;
use crate::failure::Failure;
use span_api::guest::ROOM_BYTES_MIN;

const PAGE_BYTES: u64 = 4096;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const MEMORY_DEFAULT_BYTES: u64 = 256 * MIB;
/// Least memory of a node: less does not hold its share of the kernel's image.
const NODE_MEMORY_BYTES_MIN: u64 = 16 * MIB;
/// Parts of nodes are multiples of this, where nobody says what they are.
const PART_BYTES: u64 = 16 * MIB;
/// Least memory of a guest: less does not boot.
const GUEST_MEMORY_BYTES_MIN: u64 = 64 * MIB;

/// Memory of each node, in bytes.
pub(crate) fn memory(value: Option<&str>, names: &[String]) -> Result<Vec<u64>, Failure> {
    let sizes = per_node("--mem", value, names, MEMORY_DEFAULT_BYTES, memory_bytes)?;
    let shown = value.unwrap_or("256M");
    let total = sizes
        .iter()
        .fold(0u64, |sum, size| sum.saturating_add(*size));
    guest_memory(total).map_err(|why| Failure::usage(format!("--mem {shown}: {why}")))?;
    Ok(sizes)
}

/// Most memory that each node holds.
pub(crate) fn mem_limit(
    value: Option<&str>,
    names: &[String],
) -> Result<Vec<Option<u64>>, Failure> {
    per_node("--mem-limit", value, names, None, |text| {
        memory_bytes(text).map(Some)
    })
}

/// Where limits differ and nobody says what each node's part is, it follows from them: what a node may hold
/// beside the room that it needs.
pub(crate) fn share_out(memory: &mut [u64], limits: &[Option<u64>]) {
    let Some(limits) = limits.iter().copied().collect::<Option<Vec<u64>>>() else {
        return;
    };
    if limits.windows(2).all(|pair| pair[0] == pair[1]) {
        return;
    }
    let total: u64 = memory.iter().sum();
    let able = |limit: u64| u128::from(limit.saturating_sub(ROOM_BYTES_MIN));
    let all: u128 = limits.iter().map(|limit| able(*limit)).sum();
    if all < u128::from(total) {
        return;
    }
    for (part, limit) in memory.iter_mut().zip(&limits) {
        let share = (u128::from(total) * able(*limit) / all) as u64;
        *part = (share - share % PART_BYTES).max(NODE_MEMORY_BYTES_MIN);
    }
    // What rounding has left, or taken too much of, is made up by those with most room, or least.
    let mut given: u64 = memory.iter().sum();
    let spare = |memory: &[u64], node: usize| able(limits[node]) as i128 - i128::from(memory[node]);
    while given < total {
        let most = (0..memory.len()).max_by_key(|node| spare(memory, *node));
        let Some(most) = most.filter(|node| spare(memory, *node) > 0) else {
            return;
        };
        let step = PART_BYTES
            .min(total - given)
            .min(spare(memory, most) as u64);
        memory[most] += step;
        given += step;
    }
    while given > total {
        let reducible = |node: &usize| memory[*node] > NODE_MEMORY_BYTES_MIN;
        let least = (0..memory.len()).filter(reducible);
        let Some(least) = least.min_by_key(|node| spare(memory, *node)) else {
            return;
        };
        let step = PART_BYTES
            .min(given - total)
            .min(memory[least] - NODE_MEMORY_BYTES_MIN);
        memory[least] -= step;
        given -= step;
    }
}

/// Whether the nodes can hold the guest's memory between them.
pub(crate) fn check_limits(
    option: &str,
    names: &[String],
    memory: &[u64],
    limits: &[Option<u64>],
) -> Result<(), Failure> {
    let total: u64 = memory.iter().sum();
    let needed = total + ROOM_BYTES_MIN * names.len() as u64;
    let room = ROOM_BYTES_MIN / MIB;
    let all = limits.iter().copied().try_fold(0u64, |sum, limit| {
        limit.map(|limit| sum.saturating_add(limit))
    });
    if let Some(all) = all.filter(|all| *all < needed) {
        return Err(Failure::usage(format!(
            "{option}: {}M in all; the guest has {}M, and each node needs {room}M for pages of others: \
             {}M in all are the least",
            all / MIB,
            total.div_ceil(MIB),
            needed.div_ceil(MIB)
        )));
    }
    for ((name, limit), part) in names.iter().zip(limits).zip(memory) {
        let least = part + ROOM_BYTES_MIN;
        if let Some(limit) = limit.filter(|limit| *limit < least) {
            return Err(Failure::usage(format!(
                "{option} {name}={}M: {}M of the guest's memory are this node's own, and it needs {room}M \
                 for pages of others: {}M are the least",
                limit / MIB,
                part.div_ceil(MIB),
                least.div_ceil(MIB)
            )));
        }
    }
    Ok(())
}

/// Whether a guest may have this much memory in all.
pub(crate) fn guest_memory(bytes: u64) -> Result<(), String> {
    if bytes < GUEST_MEMORY_BYTES_MIN {
        return Err(format!(
            "{}M in all; a guest needs at least {}M to boot",
            bytes / MIB,
            GUEST_MEMORY_BYTES_MIN / MIB
        ));
    }
    if !mappable(bytes) {
        return Err(
            "the guest's memory is mapped whole on every node, and this machine cannot map that much"
                .into(),
        );
    }
    Ok(())
}

/// The size of a node's memory.
pub(crate) fn memory_bytes(text: &str) -> Result<u64, String> {
    match size_bytes(text)? {
        size if size < NODE_MEMORY_BYTES_MIN => Err(format!(
            "a node has at least {}M",
            NODE_MEMORY_BYTES_MIN / MIB
        )),
        size if size % PAGE_BYTES != 0 => {
            Err(format!("a size is a multiple of {}K", PAGE_BYTES / KIB))
        }
        size => Ok(size),
    }
}

/// A number with its unit.
pub(crate) fn size_bytes(text: &str) -> Result<u64, String> {
    let unit = match text.chars().next_back() {
        Some('K' | 'k') => KIB,
        Some('M' | 'm') => MIB,
        Some('G' | 'g') => GIB,
        _ => return Err("a size is a number with K, M or G".into()),
    };
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("a size is a number with K, M or G".into());
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| "this machine cannot map that much".into())
}

/// Whether this machine can map this much memory at one place, which is what a node does.
fn mappable(bytes: u64) -> bool {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
    let Some(length) = usize::try_from(bytes)
        .ok()
        .and_then(std::num::NonZeroUsize::new)
    else {
        return false;
    };
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
    #[allow(unsafe_code)]
    // SAFETY: a new mapping at an address of the kernel's choice aliases nothing, and nobody looks at
    // it before it is unmapped whole.
    unsafe {
        match mmap_anonymous(
            None,
            length,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            flags,
        ) {
            Ok(address) => munmap(address, length.get()).is_ok(),
            Err(_) => false,
        }
    }
}

/// `mem=` of the kernel for this many bytes.
pub(crate) fn memory_argument(bytes: u64) -> String {
    format!("mem={}", memory_size_text(bytes))
}

/// A whole number of pages as the kernel reads it.
pub(crate) fn memory_size_text(bytes: u64) -> String {
    match bytes {
        0 => "0".to_string(),
        _ if bytes.is_multiple_of(MIB) => format!("{}M", bytes / MIB),
        _ => format!("{}K", bytes / KIB),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::{line, names};

    #[test]
    fn memory_has_units_and_limits() {
        assert_eq!(memory(None, &names()).unwrap(), [256 * MIB; 3]);
        assert_eq!(
            memory(Some("a=1G,b=65536K"), &names()).unwrap(),
            [GIB, 64 * MIB, 256 * MIB]
        );
        for (value, part) in [
            ("512", "K, M or G"),
            ("M", "K, M or G"),
            ("1.5G", "K, M or G"),
            ("1T", "K, M or G"),
            ("15M", "at least 16M"),
            ("0M", "at least 16M"),
            ("16M", "48M in all"),
            ("16385K", "multiple of 4K"),
            ("1000000G", "cannot map"),
            ("99999999999999999999G", "cannot map"),
            ("18014398509481983K", "multiple of 4K"),
            ("17592186044415M", "cannot map"),
        ] {
            let line = line(memory(Some(value), &names()));
            assert!(line.contains(part), "{value}: {line}");
        }
    }

    #[test]
    fn limits_must_have_room_for_the_guest() {
        let check = |memory: &[u64], value: &str| {
            let limits = mem_limit(Some(value), &names()).unwrap();
            check_limits("--mem-limit", &names(), memory, &limits)
        };
        let even = [256 * MIB; 3];
        for value in ["272M", "a=272M,b=1G,c=1G", "b=272M", "a=1G"] {
            check(&even, value).unwrap();
        }
        for (value, part) in [
            ("256M", "--mem-limit: 768M in all; the guest has 768M"),
            ("256M", "816M in all are the least"),
            ("b=256M", "--mem-limit b=256M: 256M of the guest's memory"),
            ("a=1G,b=64M,c=1G", "272M are the least"),
        ] {
            let line = line(check(&even, value));
            assert!(line.contains(part), "{value}: {line}");
        }
        for (value, part) in [
            ("1", "--mem-limit 1: a size is"),
            ("15M", "at least 16M"),
            ("d=1G", "no node d; --nodes has a, b, c"),
        ] {
            let line = line(mem_limit(Some(value), &names()));
            assert!(line.contains(part), "{value}: {line}");
        }
    }

    #[test]
    fn memory_is_shared_out_as_limits_allow() {
        let shared = |limits: [u64; 3]| {
            let mut memory = vec![256 * MIB; 3];
            let limits = limits.map(|limit| Some(limit * MIB));
            share_out(&mut memory, &limits);
            check_limits("--mem-limit", &names(), &memory, &limits).unwrap();
            assert_eq!(memory.iter().sum::<u64>(), 768 * MIB);
            memory
        };
        assert_eq!(shared([300; 3]), [256 * MIB; 3]);
        assert_eq!(shared([1040, 528, 528]), [384 * MIB, 192 * MIB, 192 * MIB]);
        let little = shared([1024, 64, 1024]);
        assert!(little[1] <= 48 * MIB, "{little:?}");
        shared([32, 1024, 40]);
        shared([600, 184, 32]);
    }

    #[test]
    fn the_kernel_gets_memory_in_whole_units() {
        assert_eq!(memory_argument(768 * MIB), "mem=768M");
        assert_eq!(memory_argument(768 * MIB + 4096), "mem=786436K");
    }
}
