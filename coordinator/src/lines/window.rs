//! Lines that are windows (`con1=xterm`): a terminal emulator on this machine's display, in which `coordinator console`
//! is attached to the line. Who closes it is detached, as by Ctrl-].
#![allow(unsafe_code)]

use crate::output::say;
use span_api::line::Line;
use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// How long an emulator may take to end when it is told to.
const END_MS_MAX: u64 = 500;

/// As the kernel's `xterm=PROGRAM,TITLE-OPTION,EXEC-OPTION` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Emulator {
    program: String,
    title: String,
    execute: String,
}

impl Default for Emulator {
    fn default() -> Self {
        Self {
            program: "xterm".into(),
            title: "-T".into(),
            execute: "-e".into(),
        }
    }
}

impl Emulator {
    pub(super) fn parse(value: &str) -> Result<Self, String> {
        let parts: Vec<&str> = value.split(',').collect();
        let (program, title, execute) = match parts.as_slice() {
            [program] => (program, &"-T", &"-e"),
            [program, title, execute] => (program, title, execute),
            _ => (&"", &"", &""),
        };
        if [program, title, execute].iter().any(|part| part.is_empty()) {
            return Err("a terminal emulator is PROGRAM[,TITLE-OPTION,EXEC-OPTION]".into());
        }
        let [program, title, execute] = [program, title, execute].map(|part| part.to_string());
        Ok(Self {
            program,
            title,
            execute,
        })
    }

    /// Whether it may be started here; an error is why not.
    pub(super) fn check(&self) -> Result<(), String> {
        let set = |name| env::var_os(name).is_some_and(|value: OsString| !value.is_empty());
        if !set("DISPLAY") && !set("WAYLAND_DISPLAY") {
            return Err("DISPLAY does not say which display it is to be on".into());
        }
        let path = env::var_os("PATH").unwrap_or_default();
        match find(&self.program, &path) {
            Some(_) => Ok(()),
            None => Err(format!("there is no program {} on the PATH", self.program)),
        }
    }

    fn start(&self, guest: &str, line: Line, log: &File) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .args([&self.title, &format!("{line} of {guest}"), &self.execute])
            .arg(env::current_exe()?)
            .args(["console", guest, &line.name()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.try_clone()?)
            .kill_on_drop(true);
        // SAFETY: the closure runs between fork and exec and makes only system calls that are
        // async-signal-safe, without allocating.
        unsafe {
            command.pre_exec(|| {
                // Signals of this command's terminal are not for the window.
                nix::unistd::setsid()?;
                // Should this process be killed. What runs in the window ends with the guest anyhow.
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)?;
                Ok(())
            });
        }
        command.spawn()
    }
}

fn find(program: &str, path: &std::ffi::OsStr) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        let meta = path.metadata();
        meta.is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(Path::new(program).to_path_buf()).filter(runs);
    }
    env::split_paths(path)
        .map(|directory| directory.join(program))
        .find(runs)
}

/// Shows the line until the window is closed, or `ending` has its sender dropped.
pub(super) async fn show(
    emulator: Emulator,
    guest: String,
    line: Line,
    log: File,
    mut ending: watch::Receiver<()>,
) {
    let attach = format!("`coordinator console {guest} {line}` attaches to it");
    let mut child = match emulator.start(&guest, line, &log) {
        Ok(child) => child,
        Err(error) => {
            let program = &emulator.program;
            return say(&format!(
                "{line}: {program} cannot be started: {error}; {attach}"
            ));
        }
    };
    tokio::select! {
        status = child.wait() => match status {
            Ok(status) if status.success() => {}
            Ok(status) => {
                let program = &emulator.program;
                say(&format!("{line}: {program} ended ({status}); {attach}"));
            }
            Err(_) => {}
        },
        _ = ending.changed() => {
            if let Some(pid) = child.id() {
                let pid = nix::unistd::Pid::from_raw(pid as i32);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            }
            if timeout(Duration::from_millis(END_MS_MAX), child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulator_has_options_for_title_and_program() {
        let shown = |value| Emulator::parse(value).map(|found| format!("{found:?}"));
        assert_eq!(Emulator::parse("xterm"), Ok(Emulator::default()));
        assert!(shown("gnome-terminal,-t,-x").unwrap().contains("\"-x\""));
        for bad in ["", "xterm,-T", "xterm,,-e", "a,b,c,d"] {
            assert!(Emulator::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn programs_are_found_where_the_shell_would() {
        assert_eq!(find("sh", "/nowhere:/bin".as_ref()), Some("/bin/sh".into()));
        assert_eq!(find("sh", "/nowhere".as_ref()), None);
        assert_eq!(find("/bin/sh", "".as_ref()), Some("/bin/sh".into()));
        assert_eq!(find("/etc/passwd", "".as_ref()), None);
    }
}
