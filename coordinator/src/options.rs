//! The values of options: their syntax, and what is allowed. Here what concerns nodes and their CPUs.

mod files;
mod memory;

pub(crate) use files::{Root, hostfs, of_node, plain, root};
pub(crate) use memory::{
    check_limits, guest_memory, mem_limit, memory, memory_argument, memory_bytes, memory_size_text,
    share_out, size_bytes,
};

use crate::failure::Failure;
use crate::network;
use span_api::link::HOST_CPU_MAX;
use span_api::{CPUS_MAX, NODES_MAX};

const NAME_BYTES_MAX: usize = 32;

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

    pub(super) fn names() -> Vec<String> {
        ["a", "b", "c"].map(String::from).to_vec()
    }

    pub(super) fn line<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
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
}
