//! The complete product: workspace binaries, first process and kernel, gathered in one directory
//! that changes as a whole.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use crate::error::{At, Result, invalid};
use crate::initramfs;
use crate::kernel::{Builder, Variant};
use crate::layout::{self, Layout};
use crate::prereq;
use crate::process;
use crate::progress::Progress;
use crate::source::Wanted;
use crate::stamp::Stamp;

/// A guest that runs from a set of files keeps it across this many newer ones.
const SETS_KEPT: usize = 16;
const INIT_TARGET: &str = "x86_64-unknown-linux-gnu";

#[derive(Debug)]
pub(crate) struct Product {
    pub(crate) dir: PathBuf,
    /// Kernel series it was built with.
    pub(crate) series: String,
}

/// Bugs that can be planted in the coherence protocol, by node-runtime's features.
const PLANTED: &[&str] = &["fault-early-ack", "fault-lost-sharer"];

/// Builds everything and gathers it in the directory `link`.
pub(crate) fn build(builder: &Builder<'_>, wanted: &Wanted, link: &Path) -> Result<Product> {
    workspace(builder)?;
    let library = builder.layout.release.join("libnode.so");
    build_with(builder, wanted, &Variant::Span, library, link)
}

/// Builds the same with a kernel that counts how often lines below `directories` are executed.
pub(crate) fn counting(
    builder: &Builder<'_>,
    wanted: &Wanted,
    directories: Vec<String>,
) -> Result<Product> {
    workspace(builder)?;
    let layout = builder.layout;
    let library = layout.release.join("libnode.so");
    let link = layout.target.join("span-gcov");
    let variant = Variant::Counting(directories);
    build_with(builder, wanted, &variant, library, &link)
}

/// Builds the same once for each planted bug, into `span-planted/BUG`, and returns that directory:
/// tests have to fail on these.
pub(crate) fn planted(builder: &Builder<'_>, wanted: &Wanted) -> Result<PathBuf> {
    let layout = builder.layout;
    let dir = layout.target.join("span-planted");
    fs::create_dir_all(&dir).at("create", &dir)?;
    // Apart from what users get: the features of one build are those of all it shares.
    let home = layout.kernel().join("planted");
    for bug in PLANTED {
        let mut command = prereq::cargo();
        command
            .args(["build", "--release", "-p", "node-runtime", "--features"])
            .arg(bug)
            .arg("--target-dir")
            .arg(&home);
        cargo(builder, bug, command)?;
        let library = home.join("release/libnode.so");
        build_with(builder, wanted, &Variant::Span, library, &dir.join(bug))?;
    }
    Ok(dir)
}

fn build_with(
    builder: &Builder<'_>,
    wanted: &Wanted,
    variant: &Variant,
    library: PathBuf,
    link: &Path,
) -> Result<Product> {
    let layout = builder.layout;
    let init = first_process(builder)?;
    let archive = layout.kernel().join("initramfs.cpio");
    initramfs::write_if_changed(&archive, &init)?;
    let kernel = builder.kernel(wanted, variant)?;
    let mut files = vec![
        ("linux".into(), kernel.linux),
        ("libnode.so".into(), library),
        ("initramfs.cpio".into(), archive),
        ("coordinator".into(), layout.release.join("coordinator")),
        ("node".into(), layout.release.join("node")),
    ];
    for module in kernel.modules {
        let name = module.file_name().unwrap_or_default();
        files.push((Path::new("modules").join(name), module));
    }
    gather(layout, link, &files)?;
    Ok(Product {
        dir: link.to_path_buf(),
        series: kernel.series,
    })
}

/// Builds the kernel as upstream has it, gathers it in a directory of its own and returns that.
pub(crate) fn upstream(builder: &Builder<'_>, wanted: &Wanted) -> Result<PathBuf> {
    let kernel = builder.kernel(wanted, &Variant::Upstream)?;
    let link = builder.layout.target.join("span-upstream");
    gather(builder.layout, &link, &[("linux".into(), kernel.linux)])?;
    Ok(link)
}

/// libnode.so, `node` and `coordinator`.
pub(crate) fn workspace(builder: &Builder<'_>) -> Result<()> {
    let mut command = prereq::cargo();
    command.args([
        "build",
        "--release",
        "-p",
        "node-runtime",
        "-p",
        "node",
        "-p",
        "coordinator",
    ]);
    cargo(builder, "workspace", command)
}

