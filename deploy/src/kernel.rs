//! Configures and builds one kernel, out of its tree.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::{self, Fragments};
use crate::error::{At, Result, broken, invalid};
use crate::layout::{self, Layout};
use crate::prereq;
use crate::process;
use crate::progress::Progress;
use crate::source::{self, Source, Wanted};
use crate::stamp::{self, Stamp};
use crate::tree;

/// Instructions have files and lines, as `coordinator profile` and gdb show them, and nothing else for debuggers: with types
/// and variables the kernel would be several times as large.
const LINES: &str = "KCFLAGS=-g1";

/// Variables that would change what kbuild builds or where.
const ENVIRONMENT_REMOVED: &[&str] = &[
    "ARCH",
    "CC",
    "CFLAGS",
    "CROSS_COMPILE",
    "KAFLAGS",
    "KBUILD_OUTPUT",
    "KCFLAGS",
    "KCONFIG_CONFIG",
    "LDFLAGS",
    "LLVM",
    "LOCALVERSION",
    "MAKEFLAGS",
    "MAKELEVEL",
    "MFLAGS",
    "SUBARCH",
    "V",
    "W",
];

#[derive(Debug)]
pub(crate) enum Variant {
    /// With overlay and series, linked to libnode.so.
    Span,
    /// The same, and what is below these directories counts how often its lines are executed.
    Counting(Vec<String>),
    /// The same version and configuration as its authors wrote it.
    Upstream,
}

#[derive(Debug)]
pub(crate) struct Kernel {
    /// The executable.
    pub(crate) linux: PathBuf,
    /// Modules; none of upstream's kernel, which is there to compare with.
    pub(crate) modules: Vec<PathBuf>,
    pub(crate) series: String,
}

/// What stays the same while one command builds several kernels.
#[derive(Debug)]
pub(crate) struct Builder<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) progress: &'a Progress,
    pub(crate) lock: &'a File,
}

impl Builder<'_> {
    pub(crate) fn kernel(&self, wanted: &Wanted, variant: &Variant) -> Result<Kernel> {
        let source = source::obtain(self.layout, self.progress, self.lock, wanted)?;
        let (tree, tree_hash, out) = match variant {
            Variant::Upstream => {
                let out = format!("{}-upstream", source.id);
                (source.dir.clone(), source.id.clone(), out)
            }
            Variant::Span | Variant::Counting(_) => {
                let tree = tree::prepare(self.layout, self.progress, self.lock, &source)?;
                let out = match variant {
                    Variant::Counting(_) => format!("{}-gcov", source.id),
                    _ => source.id.clone(),
                };
                (tree.dir, tree.hash, out)
            }
        };
        let out = self.layout.kernel().join("out").join(out);
        let fragments = config::read(&self.layout.root, variant)?;
        let interface = match variant {
            Variant::Upstream => String::new(),
            _ => self.link_directory()?,
        };
        let counting: &[String] = match variant {
            Variant::Counting(directories) => directories,
            _ => &[],
        };
        check_directories(counting, &tree)?;
        let hash = Stamp::default()
            .add("tree", &tree_hash)
            .add("config", &fragments.text)
            .add("compiler", prereq::compiler()?)
            .add("libnode", &interface)
            .add("counting", counting.join(","))
            .add("lines", LINES)
            .hex();
        let linux = out.join("linux");
        let kernel = |out: &Path| -> Result<Kernel> {
            Ok(Kernel {
                linux: out.join("linux"),
                modules: match variant {
                    Variant::Upstream => Vec::new(),
                    _ => modules(out)?,
                },
                series: source.series.clone(),
            })
        };
        let stamp = out.join("span.stamp");
        if !source.mutable && linux.is_file() && stamp::fresh(&stamp, &hash) {
            self.progress
                .stage(format!("{}: up to date", title(&source, variant)));
            return kernel(&out);
        }
        fs::create_dir_all(&out).at("create", &out)?;
        layout::remove(&stamp)?;
        let make = Make {
            builder: self,
            title: title(&source, variant),
            tree,
            timestamp: build_time(&source)?,
            out,
            counting,
        };
        make.configure(&fragments)?;
        make.relink_if_changed(&interface)?;
        make.build(match variant {
            Variant::Upstream => &["linux"],
            _ => &["linux", "modules"],
        })?;
        stamp::write_atomic(&stamp, &hash)?;
        kernel(&make.out)
    }

    fn libnode(&self) -> PathBuf {
        self.layout.kernel().join("libnode")
    }

    /// Refreshes the copy of libnode.so that kernels are linked against, and returns the symbols it
    /// exports. The kernel finds libnode.so beside itself when it starts, so a new libnode.so with
    /// the same symbols needs no new link: then the copy, with its time, stays as it is.
    fn link_directory(&self) -> Result<String> {
        let library = self.layout.release.join("libnode.so");
        let copy = self.libnode().join("libnode.so");
        let exported = exported_symbols(&library)?;
        if !copy.is_file() || exported_symbols(&copy)? != exported {
            let dir = self.libnode();
            fs::create_dir_all(&dir).at("create", &dir)?;
            let content = fs::read(&library).at("read", &library)?;
            stamp::write_atomic(&copy, content)?;
        }
        Ok(exported)
    }
}

