//! The pristine kernel source: found, fetched and unpacked once per version.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::apt::{Apt, Package};
use crate::base::Base;
use crate::error::{At, Error, Result, invalid};
use crate::layout::{self, Layout};
use crate::process;
use crate::progress::Progress;
use crate::stamp::{self, Stamp};

/// Parts of the tree that `ARCH=um` compiles nothing from; only their Kconfig, Makefile and Kbuild
/// files are unpacked, which the configuration reads. With them the tree is more than twice as big.
const UNUSED: &[&str] = &[
    "Documentation",
    "arch/[!ux]*",
    "arch/xtensa",
    "drivers/accel",
    "drivers/clk",
    "drivers/comedi",
    "drivers/gpu",
    "drivers/hwmon",
    "drivers/iio",
    "drivers/infiniband",
    "drivers/media",
    "drivers/net/can",
    "drivers/net/dsa",
    "drivers/net/ethernet",
    "drivers/net/wireless",
    "drivers/phy",
    "drivers/pinctrl",
    "drivers/platform",
    "drivers/scsi",
    "drivers/staging",
    "drivers/video/fbdev",
    "sound",
    "tools/perf",
];
const UNUSED_KINDS: &[&str] = &[
    "[chS]", "asm", "cocci", "dts", "dtsi", "dtso", "json", "rs", "rst", "svg", "txt", "yaml",
    "gif",
];

/// What the command line asks for.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Wanted {
    /// Kernel source to use instead of the mirror's: an unpacked tree, or a tarball
    #[arg(long, value_name = "DIR|TARBALL")]
    pub(crate) kernel_source: Option<PathBuf>,
    /// Kernel series to take from the mirror [default: the best one that kernel/base accepts]
    #[arg(long, value_name = "SERIES", conflicts_with = "kernel_source")]
    pub(crate) series: Option<String>,
}