fn first_process(builder: &Builder<'_>) -> Result<PathBuf> {
    let home = builder.layout.kernel().join("init");
    let mut command = prereq::cargo();
    command
        .args([
            "build",
            "--release",
            "-p",
            "span-init",
            "--target",
            INIT_TARGET,
            "--target-dir",
        ])
        .arg(&home)
        // Nothing is mounted when it starts: there is no dynamic linker to find.
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C strip=symbols",
        )
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo(builder, "first process", command)?;
    Ok(home.join(INIT_TARGET).join("release/span-init"))
}

/// Runs a nested cargo, counting the crates it compiles.
pub(crate) fn cargo(builder: &Builder<'_>, what: &str, mut command: Command) -> Result<()> {
    command.current_dir(&builder.layout.root);
    let log = builder
        .layout
        .log(&format!("cargo-{}", what.replace(' ', "-")));
    let mut counter = builder.progress.counter(what);
    let mut crates = 0_u32;
    process::logged(what, command, builder.lock, &log, |line| {
        let name = line.and_then(|line| line.trim_start().strip_prefix("Compiling "));
        crates += u32::from(name.is_some());
        counter.show(
            &format!("{crates} crates compiled"),
            name.unwrap_or_default(),
        );
    })?;
    drop(counter);
    builder.progress.stage(match crates {
        0 => format!("{what}: up to date"),
        _ => format!("{what}: {crates} crates compiled"),
    });
    Ok(())
}

/// Copies `files` (name below it, path) into a directory of their own and turns the link `link` over to it,
/// so that whoever looks sees all old files or all new ones.
pub(crate) fn gather(layout: &Layout, link: &Path, files: &[(PathBuf, PathBuf)]) -> Result<()> {
    let mut identity = Stamp::default();
    for (name, path) in files {
        let meta = path.metadata().at("find", path)?;
        let facts = format!("{} {} {}", meta.size(), meta.mtime(), meta.mtime_nsec());
        identity.add(&name.to_string_lossy(), facts);
    }
    let sets = layout.kernel().join("sets");
    let set = sets.join(&identity.hex()[..16]);
    if !set.is_dir() {
        let temporary = sets.join("set.tmp");
        layout::remove(&temporary)?;
        fs::create_dir_all(&temporary).at("create", &temporary)?;
        for (name, path) in files {
            let to = temporary.join(name);
            let dir = to.parent().unwrap_or(&temporary);
            fs::create_dir_all(dir).at("create", dir)?;
            fs::copy(path, &to).at("copy", path)?;
        }
        fs::rename(&temporary, &set).at("rename to", &set)?;
    }
    // Its age is the time of its last use.
    let now = File::open(&set).and_then(|dir| dir.set_modified(SystemTime::now()));
    now.at("set the time of", &set)?;
    point(link, &set)?;
    discard_old(&sets)
}

fn point(link: &Path, set: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|old| old == set) {
        return Ok(());
    }
    if link.is_dir() && !link.is_symlink() {
        return Err(invalid(format!(
            "{} is in the way: it should be a link that this tool makes",
            link.display()
        )));
    }
    let temporary = set.with_file_name("link.tmp");
    layout::remove(&temporary)?;
    symlink(set, &temporary).at("create", &temporary)?;
    fs::rename(&temporary, link).at("rename to", link)
}

fn discard_old(sets: &Path) -> Result<()> {
    let mut found = Vec::new();
    for entry in fs::read_dir(sets).at("list", sets)? {
        let path = entry.at("list", sets)?.path();
        let age = path
            .metadata()
            .and_then(|meta| meta.modified())
            .at("look at", &path)?;
        found.push((age, path));
    }
    found.sort();
    let surplus = found.len().saturating_sub(SETS_KEPT);
    for (_, path) in &found[..surplus] {
        layout::remove(path)?;
    }
    Ok(())
}

/// The lock, the machine's prerequisites, and a builder that has both.
pub(crate) fn with_builder<T>(
    layout: &Layout,
    progress: &Progress,
    needs: &[&[prereq::Need]],
    work: impl FnOnce(&Builder<'_>) -> Result<T>,
) -> Result<T> {
    let lock = layout.lock(progress)?;
    prereq::ensure(layout, progress, &lock, needs)?;
    work(&Builder {
        layout,
        progress,
        lock: &lock,
    })
}
