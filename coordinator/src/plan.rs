//! From options to a plan: everything about `up` that can be checked is checked here, before anything
//! is started. Each refusal is one line that names the option, the value and what is allowed.

use crate::artefacts::{self, Files};
use crate::cli::{PagingOption, UpOptions};
use crate::disk::{Disk, Disks};
use crate::failure::Failure;
use crate::lines;
use crate::links::Links;
use crate::network::Networks;
use crate::numa;
use crate::options::{self, Place, Root};
use crate::topology::{self, Numa, Topology};
use span_api::auth::{Token, TokenError};
use span_api::guest::{Export, Kind, NodeSpec, Paging};
use std::error::Error;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// `COMMAND_LINE_SIZE` of the kernel (4096), with room for what an agent adds.
const ARGUMENTS_BYTES_MAX: usize = 4096 - 512;

/// Arguments of every guest. The kernel log goes to the stderr of each node's own process: of all
/// consoles that one alone needs no other node to be written. Lines that have another end come later.
const ARGUMENTS: [&str; 4] = ["seccomp=on", "con=null", "ssl=null", "console=span"];

/// Arguments of a guest on several nodes. CPUs fold their counters of pages into everybody's once a
/// minute instead of once a second: each time all nodes read what all others have written. Memory is
/// not put together for huge pages, which there are none of, twice a second on each node.
const ARGUMENTS_OF_SEVERAL: [&str; 2] = [
    "sysctl.vm.stat_interval=60",
    "sysctl.vm.compaction_proactiveness=0",
];

/// Everything needed to start a guest.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: Option<String>,
    pub(crate) nodes: Vec<NodeSpec>,
    pub(crate) places: Vec<Place>,
    /// CPUs of its host that each node runs on; none: all.
    pub(crate) host_cpus: Vec<Vec<u16>>,
    pub(crate) links: Links,
    pub(crate) paging: Paging,
    pub(crate) patient: bool,
    pub(crate) networks: Networks,
    pub(crate) lines: lines::Wanted,
    /// Kernel arguments but for those that depend on the guest's name or an agent.
    pub(crate) arguments: Vec<Vec<u8>>,
    /// What the user appended; last on the kernel's command line.
    pub(crate) appended: Vec<Vec<u8>>,
    /// Files and directories that each node must be able to read.
    pub(crate) readable: Vec<Vec<Vec<u8>>>,
    /// Files of each node that are to be disks.
    pub(crate) disks: Vec<Vec<Vec<u8>>>,
    pub(crate) files: Files,
    pub(crate) token: Option<Token>,
    /// What the guest may mount of each node's host, as far as that is this machine.
    pub(crate) exports: Vec<Vec<Export>>,
    /// The guest sees this machine's files, so a path means the same in it.
    pub(crate) host_root: bool,
}