impl Wanted {
    /// Finds what is wrong with the request before anything is built for it.
    pub(crate) fn check(&self, layout: &Layout) -> Result<()> {
        let base = Base::read(&layout.root)?;
        match &self.kernel_source {
            Some(path) if path.is_dir() => describe_directory(&base, path).map(drop),
            Some(path) if path.is_file() => Ok(()),
            Some(path) => Err(invalid(format!(
                "--kernel-source {}: neither a directory nor a tarball",
                path.display()
            ))),
            None => base.choose(self.series.as_deref()).map(drop),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Source {
    /// Names this source in the build directory.
    pub(crate) id: String,
    /// `7.3`.
    pub(crate) series: String,
    /// `7.3.4`.
    pub(crate) version: String,
    pub(crate) dir: PathBuf,
    /// The directory is the user's own, whose files change.
    pub(crate) mutable: bool,
}

pub(crate) fn obtain(
    layout: &Layout,
    progress: &Progress,
    lock: &File,
    wanted: &Wanted,
) -> Result<Source> {
    let base = Base::read(&layout.root)?;
    let store = Store {
        layout,
        progress,
        lock,
    };
    match &wanted.kernel_source {
        Some(path) if path.is_dir() => describe_directory(&base, path),
        Some(path) => store.take_from_tarball(&base, path),
        None => store.take_from_mirror(&base, wanted.series.as_deref()),
    }
}

struct Store<'a> {
    layout: &'a Layout,
    progress: &'a Progress,
    lock: &'a File,
}

impl Store<'_> {
    fn take_from_mirror(&self, base: &Base, series: Option<&str>) -> Result<Source> {
        let accepted = base.choose(series)?;
        // What an earlier run chose stays chosen: a new point release is no reason to fetch again.
        let chosen = self.chosen(series.unwrap_or("default"));
        if let Ok(id) = fs::read_to_string(&chosen)
            && let Ok(source) = self.unpacked(base, id)
            && accepted.iter().any(|entry| entry.series == source.series)
        {
            return Ok(source);
        }
        let apt = Apt::open(self.layout, self.progress, self.lock, &base.suites)?;
        let versions = apt.versions(&accepted)?;
        let mut last_error = None;
        for package in &versions {
            let id = self.id(&package.version);
            if self.directory(&id).is_dir() {
                return self.choose(base, series, id);
            }
            match apt.fetch(package) {
                Ok(deb) => {
                    self.unpack_package(package, &deb, &id)?;
                    return self.choose(base, series, id);
                }
                // A version that has just left the mirror; an older one may still be there.
                Err(error) => last_error = Some(error),
            }
        }
        Err(last_error.unwrap_or_else(|| invalid("the mirror lists no version")))
    }

    fn choose(&self, base: &Base, series: Option<&str>, id: String) -> Result<Source> {
        let source = self.unpacked(base, id)?;
        for name in [series.unwrap_or("default"), &source.series] {
            stamp::write_atomic(&self.chosen(name), &source.id)?;
        }
        Ok(source)
    }

    fn take_from_tarball(&self, base: &Base, tarball: &Path) -> Result<Source> {
        let tarball = tarball.canonicalize().at("find", tarball)?;
        let id = self.id(&stamp::sha256_file(&tarball)?[..12]);
        if !self.directory(&id).is_dir() {
            self.unpack(&tarball, &id)?;
        }
        self.unpacked(base, id)
    }

    fn unpack_package(&self, package: &Package, deb: &Path, id: &str) -> Result<()> {
        let temporary = self.layout.kernel().join("package.tmp");
        layout::remove(&temporary)?;
        let mut command = Command::new("dpkg-deb");
        command.arg("-x").args([deb, &temporary]);
        let log = self.layout.log("unpack");
        process::logged("dpkg-deb", command, self.lock, &log, |_| ())?;
        let tarball = temporary.join(format!("usr/src/{}.tar.xz", package.name));
        let unpacked = self.unpack(&tarball, id);
        layout::remove(&temporary)?;
        unpacked
    }

    /// Unpacks what is needed of `tarball`; the directory gets its name only when it is complete.
    fn unpack(&self, tarball: &Path, id: &str) -> Result<()> {
        let temporary = self.layout.kernel().join("source.tmp");
        layout::remove(&temporary)?;
        fs::create_dir(&temporary).at("create", &temporary)?;
        let excluded = self.layout.kernel().join("excluded");
        let top = top_directory(tarball)?;
        let patterns: String = UNUSED
            .iter()
            .flat_map(|dir| UNUSED_KINDS.iter().map(move |kind| (dir, kind)))
            .map(|(dir, kind)| format!("{top}/{dir}/*.{kind}\n"))
            .collect();
        stamp::write_atomic(&excluded, patterns)?;
        let mut command = Command::new("tar");
        command.arg("-x");
        let name = tarball.to_string_lossy();
        if name.ends_with(".xz") {
            // Unlike tar's own -J, this uses all processors if the file was packed in blocks.
            command.args(["-I", "xz -T0"]);
        }
        command
            .args(["--verbose", "--no-same-owner", "--strip-components=1"])
            .args(["--anchored", "--wildcards", "--wildcards-match-slash"])
            .arg("--exclude-from")
            .arg(&excluded)
            .arg("-C")
            .arg(&temporary)
            .arg("-f")
            .arg(tarball)
            .env("LC_ALL", "C");
        let mut counter = self.progress.counter("source: unpacking");
        let mut files = 0_u32;
        let log = self.layout.log("unpack");
        process::logged("unpacking the kernel", command, self.lock, &log, |line| {
            files += u32::from(line.is_some());
            counter.show(&format!("{files} files"), line.unwrap_or(""));
        })?;
        let dir = self.directory(id);
        let parent = dir.parent().unwrap_or(&dir);
        fs::create_dir_all(parent).at("create", parent)?;
        fs::rename(&temporary, &dir).at("rename to", &dir)?;
        drop(counter);
        self.progress
            .stage(format!("source: unpacked {files} files"));
        Ok(())
    }

    fn unpacked(&self, base: &Base, id: String) -> Result<Source> {
        let dir = self.directory(&id);
        let version = kernel_version(&dir)?;
        Ok(Source {
            id,
            series: accepted_series(base, &version, &dir)?,
            version,
            dir,
            mutable: false,
        })
    }

    /// A directory name for a version, which changes when other files would be unpacked.
    fn id(&self, version: &str) -> String {
        let rule = Stamp::default()
            .add("dirs", UNUSED.join(" "))
            .add("kinds", UNUSED_KINDS.join(" "))
            .hex();
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '_'
            }
        };
        let version: String = version.chars().map(plain).collect();
        format!("{version}-{}", &rule[..6])
    }

    fn directory(&self, id: &str) -> PathBuf {
        self.layout.kernel().join("source").join(id)
    }

    fn chosen(&self, name: &str) -> PathBuf {
        self.layout.kernel().join(format!("chosen-{name}"))
    }
}

