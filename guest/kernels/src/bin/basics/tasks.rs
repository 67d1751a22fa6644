//! Hardware tasks.

use guest_kernels::check;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::tasks;

use crate::setting::Setting;

const NT: u32 = 1 << 14;
const BUSY: u32 = 1 << 9;

/// JMP, CALL and IRET between tasks, and an exception by a task gate.
pub fn switches(_: &mut Setting, report: &mut Report) {
    let found = tasks::switch();
    let [
        eax,
        tr_1,
        flags_1,
        esi,
        tr,
        ts,
        flags_2,
        link_2,
        calls,
        nt,
        error_code,
        eip,
        link_3,
        main,
        task_1,
        task_3,
        no_code,
        link_4,
        task_4,
    ] = found;
    check!(report, (eax, tr_1, flags_1 & NT) == (0xa0, 0x28, 0), "by JMP: {found:x?}");
    check!(report, (esi, tr, ts) == (0x1234, 0x20, 1), "back by JMP: {found:x?}");
    check!(report, (flags_2 & NT, link_2, calls) == (NT, 0x20, 2), "by CALL: {found:x?}");
    check!(report, nt == 0, "back by IRET: {found:x?}");
    check!(report, (error_code, eip, link_3) == (0x1230, 0, 0x20), "by a task gate: {found:x?}");
    check!(report, (no_code, link_4) == (0x10, 0x40), "to a task without code: {found:x?}");
    let busy = [main, task_1, task_3, task_4].map(|word| word & BUSY != 0);
    check!(report, busy == [true, false, false, true], "busy: {busy:?}, {found:x?}");
}
