//! The values of options: their syntax, and what is allowed.

use crate::failure::Failure;
use crate::network;
use span_api::guest::{Export, Kind, ROOM_BYTES_MIN};
use span_api::link::HOST_CPU_MAX;
use span_api::{CPUS_MAX, NODES_MAX};
use std::ffi::OsStr;
use std::fmt::Display;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

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
const NAME_BYTES_MAX: usize = 32;
/// Of a file's name.
const FILE_NAME_BYTES_MAX: usize = 255;

/// Where a node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Local,
    Remote(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Remote(address) => f.write_str(address),
        }
    }
}

/// What the guest's root file system is made of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Root {
    Host,
    /// Of a node's host.
    Directory(usize, PathBuf, Kind),
    Image(usize, PathBuf),
    None,
}

/// A directory of a node's host, or a database there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) node: usize,
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
}

/// What is mounted in the guest, and where. Several parts are a union.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostMount {
    pub(crate) parts: Vec<Part>,
    pub(crate) mount_point: PathBuf,
    pub(crate) read_only: bool,
}

/// The node of `NODE:PATH`, and the path there; without a name the first.
pub(crate) fn of_node<'v>(value: &'v OsStr, names: &[String]) -> Result<(usize, &'v Path), String> {
    let bytes = value.as_bytes();
    let end = bytes.iter().position(|byte| b":/".contains(byte));
    let Some(end) = end.filter(|end| bytes[*end] == b':') else {
        return Ok((0, Path::new(value)));
    };
    let (name, path) = (&bytes[..end], OsStr::from_bytes(&bytes[end + 1..]));
    match names.iter().position(|other| other.as_bytes() == name) {
        Some(node) => Ok((node, Path::new(path))),
        None => Err(format!(
            "there is no node {}; --nodes has {}",
            String::from_utf8_lossy(name),
            names.join(", ")
        )),
    }
}

/// `--hostfs`. What is on this machine has to be there; of another, its daemon decides what it exports.
pub(crate) fn hostfs(
    value: &OsStr,
    names: &[String],
    places: &[Place],
) -> Result<HostMount, Failure> {
    let wrong = |why: &dyn Display| Failure::usage(format!("--hostfs {}: {why}", value.display()));
    let (rest, read_only, mapped) = Export::options(value.as_bytes());
    let equals = rest.iter().rposition(|byte| *byte == b'=');
    let equals = equals.ok_or_else(|| {
        wrong(
            &"must be [NODE:]DIR=MOUNTPOINT, [NODE:]sqlite:FILE=MOUNTPOINT or \
            union:[NODE:]DIR+[NODE:]DIR=MOUNTPOINT; ,ro and ,owners=mapped may follow",
        )
    })?;
    let mount_point = &rest[equals + 1..];
    if mount_point.contains(&b',') {
        return Err(wrong(
            &"nothing but ,ro and ,owners=mapped may follow the mount point",
        ));
    }
    let mount_point = Path::new(OsStr::from_bytes(mount_point));
    let what = &rest[..equals];
    let part = |what: &[u8]| part(what, mapped, names, places).map_err(|why| wrong(&why));
    let parts = match what.strip_prefix(b"union:") {
        None => vec![part(what)?],
        Some(members) => {
            let members = members.split(|byte| *byte == b'+').map(part);
            let members: Vec<Part> = members.collect::<Result<_, _>>()?;
            if members.len() < 2 {
                return Err(wrong(
                    &"a union is of two or more directories, with + between them",
                ));
            }
            if members.iter().any(|member| member.kind != Kind::Directory) {
                return Err(wrong(&"a union is of directories, without owners=mapped"));
            }
            if members
                .iter()
                .enumerate()
                .any(|(at, one)| members[..at].contains(one))
            {
                return Err(wrong(&"a union has each directory once"));
            }
            members
        }
    };
    if mount_point
        .iter()
        .any(|name| name.len() > FILE_NAME_BYTES_MAX)
    {
        return Err(wrong(&format!(
            "a name in MOUNTPOINT has at most {FILE_NAME_BYTES_MAX} bytes"
        )));
    }
    if !plain(mount_point) {
        return Err(wrong(&"DIR and MOUNTPOINT are absolute and without .."));
    }
    Ok(HostMount {
        parts,
        mount_point: mount_point.to_path_buf(),
        read_only,
    })
}

