//! The system event log and the sensors, as `ipmitool -c` lists them: fields between commas, a record per line.

/// A record of a system event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its number, hexadecimal.
    pub id: String,
    /// When, by the BMC's clock and in its words; a BMC that does not know the time says so here.
    pub at: String,
    /// Which sensor.
    pub sensor: String,
    /// What happened.
    pub event: String,
    /// `Asserted` or `Deasserted`, with what belongs to it; empty where the BMC doesn't say.
    pub direction: String,
}

/// A sensor and what it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SensorReading {
    /// Its name.
    pub name: String,
    /// Its reading, with its unit; what the BMC says instead where there is none.
    pub value: String,
    /// `ok`, `nc` (not critical), `cr` (critical), `nr` (not recoverable), `ns` (no reading).
    pub status: String,
}

/// The records of a system event log.
#[must_use]
pub fn entries(output: &str) -> Vec<LogEntry> {
    output
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(',').map(str::trim);
            let id =
                fields.next().filter(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_hexdigit()))?;
            let (date, time) = (fields.next()?, fields.next()?);
            let (sensor, event) = (fields.next()?, fields.next()?);
            let direction: Vec<&str> = fields.filter(|field| !field.is_empty()).collect();
            Some(LogEntry {
                id: id.to_owned(),
                at: format!("{date} {time}").trim().to_owned(),
                sensor: sensor.to_owned(),
                event: event.to_owned(),
                direction: direction.join(", "),
            })
        })
        .collect()
}

/// The sensors, with what they read.
#[must_use]
pub fn sensors(output: &str) -> Vec<SensorReading> {
    output
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            let [name, value @ .., status] = fields.as_slice() else { return None };
            (!name.is_empty() && !value.is_empty()).then(|| SensorReading {
                name: (*name).to_owned(),
                value: value.join(" "),
                status: (*status).to_owned(),
            })
        })
        .collect()
}

/// How many sensors a repository describes, from `sdr info`.
pub fn sensor_count(output: &str) -> Option<u32> {
    let line = output.lines().find_map(|line| line.strip_prefix("Record Count"))?;
    line.split_once(':')?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_what_is_none_is_not() {
        let output = "SDRR successfully erased\n1, Pre-Init ,0000001522,Temperature Temp,Upper Critical going high,\
                      Asserted,Reading 74 > Threshold 72 degrees C\n1f,11/25/2026,19:00:00,Power Unit #0x02,Power off/down\n";
        let entries = entries(output);
        assert_eq!(entries.len(), 2, "{entries:?}");
        assert_eq!(entries[0].direction, "Asserted, Reading 74 > Threshold 72 degrees C");
        assert_eq!((entries[1].id.as_str(), entries[1].at.as_str()), ("1f", "11/25/2026 19:00:00"));
        assert_eq!((entries[1].event.as_str(), entries[1].direction.as_str()), ("Power off/down", ""));
    }

    #[test]
    fn sensors_have_a_name_a_value_with_its_unit_and_a_status() {
        let readings = sensors("Temp,60,degrees C,ok\nWatchdog,0x00,ok\nnoise\n");
        assert_eq!(readings.len(), 2);
        assert_eq!((readings[0].value.as_str(), readings[0].status.as_str()), ("60 degrees C", "ok"));
        assert_eq!(sensor_count("SDR Version : 0x51\nRecord Count                        : 12\n"), Some(12));
        assert_eq!(sensor_count(""), None);
    }
}
