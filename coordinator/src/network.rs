//! `--net`: network devices of the guest.

use crate::failure::Failure;
use span_api::guest::{NET_DEVICES_MAX, NET_FD_FIRST, descriptor_handle};
use span_api::link::{Forward, Network, NetworkKind, Protocol, UserAddresses};
use span_api::switch;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Longest frames between a guest and the helper behind it. Each costs the same handful of host calls
/// and wake-ups, whatever its length; the pages of one this long are found in memory that is in use.
const USER_MTU: u16 = 16_000;

/// The same between guests.
const SWITCH_MTU: u16 = 16_000;

/// What a real network takes. Longer data is cut by the host, which knows where it goes.
const TAP_MTU: u16 = 1500;

/// `IFNAMSIZ` of the host, without its NUL.
const INTERFACE_BYTES_MAX: usize = 15;

const ALLOWED: &str = "allowed are [NODE:]user[,hostfwd=tcp|udp:[ADDRESS]:PORT-:PORT]…, \
                       [NODE:]tap:INTERFACE and [NODE:]switch:NAME";

/// The devices, each with the node that has its other end.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    devices: Vec<(usize, Network)>,
}

impl Networks {
    pub(crate) fn new(values: &[String], nodes: &[String]) -> Result<Self, Failure> {
        if values.len() > NET_DEVICES_MAX {
            return Err(Failure::usage(format!(
                "--net is given {} times; a guest has at most {NET_DEVICES_MAX} such devices",
                values.len()
            )));
        }
        let mut devices: Vec<(usize, Network)> = Vec::new();
        for (unit, value) in values.iter().enumerate() {
            let refused = |why: String| Failure::usage(format!("--net {value:?}: {why}"));
            let (node, text) = place(value, nodes).map_err(refused)?;
            let users = devices
                .iter()
                .filter(|(_, device)| matches!(device.kind, NetworkKind::User { .. }));
            let kind = kind(text, users.count() as u8).map_err(refused)?;
            let taken = devices
                .iter()
                .any(|(other, device)| *other == node && same_tap(&device.kind, &kind));
            if taken {
                return Err(refused("this interface is given twice".into()));
            }
            let unit = unit as u8;
            devices.push((node, Network { unit, kind }));
        }
        Ok(Self { devices })
    }

    /// Kernel arguments: the devices, and what the first process sets up.
    pub(crate) fn arguments(&self) -> Vec<Vec<u8>> {
        let mut arguments = Vec::new();
        for (node, Network { unit, kind }) in &self.devices {
            let fd = descriptor_handle(*node as u16, NET_FD_FIRST + i32::from(*unit));
            match kind {
                NetworkKind::User { addresses, mtu, .. } => {
                    arguments.push(format!("vec{unit}:transport=fd,fd={fd},mtu={mtu}"));
                    let (device, bits) = (addresses.device(), UserAddresses::PREFIX_BITS);
                    let (gateway, names) = (addresses.gateway(), addresses.name_server());
                    arguments.push(format!(
                        "span.net=vec{unit},{device}/{bits},{gateway},{names}"
                    ));
                }
                // Segments that the host has not cut are received whole.
                NetworkKind::Tap { .. } => arguments.push(format!(
                    "vec{unit}:transport=tap,fd={fd},mtu={TAP_MTU},gro=1"
                )),
                NetworkKind::Switch { .. } => {
                    arguments.push(format!("vec{unit}:transport=fd,fd={fd},mtu={SWITCH_MTU}"));
                }
            }
        }
        arguments.into_iter().map(String::into_bytes).collect()
    }

    /// What a node has to open.
    pub(crate) fn of_node(&self, node: usize) -> Vec<Network> {
        let devices = self.devices.iter().filter(|(its, _)| *its == node);
        devices.map(|(_, device)| device.clone()).collect()
    }

    /// Kernel arguments that the user appended must not be about devices of `--net`.
    pub(crate) fn check_appended(&self, appended: &[Vec<u8>]) -> Result<(), Failure> {
        for word in appended {
            let word = String::from_utf8_lossy(word);
            let Some((key, _)) = word.split_once(':') else {
                continue;
            };
            let mut units = self.devices.iter().map(|(_, device)| device.unit);
            if units.any(|unit| key == format!("vec{unit}")) {
                let count = self.devices.len();
                return Err(Failure::usage(format!(
                    "--append {word}: {key} is a device of --net; the first free one is vec{count}"
                )));
            }
        }
        Ok(())
    }
}

