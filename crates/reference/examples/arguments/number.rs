//! Whole numbers of the command line, refused in words instead of by their type's limits.

use std::str::FromStr;

/// Takes any whole number.
pub fn whole<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "give a whole number, 0 or more")
}

/// Takes a whole number but 0.
pub fn positive<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, &'static str> {
    let number = whole(text).ok().filter(|number| *number >= T::from(1));
    number.ok_or("give a whole number, 1 or more")
}
