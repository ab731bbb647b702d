//! What a program of `fence-agents` prints.

use crate::PowerState;

/// What `status` ends with when the power is off. Alone it says little: an interpreter that does not find its
/// script ends so, too.
pub const OFF: i32 = 2;

/// The power, from what `status` prints and how it ends; `None`: it does not say, or contradicts itself.
#[must_use]
pub fn power(output: &str, code: Option<i32>) -> Option<PowerState> {
    let says = |word: &str| output.lines().any(|line| line.trim_end() == format!("Status: {word}"));
    match code {
        Some(OFF) if says("OFF") && !says("ON") => Some(PowerState::Off),
        Some(0) if says("ON") && !says("OFF") => Some(PowerState::On),
        _ => None,
    }
}

/// What `list` calls the outlet of this plug.
#[must_use]
pub fn outlet(output: &str, separator: &str, plug: &str) -> Option<String> {
    let mut names = output.lines().filter_map(|line| line.split_once(separator));
    names.find(|(outlet, _)| outlet.trim() == plug).map(|(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_is_said_by_the_line_and_by_how_it_ends() {
        assert_eq!(power("Status: OFF\n", Some(OFF)), Some(PowerState::Off));
        assert_eq!(power("x\nStatus: ON\r\n", Some(0)), Some(PowerState::On));
        for (output, code) in [
            ("Status: OFF", Some(0)),
            ("Status: OFF", None),
            ("", Some(OFF)),
            ("Status: off", Some(OFF)),
            (" Status: OFF", Some(OFF)),
            ("Status: OFF\nStatus: ON", Some(OFF)),
        ] {
            assert_eq!(power(output, code), None, "{output:?} {code:?}");
        }
    }

    #[test]
    fn an_outlet_is_found_by_its_whole_plug() {
        let list = "13,h13\n 3 , h3 \nnoise\n3,again\n";
        assert_eq!(outlet(list, ",", "3").as_deref(), Some("h3"));
        assert_eq!((outlet(list, ",", "1"), outlet(list, ";", "3")), (None, None));
    }
}
