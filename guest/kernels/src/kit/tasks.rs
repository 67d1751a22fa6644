//! Hardware task switches, outside of long mode.

use super::descriptors;

unsafe extern "C" {
    fn hardware_tasks();
    static tasks_found: [u32; 19];
}

/// Switches between tasks by JMP, CALL and IRET, and by a task gate for an exception, and to a
/// task that cannot start. Returns what each task found; `tasks.s` says what the words are.
pub fn switch() -> [u32; 19] {
    // SAFETY: image and stack lie at their physical addresses; CR0 comes back before the return,
    // and GDT, IDT and task register come back behind it, while interrupts are off.
    unsafe { hardware_tasks() };
    descriptors::load_gdt(None);
    descriptors::load_idt(None);
    descriptors::load_data_segments();
    // SAFETY: one CPU; a volatile read of initialised words.
    unsafe { (&raw const tasks_found).read_volatile() }
}