struct Make<'a> {
    builder: &'a Builder<'a>,
    title: String,
    tree: PathBuf,
    out: PathBuf,
    timestamp: String,
    /// Directories of what counts how often its lines are executed.
    counting: &'a [String],
}

impl Make<'_> {
    fn configure(&self, fragments: &Fragments) -> Result<()> {
        let all = self.out.join("fragments.config");
        stamp::write_atomic(&all, &fragments.text)?;
        let mut command = self.command(&["allnoconfig"]);
        command.env("KCONFIG_ALLCONFIG", &all);
        self.run("configure", command, |_| ())?;
        fragments.assert_survived(&self.out.join(".config"))
    }

    /// make does not know that the kernel's symbols are resolved by libnode.so.
    fn relink_if_changed(&self, interface: &str) -> Result<()> {
        let linked = self.out.join("span.libnode");
        if !stamp::fresh(&linked, interface) {
            for product in ["vmlinux", "linux"] {
                layout::remove(&self.out.join(product))?;
            }
        }
        stamp::write_atomic(&linked, interface)
    }

    fn build(&self, targets: &[&str]) -> Result<()> {
        let progress = self.builder.progress;
        progress.stage(format!("{}: building", self.title));
        let mut counter = progress.counter(&self.title);
        let mut objects = 0_u32;
        self.run("make", self.command(targets), |line| {
            let object = line.and_then(compiled);
            objects += u32::from(object.is_some());
            counter.show(
                &format!("{objects} objects compiled"),
                object.unwrap_or_default(),
            );
        })?;
        drop(counter);
        let linux = self.out.join("linux");
        if !linux.is_file() {
            return Err(broken(format!(
                "make succeeded without {}",
                linux.display()
            )));
        }
        progress.stage(format!("{}: {objects} objects compiled", self.title));
        Ok(())
    }

    fn run(&self, step: &str, command: Command, on_tick: impl FnMut(Option<&str>)) -> Result<()> {
        let name = self.out.file_name().unwrap_or_default().to_string_lossy();
        let log = self.builder.layout.log(&format!("kernel-{name}-{step}"));
        let stage = format!("{}: {step}", self.title);
        process::logged(&stage, command, self.builder.lock, &log, on_tick)
    }

    fn command(&self, targets: &[&str]) -> Command {
        let jobs = std::thread::available_parallelism().map_or(1, |count| count.get());
        let mut command = Command::new("make");
        for name in ENVIRONMENT_REMOVED {
            command.env_remove(name);
        }
        command
            .arg("-C")
            .arg(&self.tree)
            .arg(joined("O=", &self.out))
            .arg("ARCH=um")
            .arg(joined("SPAN_LIBNODE_DIR=", &self.builder.libnode()))
            .arg(format!("-j{jobs}"))
            .arg(lines(&self.out, &self.tree))
            .args((!self.counting.is_empty()).then(|| counting_variable(self.counting)))
            .args(targets)
            .env("LC_ALL", "C")
            // The same inputs give the same file on every host: nodes compare it when they join.
            .env("KBUILD_BUILD_TIMESTAMP", &self.timestamp)
            .env("KBUILD_BUILD_VERSION", "1")
            .env("KBUILD_BUILD_USER", "span")
            .env("KBUILD_BUILD_HOST", "span");
        command
    }
}