/// `[NODE:]DIR` or `[NODE:]sqlite:FILE`.
fn part(what: &[u8], mapped: bool, names: &[String], places: &[Place]) -> Result<Part, String> {
    // Without a node's name, the first one's.
    let (kind, path) = Kind::split(what);
    let (node, kind, path) = match kind {
        Kind::Directory => {
            let (node, path) = of_node(OsStr::from_bytes(path), names)?;
            let (kind, path) = Kind::split(path.as_os_str().as_bytes());
            (node, kind, Path::new(OsStr::from_bytes(path)))
        }
        kind => (0, kind, Path::new(OsStr::from_bytes(path))),
    };
    let kind = span_api::guest::kind(kind, mapped)?;
    if !plain(path) {
        return Err("DIR and MOUNTPOINT are absolute and without ..".into());
    }
    let mut path = path.to_path_buf();
    if places[node] == Place::Local {
        path = fs::canonicalize(path).map_err(|error| error.to_string())?;
        match kind {
            Kind::Sqlite => span_api::guest::check_database(&path)?,
            _ => fs::read_dir(&path)
                .map(drop)
                .map_err(|error| error.to_string())?,
        }
    }
    Ok(Part { node, kind, path })
}

/// Whether a path says where it leads.
pub(crate) fn plain(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
}

pub(crate) fn check_name(option: &str, name: &str) -> Result<(), Failure> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(allowed) {
        return Err(Failure::usage(format!(
            "{option} {name:?}: a name is 1 to {NAME_BYTES_MAX} of the characters a-z A-Z 0-9 _ -"
        )));
    }
    Ok(())
}

/// Names and places of `--nodes`.
pub(crate) fn nodes(value: &str) -> Result<(Vec<String>, Vec<Place>), Failure> {
    let mut names: Vec<String> = Vec::new();
    let mut places = Vec::new();
    for item in value.split(',') {
        let (name, place) = match item.split_once('=') {
            None => (item, Place::Local),
            Some((name, address)) => (name, Place::Remote(check_address(item, address)?)),
        };
        check_name("--nodes", name)?;
        if span_api::guest::RESERVED.contains(&name) {
            return Err(Failure::usage(format!(
                "--nodes {value}: {name} is what --hostfs calls something else; no node can have this name"
            )));
        }
        if names.iter().any(|other| other == name) {
            return Err(Failure::usage(format!(
                "--nodes {value}: node {name} is named twice; each node needs a name of its own"
            )));
        }
        names.push(name.to_string());
        places.push(place);
    }
    if names.len() > NODES_MAX {
        return Err(Failure::usage(format!(
            "--nodes: {} nodes; a guest has at most {NODES_MAX}",
            names.len()
        )));
    }
    Ok((names, places))
}

/// Whether it is HOST:PORT.
pub(crate) fn is_address(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let graphic = !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic());
        graphic && digits && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

fn check_address(item: &str, address: &str) -> Result<String, Failure> {
    if is_address(address) {
        Ok(address.to_string())
    } else {
        Err(Failure::usage(format!(
            "--nodes {item}: an address is HOST:PORT with a port from 1 to 65535"
        )))
    }
}

/// CPUs of each node.
pub(crate) fn cpus(value: Option<&str>, names: &[String]) -> Result<Vec<usize>, Failure> {
    let counts = per_node("--cpus", value, names, 1, |text| {
        let count = text
            .parse::<usize>()
            .ok()
            .filter(|_| !text.starts_with('+'));
        match count {
            Some(count @ 1..=CPUS_MAX) => Ok(count),
            _ => Err(format!("a node has 1 to {CPUS_MAX} CPUs")),
        }
    })?;
    let total: usize = counts.iter().sum();
    if total > CPUS_MAX {
        return Err(Failure::usage(format!(
            "--cpus {}: {total} CPUs in all; a guest has at most {CPUS_MAX}",
            value.unwrap_or("1")
        )));
    }
    Ok(counts)
}

