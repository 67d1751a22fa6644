//! What the kernel `forms` prints.

use std::collections::BTreeMap;

use umbra_forms::Case;

/// The hashes in the kernel's output, in the order of its cases. A last one that is cut off is left
/// out.
pub fn hashes(output: &str) -> Vec<u32> {
    let lines = output.lines().filter_map(|line| line.strip_prefix('@'));
    let words = lines.flat_map(|line| line.split_ascii_whitespace().skip(1));
    words
        .filter(|word| word.len() == 8)
        .map_while(|word| u32::from_str_radix(word, 16).ok())
        .collect()
}

/// What the kernel says of single cases.
pub fn words(output: &str) -> BTreeMap<Case, Vec<String>> {
    let mut cases = BTreeMap::new();
    let mut current: Option<&mut Vec<String>> = None;
    for line in output.lines() {
        if let Some(number) = line.strip_prefix("case 0x") {
            let Ok(number) = u32::from_str_radix(number, 16) else { continue };
            current = Some(cases.entry(Case(number)).or_default());
        } else if let (Some(words), Some(line)) = (&mut current, line.strip_prefix("  ")) {
            words.push(line.into());
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_to_where_the_guest_was_ended() {
        let output = "forms: 3 cases\n\n@0 00000001 0000000a\n@2 ffffffff 123";
        assert_eq!(hashes(output), [1, 10, 0xffff_ffff]);
    }

    #[test]
    fn words_belong_to_their_case() {
        let words =
            words("case 0x10\n  vector[0x0] = 0x80\n  cr0[0x0] = 0x1\ncase 0x11\nforms END\n");
        assert_eq!(words[&Case(16)], ["vector[0x0] = 0x80", "cr0[0x0] = 0x1"]);
        assert!(words[&Case(17)].is_empty());
    }
}
