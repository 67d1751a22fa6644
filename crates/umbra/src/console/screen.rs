//! The text on the guest's screen, for a terminal.

use umbra_telemetry::SCREEN_COLUMNS;

/// What code page 437 shows for the codes that ASCII has controls for, and for 127.
const CONTROLS: &str = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼";
const DELETE: char = '⌂';

/// What it shows for the codes from 128 on. The last one is a blank that does not break.
const UPPER: &str = "\
    ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒ\
    áíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
    └┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
    αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■ ";

/// The lines of a screen of code page 437 between two rules, without the blanks at their ends and
/// without the blank lines at its end.
pub fn screen_text(characters: &[u8]) -> String {
    let rows = characters
        .chunks(SCREEN_COLUMNS)
        .map(|row| row.iter().copied().map(glyph).collect::<String>());
    let text = rows.map(|row| format!("{}\n", row.trim_end())).collect::<String>();
    let text = text.trim_end();
    let end = if text.is_empty() { "" } else { "\n" };
    format!("--- screen ---\n{text}{end}--------------\n")
}

/// The character of a code of code page 437. Codes without one stand for blanks.
fn glyph(code: u8) -> char {
    let of = |table: &str, index: u8| table.chars().nth(index.into()).unwrap_or(' ');
    match code {
        0..0x20 => of(CONTROLS, code),
        0x7f => DELETE,
        0x80.. => of(UPPER, code - 0x80),
        ascii => ascii.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_one_printable_character() {
        for (table, count) in [(CONTROLS, 32), (UPPER, 128)] {
            assert_eq!(table.chars().count(), count);
        }
        assert!((0..=u8::MAX).all(|code| !glyph(code).is_control()));
        let known = [
            (0x00, ' '),
            (0x01, '☺'),
            (b'~', '~'),
            (0x80, 'Ç'),
            (0xb3, '│'),
            (0xdb, '█'),
            (0xe1, 'ß'),
        ];
        for (code, expected) in known {
            assert_eq!(glyph(code), expected, "{code:#x}");
        }
    }

    #[test]
    fn blanks_at_the_ends_are_cut() {
        let mut characters = vec![b' '; 25 * SCREEN_COLUMNS];
        characters[..5].copy_from_slice(b"a  b\0");
        characters[2 * SCREEN_COLUMNS] = 0xc4;
        assert_eq!(screen_text(&characters), "--- screen ---\na  b\n\n─\n--------------\n");
        assert_eq!(screen_text(&[b' '; 2000]), "--- screen ---\n--------------\n");
    }
}
