//! The patched kernel tree: the pristine source, the overlay at its final paths, the series applied.
//!
//! Unchanged files keep their modification times when anything is applied anew, so that make
//! compiles only what really changed: the few files that overlay and series touch are put together
//! on the side and copied in only where their content differs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{At, Error, Result, invalid};
use crate::layout::{self, Layout};
use crate::patch::{self, Patch};
use crate::process;
use crate::progress::Progress;
use crate::source::Source;
use crate::stamp::{self, Stamp};

#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) dir: PathBuf,
    /// Hash of all that the overlay and the series put in.
    pub(crate) hash: String,
}

pub(crate) fn prepare(
    layout: &Layout,
    progress: &Progress,
    lock: &File,
    source: &Source,
) -> Result<Tree> {
    let overlay_dir = layout.root.join("kernel/linux");
    let overlay = layout::files_below(&overlay_dir)?;
    let patches = patch::series(&layout.root, &source.series)?;
    let mut inputs = Stamp::default();
    inputs.add("source", &source.id);
    for path in &overlay {
        let file = overlay_dir.join(path);
        inputs.add(&path.to_string_lossy(), fs::read(&file).at("read", &file)?);
    }
    for patch in &patches {
        inputs.add(&patch.name, &patch.text);
    }
    let tree = Tree {
        dir: layout.kernel().join("tree").join(&source.id),
        hash: inputs.hex(),
    };
    let applied = layout
        .kernel()
        .join("tree")
        .join(format!("{}.applied", source.id));
    if !source.mutable && stamp::fresh(&applied, &tree.hash) {
        return Ok(tree);
    }
    layout::remove(&applied)?;

    let touched: BTreeSet<PathBuf> = patches
        .iter()
        .flat_map(|patch| patch.touches.iter().cloned())
        .chain(overlay.iter().cloned())
        .collect();
    // What an earlier run touched and this one may not: its pristine form comes back.
    let manifest = layout
        .kernel()
        .join("tree")
        .join(format!("{}.touched", source.id));
    let earlier: BTreeSet<PathBuf> = fs::read_to_string(&manifest)
        .unwrap_or_default()
        .lines()
        .map(PathBuf::from)
        .collect();
    let either: BTreeSet<PathBuf> = touched.union(&earlier).cloned().collect();

    let side = layout.kernel().join("tree").join("side.tmp");
    assemble(source, &touched, &overlay_dir, &overlay, &side)?;
    for patch in &patches {
        apply(layout, lock, source, patch, &side)?;
    }
    fill(progress, source, &tree.dir, &either)?;
    let names: String = either
        .iter()
        .map(|path| format!("{}\n", path.display()))
        .collect();
    stamp::write_atomic(&manifest, names)?;
    for path in &either {
        let wanted = if touched.contains(path) {
            side.join(path)
        } else {
            source.dir.join(path)
        };
        replace(&wanted, &tree.dir.join(path))?;
    }
    layout::remove(&side)?;
    let names: String = touched
        .iter()
        .map(|path| format!("{}\n", path.display()))
        .collect();
    stamp::write_atomic(&manifest, names)?;
    stamp::write_atomic(&applied, &tree.hash)?;
    progress.stage(format!(
        "tree: {} with {} overlay files and {} patches",
        source.version,
        overlay.len(),
        patches.len()
    ));
    Ok(tree)
}

/// Puts the pristine form of the touched files, and the overlay over it, below `side`.
fn assemble(
    source: &Source,
    touched: &BTreeSet<PathBuf>,
    overlay_dir: &Path,
    overlay: &[PathBuf],
    side: &Path,
) -> Result<()> {
    layout::remove(side)?;
    fs::create_dir_all(side).at("create", side)?;
    for path in touched {
        let pristine = source.dir.join(path);
        if overlay.contains(path) {
            if pristine.exists() {
                return Err(invalid(format!(
                    "kernel/linux/{}: exists in {} already; change it with a patch",
                    path.display(),
                    source.version
                )));
            }
            copy(&overlay_dir.join(path), &side.join(path))?;
        } else if pristine.exists() {
            copy(&pristine, &side.join(path))?;
        }
    }
    Ok(())
}

