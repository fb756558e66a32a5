//! Latencies, bandwidths and losses as people write them, and back.

use span_api::guest::{
    LINK_BANDWIDTH_BPS_MAX, LINK_BANDWIDTH_BPS_MIN, LINK_LATENCY_NS_MAX, LINK_LOSS_PPM_MAX,
};

/// Units of time and how many nanoseconds each has, longest names first.
const TIMES: [(&str, u64); 4] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
];

/// Units of bandwidth and how many bits per second each has.
const BANDWIDTHS: [(&str, u64); 4] = [
    ("K", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

/// Digits after the point that mean something.
const DIGITS_MAX: usize = 6;

/// A time of a link, as `200us`; `0` is one, too.
pub(crate) fn time_ns(text: &str) -> Result<u64, String> {
    if text == "0" {
        return Ok(0);
    }
    let parsed = TIMES.iter().find_map(|(unit, ns)| {
        let number = text.strip_suffix(unit)?;
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        number
            .parse::<u64>()
            .ok()
            .filter(|_| digits)?
            .checked_mul(*ns)
    });
    match parsed {
        Some(ns) if ns <= LINK_LATENCY_NS_MAX => Ok(ns),
        Some(_) => Err(format!("{text} is more than 1s")),
        None => Err(format!(
            "{text:?} is no time: a whole number with ns, us, ms or s"
        )),
    }
}

/// Bits per second, as `10G`; `none` is as many as the network carries, which is 0.
pub(crate) fn bandwidth_bps(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    let parsed = BANDWIDTHS.iter().find_map(|(unit, bps)| {
        let number = text.strip_suffix(unit)?;
        scaled(number, *bps)
    });
    match parsed {
        Some(bps) if (LINK_BANDWIDTH_BPS_MIN..=LINK_BANDWIDTH_BPS_MAX).contains(&bps) => Ok(bps),
        Some(_) => Err(format!(
            "{text} is not between {} and {}",
            bandwidth_text(LINK_BANDWIDTH_BPS_MIN),
            bandwidth_text(LINK_BANDWIDTH_BPS_MAX)
        )),
        None => Err(format!(
            "{text:?} is no bandwidth: a number with K, M, G or T, in bits per second, or none"
        )),
    }
}

/// Lost packets of a million, from per cent.
pub(crate) fn loss_ppm(text: &str) -> Result<u32, String> {
    if text == "0" {
        return Ok(0);
    }
    let parsed = text
        .strip_suffix('%')
        .and_then(|number| scaled(number, 10_000));
    match parsed {
        Some(ppm) if ppm <= u64::from(LINK_LOSS_PPM_MAX) => Ok(ppm as u32),
        Some(_) => Err(format!(
            "{text} is more than {}",
            loss_text(LINK_LOSS_PPM_MAX)
        )),
        None => Err(format!("{text:?} is no loss: a number of per cent with %")),
    }
}

/// A decimal number, `unit` times; exact, or `None`.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > DIGITS_MAX {
        return None;
    }
    let ten = 10u128.pow(part.len() as u32);
    let number = whole.parse::<u128>().ok()?.checked_mul(ten)? + part.parse::<u128>().ok()?;
    let product = number.checked_mul(unit.into())?;
    let exact = product.is_multiple_of(ten);
    u64::try_from(product / ten).ok().filter(|_| exact)
}

/// A time as [`time_ns`] reads it.
pub(crate) fn time_text(ns: u64) -> String {
    if ns == 0 {
        return "0".into();
    }
    let fits = TIMES
        .iter()
        .rev()
        .find(|(_, unit)| ns.is_multiple_of(*unit));
    let (name, unit) = fits.unwrap_or(&TIMES[0]);
    format!("{}{name}", ns / unit)
}

/// A bandwidth as [`bandwidth_bps`] reads it.
pub(crate) fn bandwidth_text(bps: u64) -> String {
    if bps == 0 {
        return "none".into();
    }
    let fits = BANDWIDTHS.iter().rev().find(|(_, unit)| bps >= *unit);
    let (name, unit) = fits.unwrap_or(&BANDWIDTHS[0]);
    format!("{}{name}", decimal(bps, *unit))
}

/// A loss as [`loss_ppm`] reads it.
pub(crate) fn loss_text(ppm: u32) -> String {
    match ppm {
        0 => "0".into(),
        ppm => format!("{}%", decimal(ppm.into(), 10_000)),
    }
}

/// `number` in units, with as many digits as it needs.
fn decimal(number: u64, unit: u64) -> String {
    let text = format!("{:.6}", number as f64 / unit as f64);
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_as_it_was() {
        for text in ["0", "1ns", "200us", "1500us", "3ms", "1s"] {
            assert_eq!(time_text(time_ns(text).unwrap()), text);
        }
        for (text, bps) in [
            ("none", 0),
            ("10K", 10_000),
            ("2.5G", 2_500_000_000),
            ("1T", 1_000_000_000_000),
        ] {
            assert_eq!(bandwidth_bps(text), Ok(bps));
            assert_eq!(bandwidth_text(bps), text);
        }
        for (text, ppm) in [("0", 0), ("0.01%", 100), ("50%", 500_000), ("1.5%", 15_000)] {
            assert_eq!(loss_ppm(text), Ok(ppm));
            assert_eq!(loss_text(ppm), text);
        }
    }

    #[test]
    fn nonsense_is_no_value() {
        for text in ["", "1", "1.5ms", "2s", "ms", "-1ms"] {
            assert!(time_ns(text).is_err(), "{text}");
        }
        for text in [
            "", "0", "10", "G", "-1G", "1.G", ".5G", "1K", "2T", "1e3M", "1Gbit",
        ] {
            assert!(bandwidth_bps(text).is_err(), "{text}");
        }
        for text in ["", "1", "%", "51%", "-1%", "0.00001%", "1 %"] {
            assert!(loss_ppm(text).is_err(), "{text}");
        }
    }
}
