//! Puts the descriptors of network devices where the kernel's arguments say that they are.

use span_api::guest::{NET_DEVICES_MAX, NET_FD_FIRST, NET_FDS_ENV};
use std::io;

/// Moves what the agent passed on; an error is one line. To be called before there are other threads, as
/// the numbers are free then.
pub(crate) fn place() -> Result<(), String> {
    let Ok(value) = std::env::var(NET_FDS_ENV) else {
        return Ok(());
    };
    for item in value.split(',').filter(|item| !item.is_empty()) {
        let device =
            parse(item).ok_or_else(|| format!("{NET_FDS_ENV}: {item:?} is no network device"))?;
        let failed = |error| format!("descriptor of network device {}: {error}", device.unit);
        device.place().map_err(failed)?;
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Device {
    unit: i32,
    frames: i32,
    kept: Option<i32>,
}

fn parse(item: &str) -> Option<Device> {
    let mut numbers = item.split(':').map(|text| text.parse::<i32>().ok());
    let unit = numbers.next()??;
    let frames = numbers.next()??;
    let kept = match numbers.next() {
        Some(fd) => Some(fd?),
        None => None,
    };
    let known = (0..NET_DEVICES_MAX as i32).contains(&unit);
    let open = frames > 2 && kept.is_none_or(|fd| fd > 2);
    (known && open && numbers.next().is_none()).then_some(Device { unit, frames, kept })
}

impl Device {
    /// Programs that this process starts are not to have the descriptors: they would keep a device's helper.
    fn place(&self) -> io::Result<()> {
        // SAFETY: integers only; the agent passed the descriptors on for this, and nothing has the number
        // that one is moved to.
        let failed = unsafe {
            libc::dup3(self.frames, NET_FD_FIRST + self.unit, libc::O_CLOEXEC) == -1
                || libc::close(self.frames) == -1
                || self
                    .kept
                    .is_some_and(|fd| libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) == -1)
        };
        match failed {
            true => Err(io::Error::last_os_error()),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        let device = |unit, frames, kept| Some(Device { unit, frames, kept });
        assert_eq!(parse("0:9"), device(0, 9, None));
        assert_eq!(parse("7:9:10"), device(7, 9, Some(10)));
        for bad in [
            "",
            "0",
            "0:",
            "8:9",
            "-1:9",
            "0:2",
            "0:9:1",
            "0:9:10:11",
            "a:9",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
