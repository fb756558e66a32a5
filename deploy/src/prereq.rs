//! What the build takes from the machine, and how to get it there: installed when root, otherwise
//! one line with the command that does it.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result, broken};
use crate::kernel::Builder;
use crate::layout::Layout;
use crate::process;
use crate::progress::Progress;

/// One thing the build needs: how to tell that it is there, and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    kind: Kind,
    package: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A program on the PATH.
    Program(&'static str),
    /// A file that the C compiler finds.
    Library(&'static str),
    /// Python's own tests, which Debian packages apart and names after Python's version.
    PythonTests,
}

const fn program(name: &'static str, package: &'static str) -> Need {
    Need {
        kind: Kind::Program(name),
        package,
    }
}

/// Beyond what Debian marks essential, this is all that kernel, workspace and first process need.
pub(crate) const BUILD: &[Need] = &[
    program("gcc", "gcc"),
    program("make", "make"),
    program("flex", "flex"),
    program("bison", "bison"),
    program("bc", "bc"),
    program("xz", "xz-utils"),
    program("patch", "patch"),
    // The guest's first process is linked statically.
    Need {
        kind: Kind::Library("libc.a"),
        package: "libc6-dev",
    },
];

/// What topologies are looked at in beside Span's guests.
pub(crate) const EMULATOR: &[Need] = &[program("qemu-system-x86_64", "qemu-system-x86")];

/// What whole-system tests run inside guests, and on the host beside them.
pub(crate) const TEST: &[Need] = &[
    program("debugfs", "e2fsprogs"),
    program("fio", "fio"),
    program("gdb", "gdb"),
    program("git", "git"),
    program("ip", "iproute2"),
    program("java", "default-jdk-headless"),
    program("javac", "default-jdk-headless"),
    program("lstopo-no-graphics", "hwloc-nox"),
    program("modinfo", "kmod"),
    program("numactl", "numactl"),
    Need {
        kind: Kind::Library("libnuma.so"),
        package: "libnuma-dev",
    },
    program("ps", "procps"),
    program("python3", "python3"),
    program("slirp4netns", "slirp4netns"),
    program("stress-ng", "stress-ng"),
    program("uml_moo", "uml-utilities"),
    program("xorriso", "xorriso"),
    Need {
        kind: Kind::PythonTests,
        package: "libpython3-testsuite",
    },
];

/// Parts of the Rust toolchain that a minimal one lacks: cargo's subcommand, rustup's component,
/// Debian's package.
const RUST_COMPONENTS: &[(&str, &str, &str)] = &[
    ("fmt", "rustfmt", "rustfmt"),
    ("clippy", "clippy", "rust-clippy"),
];

/// Makes sure that all of `needs` are there, installing what is missing if this process may.
pub(crate) fn ensure(
    layout: &Layout,
    progress: &Progress,
    lock: &File,
    needs: &[&[Need]],
) -> Result<()> {
    if env::consts::ARCH != "x86_64" {
        return Err(Error::Machine(format!(
            "User-Mode Linux runs on x86_64; this machine is {}",
            env::consts::ARCH
        )));
    }
    let missing = missing(needs);
    if missing.is_empty() {
        progress.stage("prerequisites: all here");
        return Ok(());
    }
    let packages = || {
        let mut packages: Vec<String> = missing.iter().map(Need::package).collect();
        packages.sort_unstable();
        packages.dedup();
        packages.join(" ")
    };
    if find_program("apt-get").is_none() {
        return Err(Error::Machine(format!(
            "missing on this machine (Debian's names): {}",
            packages()
        )));
    }
    if !is_root() {
        return Err(Error::Machine(format!(
            "missing on this machine; run as root: apt-get install --no-install-recommends {}",
            packages()
        )));
    }
    refresh_lists(layout, progress, lock);
    progress.stage(format!("prerequisites: installing {}", packages()));
    install(layout, progress, lock, &packages())?;
    match self::missing(needs).first() {
        None => Ok(()),
        Some(need) => Err(Error::Machine(format!(
            "package {} is installed, yet {:?} is not to be found",
            need.package(),
            need.kind
        ))),
    }
}

/// A fresh machine may have no package lists, an old one stale ones. Lists of other archives that
/// cannot be had do not matter: whether the packages can be installed is what counts.
fn refresh_lists(layout: &Layout, progress: &Progress, lock: &File) {
    progress.stage("prerequisites: reading package lists");
    let log = layout.log("package-lists");
    let _ = process::logged(
        "apt-get update",
        apt_get(&["update", "-q"]),
        lock,
        &log,
        |_| (),
    );
}

fn install(layout: &Layout, progress: &Progress, lock: &File, packages: &str) -> Result<()> {
    let mut command = apt_get(&["install", "-q", "-y", "--no-install-recommends"]);
    command.args(packages.split(' '));
    let mut counter = progress.counter("prerequisites");
    let log = layout.log("install");
    process::logged("apt-get install", command, lock, &log, |line| {
        counter.show("installing", line.unwrap_or(""));
    })
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn missing(needs: &[&[Need]]) -> Vec<Need> {
    let all = needs.iter().flat_map(|group| group.iter());
    all.filter(|need| !present(need)).copied().collect()
}

impl Need {
    fn package(&self) -> String {
        match self.kind {
            Kind::PythonTests => python_tests_package().unwrap_or_else(|| self.package.to_owned()),
            _ => self.package.to_owned(),
        }
    }
}

/// `libpython3.11-testsuite`, for the version of Python that the machine's Debian has.
fn python_tests_package() -> Option<String> {
    let mut command = Command::new("apt-cache");
    command
        .args(["show", "--no-all-versions", "python3"])
        .env("LC_ALL", "C");
    let out = process::output(&mut command).ok()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))?;
    let minor: Vec<&str> = version.split('.').take(2).collect();
    Some(format!("libpython{}-testsuite", minor.join(".")))
}

