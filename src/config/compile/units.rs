//! Durations, sizes, rates and counts: `250ms` `5s` `10m` `24h` `400d`, `64KiB` `10MiB`, `60/min`.
//!
//! Text in, number out; who asked and where it stood is the reader's business.

use std::time::Duration;

/// `250ms`, `5s`, `10m`, `24h`, `400d`. At most 100 years, so that adding one to a time never overflows.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let millis = number.checked_mul(millis)?;
    (millis <= 100 * 366 * 86_400_000).then(|| Duration::from_millis(millis))
}

/// `64KiB`, `10MiB`, `1GiB`, `512B` or `512`.
pub(super) fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// `60/min`.
pub(super) fn per_minute(text: &str) -> Option<u32> {
    let number = text.strip_suffix("/min")?;
    count(number).and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0)
}

/// Digits and nothing else.
pub(super) fn count(text: &str) -> Option<u64> {
    match split(text)? {
        (number, "") => Some(number),
        _ => None,
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_is_what_the_contract_shows() {
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("10m"), Some(Duration::from_secs(600)));
        assert_eq!(duration("400d"), Some(Duration::from_secs(400 * 86_400)));
        assert_eq!(size("64KiB"), Some(65_536));
        assert_eq!(size("10MiB"), Some(10 << 20));
        assert_eq!(per_minute("60/min"), Some(60));
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in ["", "5", "s", "5 s", "-5s", "1.5s", "5S", "5sec", "99999999999999999999s", "9999999999999d", "+5s"]
        {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
        for bad in ["", "64KB", "64kib", "64 KiB", "99999999999999999GiB", "-1"] {
            assert_eq!(size(bad), None, "{bad:?}");
        }
        for bad in ["60", "0/min", "60/s", "/min", "5000000000/min"] {
            assert_eq!(per_minute(bad), None, "{bad:?}");
        }
    }
}
