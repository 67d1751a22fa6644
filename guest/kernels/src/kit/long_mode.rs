//! The code that leaves long mode, in one piece: its files share macros.

use core::arch::global_asm;

global_asm!(
    include_str!("long_mode.s"),
    include_str!("tasks.s"),
    include_str!("unpaged.s"),
    options(att_syntax)
);