impl Plan {
    pub(crate) fn new(up: &UpOptions) -> Result<Self, Failure> {
        let Machines {
            names,
            places,
            cpus,
            memory,
            limits,
            host_cpus,
            links,
            numa,
            cpu_topology,
        } = Machines::new(up)?;
        options::check_limits("--mem-limit", &names, &memory, &limits)?;
        if let Some(name) = &up.name {
            options::check_name("--name", name)?;
        }
        if up.detach && !up.argv.is_empty() {
            return Err(Failure::usage(
                "--detach takes no CMD; run it with `coordinator exec` once the guest is up",
            ));
        }
        let paging = match up.paging {
            PagingOption::Auto => Paging::Auto,
            PagingOption::Mprotect => Paging::Mprotect,
            PagingOption::Uffd => Paging::Uffd,
        };
        let first_is_local = places[0] == Place::Local;
        let host_root = up.root == "host" && first_is_local;
        let storage = Storage::new(up, &names, &places)?;
        let mut appended = options::appended(up.append.as_deref().unwrap_or_default())?;
        let lines = lines::Wanted::new(&mut appended, &places[0])?;
        let networks = Networks::new(&up.net, &names)?;
        networks.check_appended(&appended)?;
        let token = token(up, &names, &places)?;

        let mut arguments = vec![
            options::memory_argument(memory.iter().sum()).into_bytes(),
            format!("ncpus={}", cpus.iter().sum::<usize>()).into_bytes(),
        ];
        arguments.extend(ARGUMENTS.map(|argument| argument.as_bytes().to_vec()));
        if names.len() > 1 {
            arguments.extend(ARGUMENTS_OF_SEVERAL.map(|argument| argument.as_bytes().to_vec()));
        }
        let nodes = number(names, &cpus, &memory, &limits);
        let numa = numa.unwrap_or_else(|| Numa::of_nodes(&nodes, &links));
        if numa.nodes.len() > 1 && !is_appended(&appended, "numa=") {
            arguments.extend(numa::arguments(&numa).into_iter().map(String::into_bytes));
        }
        if !is_appended(&appended, "numa=") && !is_appended(&appended, "cpu_topology=") {
            arguments.extend(cpu_topology.map(String::into_bytes));
        }
        arguments.extend(storage.arguments);
        arguments.extend(networks.arguments());
        arguments.extend(lines.arguments());
        let bytes: usize = arguments
            .iter()
            .chain(&appended)
            .map(|word| word.len() + 1)
            .sum();
        if bytes > ARGUMENTS_BYTES_MAX {
            return Err(Failure::usage(format!(
                "--append: the kernel's command line would have {bytes} bytes; \
                 at most {ARGUMENTS_BYTES_MAX} are allowed"
            )));
        }

        Ok(Self {
            name: up.name.clone(),
            nodes,
            places,
            host_cpus,
            links,
            paging,
            patient: up.debug,
            networks,
            lines,
            arguments,
            appended,
            readable: storage.readable,
            disks: storage.disks,
            exports: storage.exports,
            files: artefacts::find(up.kernel.as_deref())?,
            token,
            host_root,
        })
    }

    pub(crate) fn cpus(&self) -> usize {
        self.nodes.iter().map(|node| node.cpus.len()).sum()
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        self.nodes.iter().map(|node| node.memory_bytes).sum()
    }

    pub(crate) fn has_local(&self) -> bool {
        self.places.contains(&Place::Local)
    }

    pub(crate) fn has_remote(&self) -> bool {
        self.places.iter().any(|place| *place != Place::Local)
    }
}

/// Nodes, where they run, and what they have.
#[derive(Debug)]
struct Machines {
    names: Vec<String>,
    places: Vec<Place>,
    cpus: Vec<usize>,
    memory: Vec<u64>,
    limits: Vec<Option<u64>>,
    host_cpus: Vec<Vec<u16>>,
    links: Links,
    /// If it is not one NUMA node for each.
    numa: Option<Numa>,
    /// If it is not one socket for each NUMA node.
    cpu_topology: Option<String>,
}

impl Machines {
    fn new(up: &UpOptions) -> Result<Self, Failure> {
        if let Some(path) = &up.topology {
            return Self::described(topology::find(path)?, up);
        }
        let nodes = up.nodes.as_deref();
        let nodes = nodes.ok_or_else(|| Failure::usage("a guest needs --nodes or --topology"))?;
        let (names, places) = options::nodes(nodes)?;
        let mut memory = options::memory(up.mem.as_deref(), &names)?;
        let limits = options::mem_limit(up.mem_limit.as_deref(), &names)?;
        if !up.mem.as_deref().is_some_and(|mem| mem.contains('=')) {
            options::share_out(&mut memory, &limits);
        }
        Ok(Self {
            cpus: options::cpus(up.cpus.as_deref(), &names)?,
            memory,
            limits,
            host_cpus: options::host_cpus(up.host_cpus.as_deref(), &names)?,
            links: Links::new(up.latency.as_deref(), &names)?,
            numa: None,
            cpu_topology: None,
            names,
            places,
        })
    }

