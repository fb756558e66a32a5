//! What this program is under other names.
//!
//! [`ALWAYS`] are in every guest: they end it from inside, as people and scripts expect, and say what pages are
//! used for and copy files, which the coordinator asks for. [`PROGRAMS`] are the least
//! that makes a guest of which only the kernel matters (`span.root=none`) usable; everything else
//! belongs on a real root file system.

use crate::{copy, ending::Ending};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    sys::{
        signal::{SigSet, Signal, kill},
        utsname::uname,
    },
    unistd::{Pid, sync},
};
use std::{
    ffi::c_int,
    fs::File,
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
    time::Duration,
};

pub(crate) const ALWAYS: &[&str] = &[
    "poweroff",
    "halt",
    "reboot",
    "shutdown",
    "span-copy",
    "span-pages",
];
pub(crate) const PROGRAMS: &[&str] = &["cat", "echo", "false", "nproc", "sleep", "true", "uname"];

/// Runs the program that `arguments[0]` names; returns its exit code.
pub(crate) fn run(arguments: &[Vec<u8>]) -> c_int {
    let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
    let (name, rest) = match arguments.split_first() {
        Some((name, rest)) => (base_name(name), rest),
        None => ("", &[][..]),
    };
    let result = match name {
        "poweroff" => end(Ending::PowerOff, rest),
        "halt" => end(Ending::Halt, rest),
        "reboot" => end(Ending::Restart, rest),
        "shutdown" => shutdown(rest),
        "cat" => cat(rest),
        "echo" => echo(rest),
        "false" => return 1,
        "nproc" => nproc(),
        "sleep" => sleep(rest),
        "true" => Ok(()),
        "uname" => print_uname(rest),
        "span-copy" => return copy::run(rest),
        "span-pages" => pages(rest),
        _ => Err("this is the first process of a Span guest, of no use by itself".to_string()),
    };
    match result {
        Ok(()) => 0,
        Err(message) => {
            let _ = writeln!(io::stderr(), "{name}: {message}");
            1
        }
    }
}

fn base_name(path: &[u8]) -> &str {
    let base = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    std::str::from_utf8(base).unwrap_or("")
}

/// A request to end the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Request {
    ending: Ending,
    /// Not by way of process 1.
    force: bool,
}

fn end(ending: Ending, options: &[&[u8]]) -> Result<(), String> {
    perform(parse_ending(ending, options)?)
}

fn shutdown(options: &[&[u8]]) -> Result<(), String> {
    perform(parse_shutdown(options)?)
}

fn parse_ending(ending: Ending, options: &[&[u8]]) -> Result<Request, String> {
    let mut request = Request {
        ending,
        force: false,
    };
    for option in options {
        match *option {
            b"-f" | b"-ff" | b"--force" => request.force = true,
            b"-p" | b"--poweroff" => request.ending = Ending::PowerOff,
            b"--halt" => request.ending = Ending::Halt,
            b"--reboot" => request.ending = Ending::Restart,
            b"-n" | b"-w" | b"-d" | b"--no-sync" | b"--no-wall" | b"--no-wtmp" => {}
            other => return Err(unknown(other)),
        }
    }
    Ok(request)
}

fn parse_shutdown(options: &[&[u8]]) -> Result<Request, String> {
    let mut request = Request {
        ending: Ending::PowerOff,
        force: false,
    };
    for option in options {
        match *option {
            b"-h" | b"-P" | b"--poweroff" => request.ending = Ending::PowerOff,
            b"-H" | b"--halt" => request.ending = Ending::Halt,
            b"-r" | b"--reboot" => request.ending = Ending::Restart,
            b"now" | b"+0" | b"--no-wall" => {}
            other => return Err(format!("{}; the only time is `now`", unknown(other))),
        }
    }
    Ok(request)
}

/// Says what the pages are used for whose numbers are read: a line for each.
fn pages(arguments: &[&[u8]]) -> Result<(), String> {
    const FILE: &str = "/proc/span_pages";
    /// So many answers fit into a page, which is what the kernel has room for.
    const PAGES_AT_A_TIME: usize = 40;

    if let Some(argument) = arguments.first() {
        return Err(unknown(argument));
    }
    let mut numbers = String::new();
    io::stdin()
        .read_to_string(&mut numbers)
        .map_err(|error| format!("stdin: {error}"))?;
    let numbers: Vec<&str> = numbers.split_whitespace().collect();
    for some in numbers.chunks(PAGES_AT_A_TIME) {
        let mut answer = Vec::new();
        // The file answers once each time it is opened.
        let mut file = File::options()
            .read(true)
            .write(true)
            .open(FILE)
            .map_err(|error| format!("{FILE}: {error}"))?;
        file.write_all(some.join(" ").as_bytes())
            .and_then(|()| file.read_to_end(&mut answer))
            .and_then(|_| io::stdout().write_all(&answer))
            .map_err(|error| format!("{FILE}: {error}"))?;
    }
    Ok(())
}