/// Splits a node's name off; without one it is the first.
fn place<'v>(value: &'v str, nodes: &[String]) -> Result<(usize, &'v str), String> {
    if let Some((name, rest)) = value.split_once(':')
        && is_kind(rest)
    {
        return match nodes.iter().position(|node| node == name) {
            Some(node) => Ok((node, rest)),
            None => Err(format!(
                "there is no node {name:?}; --nodes has {}",
                nodes.join(", ")
            )),
        };
    }
    Ok((0, value))
}

fn is_kind(text: &str) -> bool {
    text == "user"
        || text.starts_with("user,")
        || text.starts_with("tap:")
        || text.starts_with("switch:")
}

fn kind(text: &str, users: u8) -> Result<NetworkKind, String> {
    if let Some(name) = text.strip_prefix("tap:") {
        let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ',' | ':' | '%');
        let dots = name == "." || name == "..";
        if name.is_empty() || name.len() > INTERFACE_BYTES_MAX || !name.chars().all(allowed) || dots
        {
            return Err(format!(
                "an interface has a name of 1 to {INTERFACE_BYTES_MAX} characters, as `ip link` shows it"
            ));
        }
        return Ok(NetworkKind::Tap { name: name.into() });
    }
    if let Some(name) = text.strip_prefix("switch:") {
        if !switch::is_name(name) {
            return Err(format!(
                "a switch has a name of 1 to {} of the characters a-z A-Z 0-9 _ -",
                switch::NAME_BYTES_MAX
            ));
        }
        return Ok(NetworkKind::Switch { name: name.into() });
    }
    let mut items = text.split(',');
    if items.next() != Some("user") {
        return Err(ALLOWED.into());
    }
    let mut forwards: Vec<Forward> = Vec::new();
    for item in items {
        let forward = item
            .strip_prefix("hostfwd=")
            .and_then(parse_forward)
            .ok_or_else(|| format!("{item:?} is not known; {ALLOWED}"))?;
        let same =
            |other: &Forward| (other.protocol, other.host) == (forward.protocol, forward.host);
        if forwards.iter().any(same) {
            return Err(format!("{item} uses a port of the host twice"));
        }
        forwards.push(forward);
    }
    Ok(NetworkKind::User {
        addresses: UserAddresses {
            network: Ipv4Addr::new(10, 0, 2 + users, 0),
        },
        mtu: USER_MTU,
        forwards,
    })
}

/// `tcp:[ADDRESS]:PORT-:PORT`. Without an address, only this host itself can connect.
fn parse_forward(text: &str) -> Option<Forward> {
    let (host, guest) = text.split_once('-')?;
    let mut parts = host.split(':');
    let protocol = match parts.next()? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    let address = match parts.next()? {
        "" => Ipv4Addr::LOCALHOST,
        address => address.parse().ok()?,
    };
    let host_port = port(parts.next()?)?;
    if parts.next().is_some() {
        return None;
    }
    Some(Forward {
        protocol,
        host: SocketAddrV4::new(address, host_port),
        guest_port: port(guest.strip_prefix(':')?)?,
    })
}

pub(crate) fn port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

fn same_tap(one: &NetworkKind, other: &NetworkKind) -> bool {
    matches!(one, NetworkKind::Tap { .. }) && one == other
}

