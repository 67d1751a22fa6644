//! One encoding, and what it needs to run.

/// How many bytes a form has in the table.
pub const RECORD: usize = 40;

/// Where the code lies in its page.
pub const ORIGIN: u64 = 0x100;
/// Where branches go to in that page.
pub const LANDING: u64 = 0x180;
/// The displacement of memory operands: what their base register is below the operand.
pub const DISPLACEMENT: u64 = 0x10;
/// The port of INS and OUTS: no machine here has a device there.
pub const PORT: u64 = 0x150;

const BYTES: usize = 15;
const TAIL: usize = 8;

macro_rules! coded {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            const ALL: &[$name] = &[$($name::$variant),*];

            fn from_code(code: u8) -> Option<$name> {
                $name::ALL.get(usize::from(code)).copied()
            }
        }
    };
}

coded! {
    /// The mode of code.
    Mode {
        /// CS.L = 0, CS.D = 0.
        Bits16,
        /// CS.L = 0, CS.D = 1.
        Bits32,
        /// CS.L = 1.
        Bits64,
    }
}

coded! {
    /// How the form finds its operand. All other pointers go to scratch memory.
    Role {
        /// RBX and [`DISPLACEMENT`].
        Base,
        /// An absolute address in the instruction.
        Absolute,
        /// RBX and AL.
        Table,
        /// RSI.
        Source,
        /// RDI.
        Destination,
        /// RSI and, behind it, RDI.
        Both,
        /// RSP: what is popped.
        Pop,
        /// Below RSP: what is pushed.
        Push,
        /// RBP.
        Frame,
    }
}

coded! {
    /// What memory holds at the operand, if it can hold anything.
    Contents {
        /// A pattern.
        Pattern,
        /// What RAX and RDX hold.
        Match,
        /// Zeros.
        Zeros,
        /// A selector of data.
        Selector,
        /// A far pointer to data.
        FarData,
        /// The address of the landing place.
        Near,
        /// A far pointer to the landing place.
        Far,
        /// What IRET takes to the landing place.
        Iret,
        /// A pseudo-descriptor of the GDT.
        Gdt,
        /// A pseudo-descriptor of the IDT.
        Idt,
        /// A machine status word with PE.
        StatusWord,
        /// What FXSAVE or XSAVE stored.
        Image,
    }
}

coded! {
    /// What registers hold that matter to the form.
    Registers {
        /// Nothing special.
        Plain,
        /// A small RDX, and RAX: dividends and bit numbers.
        Small,
        /// EDX:EAX is a mask of state components.
        Components,
        /// DX is [`PORT`].
        Port,
        /// Vector register 4 has indices of 32 bits.
        Index32,
        /// Vector register 4 has indices of 64 bits.
        Index64,
    }
}

/// One encoding, and what it needs to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    bytes: [u8; BYTES],
    length: u8,
    tail: [u8; TAIL],
    tail_length: u8,
    /// The mode of code.
    pub mode: Mode,
    /// How it finds its operand.
    pub role: Role,
    /// What the operand holds.
    pub contents: Contents,
    /// The width of the words in the contents, in bytes.
    pub word: u8,
    /// What registers hold.
    pub registers: Registers,
    /// Whether it writes the operand.
    pub writes: bool,
    /// How many bytes the operand has.
    pub size: u16,
    /// The bits of RFLAGS that are defined after it.
    pub flags: u32,
    /// Where the absolute address stands in the bytes, and how many it has.
    pub absolute: (u8, u8),
}

impl Form {
    /// A form of an instruction's bytes.
    ///
    /// # Panics
    /// If there are more than an instruction has.
    pub fn new(bytes: &[u8], mode: Mode) -> Form {
        let mut form = Form {
            bytes: [0; BYTES],
            length: bytes.len() as u8,
            tail: [0; TAIL],
            tail_length: 0,
            mode,
            role: Role::Base,
            contents: Contents::Pattern,
            word: 0,
            registers: Registers::Plain,
            writes: false,
            size: 1,
            flags: !0,
            absolute: (0, 0),
        };
        form.bytes[..bytes.len()].copy_from_slice(bytes);
        form
    }

    /// The instruction.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// What runs behind it, so that the kernel can go on.
    pub fn tail(&self) -> &[u8] {
        &self.tail[..usize::from(self.tail_length)]
    }

    /// Sets what runs behind it.
    ///
    /// # Panics
    /// If it is too long.
    pub fn set_tail(&mut self, tail: &[u8]) {
        self.tail[..tail.len()].copy_from_slice(tail);
        self.tail_length = tail.len() as u8;
    }

    /// How much of the operand lies before the border of the two pages that it crosses. Operands
    /// that must be aligned, and are large enough, stay so.
    pub fn before_border(&self) -> u64 {
        let size = u64::from(self.size);
        if size > 64 { 64 } else { size / 2 }
    }

    /// As in the table.
    pub fn to_record(&self) -> [u8; RECORD] {
        let mut record = [0; RECORD];
        record[..15].copy_from_slice(&self.bytes);
        record[15] = self.length;
        record[16..24].copy_from_slice(&self.tail);
        record[24] = self.tail_length;
        record[25] = self.mode as u8;
        record[26] = self.role as u8;
        record[27] = self.contents as u8;
        record[28] = self.word;
        record[29] = self.registers as u8;
        record[30] = u8::from(self.writes);
        record[31] = self.absolute.0;
        record[32] = self.absolute.1;
        record[34..36].copy_from_slice(&self.size.to_le_bytes());
        record[36..40].copy_from_slice(&self.flags.to_le_bytes());
        record
    }

    /// From the table; nothing if it cannot be from there.
    pub fn from_record(record: &[u8; RECORD]) -> Option<Form> {
        let (mut bytes, mut tail) = ([0; BYTES], [0; TAIL]);
        bytes.copy_from_slice(&record[..15]);
        tail.copy_from_slice(&record[16..24]);
        let form = Form {
            bytes,
            length: record[15],
            tail,
            tail_length: record[24],
            mode: Mode::from_code(record[25])?,
            role: Role::from_code(record[26])?,
            contents: Contents::from_code(record[27])?,
            word: record[28],
            registers: Registers::from_code(record[29])?,
            writes: record[30] != 0,
            size: u16::from_le_bytes([record[34], record[35]]),
            flags: u32::from_le_bytes([record[36], record[37], record[38], record[39]]),
            absolute: (record[31], record[32]),
        };
        let sound = usize::from(form.length) <= BYTES
            && usize::from(form.tail_length) <= TAIL
            && form.absolute.0 + form.absolute.1 <= form.length;
        sound.then_some(form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_a_form() {
        let mut form = Form::new(&[0xa1, 1, 2, 3, 4], Mode::Bits32);
        form.set_tail(&[0x90]);
        (form.role, form.contents, form.word) = (Role::Absolute, Contents::Image, 8);
        (form.registers, form.writes, form.size) = (Registers::Index64, true, 0x340);
        (form.flags, form.absolute) = (0x8d5, (1, 4));
        assert_eq!(Form::from_record(&form.to_record()), Some(form));
        let mut bad = form.to_record();
        bad[26] = 99;
        assert_eq!(Form::from_record(&bad), None);
    }
}