fn unknown(option: &[u8]) -> String {
    format!("unknown argument {}", String::from_utf8_lossy(option))
}

fn perform(request: Request) -> Result<(), String> {
    if request.force {
        sync();
        return Err(request.ending.now().desc().to_string());
    }
    // The request is answered by a signal to everyone, which must not turn this into a failure.
    let blocked = SigSet::from_iter([Signal::SIGTERM, Signal::SIGHUP]);
    blocked
        .thread_block()
        .and_then(|()| kill(Pid::from_raw(1), request.ending.signal()))
        .map_err(|error| error.desc().to_string())
}

fn cat(names: &[&[u8]]) -> Result<(), String> {
    let standard: [&[u8]; 1] = [b"-"];
    let names = if names.is_empty() { &standard } else { names };
    let mut out = io::stdout().lock();
    for name in names {
        let copied = match *name {
            b"-" => io::copy(&mut io::stdin().lock(), &mut out),
            path => File::open(Path::new(std::ffi::OsStr::from_bytes(path)))
                .and_then(|mut file| io::copy(&mut file, &mut out)),
        };
        copied.map_err(|error| format!("{}: {error}", String::from_utf8_lossy(name)))?;
    }
    out.flush().map_err(|error| error.to_string())
}

fn echo(words: &[&[u8]]) -> Result<(), String> {
    let (words, end) = match words.split_first() {
        Some((&b"-n", words)) => (words, &b""[..]),
        _ => (words, &b"\n"[..]),
    };
    print(&[&words.join(&b' '), end].concat())
}

fn nproc() -> Result<(), String> {
    let set = sched_getaffinity(Pid::from_raw(0)).map_err(|error| error.desc().to_string())?;
    let count = (0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .count();
    print(format!("{count}\n").as_bytes())
}

fn sleep(words: &[&[u8]]) -> Result<(), String> {
    let [word] = words else {
        return Err("one argument is needed: seconds".to_string());
    };
    std::thread::sleep(parse_seconds(word)?);
    Ok(())
}

fn parse_seconds(word: &[u8]) -> Result<Duration, String> {
    let text = String::from_utf8_lossy(word);
    if text == "infinity" {
        return Ok(Duration::MAX);
    }
    text.parse::<f64>()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("{text} is not a number of seconds"))
}

fn print_uname(options: &[&[u8]]) -> Result<(), String> {
    let names = uname().map_err(|error| error.desc().to_string())?;
    let fields = [
        (b's', names.sysname()),
        (b'n', names.nodename()),
        (b'r', names.release()),
        (b'v', names.version()),
        (b'm', names.machine()),
    ];
    let mut wanted = Vec::new();
    for option in options {
        match option {
            [b'-', letters @ ..] if !letters.is_empty() => wanted.extend_from_slice(letters),
            other => return Err(unknown(other)),
        }
    }
    if wanted.is_empty() {
        wanted.push(b's');
    }
    if let Some(letter) = wanted.iter().find(|letter| !b"asnrvm".contains(letter)) {
        return Err(unknown(&[b'-', *letter]));
    }
    let chosen: Vec<&[u8]> = fields
        .iter()
        .filter(|(letter, _)| wanted.contains(letter) || wanted.contains(&b'a'))
        .map(|(_, value)| value.as_bytes())
        .collect();
    print(&[&chosen.join(&b' '), &b"\n"[..]].concat())
}

fn print(bytes: &[u8]) -> Result<(), String> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ways_to_end_are_understood() {
        let request = |ending, force| Ok(Request { ending, force });
        assert_eq!(
            parse_ending(Ending::Halt, &[b"-p"]),
            request(Ending::PowerOff, false)
        );
        assert_eq!(
            parse_ending(Ending::Restart, &[b"-f"]),
            request(Ending::Restart, true)
        );
        assert_eq!(
            parse_shutdown(&[b"-r", b"now"]),
            request(Ending::Restart, false)
        );
        assert_eq!(
            parse_shutdown(&[b"-h", b"+0"]),
            request(Ending::PowerOff, false)
        );
        assert!(parse_shutdown(&[b"22:00"]).unwrap_err().contains("22:00"));
        assert!(
            parse_ending(Ending::Halt, &[b"-x"])
                .unwrap_err()
                .contains("-x")
        );
    }

    #[test]
    fn seconds_are_checked() {
        assert_eq!(parse_seconds(b"0.5").unwrap(), Duration::from_millis(500));
        for word in ["", "x", "-1", "nan", "1e300"] {
            assert!(parse_seconds(word.as_bytes()).is_err(), "{word}");
        }
    }

    #[test]
    fn the_name_is_the_last_part_of_the_path() {
        assert_eq!(base_name(b"/usr/sbin/halt"), "halt");
        assert_eq!(base_name(b"halt"), "halt");
    }
}
