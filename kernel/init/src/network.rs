//! Brings network devices up, and gives them what the kernel command line says.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, socket};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

/// A device with a fixed address (`span.net=DEVICE,ADDRESS/BITS,GATEWAY,NAMESERVER`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix_bits: u8,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) name_server: Ipv4Addr,
}

impl Device {
    pub(crate) fn parse(value: &str) -> Option<Self> {
        let mut parts = value.split(',');
        let name = parts.next().filter(|name| !name.is_empty())?.to_string();
        let (address, bits) = parts.next()?.split_once('/')?;
        let device = Self {
            name,
            address: address.parse().ok()?,
            prefix_bits: bits.parse().ok().filter(|bits| (1..=32).contains(bits))?,
            gateway: parts.next()?.parse().ok()?,
            name_server: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(device)
    }

    /// Gives the device its address and brings it up; with `is_way_out`, what is sent elsewhere goes
    /// through it.
    pub(crate) fn configure(&self, is_way_out: bool) -> io::Result<()> {
        let control = Control::new()?;
        let mut request = request(&self.name)?;
        request.ifr_ifru.ifru_addr = socket_address(self.address);
        // SAFETY: these requests read one `ifreq`.
        unsafe { control.call(libc::SIOCSIFADDR, &request)? };
        let mask = Ipv4Addr::from(u32::MAX << (32 - u32::from(self.prefix_bits)));
        request.ifr_ifru.ifru_netmask = socket_address(mask);
        // SAFETY: as above.
        unsafe { control.call(libc::SIOCSIFNETMASK, &request)? };
        raise_with(&control, &self.name)?;
        if is_way_out {
            // SAFETY: all zeros is a valid `rtentry`: the route to everywhere.
            let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
            route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
            route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
            route.rt_gateway = socket_address(self.gateway);
            route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
            // SAFETY: the request reads one `rtentry`.
            unsafe { control.call(libc::SIOCADDRT, &route)? };
        }
        Ok(())
    }
}

pub(crate) fn raise(name: &str) -> io::Result<()> {
    raise_with(&Control::new()?, name)
}

fn raise_with(control: &Control, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request reads one `ifreq`.
    unsafe { control.call(libc::SIOCSIFFLAGS, &request) }
}

/// A socket through which devices are configured.
struct Control(OwnedFd);

impl Control {
    fn new() -> io::Result<Self> {
        let (family, kind) = (AddressFamily::Inet, SockType::Datagram);
        Ok(Self(socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?))
    }

    /// # Safety
    /// The request must read a `T` and write nothing.
    unsafe fn call<T>(&self, request: libc::Ioctl, argument: &T) -> io::Result<()> {
        // SAFETY: the caller's promise; the argument lives across the call.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeros is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let address =
        libc::sockaddr_in::from(SockaddrIn::from(std::net::SocketAddrV4::new(address, 0)));
    // SAFETY: both are plain data, of the same length, as the type of sockets' addresses asks for.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        let device = Device::parse("vec0,10.0.2.15/24,10.0.2.2,10.0.2.3").unwrap();
        assert_eq!(device.name, "vec0");
        assert_eq!(device.address, Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!(device.prefix_bits, 24);
        assert_eq!(device.name_server, Ipv4Addr::new(10, 0, 2, 3));
        for bad in [
            "",
            "vec0",
            ",10.0.2.15/24,10.0.2.2,10.0.2.3",
            "vec0,10.0.2.15,10.0.2.2,10.0.2.3",
            "vec0,10.0.2.15/0,10.0.2.2,10.0.2.3",
            "vec0,10.0.2.15/33,10.0.2.2,10.0.2.3",
            "vec0,10.0.2.15/24,10.0.2.2",
            "vec0,10.0.2.15/24,10.0.2.2,10.0.2.3,",
            "vec0,10.0.2.x/24,10.0.2.2,10.0.2.3",
        ] {
            assert_eq!(Device::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn addresses_are_laid_out_as_the_kernel_wants_them() {
        let address = socket_address(Ipv4Addr::new(1, 2, 3, 4));
        assert_eq!(i32::from(address.sa_family), libc::AF_INET);
        assert_eq!(address.sa_data[2..6], [1, 2, 3, 4]);
    }
}
