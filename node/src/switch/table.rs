//! What a switch knows: behind which port each station is. Pure: no clock, no sockets.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Number of a port; none is given twice.
pub(crate) type PortId = u64;

/// A station that sent nothing for this long is forgotten, as the standard for bridges has it.
pub(crate) const AGE_MAX: Duration = Duration::from_secs(300);

/// Stations behind one port: a guest that makes addresses up does not displace those of others.
pub(crate) const STATIONS_OF_PORT_MAX: usize = 1024;

/// Two addresses and a type.
pub(crate) const HEADER_BYTES: usize = 14;

type Address = [u8; 6];

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    Port(PortId),
    /// To all but the one that it came from.
    All,
    Nobody,
}

#[derive(Debug)]
struct Station {
    port: PortId,
    seen: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    stations: HashMap<Address, Station>,
}

impl Table {
    /// Learns where the frame's sender is, and tells where it goes.
    pub(crate) fn forward(&mut self, from: PortId, frame: &[u8], now: Instant) -> To {
        let Some((target, source)) = addresses(frame) else {
            return To::Nobody;
        };
        if is_group(source) {
            return To::Nobody;
        }
        self.learn(source, from, now);
        if is_group(target) {
            return match is_link_local(target) {
                true => To::Nobody,
                false => To::All,
            };
        }
        match self.stations.get(&target) {
            Some(station) if now.duration_since(station.seen) < AGE_MAX => match station.port {
                port if port == from => To::Nobody,
                port => To::Port(port),
            },
            _ => To::All,
        }
    }

    /// A port is gone, and with it whoever was behind it.
    pub(crate) fn forget(&mut self, port: PortId) {
        self.stations.retain(|_, station| station.port != port);
    }

    fn learn(&mut self, address: Address, port: PortId, now: Instant) {
        if let Some(station) = self.stations.get_mut(&address) {
            *station = Station { port, seen: now };
            return;
        }
        if self.behind(port) >= STATIONS_OF_PORT_MAX {
            self.stations
                .retain(|_, station| now.duration_since(station.seen) < AGE_MAX);
            if self.behind(port) >= STATIONS_OF_PORT_MAX {
                // Frames for it go to all: slower, but not lost.
                return;
            }
        }
        self.stations.insert(address, Station { port, seen: now });
    }

    fn behind(&self, port: PortId) -> usize {
        let stations = self.stations.values();
        stations.filter(|station| station.port == port).count()
    }
}

/// Target and source of a frame that is long enough to have them.
fn addresses(frame: &[u8]) -> Option<(Address, Address)> {
    let header = frame.get(..HEADER_BYTES)?;
    Some((header[..6].try_into().ok()?, header[6..12].try_into().ok()?))
}

/// Meant for several stations.
fn is_group(address: Address) -> bool {
    address[0] & 1 != 0
}

/// For the next bridge only, which has no use for it.
fn is_link_local(address: Address) -> bool {
    address[..5] == [0x01, 0x80, 0xc2, 0, 0] && address[5] < 0x10
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Address = [0xff; 6];

    fn station(number: u16) -> Address {
        let [high, low] = number.to_be_bytes();
        [2, 0, 0, 0, high, low]
    }

    fn frame(target: Address, source: Address) -> Vec<u8> {
        [&target[..], &source, &[8, 0], b"data"].concat()
    }

    #[test]
    fn what_is_known_goes_to_one_port_and_the_rest_to_all() {
        let (mut table, now) = (Table::default(), Instant::now());
        let (one, two) = (station(1), station(2));
        assert_eq!(table.forward(1, &frame(two, one), now), To::All);
        assert_eq!(table.forward(2, &frame(one, two), now), To::Port(1));
        assert_eq!(table.forward(1, &frame(two, one), now), To::Port(2));
        assert_eq!(table.forward(1, &frame(ALL, one), now), To::All);
        // Stations behind the same port need no switch.
        assert_eq!(table.forward(1, &frame(one, station(3)), now), To::Nobody);
    }

    #[test]
    fn stations_move_are_forgotten_with_their_port_and_age() {
        let (mut table, now) = (Table::default(), Instant::now());
        let (one, two) = (station(1), station(2));
        table.forward(1, &frame(ALL, one), now);
        table.forward(3, &frame(ALL, one), now);
        assert_eq!(table.forward(2, &frame(one, two), now), To::Port(3));
        table.forget(3);
        assert_eq!(table.forward(2, &frame(one, two), now), To::All);
        table.forward(1, &frame(ALL, one), now);
        let young = now + AGE_MAX - Duration::from_secs(1);
        assert_eq!(table.forward(2, &frame(one, two), young), To::Port(1));
        assert_eq!(table.forward(2, &frame(one, two), now + AGE_MAX), To::All);
    }

    #[test]
    fn a_port_displaces_nobody_with_made_up_addresses() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.forward(1, &frame(ALL, station(u16::MAX)), now);
        for number in 0..2 * STATIONS_OF_PORT_MAX as u16 {
            table.forward(2, &frame(ALL, station(number)), now);
        }
        assert_eq!(table.stations.len(), STATIONS_OF_PORT_MAX + 1);
        let answer = frame(station(u16::MAX), station(0));
        assert_eq!(table.forward(2, &answer, now), To::Port(1));
        // Those that have become silent make room.
        table.forward(2, &frame(ALL, station(9000)), now + AGE_MAX);
        assert_eq!(table.stations.len(), 1);
    }

    #[test]
    fn nonsense_goes_nowhere() {
        let (mut table, now) = (Table::default(), Instant::now());
        for bad in [
            vec![],
            vec![0; HEADER_BYTES - 1],
            frame(station(1), ALL),
            frame([0x01, 0x80, 0xc2, 0, 0, 0x0e], station(1)),
        ] {
            assert_eq!(table.forward(1, &bad, now), To::Nobody, "{bad:?}");
        }
        assert!(!table.stations.contains_key(&ALL));
    }
}