/// CPUs of its host that each node runs on; none: all.
pub(crate) fn host_cpus(value: Option<&str>, names: &[String]) -> Result<Vec<Vec<u16>>, Failure> {
    per_node("--host-cpus", value, names, Vec::new(), |text| {
        let ranges = text.split('+');
        let cpus = cpu_ranges(ranges, HOST_CPU_MAX)
            .ok_or_else(|| format!("a host's CPUs are given as 0-3+8, from 0 to {HOST_CPU_MAX}"))?;
        distinct(cpus)
    })
}

/// Numbers, of which none may be given twice.
pub(crate) fn distinct(mut cpus: Vec<u16>) -> Result<Vec<u16>, String> {
    cpus.sort_unstable();
    match cpus.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("CPU {} is given twice", pair[0])),
        None => Ok(cpus),
    }
}

/// Numbers up to `most`, each range as `0-3` or `7`.
pub(crate) fn cpu_ranges<'a>(ranges: impl Iterator<Item = &'a str>, most: u16) -> Option<Vec<u16>> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|n: &u16| digits && *n <= most)
    };
    let mut cpus = Vec::new();
    for range in ranges {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (number(first)?, number(last)?) {
            (first, last) if first <= last => cpus.extend(first..=last),
            _ => return None,
        }
    }
    Some(cpus)
}

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

