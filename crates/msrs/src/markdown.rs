//! The table as a page of the book.

use core::fmt;

use crate::TABLE;
use crate::row::{Bits, Row, Treatment, Value};

/// Prints the table.
#[derive(Debug)]
pub struct Markdown;

impl fmt::Display for Markdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| MSR | where | the guest finds | may write | why |")?;
        writeln!(f, "|---|---|---|---|---|")?;
        for row in TABLE {
            writeln!(
                f,
                "| {row} | {} | {} | {} | {} |",
                row.models.name(),
                Found(row),
                Writes(row),
                row.why
            )?;
        }
        Ok(())
    }
}

/// What a guest finds.
struct Found<'a>(&'a Row);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.treatment {
            Treatment::Shown(_) => f.write_str("the register"),
            Treatment::Stored { reset, .. } => {
                f.write_str("what was written, at first ")?;
                show(reset, f)
            }
            Treatment::Constant(value) => {
                f.write_str("always ")?;
                show(value, f)
            }
            Treatment::Ignored => f.write_str("#GP when read"),
            Treatment::Hidden => f.write_str("#GP"),
        }
    }
}

fn show(value: Value, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match value {
        Value::Is(value) => write!(f, "{value:#x}"),
        Value::RangeMask(size) => write!(f, "the mask of {size:#x} bytes, valid"),
        Value::Ratio(shifts) => {
            f.write_str("the TSC's ratio")?;
            let mut before = " at bit";
            shifts.iter().try_for_each(|shift| {
                write!(f, "{before} {shift}")?;
                before = ",";
                Ok(())
            })
        }
    }
}

/// Which bits a guest may write.
struct Writes<'a>(&'a Row);

impl fmt::Display for Writes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let without_effect = match self.0.treatment {
            Treatment::Hidden => return f.write_str("no"),
            Treatment::Constant(_) | Treatment::Ignored => ", to no effect",
            Treatment::Shown(_) | Treatment::Stored { .. } => "",
        };
        match self.0.writable {
            Bits::NONE => return f.write_str("no"),
            Bits::ALL => f.write_str("all bits")?,
            Bits::Are(bits) => write!(f, "{bits:#x}")?,
            Bits::Physical(bits) => write!(f, "{bits:#x} and the address")?,
        }
        f.write_str(without_effect)
    }
}