fn describe_directory(base: &Base, dir: &Path) -> Result<Source> {
    let dir = dir.canonicalize().at("find", dir)?;
    let version = kernel_version(&dir)?;
    let path = Stamp::default()
        .add("path", dir.as_os_str().as_encoded_bytes())
        .hex();
    Ok(Source {
        id: format!("dir-{}", &path[..12]),
        series: accepted_series(base, &version, &dir)?,
        version,
        dir,
        mutable: true,
    })
}

fn accepted_series(base: &Base, version: &str, dir: &Path) -> Result<String> {
    let of = |series: &str| version == series || version.starts_with(&format!("{series}."));
    match base.accepted.iter().find(|entry| of(&entry.series)) {
        Some(entry) => Ok(entry.series.clone()),
        None => Err(invalid(format!(
            "kernel source {} is {version}; accepted (kernel/base): {}",
            dir.display(),
            base.names()
        ))),
    }
}

/// The directory that all of a tarball lies in.
fn top_directory(tarball: &Path) -> Result<String> {
    let mut command = Command::new("tar");
    command.arg("-tf").arg(tarball);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let spawn_error = |source| Error::Spawn {
        program: "tar".into(),
        source,
    };
    let mut child = command.spawn().map_err(spawn_error)?;
    let mut first = String::new();
    if let Some(stdout) = child.stdout.take() {
        let _ = BufReader::new(stdout).read_line(&mut first);
    }
    // The first name is all that is wanted; listing the rest would unpack everything once more.
    let _ = child.kill();
    child.wait().map_err(spawn_error)?;
    match first.trim_end().split('/').next() {
        Some(top) if !top.is_empty() && top != "." => Ok(top.to_owned()),
        _ => Err(invalid(format!(
            "{}: not a kernel's tarball",
            tarball.display()
        ))),
    }
}

/// Reads VERSION, PATCHLEVEL and SUBLEVEL off the top of the tree's Makefile.
fn kernel_version(dir: &Path) -> Result<String> {
    let path = dir.join("Makefile");
    let text = fs::read_to_string(&path).unwrap_or_default();
    parse_version(&text).ok_or_else(|| invalid(format!("{}: not a kernel's source", dir.display())))
}

fn parse_version(makefile: &str) -> Option<String> {
    let value = |name: &str| {
        let set = |line: &str| {
            Some(
                line.strip_prefix(name)?
                    .trim_start()
                    .strip_prefix('=')?
                    .trim()
                    .to_owned(),
            )
        };
        makefile.lines().take(20).find_map(set)
    };
    let (major, minor) = (value("VERSION")?, value("PATCHLEVEL")?);
    let number = |text: &String| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !number(&major) || !number(&minor) {
        return None;
    }
    match value("SUBLEVEL").filter(number) {
        Some(sub) => Some(format!("{major}.{minor}.{sub}")),
        None => Some(format!("{major}.{minor}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_makefile() {
        let makefile = "# SPDX\nVERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\nEXTRAVERSION =\n";
        assert_eq!(parse_version(makefile).unwrap(), "7.3.4");
        assert_eq!(parse_version("all:\n"), None);
    }
}
