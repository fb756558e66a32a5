//! What the benchmarks of topologies look at beside Span: QEMU, and a kernel of Debian's for it to boot. The kernel is
//! taken out of its package; nothing of it is installed on this machine.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::apt::{Apt, Package};
use crate::base::Accepted;
use crate::error::{At, Result, broken};
use crate::kernel::Builder;
use crate::layout;
use crate::prereq;
use crate::process;

/// Depends on the package of the newest kernel.
const NEWEST: &str = "linux-image-amd64";
const SUITE: &str = "stable";
const KERNEL: &str = "vmlinuz";
/// From the package to the file.
const EXTRACT: &str =
    "dpkg-deb --fsys-tarfile \"$0\" | tar -x -O --wildcards './boot/vmlinuz-*' >\"$1\"";

/// Installs QEMU if that is missing and may be installed. Returns the directory that has the kernel, which is fetched
/// once.
pub(crate) fn prepare(builder: &Builder<'_>) -> Result<PathBuf> {
    let (layout, progress, lock) = (builder.layout, builder.progress, builder.lock);
    prereq::ensure(layout, progress, lock, &[prereq::EMULATOR])?;
    let directory = layout.target.join("span-qemu");
    let kernel = directory.join(KERNEL);
    if kernel.is_file() {
        return Ok(directory);
    }
    fs::create_dir_all(&directory).at("create", &directory)?;
    let apt = Apt::open(layout, progress, lock, &[SUITE.into()])?;
    let package = newest(&apt)?;
    let deb = apt.fetch(&package)?;
    let partial = directory.join("vmlinuz.tmp");
    let mut command = Command::new("sh");
    command.args(["-c", EXTRACT]).arg(&deb).arg(&partial);
    let log = layout.log("emulator");
    let unpacked = process::logged("unpacking a kernel for QEMU", command, lock, &log, |_| ());
    if let Err(error) = unpacked {
        layout::remove(&partial)?;
        return Err(error);
    }
    fs::rename(&partial, &kernel).at("rename to", &kernel)?;
    Ok(directory)
}

fn newest(apt: &Apt<'_>) -> Result<Package> {
    let package = apt.depends(NEWEST)?;
    let entry = Accepted {
        series: String::new(),
        package: package.clone(),
    };
    let mut versions = apt.versions(&[entry])?.into_iter();
    let found = versions.next();
    found.ok_or_else(|| broken(format!("no version of {package}")))
}
