//! Puts the descriptors of network devices and lines where the kernel's arguments say that they are.

use span_api::guest::{LINE_FD_FIRST, LINE_FDS_ENV, NET_DEVICES_MAX, NET_FD_FIRST, NET_FDS_ENV};
use span_api::line::Line;
use std::io;

/// Above all numbers that devices and lines may have.
const ABOVE: i32 = LINE_FD_FIRST + 128;

/// Moves what the agent passed on; an error is one line. To be called before there are other threads.
pub(crate) fn place() -> Result<(), String> {
    let mut devices = named(NET_FDS_ENV, NET_DEVICES_MAX, NET_FD_FIRST)?;
    devices.extend(named(LINE_FDS_ENV, Line::all().count(), LINE_FD_FIRST)?);
    // An agent of many guests may have used any number.
    let cleared: io::Result<Vec<Device>> = devices.iter().map(Device::clear).collect();
    let cleared = cleared.map_err(|error| format!("descriptors of devices: {error}"))?;
    for device in cleared {
        let failed = |error| format!("descriptor {} of a device: {error}", device.target);
        device.place().map_err(failed)?;
    }
    Ok(())
}

fn named(variable: &str, count: usize, first: i32) -> Result<Vec<Device>, String> {
    let value = std::env::var(variable).unwrap_or_default();
    let items = value.split(',').filter(|item| !item.is_empty());
    items
        .map(|item| {
            parse(item, count, first)
                .ok_or_else(|| format!("{variable}: {item:?} is no descriptor"))
        })
        .collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Device {
    /// The number that it is to have.
    target: i32,
    /// The one that it has.
    frames: i32,
    kept: Option<i32>,
}

fn parse(item: &str, count: usize, first: i32) -> Option<Device> {
    let mut numbers = item.split(':').map(|text| text.parse::<i32>().ok());
    let unit = numbers.next()??;
    let frames = numbers.next()??;
    let kept = match numbers.next() {
        Some(fd) => Some(fd?),
        None => None,
    };
    let known = (0..count as i32).contains(&unit);
    let open = frames > 2 && kept.is_none_or(|fd| fd > 2);
    (known && open && numbers.next().is_none()).then_some(Device {
        target: first + unit,
        frames,
        kept,
    })
}

impl Device {
    /// Moves it to where nothing is placed.
    fn clear(&self) -> io::Result<Self> {
        Ok(Self {
            target: self.target,
            frames: move_above(self.frames)?,
            kept: self.kept.map(move_above).transpose()?,
        })
    }

    fn place(&self) -> io::Result<()> {
        // SAFETY: an integer only.
        let taken = unsafe { libc::fcntl(self.target, libc::F_GETFD) } != -1;
        if taken {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        // SAFETY: integers only; `clear` has made the one, and nothing has the other.
        let failed = unsafe {
            libc::dup3(self.frames, self.target, libc::O_CLOEXEC) == -1
                || libc::close(self.frames) == -1
        };
        match failed {
            true => Err(io::Error::last_os_error()),
            false => Ok(()),
        }
    }
}

/// Programs that this process starts are not to have the descriptors: they would keep a device's helper.
fn move_above(fd: i32) -> io::Result<i32> {
    // SAFETY: integers only; the agent passed the descriptor on for this.
    let moved = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, ABOVE) };
    // SAFETY: as before; whoever asks goes on with the new number.
    match moved == -1 || unsafe { libc::close(fd) } == -1 {
        true => Err(io::Error::last_os_error()),
        false => Ok(moved),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        let device = |target, frames, kept| {
            Some(Device {
                target,
                frames,
                kept,
            })
        };
        assert_eq!(parse("0:9", 8, 512), device(512, 9, None));
        assert_eq!(parse("7:9:10", 8, 512), device(519, 9, Some(10)));
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
            assert_eq!(parse(bad, 8, 512), None, "{bad}");
        }
    }
}