    /// `--nodes` may only say where the nodes of a topology run.
    fn described(topology: Topology, up: &UpOptions) -> Result<Self, Failure> {
        let names = topology.names();
        let place = |address: &Option<String>| match address {
            Some(address) => Place::Remote(address.clone()),
            None => Place::Local,
        };
        let addresses = topology.nodes.iter().map(|node| place(&node.address));
        let mut places: Vec<Place> = addresses.collect();
        if let Some(value) = up.nodes.as_deref() {
            let (named, given) = options::nodes(value)?;
            if named != names {
                return Err(Failure::usage(format!(
                    "--nodes {value}: the topology {} has the nodes {}; name all of them, in this order",
                    topology.name,
                    names.join(",")
                )));
            }
            for ((name, known), given) in names.iter().zip(&mut places).zip(given) {
                if *known != Place::Local && given != Place::Local && *known != given {
                    return Err(Failure::usage(format!(
                        "--nodes {name}={given}: the topology {} has it at {known}",
                        topology.name
                    )));
                }
                if given != Place::Local {
                    *known = given;
                }
            }
        }
        for (node, place) in places.iter().enumerate() {
            if *place != Place::Local
                && let Some(uplink) = topology.uplink_of(node)
            {
                let why = topology::uplinks::elsewhere(uplink, &names[node], place);
                return Err(Failure::usage(format!(
                    "--nodes {}={place}: in the topology {}, {why}",
                    names[node], topology.name
                )));
            }
        }
        let limits = match up.mem_limit.as_deref() {
            Some(value) => options::mem_limit(Some(value), &names)?,
            None => topology.nodes.iter().map(|node| node.limit_bytes).collect(),
        };
        let host_cpus = match up.host_cpus.as_deref() {
            Some(value) => options::host_cpus(Some(value), &names)?,
            None => {
                let nodes = topology.nodes.iter();
                nodes.map(|node| node.host_cpus.clone()).collect()
            }
        };
        Ok(Self {
            names,
            places,
            limits,
            host_cpus,
            cpus: topology.nodes.iter().map(|node| node.cpus).collect(),
            memory: topology
                .nodes
                .iter()
                .map(|node| node.memory_bytes)
                .collect(),
            numa: Some(topology.numa()),
            cpu_topology: numa::cpu_topology(&topology.nodes),
            links: topology.links,
        })
    }
}

/// Gives CPU numbers out, node by node.
fn number(
    names: Vec<String>,
    cpus: &[usize],
    memory: &[u64],
    limits: &[Option<u64>],
) -> Vec<NodeSpec> {
    let mut next = 0u16;
    names
        .into_iter()
        .zip(cpus.iter().zip(memory).zip(limits))
        .map(|(name, ((&cpus, &memory_bytes), &limit_bytes))| {
            let first = next;
            next += cpus as u16;
            NodeSpec {
                name,
                cpus: (first..next).collect(),
                memory_bytes,
                limit_bytes,
            }
        })
        .collect()
}

/// Whether the user says it himself, with `--append`.
fn is_appended(appended: &[Vec<u8>], option: &str) -> bool {
    appended
        .iter()
        .any(|word| word.starts_with(option.as_bytes()))
}

/// The guest's root file system and disks.
#[derive(Debug, Default)]
struct Storage {
    arguments: Vec<Vec<u8>>,
    readable: Vec<Vec<Vec<u8>>>,
    exports: Vec<Vec<Export>>,
    disks: Vec<Vec<Vec<u8>>>,
}

