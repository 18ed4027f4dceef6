//! Bytes and times as a result shows them. A verdict has dozens of each: written here without the formatting machinery,
//! which costs more than the comparison that they tell of.

use std::time::Duration;

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    let bytes = bytes.as_ref();
    let mut text = vec![0; 2 * bytes.len()];
    hex::encode_to_slice(bytes, &mut text).expect("two digits a byte");
    String::from_utf8(text).expect("digits are ASCII")
}

/// Unix seconds as `2026-08-19T14:09:01Z`; as a number where the calendar ends (year 9999).
pub(crate) fn time(seconds: u64) -> String {
    let Ok(time) = der::DateTime::from_unix_duration(Duration::from_secs(seconds)) else {
        return seconds.to_string();
    };
    let mut text = b"0000-00-00T00:00:00Z".to_vec();
    for (end, mut value) in [
        (4, time.year()),
        (7, time.month().into()),
        (10, time.day().into()),
        (13, time.hour().into()),
        (16, time.minutes().into()),
        (19, time.seconds().into()),
    ] {
        let mut at = end;
        while value > 0 {
            at -= 1;
            text[at] += (value % 10) as u8;
            value /= 10;
        }
    }
    String::from_utf8(text).expect("digits are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_times_look_as_the_libraries_write_them() {
        for bytes in [&[][..], &[0], &[0x0f, 0xf0, 0xab], &[255; 64]] {
            assert_eq!(hex(bytes), hex::encode(bytes));
        }
        for seconds in [
            0,
            1,
            951_782_399,
            951_782_400,
            1_786_284_541,
            4_102_444_799,
            253_402_300_799,
        ] {
            let time_of_der = der::DateTime::from_unix_duration(Duration::from_secs(seconds)).unwrap();
            assert_eq!(time(seconds), time_of_der.to_string());
        }
        assert_eq!(time(253_402_300_800), "253402300800");
        assert_eq!(time(u64::MAX), u64::MAX.to_string());
    }
}
