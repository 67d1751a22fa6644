//! Whole numbers of the command line, refused in words instead of by their type's limits.

use std::ops::RangeInclusive;

/// Takes a whole number within a range.
///
/// # Panics
/// The parser does, if the range is wider than the type.
pub fn whole<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        let number = number.ok_or_else(|| {
            format!("give a whole number from {} to {}", range.start(), range.end())
        })?;
        Ok(T::try_from(number).ok().expect("the range is one of the type"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_named_in_words() {
        let parse = whole::<u32>(48..=u32::MAX.into());
        assert_eq!((parse("48"), parse("4294967295")), (Ok(48), Ok(u32::MAX)));
        for text in ["47", "4294967296", "-1", "", "many", "1.5", "99999999999999999999"] {
            assert_eq!(
                parse(text).unwrap_err(),
                "give a whole number from 48 to 4294967295",
                "{text}"
            );
        }
    }
}
