//! Words on the command line into values: sizes, durations, limits, times. Pure.

use jiff::Timestamp;

use snapshot::error::Error;
use snapshot::format::cbor::Time;
use snapshot::job::check::ReadData;
use snapshot::job::create::PresetChoice;
use snapshot::job::prune::Limit;
use snapshot::source::owners::Mapping;
use snapshot::source::postgres::Url;
use snapshot::source::preset;

/// Bytes: `500M`, `1.5G`, `64KiB`; K, M, G, T are powers of 1024, as everywhere in this program.
pub fn size(text: &str) -> Result<u64, String> {
    let refuse = || format!("\"{text}\" is no size: write it like 500M or 1.5G");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        "k" | "K" | "KB" | "KiB" => 10,
        "m" | "M" | "MB" | "MiB" => 20,
        "g" | "G" | "GB" | "GiB" => 30,
        "t" | "T" | "TB" | "TiB" => 40,
        _ => return Err(refuse()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().map_err(|_| refuse())?;
    if fraction.is_empty() || fraction.len() > 6 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refuse());
    }
    let part: u64 = fraction.parse().map_err(|_| refuse())?;
    let scale = 10u64.pow(fraction.len() as u32);
    let unit = 1u64 << shift;
    whole.checked_mul(unit).and_then(|n| n.checked_add((part * unit) / scale)).ok_or_else(refuse)
}

/// Bytes a second: `10M`.
pub fn rate(text: &str) -> Result<u64, String> {
    match size(text.strip_suffix("/s").unwrap_or(text)) {
        Ok(0) => Err("nothing would ever arrive at a rate of 0".into()),
        rate => rate,
    }
}

/// A preset of a known application, or none.
pub fn preset(text: &str) -> Result<PresetChoice, String> {
    if text == "none" {
        return Ok(PresetChoice::None);
    }
    preset::named(text).map(PresetChoice::Named).ok_or_else(|| {
        let names: Vec<_> = preset::PRESETS.iter().map(|preset| preset.name).collect();
        format!("\"{text}\" is no preset: there are {}, and none", names.join(", "))
    })
}

/// Where a PostgreSQL database is. Not for clap, whose messages would show a password.
///
/// # Errors
/// [`Error::Usage`].
pub fn postgres(text: &str) -> Result<Url, Error> {
    Url::parse(text).map_err(|why| Error::Usage(format!("--postgres can't be understood: {why}")))
}

/// Two names of users or groups: `old=new`.
pub fn mapping(text: &str) -> Result<Mapping, String> {
    let refuse = || format!("\"{text}\" is no pair of names: write it like old=new");
    let (from, to) = text.split_once('=').ok_or_else(refuse)?;
    if from.is_empty() || to.is_empty() { Err(refuse()) } else { Ok((from.into(), to.into())) }
}

/// Seconds: `30d`, `24h`, `0s`, `1d12h`. A bare `m` is refused: other programs read it as months.
pub fn duration(text: &str) -> Result<i64, String> {
    let refuse =
        || format!("\"{text}\" is no duration: write it like 30d or 12h, in s, min, h, d, w, mo (30 d), y (365 d)");
    if text == "0" {
        return Ok(0);
    }
    let (mut rest, mut total) = (text, 0i64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(refuse)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let seconds = match unit {
            "s" => 1,
            "min" => 60,
            "h" => 3600,
            "d" => 86_400,
            "w" => 7 * 86_400,
            "mo" => 30 * 86_400,
            "y" => 365 * 86_400,
            "m" => return Err(format!("\"{text}\" may mean minutes or months: write min or mo")),
            _ => return Err(refuse()),
        };
        let number: i64 = number.parse().map_err(|_| refuse())?;
        total = number.checked_mul(seconds).and_then(|n| total.checked_add(n)).ok_or_else(refuse)?;
        rest = after;
    }
    if text.is_empty() { Err(refuse()) } else { Ok(total) }
}

/// The number before a percent sign, 0 to 100; `None` if there is no such sign.
fn percent(text: &str) -> Option<Result<f64, String>> {
    let number = text.strip_suffix('%')?;
    let value = number.parse::<f64>().ok().filter(|n| (0.0..=100.0).contains(n));
    Some(value.ok_or_else(|| format!("\"{text}\" is no share: write it like 5%")))
}

/// How much unused data a prune may leave: `5%`, `200M`, `unlimited`.
pub fn limit(text: &str) -> Result<Limit, String> {
    match percent(text) {
        Some(share) => share.map(Limit::Percent),
        None if text == "unlimited" => Ok(Limit::Bytes(u64::MAX)),
        None => size(text).map(Limit::Bytes),
    }
}