/// What to give instead of `ethN=TRANSPORT,…`, which is gone from Linux.
pub(crate) fn instead_of_eth(value: &str) -> &'static str {
    match value.split(',').next().unwrap_or_default() {
        "slirp" => "use --net user",
        "tuntap" | "ethertap" | "slip" => "use --net tap:INTERFACE",
        "daemon" | "mcast" => "use --net switch:NAME",
        "vde" => "use --append vecN:transport=vde,vnl=…",
        "pcap" => "use --append vecN:transport=raw,ifname=…",
        _ => "use --net user, --net tap:INTERFACE, or --append vecN:transport=…",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(values: &[&str]) -> Result<Networks, Failure> {
        let values: Vec<String> = values.iter().map(|value| value.to_string()).collect();
        Networks::new(&values, &["a", "b", "user"].map(String::from))
    }

    fn line(values: &[&str]) -> String {
        let failure = networks(values).unwrap_err();
        assert_eq!(failure.code, 2);
        assert!(!failure.line.contains('\n'), "{}", failure.line);
        failure.line
    }

    #[test]
    fn devices_are_numbered_and_belong_to_nodes() {
        let networks = networks(&["user", "b:tap:span0", "b:user,hostfwd=udp:0.0.0.0:53-:5353"]);
        let networks = networks.unwrap();
        assert_eq!(networks.of_node(0).len(), 1);
        assert_eq!(networks.of_node(2), []);
        let forward = Forward {
            protocol: Protocol::Udp,
            host: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 53),
            guest_port: 5353,
        };
        let addresses = UserAddresses {
            network: Ipv4Addr::new(10, 0, 3, 0),
        };
        assert_eq!(
            networks.of_node(1),
            [
                Network {
                    unit: 1,
                    kind: NetworkKind::Tap {
                        name: "span0".into()
                    }
                },
                Network {
                    unit: 2,
                    kind: NetworkKind::User {
                        addresses,
                        mtu: USER_MTU,
                        forwards: vec![forward]
                    }
                }
            ]
        );
        let arguments: Vec<String> = networks
            .arguments()
            .into_iter()
            .map(|argument| String::from_utf8(argument).unwrap())
            .collect();
        assert_eq!(
            arguments,
            [
                "vec0:transport=fd,fd=512,mtu=16000",
                "span.net=vec0,10.0.2.15/24,10.0.2.2,10.0.2.3",
                "vec1:transport=tap,fd=1049089,mtu=1500,gro=1",
                "vec2:transport=fd,fd=1049090,mtu=16000",
                "span.net=vec2,10.0.3.15/24,10.0.3.2,10.0.3.3",
            ]
        );
    }

    #[test]
    fn a_node_may_have_the_name_of_a_kind() {
        assert_eq!(networks(&["user:user"]).unwrap().of_node(2).len(), 1);
        assert_eq!(networks(&["user"]).unwrap().of_node(0).len(), 1);
    }

    #[test]
    fn a_forwarded_port_is_open_to_this_host_only_unless_it_is_said() {
        let forward = parse_forward("tcp::8080-:80").unwrap();
        assert_eq!(forward.to_string(), "tcp:127.0.0.1:8080-:80");
    }

    #[test]
    fn bad_networks_are_named() {
        for (value, part) in [
            ("", "--net \"\": allowed are"),
            ("slirp", "allowed are"),
            ("users", "allowed are"),
            ("c:user", "no node \"c\"; --nodes has a, b, user"),
            (":user", "no node \"\"; --nodes has"),
            ("user,", "\"\" is not known"),
            ("user,mtu=1500", "\"mtu=1500\" is not known"),
            ("user,hostfwd=tcp::0-:80", "is not known"),
            ("user,hostfwd=tcp::80-:65536", "is not known"),
            ("user,hostfwd=tcp::+80-:80", "is not known"),
            ("user,hostfwd=sctp::80-:80", "is not known"),
            ("user,hostfwd=tcp:localhost:80-:80", "is not known"),
            ("user,hostfwd=tcp::80", "is not known"),
            ("user,hostfwd=tcp::80-80", "is not known"),
            ("user,hostfwd=tcp::1:2-:80", "is not known"),
            (
                "user,hostfwd=tcp::80-:1,hostfwd=tcp:127.0.0.1:80-:2",
                "twice",
            ),
            ("tap:", "1 to 15 characters"),
            ("tap:sixteencharacter", "1 to 15 characters"),
            ("tap:a/b", "1 to 15 characters"),
            ("tap:a%d", "1 to 15 characters"),
            ("tap:a b", "1 to 15 characters"),
            ("switch", "allowed are"),
            ("switch:", "1 to 32 of the characters"),
            ("b:switch:a,b", "1 to 32 of the characters"),
            ("d:switch:a", "no node \"d\""),
            ("tap\u{1b}[2J", "allowed are"),
        ] {
            let line = line(&[value]);
            assert!(line.contains(part), "{value}: {line}");
            assert!(!line.contains('\u{1b}'), "{line:?}");
        }
        assert!(line(&["tap:x", "a:tap:x"]).contains("twice"));
        assert!(networks(&["tap:x", "b:tap:x"]).is_ok());
        // Two devices on one switch are two.
        assert!(networks(&["switch:x", "switch:x"]).is_ok());
        assert!(line(&["user"; 9]).contains("at most 8"));
    }

    #[test]
    fn appended_devices_have_other_numbers() {
        let networks = networks(&["user", "tap:x"]).unwrap();
        let check = |word: &str| networks.check_appended(&[word.as_bytes().to_vec()]);
        assert!(check("vec2:transport=raw,ifname=x").is_ok());
        assert!(check("vec1=x").is_ok());
        let line = check("vec1:transport=raw,ifname=x").unwrap_err().line;
        assert!(line.contains("the first free one is vec2"), "{line}");
    }

    #[test]
    fn what_is_gone_has_something_instead() {
        assert!(instead_of_eth("tuntap,,,192.168.0.254").contains("--net tap:"));
        assert!(instead_of_eth("slirp,,/usr/bin/slirp").contains("--net user"));
        assert!(instead_of_eth("daemon").contains("--net switch:"));
        assert!(instead_of_eth("vde").contains("transport=vde"));
        assert!(instead_of_eth("").contains("--net user"));
    }
}
