//! A stream between a guest and its host, through slirp4netns on both sides.

use super::UPSTREAM;
use crate::error::{Error, Result};
use crate::figures::{Figure, Unit};
use crate::samples::Samples;
use crate::setting::Setting;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

const GROUP: &str = "A stream from and to the host, one node";
/// Nine tenths of upstream's speed.
const RATIO_MAX: f64 = 1.11;

const MIB: usize = 1 << 20;

/// The gauge's names, and what they are called here.
const WHAT: [(&str, &str); 2] = [("receive", "receive 1 MiB"), ("send", "send 1 MiB")];

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let mib = setting.effort.net;
    let port = serve(mib as usize).map_err(|error| Error::Failed(format!("a server: {error}")))?;
    let (port, mib) = (port.to_string(), mib.to_string());
    let arguments = ["net", &setting.khz, &port, &mib];
    let mut sides = vec![(Samples::default(), Samples::default()); WHAT.len()];
    setting.repeat("a stream from and to the host", || {
        let theirs = setting.upstream_networked(&arguments)?;
        let ours = setting.span_networked(&arguments)?;
        for ((name, _), (upstream, span)) in WHAT.iter().zip(&mut sides) {
            upstream.add(theirs.samples(name)?);
            span.add(ours.samples(name)?);
        }
        Ok(())
    })?;
    let figure = |((_, title), (upstream, span)): (&(&str, &str), &(Samples, Samples))| {
        let unit = Unit::Microseconds;
        Figure::compared(GROUP, *title, unit, UPSTREAM, upstream, span).aim(RATIO_MAX)
    };
    Ok(WHAT.iter().zip(&sides).map(figure).collect())
}

/// Serves gauges on the loopback interface until this process ends.
fn serve(mib: usize) -> std::io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // What goes wrong is the gauge's to say.
            std::thread::spawn(move || _ = answer(stream, mib));
        }
    });
    Ok(port)
}

fn answer(mut stream: TcpStream, mib: usize) -> std::io::Result<()> {
    let mut what = [0];
    stream.read_exact(&mut what)?;
    let mut buffer = vec![1; MIB];
    if what == *b"r" {
        for _ in 0..mib {
            stream.write_all(&buffer)?;
        }
        return Ok(());
    }
    while stream.read(&mut buffer)? > 0 {}
    stream.write_all(b".")
}