impl Storage {
    fn new(up: &UpOptions, names: &[String], places: &[Place]) -> Result<Self, Failure> {
        let mut storage = Self {
            readable: vec![Vec::new(); names.len()],
            disks: vec![Vec::new(); names.len()],
            exports: vec![Vec::new(); names.len()],
            ..Self::default()
        };
        let mut disks = Disks::default();
        match options::root(&up.root, names, places)? {
            Root::Host => {
                storage.arguments.push(b"span.root=host".to_vec());
                storage.export(0, Kind::Directory, Path::new("/"), true)?;
            }
            Root::None => storage.arguments.push(b"span.root=none".to_vec()),
            Root::Directory(node, path, kind) => {
                let prefix = format!("span.root=hostfs:{}:", names[node]);
                storage.argument("--root", &prefix, &path)?;
                storage.export(node, kind, &path, false)?;
            }
            Root::Image(node, path) => {
                let added = disks.add(Disk::root(node, path));
                added.map_err(|why| {
                    Failure::usage(format!("--root {}: {why}", up.root.display()))
                })?;
                storage
                    .arguments
                    .push(b"span.root=block:/dev/ubda".to_vec());
            }
        }
        for value in &up.ubd {
            disks.add_option(value, names, places)?;
        }
        storage.take(&disks, names);
        for value in &up.hostfs {
            let mount = options::hostfs(value, names, places)?;
            let mut words = OsString::new();
            for (at, part) in mount.parts.iter().enumerate() {
                words.push(if at > 0 { "+" } else { "" });
                words.push(&names[part.node]);
                words.push(match part.kind {
                    Kind::Sqlite => ":sqlite:",
                    _ => ":",
                });
                words.push(&part.path);
            }
            words.push("=");
            words.push(&mount.mount_point);
            if mount.read_only {
                words.push(",ro");
            }
            let prefix = match mount.parts.len() {
                1 => "span.hostfs=",
                _ => "span.hostfs=union:",
            };
            storage.argument("--hostfs", prefix, Path::new(&words))?;
            for part in &mount.parts {
                storage.export(part.node, part.kind, &part.path, mount.read_only)?;
            }
        }
        Ok(storage)
    }

    /// A directory that a node has to be able to read, and may have to export: a daemon decides that for itself.
    fn export(
        &mut self,
        node: usize,
        kind: Kind,
        path: &Path,
        read_only: bool,
    ) -> Result<(), Failure> {
        let bytes = path.as_os_str().as_bytes().to_vec();
        self.readable[node].push(bytes.clone());
        let new = Export {
            kind,
            directory: bytes,
            read_only,
        };
        let exports = &mut self.exports[node];
        let same = |old: &Export| old.holds(&new) && new.holds(old);
        if exports.iter().any(|old| same(old) && old.kind != new.kind) {
            return Err(Failure::usage(format!(
                "--hostfs {}: has its owners mapped in one place and not in another",
                path.display()
            )));
        }
        // Whoever may change a directory may change what is in it, whatever else it is mounted as.
        let covered = |old: &Export| !old.read_only && old.kind == new.kind && old.holds(&new);
        if exports.iter().any(covered) {
            return Ok(());
        }
        exports.retain(|old| new.read_only || new.kind != old.kind || !new.holds(old));
        exports.push(new);
        Ok(())
    }

    fn take(&mut self, disks: &Disks, names: &[String]) {
        for (number, disk) in disks.iter().enumerate() {
            let argument = disk.argument(number, names);
            self.arguments.push(argument.into_vec());
            let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
            self.readable[disk.node].push(bytes(&disk.file));
            let files = disk.files().map(|(path, _)| bytes(path));
            self.disks[disk.node].extend(files);
        }
    }

    fn argument(&mut self, option: &str, prefix: &str, path: &Path) -> Result<(), Failure> {
        let bytes = path.as_os_str().as_bytes();
        // The kernel splits its command line at white space.
        let bad = |byte: &u8| byte.is_ascii_whitespace() || b"\"'".contains(byte);
        if bytes.iter().any(bad) {
            return Err(Failure::usage(format!(
                "{option} {}: the path must not contain white space or quotes",
                path.display(),
            )));
        }
        self.arguments.push([prefix.as_bytes(), bytes].concat());
        Ok(())
    }
}

/// The token, which is needed exactly when a node is elsewhere.
fn token(up: &UpOptions, names: &[String], places: &[Place]) -> Result<Option<Token>, Failure> {
    let remote = names
        .iter()
        .zip(places)
        .find(|(_, place)| **place != Place::Local);
    match (&up.token_file, remote) {
        (Some(path), _) => read_token(path).map(Some),
        (None, None) => Ok(None),
        (None, Some((name, place))) => Err(Failure::usage(format!(
            "--nodes {name}={place}: a node elsewhere needs --token-file FILE"
        ))),
    }
}

fn read_token(path: &Path) -> Result<Token, Failure> {
    Token::read(path).map_err(|error: TokenError| {
        let cause = error
            .source()
            .map(|cause| format!(": {cause}"))
            .unwrap_or_default();
        Failure::usage(format!("--token-file {}: {error}{cause}", path.display()))
    })
}