/// Adds what the checks of formatting and lints need to the Rust toolchain.
pub(crate) fn ensure_rust_components(builder: &Builder<'_>) -> Result<()> {
    for (subcommand, component, package) in RUST_COMPONENTS {
        let here = || {
            let mut command = cargo();
            command
                .args([subcommand, "--version"])
                .current_dir(&builder.layout.root);
            process::output(&mut command).is_ok_and(|out| out.status.success())
        };
        if here() {
            continue;
        }
        if find_program("rustup").is_some() {
            builder.progress.stage(format!(
                "prerequisites: adding {component} to the toolchain"
            ));
            let mut command = Command::new("rustup");
            command
                .args(["component", "add", component])
                .current_dir(&builder.layout.root);
            let log = builder.layout.log("rustup");
            process::logged("rustup", command, builder.lock, &log, |_| ())?;
        }
        if !here() {
            return Err(Error::Machine(format!(
                "cargo {subcommand} is missing: rustup component add {component}, or Debian's {package}"
            )));
        }
    }
    Ok(())
}

fn present(need: &Need) -> bool {
    match need.kind {
        Kind::Program(name) => find_program(name).is_some(),
        // gcc prints the bare name back when it does not find the file.
        Kind::Library(name) => {
            let mut command = Command::new("gcc");
            command.arg(format!("-print-file-name={name}"));
            process::output(&mut command)
                .is_ok_and(|out| String::from_utf8_lossy(&out.stdout).trim().starts_with('/'))
        }
        // Guests find the distribution's Python, which need not be the caller's.
        Kind::PythonTests => {
            let mut command = Command::new("/usr/bin/python3");
            command.args(["-c", "import test.test_threading"]);
            process::output(&mut command).is_ok_and(|out| out.status.success())
        }
    }
}

pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let executable = |file: &Path| {
        file.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(&path)
        // An administrator's tools are not on every user's PATH.
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| executable(file))
}

fn is_root() -> bool {
    let mut command = Command::new("id");
    command.arg("-u");
    process::output(&mut command).is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}

/// What `gcc` says it is: part of every stamp of something it compiled.
pub(crate) fn compiler() -> Result<String> {
    let mut command = Command::new("gcc");
    command.arg("--version");
    let out = process::output(&mut command)?;
    if !out.status.success() {
        return Err(broken("gcc --version fails"));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The cargo that runs this tool, so that nested builds use the same toolchain.
pub(crate) fn cargo() -> Command {
    Command::new(
        env::var_os("CARGO")
            .as_deref()
            .unwrap_or(OsStr::new("cargo")),
    )
}
