//! Numbers for people, in few characters.

/// A time in the unit that suits it.
pub(crate) fn duration(ns: u64) -> String {
    const MICROSECOND: f64 = 1e3;
    const MILLISECOND: f64 = 1e6;
    const SECOND: f64 = 1e9;
    match ns as f64 {
        ns if ns < 10.0 * MICROSECOND => format!("{:.1} µs", ns / MICROSECOND),
        ns if ns < MILLISECOND => format!("{:.0} µs", ns / MICROSECOND),
        ns if ns < SECOND => format!("{:.1} ms", ns / MILLISECOND),
        ns => format!("{:.2} s", ns / SECOND),
    }
}

/// A rate or a number.
pub(crate) fn short(number: f64) -> String {
    match number {
        n if n < 10.0 && n.fract() != 0.0 => format!("{n:.1}"),
        n if n < 10e3 => format!("{n:.0}"),
        n if n < 10e6 => format!("{:.0}k", n / 1e3),
        n if n < 10e9 => format!("{:.0}M", n / 1e6),
        n => format!("{:.0}G", n / 1e9),
    }
}

/// A number of bytes.
pub(crate) fn bytes(number: f64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut number = number / 1024.0;
    let mut unit = 0;
    while number >= 1024.0 && unit + 1 < UNITS.len() {
        number /= 1024.0;
        unit += 1;
    }
    format!("{number:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_unit_that_suits_them() {
        for (ns, text) in [
            (0, "0.0 µs"),
            (9_900, "9.9 µs"),
            (30_000, "30 µs"),
            (25_700_000, "25.7 ms"),
            (61_000_000_000, "61.00 s"),
        ] {
            assert_eq!(duration(ns), text);
        }
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0.0, "0"),
            (0.25, "0.2"),
            (123.4, "123"),
            (9_999.0, "9999"),
            (12_345.0, "12k"),
            (123_456_789.0, "123M"),
            (99e9, "99G"),
        ] {
            assert_eq!(short(number), text);
        }
    }

    #[test]
    fn bytes_have_the_unit_that_suits_them() {
        for (number, text) in [
            (0.0, "0.0 KiB"),
            (1536.0, "1.5 KiB"),
            (1048576.0, "1.0 MiB"),
            (5e15, "4547.5 TiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }
}
