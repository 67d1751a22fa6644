//! Runs guests on the Umbra hypervisor and shows every exit and its cause.
//!
//! The way of a run: [`cli`] takes the options, [`guest`] looks at what is to boot, and [`machine`]
//! makes the boot image and the emulator. [`run`] carries console and messages between them and the
//! user's [`console`], and [`report`] shows the exits by cause; [`trace`] shows them one by one.
//! [`mod@bench`] runs the workload in that way, [`compare`] lays results side by side, [`html`]
//! draws them. [`doctor`] says what this host can do, and [`image`] writes the boot image of a run
//! for machines elsewhere, whose words [`decode`] makes into results.
#![forbid(unsafe_code)]

pub mod bench;
pub mod cli;
pub mod compare;
pub mod console;
pub mod decode;
pub mod doctor;
pub mod error;
pub mod guest;
pub mod html;
pub mod image;
pub mod machine;
pub mod number;
pub mod report;
pub mod run;
pub mod schema;
pub mod signals;
pub mod tail;
pub mod temporary;
pub mod trace;
pub mod untrusted;
