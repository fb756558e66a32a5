//! Upstream's kernel, to compare with.

use crate::world::World;
use std::path::Path;
use std::process::Command;

/// Boots `kernel` on this machine's files with `argv` as the first process, whose stdout is the
/// command's. The kernel says nothing unless it must.
pub fn upstream(
    world: &World,
    kernel: &Path,
    cpus: usize,
    memory_mib: usize,
    argv: &[&str],
) -> Command {
    upstream_with(world, kernel, cpus, memory_mib, &[], argv)
}

/// The same with more arguments for the kernel.
pub fn upstream_with(
    world: &World,
    kernel: &Path,
    cpus: usize,
    memory_mib: usize,
    arguments: &[&str],
    argv: &[&str],
) -> Command {
    let mut command = Command::new(kernel);
    world.surround(&mut command);
    command
        .arg(format!("mem={memory_mib}M"))
        .arg(format!("ncpus={cpus}"))
        .args(["seccomp=on", "quiet"])
        .args(["root=none", "rootfstype=hostfs", "rootflags=/", "rw"])
        .args(["con=null", "con0=null,fd:1"])
        .arg(format!("uml_dir={}", world.path("work").display()))
        .args(arguments)
        .arg(format!("init={}", argv[0]))
        .arg("--")
        .args(&argv[1..]);
    command
}
