//! Exceptions that an instruction raises.

/// An exception that is not a page fault, as it goes to the guest's IDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The vector.
    pub vector: u8,
    /// The error code that its delivery pushes, if it pushes one.
    pub error_code: Option<u16>,
}

impl Exception {
    /// #DE.
    pub const DIVIDE_ERROR: Exception = Exception { vector: 0, error_code: None };
    /// #BR.
    pub const BOUND_RANGE: Exception = Exception { vector: 5, error_code: None };
    /// #UD.
    pub const INVALID_OPCODE: Exception = Exception { vector: 6, error_code: None };
    /// #NP(0).
    pub const NOT_PRESENT: Exception = Exception { vector: 11, error_code: Some(0) };
    /// #TS(0).
    pub const INVALID_TSS: Exception = Exception { vector: 10, error_code: Some(0) };
    /// #SS(0).
    pub const STACK_FAULT: Exception = Exception { vector: 12, error_code: Some(0) };
    /// #GP(0).
    pub const GENERAL_PROTECTION: Exception = Exception { vector: 13, error_code: Some(0) };
    /// #AC(0).
    pub const ALIGNMENT_CHECK: Exception = Exception { vector: 17, error_code: Some(0) };

    /// The same exception with another error code.
    pub const fn with(self, error_code: u16) -> Exception {
        Exception { error_code: Some(error_code), ..self }
    }
}