/// A value for every node: one for all, or some by name.
fn per_node<T: Clone>(
    option: &str,
    value: Option<&str>,
    names: &[String],
    default: T,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, Failure> {
    let Some(value) = value else {
        return Ok(vec![default; names.len()]);
    };
    let refused = |text: &str, why: String| Failure::usage(format!("{option} {text}: {why}"));
    if !value.contains('=') {
        let all = parse(value).map_err(|why| refused(value, why))?;
        return Ok(vec![all; names.len()]);
    }
    let mut values = vec![None; names.len()];
    for item in value.split(',') {
        let Some((name, text)) = item.split_once('=') else {
            return Err(refused(
                value,
                "give one value for all nodes, or NAME=VALUE,…".into(),
            ));
        };
        let Some(index) = names.iter().position(|known| known == name) else {
            let known = names.join(", ");
            return Err(refused(
                item,
                format!("there is no node {name}; --nodes has {known}"),
            ));
        };
        if values[index].is_some() {
            return Err(refused(value, format!("node {name} is given twice")));
        }
        values[index] = Some(parse(text).map_err(|why| refused(item, why))?);
    }
    Ok(values
        .into_iter()
        .map(|value| value.unwrap_or_else(|| default.clone()))
        .collect())
}

/// `--root`. What it names on another machine is checked there.
pub(crate) fn root(value: &OsStr, names: &[String], places: &[Place]) -> Result<Root, Failure> {
    if value == "host" {
        return Ok(Root::Host);
    }
    if value == "none" {
        return Ok(Root::None);
    }
    let refused = |why: &dyn Display| {
        Failure::usage(format!(
            "--root {}: {why}; allowed are host, none, a readable directory (,owners=mapped may follow) or image file",
            value.display()
        ))
    };
    let bytes = value.as_bytes();
    let (value, kind) = match bytes.strip_suffix(b",owners=mapped") {
        Some(directory) => (OsStr::from_bytes(directory), Kind::Mapped),
        None => (value, Kind::Directory),
    };
    let (node, path) = of_node(value, names).map_err(|why| refused(&why))?;
    let image = |path: PathBuf| match kind {
        Kind::Mapped => Err(refused(&"owners=mapped is for directories")),
        _ => Ok(Root::Image(node, path)),
    };
    if places[node] != Place::Local {
        // A path that ends in a slash says that it is a directory.
        let directory = value.as_bytes().ends_with(b"/");
        return match plain(path) {
            true if !directory && path.extension().is_some() => image(path.into()),
            true => Ok(Root::Directory(node, path.into(), kind)),
            false => Err(refused(
                &"a path on another machine must be absolute and without ..",
            )),
        };
    }
    let metadata = fs::metadata(path).map_err(|error| refused(&error))?;
    let canonical = || fs::canonicalize(path).map_err(|error| refused(&error));
    if metadata.is_dir() {
        fs::read_dir(path).map_err(|error| refused(&error))?;
        Ok(Root::Directory(node, canonical()?, kind))
    } else if metadata.is_file() {
        fs::File::open(path).map_err(|error| refused(&error))?;
        image(canonical()?)
    } else {
        Err(refused(&"is neither a directory nor a regular file"))
    }
}

/// `--append`, split into kernel arguments.
pub(crate) fn appended(value: &str) -> Result<Vec<Vec<u8>>, Failure> {
    let refused = |word: &str, why: &str| {
        Err(Failure::usage(format!(
            "--append {}: {why}",
            word.escape_debug()
        )))
    };
    let mut arguments = Vec::new();
    for word in value.split_ascii_whitespace() {
        if word.chars().any(char::is_control) {
            return refused(word, "control characters are not allowed");
        }
        let key = word.split_once('=').map_or(word, |(key, _)| key);
        match key {
            "mem" => return refused(word, "memory is given with --mem"),
            "ncpus" | "nr_cpus" | "maxcpus" => return refused(word, "CPUs are given with --cpus"),
            "initrd" => return refused(word, "the initramfs is Span's own; see --root"),
            "umid" | "uml_dir" => {
                return refused(
                    word,
                    "it names where this guest keeps its files; see --name",
                );
            }
            _ => {}
        }
        if key.starts_with("span.") {
            return refused(word, "arguments that begin with span. are set by Span");
        }
        let number = key.strip_prefix("eth");
        if number.is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit())) {
            let value = word.split_once('=').map_or("", |(_, value)| value);
            let instead = network::instead_of_eth(value);
            return refused(
                word,
                &format!("these devices are gone from Linux; {instead}"),
            );
        }
        arguments.push(word.as_bytes().to_vec());
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["a", "b", "c"].map(String::from).to_vec()
    }

    fn line<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
        let failure = result.unwrap_err();
        assert_eq!(failure.code, 2);
        assert!(!failure.line.contains('\n'), "{}", failure.line);
        failure.line
    }

    #[test]
    fn nodes_have_names_and_places() {
        let (names, places) = nodes("a,b=10.0.0.2:7000,c=[::1]:1").unwrap();
        assert_eq!(names, ["a", "b", "c"]);
        let remote = |address: &str| Place::Remote(address.to_string());
        assert_eq!(
            places,
            [Place::Local, remote("10.0.0.2:7000"), remote("[::1]:1")]
        );
    }

    #[test]
    fn bad_nodes_are_named() {
        for (value, part) in [
            ("", "--nodes \"\""),
            ("a,,b", "--nodes \"\""),
            ("a,b,a", "node a is named twice"),
            ("a b", "--nodes \"a b\""),
            ("../x", "--nodes \"../x\""),
            ("a=", "HOST:PORT"),
            ("a=host", "HOST:PORT"),
            ("a=host:0", "HOST:PORT"),
            ("a=host:65536", "HOST:PORT"),
            ("a=host:+1", "HOST:PORT"),
            ("a=:1", "HOST:PORT"),
            ("a\u{1b}[2J", "--nodes"),
        ] {
            let line = line(nodes(value));
            assert!(line.contains(part), "{value}: {line}");
        }
        let many: Vec<_> = (0..65).map(|n| format!("n{n}")).collect();
        assert!(line(nodes(&many.join(","))).contains("at most 64"));
    }

    #[test]
    fn a_hosts_cpus_are_given_for_all_or_by_name() {
        let cpus = |value| host_cpus(value, &names()).unwrap();
        assert_eq!(cpus(None), vec![Vec::<u16>::new(); 3]);
        assert_eq!(cpus(Some("1")), vec![vec![1]; 3]);
        assert_eq!(
            cpus(Some("c=4-6+1,a=0")),
            [vec![0], Vec::new(), vec![1, 4, 5, 6]]
        );
        for (value, expected) in [
            (
                "1024",
                "--host-cpus 1024: a host's CPUs are given as 0-3+8, from 0 to 1023",
            ),
            ("a=3-1", "--host-cpus a=3-1: a host's CPUs"),
            ("a=", "--host-cpus a=: a host's CPUs"),
            ("+1", "--host-cpus +1: a host's CPUs"),
            ("0-2+1", "--host-cpus 0-2+1: CPU 1 is given twice"),
            ("d=1", "--host-cpus d=1: there is no node d"),
            ("0,1", "--host-cpus 0,1: a host's CPUs"),
        ] {
            let line = line(host_cpus(Some(value), &names()));
            assert!(line.starts_with(expected), "{line}");
        }
    }

    #[test]
    fn cpus_are_given_for_all_or_by_name() {
        assert_eq!(cpus(None, &names()).unwrap(), [1, 1, 1]);
        assert_eq!(cpus(Some("2"), &names()).unwrap(), [2, 2, 2]);
        assert_eq!(cpus(Some("c=3,a=2"), &names()).unwrap(), [2, 1, 3]);
        assert_eq!(cpus(Some("a=62"), &names()).unwrap(), [62, 1, 1]);
    }

    #[test]
    fn bad_cpus_are_named() {
        for (value, part) in [
            ("0", "--cpus 0: a node has 1 to 64"),
            ("-1", "--cpus -1"),
            ("+1", "--cpus +1"),
            ("", "--cpus "),
            ("22", "66 CPUs in all"),
            ("a=63", "65 CPUs in all"),
            ("d=1", "no node d; --nodes has a, b, c"),
            ("a=1,a=2", "given twice"),
            ("a=1,2", "NAME=VALUE"),
            ("99999999999999999999", "1 to 64"),
        ] {
            let line = line(cpus(Some(value), &names()));
            assert!(line.contains(part), "{value}: {line}");
        }
    }

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

    #[test]
    fn appended_arguments_may_not_undo_what_options_set() {
        assert_eq!(
            appended(" con0=null  vec0:transport=tap ").unwrap(),
            [b"con0=null".to_vec(), b"vec0:transport=tap".to_vec()]
        );
        for (value, part) in [
            ("mem=1G", "--mem"),
            ("quiet ncpus=3", "--cpus"),
            ("span.root=host", "set by Span"),
            ("eth0=tuntap,,,", "use --net tap:"),
            ("eth1=daemon", "--net switch:"),
            ("eth0=x", "--net user"),
            ("a\u{7}b", "control"),
        ] {
            let line = line(appended(value));
            assert!(line.contains(part), "{value}: {line}");
        }
        assert!(appended("ether=1 eth=2").is_ok());
    }

    #[test]
    fn a_root_must_exist_and_be_of_a_usable_kind() {
        let (names, places) = nodes("a,b,c=far:1").unwrap();
        let root = |value: &str| root(OsStr::new(value), &names, &places);
        assert_eq!(root("host").unwrap(), Root::Host);
        assert_eq!(root("none").unwrap(), Root::None);
        let directory = |node, path: &str| Root::Directory(node, path.into(), Kind::Directory);
        assert_eq!(root("/proc").unwrap(), directory(0, "/proc"));
        assert_eq!(root("b:/proc").unwrap(), directory(1, "/proc"));
        assert_eq!(root("c:/srv/d.d/").unwrap(), directory(2, "/srv/d.d/"));
        let image = |node, path: &str| Root::Image(node, path.into());
        assert_eq!(root("c:/srv/d.img").unwrap(), image(2, "/srv/d.img"));
        assert_eq!(root("b:/proc/version").unwrap(), image(1, "/proc/version"));
        for (value, part) in [
            ("/nonexistent", "--root /nonexistent: "),
            ("/dev/null", "neither"),
            ("c:some/where", "absolute"),
            ("c:/srv/..", "without .."),
            ("d:/srv", "no node d; --nodes has a, b, c"),
        ] {
            let line = line(root(value));
            assert!(line.contains(part), "{value}: {line}");
        }
        let (names, places) = nodes("a=far:1").unwrap();
        let root = |value: &str| super::root(OsStr::new(value), &names, &places).unwrap();
        assert_eq!(root("/srv/d"), directory(0, "/srv/d"));
        assert_eq!(root("/srv/d.d/"), directory(0, "/srv/d.d/"));
        assert_eq!(root("/srv/d.img"), Root::Image(0, "/srv/d.img".into()));
    }

    #[test]
    fn directories_of_hosts_are_mounted_where_it_is_said() {
        let (names, places) = nodes("a,b,c=far:1").unwrap();
        let hostfs = |value: &str| hostfs(OsStr::new(value), &names, &places);
        let mount = |node, directory: &str, read_only| HostMount {
            parts: vec![Part {
                node,
                kind: Kind::Directory,
                path: directory.into(),
            }],
            mount_point: "/mnt".into(),
            read_only,
        };
        for (value, wanted) in [
            ("/proc=/mnt", mount(0, "/proc", false)),
            ("b:/proc/=/mnt,ro", mount(1, "/proc", true)),
            ("c:/a=b:c=/mnt", mount(2, "/a=b:c", false)),
        ] {
            assert_eq!(hostfs(value).unwrap(), wanted, "{value}");
        }
        let parts = |value: &str| hostfs(value).unwrap().parts;
        let part = |node, kind, path: &str| Part {
            node,
            kind,
            path: path.into(),
        };
        for (value, wanted) in [
            ("c:sqlite:/a.db=/mnt", vec![part(2, Kind::Sqlite, "/a.db")]),
            ("c:/d=/mnt,owners=mapped", vec![part(2, Kind::Mapped, "/d")]),
            (
                "union:c:/d+/proc=/mnt",
                vec![
                    part(2, Kind::Directory, "/d"),
                    part(0, Kind::Directory, "/proc"),
                ],
            ),
        ] {
            assert_eq!(parts(value), wanted, "{value}");
        }
        let long = format!("/proc=/mnt/{}", "x".repeat(256));
        for (value, part) in [
            ("", "[NODE:]DIR=MOUNTPOINT,"),
            ("/proc", "[NODE:]DIR=MOUNTPOINT,"),
            ("union:/proc=/mnt", "two or more"),
            (
                "union:/proc+b:/proc/=/mnt,owners=mapped",
                "without owners=mapped",
            ),
            ("union:/proc+a:/proc/=/mnt", "each directory once"),
            ("sqlite:/proc/version=/mnt", "no SQLite database"),
            ("sqlite:/proc=/mnt", "is no file"),
            ("c:sqlite:/a.db=/mnt,owners=mapped", "is for directories"),
            ("d:/proc=/mnt", "no node d; --nodes has a, b, c"),
            (":/proc=/mnt", "no node ; --nodes has"),
            ("proc=/mnt", "absolute"),
            ("/proc=mnt", "absolute"),
            ("/proc=", "absolute"),
            ("=/mnt", "absolute"),
            ("/proc/../proc=/mnt", "without .."),
            ("/proc=/mnt/../etc", "without .."),
            (long.as_str(), "at most 255 bytes"),
            ("/proc=/mnt,rw", "nothing but ,ro"),
            ("/nonexistent=/mnt", "No such file"),
            ("/proc/version=/mnt", "Not a directory"),
        ] {
            let line = line(hostfs(value));
            assert!(line.contains(part), "{value}: {line}");
        }
    }
}
