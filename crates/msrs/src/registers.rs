//! The registers of one virtual CPU.

use alloc::vec::Vec;
use core::fmt;

use crate::TABLE;
use crate::row::{Cpu, Row, Source, Treatment};

/// The access raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// What comes of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// Done.
    Done(T),
    /// The register is more than a value: who has it.
    Ask(Source),
}

/// Bits of a register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flips {
    /// A write of the other value raises #GP.
    pub refused: u64,
    /// The register then reads as written.
    pub kept: u64,
}

/// A row on this CPU.
struct Entry {
    row: &'static Row,
    reset: u64,
    writable: u64,
}

/// The registers: the rows of one CPU, and what is stored in them.
pub struct Registers {
    /// By number.
    entries: Vec<Entry>,
    /// Registers that do not hold their value at reset. No more than the stored ones.
    written: Vec<(u32, u64)>,
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registers").field("written", &self.written).finish_non_exhaustive()
    }
}

impl Registers {
    /// The registers of `cpu`, at reset. Allocates here and never again.
    pub fn new(cpu: &Cpu) -> Registers {
        let entry = |row: &'static Row| {
            let reset = match row.treatment {
                Treatment::Stored { reset, .. } | Treatment::Constant(reset) => reset.on(cpu),
                Treatment::Shown(_) | Treatment::Ignored | Treatment::Hidden => 0,
            };
            Entry { row, reset, writable: row.writable.on(cpu) }
        };
        let entries: Vec<_> = TABLE.iter().filter(|row| row.is_on(cpu)).map(entry).collect();
        let stored =
            entries.iter().filter(|entry| matches!(entry.row.treatment, Treatment::Stored { .. }));
        let count = stored.map(|entry| entry.row.registers().count()).sum();
        Registers { entries, written: Vec::with_capacity(count) }
    }

    /// The entry of a register.
    fn entry(&self, msr: u32) -> Result<&Entry, Refused> {
        let behind = self.entries.partition_point(|entry| entry.row.first <= msr);
        // Groups whose registers are apart lie within each other: two at most.
        let near = self.entries[..behind].iter().rev().take(2);
        near.into_iter().find(|entry| entry.row.contains(msr)).ok_or(Refused)
    }

    /// What a register holds that is stored or constant; zero for others.
    pub fn value(&self, msr: u32) -> u64 {
        let written =
            self.written.iter().find(|(number, _)| *number == msr).map(|(_, value)| *value);
        written.unwrap_or_else(|| self.entry(msr).map_or(0, |entry| entry.reset))
    }

    /// What a guest sees that flips each bit of a register which it can read, and back.
    pub fn flips(&mut self, msr: u32) -> Flips {
        let (mut flips, value) = (Flips::default(), self.value(msr));
        for bit in (0..64).map(|bit| 1 << bit) {
            match self.write(msr, value ^ bit) {
                Err(Refused) => flips.refused |= bit,
                Ok(_) => {
                    flips.kept |= if self.value(msr) == value ^ bit { bit } else { 0 };
                    // What can be changed can be changed back.
                    let _ = self.write(msr, value);
                }
            }
        }
        flips
    }

    /// RDMSR.
    ///
    /// # Errors
    /// It raises #GP.
    pub fn read(&self, msr: u32) -> Result<Answer<u64>, Refused> {
        match self.entry(msr)?.row.treatment {
            Treatment::Shown(source) => Ok(Answer::Ask(source)),
            Treatment::Stored { .. } | Treatment::Constant(_) => Ok(Answer::Done(self.value(msr))),
            Treatment::Ignored | Treatment::Hidden => Err(Refused),
        }
    }

    /// WRMSR.
    ///
    /// # Errors
    /// It raises #GP.
    pub fn write(&mut self, msr: u32, value: u64) -> Result<Answer<()>, Refused> {
        let entry = self.entry(msr)?;
        let changed = (value ^ entry.reset) & !entry.writable;
        match entry.row.treatment {
            Treatment::Shown(source) => Ok(Answer::Ask(source)),
            Treatment::Stored { check, dropped, .. } => {
                if changed & !dropped != 0 || !check.allows(value) {
                    return Err(Refused);
                }
                let value = value & !dropped | entry.reset & dropped;
                match self.written.iter_mut().find(|(number, _)| *number == msr) {
                    Some((_, written)) => *written = value,
                    None => self.written.push((msr, value)),
                }
                Ok(Answer::Done(()))
            }
            // A register that cannot be written raises #GP, whatever the value.
            Treatment::Constant(_) if changed == 0 && entry.writable != 0 => Ok(Answer::Done(())),
            Treatment::Ignored => Ok(Answer::Done(())),
            Treatment::Constant(_) | Treatment::Hidden => Err(Refused),
        }
    }
}