fn apply(layout: &Layout, lock: &File, source: &Source, patch: &Patch, side: &Path) -> Result<()> {
    let mut command = Command::new("patch");
    command
        .args([
            "-p1",
            "--fuzz=0",
            "--forward",
            "--batch",
            "--no-backup-if-mismatch",
        ])
        .args(["--reject-file=-", "--input"])
        .arg(&patch.path)
        .arg("--directory")
        .arg(side)
        .env("LC_ALL", "C");
    let stage = format!("{} on Linux {}", patch.name, source.version);
    process::logged(&stage, command, lock, &layout.log("patch"), |_| ()).map_err(
        |error| match error {
            Error::Failed { log, tail, .. } => Error::Failed {
                stage,
                status: "it does not apply".into(),
                log,
                tail,
            },
            other => other,
        },
    )
}

/// Makes `dir` equal to the pristine source except for the files in `leave`. Unpacked sources are
/// linked, a user's own directory is copied where size or time differ.
fn fill(progress: &Progress, source: &Source, dir: &Path, leave: &BTreeSet<PathBuf>) -> Result<()> {
    if dir.is_dir() && !source.mutable {
        return Ok(());
    }
    let mut counter = progress.counter("tree");
    let mut files = 0_u32;
    let building = dir.with_file_name("fill.tmp");
    let target = if dir.is_dir() { dir } else { &building };
    if target != dir {
        layout::remove(target)?;
    }
    let mut before = BTreeSet::new();
    if target == dir {
        before.extend(layout::files_below(dir)?);
    }
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let from = source.dir.join(&relative);
        let to = target.join(&relative);
        fs::create_dir_all(&to).at("create", &to)?;
        for entry in fs::read_dir(&from).at("list", &from)? {
            let entry = entry.at("list", &from)?;
            let path = relative.join(entry.file_name());
            let kind = entry.file_type().at("look at", &entry.path())?;
            if entry.file_name() == ".git" {
                continue;
            }
            before.remove(&path);
            if kind.is_dir() {
                pending.push(path);
            } else if !leave.contains(&path) {
                mirror(source, &entry.path(), &target.join(&path))?;
                files += 1;
                counter.show(&format!("{files} files"), &path.to_string_lossy());
            }
        }
    }
    for gone in before.difference(leave) {
        layout::remove(&dir.join(gone))?;
    }
    if target != dir {
        fs::rename(target, dir).at("rename to", dir)?;
    }
    Ok(())
}

fn mirror(source: &Source, from: &Path, to: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(from).at("look at", from)?;
    if meta.is_symlink() {
        let goal = fs::read_link(from).at("read", from)?;
        if fs::read_link(to).is_ok_and(|old| old == goal) {
            return Ok(());
        }
        layout::remove(to)?;
        return std::os::unix::fs::symlink(&goal, to).at("create", to);
    }
    if !source.mutable {
        return fs::hard_link(from, to).at("link", to);
    }
    let time = meta.modified().at("look at", from)?;
    let same = fs::symlink_metadata(to)
        .is_ok_and(|old| old.len() == meta.len() && old.modified().is_ok_and(|t| t == time));
    if same {
        return Ok(());
    }
    copy(from, to)?;
    let file = File::options().write(true).open(to).at("open", to)?;
    file.set_modified(time).at("set the time of", to)
}

/// Gives `to` the content of `from`, or removes it if there is no such file; leaves it alone, with
/// its time, if it has that content.
fn replace(from: &Path, to: &Path) -> Result<()> {
    if !from.exists() {
        return layout::remove(to);
    }
    let content = fs::read(from).at("read", from)?;
    let mode = from.metadata().at("look at", from)?.permissions().mode();
    let same = fs::read(to).is_ok_and(|old| old == content)
        && to
            .metadata()
            .is_ok_and(|meta| meta.permissions().mode() == mode);
    if same { Ok(()) } else { copy(from, to) }
}

/// Copies into a new file: `to` may be a link to the pristine one.
fn copy(from: &Path, to: &Path) -> Result<()> {
    layout::remove(to)?;
    let parent = to.parent().unwrap_or(to);
    fs::create_dir_all(parent).at("create", parent)?;
    fs::copy(from, to).at("copy to", to)?;
    Ok(())
}
