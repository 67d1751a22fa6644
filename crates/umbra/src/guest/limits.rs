//! Whether guest and hypervisor fit into a machine.

use umbra_multiboot::{Guest, Kernel, LoadError, Region};
use umbra_telemetry::memory::{
    CONVENTIONAL_END, HOLE_END_MIB, HOLE_START_MIB, MIN_GUEST_MIB, MIN_SHADOW_FRAMES, reserve_mib,
};

use super::{BzImage, Image, Module};
use crate::error::Error;

const MIB: u64 = 1 << 20;

/// The most memory that a machine gets. It is backed by a file as it is touched.
const MOST_MACHINE_MIB: u64 = 64 << 10;

/// Room beside kernel and initrd: boot parameters, page tables, and what a kernel allocates before
/// it knows all of its memory.
const SLACK_MIB: u64 = 8;

/// Checks `--memory` against what is to boot and against the machine, and returns the machine's
/// memory in MiB.
///
/// # Errors
/// A sentence that names the memory which would do.
pub fn check_memory(
    memory_mib: u32,
    shadow_frames: Option<u32>,
    image: &Image,
    initrd_bytes: u64,
    modules: &[Module],
) -> Result<u32, Error> {
    let memory = u64::from(memory_mib);
    let least = match image {
        Image::Linux(linux) => least_for_linux(memory, linux, initrd_bytes)?,
        Image::Multiboot(kernel) => least_for_multiboot(memory, kernel, modules)?,
    };
    machine_memory(memory_mib, shadow_frames, least)
}

/// Checks `--memory` against what every guest needs and against the machine, before it is known
/// what is to boot.
///
/// # Errors
/// As [`check_memory`].
pub fn check_machine_memory(memory_mib: u32, shadow_frames: Option<u32>) -> Result<(), Error> {
    let least = u64::from(MIN_GUEST_MIB);
    if u64::from(memory_mib) < least {
        return Err(too_few(memory_mib.into(), least));
    }
    machine_memory(memory_mib, shadow_frames, least).map(drop)
}

fn too_few(memory: u64, least: u64) -> Error {
    Error::Input(format!("{memory} MiB of guest memory are too few; give --memory {least} or more"))
}

/// The machine's memory in MiB, for a guest that needs `least`.
fn machine_memory(memory_mib: u32, shadow_frames: Option<u32>, least: u64) -> Result<u32, Error> {
    let memory = u64::from(memory_mib);
    if fits(memory_mib, shadow_frames, least) {
        // At most MOST_MACHINE_MIB.
        return Ok(machine_mib(memory_mib, shadow_frames) as u32);
    }
    Err(Error::Input(match most_memory(shadow_frames, least) {
        Some(most) => format!(
            "{memory} MiB of guest memory and the hypervisor do not fit into a machine, which has at most \
             {MOST_MACHINE_MIB} MiB; give --memory {most} or less"
        ),
        None => format!(
            "so many --shadow-frames do not fit below the PCI hole at {HOLE_START_MIB} MiB; give fewer"
        ),
    }))
}

/// The memory in MiB that the machine of a guest has. In Bochs the hole for devices hides what lies
/// behind it.
fn machine_mib(memory_mib: u32, shadow_frames: Option<u32>) -> u64 {
    let needed = u64::from(memory_mib) + reserve_mib(memory_mib, shadow_frames);
    if needed > HOLE_START_MIB { needed + HOLE_END_MIB - HOLE_START_MIB } else { needed }
}

/// Whether a guest fits into a machine. The hypervisor lies below the PCI hole, and so do the
/// guest's files and what boots it, which need `least`.
fn fits(memory_mib: u32, shadow_frames: Option<u32>, least: u64) -> bool {
    let (memory, reserve) = (u64::from(memory_mib), reserve_mib(memory_mib, shadow_frames));
    machine_mib(memory_mib, shadow_frames) <= MOST_MACHINE_MIB
        && least.min(memory) + reserve <= HOLE_START_MIB
}

/// The largest guest that fits into a machine, in MiB, if it has `least` below the PCI hole.
fn most_memory(shadow_frames: Option<u32>, least: u64) -> Option<u64> {
    // What the hypervisor needs grows with the guest, so those that fit come first.
    let sizes = 0..MOST_MACHINE_MIB as u32;
    let (mut from, mut to) = (sizes.start, sizes.end);
    while from < to {
        let middle = from + (to - from) / 2;
        if fits(middle, shadow_frames, least) { from = middle + 1 } else { to = middle }
    }
    from.checked_sub(1).map(u64::from).filter(|&most| most >= least)
}

/// The most that kernel, initrd and modules may need.
fn most_for_files() -> u64 {
    let reserve = reserve_mib(MIN_GUEST_MIB, Some(MIN_SHADOW_FRAMES));
    // A guest as large as that has the frames of the hole on top.
    HOLE_START_MIB
        .saturating_sub(reserve_mib((HOLE_START_MIB - reserve) as u32, Some(MIN_SHADOW_FRAMES)))
}

/// What a Linux kernel needs, in MiB, if there is as much.
fn least_for_linux(memory: u64, linux: &BzImage, initrd_bytes: u64) -> Result<u64, Error> {
    let initrd_mib = initrd_bytes.div_ceil(MIB);
    let kernel_end = linux.preferred_address.saturating_add(linux.memory_size);
    let least = (kernel_end.div_ceil(MIB) + initrd_mib + SLACK_MIB).max(u64::from(MIN_GUEST_MIB));
    // With the fewest shadow frames: no advice to give more memory may lead here again.
    let most = most_for_files();
    if least > most {
        return Err(Error::Input(format!(
            "this kernel and initrd need {least} MiB of guest memory, and a guest here has at most {most}; give a \
             smaller initrd, or a kernel that is not damaged"
        )));
    }
    if initrd_mib >= memory && initrd_mib > 0 {
        return Err(Error::Input(format!(
            "the initrd ({initrd_mib} MiB) does not fit into {memory} MiB of guest memory; give --memory {least} or \
             more"
        )));
    }
    if memory < least {
        return Err(Error::Input(format!(
            "{memory} MiB of guest memory are too few for this kernel and initrd; give --memory {least} or more"
        )));
    }
    Ok(least)
}