/// With names of files as in the kernel's tree, without the directories of this host: the same file is to be made on each.
fn lines(out: &Path, tree: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(LINES);
    let mut leave_out = |directory: &Path| {
        argument.push(" -fdebug-prefix-map=");
        argument.push(directory);
        argument.push("/=");
    };
    leave_out(tree);
    // Which kbuild goes by if both are of one directory.
    let above = out.ancestors().nth(2);
    if let Some(tree) = above.and_then(|above| tree.strip_prefix(above).ok()) {
        leave_out(&Path::new("../..").join(tree));
    }
    argument.push(" -fdebug-prefix-map=");
    argument.push(out);
    argument.push("=.");
    argument
}

fn joined(variable: &str, path: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(variable);
    argument.push(path);
    argument
}

/// Whether all of `directories` are in the kernel's tree.
fn check_directories(directories: &[String], tree: &Path) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-/".contains(c);
    for directory in directories {
        let relative = !directory.starts_with('/') && directory.chars().all(plain);
        if directory.is_empty() || !relative || !tree.join(directory).is_dir() {
            return Err(invalid(format!(
                "--gcov {directory}: not a directory of the kernel's source, as mm and fs/hostfs are"
            )));
        }
    }
    Ok(())
}

/// kbuild's switch, which Makefiles set for whole directories: on for what is linked into the kernel from
/// below `directories`.
fn counting_variable(directories: &[String]) -> String {
    let below: Vec<String> = directories
        .iter()
        .map(|directory| format!("{}/%", directory.trim_end_matches('/')))
        .collect();
    let below = below.join(" ");
    format!("GCOV_PROFILE=$(if $(and $(is-kernel-object),$(filter {below},$(obj)/)),y,n)")
}

fn title(source: &Source, variant: &Variant) -> String {
    match variant {
        Variant::Span => format!("kernel {}", source.version),
        Variant::Counting(_) => format!("kernel {} with gcov", source.version),
        Variant::Upstream => format!("upstream kernel {}", source.version),
    }
}

/// The object that a line of kbuild's output is about.
fn compiled(line: &str) -> Option<&str> {
    let (verb, object) = line.trim_start().split_once(' ')?;
    let is_object = matches!(verb, "CC" | "AS" | "HOSTCC") && line.starts_with("  ");
    let object = object.trim_start();
    is_object.then(|| object.strip_prefix("[M]").unwrap_or(object).trim())
}

/// The modules that kbuild has listed in `out`, by their objects' paths.
fn modules(out: &Path) -> Result<Vec<PathBuf>> {
    let order = out.join("modules.order");
    let text = fs::read_to_string(&order).at("read", &order)?;
    Ok(text
        .lines()
        .map(|object| out.join(object).with_extension("ko"))
        .collect())
}

/// When the source was made, the way `date` prints it: the kernel shows it as its build time.
fn build_time(source: &Source) -> Result<String> {
    let makefile = source.dir.join("Makefile");
    let mut command = Command::new("date");
    command
        .args(["-u", "+%a %b %e %T UTC %Y", "-r"])
        .arg(makefile)
        .env("LC_ALL", "C");
    let out = process::output(&mut command)?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn exported_symbols(library: &Path) -> Result<String> {
    let mut command = Command::new("nm");
    command
        .args(["--dynamic", "--defined-only", "--format=posix"])
        .arg(library);
    let out = process::output(&mut command)?;
    if !out.status.success() {
        return Err(broken(format!(
            "{}: {}",
            library.display(),
            String::from_utf8_lossy(&out.stderr).trim()
        )));
    }
    let listed = String::from_utf8_lossy(&out.stdout);
    let mut names: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    names.sort_unstable();
    Ok(names.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_that_count_are_told_to_kbuild() {
        let directories = ["mm".to_string(), "fs/hostfs/".to_string()];
        assert_eq!(
            counting_variable(&directories),
            "GCOV_PROFILE=$(if $(and $(is-kernel-object),$(filter mm/% fs/hostfs/%,$(obj)/)),y,n)"
        );
        let tree = Path::new("/");
        assert!(check_directories(&["usr/bin".into()], tree).is_ok());
        for bad in ["", "/usr", "usr/../usr", "$(usr)", "nothing/of/it"] {
            assert!(check_directories(&[bad.into()], tree).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_objects_are_counted() {
        assert_eq!(compiled("  CC      mm/vmscan.o"), Some("mm/vmscan.o"));
        assert_eq!(compiled("  CC [M]  lib/hash.o"), Some("lib/hash.o"));
        assert_eq!(compiled("  GEN     Makefile"), None);
        assert_eq!(compiled("mm/a.c:3: CC is"), None);
    }
}
