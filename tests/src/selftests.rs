//! The kernel's own tests of what user space sees, from the source package of the kernel under test: built and run
//! where they are, nothing of them is here.

use crate::{World, not_tested};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug)]
pub struct Selftests {
    source: PathBuf,
}

impl Selftests {
    /// Those of the kernel that was built last, if its source and `libnuma-dev` are here; else says that `what` is
    /// not tested.
    pub fn find(what: &str) -> Option<Self> {
        let found = Self::source();
        if found.is_none() {
            not_tested(&format!("{what}: no source in target/kernel"));
        } else if !Path::new("/usr/include/numa.h").exists() {
            not_tested(&format!("{what}: libnuma-dev is not installed"));
            return None;
        }
        found
    }

    fn source() -> Option<Self> {
        let kernel = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/kernel"));
        let chosen = std::fs::read_to_string(kernel.join("chosen-default")).ok()?;
        let source = kernel.join("source").join(chosen.trim());
        Some(Self { source }).filter(|tests| tests.path("mm").is_dir())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.source.join("tools/testing/selftests").join(name)
    }

    /// One of their files with changes, under its own name in the world: some look for it.
    #[track_caller]
    pub fn changed(&self, world: &World, name: &str, changes: &[(&str, &str)]) -> PathBuf {
        let mut text = self.text(name);
        for (from, to) in changes {
            assert!(text.contains(from), "{name} has no {from:?}");
            text = text.replace(from, to);
        }
        let file = Path::new(name).file_name().expect("a file");
        world.file(file.to_str().expect("a name"), &text)
    }

    pub fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// A program of theirs: of a file, with changes, and of others `beside` it.
    #[track_caller]
    pub fn compile(
        &self,
        world: &World,
        name: &str,
        changes: &[(&str, &str)],
        beside: &[&str],
        options: &[&str],
    ) -> PathBuf {
        let changed = self.changed(world, name, changes);
        let program = changed.with_extension("");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-w", "-D_GNU_SOURCE=", "-pthread"]);
        // Headers of this kernel's: the machine's may be older. What is left in them is for `make headers` to take out.
        gcc.args(["-D__user=", "-D__packed=__attribute__((packed))"]);
        gcc.arg("-isystem").arg(self.source.join("include/uapi"));
        for directory in ["", "tools/include"] {
            gcc.arg("-I").arg(self.source.join(directory));
        }
        let own = Path::new(name).parent().expect("a directory");
        let own = self.path(own.to_str().expect("a name"));
        for directory in [
            self.path(""),
            own.clone(),
            own.join("lib/include"),
            own.join("../include"),
        ] {
            gcc.arg("-I").arg(directory);
        }
        gcc.args(options).arg("-o").arg(&program).arg(&changed);
        gcc.args(beside.iter().map(|file| self.path(file)));
        let done = gcc
            .args(["-lnuma", "-lpthread", "-lrt"])
            .output()
            .expect("gcc");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{name} does not compile:\n{said}");
        program
    }
}