/// What a multiboot kernel needs, in MiB, if it can be placed in as much.
fn least_for_multiboot(memory: u64, kernel: &Kernel, modules: &[Module]) -> Result<u64, Error> {
    let least = u64::from(MIN_GUEST_MIB);
    if memory < least {
        return Err(too_few(memory, least));
    }
    let usable = |range| Region { range, usable: true };
    let modules: Vec<_> = modules
        .iter()
        .map(|module| umbra_multiboot::Module {
            size: module.file.len() as u64,
            command_line: &module.string,
        })
        .collect();
    // The hypervisor's own plan, with its command line and its reserved areas, is the same where
    // memory goes.
    let guest = Guest {
        kernel,
        command_line: "",
        modules: &modules,
        memory: &[usable(0..CONVENTIONAL_END), usable(MIB..memory.min(HOLE_START_MIB) * MIB)],
    };
    let most = most_for_files();
    match umbra_multiboot::place(&guest) {
        Ok(_) => Ok(least),
        Err(LoadError::TooLittleMemory { need, .. }) if need > most => Err(Error::Input(format!(
            "this kernel and its modules need {need} MiB of guest memory, and a guest here has at most {most}; give \
             smaller modules, or a kernel that is not damaged"
        ))),
        Err(error) => Err(Error::Input(format!("the kernel {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::bzimage::tests::synthetic;
    use crate::guest::image::tests::multiboot;

    /// Wants 32 MiB at 16 MiB.
    fn image() -> Image {
        Image::classify(&synthetic()).unwrap()
    }

    fn refuse(memory: u32, frames: Option<u32>, initrd_mib: u64) -> String {
        check_memory(memory, frames, &image(), initrd_mib * MIB, &[]).unwrap_err().to_string()
    }

    #[test]
    fn the_least_memory_is_named_and_is_enough() {
        assert!(refuse(55, None, 0).contains("--memory 56 or more"));
        check_memory(56, None, &image(), 0, &[]).unwrap();
        let sentence = refuse(100, None, 200);
        assert!(
            sentence.contains("initrd (200 MiB)") && sentence.contains("--memory 256"),
            "{sentence}"
        );
        check_memory(256, None, &image(), 200 * MIB, &[]).unwrap();
    }

    #[test]
    fn the_most_memory_is_named_and_fits() {
        let sentence = refuse(1 << 20, None, 0);
        assert!(
            sentence.contains("1048576 MiB") && sentence.contains("at most 65536 MiB"),
            "{sentence}"
        );
        let most =
            sentence.split("--memory ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(check_memory(most, None, &image(), 0, &[]).unwrap() <= 65536);
        assert!(check_memory(most + 1, None, &image(), 0, &[]).is_err());
        for memory in [2900, 2953, 3072, 4096, 5120, 20_000] {
            let machine = check_memory(memory, None, &image(), 0, &[]).unwrap();
            assert!(machine > memory + 70, "{memory}: {machine}");
            assert!(
                machine <= 3072 || machine > memory + 1024 + 70,
                "the hole hides memory: {machine}"
            );
        }
    }

    #[test]
    fn what_no_machine_holds_is_not_answered_with_a_number() {
        for initrd_mib in [3000, 3072, u64::MAX / MIB] {
            let sentence = refuse(192, None, initrd_mib);
            assert!(sentence.contains("at most") && !sentence.contains("--memory"), "{sentence}");
        }
        let damaged = BzImage {
            version: None,
            entry_64: true,
            preferred_address: u64::MAX,
            memory_size: 9,
            command_line_limit: 0,
        };
        let sentence =
            check_memory(192, None, &Image::Linux(damaged), 0, &[]).unwrap_err().to_string();
        assert!(sentence.contains("damaged"), "{sentence}");
    }

    #[test]
    fn what_no_guest_can_have_is_known_before_the_guest_is() {
        let check = |memory, frames| {
            check_machine_memory(memory, frames).map_err(|error| error.to_string())
        };
        check(192, None).unwrap();
        assert!(check(3, None).unwrap_err().contains("--memory 16 or more"));
        check(4096, None).unwrap();
        assert!(check(1 << 20, None).unwrap_err().contains("--memory 6"));
        assert!(check(192, Some(u32::MAX)).unwrap_err().contains("--shadow-frames"));
    }

    #[test]
    fn too_many_shadow_frames() {
        assert!(refuse(192, Some(u32::MAX), 0).contains("--shadow-frames"));
        assert!(check_memory(192, Some(100_000), &image(), 0, &[]).unwrap() > 192 + 1024);
    }

    #[test]
    fn modules_must_fit_behind_a_multiboot_kernel() {
        let image = Image::classify(&multiboot()).unwrap();
        let module = Module { file: vec![0; 20 << 20], string: "m".into() };
        let check = |memory| check_memory(memory, None, &image, 0, std::slice::from_ref(&module));
        assert!(check(15).unwrap_err().to_string().contains("--memory 16"));
        let sentence = check(16).unwrap_err().to_string();
        assert!(sentence.contains("--memory 22 or more"), "{sentence}");
        check(22).unwrap();
    }
}