/// Which part of the data a check reads: `5%`, `2/7`, `500M`.
pub fn subset(text: &str) -> Result<ReadData, String> {
    if let Some(share) = percent(text) {
        return share.map(ReadData::Percent);
    }
    let Some((n, of)) = text.split_once('/') else { return size(text).map(ReadData::Bytes) };
    match (n.parse::<u32>(), of.parse::<u32>()) {
        (Ok(n), Ok(of)) if n >= 1 && n <= of => Ok(ReadData::Part { n, of }),
        _ => Err(format!("\"{text}\" is no part: write it like 2/7, from 1/7 to 7/7")),
    }
}

/// KiB of memory for the password hash: a plain number is MiB.
pub fn memory_kib(text: &str) -> Result<u32, String> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let bytes = if plain { size(&format!("{text}M"))? } else { size(text)? };
    u32::try_from(bytes >> 10).map_err(|_| format!("\"{text}\" is more memory than can be used"))
}

/// A point in time, RFC 3339.
pub fn time(text: &str) -> Result<Time, String> {
    let stamp: Timestamp =
        text.parse().map_err(|_| format!("\"{text}\" is no time: write it like 2026-03-01T22:00:00Z"))?;
    let nanos = stamp.as_nanosecond();
    Ok(Time { secs: nanos.div_euclid(1_000_000_000) as i64, nanos: nanos.rem_euclid(1_000_000_000) as u32 })
}

/// A point in time: RFC 3339, a day or a day and time in this machine's time zone, or how long ago it was.
pub fn moment(text: &str) -> Result<Time, String> {
    let local = || {
        let civil = text.parse::<jiff::civil::DateTime>().ok()?;
        let stamp = civil.to_zoned(jiff::tz::TimeZone::system()).ok()?.timestamp();
        Some(Time { secs: stamp.as_second(), nanos: stamp.subsec_nanosecond().try_into().ok()? })
    };
    if let Some(time) = time(text).ok().or_else(local) {
        return Ok(time);
    }
    let now = snapshot::clock::now();
    let age = duration(text).ok().and_then(|age| now.secs.checked_sub(age));
    let refuse =
        || format!("\"{text}\" is no time: write it like 2026-03-01, 2026-03-01T22:00:00Z, or 30d for its age");
    age.map(|secs| Time { secs, ..now }).ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_names() {
        assert_eq!(mapping("a=b").unwrap(), ("a".into(), "b".into()));
        assert!(["", "a", "a=", "=b"].iter().all(|bad| mapping(bad).is_err()));
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("1K", 1024), ("500M", 500 << 20), ("1.5G", 3 << 29), ("2TiB", 2 << 40), ("7B", 7)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "M", "-1", "1X", "1iB", "1..5M", "1.", "1 M", "99999999999T", "1.1234567M", "é"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, secs) in
            [("0s", 0), ("0", 0), ("24h", 86_400), ("30d", 2_592_000), ("1d12h", 129_600), ("5min", 300)]
        {
            assert_eq!(duration(text), Ok(secs), "{text}");
        }
        for bad in ["", "5", "h", "5m", "5 d", "-1d", "9223372036854775807y", "1dd", "1é"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_and_subsets() {
        assert_eq!(limit("5%"), Ok(Limit::Percent(5.0)));
        assert_eq!(limit("200M"), Ok(Limit::Bytes(200 << 20)));
        assert_eq!(limit("unlimited"), Ok(Limit::Bytes(u64::MAX)));
        assert_eq!(subset("2.5%"), Ok(ReadData::Percent(2.5)));
        assert_eq!(subset("7/7"), Ok(ReadData::Part { n: 7, of: 7 }));
        assert_eq!(subset("500M"), Ok(ReadData::Bytes(500 << 20)));
        for bad in ["101%", "-1%", "%", "nan%", "0/7", "8/7", "1/", "/", "some"] {
            assert!(subset(bad).is_err(), "{bad}");
        }
        assert_eq!(memory_kib("64"), Ok(64 * 1024));
        assert_eq!(memory_kib("19456K"), Ok(19_456));
        assert!(memory_kib("5T").is_err() && memory_kib("").is_err());
    }

    #[test]
    fn times() {
        assert_eq!(time("1970-01-01T01:00:01.5+01:00"), Ok(Time { secs: 1, nanos: 500_000_000 }));
        assert_eq!(time("1969-12-31T23:59:59.75Z"), Ok(Time { secs: -1, nanos: 750_000_000 }));
        for bad in ["", "yesterday", "2026-03-01", "2026-03-01T22:00:00"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn moments() {
        assert_eq!(moment("1970-01-01T01:00:01.5+01:00"), time("1970-01-01T00:00:01.5Z"));
        let day = moment("2026-03-01").unwrap();
        assert_eq!(moment("2026-03-01T00:00:00"), Ok(day));
        assert_eq!(moment("2026-03-02").map(|next| next.secs - day.secs), Ok(86_400));
        let age = snapshot::clock::now().secs - moment("2d").unwrap().secs;
        assert!((172_800..172_900).contains(&age));
        for bad in ["", "yesterday", "2026-13-01", "5"] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }
}
